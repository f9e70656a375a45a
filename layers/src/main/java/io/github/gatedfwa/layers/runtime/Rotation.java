package io.github.gatedfwa.layers.runtime;

/**
 * Sines and cosines of the rotary position embedding (arXiv 2104.09864) for a run of positions:
 * pair (i, i + size/2) of a head turns by position · base^(-2i/size). Angles are double, so that
 * they are right at any position.
 */
final class Rotation {
  private final long start;
  private final int positions;
  private final int half;
  private final double[] cos;
  private final double[] sin;

  /**
   * @param start first position
   * @param positions number of positions
   * @param size head size, even
   */
  Rotation(double base, long start, int positions, int size) {
    this.start = start;
    this.positions = positions;
    half = size / 2;
    cos = new double[positions * half];
    sin = new double[positions * half];
    double[] frequency = new double[half];
    for (int i = 0; i < half; i++) {
      frequency[i] = Math.pow(base, -2.0 * i / size);
    }
    for (int p = 0; p < positions; p++) {
      for (int i = 0; i < half; i++) {
        double angle = (start + p) * frequency[i];
        cos[p * half + i] = Math.cos(angle);
        sin[p * half + i] = Math.sin(angle);
      }
    }
  }

  /** Whether this holds exactly the given positions. */
  boolean covers(long start, int positions) {
    return this.start == start && this.positions == positions;
  }

  /** Turns a head at start + step, backwards for direction -1. */
  void apply(double[] head, int step, int direction) {
    int at = step * half;
    for (int i = 0; i < half; i++) {
      double c = cos[at + i];
      double s = direction * sin[at + i];
      double x = head[i];
      double y = head[i + half];
      head[i] = x * c - y * s;
      head[i + half] = y * c + x * s;
    }
  }
}
