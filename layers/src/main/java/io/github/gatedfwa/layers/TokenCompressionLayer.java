package io.github.gatedfwa.layers;

import io.github.gatedfwa.layers.params.TokenCompressionParamInitializer;
import io.github.gatedfwa.layers.runtime.TokenCompression;
import java.util.Map;
import org.deeplearning4j.exception.DL4JInvalidConfigException;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.nd4j.linalg.api.buffer.DataType;

/**
 * The compression branch of native sparse attention (arXiv 2502.11089, section 3.3.1) as a DL4J
 * layer of its own: causal multi-head attention to blocks of tokens instead of tokens.
 *
 * <p>Formats and types are those of {@link AttentionLayer}. The layer computes
 *
 * <ol>
 *   <li>queries, keys and values by linear projections, with biases if {@link Builder#hasBias};
 *   <li>one key and one value for each block of {@link Builder#blockLength l} tokens, a block every
 *       {@link Builder#stride d} tokens, by {@link Builder#compression};
 *   <li>rotary position embedding, if {@link Builder#ropeBase} is set: queries turn by their
 *       position, compressed keys by that of their block's first token;
 *   <li>root-mean-square normalisation of queries and compressed keys per head, without weights, if
 *       {@link Builder#qkNorm};
 *   <li>softmax attention of each token to the blocks that are complete at that token: block c from
 *       token c·d + l - 1 on. A token without one, as the first l - 1 are, gets zeros;
 *   <li>the output projection of the concatenated heads, with a bias if {@link Builder#hasBias}.
 * </ol>
 *
 * <p>A feature mask [minibatch, time] marks padding with 0: a block with a padded token in it is
 * never attended to, and padded tokens give zeros. Blocks are counted from the first step: padding
 * on the left that is no multiple of the stride cuts the tokens into other blocks.
 *
 * <p>{@code rnnTimeStep} accepts one token or chunks of any size. It keeps all compressed keys and
 * values, time/d of each, and the tokens of the blocks that are not complete. Truncated BPTT
 * carries them from segment to segment; no gradient crosses the border.
 */
public class TokenCompressionLayer extends AttentionLayer {
  private static final long serialVersionUID = 1L;

  // Names are part of the JSON format of saved networks.
  private int blockLength;
  private int stride;
  private Compression compression;
  private int compressionHiddenSize;

  /** For deserialisation. */
  private TokenCompressionLayer() {}

  private TokenCompressionLayer(Builder builder) {
    super(builder);
    blockLength = builder.blockLength;
    stride = builder.stride;
    compression = builder.compression;
    compressionHiddenSize = builder.compressionHiddenSize;
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
    checkCompression(compression, compressionHiddenSize);
  }

  @Override
  TokenCompression newRuntimeLayer(NeuralNetConfiguration conf, DataType dataType) {
    return new TokenCompression(conf, dataType);
  }

  @Override
  public TokenCompressionParamInitializer initializer() {
    return TokenCompressionParamInitializer.INSTANCE;
  }

  @Override
  long workingSizePerToken() {
    return queryWidth() + 2 * keyWidth() / stride + 2L * getNHeads();
  }

  /** Number of tokens in a block. */
  public int getBlockLength() {
    return blockLength;
  }

  public void setBlockLength(int blockLength) {
    this.blockLength = blockLength;
  }

  /** Number of tokens from the start of a block to that of the next. */
  public int getStride() {
    return stride;
  }

  public void setStride(int stride) {
    this.stride = stride;
  }

  /** How a block becomes one key and one value. */
  public Compression getCompression() {
    return compression;
  }

  public void setCompression(Compression compression) {
    this.compression = compression;
  }

  /** Hidden size of the compression's MLPs; 0 for the head size. */
  public int getCompressionHiddenSize() {
    return compressionHiddenSize;
  }

  public void setCompressionHiddenSize(int compressionHiddenSize) {
    this.compressionHiddenSize = compressionHiddenSize;
  }

  @Override
  Map<String, Object> options() {
    Map<String, Object> options = super.options();
    options.put("blockLength", blockLength);
    options.put("stride", stride);
    options.put("compression", compression);
    options.put("compressionHiddenSize", compressionHiddenSize);
    return options;
  }

  @Override
  public TokenCompressionLayer clone() {
    return (TokenCompressionLayer) super.clone();
  }

  /** Builder of {@link TokenCompressionLayer}. */
  @SuppressWarnings("unchecked") // build(), as DL4J declares it
  public static class Builder extends AttentionLayer.Builder<Builder> {
    private int blockLength = 32;
    private int stride = 16;
    private Compression compression = Compression.MEAN;
    private int compressionHiddenSize;

    /** Number of tokens in a block, l. Default: 32. */
    public Builder blockLength(int blockLength) {
      this.blockLength = blockLength;
      return this;
    }

    /** Number of tokens between the starts of two blocks, d: a divisor of l. Default: 16. */
    public Builder stride(int stride) {
      this.stride = stride;
      return this;
    }

    /** How a block becomes one key and one value. Default: MEAN. */
    public Builder compression(Compression compression) {
      this.compression = compression;
      return this;
    }

    /** Hidden size of the MLPs of {@link Compression#MLP}. Default: the head size. */
    public Builder compressionHiddenSize(int compressionHiddenSize) {
      this.compressionHiddenSize = compressionHiddenSize;
      return this;
    }

    /**
     * {@inheritDoc}
     *
     * @throws DL4JInvalidConfigException if an option is not allowed
     */
    @Override
    public TokenCompressionLayer build() {
      checkInherited("TokenCompressionLayer");
      return new TokenCompressionLayer(this);
    }
  }
}
