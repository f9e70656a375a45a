package io.github.gatedfwa.benchmarks;

import io.github.gatedfwa.layers.GatedFWALayer;
import io.github.gatedfwa.layers.RMSNormLayer;
import io.github.gatedfwa.layers.SwiGLULayer;
import java.io.IOException;
import java.util.Collections;
import java.util.List;
import java.util.Locale;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.conf.inputs.InputType;
import org.deeplearning4j.nn.conf.layers.LSTM;
import org.deeplearning4j.nn.conf.layers.Layer;
import org.deeplearning4j.nn.conf.layers.RnnOutputLayer;
import org.deeplearning4j.nn.conf.layers.SelfAttentionLayer;
import org.deeplearning4j.nn.multilayer.MultiLayerNetwork;
import org.nd4j.linalg.activations.Activation;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.learning.config.Adam;

/**
 * Memory of networks with the layers: how it grows with the number of calls, and the peak of a
 * training step on long sequences beside DL4J's own SelfAttentionLayer (whose memory deeplearning4j
 * issue 8345 is about). Each figure is from a fresh process. Linux only.
 */
public final class LayerMemory {
  private static final int HEAP_MEGABYTES = 256;
  private static final List<Integer> CALLS = List.of(100, 1_000, 10_000, 30_000);

  /** Minibatch, heads and features of the peak's case. */
  private static final int BATCH = 4;

  private static final int HEADS = 8;
  private static final int FEATURES = 256;

  private LayerMemory() {}

  public static void main(String[] args) throws Exception {
    switch (args.length == 0 ? "" : args[0]) {
      case "fit", "rnnTimeStep" -> growth(args[0], args[1]);
      case "peak" -> peak(args[1], Integer.parseInt(args[2]));
      default -> {
        System.out.println(
            "| calls | resident, MB | of it the JVM's own | the rest |\n|---|---|---|---|");
        // The whole heap is resident from the start, so that what grows is native.
        List<String> options =
            List.of(
                "-Xms" + HEAP_MEGABYTES + "m",
                "-Xmx" + HEAP_MEGABYTES + "m",
                "-XX:+AlwaysPreTouch",
                "-XX:+UseSerialGC",
                "-XX:NativeMemoryTracking=summary");
        for (String call : List.of("fit", "rnnTimeStep")) {
          for (String layer : List.of("GatedFWALayer", "LSTM")) {
            ResidentMemory.inFreshProcess(LayerMemory.class, options, call, layer);
          }
        }
        System.out.println(
            "\n| layer | tokens | a training step's peak above what was there, MB |\n|---|---|---|");
        for (int tokens : new int[] {512, 1024, 2048}) {
          for (String layer : List.of("SelfAttentionLayer", "whole", "window")) {
            ResidentMemory.inFreshProcess(
                LayerMemory.class,
                List.of(
                    "-Xmx1g",
                    "-Dorg.bytedeco.javacpp.maxbytes=12g",
                    "-Dorg.bytedeco.javacpp.maxphysicalbytes=14g"),
                "peak",
                layer,
                Integer.toString(tokens));
          }
        }
      }
    }
  }

  private static MultiLayerNetwork network(int features, Layer... layers) {
    NeuralNetConfiguration.ListBuilder list =
        new NeuralNetConfiguration.Builder()
            .seed(1)
            .dataType(DataType.FLOAT)
            .updater(new Adam(1e-3))
            .list();
    for (Layer layer : layers) {
      list.layer(layer);
    }
    list.layer(new RnnOutputLayer.Builder().nOut(2).activation(Activation.SOFTMAX).build());
    MultiLayerNetwork network =
        new MultiLayerNetwork(
            list.setInputType(InputType.recurrent(features, RNNFormat.NCW)).build());
    network.init();
    return network;
  }

  private static void growth(String call, String layer) throws Exception {
    MultiLayerNetwork network =
        layer.equals("LSTM")
            ? network(16, new LSTM.Builder().nOut(16).build())
            : network(
                16,
                RMSNormLayer.builder().build(),
                GatedFWALayer.builder()
                    .nOut(16)
                    .nHeads(4)
                    .windowSize(32)
                    .ropeBase(10_000)
                    .qkNorm(true)
                    .keyShift(true)
                    .valueShift(true)
                    .build(),
                SwiGLULayer.builder().nOut(16).hiddenSize(32).build());
    INDArray x = Nd4j.randn(DataType.FLOAT, 2, 16, 48);
    INDArray labels = Nd4j.zeros(DataType.FLOAT, 2, 2, 48);
    labels.tensorAlongDimension(0, 0, 2).assign(1);
    INDArray token = Nd4j.randn(DataType.FLOAT, 2, 16, 1);
    for (int i = 1; i <= Collections.max(CALLS); i++) {
      if (call.equals("fit")) {
        network.fit(x, labels);
      } else {
        network.rnnTimeStep(token);
      }
      if (CALLS.contains(i)) {
        ResidentMemory.collectGarbage();
        ResidentMemory.trim();
        double resident = ResidentMemory.megabytes();
        double jvm = ResidentMemory.committedByJvmMegabytes();
        System.out.printf(
            Locale.ROOT,
            "| %,d × %s, %s | %.0f | %.0f | %.0f |%n",
            i,
            call,
            layer,
            resident,
            jvm,
            resident - jvm);
      }
    }
  }

  private static void peak(String kind, int tokens) throws IOException {
    GatedFWALayer.Builder ours = GatedFWALayer.builder().nOut(FEATURES).nHeads(HEADS);
    boolean stock = kind.equals("SelfAttentionLayer");
    MultiLayerNetwork network =
        network(
            FEATURES,
            stock
                ? new SelfAttentionLayer.Builder()
                    .nOut(FEATURES)
                    .nHeads(HEADS)
                    .projectInput(true)
                    .build()
                : ours.windowSize(kind.equals("whole") ? tokens : 512).build());
    // Loads classes and libraries.
    network.fit(Nd4j.randn(DataType.FLOAT, 1, FEATURES, 8), Nd4j.ones(DataType.FLOAT, 1, 2, 8));
    INDArray x = Nd4j.randn(DataType.FLOAT, BATCH, FEATURES, tokens);
    INDArray labels = Nd4j.ones(DataType.FLOAT, BATCH, 2, tokens);
    ResidentMemory.resetPeak();
    double before = ResidentMemory.peakMegabytes();
    network.fit(x, labels);
    System.out.printf(
        Locale.ROOT,
        "| %s | %d | %.0f |%n",
        stock
            ? "SelfAttentionLayer of DL4J"
            : "GatedFWALayer, window " + (kind.equals("whole") ? tokens : 512),
        tokens,
        ResidentMemory.peakMegabytes() - before);
  }
}
