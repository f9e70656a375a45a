package io.github.gatedfwa.layers.runtime;

/**
 * The rotary position embedding (arXiv 2104.09864): pair (i, i + size/2) of a head turns by
 * position · base^(-2i/size). Angles are double, so that they are right at any position.
 *
 * <p>Sines and cosines are tabled for the first {@value #FINE} positions and for every {@value
 * #FINE}th one of a run; the rest follows from both by the addition theorem.
 */
final class Rotation {
  private static final int FINE = 256;

  private final int half;
  private final double[] frequency;
  private final double[] fineCos;
  private final double[] fineSin;

  /**
   * @param size head size, even
   */
  Rotation(double base, int size) {
    half = size / 2;
    frequency = new double[half];
    for (int i = 0; i < half; i++) {
      frequency[i] = Math.pow(base, -2.0 * i / size);
    }
    fineCos = new double[FINE * half];
    fineSin = new double[FINE * half];
    fill(fineCos, fineSin, 0, 1);
  }

  /** Tables of the positions start, start + step, ... */
  private void fill(double[] cos, double[] sin, long start, int step) {
    for (int k = 0; k < cos.length; k++) {
      double angle = (start + (long) k / half * step) * frequency[k % half];
      cos[k] = Math.cos(angle);
      sin[k] = Math.sin(angle);
    }
  }

  /** The rotation for the positions from start on. */
  Run run(long start, long positions) {
    return run(start, positions, 1);
  }

  /** The rotation for the positions start, start + stride, ... */
  Run run(long start, long positions, int stride) {
    long span = (positions - 1) * stride + 1;
    int coarse = Math.toIntExact((span + FINE - 1) / FINE);
    Run run = new Run(coarse, stride);
    fill(run.coarseCos, run.coarseSin, start, FINE);
    return run;
  }

  /** The rotation for a run of positions. */
  final class Run {
    private final double[] coarseCos;
    private final double[] coarseSin;
    private final int stride;

    private Run(int coarse, int stride) {
      coarseCos = new double[coarse * half];
      coarseSin = new double[coarse * half];
      this.stride = stride;
    }

    /** Turns a head at a step of the run, backwards for direction -1. */
    void apply(double[] head, int step, int direction) {
      int offset = Math.multiplyExact(step, stride);
      int coarse = offset / FINE * half;
      int fine = offset % FINE * half;
      for (int i = 0; i < half; i++) {
        double c = coarseCos[coarse + i];
        double s = coarseSin[coarse + i];
        double cos = c * fineCos[fine + i] - s * fineSin[fine + i];
        double sin = direction * (s * fineCos[fine + i] + c * fineSin[fine + i]);
        double x = head[i];
        double y = head[i + half];
        head[i] = x * cos - y * sin;
        head[i + half] = y * cos + x * sin;
      }
    }
  }
}
