package io.github.gatedfwa.zoo.lm;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.github.gatedfwa.zoo.lm.GatedFwaLM.Pretrained;
import io.github.gatedfwa.zoo.lm.GatedFwaLM.Size;
import java.io.IOException;
import java.net.URISyntaxException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.FileTime;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.stream.Stream;
import org.deeplearning4j.common.resources.DL4JResources;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.deeplearning4j.zoo.PretrainedType;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.indexing.NDArrayIndex;
import org.nd4j.linalg.ops.transforms.Transforms;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** The pretrained weights: they are PyTorch's model, and only the right file is taken. */
class PretrainedTest {
  private static final Logger LOG = LoggerFactory.getLogger(PretrainedTest.class);
  private static final double TOLERANCE = 1e-4;

  @TempDir Path folder;

  @BeforeEach
  void ownFolder() {
    DL4JResources.setBaseDirectory(folder.toFile());
  }

  @AfterEach
  void usualFolder() {
    DL4JResources.resetBaseDirectoryLocation();
  }

  @ParameterizedTest
  @EnumSource
  void answersAsInPyTorch(Pretrained pretrained) throws IOException {
    ComputationGraph network = GatedFwaLM.builder().build().initPretrained(pretrained);
    String logits = "logits-" + pretrained.size().name().toLowerCase(Locale.ROOT);
    double[] worst = new double[2];
    for (String prompt : List.of("short", "broken-utf8", "long")) {
      double[] errors = errors(network, logits, prompt);
      worst[0] = Math.max(worst[0], errors[0]);
      worst[1] = Math.max(worst[1], errors[1]);
    }
    // docs/zoo.md tells them.
    LOG.info(
        "{}: largest error of a logit {} in one pass, {} in chunks",
        pretrained,
        worst[0],
        worst[1]);
    assertThat(worst[0]).isLessThan(TOLERANCE);
    assertThat(worst[1]).isLessThan(TOLERANCE);
  }

  @Test
  void nativeSparseAttentionAnswersAsInPyTorch() throws IOException {
    ComputationGraph network =
        SafetensorsImporter.read(resource("random-nsa.safetensors"), GatedFwaLM.builder());
    for (String prompt : List.of("short", "long")) {
      for (double error : errors(network, "logits-random-nsa", prompt)) {
        assertThat(error).isLessThan(TOLERANCE);
      }
    }
  }

  /**
   * The largest errors of a logit: in one pass; in chunks, and byte by byte as far as beyond the
   * window.
   */
  private static double[] errors(ComputationGraph network, String folder, String prompt)
      throws IOException {
    byte[] bytes = Files.readAllBytes(resource("prompts/" + prompt + ".txt"));
    INDArray expected =
        centred(Nd4j.createFromNpyFile(resource(folder + "/" + prompt + ".npy").toFile()));
    INDArray tokens = Nd4j.create(DataType.FLOAT, 1, 1, bytes.length + 1);
    for (int i = 0; i < bytes.length; i++) {
      tokens.putScalar(0, 0, i + 1, Byte.toUnsignedInt(bytes[i]));
    }
    double inOnePass = error(logits(network.outputSingle(tokens)), expected);
    double inChunks = 0;
    for (int chunk : new int[] {1, 37}) {
      network.rnnClearPreviousState();
      int end = chunk == 1 ? Math.min(300, bytes.length + 1) : bytes.length + 1;
      for (int from = 0; from < end; from += chunk) {
        var time = NDArrayIndex.interval(from, Math.min(end, from + chunk));
        INDArray part = tokens.get(NDArrayIndex.all(), NDArrayIndex.all(), time);
        INDArray answer = logits(network.rnnTimeStep(part)[0]);
        inChunks = Math.max(inChunks, error(answer, expected.get(time, NDArrayIndex.all())));
      }
    }
    return new double[] {inOnePass, inChunks};
  }

  /** The softmax forgets what is added to all logits of a byte: their mean is taken away. */
  private static INDArray logits(INDArray probabilities) {
    return centred(Transforms.log(probabilities.dup('c').reshape(-1, GatedFwaLM.BYTES)));
  }

  private static INDArray centred(INDArray logits) {
    return logits.subColumnVector(logits.mean(true, 1));
  }

  private static double error(INDArray actual, INDArray expected) {
    // A maximum would pass over what is no number.
    assertThat(actual.isNaN().any()).isFalse();
    return actual.sub(expected).amaxNumber().doubleValue();
  }

  @Test
  void aCachedFileIsUsedAgain() throws IOException {
    GatedFwaLM model = GatedFwaLM.builder().seed(2).build();
    ComputationGraph first = model.initPretrained();
    Path file = cached(Pretrained.TINY_JAVA);
    FileTime old = FileTime.fromMillis(1_000_000);
    Files.setLastModifiedTime(file, old);
    ComputationGraph second = model.initPretrained(Pretrained.TINY_JAVA);
    assertThat(Files.getLastModifiedTime(file)).isEqualTo(old);
    assertThat(second.params()).isEqualTo(first.params());
    assertThat(first.numParams()).isEqualTo(3_164_688);
  }

  @Test
  void severalThreadsMayBeTheFirst() throws Exception {
    int count = 4;
    CyclicBarrier together = new CyclicBarrier(count);
    ExecutorService threads = Executors.newFixedThreadPool(count);
    List<Future<ComputationGraph>> networks = new ArrayList<>();
    try {
      for (int i = 0; i < count; i++) {
        networks.add(
            threads.submit(
                () -> {
                  together.await();
                  return GatedFwaLM.builder().build().initPretrained(Pretrained.TINY_JAVA);
                }));
      }
      for (Future<ComputationGraph> network : networks) {
        assertThat(network.get().params()).isEqualTo(networks.get(0).get().params());
      }
    } finally {
      threads.shutdown();
    }
    try (Stream<Path> files = Files.list(cached(Pretrained.TINY_JAVA).getParent())) {
      assertThat(files).containsExactly(cached(Pretrained.TINY_JAVA));
    }
  }

  @Test
  void whatTheJarShipsIsSmall() throws IOException {
    long size = 0;
    Path weights = resource(Pretrained.TINY_JAVA.fileName()).getParent();
    try (Stream<Path> files = Files.list(weights)) {
      for (Path file : files.filter(f -> f.toString().endsWith(".safetensors")).toList()) {
        size += Files.size(file);
      }
    }
    assertThat(size).isBetween(1_000_000L, 32_000_000L);
  }

  @ParameterizedTest
  @EnumSource
  void thePretrainedModelsHaveTheDefaultsButForTheSize(Pretrained pretrained) throws IOException {
    GatedFwaLM model = GatedFwaLM.builder().size(pretrained.size()).build();
    assertThat(model.initPretrained().getConfiguration().toJson())
        .isEqualTo(model.init().getConfiguration().toJson())
        .isEqualTo(
            GatedFwaLM.builder().build().initPretrained(pretrained).getConfiguration().toJson());
  }

  @Test
  void otherOptionsThanTheTrainedOnesAreRefused() {
    GatedFwaLM other = GatedFwaLM.builder().nsaEvery(2).windowSize(128).gated(false).build();
    assertThatThrownBy(other::initPretrained)
        .isInstanceOf(UnsupportedOperationException.class)
        .hasMessageContaining("TINY_JAVA was trained otherwise")
        .hasMessageContaining("windowSize = 128, but 256 in the stored weights")
        .hasMessageContaining("gated = false, but true in the stored weights")
        .hasMessageContaining("nsaEvery = 2, but 0 in the stored weights");
    GatedFwaLM small = GatedFwaLM.builder().size(Size.SMALL).build();
    assertThatThrownBy(() -> small.initPretrained(Pretrained.TINY_JAVA))
        .isInstanceOf(UnsupportedOperationException.class)
        .hasMessageContaining("width = 384, but 256 in the stored weights")
        .hasMessageContaining("hiddenSize = 1152, but 640");
    GatedFwaLM tiny = GatedFwaLM.builder().size(Size.TINY).build();
    assertThatThrownBy(() -> tiny.initPretrained(Pretrained.SMALL_JAVA))
        .isInstanceOf(UnsupportedOperationException.class)
        .hasMessageContaining("blocks = 4, but 6 in the stored weights");
  }

  @ParameterizedTest
  @ValueSource(ints = {0, 1000, 6_334_791})
  void aBrokenFileIsNamedAndStaysAsItIs(int length) throws IOException {
    GatedFwaLM model = GatedFwaLM.builder().build();
    Path file = cached(Pretrained.TINY_JAVA);
    Files.createDirectories(file.getParent());
    Files.write(file, new byte[length]);
    assertThatThrownBy(() -> model.initPretrained(Pretrained.TINY_JAVA))
        .isInstanceOf(IOException.class)
        .hasMessageContaining(file.toString())
        .hasMessageContaining("SHA-256")
        .hasMessageContaining("delete it");
    assertThat(file).hasBinaryContent(new byte[length]);
  }

  @Test
  void otherSizesHaveNoWeights() {
    assertThatThrownBy(() -> GatedFwaLM.builder().width(64).build().initPretrained())
        .isInstanceOf(UnsupportedOperationException.class)
        .hasMessageContaining("width 64");
    assertThatThrownBy(
            () -> GatedFwaLM.builder().size(Size.TINY).build().initPretrained(PretrainedType.MNIST))
        .isInstanceOf(UnsupportedOperationException.class);
  }

  @ParameterizedTest
  @CsvSource({"width", "blocks", "heads", "hiddenSize", "windowSize", "context", "nsaEvery"})
  void aWrongSettingIsNamed(String setting) {
    GatedFwaLM.Builder builder = GatedFwaLM.builder();
    switch (setting) {
      case "width" -> builder.width(0);
      case "blocks" -> builder.blocks(0);
      case "heads" -> builder.heads(3);
      case "hiddenSize" -> builder.hiddenSize(0);
      case "windowSize" -> builder.windowSize(0);
      case "context" -> builder.context(0);
      default -> builder.nsaEvery(-1);
    }
    assertThatThrownBy(builder::build)
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("GatedFwaLM: " + setting + " = ");
  }

  private Path cached(Pretrained pretrained) {
    return folder.resolve("models").resolve("gatedfwalm").resolve(pretrained.fileName());
  }

  static Path resource(String name) {
    try {
      return Path.of(PretrainedTest.class.getResource(name).toURI());
    } catch (URISyntaxException e) {
      throw new AssertionError(name, e);
    }
  }
}
