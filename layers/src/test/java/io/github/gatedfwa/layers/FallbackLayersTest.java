package io.github.gatedfwa.layers;

import static org.assertj.core.api.Assertions.assertThat;

import io.github.gatedfwa.samediff.GatedFwaOps;
import java.util.function.Supplier;
import java.util.stream.Stream;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.conf.layers.Layer;
import org.deeplearning4j.nn.multilayer.MultiLayerNetwork;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.dataset.DataSet;
import org.nd4j.linalg.factory.Nd4j;

/**
 * Layers on ND4J's own ops, as where there is no native library, beyond the 128 queries that these
 * take at a time: what they compute is what the native ops compute.
 */
class FallbackLayersTest {

  private static final int SIZE = 8;

  static Stream<Arguments> layersAndLengths() {
    return Stream.of(RNNFormat.values())
        .flatMap(
            format ->
                Stream.of(129, 200, 257)
                    .flatMap(
                        time ->
                            Stream.of(
                                    GatedFWALayer.builder()
                                        .nOut(SIZE)
                                        .nHeads(4)
                                        .nKvHeads(2)
                                        .windowSize(140)
                                        .build(),
                                    NativeSparseAttentionLayer.builder()
                                        .nOut(SIZE)
                                        .nHeads(2)
                                        .blockLength(4)
                                        .stride(2)
                                        .selectionBlock(8)
                                        .topN(4)
                                        .windowSize(20)
                                        .build())
                                .map(layer -> Arguments.of(layer, format, time))));
  }

  private static MultiLayerNetwork net(Layer layer, RNNFormat format) {
    return Nets.shaken(Nets.net(DataType.DOUBLE, SIZE, format, layer.clone(), Nets.output(3)));
  }

  private static INDArray input(RNNFormat format, int time) {
    return Nets.toFormat(Nets.random(DataType.DOUBLE, 3, 2, SIZE, time), format);
  }

  @ParameterizedTest
  @MethodSource("layersAndLengths")
  void outputAndTraining(Layer layer, RNNFormat format, int time) {
    INDArray x = input(format, time);
    INDArray mask = Nd4j.ones(DataType.DOUBLE, 2, time);
    mask.putScalar(0, time - 1, 0).putScalar(1, 2, 0);
    DataSet data = new DataSet(x, Nets.labels(DataType.DOUBLE, 2, 3, time, format), mask, mask);
    Supplier<INDArray> trained =
        () -> {
          MultiLayerNetwork net = net(layer, format);
          net.fit(data);
          return net.params();
        };
    assertThat(Nets.distance(onNd4jsOps(trained), trained.get())).isLessThan(1e-10);
    Supplier<INDArray> output = () -> net(layer, format).output(x, false, mask, null);
    assertThat(Nets.distance(onNd4jsOps(output), output.get())).isLessThan(1e-10);
  }

  @ParameterizedTest
  @MethodSource("layersAndLengths")
  void streaming(Layer layer, RNNFormat format, int time) {
    INDArray x = input(format, time);
    MultiLayerNetwork net = net(layer, format);
    INDArray expected = net.output(x);
    int from = 0;
    for (int chunk : new int[] {1, 1, 18, 1, 2, time - 25, 1, 1}) {
      INDArray part = Nets.steps(x, format, from, from + chunk);
      assertThat(
              Nets.distance(
                  onNd4jsOps(() -> net.rnnTimeStep(part)),
                  Nets.steps(expected, format, from, from + chunk)))
          .as("tokens %s to %s", from, from + chunk)
          .isLessThan(1e-10);
      from += chunk;
    }
  }

  private static INDArray onNd4jsOps(Supplier<INDArray> call) {
    String before = System.getProperty(GatedFwaOps.NATIVE_PROPERTY);
    System.setProperty(GatedFwaOps.NATIVE_PROPERTY, "off");
    try {
      return call.get();
    } finally {
      if (before == null) {
        System.clearProperty(GatedFwaOps.NATIVE_PROPERTY);
      } else {
        System.setProperty(GatedFwaOps.NATIVE_PROPERTY, before);
      }
    }
  }
}
