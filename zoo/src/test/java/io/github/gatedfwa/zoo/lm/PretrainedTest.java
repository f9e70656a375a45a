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
import java.util.Locale;
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

/** The pretrained weights: they are PyTorch's model, and only the right file is taken. */
class PretrainedTest {
  private static final double TOLERANCE = 1e-3;

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
    assertAnswers(network, logits, "short");
    assertAnswers(network, logits, "broken-utf8");
    assertAnswers(network, logits, "long");
  }

  @Test
  void nativeSparseAttentionAnswersAsInPyTorch() throws IOException {
    ComputationGraph network =
        SafetensorsImporter.read(resource("random-nsa.safetensors"), GatedFwaLM.builder());
    assertAnswers(network, "logits-random-nsa", "short");
    assertAnswers(network, "logits-random-nsa", "long");
  }

  /** In one pass, in chunks, and byte by byte as far as beyond the window. */
  private static void assertAnswers(ComputationGraph network, String folder, String prompt)
      throws IOException {
    byte[] bytes = Files.readAllBytes(resource("prompts/" + prompt + ".txt"));
    INDArray expected =
        centred(Nd4j.createFromNpyFile(resource(folder + "/" + prompt + ".npy").toFile()));
    INDArray tokens = Nd4j.create(DataType.FLOAT, 1, 1, bytes.length + 1);
    for (int i = 0; i < bytes.length; i++) {
      tokens.putScalar(0, 0, i + 1, Byte.toUnsignedInt(bytes[i]));
    }
    assertClose(logits(network.outputSingle(tokens)), expected);
    for (int chunk : new int[] {1, 37}) {
      network.rnnClearPreviousState();
      int end = chunk == 1 ? Math.min(300, bytes.length + 1) : bytes.length + 1;
      for (int from = 0; from < end; from += chunk) {
        var time = NDArrayIndex.interval(from, Math.min(end, from + chunk));
        INDArray part = tokens.get(NDArrayIndex.all(), NDArrayIndex.all(), time);
        INDArray answer = logits(network.rnnTimeStep(part)[0]);
        assertClose(answer, expected.get(time, NDArrayIndex.all()));
      }
    }
  }

  /** The softmax forgets what is added to all logits of a byte: their mean is taken away. */
  private static INDArray logits(INDArray probabilities) {
    return centred(Transforms.log(probabilities.dup('c').reshape(-1, GatedFwaLM.BYTES)));
  }

  private static INDArray centred(INDArray logits) {
    return logits.subColumnVector(logits.mean(true, 1));
  }

  private static void assertClose(INDArray actual, INDArray expected) {
    assertThat(actual.sub(expected).amaxNumber().doubleValue()).isLessThan(TOLERANCE);
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
