package io.github.gatedfwa.layers;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import io.github.gatedfwa.layers.GateListener.Reading;
import io.github.gatedfwa.layers.runtime.WindowedAttention;
import java.util.ArrayList;
import java.util.List;
import org.deeplearning4j.nn.api.Model;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.conf.layers.misc.FrozenLayerWithBackprop;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.deeplearning4j.nn.multilayer.MultiLayerNetwork;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.dataset.DataSet;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.learning.config.Sgd;

/** What the gates say of themselves. */
class GateListenerTest {
  private static final int N_IN = 4;
  private static final int TIME = 40;

  private static DataSet data(DataType type) {
    return new DataSet(
        Nets.random(type, 1, 2, N_IN, TIME), Nets.labels(type, 2, 2, TIME, RNNFormat.NCW));
  }

  /** Two heads whose decay is the same for every token: softplus(-b) / 1.001. */
  private static GatedFWALayer constantGate(int window, double bias) {
    return GatedFWALayer.builder()
        .nOut(4)
        .nHeads(2)
        .windowSize(window)
        .learnableAmplitude(false)
        .gateBiasInit(bias)
        .build();
  }

  private static void setConstantGate(Model net, String layer, double first, double second) {
    net.getParam(layer + "_Wg").assign(0);
    net.getParam(layer + "_bg").assign(Nd4j.createFromArray(new double[][] {{first, second}}));
  }

  private static double decay(double bias) {
    return Math.log1p(Math.exp(-bias)) / 1.001;
  }

  @ParameterizedTest
  @EnumSource
  void readsMeanDecayAndEffectiveWindow(Nets.Kind kind) {
    Model net =
        kind.net(
            Nets.config(DataType.DOUBLE).updater(new Sgd(0)),
            N_IN,
            RNNFormat.NCW,
            constantGate(16, 2),
            SwiGLULayer.builder().nOut(4).hiddenSize(4).build(),
            new FrozenLayerWithBackprop(constantGate(16, 2)),
            GatedFWALayer.builder().nOut(4).gated(false).build(),
            Nets.output(2));
    setConstantGate(net, kind == Nets.Kind.GRAPH ? "layer0" : "0", 0, 5);
    List<Reading> readings = new ArrayList<>();
    net.addListeners(new GateListener(2, readings::add));
    for (int i = 0; i < 3; i++) {
      Nets.fit(net, data(DataType.DOUBLE));
    }
    assertThat(readings).hasSize(8);
    Reading first = readings.get(0);
    assertThat(first.iteration()).isZero();
    assertThat(first.layer()).isEqualTo("layer0");
    assertThat(first.head()).isZero();
    // Decays of 0.692 pass 1 at the second token; those of 0.0067 never do within the window.
    assertThat(first.meanDecay()).isCloseTo(decay(0), within(1e-12));
    assertThat(first.effectiveWindow()).isEqualTo(2);
    assertThat(readings.get(1).head()).isEqualTo(1);
    assertThat(readings.get(1).meanDecay()).isCloseTo(decay(5), within(1e-12));
    assertThat(readings.get(1).effectiveWindow()).isEqualTo(16);
    assertThat(readings.get(2).layer()).isEqualTo("layer2");
    assertThat(readings.get(2).effectiveWindow()).isBetween(7.0, 10.0);
    assertThat(readings.get(4).iteration()).isEqualTo(2);
  }

  @Test
  void sequencesThatAreTooShortTellNothing() {
    MultiLayerNetwork net =
        Nets.net(DataType.FLOAT, N_IN, RNNFormat.NCW, constantGate(100, 9), Nets.output(2));
    net.setInput(data(DataType.FLOAT).getFeatures());
    net.feedForward(false, false);
    assertThat(GateListener.read(net))
        .hasSize(2)
        .allSatisfy(reading -> assertThat(reading.effectiveWindow()).isNaN());
  }

  @ParameterizedTest
  @EnumSource(
      names = {"GATED", "FIXED_AMPLITUDE", "EVERYTHING", "EVERYTHING_NWC", "NSA_EVERYTHING"})
  void decaysAreThoseThatTheAttentionUses(Options options) {
    ComputationGraph net =
        Nets.shaken(
            Nets.graph(
                Nets.config(DataType.DOUBLE),
                N_IN,
                options.format(),
                RMSNormLayer.builder().build(),
                ((WindowedAttentionLayer.Builder<?>) options.builder()).windowSize(1000).build(),
                Nets.output(2)));
    INDArray x = Nets.toFormat(data(DataType.DOUBLE).getFeatures(), options.format());
    net.rnnTimeStep(x);
    String cache = options == Options.NSA_EVERYTHING ? "window." : "";
    INDArray kept = net.rnnGetPreviousState("layer1").get(cache + "alpha");
    net.feedForward(new INDArray[] {x}, false, false);
    WindowedAttention<?> layer = GateListener.gatedLayers(net).get("layer1");
    assertThat(Nets.distance(layer.decays(), kept)).isZero();
    net.feedForward(new INDArray[] {x}, true, false);
    assertThat(Nets.distance(layer.decays(), kept)).isZero();
  }

  @Test
  void paddingDoesNotCount() {
    MultiLayerNetwork net =
        Nets.shaken(
            Nets.net(
                Nets.config(DataType.DOUBLE).updater(new Sgd(0)),
                N_IN,
                RNNFormat.NCW,
                Options.GATED.builder().build(),
                Nets.output(2)));
    DataSet data = data(DataType.DOUBLE);
    List<Reading> readings = new ArrayList<>();
    net.addListeners(new GateListener(1, readings::add));
    net.fit(data);
    INDArray x = Nets.random(DataType.DOUBLE, 2, 2, N_IN, TIME + 9);
    INDArray labels = Nd4j.zeros(DataType.DOUBLE, 2, 2, TIME + 9);
    INDArray mask = Nd4j.zeros(DataType.DOUBLE, 2, TIME + 9);
    Nets.steps(x, RNNFormat.NCW, 4, TIME + 4).assign(data.getFeatures());
    Nets.steps(labels, RNNFormat.NCW, 4, TIME + 4).assign(data.getLabels());
    Nets.steps(mask.reshape(2, 1, TIME + 9), RNNFormat.NCW, 4, TIME + 4).assign(1);
    net.fit(new DataSet(x, labels, mask, mask));
    for (int head = 0; head < 2; head++) {
      Reading alone = readings.get(head);
      Reading padded = readings.get(2 + head);
      assertThat(padded.meanDecay()).isCloseTo(alone.meanDecay(), within(1e-12));
    }
  }

  @Test
  void misuseIsAnError() {
    assertThatThrownBy(() -> new GateListener(0, reading -> {}))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("frequency = 0");
    assertThatThrownBy(() -> new GateListener(1, null))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("sink = null");
    MultiLayerNetwork net =
        Nets.net(DataType.FLOAT, N_IN, RNNFormat.NCW, constantGate(4, 2), Nets.output(2));
    assertThatThrownBy(() -> GateListener.read(net))
        .isInstanceOf(IllegalStateException.class)
        .hasMessageContaining("GatedFWALayer \"layer0\": no input");
  }
}
