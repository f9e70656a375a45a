package io.github.gatedfwa.layers;

import org.deeplearning4j.exception.DL4JInvalidConfigException;
import org.deeplearning4j.nn.conf.ComputationGraphConfiguration.GraphBuilder;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.conf.graph.ElementWiseVertex;
import org.deeplearning4j.nn.conf.layers.BaseRecurrentLayer;
import org.deeplearning4j.nn.conf.layers.FeedForwardLayer;

/**
 * A pre-norm decoder block for a ComputationGraph:
 *
 * <pre>
 *   a = x + attention(norm(x))
 *   y = a + feedForward(norm(a))
 * </pre>
 *
 * with {@link RMSNormLayer} norms and a {@link SwiGLULayer}. One block object can be added any
 * number of times; every addition has parameters of its own:
 *
 * <pre>
 *   DecoderBlock block = DecoderBlock.builder()
 *       .nModel(256).attention(GatedFWALayer.builder().nHeads(4).build()).build();
 *   String last = "embedding";
 *   for (int i = 0; i &lt; 6; i++) {
 *     last = block.addTo(graph, "block" + i, last);
 *   }
 * </pre>
 *
 * Data may be in either RNN format, that of the attention layer unless the network's input type
 * says otherwise; NWC is the faster one, since residual sums lie in memory as the layers need them.
 */
public final class DecoderBlock {
  private final int nModel;
  private final FeedForwardLayer attention;
  private final RNNFormat format;
  private final int hiddenSize;
  private final boolean hasBias;
  private final double normEps;

  private DecoderBlock(Builder builder) {
    nModel = builder.nModel;
    hiddenSize = builder.hiddenSize == 0 ? defaultHiddenSize(nModel) : builder.hiddenSize;
    hasBias = builder.hasBias;
    normEps = builder.normEps;
    check(nModel > 0, "nModel = " + nModel + ": must be at least 1");
    check(builder.attention != null, "attention is not set");
    check(hiddenSize > 0, "hiddenSize = " + hiddenSize + ": must be at least 1");
    check(normEps > 0 && Double.isFinite(normEps), "normEps = " + normEps + ": must be above 0");
    attention = (FeedForwardLayer) builder.attention.clone();
    if (attention.getNIn() == 0) {
      attention.setNIn(nModel);
    }
    if (attention.getNOut() == 0) {
      attention.setNOut(nModel);
    }
    check(
        attention.getNIn() == nModel && attention.getNOut() == nModel,
        "attention has nIn = "
            + attention.getNIn()
            + ", nOut = "
            + attention.getNOut()
            + ": both must be nModel ("
            + nModel
            + ") for the residual sums");
    format =
        attention instanceof BaseRecurrentLayer recurrent && recurrent.getRnnDataFormat() != null
            ? recurrent.getRnnDataFormat()
            : RNNFormat.NCW;
  }

  /** 8/3 of the model size, rounded up to a multiple of 32. */
  private static int defaultHiddenSize(int nModel) {
    return (nModel * 8 / 3 + 31) / 32 * 32;
  }

  private static void check(boolean condition, String problem) {
    if (!condition) {
      throw new DL4JInvalidConfigException("DecoderBlock: " + problem);
    }
  }

  /** Starts a block. */
  public static Builder builder() {
    return new Builder();
  }

  /**
   * Adds the vertices {@code name-attention-norm}, {@code name-attention}, {@code
   * name-attention-residual}, {@code name-ffn-norm}, {@code name-ffn} and {@code
   * name-ffn-residual}.
   *
   * @param graph configuration to add to
   * @param name prefix of the vertices' names
   * @param input vertex with RNN data of size nModel
   * @return name of the output vertex, of the same size
   */
  public String addTo(GraphBuilder graph, String name, String input) {
    String afterAttention = name + "-attention-residual";
    String output = name + "-ffn-residual";
    graph
        .addLayer(name + "-attention-norm", norm(), input)
        .addLayer(name + "-attention", attention.clone(), name + "-attention-norm")
        .addVertex(
            afterAttention,
            new ElementWiseVertex(ElementWiseVertex.Op.Add),
            input,
            name + "-attention")
        .addLayer(name + "-ffn-norm", norm(), afterAttention)
        .addLayer(
            name + "-ffn",
            SwiGLULayer.builder()
                .nIn(nModel)
                .nOut(nModel)
                .hiddenSize(hiddenSize)
                .hasBias(hasBias)
                .dataFormat(format)
                .build(),
            name + "-ffn-norm")
        .addVertex(
            output, new ElementWiseVertex(ElementWiseVertex.Op.Add), afterAttention, name + "-ffn");
    return output;
  }

  private RMSNormLayer norm() {
    return RMSNormLayer.builder().nIn(nModel).eps(normEps).dataFormat(format).build();
  }

  /** Builder of {@link DecoderBlock}. */
  public static final class Builder {
    private int nModel;
    private FeedForwardLayer attention;
    private int hiddenSize;
    private boolean hasBias;
    private double normEps = 1e-6;

    private Builder() {}

    /** Size of the data between the blocks. */
    public Builder nModel(int nModel) {
      this.nModel = nModel;
      return this;
    }

    /**
     * Attention layer: its nIn and nOut are nModel, or unset and become nModel; its data format is
     * that of the block.
     */
    public Builder attention(FeedForwardLayer attention) {
      this.attention = attention;
      return this;
    }

    /** Hidden size of the feed-forward layer. Default: 8/3 of nModel, up to a multiple of 32. */
    public Builder hiddenSize(int hiddenSize) {
      this.hiddenSize = hiddenSize;
      return this;
    }

    /** Whether the feed-forward layer has biases. Default: false. */
    public Builder hasBias(boolean hasBias) {
      this.hasBias = hasBias;
      return this;
    }

    /** Epsilon of the norms. Default: 1e-6. */
    public Builder normEps(double normEps) {
      this.normEps = normEps;
      return this;
    }

    /**
     * The block.
     *
     * @throws DL4JInvalidConfigException if a setting is missing or not allowed
     */
    public DecoderBlock build() {
      return new DecoderBlock(this);
    }
  }
}
