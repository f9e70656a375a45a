package io.github.gatedfwa.layers.runtime;

import java.util.stream.IntStream;

/** Loops over tokens on several threads. */
final class Parallel {
  /** Tokens that one unit of work handles; fixed, so that sums do not depend on threads. */
  private static final int BLOCK = 64;

  private Parallel() {}

  /** What to do with the tokens from (inclusive) to (exclusive). */
  interface Body {
    void accept(int from, int to);
  }

  /** Runs over all tokens in blocks, on several threads if the work is worth it. */
  static void forEach(int tokens, long elementsPerToken, Body body) {
    int blocks = (tokens + BLOCK - 1) / BLOCK;
    IntStream range = IntStream.range(0, blocks);
    if (blocks > 1 && tokens * elementsPerToken > 1 << 14) {
      range = range.parallel();
    }
    range.forEach(block -> body.accept(block * BLOCK, Math.min(tokens, (block + 1) * BLOCK)));
  }

  /** What to add to the sums for the tokens from (inclusive) to (exclusive). */
  interface Summand {
    void accept(int from, int to, double[] sums);
  }

  /** Sums over all tokens, the same on any number of threads. */
  static double[] sum(int tokens, int width, Summand summand) {
    double[][] partial = new double[(tokens + BLOCK - 1) / BLOCK][];
    forEach(
        tokens,
        width,
        (from, to) -> {
          double[] sums = new double[width];
          summand.accept(from, to, sums);
          partial[from / BLOCK] = sums;
        });
    double[] total = partial[0];
    for (int block = 1; block < partial.length; block++) {
      for (int i = 0; i < width; i++) {
        total[i] += partial[block][i];
      }
    }
    return total;
  }
}
