package io.github.gatedfwa.layers.params;

import io.github.gatedfwa.layers.AttentionLayer;
import io.github.gatedfwa.layers.Compression;
import java.util.Map;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * The weights of {@link Compression#MLP}, those of keys (x = k) and of values (x = v). Hkv key and
 * value heads of size D, blocks of l tokens.
 *
 * <table>
 * <caption>Names, shapes and start values; the heads' parts follow one another along the first axis
 * </caption>
 * <tr><td>PxMlp, positions in the block</td><td>[Hkv·l, D]</td><td>N(0, 0.02²)</td></tr>
 * <tr><td>W1xMlp</td><td>[Hkv·l·D, hidden]</td><td>weightInit, fan-in l·D</td></tr>
 * <tr><td>b1xMlp</td><td>[Hkv·hidden]</td><td>biasInit</td></tr>
 * <tr><td>W2xMlp</td><td>[Hkv·hidden, D]</td><td>weightInit, fan-in hidden</td></tr>
 * <tr><td>b2xMlp</td><td>[Hkv·D]</td><td>biasInit</td></tr>
 * </table>
 *
 * <p>The positions are neither weights nor biases: they are not regularised.
 */
public record CompressionMlp(long heads, long blockLength, long size, long hidden) {
  private static final String SUFFIX = "Mlp";

  /** Keys or values. */
  public enum Of {
    KEYS("k"),
    VALUES("v");

    private final String infix;

    Of(String infix) {
      this.infix = infix;
    }

    /** Name of the embedding of positions. */
    public String position() {
      return "P" + infix + SUFFIX;
    }

    /** Name of the hidden layer's weights. */
    public String hiddenWeight() {
      return "W1" + infix + SUFFIX;
    }

    /** Name of the hidden layer's biases. */
    public String hiddenBias() {
      return "b1" + infix + SUFFIX;
    }

    /** Name of the output's weights. */
    public String outputWeight() {
      return "W2" + infix + SUFFIX;
    }

    /** Name of the output's biases. */
    public String outputBias() {
      return "b2" + infix + SUFFIX;
    }
  }

  /** The MLPs of a layer; null for {@link Compression#MEAN}. */
  static CompressionMlp of(
      AttentionLayer conf, Compression compression, int blockLength, int hidden) {
    return compression == Compression.MEAN
        ? null
        : new CompressionMlp(
            conf.getNKvHeads(),
            blockLength,
            conf.getHeadSize(),
            hidden == 0 ? conf.getHeadSize() : hidden);
  }

  static boolean isParam(String key) {
    return key.endsWith(SUFFIX);
  }

  void addTo(Map<String, long[]> layout) {
    for (Of of : Of.values()) {
      layout.put(of.position(), new long[] {heads * blockLength, size});
      layout.put(of.hiddenWeight(), new long[] {heads * blockLength * size, hidden});
      layout.put(of.outputWeight(), new long[] {heads * hidden, size});
    }
    for (Of of : Of.values()) {
      layout.put(of.hiddenBias(), new long[] {heads * hidden});
      layout.put(of.outputBias(), new long[] {heads * size});
    }
  }

  void fill(AttentionLayer conf, String key, long[] shape, INDArray view) {
    if (key.startsWith("P")) {
      AttentionParamInitializer.SMALL.init((double) size, (double) size, shape, 'f', view);
    } else if (key.startsWith("W")) {
      double fanIn = (double) shape[0] / heads;
      conf.getWeightInitFn().init(fanIn, (double) shape[1], shape, 'f', view);
    } else {
      view.assign(conf.getBiasInit());
    }
  }
}
