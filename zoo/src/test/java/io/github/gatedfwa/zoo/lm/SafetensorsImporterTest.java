package io.github.gatedfwa.zoo.lm;

import static java.nio.charset.StandardCharsets.UTF_8;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.deeplearning4j.util.ModelSerializer;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.nd4j.linalg.factory.Nd4j;

class SafetensorsImporterTest {
  private static final Path MODEL = PretrainedTest.resource("random-nsa.safetensors");

  @TempDir Path folder;

  @Test
  void writesAModelFileThatDl4jReads() throws IOException {
    Path written = folder.resolve("model.zip");
    SafetensorsImporter.main(new String[] {MODEL.toString(), written.toString()});
    ComputationGraph read = ModelSerializer.restoreComputationGraph(written.toFile());
    ComputationGraph imported = SafetensorsImporter.read(MODEL, GatedFwaLM.builder());
    assertThat(read.params()).isEqualTo(imported.params());
    var bytes = Nd4j.createFromArray(0f, 112f, 117f, 98f).reshape(1, 1, 4);
    assertThat(read.outputSingle(bytes)).isEqualTo(imported.outputSingle(bytes));
  }

  @Test
  void readsSinglePrecision() throws IOException {
    String header =
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,1],\"data_offsets\":[0,8]},"
            + "\"b\":{\"dtype\":\"F16\",\"shape\":[3],\"data_offsets\":[8,14]}}";
    ByteBuffer data = ByteBuffer.allocate(14).order(ByteOrder.LITTLE_ENDIAN);
    data.putFloat(1.5f).putFloat(-2e-30f);
    data.putShort((short) 0x3c00).putShort((short) 0x8001).putShort((short) 0x7bff);
    Safetensors read = Safetensors.read(file(header, data.array()));
    assertThat(read.tensors().get("a").toFloatMatrix())
        .isDeepEqualTo(new float[][] {{1.5f}, {-2e-30f}});
    assertThat(read.tensors().get("b").toFloatVector()).containsExactly(1, -0x1p-24f, 65504);
  }

  /** The header is changed, not the data: sides are swapped or tensors renamed in place. */
  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "\"output.b\" | \"output.c\" | output.b is missing; output.c is no parameter of the model",
        "[32,48] | [48,32] | blocks.0.ffn.W1 has shape [48, 32] instead of [32, 48]",
        "\"width\":\"32\" | \"width\":\"64\" | blocks.0.attention.Wq has shape [32, 32] instead of",
        "\"blocks\":\"2\" | \"blocks\":\"1\" | blocks.1.attention.Wq is no parameter",
        "\"blocks\":\"2\" | \"blocks\":\"x\" | metadata \"blocks\" is \"x\", not a number",
        "\"blocks\":\"2\" | \"blocks\":\"2000000000\" | \"blocks\" 2000000000, \"hidden\" 48, which does not fit",
        "\"blocks\":\"2\" | \"blocks\":\"-2\" | GatedFwaLM: blocks = -2: must be at least 1",
        "\"width\":\"32\" | \"width\":\"2000000000\" | metadata \"width\" is 2000000000, \"blocks\" 2,",
        "\"hidden\":\"48\" | \"hidden\":\"2000000000\" | \"hidden\" 2000000000, which does not fit",
        "\"window\":\"48\" | \"window\":\"0\" | metadata \"window\" is 0, full attention; only windowed",
        "[32,48] | [0,48] | has shape [0,48]; expected at most 32 sides, each at least 1",
        "[32,48] | [-1,0] | has shape [-1,0]; expected",
        "[32,48] | [4611686018427387904,4] | has shape [4611686018427387904,4]; expected",
        "[32,48] | [32,48.0] | has shape [32,48.0]; expected",
        "[32,48] | \"32\" | has shape \"32\"; expected",
        "gatedfwa-lm/1 | gatedfwa-lm/2 | its format is \"gatedfwa-lm/2\"",
        "\"F16\" | \"I16\" | is I16; F16 and F32 can be read",
        "\"data_offsets\":[0, | \"data_offsets\":[1, | lies at bytes 1 to",
        "{ | [ | the header is not JSON",
      })
  void aFileThatDoesNotFitIsRefused(String from, String to, String message) throws IOException {
    byte[] whole = Files.readAllBytes(MODEL);
    int length = (int) ByteBuffer.wrap(whole).order(ByteOrder.LITTLE_ENDIAN).getLong();
    String header = new String(whole, 8, length, UTF_8);
    assertThat(header).contains(from);
    byte[] data = Arrays.copyOfRange(whole, 8 + length, whole.length);
    Path changed = file(header.replace(from, to), data);
    byte[] before = Files.readAllBytes(changed);
    assertThatThrownBy(() -> SafetensorsImporter.read(changed, GatedFwaLM.builder()))
        .isInstanceOf(IOException.class)
        .hasMessageContaining(changed.toString())
        .hasMessageContaining(message);
    assertThat(changed).hasBinaryContent(before);
  }

  @Test
  void aHeaderThatAsksForMuchStackOrMemoryIsRefused() throws IOException {
    String deep = "[".repeat(10_000) + "]".repeat(10_000);
    Path nested =
        file(
            "{\"a\":{\"dtype\":\"F16\",\"shape\":%s,\"data_offsets\":[0,2]}}".formatted(deep),
            new byte[2]);
    assertThatThrownBy(() -> Safetensors.read(nested))
        .isInstanceOf(IOException.class)
        .hasMessageContaining("the header is nested more than 3 deep");
    Path large = file("{" + " ".repeat(1 << 20) + "}", new byte[0]);
    assertThatThrownBy(() -> Safetensors.read(large))
        .isInstanceOf(IOException.class)
        .hasMessageContaining("no header of a length that")
        .hasMessageContaining("at most 1048576 bytes");
  }

  /** A terminal takes what follows the character 27 for a command. */
  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "\"F16\" | \"\\u001bF\" | is \ufffdF;",
        "\"output.b\" | \"output\\u001b\\u009b\" | output\ufffd\ufffd is no parameter",
        "gatedfwa-lm/1 | \\u001b | its format is \"\ufffd\"",
        "\"blocks\":\"2\" | \"blocks\":\"\\u001b\" | metadata \"blocks\" is \"\ufffd\"",
      })
  void whatAMessageQuotesDoesNotSteerATerminal(String from, String to, String message)
      throws IOException {
    aFileThatDoesNotFitIsRefused(from, to, message);
  }

  @Test
  void tensorsThatShareBytesAreRefused() throws IOException {
    String header =
        IntStream.range(0, 3)
            .mapToObj(
                i -> "\"%d\":{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[0,8]}".formatted(i))
            .collect(Collectors.joining(",", "{", "}"));
    Path shared = file(header, new byte[16]);
    assertThatThrownBy(() -> Safetensors.read(shared))
        .isInstanceOf(IOException.class)
        .hasMessageContaining("tensor \"2\" shares bytes with others");
  }

  @Test
  void theSettingsStayAsTheyAre() throws IOException {
    GatedFwaLM.Builder settings = GatedFwaLM.builder().context(77);
    String before = settings.build().conf().toJson();
    ComputationGraph read = SafetensorsImporter.read(MODEL, settings);
    assertThat(settings.build().conf().toJson()).isEqualTo(before);
    assertThat(read.getLayer("output").conf().getLayer().getGradientNormalizationThreshold())
        .isEqualTo(77);
  }

  @Test
  void aFileThatIsCutIsRefused() throws IOException {
    byte[] whole = Files.readAllBytes(MODEL);
    for (int length : new int[] {0, 7, 8, 100, whole.length - 1}) {
      Path cut = Files.write(folder.resolve("cut"), Arrays.copyOf(whole, length));
      assertThatThrownBy(() -> SafetensorsImporter.read(cut, GatedFwaLM.builder()))
          .isInstanceOf(IOException.class)
          .hasMessageContaining(cut + " is not a safetensors file as expected");
    }
  }

  private Path file(String header, byte[] data) throws IOException {
    byte[] json = header.getBytes(UTF_8);
    ByteBuffer all =
        ByteBuffer.allocate(8 + json.length + data.length).order(ByteOrder.LITTLE_ENDIAN);
    all.putLong(json.length).put(json).put(data);
    return Files.write(folder.resolve("file.safetensors"), all.array());
  }
}
