package io.github.gatedfwa.layers;

import io.github.gatedfwa.layers.params.NativeSparseAttentionParamInitializer;
import io.github.gatedfwa.layers.runtime.NativeSparseAttention;
import java.util.Map;
import org.deeplearning4j.exception.DL4JInvalidConfigException;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.nd4j.linalg.api.buffer.DataType;

/**
 * Native sparse attention (arXiv 2502.11089) with gated flash windowed attention (arXiv 2512.07782)
 * as its window, as a DL4J layer: three branches over the same queries, mixed per token and head.
 *
 * <pre>  o = g_cmp ∘ o_cmp + g_slc ∘ o_slc + g_win ∘ o_win      g = sigmoid(x W_branch)</pre>
 *
 * <ul>
 *   <li>o_cmp attends to compressed blocks as a {@link TokenCompressionLayer} does;
 *   <li>o_slc attends to the tokens of chosen blocks as a {@link TokenSelectionLayer} does; the
 *       choice is by the compression branch's weights and has no gradient;
 *   <li>o_win is {@link GatedFWALayer}'s attention to the last {@code windowSize} tokens, with its
 *       options; the token shifts are the window's only.
 * </ul>
 *
 * <p>Each branch has key and value projections of its own unless {@link Builder#sharing} says
 * otherwise. Rotary embedding and normalisation apply to the queries and to the keys of every
 * branch; with {@link Builder#hasBias} all projections have biases, W_branch too. The concatenated
 * heads go through an output projection. Default sizes are the paper's: l = 32, d = 16, l′ = 64, 16
 * selection blocks, 512 tokens in the window.
 *
 * <p>Formats and types are those of {@link AttentionLayer}; masks, {@code rnnTimeStep} and
 * truncated BPTT are as in the layers of the branches: the window's cache is a ring, those of
 * compressed and of all keys and values grow.
 */
public class NativeSparseAttentionLayer extends WindowedAttentionLayer {
  private static final long serialVersionUID = 1L;

  // Names are part of the JSON format of saved networks.
  private int blockLength;
  private int stride;
  private Compression compression;
  private int compressionHiddenSize;
  private int selectionBlock;
  private int topN;
  private KeyValueSharing sharing;

  /** For deserialisation. */
  private NativeSparseAttentionLayer() {}

  private NativeSparseAttentionLayer(Builder builder) {
    super(builder);
    blockLength = builder.blockLength;
    stride = builder.stride;
    compression = builder.compression;
    compressionHiddenSize = builder.compressionHiddenSize;
    selectionBlock = builder.selectionBlock;
    topN = builder.topN;
    sharing = builder.sharing;
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
    checkSelection(blockLength, selectionBlock, topN);
    check(sharing != null, "sharing = null: must be NONE, COMPRESSION_AND_SELECTION or ALL");
  }

  @Override
  NativeSparseAttention newRuntimeLayer(NeuralNetConfiguration conf, DataType dataType) {
    return new NativeSparseAttention(conf, dataType);
  }

  @Override
  public NativeSparseAttentionParamInitializer initializer() {
    return NativeSparseAttentionParamInitializer.INSTANCE;
  }

  @Override
  long workingSizePerToken() {
    return super.workingSizePerToken()
        + 3 * queryWidth()
        + 2 * keyWidth() / stride
        + 5L * getNHeads()
        + (long) getNKvHeads() * topN;
  }

  /** Number of tokens in a compressed block. */
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

  /** Which branches share key and value projections. */
  public KeyValueSharing getSharing() {
    return sharing;
  }

  public void setSharing(KeyValueSharing sharing) {
    this.sharing = sharing;
  }

  @Override
  Map<String, Object> options() {
    Map<String, Object> options = super.options();
    options.put("blockLength", blockLength);
    options.put("stride", stride);
    options.put("compression", compression);
    options.put("compressionHiddenSize", compressionHiddenSize);
    options.put("selectionBlock", selectionBlock);
    options.put("topN", topN);
    options.put("sharing", sharing);
    return options;
  }

  @Override
  public NativeSparseAttentionLayer clone() {
    return (NativeSparseAttentionLayer) super.clone();
  }

  /** Builder of {@link NativeSparseAttentionLayer}. */
  @SuppressWarnings("unchecked") // build(), as DL4J declares it
  public static class Builder extends WindowedAttentionLayer.Builder<Builder> {
    private int blockLength = 32;
    private int stride = 16;
    private Compression compression = Compression.MEAN;
    private int compressionHiddenSize;
    private int selectionBlock = 64;
    private int topN = 16;
    private KeyValueSharing sharing = KeyValueSharing.NONE;

    /** Number of tokens in a compressed block, l. Default: 32. */
    public Builder blockLength(int blockLength) {
      this.blockLength = blockLength;
      return this;
    }

    /**
     * Number of tokens between the starts of two compressed blocks, d: a divisor of l. Default: 16.
     */
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

    /** Which branches share key and value projections. Default: NONE. */
    public Builder sharing(KeyValueSharing sharing) {
      this.sharing = sharing;
      return this;
    }

    /**
     * {@inheritDoc}
     *
     * @throws DL4JInvalidConfigException if an option is not allowed
     */
    @Override
    public NativeSparseAttentionLayer build() {
      checkInherited("NativeSparseAttentionLayer");
      return new NativeSparseAttentionLayer(this);
    }
  }
}
