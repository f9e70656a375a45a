package io.github.gatedfwa.layers.runtime;

import java.util.Arrays;
import java.util.stream.Stream;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * The work per token and head around the attention operation, forward and backward: token shift,
 * rotary embedding, normalisation, gate inputs (formulas: {@link
 * io.github.gatedfwa.layers.GatedFWALayer}). All matrices have one row per token.
 */
final class HeadMath {
  /** Added to the mean square of a head before the root. */
  static final double NORM_EPS = 1e-6;

  private HeadMath() {}

  /**
   * Rotary embedding, then normalisation, in place.
   *
   * @param rows token matrix with the heads side by side from column on
   * @param rotation null for none
   * @param scales [tokens, heads], set to the factor that each head was multiplied with; null for
   *     no normalisation
   */
  static void rotateAndNormalise(
      INDArray rows,
      long column,
      int heads,
      int size,
      long time,
      Rotation.Run rotation,
      INDArray scales) {
    if (rotation == null && scales == null) {
      return;
    }
    Elements x = Elements.write(rows);
    Elements scale = scales == null ? null : Elements.write(scales);
    long width = rows.columns();
    Parallel.forEach(
        rows.rows(),
        (long) heads * size,
        (from, to) -> {
          double[] head = new double[size];
          for (int t = from; t < to; t++) {
            for (int h = 0; h < heads; h++) {
              long at = t * width + column + (long) h * size;
              x.load(at, head, size);
              if (rotation != null) {
                rotation.apply(head, (int) (t % time), 1);
              }
              if (scale != null) {
                double factor = 1 / Math.sqrt(dot(head, head, size) / size + NORM_EPS);
                scale.put((long) t * heads + h, factor);
                for (int i = 0; i < size; i++) {
                  head[i] *= factor;
                }
              }
              x.store(at, head, size);
            }
          }
        });
  }

  /**
   * Backward of {@link #rotateAndNormalise}: from the gradient of its result to that of its input.
   *
   * @param result token matrix with its result from column resultColumn on
   * @param gradient token matrix with nothing but the gradient of the result; may be {@code out}
   * @param out token matrix to write the input's gradient to, from column outColumn on
   */
  static void rotateAndNormaliseBackward(
      INDArray result,
      long resultColumn,
      INDArray gradient,
      INDArray out,
      long outColumn,
      int heads,
      int size,
      long time,
      Rotation.Run rotation,
      INDArray scales) {
    Elements y = Elements.read(result);
    Elements dy = Elements.read(gradient);
    Elements dx = Elements.write(out);
    Elements scale = scales == null ? null : Elements.read(scales);
    long width = result.columns();
    long gradientWidth = gradient.columns();
    long outWidth = out.columns();
    Parallel.forEach(
        result.rows(),
        (long) heads * size,
        (from, to) -> {
          double[] head = new double[size];
          double[] grad = new double[size];
          for (int t = from; t < to; t++) {
            for (int h = 0; h < heads; h++) {
              long inHead = (long) h * size;
              dy.load(t * gradientWidth + inHead, grad, size);
              if (scale != null) {
                y.load(t * width + resultColumn + inHead, head, size);
                double factor = scale.get((long) t * heads + h);
                double mean = dot(grad, head, size) / size;
                for (int i = 0; i < size; i++) {
                  grad[i] = factor * (grad[i] - head[i] * mean);
                }
              }
              if (rotation != null) {
                rotation.apply(grad, (int) (t % time), -1);
              }
              dx.store(t * outWidth + outColumn + inHead, grad, size);
            }
          }
        });
  }

  private static double dot(double[] a, double[] b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) {
      sum += a[i] * b[i];
    }
    return sum;
  }

  /** The token shift of keys or of values. */
  static final class Shift {
    private final INDArray rows;
    private final long column;
    private final long logits;
    private final int heads;
    private final int size;
    private final long time;
    private final double[] previous;
    private final Mask mask;

    /**
     * @param rows token matrix with projections and shift logits
     * @param column first column of the projections k̃ [heads · size]
     * @param logits first column of the logits x W_a [heads]
     * @param previous projections of the token before the first, [minibatch, heads · size]; null
     *     for 0
     * @param mask a padded token counts as 0 for the one after it; null if all are real
     */
    Shift(
        INDArray rows,
        long column,
        long logits,
        int heads,
        int size,
        long time,
        double[] previous,
        Mask mask) {
      this.rows = rows;
      this.column = column;
      this.logits = logits;
      this.heads = heads;
      this.size = size;
      this.time = time;
      this.previous = previous;
      this.mask = mask;
    }

    /** Loads k̃ of the token before t. */
    private void loadPrevious(Elements x, int t, int head, double[] to) {
      if (t % time > 0) {
        if (mask == null || mask.isReal(t - 1)) {
          x.load((t - 1L) * rows.columns() + column + (long) head * size, to, size);
          return;
        }
      } else if (previous != null) {
        int at = ((int) (t / time) * heads + head) * size;
        System.arraycopy(previous, at, to, 0, size);
        return;
      }
      Arrays.fill(to, 0);
    }

    /** Writes k_t = a_t k̃_{t-1} + (1 - a_t) k̃_t to {@code out} [tokens, heads · size]. */
    void forward(INDArray out) {
      Elements x = Elements.read(rows);
      Elements y = Elements.write(out);
      long width = rows.columns();
      Parallel.forEach(
          rows.rows(),
          (long) heads * size,
          (from, to) -> {
            double[] before = new double[size];
            double[] head = new double[size];
            for (int t = from; t < to; t++) {
              for (int h = 0; h < heads; h++) {
                double a = sigmoid(x.get(t * width + logits + h));
                loadPrevious(x, t, h, before);
                x.load(t * width + column + (long) h * size, head, size);
                for (int i = 0; i < size; i++) {
                  head[i] += a * (before[i] - head[i]);
                }
                y.store(((long) t * heads + h) * size, head, size);
              }
            }
          });
    }

    /**
     * From the gradient of the shifted rows to that of projections and logits.
     *
     * @param gradient [tokens, heads · size]
     * @param out token matrix of the same columns as {@link #rows}
     */
    void backward(INDArray gradient, INDArray out) {
      Elements x = Elements.read(rows);
      Elements dy = Elements.read(gradient);
      Elements dx = Elements.write(out);
      long width = rows.columns();
      Parallel.forEach(
          rows.rows(),
          (long) heads * size,
          (from, to) -> {
            double[] before = new double[size];
            double[] head = new double[size];
            double[] grad = new double[size];
            double[] next = new double[size];
            for (int t = from; t < to; t++) {
              boolean reachesNext = t % time + 1 < time && (mask == null || mask.isReal(t));
              for (int h = 0; h < heads; h++) {
                long at = t * width + column + (long) h * size;
                double a = sigmoid(x.get(t * width + logits + h));
                loadPrevious(x, t, h, before);
                x.load(at, head, size);
                dy.load(((long) t * heads + h) * size, grad, size);
                double da = 0;
                for (int i = 0; i < size; i++) {
                  da += grad[i] * (before[i] - head[i]);
                  grad[i] *= 1 - a;
                }
                if (reachesNext) {
                  double aNext = sigmoid(x.get((t + 1) * width + logits + h));
                  dy.load(((long) (t + 1) * heads + h) * size, next, size);
                  for (int i = 0; i < size; i++) {
                    grad[i] += aNext * next[i];
                  }
                }
                dx.store(at, grad, size);
                dx.put(t * width + logits + h, da * a * (1 - a));
              }
            }
          });
    }

    /**
     * Projections of each example's last token, [minibatch, heads · size]; 0 where it is padded.
     */
    double[] last() {
      Elements x = Elements.read(rows);
      int width = heads * size;
      int minibatch = (int) (rows.rows() / time);
      double[] last = new double[minibatch * width];
      double[] row = new double[width];
      for (int b = 0; b < minibatch; b++) {
        int t = (int) ((b + 1) * time - 1);
        if (mask == null || mask.isReal(t)) {
          x.load((long) t * rows.columns() + column, row, width);
          System.arraycopy(row, 0, last, b * width, width);
        }
      }
      return last;
    }
  }

  /**
   * Inputs of the gate operation: h = logits + bias, beta = 1 + ELU(amplitude logits).
   *
   * @param rows token matrix with gate logits from {@code column} on
   * @param amplitudeColumn first column of the amplitude logits; -1 for beta = 1
   * @param bias [heads]
   * @param h [tokens, heads] to write
   * @param beta [tokens, heads] to write
   */
  static void gateInputs(
      INDArray rows, long column, long amplitudeColumn, double[] bias, INDArray h, INDArray beta) {
    Elements x = Elements.read(rows);
    Elements logit = Elements.write(h);
    Elements amplitude = Elements.write(beta);
    long width = rows.columns();
    int heads = bias.length;
    for (int t = 0; t < rows.rows(); t++) {
      for (int i = 0; i < heads; i++) {
        logit.put((long) t * heads + i, x.get(t * width + column + i) + bias[i]);
        double z = amplitudeColumn < 0 ? 0 : x.get(t * width + amplitudeColumn + i);
        amplitude.put((long) t * heads + i, z > 0 ? 1 + z : Math.exp(z));
      }
    }
  }

  /** Backward of {@link #gateInputs}: writes the gradients of both logits into {@code out}. */
  static void gateInputsBackward(
      INDArray dh, INDArray dbeta, INDArray beta, INDArray out, long column, long amplitudeColumn) {
    Elements dLogit = Elements.read(dh);
    Elements dAmplitude = Elements.read(dbeta);
    Elements amplitude = Elements.read(beta);
    Elements dx = Elements.write(out);
    long width = out.columns();
    int heads = dh.columns();
    for (int t = 0; t < out.rows(); t++) {
      for (int i = 0; i < heads; i++) {
        long at = (long) t * heads + i;
        dx.put(t * width + column + i, dLogit.get(at));
        if (amplitudeColumn >= 0) {
          // beta is 1 + z above 1 and exp(z) below.
          double slope = Math.min(1, amplitude.get(at));
          dx.put(t * width + amplitudeColumn + i, dAmplitude.get(at) * slope);
        }
      }
    }
  }

  /**
   * Branches mixed by gates: out = Σ_b sigmoid(logit_b) · branch_b per token and head.
   *
   * @param rows token matrix with the logits from {@code column} on: a branch's heads together
   * @param branches token matrices [tokens, heads · size]
   * @param out the same shape, to write
   */
  static void mix(INDArray rows, long column, int heads, INDArray[] branches, INDArray out) {
    Elements logits = Elements.read(rows);
    Elements[] in = Stream.of(branches).map(Elements::read).toArray(Elements[]::new);
    Elements mixed = Elements.write(out);
    long width = rows.columns();
    int size = out.columns() / heads;
    Parallel.forEach(
        out.rows(),
        (long) heads * size,
        (from, to) -> {
          double[] head = new double[size];
          double[] sum = new double[size];
          for (int t = from; t < to; t++) {
            for (int h = 0; h < heads; h++) {
              long at = ((long) t * heads + h) * size;
              Arrays.fill(sum, 0);
              for (int b = 0; b < in.length; b++) {
                double gate = sigmoid(logits.get(t * width + column + (long) b * heads + h));
                in[b].load(at, head, size);
                for (int i = 0; i < size; i++) {
                  sum[i] += gate * head[i];
                }
              }
              mixed.store(at, sum, size);
            }
          }
        });
  }

  /**
   * Backward of {@link #mix}.
   *
   * @param gradient of its result
   * @param dBranches gradients of the branches, to write
   * @param out token matrix of the same columns as rows, to write the gradient of the logits to
   */
  static void mixBackward(
      INDArray rows,
      long column,
      int heads,
      INDArray[] branches,
      INDArray gradient,
      INDArray[] dBranches,
      INDArray out) {
    Elements logits = Elements.read(rows);
    Elements[] in = Stream.of(branches).map(Elements::read).toArray(Elements[]::new);
    Elements dMixed = Elements.read(gradient);
    Elements[] dIn = Stream.of(dBranches).map(Elements::write).toArray(Elements[]::new);
    Elements dLogits = Elements.write(out);
    long width = rows.columns();
    int size = gradient.columns() / heads;
    Parallel.forEach(
        gradient.rows(),
        (long) heads * size,
        (from, to) -> {
          double[] head = new double[size];
          double[] grad = new double[size];
          for (int t = from; t < to; t++) {
            for (int h = 0; h < heads; h++) {
              long at = ((long) t * heads + h) * size;
              for (int b = 0; b < in.length; b++) {
                long logit = t * width + column + (long) b * heads + h;
                double gate = sigmoid(logits.get(logit));
                in[b].load(at, head, size);
                dMixed.load(at, grad, size);
                dLogits.put(logit, dot(head, grad, size) * gate * (1 - gate));
                for (int i = 0; i < size; i++) {
                  grad[i] *= gate;
                }
                dIn[b].store(at, grad, size);
              }
            }
          }
        });
  }

  static double sigmoid(double x) {
    return 1 / (1 + Math.exp(-x));
  }
}
