package io.github.gatedfwa.layers;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.github.gatedfwa.nativeops.Bits;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.ObjectInputStream;
import java.io.ObjectOutputStream;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.deeplearning4j.nn.api.Model;
import org.deeplearning4j.nn.api.layers.RecurrentLayer;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.conf.inputs.InputType;
import org.deeplearning4j.nn.conf.layers.RnnOutputLayer;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.deeplearning4j.nn.multilayer.MultiLayerNetwork;
import org.deeplearning4j.nn.workspace.LayerWorkspaceMgr;
import org.deeplearning4j.util.ModelSerializer;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.nd4j.linalg.activations.Activation;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.indexing.INDArrayIndex;
import org.nd4j.linalg.indexing.NDArrayIndex;
import org.nd4j.linalg.lossfunctions.LossFunctions.LossFunction;

/** rnnTimeStep against one full pass. */
class StreamingTest {
  private static final int N_IN = 5;

  private static MultiLayerNetwork net(Options options, DataType type) {
    return net(options, type, Nets.output(3));
  }

  private static MultiLayerNetwork net(Options options, DataType type, RnnOutputLayer output) {
    return Nets.shaken(
        Nets.net(
            type,
            N_IN,
            options.format(),
            RMSNormLayer.builder().build(),
            options.builder().build(),
            SwiGLULayer.builder().nOut(4).hiddenSize(6).build(),
            options.builder().build(),
            output));
  }

  /** Feeds chunks of the given sizes, over and over, and compares each with the full pass. */
  private static void assertChunksMatch(
      MultiLayerNetwork net, INDArray x, RNNFormat format, double tolerance, int... sizes) {
    INDArray full = net.output(x);
    net.rnnClearPreviousState();
    long time = x.size(format == RNNFormat.NCW ? 2 : 1);
    long at = 0;
    for (int i = 0; at < time; i++) {
      long to = Math.min(time, at + sizes[i % sizes.length]);
      INDArray part = net.rnnTimeStep(Nets.steps(x, format, at, to));
      assertThat(Nets.distance(part, Nets.steps(full, format, at, to)))
          .as("steps %d to %d", at, to)
          .isLessThan(tolerance);
      at = to;
    }
  }

  @ParameterizedTest
  @EnumSource
  void stepsAndChunksEqualTheFullPass(Options options) {
    MultiLayerNetwork net = net(options, DataType.DOUBLE);
    RNNFormat format = options.format();
    INDArray x = Nets.toFormat(Nets.random(DataType.DOUBLE, 21, 2, N_IN, 40), format);
    assertChunksMatch(net, x, format, 1e-12, 1);
    assertChunksMatch(net, x, format, 1e-12, 4, 1, 1, 7, 2, 12);
    assertChunksMatch(net, x, format, 1e-12, 40);
  }

  @Test
  void manyStepsEqualTheFullPassInFloat() {
    MultiLayerNetwork net = net(Options.EVERYTHING, DataType.FLOAT);
    INDArray x = Nets.random(DataType.FLOAT, 22, 1, N_IN, 1000);
    assertChunksMatch(net, x, RNNFormat.NCW, 1e-5, 1);
  }

  /** Steps use their arrays again; nothing of them may be in a result. */
  @ParameterizedTest
  @EnumSource(names = {"GATED", "EVERYTHING", "NSA_EVERYTHING"})
  void resultsStayWhenOtherPassesFollow(Options options) {
    MultiLayerNetwork net =
        Nets.shaken(
            Nets.net(
                DataType.DOUBLE,
                N_IN,
                RNNFormat.NCW,
                SwiGLULayer.builder().nOut(N_IN).hiddenSize(6).build(),
                options.builder().build()));
    INDArray x = Nets.random(DataType.DOUBLE, 34, 2, N_IN, 20);
    INDArray full = net.output(x);
    List<INDArray> results = new ArrayList<>();
    for (int t = 0; t < 20; t++) {
      results.add(net.rnnTimeStep(Nets.steps(x, RNNFormat.NCW, t, t + 1)));
      net.output(Nets.random(DataType.DOUBLE, t, 1 + t % 3, N_IN, 1 + t % 2));
    }
    for (int t = 0; t < 20; t++) {
      assertThat(Nets.distance(results.get(t), Nets.steps(full, RNNFormat.NCW, t, t + 1)))
          .isLessThan(1e-12);
    }
  }

  @ParameterizedTest
  @EnumSource(names = {"GATED", "EVERYTHING", "EVERYTHING_NWC"})
  void chunksOfEverySizeEqualTheFullPass(Options options) {
    MultiLayerNetwork net = net(options, DataType.DOUBLE);
    RNNFormat format = options.format();
    INDArray x = Nets.toFormat(Nets.random(DataType.DOUBLE, 33, 2, N_IN, 36), format);
    for (int size = 1; size <= 36; size++) {
      assertChunksMatch(net, x, format, 1e-12, size);
    }
  }

  @Test
  void positionsAreRightAfterAMillionSteps() {
    MultiLayerNetwork net =
        Nets.shaken(
            Nets.net(DataType.FLOAT, N_IN, RNNFormat.NCW, Options.EVERYTHING.builder().build()));
    INDArray x = Nets.random(DataType.FLOAT, 23, 2, N_IN, 30);
    INDArray expected = net.output(x);
    // The rotary embedding is relative: the same tokens give the same result anywhere.
    for (long start : new long[] {1_000_000L, 1L << 40}) {
      net.rnnSetPreviousState(0, Map.of("position", Nd4j.scalar(start)));
      double error = 0;
      for (int t = 0; t < 30; t++) {
        INDArray step = net.rnnTimeStep(Nets.steps(x, RNNFormat.NCW, t, t + 1));
        error = Math.max(error, Nets.distance(step, Nets.steps(expected, RNNFormat.NCW, t, t + 1)));
      }
      // At 2^40 an angle itself has 13 bits less.
      assertThat(error).isLessThan(start == 1_000_000L ? 2e-6 : 1e-3);
      assertThat(net.rnnGetPreviousState(0).get("position").getLong(0)).isEqualTo(start + 30);
    }
  }

  @ParameterizedTest
  @EnumSource(
      names = {
        "GATED",
        "WINDOW_ONE",
        "EVERYTHING",
        "COMPRESSION_EVERYTHING",
        "COMPRESSION_OF_SINGLE_TOKENS",
        "SELECTION_EVERYTHING",
        "NSA_EVERYTHING"
      })
  void stateCanBeTakenAndPutBack(Options options) {
    MultiLayerNetwork net = net(options, DataType.DOUBLE);
    INDArray x = Nets.random(DataType.DOUBLE, 24, 2, N_IN, 12);
    net.rnnTimeStep(Nets.steps(x, RNNFormat.NCW, 0, 6));
    Map<String, INDArray> lower = net.rnnGetPreviousState(1);
    Map<String, INDArray> upper = net.rnnGetPreviousState(3);
    INDArray rest = Nets.steps(x, RNNFormat.NCW, 6, 12);
    INDArray expected = net.rnnTimeStep(rest);
    for (int i = 0; i < 2; i++) {
      net.rnnClearPreviousState();
      net.rnnSetPreviousState(1, lower);
      net.rnnSetPreviousState(3, upper);
      for (int t = 0; t < 6; t++) {
        INDArray step = net.rnnTimeStep(Nets.steps(rest, RNNFormat.NCW, t, t + 1));
        assertThat(Nets.distance(step, Nets.steps(expected, RNNFormat.NCW, t, t + 1)))
            .isLessThan(1e-12);
      }
    }
  }

  /** A stream goes on in another process: the network from its file, the state from bytes. */
  @ParameterizedTest
  @EnumSource
  void stateCanBeSaved(Nets.Kind kind, @TempDir Path folder) throws Exception {
    Model net =
        Nets.shaken(
            kind.net(
                Nets.config(DataType.FLOAT),
                N_IN,
                RNNFormat.NCW,
                Options.EVERYTHING.builder().build(),
                Options.GATED.builder().build(),
                Nets.output(3)));
    INDArray x = Nets.random(DataType.FLOAT, 34, 2, N_IN, 12);
    Nets.timeStep(net, Nets.steps(x, RNNFormat.NCW, 0, 7));
    ByteArrayOutputStream bytes = new ByteArrayOutputStream();
    try (ObjectOutputStream out = new ObjectOutputStream(bytes)) {
      for (int i = 0; i < 2; i++) {
        out.writeObject(((RecurrentLayer) Nets.layers(net)[i]).rnnGetPreviousState());
      }
    }
    Path file = folder.resolve("net.zip");
    ModelSerializer.writeModel(net, file.toFile(), false);
    INDArray expected = Nets.timeStep(net, Nets.steps(x, RNNFormat.NCW, 7, 12));

    Model restored =
        kind == Nets.Kind.GRAPH
            ? ModelSerializer.restoreComputationGraph(file.toFile())
            : ModelSerializer.restoreMultiLayerNetwork(file.toFile());
    try (ObjectInputStream in =
        new ObjectInputStream(new ByteArrayInputStream(bytes.toByteArray()))) {
      for (int i = 0; i < 2; i++) {
        @SuppressWarnings("unchecked")
        Map<String, INDArray> state = (Map<String, INDArray>) in.readObject();
        ((RecurrentLayer) Nets.layers(restored)[i]).rnnSetPreviousState(state);
      }
    }
    assertThat(Bits.of(Nets.timeStep(restored, Nets.steps(x, RNNFormat.NCW, 7, 12))))
        .isEqualTo(Bits.of(expected));
  }

  /** As a server does that has one network and many listeners to serve in turn. */
  @ParameterizedTest
  @EnumSource
  void streamsTakeTurnsByTheirStates(Nets.Kind kind) {
    Model net =
        Nets.shaken(
            kind.net(
                Nets.config(DataType.DOUBLE),
                N_IN,
                RNNFormat.NCW,
                Options.EVERYTHING.builder().build(),
                Nets.output(3)));
    RecurrentLayer layer = (RecurrentLayer) Nets.layers(net)[0];
    INDArray[] x = new INDArray[3];
    INDArray[] full = new INDArray[3];
    List<Map<String, INDArray>> states = new ArrayList<>();
    for (int i = 0; i < 3; i++) {
      x[i] = Nets.random(DataType.DOUBLE, 35 + i, 1 + i, N_IN, 9);
      full[i] = Nets.output(net, x[i]);
      states.add(Map.of());
    }
    for (int t = 0; t < 9; t++) {
      for (int i = 0; i < 3; i++) {
        layer.rnnClearPreviousState();
        layer.rnnSetPreviousState(states.get(i));
        INDArray step = Nets.timeStep(net, Nets.steps(x[i], RNNFormat.NCW, t, t + 1));
        assertThat(Nets.distance(step, Nets.steps(full[i], RNNFormat.NCW, t, t + 1)))
            .isLessThan(1e-12);
        states.set(i, layer.rnnGetPreviousState());
      }
    }
  }

  @Test
  void stateIsBoundedByTheWindow() {
    MultiLayerNetwork net = net(Options.EVERYTHING, DataType.FLOAT);
    net.rnnTimeStep(Nets.random(DataType.FLOAT, 25, 3, N_IN, 500));
    net.rnnTimeStep(Nets.random(DataType.FLOAT, 26, 3, N_IN, 1));
    Map<String, INDArray> state = net.rnnGetPreviousState(1);
    assertThat(state.get("keys").shape()).containsExactly(3, 2, 2, 4);
    assertThat(state.get("values").shape()).containsExactly(3, 2, 2, 4);
    assertThat(state.get("alpha").shape()).containsExactly(3, 2, 4);
    assertThat(state.get("lastKey").shape()).containsExactly(3, 2, 4);
    assertThat(state.get("position").getLong(0)).isEqualTo(501);
  }

  @Test
  void stateOfBlocksGrowsWithTheTokens() {
    MultiLayerNetwork net = net(Options.NSA_EVERYTHING, DataType.FLOAT);
    net.rnnTimeStep(Nets.random(DataType.FLOAT, 25, 3, N_IN, 100));
    net.rnnTimeStep(Nets.random(DataType.FLOAT, 26, 3, N_IN, 1));
    Map<String, INDArray> state = net.rnnGetPreviousState(1);
    assertThat(state.get("window.keys").shape()).containsExactly(3, 2, 2, 2);
    assertThat(state.get("window.position").getLong(0)).isEqualTo(101);
    assertThat(state.get("selection.keys").shape()).containsExactly(3, 101, 2, 2);
    assertThat(state.get("selection.values").shape()).containsExactly(3, 101, 2, 2);
    assertThat(state.get("tail.keys").shape()).containsExactly(3, 3, 2, 2);
    assertThat(state.get("compressed.keys").shape()).containsExactly(3, 49, 2, 2);
    assertThat(state.get("compressed.position").getLong(0)).isEqualTo(49);
  }

  @ParameterizedTest
  @EnumSource(names = {"EVERYTHING", "SELECTION", "NSA_EVERYTHING"})
  void clearStartsAnew(Options options) {
    MultiLayerNetwork net = net(options, DataType.DOUBLE);
    INDArray x = Nets.random(DataType.DOUBLE, 27, 2, N_IN, 4);
    INDArray first = net.rnnTimeStep(x);
    assertThat(Nets.distance(net.rnnTimeStep(x), first)).isGreaterThan(1e-6);
    net.rnnClearPreviousState();
    assertThat(net.rnnGetPreviousState(1)).isEmpty();
    assertThat(Nets.distance(net.rnnTimeStep(x), first)).isZero();
  }

  @ParameterizedTest
  @EnumSource(
      names = {"EVERYTHING", "COMPRESSION_EVERYTHING", "SELECTION", "NSA", "NSA_EVERYTHING"})
  void masksWorkInChunks(Options options) {
    MultiLayerNetwork net =
        Nets.shaken(Nets.net(DataType.DOUBLE, N_IN, RNNFormat.NCW, options.builder().build()));
    INDArray x = Nets.random(DataType.DOUBLE, 28, 2, N_IN, 14);
    INDArray mask =
        Nd4j.createFromArray(
            new double[][] {
              {0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1}
            });
    INDArray expected = net.output(x, false, mask, null);
    int[] borders = {0, 2, 4, 5, 6, 7, 12, 13, 14};
    for (int i = 0; i + 1 < borders.length; i++) {
      net.setLayerMaskArrays(
          mask.get(NDArrayIndex.all(), NDArrayIndex.interval(borders[i], borders[i + 1])), null);
      INDArray part = net.rnnTimeStep(Nets.steps(x, RNNFormat.NCW, borders[i], borders[i + 1]));
      assertThat(
              Nets.distance(part, Nets.steps(expected, RNNFormat.NCW, borders[i], borders[i + 1])))
          .as("chunk %d", i)
          .isLessThan(1e-12);
    }
  }

  /** Sequences of different lengths, each with its padding on the other side, token by token. */
  @Test
  void sequencesOfDifferentLengthsStreamTogether() {
    MultiLayerNetwork net =
        Nets.shaken(
            Nets.net(DataType.DOUBLE, N_IN, RNNFormat.NCW, Options.EVERYTHING.builder().build()));
    int[] lengths = {9, 4, 6};
    boolean[] left = {false, true, false};
    INDArray x = Nets.random(DataType.DOUBLE, 39, 3, N_IN, 9);
    INDArray mask = Nd4j.zeros(DataType.DOUBLE, 3, 9);
    for (int b = 0; b < 3; b++) {
      int from = left[b] ? 9 - lengths[b] : 0;
      mask.get(NDArrayIndex.point(b), NDArrayIndex.interval(from, from + lengths[b])).assign(1);
    }
    INDArray[] steps = new INDArray[9];
    for (int t = 0; t < 9; t++) {
      net.setLayerMaskArrays(
          mask.get(NDArrayIndex.all(), NDArrayIndex.interval(t, t + 1)).dup(), null);
      steps[t] = net.rnnTimeStep(Nets.steps(x, RNNFormat.NCW, t, t + 1));
    }
    net.clearLayerMaskArrays();
    INDArray streamed = Nd4j.concat(2, steps);
    for (int b = 0; b < 3; b++) {
      int from = left[b] ? 9 - lengths[b] : 0;
      INDArrayIndex only = NDArrayIndex.interval(from, from + lengths[b]);
      INDArray alone =
          net.output(x.get(NDArrayIndex.interval(b, b + 1), NDArrayIndex.all(), only).dup());
      assertThat(
              Nets.distance(
                  streamed.get(NDArrayIndex.interval(b, b + 1), NDArrayIndex.all(), only), alone))
          .as("example %d", b)
          .isLessThan(1e-12);
    }
  }

  @Test
  void twoDimensionalInputIsOneStep() {
    MultiLayerNetwork net =
        Nets.shaken(
            Nets.net(
                DataType.DOUBLE,
                N_IN,
                RNNFormat.NCW,
                Options.GATED.builder().build(),
                Nets.output(3)));
    INDArray x = Nets.random(DataType.DOUBLE, 29, 2, N_IN, 3);
    INDArray full = net.output(x);
    for (int t = 0; t < 3; t++) {
      INDArray step =
          net.rnnTimeStep(Nets.steps(x, RNNFormat.NCW, t, t + 1).dup('c').reshape(2, N_IN));
      assertThat(step.shape()).containsExactly(2, 3);
      assertThat(
              Nets.distance(step, Nets.steps(full, RNNFormat.NCW, t, t + 1).dup('c').reshape(2, 3)))
          .isLessThan(1e-12);
    }
  }

  @ParameterizedTest
  @EnumSource
  void anotherMinibatchSizeIsAnError(Nets.Kind kind) {
    Model net =
        kind.net(
            Nets.config(DataType.FLOAT),
            N_IN,
            RNNFormat.NCW,
            RMSNormLayer.builder().build(),
            Options.GATED.builder().build(),
            Nets.output(3));
    INDArray first = Nets.timeStep(net, Nets.random(DataType.FLOAT, 30, 2, N_IN, 1));
    assertThat(first.shape()).containsExactly(2, 3, 1);
    assertThatThrownBy(() -> Nets.timeStep(net, Nets.random(DataType.FLOAT, 31, 3, N_IN, 1)))
        .isInstanceOf(IllegalStateException.class)
        .hasMessageContaining("GatedFWALayer \"layer1\"")
        .hasMessageContaining("minibatch size 3")
        .hasMessageContaining("of minibatch size 2")
        .hasMessageContaining("rnnClearPreviousState");
    ((RecurrentLayer) Nets.layers(net)[1]).rnnClearPreviousState();
    assertThat(Nets.timeStep(net, Nets.random(DataType.FLOAT, 31, 3, N_IN, 1)).shape())
        .containsExactly(3, 3, 1);
  }

  @Test
  void aFirstStepThatIsRefusedBeginsNothing() {
    MultiLayerNetwork net = net(Options.GATED, DataType.FLOAT);
    RecurrentLayer layer = (RecurrentLayer) net.getLayer(1);
    INDArray wide = Nets.random(DataType.FLOAT, 31, 2, 3 * N_IN, 1);
    assertThatThrownBy(() -> layer.rnnTimeStep(wide, LayerWorkspaceMgr.noWorkspaces()))
        .hasMessageContaining("GatedFWALayer \"layer1\"");
    assertThat(net.rnnTimeStep(Nets.random(DataType.FLOAT, 31, 3, N_IN, 1)).shape())
        .containsExactly(3, 3, 1);
  }

  @ParameterizedTest
  @EnumSource(names = {"GATED", "EVERYTHING"})
  void halfNetworksStream(Options options) {
    // Not softmax, which ND4J gets wrong in HALF: NaN where all logits are below -17.
    RnnOutputLayer output =
        new RnnOutputLayer.Builder(LossFunction.XENT)
            .activation(Activation.SIGMOID)
            .nOut(3)
            .build();
    MultiLayerNetwork net = net(options, DataType.FLOAT16, output);
    INDArray x = Nets.random(DataType.FLOAT16, 38, 2, N_IN, 20);
    assertChunksMatch(net, x, RNNFormat.NCW, 4e-3, 1, 5, 2);
  }

  @Test
  void aForeignStateIsAnError() {
    MultiLayerNetwork net = net(Options.GATED, DataType.FLOAT);
    assertThatThrownBy(
            () -> net.rnnSetPreviousState(1, Map.of("prevAct", Nd4j.zeros(DataType.FLOAT, 1, 4))))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("\"position\" is missing");
    assertThatThrownBy(() -> net.rnnSetPreviousState(1, Map.of("position", Nd4j.scalar(-1L))))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("\"position\" is -1; expected 0 or more");
    assertThatThrownBy(
            () ->
                net.rnnSetPreviousState(
                    1,
                    Map.of(
                        "position",
                        Nd4j.scalar(3L),
                        "keys",
                        Nd4j.zeros(DataType.FLOAT, 1, 2, 7, 2))))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("\"keys\" is [1, 2, 7, 2]")
        .hasMessageContaining("[1, 2, 2, 2]");
    assertThatThrownBy(() -> net.rnnSetPreviousState(1, null))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("GatedFWALayer \"layer1\": RNN state is null; expected a map");
    MultiLayerNetwork nsa = net(Options.NSA, DataType.FLOAT);
    nsa.rnnTimeStep(Nets.random(DataType.FLOAT, 25, 3, N_IN, 10));
    Map<String, INDArray> state = nsa.rnnGetPreviousState(1);
    assertStateIsRefused(nsa, state, "tail.position", null, "\"tail.position\" is missing");
    assertStateIsRefused(
        nsa,
        state,
        "compressed.position",
        Nd4j.scalar(3L),
        "\"compressed.position\" is 3; expected 9 after 10 tokens");
    assertStateIsRefused(
        nsa, state, "selection.keys", null, "\"selection.keys\" has 0 entries; expected 10");
    assertStateIsRefused(
        nsa,
        state,
        "tail.keys",
        Nd4j.zeros(DataType.FLOAT, 3, 2, 2, 2),
        "\"tail.values\" is [3, 1, 2, 2]; expected an array of shape [3, 2, 2, 2]");
  }

  /** Without them the token shift would take the token before for missing. */
  @Test
  void aStateWithoutTheLastProjectionsIsAnError() {
    MultiLayerNetwork net = net(Options.NSA_EVERYTHING, DataType.FLOAT);
    net.rnnTimeStep(Nets.random(DataType.FLOAT, 40, 3, N_IN, 10));
    Map<String, INDArray> state = net.rnnGetPreviousState(1);
    for (String last : List.of("window.lastKey", "window.lastValue")) {
      assertStateIsRefused(net, state, last, null, "\"" + last + "\" is missing");
    }
    Map<String, INDArray> empty = new HashMap<>(state);
    empty.keySet().removeIf(key -> key.startsWith("window.") && !key.equals("window.position"));
    net.rnnSetPreviousState(1, empty);
    for (Options options : new Options[] {Options.KEY_SHIFT, Options.VALUE_SHIFT}) {
      MultiLayerNetwork shifted = net(options, DataType.FLOAT);
      shifted.rnnTimeStep(Nets.random(DataType.FLOAT, 40, 3, N_IN, 10));
      shifted.rnnSetPreviousState(1, shifted.rnnGetPreviousState(1));
    }
  }

  private static void assertStateIsRefused(
      MultiLayerNetwork net, Map<String, INDArray> state, String key, INDArray value, String why) {
    Map<String, INDArray> changed = new HashMap<>(state);
    changed.remove(key);
    if (value != null) {
      changed.put(key, value);
    }
    assertThatThrownBy(() -> net.rnnSetPreviousState(1, changed))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("NativeSparseAttentionLayer \"layer1\"")
        .hasMessageContaining(why);
  }

  @ParameterizedTest
  @CsvSource({"EVERYTHING,NCW", "EVERYTHING,NWC", "NSA_EVERYTHING,NCW", "NSA_EVERYTHING,NWC"})
  void decoderBlocksStreamInAGraph(Options options, RNNFormat format) {
    DecoderBlock block =
        DecoderBlock.builder()
            .nModel(8)
            .attention(options.builder().nOut(8).headSize(4).build())
            .build();
    var graph = Nets.config(DataType.DOUBLE).graphBuilder().addInputs("in");
    String last = block.addTo(graph, "second", block.addTo(graph, "first", "in"));
    graph
        .addLayer("norm", RMSNormLayer.builder().build(), last)
        .addLayer("out", Nets.output(3), "norm")
        .setOutputs("out");
    ComputationGraph net =
        new ComputationGraph(graph.setInputTypes(InputType.recurrent(8, format)).build());
    net.init();
    Nets.shaken(net);
    INDArray x = Nets.toFormat(Nets.random(DataType.DOUBLE, 32, 2, 8, 20), format);
    INDArray full = net.outputSingle(x);
    int at = 0;
    for (int size : new int[] {1, 1, 5, 3, 1, 9}) {
      INDArray part = net.rnnTimeStep(Nets.steps(x, format, at, at + size))[0];
      assertThat(Nets.distance(part, Nets.steps(full, format, at, at + size))).isLessThan(1e-12);
      at += size;
    }
  }
}
