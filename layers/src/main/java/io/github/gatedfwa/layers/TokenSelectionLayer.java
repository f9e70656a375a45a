package io.github.gatedfwa.layers;

import io.github.gatedfwa.layers.params.TokenSelectionParamInitializer;
import io.github.gatedfwa.layers.runtime.TokenSelection;
import java.util.Map;
import org.deeplearning4j.exception.DL4JInvalidConfigException;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.nd4j.linalg.api.buffer.DataType;

/**
 * The selection branch of native sparse attention (arXiv 2502.11089, section 3.3.2) as a DL4J layer
 * of its own: causal multi-head attention to the tokens of a few blocks that each token chooses.
 *
 * <p>Formats and types are those of {@link AttentionLayer}. The layer computes
 *
 * <ol>
 *   <li>queries, keys and values by linear projections, with biases if {@link Builder#hasBias};
 *   <li>compressed keys: the mean of the keys of each {@link Builder#blockLength l} tokens, every
 *       {@link Builder#stride d} tokens, turned and normalised as those of a {@link
 *       TokenCompressionLayer};
 *   <li>rotary position embedding of queries and keys, if {@link Builder#ropeBase} is set, and
 *       their root-mean-square normalisation per head, if {@link Builder#qkNorm};
 *   <li>for each token and key/value head the choice of {@link Builder#topN} selection blocks of
 *       {@link Builder#selectionBlock l′} tokens: the first, the token's own and the one before it,
 *       and of the others those to which attention to the compressed keys gives the most weight.
 *       The choice has no gradient, so that compression has no weights here;
 *   <li>softmax attention of each token to the tokens of its chosen blocks, itself included, none
 *       after it;
 *   <li>the output projection of the concatenated heads, with a bias if {@link Builder#hasBias}.
 * </ol>
 *
 * <p>A feature mask [minibatch, time] marks padding with 0: padded tokens are never attended to,
 * make no block important and give zeros. Blocks are counted from the first step: padding on the
 * left that is no multiple of l′ cuts the tokens into other blocks.
 *
 * <p>{@code rnnTimeStep} accepts one token or chunks of any size. It keeps all keys and values, and
 * what a {@link TokenCompressionLayer} keeps. Truncated BPTT carries them from segment to segment;
 * no gradient crosses the border.
 */
public class TokenSelectionLayer extends AttentionLayer {
  private static final long serialVersionUID = 1L;

  // Names are part of the JSON format of saved networks.
  private int blockLength;
  private int stride;
  private int selectionBlock;
  private int topN;

  /** For deserialisation. */
  private TokenSelectionLayer() {}

  private TokenSelectionLayer(Builder builder) {
    super(builder);
    blockLength = builder.blockLength;
    stride = builder.stride;
    selectionBlock = builder.selectionBlock;
    topN = builder.topN;
    complete(builder);
  }

  /** Starts a configuration. */
  public static Builder builder() {
    return new Builder();
  }

  @Override
  public void validateOptions() {
    super.validateOptions();
    checkBlocks(blockLength, stride);
    checkSelection(blockLength, selectionBlock, topN);
  }

  @Override
  TokenSelection newRuntimeLayer(NeuralNetConfiguration conf, DataType dataType) {
    return new TokenSelection(conf, dataType);
  }

  @Override
  public TokenSelectionParamInitializer initializer() {
    return TokenSelectionParamInitializer.INSTANCE;
  }

  @Override
  long workingSizePerToken() {
    return 2 * queryWidth()
        + 2 * keyWidth() / stride
        + 3L * getNHeads()
        + (long) getNKvHeads() * topN;
  }

  /** Number of tokens whose keys are averaged. */
  public int getBlockLength() {
    return blockLength;
  }

  public void setBlockLength(int blockLength) {
    this.blockLength = blockLength;
  }

  /** Number of tokens from the start of a compressed block to that of the next. */
  public int getStride() {
    return stride;
  }

  public void setStride(int stride) {
    this.stride = stride;
  }

  /** Number of tokens in a selection block. */
  public int getSelectionBlock() {
    return selectionBlock;
  }

  public void setSelectionBlock(int selectionBlock) {
    this.selectionBlock = selectionBlock;
  }

  /** Number of selection blocks that a token attends to. */
  public int getTopN() {
    return topN;
  }

  public void setTopN(int topN) {
    this.topN = topN;
  }

  @Override
  Map<String, Object> options() {
    Map<String, Object> options = super.options();
    options.put("blockLength", blockLength);
    options.put("stride", stride);
    options.put("selectionBlock", selectionBlock);
    options.put("topN", topN);
    return options;
  }

  @Override
  public TokenSelectionLayer clone() {
    return (TokenSelectionLayer) super.clone();
  }

  /** Builder of {@link TokenSelectionLayer}. */
  @SuppressWarnings("unchecked") // build(), as DL4J declares it
  public static class Builder extends AttentionLayer.Builder<Builder> {
    private int blockLength = 32;
    private int stride = 16;
    private int selectionBlock = 64;
    private int topN = 16;

    /** Number of tokens whose keys are averaged, l. Default: 32. */
    public Builder blockLength(int blockLength) {
      this.blockLength = blockLength;
      return this;
    }

    /** Number of tokens between the starts of two averages, d: a divisor of l. Default: 16. */
    public Builder stride(int stride) {
      this.stride = stride;
      return this;
    }

    /** Number of tokens in a selection block, l′: a multiple of l. Default: 64. */
    public Builder selectionBlock(int selectionBlock) {
      this.selectionBlock = selectionBlock;
      return this;
    }

    /** Number of selection blocks that a token attends to, at least 3. Default: 16. */
    public Builder topN(int topN) {
      this.topN = topN;
      return this;
    }

    /**
     * {@inheritDoc}
     *
     * @throws DL4JInvalidConfigException if an option is not allowed
     */
    @Override
    public TokenSelectionLayer build() {
      checkInherited("TokenSelectionLayer");
      return new TokenSelectionLayer(this);
    }
  }
}
