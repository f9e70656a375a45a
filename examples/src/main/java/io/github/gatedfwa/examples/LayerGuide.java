package io.github.gatedfwa.examples;

import io.github.gatedfwa.layers.DecoderBlock;
import io.github.gatedfwa.layers.GateListener;
import io.github.gatedfwa.layers.GateListener.Reading;
import io.github.gatedfwa.layers.GatedFWALayer;
import io.github.gatedfwa.layers.NativeSparseAttentionLayer;
import io.github.gatedfwa.layers.RMSNormLayer;
import java.io.IOException;
import java.io.ObjectInputStream;
import java.io.ObjectOutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.deeplearning4j.nn.conf.BackpropType;
import org.deeplearning4j.nn.conf.ComputationGraphConfiguration.GraphBuilder;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.conf.inputs.InputType;
import org.deeplearning4j.nn.conf.layers.RnnOutputLayer;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.deeplearning4j.nn.multilayer.MultiLayerNetwork;
import org.deeplearning4j.nn.transferlearning.FineTuneConfiguration;
import org.deeplearning4j.nn.transferlearning.TransferLearning;
import org.nd4j.linalg.activations.Activation;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.dataset.DataSet;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.indexing.NDArrayIndex;
import org.nd4j.linalg.learning.config.Adam;
import org.nd4j.linalg.learning.config.Sgd;
import org.nd4j.linalg.lossfunctions.impl.LossMCXENT;

/**
 * The code that docs/layers.md shows, and the layer of docs/nsa.md. A test compares the two, and
 * others run it.
 */
final class LayerGuide {
  private LayerGuide() {}

  static DecoderBlock sparseBlock() {
    // nsa.md: layer
    DecoderBlock block =
        DecoderBlock.builder()
            .nModel(256)
            .attention(
                NativeSparseAttentionLayer.builder()
                    .nHeads(8)
                    .nKvHeads(2)
                    .ropeBase(10000)
                    .qkNorm(true)
                    .build()) // l = 32, d = 16, l′ = 64, topN = 16, w = 512
            .build();
    // nsa.md: end
    return block;
  }

  static ComputationGraph graph() {
    // layers.md: graph
    DecoderBlock block =
        DecoderBlock.builder()
            .nModel(256)
            .attention(
                GatedFWALayer.builder()
                    .nHeads(4)
                    .windowSize(256)
                    .ropeBase(10000)
                    .qkNorm(true)
                    .build())
            .build();
    GraphBuilder graph =
        new NeuralNetConfiguration.Builder()
            .updater(new Adam(1e-3))
            .graphBuilder()
            .addInputs("in")
            .setInputTypes(InputType.recurrent(256, RNNFormat.NWC));
    String last = "in";
    for (int i = 0; i < 6; i++) {
      last = block.addTo(graph, "block" + i, last);
    }
    graph.addLayer("norm", RMSNormLayer.builder().build(), last);
    graph.addLayer(
        "out",
        new RnnOutputLayer.Builder().nOut(100).activation(Activation.SOFTMAX).build(),
        "norm");
    ComputationGraph network = new ComputationGraph(graph.setOutputs("out").build());
    network.init();
    // layers.md: end
    return network;
  }

  /**
   * @param x [minibatch, size, time]
   * @param lengths of the sequences; what is behind them is padding
   */
  static INDArray masked(MultiLayerNetwork network, INDArray x, int[] lengths) {
    // layers.md: mask
    INDArray mask = Nd4j.zeros(x.dataType(), x.size(0), x.size(2)); // [minibatch, time]
    for (int i = 0; i < lengths.length; i++) {
      mask.get(NDArrayIndex.point(i), NDArrayIndex.interval(0, lengths[i])).assign(1);
    }
    INDArray output = network.output(x, false, mask, null);
    // layers.md: end
    return output;
  }

  /**
   * @param x [minibatch, size, time]
   */
  static List<INDArray> stream(MultiLayerNetwork network, INDArray x) {
    List<INDArray> outputs = new ArrayList<>();
    // layers.md: stream
    network.rnnClearPreviousState();
    for (int t = 0; t < x.size(2); t++) {
      INDArray token =
          x.get(NDArrayIndex.all(), NDArrayIndex.all(), NDArrayIndex.interval(t, t + 1));
      outputs.add(network.rnnTimeStep(token));
    }
    // layers.md: end
    return outputs;
  }

  static void saveState(MultiLayerNetwork network, int layer, Path file) throws IOException {
    // layers.md: save
    Map<String, INDArray> state = network.rnnGetPreviousState(layer);
    try (ObjectOutputStream out = new ObjectOutputStream(Files.newOutputStream(file))) {
      out.writeObject(state);
    }
    // layers.md: end
  }

  @SuppressWarnings("unchecked") // what saveState wrote
  static void restoreState(MultiLayerNetwork network, int layer, Path file)
      throws IOException, ClassNotFoundException {
    // layers.md: restore
    try (ObjectInputStream in = new ObjectInputStream(Files.newInputStream(file))) {
      network.rnnSetPreviousState(layer, (Map<String, INDArray>) in.readObject());
    }
    // layers.md: end
  }

  static MultiLayerNetwork truncated() {
    // layers.md: tbptt
    MultiLayerNetwork network =
        new MultiLayerNetwork(
            new NeuralNetConfiguration.Builder()
                .updater(new Adam(1e-3))
                .list()
                .layer(GatedFWALayer.builder().nOut(32).nHeads(2).windowSize(64).build())
                .layer(new RnnOutputLayer.Builder().nOut(5).activation(Activation.SOFTMAX).build())
                .setInputType(InputType.recurrent(16, RNNFormat.NCW))
                .backpropType(BackpropType.TruncatedBPTT)
                .tBPTTLength(100)
                .build());
    network.init();
    // layers.md: end
    return network;
  }

  static MultiLayerNetwork half() {
    // layers.md: half
    MultiLayerNetwork network =
        new MultiLayerNetwork(
            new NeuralNetConfiguration.Builder()
                .dataType(DataType.FLOAT16)
                .updater(Adam.builder().learningRate(1e-3).epsilon(1e-4).build())
                .list()
                .layer(GatedFWALayer.builder().nOut(32).nHeads(2).windowSize(64).build())
                .layer(
                    new RnnOutputLayer.Builder(new LossMCXENT(1e-3, null))
                        .nOut(5)
                        .activation(Activation.SOFTMAX)
                        .build())
                .setInputType(InputType.recurrent(16, RNNFormat.NCW))
                .build());
    network.init();
    // layers.md: end
    return network;
  }

  /** A network of two layers gets an output layer for other classes; its attention stays. */
  static MultiLayerNetwork newHead(MultiLayerNetwork network) {
    // layers.md: transfer
    MultiLayerNetwork tuned =
        new TransferLearning.Builder(network)
            .fineTuneConfiguration(
                new FineTuneConfiguration.Builder().updater(new Sgd(0.1)).build())
            .setFeatureExtractor(0) // layers 0 to 0 are frozen
            .removeOutputLayer()
            .addLayer(
                new RnnOutputLayer.Builder()
                    .nIn(32)
                    .nOut(7)
                    .activation(Activation.SOFTMAX)
                    .dataFormat(RNNFormat.NCW) // no input type tells it here
                    .build())
            .build();
    // layers.md: end
    return tuned;
  }

  static List<Reading> gates(MultiLayerNetwork network, DataSet data) {
    // layers.md: gates
    List<Reading> readings = new ArrayList<>();
    network.addListeners(new GateListener(100, readings::add)); // every 100 iterations
    network.fit(data);
    // layers.md: end
    return readings;
  }

  /**
   * The decays of a network's first attention layer.
   *
   * @param x [minibatch, size, time]
   * @return [minibatch, time, heads]
   */
  static INDArray decays(MultiLayerNetwork network, INDArray x) {
    // layers.md: decays
    network.setInput(x);
    network.feedForward(false, false); // keeps the layers' inputs
    INDArray alpha = GateListener.gatedLayers(network).get("layer0").decays();
    // layers.md: end
    return alpha;
  }
}
