package io.github.gatedfwa.benchmarks;

import io.github.gatedfwa.samediff.GatedFwa;
import io.github.gatedfwa.samediff.GatedFwaBp;
import java.util.List;
import java.util.Random;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

/**
 * Operands and results of one FLOAT attention problem with a gate: B = 1, H = 8 query and key/value
 * heads, N = M tokens, head size D, window w.
 */
final class AttentionOperands implements AutoCloseable {

  static final int HEADS = 8;

  final long length;
  final long headSize;
  final long window;
  final INDArray q;
  final INDArray k;
  final INDArray v;
  final INDArray alpha;
  final INDArray dO;
  final INDArray o;
  final INDArray lse;
  final INDArray dq;
  final INDArray dk;
  final INDArray dv;
  final INDArray dalpha;

  AttentionOperands(long length, long headSize, long window) {
    this.length = length;
    this.headSize = headSize;
    this.window = window;
    long[] shape = {1, length, HEADS, headSize};
    long[] gateShape = {1, length, HEADS};
    Nd4j.getRandom().setSeed(1);
    q = Nd4j.randn(DataType.FLOAT, shape);
    k = Nd4j.randn(DataType.FLOAT, shape);
    v = Nd4j.randn(DataType.FLOAT, shape);
    dO = Nd4j.randn(DataType.FLOAT, shape);
    alpha = Nd4j.rand(DataType.FLOAT, gateShape).muli(0.1);
    o = Nd4j.create(DataType.FLOAT, shape);
    lse = Nd4j.create(DataType.FLOAT, 1, HEADS, length);
    dq = Nd4j.create(DataType.FLOAT, shape);
    dk = Nd4j.create(DataType.FLOAT, shape);
    dv = Nd4j.create(DataType.FLOAT, shape);
    dalpha = Nd4j.create(DataType.FLOAT, gateShape);
  }

  /**
   * Frees the arrays' memory at once: it lies outside the heap, where a long one's is gigabytes.
   */
  @Override
  public void close() {
    for (INDArray array : List.of(q, k, v, alpha, dO, o, lse, dq, dk, dv, dalpha)) {
      array.close();
    }
  }

  void forward() {
    Nd4j.exec(new GatedFwa(q, k, v, alpha, null, window, 0, o, lse));
  }

  void backward() {
    Nd4j.exec(
        new GatedFwaBp(
            q, k, v, alpha, null, o, lse, dO, window, 0, new INDArray[] {dq, dk, dv, dalpha}));
  }

  /**
   * Floating-point operations that the AVX-512 FLOAT kernels execute: products of D-vectors for the
   * pairs in register panels of 32 queries (forward) or keys (backward) that touch the band; dq
   * takes whole 64 x 64 tiles.
   */
  static double executedFlops(long length, long headSize, long window, boolean backward) {
    double panelPairs = 0;
    for (long first = 0; first < length; first += 32) {
      panelPairs += 32.0 * (first + 32 - Math.max(0, first - window + 1));
    }
    double tilePairs = 0;
    for (long first = 0; first < length; first += 64) {
      tilePairs += 64.0 * (first + 64 - Math.max(0, (first - window + 1) / 64 * 64));
    }
    double perProduct = 2.0 * HEADS * headSize;
    return backward ? perProduct * (4 * panelPairs + tilePairs) : perProduct * 2 * panelPairs;
  }

  /**
   * Compares rows of o and dq, drawn at random, with the formulas in double.
   *
   * @throws IllegalStateException if the relative error of either exceeds 2e-6
   */
  void check() {
    forward();
    backward();
    Random random = new Random(7);
    double[] error = new double[2];
    double[] norm = new double[2];
    for (int sample = 0; sample < 24; sample++) {
      checkRow(
          sample == 0 ? length - 1 : random.nextLong(length), random.nextInt(HEADS), error, norm);
    }
    for (int i = 0; i < 2; i++) {
      if (!(Math.sqrt(error[i] / norm[i]) <= 2e-6)) {
        throw new IllegalStateException(
            String.format(
                "%s is wrong: relative error %.2g",
                i == 0 ? "o" : "dq", Math.sqrt(error[i] / norm[i])));
      }
    }
  }

  private void checkRow(long position, int head, double[] error, double[] norm) {
    int first = (int) Math.max(0, position - window + 1);
    int count = (int) position + 1 - first;
    int d = (int) headSize;
    double scale = 1 / Math.sqrt((double) headSize);
    double[] query = row(q, position, head);
    double[] gradient = row(dO, position, head);
    double[] weight = new double[count];
    double[] slope = new double[count];
    double decay = 0;
    double max = Double.NEGATIVE_INFINITY;
    for (int j = count - 1; j >= 0; j--) {
      weight[j] = scale * dot(query, row(k, first + j, head)) - decay;
      max = Math.max(max, weight[j]);
      decay += alpha.getDouble(0, first + j, head);
    }
    double sum = 0;
    for (int j = 0; j < count; j++) {
      weight[j] = Math.exp(weight[j] - max);
      sum += weight[j];
    }
    double[] output = new double[d];
    double delta = 0;
    for (int j = 0; j < count; j++) {
      weight[j] /= sum;
      double[] value = row(v, first + j, head);
      slope[j] = dot(gradient, value);
      delta += weight[j] * slope[j];
      for (int c = 0; c < d; c++) {
        output[c] += weight[j] * value[c];
      }
    }
    double[] queryGradient = new double[d];
    for (int j = 0; j < count; j++) {
      double[] key = row(k, first + j, head);
      for (int c = 0; c < d; c++) {
        queryGradient[c] += scale * weight[j] * (slope[j] - delta) * key[c];
      }
    }
    add(output, row(o, position, head), 0, error, norm);
    add(queryGradient, row(dq, position, head), 1, error, norm);
  }

  private static void add(
      double[] expected, double[] actual, int index, double[] error, double[] norm) {
    for (int c = 0; c < expected.length; c++) {
      error[index] += (actual[c] - expected[c]) * (actual[c] - expected[c]);
      norm[index] += expected[c] * expected[c];
    }
  }

  private static double[] row(INDArray x, long position, int head) {
    long width = x.size(3);
    long offset = (position * HEADS + head) * width;
    double[] row = new double[(int) width];
    for (int c = 0; c < width; c++) {
      row[c] = x.data().getFloat(offset + c);
    }
    return row;
  }

  private static double dot(double[] a, double[] b) {
    double sum = 0;
    for (int i = 0; i < a.length; i++) {
      sum += a[i] * b[i];
    }
    return sum;
  }
}
