package io.github.gatedfwa.samediff;

import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.stream.LongStream;
import java.util.stream.Stream;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.shade.jackson.databind.JsonNode;
import org.nd4j.shade.jackson.databind.ObjectMapper;

/** A directory of {@code case.json} and arrays of float64 or int64 in C order. */
final class Golden {

  final JsonNode json;
  private final String directory;

  Golden(String name) throws IOException {
    directory = "/golden/" + name + "/";
    try (InputStream in = Golden.class.getResourceAsStream(directory + "case.json")) {
      json = new ObjectMapper().readTree(in);
    }
  }

  boolean has(String array) {
    return json.get("arrays").has(array);
  }

  INDArray array(String name) throws IOException {
    ByteBuffer content = content(name);
    double[] values = new double[content.remaining() / Double.BYTES];
    content.asDoubleBuffer().get(values);
    return Nd4j.createFromArray(values).reshape(shape(name));
  }

  /** An array of int64 as one of INT. */
  INDArray integers(String name) throws IOException {
    ByteBuffer content = content(name);
    long[] values = new long[content.remaining() / Long.BYTES];
    content.asLongBuffer().get(values);
    int[] narrow = LongStream.of(values).mapToInt(Math::toIntExact).toArray();
    return Nd4j.createFromArray(narrow).reshape(shape(name));
  }

  private long[] shape(String name) throws IOException {
    return Stream.of(new ObjectMapper().treeToValue(json.get("arrays").get(name), Long[].class))
        .mapToLong(Long::longValue)
        .toArray();
  }

  private ByteBuffer content(String name) throws IOException {
    try (InputStream in = Golden.class.getResourceAsStream(directory + name + ".npy")) {
      ByteBuffer file = ByteBuffer.wrap(in.readAllBytes()).order(ByteOrder.LITTLE_ENDIAN);
      file.position(10 + file.getShort(8));
      return file.slice().order(ByteOrder.LITTLE_ENDIAN);
    }
  }
}
