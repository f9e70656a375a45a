package io.github.gatedfwa.layers;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.conf.inputs.InputType;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.deeplearning4j.nn.multilayer.MultiLayerNetwork;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.indexing.NDArrayIndex;

/**
 * The forward pass against {@link DenseReference}: options, formats, memory layouts, masks, types.
 */
class AttentionLayersTest {
  private static final int N_IN = 5;

  private static MultiLayerNetwork net(
      DataType type, AttentionLayer.Builder<?> layer, RNNFormat format) {
    return Nets.shaken(Nets.net(type, N_IN, format, layer.build()));
  }

  private static void assertMatchesReference(
      MultiLayerNetwork net, INDArray output, INDArray ncwInput, INDArray mask, double tolerance) {
    AttentionLayer conf = (AttentionLayer) net.getLayer(0).conf().getLayer();
    double[][][] expected =
        DenseReference.output(conf, net.getLayer(0).paramTable(), ncwInput, mask);
    INDArray ncw = conf.getRnnDataFormat() == RNNFormat.NWC ? output.permute(0, 2, 1) : output;
    assertThat(ncw.shape())
        .containsExactly(expected.length, expected[0].length, expected[0][0].length);
    for (int b = 0; b < expected.length; b++) {
      for (int o = 0; o < expected[b].length; o++) {
        for (int t = 0; t < expected[b][o].length; t++) {
          assertThat(ncw.getDouble(b, o, t))
              .as("example %d, unit %d, step %d", b, o, t)
              .isCloseTo(expected[b][o][t], within(tolerance));
        }
      }
    }
  }

  @ParameterizedTest
  @EnumSource
  void matchesTheReference(Options options) {
    MultiLayerNetwork net = net(DataType.DOUBLE, options.builder(), options.format());
    INDArray x = Nets.random(DataType.DOUBLE, 1, 3, N_IN, 17);
    assertMatchesReference(net, net.output(Nets.toFormat(x, options.format())), x, null, 1e-12);
  }

  @ParameterizedTest
  @CsvSource({
    "EVERYTHING,1,1",
    "EVERYTHING,1,2",
    "EVERYTHING,2,1",
    "EVERYTHING,4,70",
    "EVERYTHING,3,129",
    "EVERYTHING,4,300",
    "COMPRESSION_EVERYTHING,2,1",
    "COMPRESSION_EVERYTHING,2,3",
    "COMPRESSION_EVERYTHING,3,129",
    "SELECTION_EVERYTHING,2,1",
    "SELECTION_EVERYTHING,2,129",
    "NSA_EVERYTHING,2,1",
    "NSA_EVERYTHING,1,4",
    "NSA_EVERYTHING,3,70",
    "NSA_EVERYTHING_SHARING_ALL,2,129"
  })
  void acceptsAnyMinibatchAndLength(Options options, int minibatch, int time) {
    MultiLayerNetwork net = net(DataType.DOUBLE, options.builder(), RNNFormat.NCW);
    INDArray first = Nets.random(DataType.DOUBLE, 2, 2, N_IN, 5);
    net.output(first);
    INDArray x = Nets.random(DataType.DOUBLE, 3, minibatch, N_IN, time);
    assertMatchesReference(net, net.output(x), x, null, 1e-11);
    assertMatchesReference(net, net.output(first), first, null, 1e-12);
  }

  @ParameterizedTest
  @EnumSource(RNNFormat.class)
  void acceptsAnyMemoryLayout(RNNFormat format) {
    MultiLayerNetwork net = net(DataType.DOUBLE, Options.EVERYTHING.builder(), format);
    INDArray x = Nets.random(DataType.DOUBLE, 4, 3, N_IN, 6);
    INDArray data = Nets.toFormat(x, format);
    INDArray larger = Nets.random(DataType.DOUBLE, 5, 4, data.size(1) + 3, data.size(2) + 2);
    INDArray view =
        larger.get(
            NDArrayIndex.interval(1, 4),
            NDArrayIndex.interval(2, 2 + data.size(1)),
            NDArrayIndex.interval(1, 1 + data.size(2)));
    view.assign(data);
    INDArray part =
        Nets.random(DataType.DOUBLE, 5, 7, data.size(1), data.size(2))
            .get(NDArrayIndex.interval(2, 5), NDArrayIndex.all(), NDArrayIndex.all());
    part.assign(data);
    for (INDArray layout :
        new INDArray[] {data.dup('c'), data.dup('f'), view, part, x.permute(0, 2, 1).dup('f')}) {
      INDArray input =
          layout.equalShapes(data) ? layout : layout.permute(0, 2, 1); // the last one for NCW
      assertMatchesReference(net, net.output(input), x, null, 1e-12);
    }
  }

  @ParameterizedTest
  @EnumSource
  void masksHidePaddingWhereverItStands(Options options) {
    MultiLayerNetwork net = net(DataType.DOUBLE, options.builder(), options.format());
    INDArray x = Nets.random(DataType.DOUBLE, 6, 4, N_IN, 12);
    INDArray mask =
        Nd4j.createFromArray(
            new double[][] {
              {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, // none
              {1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0}, // right
              {0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1}, // left
              {1, 1, 0, 1, 0, 0, 0, 1, 1, 1, 1, 1} // holes, the last one as long as the window
            });
    INDArray data = Nets.toFormat(x, options.format());
    INDArray masked = net.output(data, false, mask, null);
    assertMatchesReference(net, masked, x, mask, 1e-12);

    INDArray garbage = x.add(mask.rsub(1).reshape(4, 1, 12).mul(100).broadcast(4, N_IN, 12));
    INDArray same = net.output(Nets.toFormat(garbage, options.format()), false, mask, null);
    assertThat(Nets.distance(same, masked)).isZero();
  }

  /** On the left, padding that is no whole number of selection blocks cuts other blocks. */
  @ParameterizedTest
  @CsvSource({
    "EVERYTHING,0",
    "EVERYTHING,2",
    "EVERYTHING,3",
    "COMPRESSION_EVERYTHING,0",
    "COMPRESSION_EVERYTHING,2",
    "SELECTION_EVERYTHING,0",
    "SELECTION_EVERYTHING,4",
    "NSA_EVERYTHING,0",
    "NSA_EVERYTHING,4",
    "NSA_EVERYTHING,8"
  })
  void paddingOnEitherSideGivesTheResultOfTheSequenceAlone(Options options, int left) {
    for (int time : new int[] {5, 18}) {
      MultiLayerNetwork net = net(DataType.DOUBLE, options.builder(), RNNFormat.NCW);
      INDArray x = Nets.random(DataType.DOUBLE, 7, 1, N_IN, time);
      INDArray alone = net.output(x);
      INDArray padded = Nets.random(DataType.DOUBLE, 8, 1, N_IN, left + time + 3);
      INDArray mask = Nd4j.zeros(DataType.DOUBLE, 1, left + time + 3);
      Nets.steps(padded, RNNFormat.NCW, left, left + time).assign(x);
      mask.get(NDArrayIndex.all(), NDArrayIndex.interval(left, left + time)).assign(1);
      INDArray output = net.output(padded, false, mask, null);
      assertThat(Nets.distance(Nets.steps(output, RNNFormat.NCW, left, left + time), alone))
          .isLessThan(1e-12);
    }
  }

  @Test
  void isCausalAndSeesTheWindowOnly() {
    MultiLayerNetwork net = net(DataType.DOUBLE, Options.GATED.builder(), RNNFormat.NCW);
    INDArray x = Nets.random(DataType.DOUBLE, 9, 1, N_IN, 8);
    INDArray changed = x.dup();
    changed.putScalar(new int[] {0, 0, 3}, 5);
    INDArray difference = net.output(x).sub(net.output(changed));
    for (int t = 0; t < 8; t++) {
      double change = Nets.largest(Nets.steps(difference, RNNFormat.NCW, t, t + 1));
      if (t >= 3 && t < 6) {
        assertThat(change).isPositive();
      } else {
        assertThat(change).isZero();
      }
    }
  }

  @ParameterizedTest
  @EnumSource(names = {"COMPRESSION_MLP", "SELECTION", "NSA", "NSA_EVERYTHING"})
  void isCausal(Options options) {
    MultiLayerNetwork net = net(DataType.DOUBLE, options.builder(), RNNFormat.NCW);
    INDArray x = Nets.random(DataType.DOUBLE, 9, 1, N_IN, 16);
    INDArray changed = x.dup();
    Nets.steps(changed, RNNFormat.NCW, 9, 16).addi(3);
    INDArray difference = net.output(x).sub(net.output(changed));
    assertThat(Nets.largest(Nets.steps(difference, RNNFormat.NCW, 0, 9))).isZero();
    assertThat(Nets.largest(Nets.steps(difference, RNNFormat.NCW, 9, 16))).isPositive();
  }

  @ParameterizedTest
  @CsvSource({
    "EVERYTHING,FLOAT,2e-6",
    "EVERYTHING,HALF,3e-3",
    "COMPRESSION_EVERYTHING,HALF,3e-3",
    "SELECTION_EVERYTHING,HALF,3e-3",
    "NSA_EVERYTHING,FLOAT,2e-6",
    "NSA_EVERYTHING,HALF,3e-3"
  })
  void computesInTheNetworksType(Options options, DataType type, double tolerance) {
    MultiLayerNetwork net = net(type, options.builder(), RNNFormat.NCW);
    INDArray x = Nets.random(type, 10, 2, N_IN, 20);
    INDArray output = net.output(x);
    assertThat(output.dataType()).isEqualTo(type);
    assertMatchesReference(net, output, x, null, tolerance * 5);
  }

  @Test
  void startsWithAnOpenGate() {
    MultiLayerNetwork net =
        Nets.net(
            DataType.FLOAT, 64, RNNFormat.NCW, GatedFWALayer.builder().nOut(64).nHeads(4).build());
    INDArray gate = net.getParam("0_Wg");
    assertThat(gate.stdNumber().doubleValue()).isCloseTo(0.02, within(0.004));
    assertThat(Nets.largest(net.getParam("0_Wbeta"))).isZero();
    assertThat(net.getParam("0_bg").toDoubleVector()).containsOnly(2);
  }

  @Test
  void keepsTheFormatOfItsInput() {
    for (RNNFormat format : RNNFormat.values()) {
      MultiLayerNetwork net = net(DataType.FLOAT, Options.GATED.builder(), format);
      GatedFWALayer conf = (GatedFWALayer) net.getLayer(0).conf().getLayer();
      assertThat(conf.getRnnDataFormat()).isEqualTo(format);
      assertThat(conf.getNIn()).isEqualTo(N_IN);
    }
  }

  /** As many tokens as features, so that no size tells the formats apart. */
  @Test
  void decoderBlocksTakeTheFormatOfTheirAttention() {
    INDArray x = Nets.random(DataType.DOUBLE, 13, 2, 8, 8);
    assertThat(
            Nets.distance(
                decoder(RNNFormat.NWC, false).outputSingle(x),
                decoder(RNNFormat.NWC, true).outputSingle(x)))
        .isZero();
    assertThat(
            Nets.distance(
                decoder(RNNFormat.NCW, false).outputSingle(x),
                decoder(RNNFormat.NCW, true).outputSingle(x)))
        .isZero();
    INDArray longer = Nets.random(DataType.DOUBLE, 13, 2, 11, 8);
    assertThat(decoder(RNNFormat.NWC, false).outputSingle(longer).shape())
        .containsExactly(2, 11, 8);
  }

  private static ComputationGraph decoder(RNNFormat format, boolean inputType) {
    DecoderBlock block =
        DecoderBlock.builder()
            .nModel(8)
            .attention(GatedFWALayer.builder().nHeads(2).dataFormat(format).build())
            .build();
    var graph = Nets.config(DataType.DOUBLE).graphBuilder().addInputs("in");
    graph.setOutputs(block.addTo(graph, "block", "in"));
    if (inputType) {
      graph.setInputTypes(InputType.recurrent(8, format));
    }
    ComputationGraph net = new ComputationGraph(graph.build());
    net.init();
    return Nets.shaken(net);
  }
}
