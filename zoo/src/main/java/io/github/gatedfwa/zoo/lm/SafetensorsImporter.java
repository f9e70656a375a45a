package io.github.gatedfwa.zoo.lm;

import io.github.gatedfwa.zoo.io.WholeFile;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import org.deeplearning4j.nn.api.Layer;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.deeplearning4j.util.ModelSerializer;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * Brings a language model that {@code zoo/pretraining} trained in PyTorch into Deeplearning4j.
 *
 * <p>A parameter has the same name and shape on both sides: {@code Wq} of the vertex {@code
 * block0-attention} is the tensor {@code blocks.0.attention.Wq}. Tensors that are missing, too many
 * or of another shape are refused, all of them named. The file's metadata says how large the model
 * is. Windowed models only: what {@code train.py --variant full} writes, with a window of 0, is
 * refused.
 */
public final class SafetensorsImporter {
  /** Value of the metadata entry "format" in files that can be read. */
  static final String FORMAT = "gatedfwa-lm/1";

  /**
   * A model that is more times larger than its file is refused at once; others are made first, and
   * the tensors that do not fit named.
   */
  private static final double MOST_TIMES_LARGER = 8;

  private SafetensorsImporter() {}

  /**
   * Writes a model file for {@code ModelSerializer.restoreComputationGraph}.
   *
   * @param arguments the safetensors file and the file to write
   * @throws IOException as {@link #read}, or if the file cannot be written
   */
  public static void main(String[] arguments) throws IOException {
    if (arguments.length != 2) {
      throw new IllegalArgumentException("usage: SafetensorsImporter MODEL.safetensors MODEL.zip");
    }
    ComputationGraph network = read(Path.of(arguments[0]), GatedFwaLM.builder());
    WholeFile.write(
        Path.of(arguments[1]), stream -> ModelSerializer.writeModel(network, stream, false));
  }

  /**
   * Reads a model.
   *
   * @param file safetensors file of types F16 or F32
   * @param settings what the file does not say: updater, seed, context; the rest is the file's. It
   *     stays as it is
   * @throws IOException if the file cannot be read or does not hold such a model; it stays as it is
   */
  public static ComputationGraph read(Path file, GatedFwaLM.Builder settings) throws IOException {
    Safetensors content = Safetensors.read(file);
    ComputationGraph network = configure(file, content, settings).init();
    Map<String, INDArray> parameters = parameters(network);
    List<String> problems = new ArrayList<>();
    Set<String> missing = new TreeSet<>(parameters.keySet());
    missing.removeAll(content.tensors().keySet());
    missing.forEach(name -> problems.add(name + " is missing"));
    content
        .tensors()
        .forEach(
            (name, tensor) -> {
              INDArray parameter = parameters.get(name);
              if (parameter == null) {
                problems.add(name + " is no parameter of the model");
              } else if (!Arrays.equals(sides(parameter), sides(tensor))) {
                problems.add(
                    "%s has shape %s instead of %s"
                        .formatted(
                            name,
                            Arrays.toString(sides(tensor)),
                            Arrays.toString(sides(parameter))));
              }
            });
    if (!problems.isEmpty()) {
      throw new IOException(
          file + " does not fit the model: " + Safetensors.printable(String.join("; ", problems)));
    }
    parameters.forEach(
        (name, parameter) ->
            parameter.assign(content.tensors().get(name).reshape(parameter.shape())));
    return network;
  }

  private static GatedFwaLM configure(Path file, Safetensors content, GatedFwaLM.Builder settings)
      throws IOException {
    Map<String, String> metadata = content.metadata();
    if (!FORMAT.equals(metadata.get("format"))) {
      throw new IOException(
          "%s is not a language model of the zoo: its format is \"%s\", not \"%s\""
              .formatted(
                  file, Safetensors.printable(String.valueOf(metadata.get("format"))), FORMAT));
    }
    try {
      int width = number(metadata, "width");
      int blocks = number(metadata, "blocks");
      int hidden = number(metadata, "hidden");
      int window = number(metadata, "window");
      requireSizeOfFile(content, width, blocks, hidden);
      if (window == 0) {
        throw new IllegalArgumentException(
            "metadata \"window\" is 0, full attention; only windowed models can be read");
      }
      return new GatedFwaLM.Builder(settings)
          .width(width)
          .blocks(blocks)
          .heads(number(metadata, "heads"))
          .hiddenSize(hidden)
          .windowSize(window)
          .gated(number(metadata, "gated") == 1)
          .nsaEvery(number(metadata, "nsa_every"))
          .build();
    } catch (IllegalArgumentException e) {
      throw new IOException(file + ": " + Safetensors.printable(e.getMessage()), e);
    }
  }

  /**
   * Refuses a model that is far larger than the file: making it would take memory that the file's
   * metadata, which may say anything, asks for.
   */
  private static void requireSizeOfFile(Safetensors content, int width, int blocks, int hidden) {
    long numbers = content.tensors().values().stream().mapToLong(INDArray::length).sum();
    // As double: the metadata may have any numbers, whose products a long would not hold.
    double matrices =
        2.0 * GatedFwaLM.BYTES * width + blocks * (4.0 * width * width + 3.0 * width * hidden);
    if (blocks > content.tensors().size() || matrices > MOST_TIMES_LARGER * numbers) {
      throw new IllegalArgumentException(
          "metadata \"width\" is %d, \"blocks\" %d, \"hidden\" %d, which does not fit the file's %d tensors of %d numbers"
              .formatted(width, blocks, hidden, content.tensors().size(), numbers));
    }
  }

  private static int number(Map<String, String> metadata, String key) {
    try {
      return Integer.parseInt(metadata.getOrDefault(key, ""));
    } catch (NumberFormatException e) {
      throw new IllegalArgumentException(
          "metadata \"%s\" is \"%s\", not a number".formatted(key, metadata.get(key)), e);
    }
  }

  /** Views of all parameters under the names that they have in PyTorch. */
  private static Map<String, INDArray> parameters(ComputationGraph network) {
    Map<String, INDArray> parameters = new LinkedHashMap<>();
    for (Layer layer : network.getLayers()) {
      String module =
          layer
              .conf()
              .getLayer()
              .getLayerName()
              .replaceFirst("^block(\\d+)-", "blocks.$1.")
              .replace('-', '_');
      layer.paramTable().forEach((key, view) -> parameters.put(module + "." + key, view));
    }
    return parameters;
  }

  /** The shape without the leading 1 that Deeplearning4j gives to some vectors. */
  private static long[] sides(INDArray array) {
    long[] shape = array.shape();
    return shape.length == 2 && shape[0] == 1 ? new long[] {shape[1]} : shape;
  }
}
