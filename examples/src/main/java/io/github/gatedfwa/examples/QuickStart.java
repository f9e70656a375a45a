package io.github.gatedfwa.examples;

import io.github.gatedfwa.layers.DecoderBlock;
import io.github.gatedfwa.layers.GatedFWALayer;
import io.github.gatedfwa.layers.RMSNormLayer;
import io.github.gatedfwa.samediff.GatedFwaOps;
import io.github.gatedfwa.samediff.NDGatedFwa;
import io.github.gatedfwa.samediff.SDGatedFwa;
import org.deeplearning4j.nn.conf.ComputationGraphConfiguration.GraphBuilder;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.deeplearning4j.nn.conf.inputs.InputType;
import org.deeplearning4j.nn.conf.layers.RnnOutputLayer;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;
import org.nd4j.linalg.activations.Activation;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.learning.config.Adam;

/** The code that the README shows. A test compares the two, and another runs it. */
final class QuickStart {
  private QuickStart() {}

  static ComputationGraph network() {
    // README: network
    GraphBuilder graph =
        new NeuralNetConfiguration.Builder()
            .updater(new Adam(1e-3))
            .graphBuilder()
            .addInputs("x")
            .setInputTypes(InputType.recurrent(64)); // [minibatch, 64, time]
    String block =
        DecoderBlock.builder()
            .nModel(64)
            .attention(GatedFWALayer.builder().nHeads(4).windowSize(128).ropeBase(10000).build())
            .hiddenSize(176)
            .build()
            .addTo(graph, "block", "x");
    graph.addLayer("norm", RMSNormLayer.builder().build(), block);
    graph.addLayer(
        "y", new RnnOutputLayer.Builder().nOut(10).activation(Activation.SOFTMAX).build(), "norm");
    ComputationGraph network = new ComputationGraph(graph.setOutputs("y").build());
    network.init();
    // README: end
    return network;
  }

  static SDVariable sameDiff(SameDiff sd) {
    // README: SameDiff
    // q [B, N, H, D], k and v [B, N, Hkv, D], gate logit h and amplitude beta [B, N, H]
    SDVariable q = sd.placeHolder("q", DataType.FLOAT, 1, 1000, 8, 64);
    SDVariable k = sd.placeHolder("k", DataType.FLOAT, 1, 1000, 2, 64);
    SDVariable v = sd.placeHolder("v", DataType.FLOAT, 1, 1000, 2, 64);
    SDVariable h = sd.placeHolder("h", DataType.FLOAT, 1, 1000, 8);
    SDVariable beta = sd.placeHolder("beta", DataType.FLOAT, 1, 1000, 8);

    SDGatedFwa attention = new SDGatedFwa(sd);
    SDVariable alpha = attention.gate(h, beta, GatedFwaOps.DEFAULT_EPS);
    SDVariable o = attention.gatedFwa(q, k, v, alpha, null, 128, 0)[0]; // no mask, scale 1/√D
    // README: end
    return o;
  }

  static INDArray arrays() {
    // README: INDArray
    INDArray q = Nd4j.randn(DataType.FLOAT, 1, 1000, 8, 64);
    INDArray k = Nd4j.randn(DataType.FLOAT, 1, 1000, 2, 64);
    INDArray v = Nd4j.randn(DataType.FLOAT, 1, 1000, 2, 64);
    INDArray h = Nd4j.randn(DataType.FLOAT, 1, 1000, 8);
    INDArray beta = Nd4j.onesLike(h);

    NDGatedFwa attention = new NDGatedFwa();
    INDArray alpha = attention.gate(h, beta, GatedFwaOps.DEFAULT_EPS);
    INDArray o = attention.gatedFwa(q, k, v, alpha, null, 128, 0)[0];
    // README: end
    return o;
  }
}
