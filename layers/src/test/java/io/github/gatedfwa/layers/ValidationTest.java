package io.github.gatedfwa.layers;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.List;
import java.util.stream.Stream;
import org.deeplearning4j.exception.DL4JInvalidConfigException;
import org.deeplearning4j.exception.DL4JInvalidInputException;
import org.deeplearning4j.nn.conf.CacheMode;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.conf.constraint.MaxNormConstraint;
import org.deeplearning4j.nn.conf.inputs.InputType;
import org.deeplearning4j.nn.conf.layers.Layer;
import org.deeplearning4j.nn.conf.layers.recurrent.Bidirectional;
import org.deeplearning4j.nn.conf.memory.MemoryType;
import org.deeplearning4j.nn.conf.memory.MemoryUseMode;
import org.deeplearning4j.nn.multilayer.MultiLayerNetwork;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.nd4j.linalg.activations.Activation;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

/** Bad configurations and inputs are refused with a message that says what and where. */
class ValidationTest {
  private static GatedFWALayer.Builder attention() {
    return GatedFWALayer.builder().name("att").nOut(8).nHeads(2);
  }

  private static Stream<Arguments> badOptions() {
    return Stream.of(
        Arguments.of(attention().nHeads(0), "nHeads = 0: must be at least 1"),
        Arguments.of(attention().nKvHeads(-1), "nKvHeads = -1: must be at least 1"),
        Arguments.of(
            attention().nHeads(4).nKvHeads(3), "nKvHeads = 3: nHeads (4) must be a multiple"),
        Arguments.of(attention().headSize(257), "headSize = 257: must be from 1 to 256"),
        Arguments.of(attention().headSize(-4), "headSize = -4: must be from 1 to 256"),
        Arguments.of(attention().nIn(-5), "nIn = -5: must be at least 1"),
        Arguments.of(attention().nOut(-8), "nOut = -8: must be at least 1"),
        Arguments.of(attention().nOut(-8).headSize(4), "nOut = -8: must be at least 1"),
        Arguments.of(attention().windowSize(0), "windowSize = 0: must be at least 1"),
        Arguments.of(attention().ropeBase(-3), "ropeBase = -3.0: must be above 1"),
        Arguments.of(attention().ropeBase(Double.NaN), "ropeBase = NaN"),
        Arguments.of(attention().headSize(3).ropeBase(10), "headSize = 3: must be even"),
        Arguments.of(attention().gateBiasInit(Double.POSITIVE_INFINITY), "gateBiasInit = Infinity"),
        Arguments.of(attention().dataFormat(null), "dataFormat = null: must be NCW or NWC"),
        Arguments.of(attention().activation(Activation.TANH), "activation = tanh"),
        Arguments.of(
            attention().constrainRecurrent(new MaxNormConstraint(1, 1)),
            "there are no recurrent weights"),
        Arguments.of(
            TokenCompressionLayer.builder().name("att").blockLength(0),
            "blockLength = 0: must be at least 1"),
        Arguments.of(
            TokenCompressionLayer.builder().name("att").stride(5),
            "stride = 5: must be a divisor of blockLength (32)"),
        Arguments.of(
            TokenCompressionLayer.builder().name("att").compression(null),
            "compression = null: must be MEAN or MLP"),
        Arguments.of(
            TokenCompressionLayer.builder().name("att").compressionHiddenSize(-1),
            "compressionHiddenSize = -1: must be at least 1"),
        Arguments.of(
            TokenCompressionLayer.builder().name("att").activation(Activation.TANH),
            "activation = tanh"),
        Arguments.of(
            TokenSelectionLayer.builder().name("att").selectionBlock(48),
            "selectionBlock = 48: must be a multiple of blockLength (32)"),
        Arguments.of(
            TokenSelectionLayer.builder().name("att").topN(2), "topN = 2: must be at least 3"),
        Arguments.of(
            NativeSparseAttentionLayer.builder().name("att").sharing(null),
            "sharing = null: must be NONE, COMPRESSION_AND_SELECTION or ALL"),
        Arguments.of(
            NativeSparseAttentionLayer.builder().name("att").windowSize(0),
            "windowSize = 0: must be at least 1"),
        Arguments.of(
            NativeSparseAttentionLayer.builder().name("att").nHeads(3).nKvHeads(2),
            "nKvHeads = 2: nHeads (3) must be a multiple"),
        Arguments.of(RMSNormLayer.builder().name("att").eps(0), "eps = 0.0: must be above 0"),
        Arguments.of(
            RMSNormLayer.builder().name("att").nIn(3).nOut(4), "nOut = 4: must equal nIn (3)"),
        Arguments.of(RMSNormLayer.builder().name("att").nIn(-3), "nIn = -3: must be at least 1"),
        Arguments.of(
            SwiGLULayer.builder().name("att").hiddenSize(3).nOut(-3),
            "nOut = -3: must be at least 1"),
        Arguments.of(
            SwiGLULayer.builder().name("att").nOut(3), "hiddenSize = 0: must be at least 1"),
        Arguments.of(
            SwiGLULayer.builder().name("att").hiddenSize(3).dataFormat(null), "dataFormat = null"));
  }

  @ParameterizedTest
  @MethodSource("badOptions")
  void badOptionsAreRefused(Layer.Builder<?> builder, String message) {
    assertThatThrownBy(builder::build)
        .isInstanceOf(DL4JInvalidConfigException.class)
        .hasMessageContaining("Layer \"att\": ")
        .hasMessageContaining(message);
  }

  private static MultiLayerNetwork net(RNNFormat format, Layer... layers) {
    return Nets.net(DataType.FLOAT, 3, format, layers);
  }

  @Test
  void missingSizesAreRefused() {
    assertThatThrownBy(
            () -> net(RNNFormat.NCW, GatedFWALayer.builder().name("att").build(), Nets.output(2)))
        .isInstanceOf(DL4JInvalidConfigException.class)
        .hasMessageContaining("GatedFWALayer \"att\": nOut = 0");
    assertThatThrownBy(() -> net(RNNFormat.NCW, attention().nHeads(3).build(), Nets.output(2)))
        .isInstanceOf(DL4JInvalidConfigException.class)
        .hasMessageContaining("nOut (8) is not a multiple of nHeads (3)");
    assertThatThrownBy(
            () ->
                new MultiLayerNetwork(
                        Nets.config(DataType.FLOAT).list().layer(attention().build()).build())
                    .init())
        .isInstanceOf(DL4JInvalidConfigException.class)
        .hasMessageContaining("GatedFWALayer \"att\": nIn = 0");
  }

  /** The first thing that DL4J asks for is the number of parameters. */
  @Test
  void badOptionsThatWereSetLaterAreRefused() {
    NativeSparseAttentionLayer sharing = NativeSparseAttentionLayer.builder().nOut(8).build();
    sharing.setSharing(null);
    assertNetIsRefused(sharing, "sharing = null: must be NONE, COMPRESSION_AND_SELECTION or ALL");
    GatedFWALayer attention = attention().build();
    attention.setNOut(-8);
    assertNetIsRefused(attention, "nOut = -8: must be at least 1");
    TokenSelectionLayer heads = TokenSelectionLayer.builder().nOut(8).headSize(4).build();
    heads.setNHeads(-2);
    assertNetIsRefused(heads, "nHeads = -2: must be at least 1");
    SwiGLULayer feedForward = SwiGLULayer.builder().nOut(8).hiddenSize(4).build();
    feedForward.setHiddenSize(-100);
    assertNetIsRefused(feedForward, "hiddenSize = -100: must be at least 1");
    RMSNormLayer norm = RMSNormLayer.builder().build();
    norm.setEps(-1);
    assertNetIsRefused(norm, "eps = -1.0: must be above 0");
  }

  private static void assertNetIsRefused(Layer layer, String message) {
    assertThatThrownBy(() -> net(RNNFormat.NCW, layer, Nets.output(2)))
        .isInstanceOf(DL4JInvalidConfigException.class)
        .hasMessageContaining(layer.getClass().getSimpleName())
        .hasMessageContaining(message);
  }

  @Test
  void bidirectionalWrappersAreRefused() {
    for (AttentionLayer layer :
        new AttentionLayer[] {
          attention().build(), NativeSparseAttentionLayer.builder().nOut(8).build()
        }) {
      assertThatThrownBy(() -> net(RNNFormat.NCW, new Bidirectional(layer), Nets.output(2)))
          .isInstanceOf(DL4JInvalidConfigException.class)
          .hasMessageContaining("cannot stand in a Bidirectional wrapper");
    }
  }

  @Test
  void wronglyShapedInputIsRefused() {
    MultiLayerNetwork ncw = net(RNNFormat.NCW, attention().build());
    assertThatThrownBy(() -> ncw.output(Nd4j.zeros(DataType.FLOAT, 2, 4, 5)))
        .isInstanceOf(DL4JInvalidInputException.class)
        .hasMessageContaining("GatedFWALayer \"att\": input has shape [2, 4, 5]")
        .hasMessageContaining("[minibatch, size, time] with size 3");
    assertThatThrownBy(() -> ncw.output(Nd4j.zeros(DataType.FLOAT, 2, 3)))
        .isInstanceOf(DL4JInvalidInputException.class)
        .hasMessageContaining("expected rank 3");
    MultiLayerNetwork nwc = net(RNNFormat.NWC, attention().build());
    assertThatThrownBy(() -> nwc.output(Nd4j.zeros(DataType.FLOAT, 2, 3, 5)))
        .isInstanceOf(DL4JInvalidInputException.class)
        .hasMessageContaining("[minibatch, time, size] with size 3");
    MultiLayerNetwork norm = net(RNNFormat.NCW, RMSNormLayer.builder().name("norm").build());
    assertThatThrownBy(() -> norm.output(Nd4j.zeros(DataType.FLOAT, 2, 4, 5)))
        .isInstanceOf(DL4JInvalidInputException.class)
        .hasMessageContaining("RMSNormLayer \"norm\": input has shape [2, 4, 5]");
  }

  @Test
  void wronglyShapedMasksAreRefused() {
    MultiLayerNetwork net = net(RNNFormat.NCW, attention().build());
    INDArray x = Nd4j.zeros(DataType.FLOAT, 2, 3, 5);
    assertThatThrownBy(() -> net.output(x, false, Nd4j.ones(DataType.FLOAT, 2, 4), null))
        .isInstanceOf(DL4JInvalidInputException.class)
        .hasMessageContaining("mask has shape [2, 4]; expected [2, 5]");
  }

  @Test
  void blocksRefuseBadSettings() {
    assertThatThrownBy(() -> DecoderBlock.builder().nModel(8).build())
        .hasMessage("DecoderBlock: attention is not set");
    assertThatThrownBy(
            () -> DecoderBlock.builder().nModel(16).attention(attention().build()).build())
        .hasMessageContaining("attention has nIn = 16, nOut = 8");
    for (double eps : new double[] {-1, 0, Double.NaN, Double.POSITIVE_INFINITY}) {
      assertThatThrownBy(
              () ->
                  DecoderBlock.builder()
                      .nModel(8)
                      .attention(attention().build())
                      .normEps(eps)
                      .build())
          .isInstanceOf(DL4JInvalidConfigException.class)
          .hasMessage("DecoderBlock: normEps = " + eps + ": must be above 0");
    }
  }

  private static List<Layer> reporting() {
    return List.of(
        attention().nIn(8).build(),
        attention().nIn(8).dropOut(0.5).build(),
        TokenCompressionLayer.builder().nIn(8).nOut(8).build(),
        TokenSelectionLayer.builder().nIn(8).nOut(8).build(),
        NativeSparseAttentionLayer.builder().nIn(8).nOut(8).build(),
        RMSNormLayer.builder().nIn(8).build(),
        RMSNormLayer.builder().nIn(8).dropOut(0.5).build(),
        SwiGLULayer.builder().nIn(8).nOut(8).hiddenSize(16).build());
  }

  private static long trainingBytes(Layer layer, InputType inputType) {
    return layer
        .getMemoryReport(inputType)
        .getMemoryBytes(
            MemoryType.WORKING_MEMORY_VARIABLE,
            4,
            MemoryUseMode.TRAINING,
            CacheMode.NONE,
            DataType.FLOAT);
  }

  @ParameterizedTest
  @MethodSource("reporting")
  void memoryReportsGrowWithTheSequence(Layer layer) {
    long shorter = trainingBytes(layer, InputType.recurrent(8, 10));
    assertThat(shorter).isPositive();
    assertThat(trainingBytes(layer, InputType.recurrent(8, 20))).isEqualTo(2 * shorter);
  }

  @ParameterizedTest
  @MethodSource("reporting")
  void memoryReportsAreForOneTokenIfTheLengthIsOpen(Layer layer) {
    long oneToken = trainingBytes(layer, InputType.recurrent(8, 1));
    assertThat(trainingBytes(layer, InputType.recurrent(8))).isEqualTo(oneToken);
    if (layer instanceof TokenWiseLayer) {
      assertThat(trainingBytes(layer, InputType.feedForward(8))).isEqualTo(oneToken);
    }
  }
}
