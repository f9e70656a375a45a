package io.github.gatedfwa.zoo.lm;

import static java.nio.charset.StandardCharsets.ISO_8859_1;
import static java.nio.charset.StandardCharsets.UTF_8;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.github.gatedfwa.layers.GatedFWALayer;
import io.github.gatedfwa.layers.RMSNormLayer;
import io.github.gatedfwa.layers.SwiGLULayer;
import io.github.gatedfwa.zoo.lm.TextGenerator.Completion;
import io.github.gatedfwa.zoo.lm.TextGenerator.Reason;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.SplittableRandom;
import java.util.function.UnaryOperator;
import java.util.stream.Stream;
import org.deeplearning4j.nn.conf.ComputationGraphConfiguration.GraphBuilder;
import org.deeplearning4j.nn.conf.ConvolutionMode;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.conf.graph.ElementWiseVertex;
import org.deeplearning4j.nn.conf.graph.FrozenVertex;
import org.deeplearning4j.nn.conf.graph.GraphVertex;
import org.deeplearning4j.nn.conf.graph.L2NormalizeVertex;
import org.deeplearning4j.nn.conf.graph.MergeVertex;
import org.deeplearning4j.nn.conf.graph.ScaleVertex;
import org.deeplearning4j.nn.conf.graph.ShiftVertex;
import org.deeplearning4j.nn.conf.graph.rnn.ReverseTimeSeriesVertex;
import org.deeplearning4j.nn.conf.inputs.InputType;
import org.deeplearning4j.nn.conf.layers.ActivationLayer;
import org.deeplearning4j.nn.conf.layers.BaseRecurrentLayer;
import org.deeplearning4j.nn.conf.layers.Convolution1DLayer;
import org.deeplearning4j.nn.conf.layers.DenseLayer;
import org.deeplearning4j.nn.conf.layers.DropoutLayer;
import org.deeplearning4j.nn.conf.layers.EmbeddingSequenceLayer;
import org.deeplearning4j.nn.conf.layers.GravesBidirectionalLSTM;
import org.deeplearning4j.nn.conf.layers.LSTM;
import org.deeplearning4j.nn.conf.layers.RnnOutputLayer;
import org.deeplearning4j.nn.conf.layers.SelfAttentionLayer;
import org.deeplearning4j.nn.conf.layers.misc.FrozenLayerWithBackprop;
import org.deeplearning4j.nn.conf.layers.recurrent.Bidirectional;
import org.deeplearning4j.nn.conf.layers.recurrent.SimpleRnn;
import org.deeplearning4j.nn.conf.layers.util.MaskZeroLayer;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.deeplearning4j.nn.transferlearning.FineTuneConfiguration;
import org.deeplearning4j.nn.transferlearning.TransferLearning;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.nd4j.linalg.activations.Activation;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.learning.config.Sgd;

class TextGeneratorTest {
  private static final String PROMPT = "public class ";

  /** Weights are random: it writes nonsense, but any byte depends on all that it may see. */
  private static ComputationGraph network;

  @BeforeAll
  static void create() {
    network =
        GatedFwaLM.builder()
            .width(32)
            .heads(2)
            .blocks(2)
            .hiddenSize(48)
            .windowSize(16)
            .build()
            .init();
    // Larger weights: far from uniform. No end of the text.
    network.params().muli(3);
    network.getLayer("output").getParam("b").putScalar(0, -100);
  }

  private static Completion generate(String prompt, UnaryOperator<TextGenerator.Builder> settings) {
    return settings.apply(TextGenerator.builder(network)).build().generate(prompt);
  }

  @Test
  void theSameSeedGivesTheSameText() {
    Completion first = generate(PROMPT, b -> b.maxBytes(100).seed(5));
    assertThat(first.bytes()).hasSize(100);
    assertThat(first.reason()).isEqualTo(Reason.LENGTH);
    assertThat(first.text()).isEqualTo(new String(first.bytes(), UTF_8));
    assertThat(generate(PROMPT, b -> b.maxBytes(100).seed(5)).bytes()).isEqualTo(first.bytes());
    assertThat(generate(PROMPT, b -> b.maxBytes(100).seed(6)).bytes()).isNotEqualTo(first.bytes());
  }

  @Test
  void withoutTemperatureEachByteIsTheLikeliestOfAFullPass() {
    byte[] written = generate(PROMPT, b -> b.maxBytes(40).temperature(0)).bytes();
    assertLikeliest(network, PROMPT.getBytes(UTF_8), written, 40);
    assertThat(generate(PROMPT, b -> b.maxBytes(40).topK(1)).bytes()).isEqualTo(written);
    assertThat(generate(PROMPT, b -> b.maxBytes(40).topP(1e-9)).bytes()).isEqualTo(written);
  }

  @Test
  void anEmptyPromptBeginsAFile() {
    assertLikeliest(network, new byte[0], likeliest(network, 20).generate("").bytes(), 20);
  }

  @Test
  void topKAndTopPKeepToTheLikeliest() {
    byte[] text = generate(PROMPT, b -> b.maxBytes(200).topK(3)).bytes();
    double[][] p = probabilities((PROMPT + new String(text, ISO_8859_1)).getBytes(ISO_8859_1));
    for (int i = 0; i < text.length; i++) {
      double[] row = p[PROMPT.length() + i];
      double[] sorted = Arrays.stream(row).sorted().toArray();
      assertThat(row[Byte.toUnsignedInt(text[i])]).isGreaterThan(sorted[253] - 1e-5);
    }
    text = generate(PROMPT, b -> b.maxBytes(200).topP(0.5)).bytes();
    p = probabilities((PROMPT + new String(text, ISO_8859_1)).getBytes(ISO_8859_1));
    for (int i = 0; i < text.length; i++) {
      double[] row = p[PROMPT.length() + i];
      double own = row[Byte.toUnsignedInt(text[i])];
      double likelier = Arrays.stream(row).filter(other -> other > own + 1e-6).sum();
      assertThat(likelier).isLessThan(0.5 + 1e-5);
    }
  }

  @Test
  void frequenciesFollowTheModelAndTheTemperature() {
    double[] p = probabilities(new byte[0])[0];
    double[] squared = Arrays.stream(p).map(x -> x * x).toArray();
    double sum = Arrays.stream(squared).sum();
    int runs = 400;
    int[] counts = new int[256];
    TextGenerator.Builder one = TextGenerator.builder(network).maxBytes(1).temperature(0.5);
    for (Completion c : one.build().generate(Collections.nCopies(runs, ""))) {
      counts[c.bytes().length == 0 ? 0 : Byte.toUnsignedInt(c.bytes()[0])]++;
    }
    for (int i = 0; i < 256; i++) {
      double expected = squared[i] / sum;
      double deviation = Math.sqrt(runs * expected * (1 - expected));
      assertThat((double) counts[i])
          .isBetween(runs * expected - 5 * deviation - 1, runs * expected + 5 * deviation + 1);
    }
  }

  @Test
  void theRepetitionPenaltyMakesRepetitionRarer() throws IOException {
    TextGenerator.Builder likeliest = TextGenerator.builder(sparse()).maxBytes(40).temperature(0);
    long free = distinct(likeliest.build().generate(PROMPT));
    long penal = distinct(likeliest.repetitionPenalty(5).build().generate(PROMPT));
    assertThat(penal).isGreaterThan(free);
  }

  /** The penalty forbids what is in its window: the likeliest of the other bytes comes. */
  @ParameterizedTest
  @CsvSource({"1, ababab", "2, abcabc", "3, abcdab"})
  void theRepetitionPenaltyLooksBackAsFarAsItsWindow(int window, String expected) {
    assertThat(constant("abcdef", 6).repetitionPenalty(100).repetitionWindow(window).build())
        .extracting(generator -> generator.generate("").text())
        .isEqualTo(expected);
  }

  @Test
  void theEndOfATextHasNoRepetitionPenalty() {
    Completion completion = constant("\0abc", 6).repetitionPenalty(100).build().generate("");
    assertThat(completion.reason()).isEqualTo(Reason.END);
    assertThat(completion.bytes()).isEmpty();
  }

  /**
   * Its probabilities are the same after any text: those bytes are the likeliest, in this order.
   */
  private static TextGenerator.Builder constant(String likeliest, int maxBytes) {
    ComputationGraph constant = network.clone();
    constant.getLayer("output").getParam("W").assign(0);
    INDArray bias = constant.getLayer("output").getParam("b").assign(-20);
    for (int i = 0; i < likeliest.length(); i++) {
      bias.putScalar(likeliest.charAt(i), -i);
    }
    return TextGenerator.builder(constant).maxBytes(maxBytes).temperature(0);
  }

  @Test
  void aListenerThatEndsTheTextHasGotAllOfIt() {
    // At the second a, "abc" is no start of the stop string any more, but that a may be.
    TextGenerator.Builder letters =
        constant("abc", 100).repetitionPenalty(100).repetitionWindow(2).stop("abcz");
    Completion held = letters.build().generate("", piece -> false);
    assertThat(held.reason()).isEqualTo(Reason.LISTENER);
    assertThat(held.text()).isEqualTo("abc");
    assertThat(held.bytes()).isEqualTo("abc".getBytes(UTF_8));
    // The second byte shows that the first is broken; it may itself begin a character.
    Completion broken = constant("\u00c3", 100).build().generate("", piece -> false);
    assertThat(broken.text()).isEqualTo("\ufffd");
    assertThat(broken.bytes()).isEqualTo(new byte[] {(byte) 0xc3});
  }

  @Test
  void probabilitiesThatAreNotNumbersAreAnError() {
    ComputationGraph broken = network.clone();
    broken.getLayer("output").getParam("b").putScalar(5, Float.NaN);
    assertThatThrownBy(() -> TextGenerator.builder(broken).build().generate(PROMPT))
        .isInstanceOf(IllegalStateException.class)
        .hasMessageContaining("TextGenerator: after 0 bytes of text 0")
        .hasMessageContaining("NaN");
  }

  @Test
  void eitherRnnFormatWillDo() {
    ComputationGraph ncw = recurrent(RNNFormat.NCW);
    ComputationGraph nwc = recurrent(RNNFormat.NWC);
    nwc.setParams(ncw.params().muli(3));
    List<byte[]> prompts = List.of(new byte[0], random(256), random(1500));
    List<Completion> some = likeliest(ncw, 10).generateFromBytes(prompts, (prompt, piece) -> true);
    List<Completion> others =
        likeliest(nwc, 10).generateFromBytes(prompts, (prompt, piece) -> true);
    for (int i = 0; i < prompts.size(); i++) {
      assertThat(some.get(i).bytes()).isEqualTo(others.get(i).bytes());
    }
  }

  private static ComputationGraph recurrent(RNNFormat format) {
    return network(
        format,
        graph ->
            graph
                .addLayer(
                    "attention",
                    GatedFWALayer.builder().nOut(16).nHeads(2).windowSize(8).build(),
                    "embedding")
                .addLayer(
                    "last", new LSTM.Builder().nOut(16).dataFormat(format).build(), "attention"));
  }

  /** Bytes in, probabilities out; between them vertices from "embedding" to "last". */
  private static ComputationGraph network(RNNFormat format, UnaryOperator<GraphBuilder> between) {
    GraphBuilder graph =
        new NeuralNetConfiguration.Builder()
            .seed(1)
            .graphBuilder()
            .addInputs("in")
            .setInputTypes(InputType.recurrent(GatedFwaLM.BYTES))
            .addLayer(
                "embedding",
                new EmbeddingSequenceLayer.Builder()
                    .nIn(GatedFwaLM.BYTES)
                    .nOut(16)
                    .outputDataFormat(format)
                    .build(),
                "in");
    ComputationGraph built =
        new ComputationGraph(
            between
                .apply(graph)
                .addLayer("out", outputOfBytes(), "last")
                .setOutputs("out")
                .build());
    built.init();
    return built;
  }

  @ParameterizedTest
  @EnumSource(RNNFormat.class)
  void everyLayerAndVertexThatWorksByteByByteWillDo(RNNFormat format) {
    // DL4J's SimpleRnn fails in rnnTimeStep with NWC.
    BaseRecurrentLayer simple =
        format == RNNFormat.NCW ? new SimpleRnn.Builder().nOut(16).build() : lstm(format);
    ComputationGraph all =
        network(
            format,
            graph ->
                graph
                    .addLayer("lstm", lstm(format), "embedding")
                    .addLayer("norm", RMSNormLayer.builder().build(), "lstm")
                    .addVertex("merged", new MergeVertex(), "embedding", "norm")
                    .addLayer("simple", simple, "merged")
                    .addVertex(
                        "added", new ElementWiseVertex(ElementWiseVertex.Op.Add), "lstm", "simple")
                    .addVertex("scaled", new ScaleVertex(3), "added")
                    .addVertex("shifted", new ShiftVertex(0.1), "scaled")
                    .addLayer(
                        "swiglu", SwiGLULayer.builder().nOut(16).hiddenSize(24).build(), "shifted")
                    .addLayer("dense", new DenseLayer.Builder().nOut(16).build(), "swiglu")
                    .addLayer("dropout", new DropoutLayer(0.5), "dense")
                    .addLayer(
                        "last",
                        new FrozenLayerWithBackprop(new ActivationLayer(Activation.SIGMOID)),
                        "dropout"));
    all.params().muli(3);
    byte[] prompt = random(40);
    byte[] written =
        likeliest(all, 20).generateFromBytes(List.of(prompt), (i, piece) -> true).get(0).bytes();
    assertLikeliest(all, prompt, written, 20);
  }

  private static LSTM lstm(RNNFormat format) {
    return new LSTM.Builder().nOut(16).dataFormat(format).build();
  }

  @SuppressWarnings("deprecation") // of GravesBidirectionalLSTM
  static Stream<Arguments> layersThatMixBytes() {
    return Stream.of(
        Arguments.of(
            new Convolution1DLayer.Builder(3)
                .nOut(16)
                .convolutionMode(ConvolutionMode.Causal)
                .build(),
            "last (Convolution1DLayer)"),
        Arguments.of(
            new SelfAttentionLayer.Builder().nOut(16).nHeads(2).projectInput(true).build(),
            "last (SelfAttentionLayer)"),
        Arguments.of(new Bidirectional(lstm(RNNFormat.NCW)), "last (Bidirectional)"),
        Arguments.of(
            new GravesBidirectionalLSTM.Builder().nOut(16).build(),
            "last (GravesBidirectionalLSTM)"),
        Arguments.of(
            new FrozenLayerWithBackprop(
                new MaskZeroLayer.Builder().setUnderlying(lstm(RNNFormat.NCW)).build()),
            "last (MaskZeroLayer)"),
        Arguments.of(new ActivationLayer(Activation.SOFTMAX), "last (ActivationLayer)"));
  }

  @ParameterizedTest
  @MethodSource("layersThatMixBytes")
  void aLayerThatMixesBytesIsRefused(
      org.deeplearning4j.nn.conf.layers.Layer layer, String message) {
    assertNetworkRefused(
        network(RNNFormat.NCW, graph -> graph.addLayer("last", layer, "embedding")), message);
  }

  static Stream<Arguments> verticesThatMixBytes() {
    return Stream.of(
        Arguments.of(new L2NormalizeVertex(), "last (L2NormalizeVertex)"),
        Arguments.of(new ReverseTimeSeriesVertex("in"), "last (ReverseTimeSeriesVertex)"),
        Arguments.of(
            new FrozenVertex(new ReverseTimeSeriesVertex("in")), "last (ReverseTimeSeriesVertex)"));
  }

  @ParameterizedTest
  @MethodSource("verticesThatMixBytes")
  void aVertexThatMixesBytesIsRefused(GraphVertex vertex, String message) {
    assertNetworkRefused(
        network(RNNFormat.NCW, graph -> graph.addVertex("last", vertex, "embedding")), message);
  }

  /** DL4J's rnnTimeStep gives a recurrent layer what is before its preprocessor. */
  @Test
  void aRecurrentLayerAfterADenseOneIsRefused() {
    assertNetworkRefused(
        network(
            RNNFormat.NCW,
            graph ->
                graph
                    .addLayer("dense", new DenseLayer.Builder().nOut(16).build(), "embedding")
                    .addLayer("last", lstm(RNNFormat.NCW), "dense")),
        "last (LSTM after FeedForwardToRnnPreProcessor)");
  }

  @Test
  void anOutputWithoutALayerIsRefused() {
    ComputationGraph scaled =
        new ComputationGraph(
            new NeuralNetConfiguration.Builder()
                .graphBuilder()
                .addInputs("in")
                .setInputTypes(InputType.recurrent(GatedFwaLM.BYTES))
                .addLayer(
                    "out",
                    new EmbeddingSequenceLayer.Builder().nIn(GatedFwaLM.BYTES).nOut(16).build(),
                    "in")
                .addVertex("scaled", new ScaleVertex(2), "out")
                .setOutputs("scaled")
                .build());
    scaled.init();
    assertNetworkRefused(scaled, "[scaled]: must have one input and one output, an RnnOutputLayer");
  }

  private static void assertNetworkRefused(ComputationGraph refused, String message) {
    assertThatThrownBy(() -> TextGenerator.builder(refused).build())
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("TextGenerator: network = " + message);
  }

  private static RnnOutputLayer outputOfBytes() {
    return new RnnOutputLayer.Builder()
        .nOut(GatedFwaLM.BYTES)
        .activation(Activation.SOFTMAX)
        .build();
  }

  @Test
  void aNetworkThatDoesNotReadBytesIsRefused() {
    ComputationGraph features =
        new ComputationGraph(
            new NeuralNetConfiguration.Builder()
                .graphBuilder()
                .addInputs("in")
                .setInputTypes(InputType.recurrent(GatedFwaLM.BYTES))
                .addLayer("attention", GatedFWALayer.builder().nOut(16).nHeads(2).build(), "in")
                .addLayer("out", outputOfBytes(), "attention")
                .setOutputs("out")
                .build());
    features.init();
    assertThatThrownBy(() -> TextGenerator.builder(features).build())
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("network = [in]: must read [minibatch, 1, time] with bytes");
  }

  @Test
  void frozenLayersWriteWhatTheyWroteBefore() throws IOException {
    assertThat(TextGenerator.reach(frozen(network))).isEqualTo(TextGenerator.reach(network));
    assertThat(TextGenerator.reach(frozen(sparse()))).isEqualTo(Long.MAX_VALUE);
    String start = "a text whose start windows do not reach: ".repeat(5);
    for (ComputationGraph free : List.of(network, sparse())) {
      List<byte[]> expected = new ArrayList<>();
      TextGenerator.builder(free)
          .maxBytes(20)
          .build()
          .generate(List.of(start, PROMPT))
          .forEach(completion -> expected.add(completion.bytes()));
      ComputationGraph frozen = frozen(free);
      TextGenerator generator = TextGenerator.builder(frozen).maxBytes(20).build();
      // Twice, and another minibatch: nothing may be left of the text before.
      for (int i = 0; i < 2; i++) {
        assertThat(generator.generate(start).bytes()).isEqualTo(expected.get(0));
        assertThat(generator.generate(List.of(start, PROMPT)).get(1).bytes())
            .isEqualTo(expected.get(1));
      }
      assertThat(frozen.rnnGetPreviousStates().values()).allMatch(state -> state.isEmpty());
    }
  }

  private static ComputationGraph frozen(ComputationGraph network) {
    return new TransferLearning.GraphBuilder(network)
        .fineTuneConfiguration(new FineTuneConfiguration.Builder().updater(new Sgd(0.1)).build())
        .setFeatureExtractor("block1-ffn-residual")
        .build();
  }

  private static long distinct(Completion completion) {
    return new String(completion.bytes(), ISO_8859_1).chars().distinct().count();
  }

  @Test
  void aBatchGivesWhatEachPromptGivesAlone() {
    List<String> prompts = List.of("", "int x = ", "import java.util.List;\n\npublic class Main {");
    TextGenerator generator = TextGenerator.builder(network).maxBytes(60).temperature(0).build();
    List<Completion> together = generator.generate(prompts);
    for (int i = 0; i < prompts.size(); i++) {
      assertThat(together.get(i).bytes()).isEqualTo(generator.generate(prompts.get(i)).bytes());
    }
    assertThat(generator.generate(List.of())).isEmpty();
  }

  @Test
  void textsOfABatchEndEachForItself() {
    List<String> pieces = new ArrayList<>();
    List<Completion> both =
        TextGenerator.builder(network)
            .maxBytes(50)
            .build()
            .generate(
                List.of("a", "a longer prompt"),
                (prompt, piece) -> {
                  if (prompt == 0) {
                    pieces.add(piece);
                  }
                  return prompt == 1 || pieces.size() < 3;
                });
    assertThat(both.get(0).reason()).isEqualTo(Reason.LISTENER);
    assertThat(both.get(0).text()).isEqualTo(String.join("", pieces));
    assertThat(both.get(1).reason()).isEqualTo(Reason.LENGTH);
    assertThat(both.get(1).bytes()).hasSize(50);
  }

  @Test
  void aStopStringEndsTheTextAndIsNotShown() {
    byte[] written = generate(PROMPT, b -> b.maxBytes(60).topK(3)).bytes();
    // Three bytes of ASCII that it writes somewhere; others of the stops never come.
    int at = 0;
    while (written[at] < 1 || written[at + 1] < 1 || written[at + 2] < 1) {
      at++;
    }
    String stop = new String(written, at, 3, ISO_8859_1);
    int first = new String(written, ISO_8859_1).indexOf(stop);
    StringBuilder heard = new StringBuilder();
    Completion stopped =
        TextGenerator.builder(network)
            .maxBytes(60)
            .topK(3)
            .stop(stop + "never", stop)
            .build()
            .generate(
                PROMPT,
                piece -> {
                  heard.append(piece);
                  return true;
                });
    assertThat(stopped.reason()).isEqualTo(Reason.STOP);
    assertThat(stopped.bytes()).isEqualTo(Arrays.copyOf(written, first));
    assertThat(heard.toString()).isEqualTo(stopped.text());
  }

  @Test
  void ofTenMegabytesOnlyTheEndIsRead() {
    // Reach: 2 blocks of 16 and the newest byte. What lies before it does not count.
    byte[] random = random(10_000_000);
    List<Long> positions = new ArrayList<>();
    byte[] written =
        likeliest(network, 30)
            .generateFromBytes(
                List.of(random),
                (prompt, piece) -> {
                  var state = network.rnnGetPreviousState("block1-attention");
                  positions.add(state.get("position").getLong(0));
                  return state.get("keys").size(1) == 15;
                })
            .get(0)
            .bytes();
    assertThat(positions.get(0)).isBetween(33L, 36L); // broken characters are told late
    assertLikeliest(
        network, Arrays.copyOfRange(random, random.length - 200, random.length), written, 30);
  }

  @Test
  void aPromptOfSeveralChunksGivesWhatAFullPassGives() {
    ComputationGraph wide =
        GatedFwaLM.builder()
            .width(32)
            .heads(2)
            .blocks(2)
            .hiddenSize(48)
            .windowSize(700)
            .build()
            .init();
    wide.setParams(network.params());
    assertThat(TextGenerator.reach(wide)).isEqualTo(1401);
    for (int length : new int[] {1023, 1024, 1400, 1401, 3000}) {
      byte[] prompt = random(length);
      byte[] written =
          likeliest(wide, 10).generateFromBytes(List.of(prompt), (i, piece) -> true).get(0).bytes();
      assertLikeliest(wide, prompt, written, 10);
    }
  }

  private static byte[] random(int length) {
    byte[] bytes = new byte[length];
    new SplittableRandom(1).nextBytes(bytes);
    return bytes;
  }

  private static TextGenerator likeliest(ComputationGraph network, int maxBytes) {
    return TextGenerator.builder(network).maxBytes(maxBytes).temperature(0).build();
  }

  /** Each byte is the likeliest one after all before it, by one pass over the whole text. */
  private static void assertLikeliest(
      ComputationGraph network, byte[] prompt, byte[] written, int length) {
    assertThat(written).hasSize(length);
    byte[] text = Arrays.copyOf(prompt, prompt.length + written.length);
    System.arraycopy(written, 0, text, prompt.length, written.length);
    double[][] p = probabilities(network, text);
    for (int i = 0; i < written.length; i++) {
      // Row t is what follows t bytes; rounding may turn near ties.
      double[] row = p[prompt.length + i];
      assertThat(row[Byte.toUnsignedInt(written[i])])
          .isGreaterThan(Arrays.stream(row).max().getAsDouble() - 1e-5);
    }
  }

  @Test
  void aNetworkOfOtherTokensIsRefused() {
    ComputationGraph lstm =
        new ComputationGraph(
            new NeuralNetConfiguration.Builder()
                .graphBuilder()
                .addInputs("in")
                .setInputTypes(InputType.recurrent(1, RNNFormat.NWC))
                .addLayer(
                    "lstm", new LSTM.Builder().nOut(4).dataFormat(RNNFormat.NWC).build(), "in")
                .addLayer(
                    "out",
                    new RnnOutputLayer.Builder().nOut(10).activation(Activation.SOFTMAX).build(),
                    "lstm")
                .setOutputs("out")
                .build());
    lstm.init();
    assertThatThrownBy(() -> TextGenerator.builder(lstm).build())
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("one output, an RnnOutputLayer of 256 probabilities");
  }

  @Test
  void onlySparseAttentionSeesTheWholePrompt() throws IOException {
    // Two blocks see 15 bytes back and, by the token shift, one more.
    assertThat(TextGenerator.reach(network)).isEqualTo(1 + 2 * 16);
    assertThat(TextGenerator.reach(sparse())).isEqualTo(Long.MAX_VALUE);
  }

  private static ComputationGraph sparse() throws IOException {
    return SafetensorsImporter.read(
        PretrainedTest.resource("random-nsa.safetensors"), GatedFwaLM.builder());
  }

  @Test
  void theModelEndsTheText() {
    ComputationGraph ending = network.clone();
    ending.getLayer("output").getParam("b").putScalar(0, 1000);
    Completion completion = TextGenerator.builder(ending).build().generate(PROMPT);
    assertThat(completion.reason()).isEqualTo(Reason.END);
    assertThat(completion.bytes()).isEmpty();
    assertThat(completion.text()).isEmpty();
  }

  @Test
  void brokenTextIsReadAsItIsAndShown() {
    byte[] broken = {(byte) 0xff, 'a', (byte) 0xc3, 0, (byte) 0xe2, (byte) 0x82};
    byte[] written =
        likeliest(network, 20)
            .generateFromBytes(List.of(broken), (i, piece) -> true)
            .get(0)
            .bytes();
    assertLikeliest(network, broken, written, 20);
    Completion completion =
        TextGenerator.builder(network)
            .maxBytes(200)
            .build()
            .generateFromBytes(List.of(broken), (prompt, piece) -> true)
            .get(0);
    assertThat(completion.text())
        .isEqualTo(new String(completion.bytes(), UTF_8))
        .contains("\ufffd");
  }

  @Test
  void charactersComeWhole() {
    byte[] bytes = "aé€😀".getBytes(UTF_8);
    Utf8Decoder decoder = new Utf8Decoder();
    List<String> pieces = new ArrayList<>();
    for (int i = 0; i < bytes.length; i++) {
      pieces.add(decoder.decode(bytes, i, i + 1, false));
    }
    pieces.removeIf(String::isEmpty);
    assertThat(pieces).containsExactly("a", "é", "€", "😀");
    assertThat(decoder.decode(bytes, 1, 2, true)).isEqualTo("\ufffd");
    assertThat(decoder.decode(bytes, 0, 1, true)).isEqualTo("a");
  }

  @Test
  void aWrongSettingIsNamed() {
    assertRefused("temperature", b -> b.temperature(-1));
    assertRefused("temperature", b -> b.temperature(Double.NaN));
    assertRefused("topK", b -> b.topK(-1));
    assertRefused("topP", b -> b.topP(0));
    assertRefused("topP", b -> b.topP(1.1));
    assertRefused("repetitionPenalty", b -> b.repetitionPenalty(0.9));
    assertRefused("repetitionWindow", b -> b.repetitionWindow(0));
    assertRefused("maxBytes", b -> b.maxBytes(0));
    assertRefused("stop", b -> b.stop(""));
  }

  private static void assertRefused(String name, UnaryOperator<TextGenerator.Builder> settings) {
    assertThatThrownBy(() -> settings.apply(TextGenerator.builder(network)).build())
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("TextGenerator: " + name + " = ");
  }

  /** Row t: the distribution after the first t bytes of a file. */
  private static double[][] probabilities(byte[] text) {
    return probabilities(network, text);
  }

  private static double[][] probabilities(ComputationGraph network, byte[] text) {
    float[] tokens = new float[text.length + 1];
    for (int i = 0; i < text.length; i++) {
      tokens[i + 1] = Byte.toUnsignedInt(text[i]);
    }
    INDArray output =
        network.outputSingle(Nd4j.createFromArray(tokens).reshape(1, 1, tokens.length));
    boolean timeLast = output.size(2) != GatedFwaLM.BYTES;
    return (timeLast ? output.permute(0, 2, 1) : output)
        .dup('c')
        .reshape(tokens.length, GatedFwaLM.BYTES)
        .toDoubleMatrix();
  }
}
