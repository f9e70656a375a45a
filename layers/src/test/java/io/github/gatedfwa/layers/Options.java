package io.github.gatedfwa.layers;

import org.deeplearning4j.nn.conf.RNNFormat;

/**
 * The options of the attention layers, each on its own and all together, for parameterised tests.
 */
enum Options {
  UNGATED,
  GATED,
  FIXED_AMPLITUDE,
  GROUPED_HEADS,
  OWN_HEAD_SIZE,
  WINDOW_ONE,
  WINDOW_COVERS_ALL,
  ROPE,
  QK_NORM,
  ROPE_AND_NORM,
  KEY_SHIFT,
  VALUE_SHIFT,
  BIAS,
  EVERYTHING,
  EVERYTHING_NWC,
  COMPRESSION,
  COMPRESSION_OF_SINGLE_TOKENS,
  COMPRESSION_MLP,
  COMPRESSION_EVERYTHING,
  SELECTION,
  SELECTION_ROPE_AND_NORM,
  SELECTION_EVERYTHING,
  NSA,
  NSA_UNGATED,
  NSA_SHARING_TWO,
  NSA_SHARING_ALL,
  NSA_MLP,
  NSA_EVERYTHING,
  NSA_EVERYTHING_NWC,
  NSA_EVERYTHING_SHARING_ALL;

  /** nOut = 4, mostly two heads, window 3, small blocks, and this option. */
  AttentionLayer.Builder<?> builder() {
    return switch (this) {
      case UNGATED -> window().gated(false);
      case GATED -> window();
      case FIXED_AMPLITUDE -> window().learnableAmplitude(false).gateBiasInit(0.5);
      case GROUPED_HEADS -> window().nHeads(4).nKvHeads(2).headSize(2);
      case OWN_HEAD_SIZE -> window().headSize(3);
      case WINDOW_ONE -> window().windowSize(1);
      case WINDOW_COVERS_ALL -> window().windowSize(1000);
      case ROPE -> window().ropeBase(100);
      case QK_NORM -> window().qkNorm(true);
      case ROPE_AND_NORM -> window().ropeBase(10).qkNorm(true);
      case KEY_SHIFT -> window().keyShift(true);
      case VALUE_SHIFT -> window().valueShift(true);
      case BIAS -> window().hasBias(true);
      case EVERYTHING -> everything();
      case EVERYTHING_NWC -> everything().dataFormat(RNNFormat.NWC);
      case COMPRESSION -> compression();
      case COMPRESSION_OF_SINGLE_TOKENS -> compression().blockLength(1).stride(1);
      case COMPRESSION_MLP -> compression().compression(Compression.MLP).compressionHiddenSize(3);
      case COMPRESSION_EVERYTHING ->
          all(compression()).headSize(2).blockLength(4).stride(2).compression(Compression.MLP);
      case SELECTION -> selection();
      case SELECTION_ROPE_AND_NORM -> selection().ropeBase(10).qkNorm(true);
      case SELECTION_EVERYTHING -> all(selection()).headSize(2).stride(2).selectionBlock(4).topN(3);
      case NSA -> nsa();
      case NSA_UNGATED -> nsa().gated(false);
      case NSA_SHARING_TWO -> nsa().sharing(KeyValueSharing.COMPRESSION_AND_SELECTION);
      case NSA_SHARING_ALL -> nsa().sharing(KeyValueSharing.ALL);
      case NSA_MLP -> nsa().compression(Compression.MLP);
      case NSA_EVERYTHING -> nsaEverything();
      case NSA_EVERYTHING_NWC ->
          nsaEverything()
              .sharing(KeyValueSharing.COMPRESSION_AND_SELECTION)
              .dataFormat(RNNFormat.NWC);
      case NSA_EVERYTHING_SHARING_ALL -> nsaEverything().sharing(KeyValueSharing.ALL);
    };
  }

  /** A gated window. */
  static GatedFWALayer.Builder window() {
    return GatedFWALayer.builder().nOut(4).nHeads(2).windowSize(3);
  }

  private static TokenCompressionLayer.Builder compression() {
    return TokenCompressionLayer.builder().nOut(4).nHeads(2).blockLength(2).stride(1);
  }

  private static TokenSelectionLayer.Builder selection() {
    return TokenSelectionLayer.builder()
        .nOut(4)
        .nHeads(2)
        .blockLength(2)
        .stride(1)
        .selectionBlock(2)
        .topN(4);
  }

  private static NativeSparseAttentionLayer.Builder nsa() {
    return NativeSparseAttentionLayer.builder()
        .nOut(4)
        .nHeads(2)
        .windowSize(3)
        .blockLength(2)
        .stride(1)
        .selectionBlock(2)
        .topN(4);
  }

  /** All options that every layer has. */
  private static <T extends AttentionLayer.Builder<T>> T all(T builder) {
    return builder.nHeads(4).nKvHeads(2).headSize(4).ropeBase(50).qkNorm(true).hasBias(true);
  }

  /** All options of {@link GatedFWALayer}. */
  static GatedFWALayer.Builder everything() {
    return all(window()).keyShift(true).valueShift(true);
  }

  /** All options of {@link NativeSparseAttentionLayer} but sharing. */
  static NativeSparseAttentionLayer.Builder nsaEverything() {
    return all(nsa())
        .headSize(2)
        .keyShift(true)
        .valueShift(true)
        .compression(Compression.MLP)
        .compressionHiddenSize(1)
        .blockLength(4)
        .stride(2)
        .selectionBlock(4);
  }

  RNNFormat format() {
    return this == EVERYTHING_NWC || this == NSA_EVERYTHING_NWC ? RNNFormat.NWC : RNNFormat.NCW;
  }
}
