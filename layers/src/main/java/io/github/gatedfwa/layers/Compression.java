package io.github.gatedfwa.layers;

/** How the keys and values of a block of tokens become one (arXiv 2502.11089, equation 7). */
public enum Compression {
  /** Their mean. */
  MEAN,

  /**
   * An MLP with one hidden layer per key/value head, one for keys and one for values, over the
   * block's tokens side by side, each with a learned embedding of its position in the block:
   * silu((X + position) W1 + b1) W2 + b2.
   */
  MLP
}
