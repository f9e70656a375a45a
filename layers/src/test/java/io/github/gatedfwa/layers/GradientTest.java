package io.github.gatedfwa.layers;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.List;
import java.util.Map;
import org.deeplearning4j.gradientcheck.GradientCheckUtil;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.conf.inputs.InputType;
import org.deeplearning4j.nn.conf.layers.DenseLayer;
import org.deeplearning4j.nn.conf.layers.Layer;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.deeplearning4j.nn.multilayer.MultiLayerNetwork;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.nd4j.linalg.activations.Activation;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.indexing.NDArrayIndex;
import org.nd4j.linalg.learning.config.NoOp;

/**
 * Gradients of parameters and input against differences, in DOUBLE. A dense layer below turns the
 * gradient of the input into one of parameters.
 */
class GradientTest {
  private static final int N_IN = 2;
  private static final int TIME = 5;
  private static final String BLOCKS = "(COMPRESSION|SELECTION|NSA).*";

  private static DataType before;

  @BeforeAll
  static void useDouble() {
    before = Nd4j.dataType();
    Nd4j.setDefaultDataTypes(DataType.DOUBLE, DataType.DOUBLE);
  }

  @AfterAll
  static void restore() {
    Nd4j.setDefaultDataTypes(before, before);
  }

  private static DenseLayer below() {
    return new DenseLayer.Builder().nOut(3).activation(Activation.TANH).build();
  }

  /** The same for longer data and in a graph. */
  private static void checkInGraph(int time, Options options, INDArray mask) {
    ComputationGraph net =
        Nets.net(
                Nets.config(DataType.DOUBLE).updater(new NoOp()),
                N_IN,
                options.format(),
                below(),
                options.builder().build(),
                Nets.output(2))
            .toComputationGraph();
    Nets.shaken(net);
    boolean passed =
        GradientCheckUtil.checkGradients(
            new GradientCheckUtil.GraphConfig()
                .net(net)
                .inputs(
                    new INDArray[] {
                      Nets.toFormat(
                          Nets.random(DataType.DOUBLE, 11, 2, N_IN, time), options.format())
                    })
                .labels(new INDArray[] {Nets.labels(DataType.DOUBLE, 2, 2, time, options.format())})
                .inputMask(mask == null ? null : new INDArray[] {mask})
                .labelMask(mask == null ? null : new INDArray[] {mask})
                .maxRelError(1e-5)
                .minAbsoluteError(1e-8)
                .print(GradientCheckUtil.PrintMode.FAILURES_ONLY));
    assertThat(passed).isTrue();
  }

  private static INDArray mask() {
    return Nd4j.createFromArray(new double[][] {{1, 1, 0, 1, 1}, {0, 1, 1, 1, 0}});
  }

  private static void check(RNNFormat format, INDArray mask, Layer... layers) {
    MultiLayerNetwork net =
        Nets.shaken(
            Nets.net(Nets.config(DataType.DOUBLE).updater(new NoOp()), N_IN, format, layers));
    boolean passed =
        GradientCheckUtil.checkGradients(
            new GradientCheckUtil.MLNConfig()
                .net(net)
                .input(Nets.toFormat(Nets.random(DataType.DOUBLE, 11, 2, N_IN, TIME), format))
                .labels(Nets.labels(DataType.DOUBLE, 2, 2, TIME, format))
                .inputMask(mask)
                .labelMask(mask)
                .maxRelError(1e-5)
                .minAbsoluteError(1e-9)
                .print(GradientCheckUtil.PrintMode.FAILURES_ONLY));
    assertThat(passed).isTrue();
  }

  @ParameterizedTest
  @EnumSource(mode = EnumSource.Mode.MATCH_NONE, names = BLOCKS)
  void attention(Options options) {
    check(options.format(), null, below(), options.builder().build(), Nets.output(2));
  }

  @ParameterizedTest
  @EnumSource(names = {"UNGATED", "GATED", "EVERYTHING", "EVERYTHING_NWC"})
  void attentionWithMask(Options options) {
    check(options.format(), mask(), below(), options.builder().build(), Nets.output(2));
  }

  /** With this data the steps of the check are too small to change a choice of blocks. */
  @ParameterizedTest
  @EnumSource(mode = EnumSource.Mode.MATCH_ANY, names = BLOCKS)
  void attentionToBlocks(Options options) {
    checkInGraph(13, options, null);
  }

  @ParameterizedTest
  @EnumSource(names = {"COMPRESSION_MLP", "SELECTION", "NSA_SHARING_ALL", "NSA_EVERYTHING"})
  void attentionToBlocksWithMask(Options options) {
    INDArray mask =
        Nd4j.createFromArray(
            new double[][] {
              {1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1}, {0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0}
            });
    checkInGraph(13, options, mask);
  }

  /** Shorter than a block: nothing is compressed. */
  @ParameterizedTest
  @EnumSource(names = {"COMPRESSION_EVERYTHING", "SELECTION_EVERYTHING", "NSA_EVERYTHING"})
  void shortSequences(Options options) {
    checkInGraph(3, options, null);
  }

  /** Compression counts for the choice only: the choice changes with its keys, no gradient does. */
  @Test
  void noGradientFlowsThroughTheChoice() {
    MultiLayerNetwork net =
        Nets.shaken(
            Nets.net(
                Nets.config(DataType.DOUBLE).updater(new NoOp()),
                N_IN,
                RNNFormat.NCW,
                Options.NSA_MLP.builder().hasBias(true).build(),
                Nets.output(2)));
    net.getParam("0_bbranch").get(NDArrayIndex.interval(0, 2)).assign(-1e4); // g_cmp = 0
    INDArray x = Nets.random(DataType.DOUBLE, 11, 2, N_IN, 20);
    INDArray before = net.output(x);
    net.setInput(x);
    net.setLabels(Nets.labels(DataType.DOUBLE, 2, 2, 20, RNNFormat.NCW));
    net.computeGradientAndScore();
    Map<String, INDArray> gradients = net.gradient().gradientForVariable();
    assertThat(Nets.largest(gradients.get("0_WkSlc"))).isPositive();
    for (String key :
        List.of("WkCmp", "WvCmp", "bkCmp", "bvCmp", "PkMlp", "W1kMlp", "b1kMlp", "W2kMlp")) {
      assertThat(Nets.largest(gradients.get("0_" + key))).as(key).isZero();
    }
    net.getParam("0_W2kMlp").negi();
    assertThat(Nets.distance(net.output(x), before)).isGreaterThan(1e-3);
  }

  @ParameterizedTest
  @EnumSource(RNNFormat.class)
  void norm(RNNFormat format) {
    check(format, null, below(), RMSNormLayer.builder().build(), Nets.output(2));
    check(format, mask(), below(), RMSNormLayer.builder().eps(0.1).build(), Nets.output(2));
  }

  @ParameterizedTest
  @EnumSource(RNNFormat.class)
  void feedForward(RNNFormat format) {
    check(
        format, null, below(), SwiGLULayer.builder().nOut(3).hiddenSize(4).build(), Nets.output(2));
    check(
        format,
        mask(),
        below(),
        SwiGLULayer.builder().nOut(2).hiddenSize(3).hasBias(true).build(),
        Nets.output(2));
  }

  @Test
  void decoderBlocksInAGraph() {
    DecoderBlock block =
        DecoderBlock.builder()
            .nModel(4)
            .attention(GatedFWALayer.builder().nHeads(2).windowSize(3).ropeBase(100).build())
            .hiddenSize(3)
            .build();
    var graph = Nets.config(DataType.DOUBLE).updater(new NoOp()).graphBuilder().addInputs("in");
    String first = block.addTo(graph, "first", "in");
    String second = block.addTo(graph, "second", first);
    graph.addLayer("out", Nets.output(2), second).setOutputs("out");
    ComputationGraph net =
        new ComputationGraph(graph.setInputTypes(InputType.recurrent(4, RNNFormat.NCW)).build());
    net.init();
    Nets.shaken(net);
    boolean passed =
        GradientCheckUtil.checkGradients(
            new GradientCheckUtil.GraphConfig()
                .net(net)
                .inputs(new INDArray[] {Nets.random(DataType.DOUBLE, 12, 2, 4, TIME)})
                .labels(new INDArray[] {Nets.labels(DataType.DOUBLE, 2, 2, TIME, RNNFormat.NCW)})
                .inputMask(new INDArray[] {mask()})
                .labelMask(new INDArray[] {mask()})
                .maxRelError(1e-5)
                .minAbsoluteError(1e-9)
                .subset(true)
                .maxPerParam(4)
                .print(GradientCheckUtil.PrintMode.FAILURES_ONLY));
    assertThat(passed).isTrue();
  }
}
