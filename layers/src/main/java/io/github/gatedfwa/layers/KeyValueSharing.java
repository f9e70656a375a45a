package io.github.gatedfwa.layers;

/** Which branches of a {@link NativeSparseAttentionLayer} have key and value projections alike. */
public enum KeyValueSharing {
  /** None: each branch has its own, as in arXiv 2502.11089. */
  NONE,

  /** Compression and selection; the window has its own. */
  COMPRESSION_AND_SELECTION,

  /** All three. */
  ALL
}
