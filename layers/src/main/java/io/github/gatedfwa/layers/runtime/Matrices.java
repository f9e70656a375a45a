package io.github.gatedfwa.layers.runtime;

import org.nd4j.linalg.api.blas.params.MMulTranspose;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.api.ops.impl.reduce.Mmul;
import org.nd4j.linalg.factory.Nd4j;

/** Products and sums of token matrices and weights. */
final class Matrices {
  private Matrices() {}

  /**
   * out = x w.
   *
   * @param x [tokens, n]
   * @param w [n, m]
   * @param out [tokens, m]
   * @param step null for none
   */
  static INDArray product(INDArray x, INDArray w, INDArray out, StepMemory step) {
    return product(x, w, false, out, step);
  }

  /**
   * out = x wᵀ.
   *
   * @param x [tokens, m]
   * @param w [n, m]
   * @param out [tokens, n]
   */
  static INDArray productWithTransposed(INDArray x, INDArray w, INDArray out) {
    return product(x, w, true, out, null);
  }

  private static INDArray product(
      INDArray x, INDArray w, boolean transpose, INDArray out, StepMemory step) {
    if (x.rows() == 1) {
      // One token: matrix times vector is several times faster than a product with one row.
      exec(w, !transpose, flat(x, step), false, flat(out, step));
    } else {
      exec(x, false, w, transpose, out);
    }
    return out;
  }

  /**
   * Gradient of a weight matrix, xᵀ dy.
   *
   * @param x [tokens, n]
   * @param dy [tokens, m]
   * @param view [n, m], of any type
   */
  static void weightGradient(INDArray x, INDArray dy, INDArray view) {
    if (view.dataType() == x.dataType()) {
      exec(x, true, dy, false, view);
    } else {
      INDArray exact = Nd4j.createUninitialized(x.dataType(), view.shape(), 'f');
      exec(x, true, dy, false, exact);
      view.assign(exact);
    }
  }

  private static void exec(
      INDArray a, boolean transposeA, INDArray b, boolean transposeB, INDArray out) {
    Nd4j.exec(
        new Mmul(
            a,
            b,
            out,
            1,
            0,
            MMulTranspose.builder().transposeA(transposeA).transposeB(transposeB).build()));
  }

  private static INDArray flat(INDArray row, StepMemory step) {
    return StepMemory.view(step, row, 0, new long[] {row.length()}, new long[] {1}, 'c');
  }

  /**
   * The first rows · columns elements of a flat vector as a matrix in 'f' order, a view.
   *
   * @param step null for none
   */
  static INDArray leading(INDArray flattened, long rows, long columns, StepMemory step) {
    long[] shape = {rows, columns};
    long[] strides = {1, rows};
    return step == null
        ? Memory.view(flattened, 0, shape, strides, 'f')
        : step.parameterView(flattened, 0, shape, strides, 'f');
  }

  /** The elements of a vector. */
  static double[] vector(INDArray array) {
    INDArray exact = array.dataType() == DataType.FLOAT16 ? array.castTo(DataType.FLOAT) : array;
    double[] values = new double[Math.toIntExact(array.length())];
    Elements.read(exact).load(0, values, values.length);
    return values;
  }

  /** Writes values into a vector of any type. */
  static void assign(INDArray view, double[] values) {
    view.assign(
        Memory.detached(
            () -> Nd4j.createFromArray(values).castTo(view.dataType()).reshape(view.shape())));
  }

  /** Sums of columns [first, first + n) of a token matrix. */
  static double[] columnSums(INDArray rows, long first, int n) {
    Elements in = Elements.read(rows);
    long width = rows.columns();
    return Parallel.sum(
        rows.rows(),
        n,
        (from, to, sums) -> {
          double[] row = new double[n];
          for (int t = from; t < to; t++) {
            in.load(t * width + first, row, n);
            for (int i = 0; i < n; i++) {
              sums[i] += row[i];
            }
          }
        });
  }

  /** Copies a whole token matrix into columns of another. */
  static void copyToColumns(INDArray from, INDArray to, long first) {
    copyColumns(from, 0, to, first, from.columns());
  }

  /** Copies n columns of a token matrix, from one on, into columns of another or of the same. */
  static void copyColumns(INDArray from, long first, INDArray to, long target, int n) {
    eachRow(from, first, to, target, n, false);
  }

  /** Adds n columns of a token matrix, from one on, to columns of another or of the same. */
  static void addColumns(INDArray from, long first, INDArray to, long target, int n) {
    eachRow(from, first, to, target, n, true);
  }

  private static void eachRow(
      INDArray from, long first, INDArray to, long target, int n, boolean add) {
    Elements source = Elements.read(from);
    Elements sink = Elements.write(to);
    long fromWidth = from.columns();
    long toWidth = to.columns();
    Parallel.forEach(
        from.rows(),
        n,
        (begin, end) -> {
          double[] row = new double[n];
          double[] sum = new double[n];
          for (int t = begin; t < end; t++) {
            source.load(t * fromWidth + first, row, n);
            if (add) {
              sink.load(t * toWidth + target, sum, n);
              for (int i = 0; i < n; i++) {
                row[i] += sum[i];
              }
            }
            sink.store(t * toWidth + target, row, n);
          }
        });
  }

  /** Adds a vector to columns [first, first + n) of every token. */
  static void addToColumns(INDArray rows, long first, double[] vector) {
    Elements x = Elements.write(rows);
    long width = rows.columns();
    int n = vector.length;
    Parallel.forEach(
        rows.rows(),
        n,
        (from, to) -> {
          double[] row = new double[n];
          for (int t = from; t < to; t++) {
            x.load(t * width + first, row, n);
            for (int i = 0; i < n; i++) {
              row[i] += vector[i];
            }
            x.store(t * width + first, row, n);
          }
        });
  }
}
