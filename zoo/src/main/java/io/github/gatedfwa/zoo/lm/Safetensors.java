package io.github.gatedfwa.zoo.lm;

import static java.nio.charset.StandardCharsets.UTF_8;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.channels.FileChannel.MapMode;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.stream.StreamSupport;
import org.bytedeco.javacpp.indexer.HalfIndexer;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.shade.jackson.core.JsonParser;
import org.nd4j.shade.jackson.core.JsonProcessingException;
import org.nd4j.shade.jackson.core.JsonToken;
import org.nd4j.shade.jackson.databind.JsonNode;
import org.nd4j.shade.jackson.databind.ObjectMapper;

/**
 * The tensors of a safetensors file: 8 bytes with the length of a header in little-endian order,
 * the header in JSON (for each tensor its type, shape and place), and the numbers.
 *
 * @param metadata the header's text entries
 * @param tensors FLOAT arrays by name, of types F16 and F32 in the file
 */
record Safetensors(Map<String, String> metadata, Map<String, INDArray> tensors) {
  private static final int LENGTH_BYTES = 8;

  /** That of {@code SMALL_JAVA} has 8 kB. */
  private static final long LONGEST_HEADER = 1 << 20;

  /** The header, a tensor, its shape. */
  private static final int DEEPEST = 3;

  private static final int MOST_SIDES = 32; // ND4J has no arrays of more

  /**
   * Reads a file. Nothing in it is trusted: every length and place is checked before it is used,
   * and tensors must not share bytes: a small file cannot ask for much memory.
   *
   * @throws IOException if the file cannot be read or is not a safetensors file of F16 and F32
   */
  static Safetensors read(Path file) throws IOException {
    ByteBuffer bytes;
    try (FileChannel channel = FileChannel.open(file)) {
      if (channel.size() > Integer.MAX_VALUE) {
        throw broken(file, "it has " + channel.size() + " bytes; at most 2 GiB can be read", null);
      }
      bytes = channel.map(MapMode.READ_ONLY, 0, channel.size()).order(ByteOrder.LITTLE_ENDIAN);
    }
    long length = bytes.remaining() < LENGTH_BYTES ? -1 : bytes.getLong(0);
    if (length < 0 || length > LONGEST_HEADER || length > bytes.remaining() - LENGTH_BYTES) {
      throw broken(
          file,
          "no header of a length that fits the file and is at most " + LONGEST_HEADER + " bytes",
          null);
    }
    byte[] json = new byte[(int) length];
    bytes.get(LENGTH_BYTES, json);
    JsonNode header = header(file, new String(json, UTF_8));
    if (header == null || !header.isObject()) {
      throw broken(file, "the header is not a JSON object", null);
    }
    Map<String, String> metadata = new LinkedHashMap<>();
    header
        .path("__metadata__")
        .fields()
        .forEachRemaining(entry -> metadata.put(entry.getKey(), entry.getValue().asText()));
    ByteBuffer data =
        bytes.slice(LENGTH_BYTES + json.length, bytes.limit() - LENGTH_BYTES - json.length);
    Map<String, INDArray> tensors = new LinkedHashMap<>();
    long used = 0;
    for (var fields = header.fields(); fields.hasNext(); ) {
      Map.Entry<String, JsonNode> entry = fields.next();
      if (!entry.getKey().equals("__metadata__")) {
        tensors.put(entry.getKey(), tensor(file, entry.getKey(), entry.getValue(), data));
        JsonNode place = entry.getValue().path("data_offsets");
        used += place.path(1).asLong() - place.path(0).asLong();
        if (used > data.limit()) {
          throw broken(file, "tensor \"" + entry.getKey() + "\" shares bytes with others", null);
        }
      }
    }
    return new Safetensors(metadata, tensors);
  }

  /** Checks the depth before it makes a tree: much of what works on trees is recursive. */
  private static JsonNode header(Path file, String json) throws IOException {
    ObjectMapper mapper = new ObjectMapper();
    try (JsonParser parser = mapper.createParser(json)) {
      int depth = 0;
      for (JsonToken next = parser.nextToken(); next != null; next = parser.nextToken()) {
        depth += next.isStructStart() ? 1 : next.isStructEnd() ? -1 : 0;
        if (depth > DEEPEST) {
          throw broken(file, "the header is nested more than " + DEEPEST + " deep", null);
        }
      }
      return mapper.readTree(json);
    } catch (JsonProcessingException e) {
      throw broken(file, "the header is not JSON", e);
    }
  }

  private static INDArray tensor(Path file, String name, JsonNode entry, ByteBuffer data)
      throws IOException {
    String type = entry.path("dtype").asText();
    int size =
        switch (type) {
          case "F16" -> Short.BYTES;
          case "F32" -> Float.BYTES;
          default ->
              throw broken(
                  file, "tensor \"" + name + "\" is " + type + "; F16 and F32 can be read", null);
        };
    JsonNode sides = entry.path("shape");
    long count = 1;
    boolean fits = sides.isArray() && sides.size() <= MOST_SIDES;
    for (JsonNode side : sides) {
      fits &= side.isIntegralNumber() && side.canConvertToLong() && side.asLong() > 0;
      // Divided, not multiplied: a product might overflow.
      fits = fits && side.asLong() <= data.limit() / size / count;
      count *= fits ? side.asLong() : 1;
    }
    if (!fits) {
      throw broken(
          file,
          "tensor \"%s\" has shape %s; expected at most %d sides, each at least 1, for no more than the %d bytes of data"
              .formatted(name, sides, MOST_SIDES, data.limit()),
          null);
    }
    long[] shape =
        StreamSupport.stream(sides.spliterator(), false).mapToLong(JsonNode::asLong).toArray();
    JsonNode place = entry.path("data_offsets");
    long from = place.path(0).asLong(-1);
    long to = place.path(1).asLong(-1);
    if (from < 0 || to > data.limit() || to - from != count * size) {
      throw broken(
          file,
          "tensor \"%s\" of %s %s lies at bytes %d to %d of %d"
              .formatted(name, type, Arrays.toString(shape), from, to, data.limit()),
          null);
    }
    ByteBuffer part = data.slice((int) from, (int) (to - from)).order(ByteOrder.LITTLE_ENDIAN);
    float[] values = new float[(int) count];
    for (int i = 0; i < values.length; i++) {
      values[i] =
          size == Float.BYTES ? part.getFloat() : HalfIndexer.toFloat(part.getShort() & 0xffff);
    }
    return Nd4j.createFromArray(values).reshape(shape);
  }

  private static IOException broken(Path file, String problem, Exception cause) {
    return new IOException(
        file + " is not a safetensors file as expected: " + printable(problem), cause);
  }

  /** A message that quotes a file; what would steer a terminal becomes U+FFFD. */
  static String printable(String message) {
    return message.replaceAll("\\p{Cntrl}|[\\x80-\\x9f]", "\ufffd");
  }
}
