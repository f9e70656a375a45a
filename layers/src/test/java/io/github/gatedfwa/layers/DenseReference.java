package io.github.gatedfwa.layers;

import java.util.HashMap;
import java.util.Map;
import java.util.TreeSet;
import java.util.function.DoubleUnaryOperator;
import java.util.function.IntFunction;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * GatedFWALayer written down once more, in the plainest way: float64, one sequence, every pair of
 * tokens, straight from the formulas in the layer's documentation. It shares no code with the
 * layer.
 */
final class DenseReference {
  private final GatedFWALayer c;
  private final IntFunction<Params> params;
  private final double[][] x; // [time][nIn]
  private final boolean[] real;

  /** Parameters by key: [rows][columns], vectors with one row. */
  static final class Params {
    private final Map<String, double[][]> values = new HashMap<>();

    private double get(String key, int row, int column) {
      return values.get(key)[row][column];
    }

    /** Those of a layer, or of any table that has the same keys. */
    static Params of(Map<String, INDArray> table) {
      Params params = new Params();
      table.forEach(
          (key, array) ->
              params.values.put(
                  key,
                  array
                      .castTo(DataType.DOUBLE)
                      .reshape(array.rank() == 1 ? 1 : array.size(0), -1)
                      .toDoubleMatrix()));
      return params;
    }

    /** All values passed through a function, in a fixed order. */
    Params map(DoubleUnaryOperator function) {
      Params params = new Params();
      for (String key : new TreeSet<>(values.keySet())) {
        double[][] rows = values.get(key);
        double[][] mapped = new double[rows.length][rows[0].length];
        for (int i = 0; i < rows.length; i++) {
          for (int j = 0; j < rows[i].length; j++) {
            mapped[i][j] = function.applyAsDouble(rows[i][j]);
          }
        }
        params.values.put(key, mapped);
      }
      return params;
    }
  }

  private final int time;
  private final int size;

  private DenseReference(
      GatedFWALayer c, IntFunction<Params> params, double[][] x, boolean[] real) {
    this.c = c;
    this.params = params;
    this.x = x;
    this.real = real;
    time = x.length;
    size = c.getHeadSize();
  }

  /**
   * Output of the layer.
   *
   * @param x input [minibatch, nIn, time]
   * @param mask [minibatch, time] or null
   * @return [minibatch][nOut][time]
   */
  static double[][][] output(
      GatedFWALayer c, Map<String, INDArray> params, INDArray x, INDArray mask) {
    Params all = Params.of(params);
    return output(c, t -> all, x, mask);
  }

  /**
   * Output of the layer when each token is projected with parameters of its own.
   *
   * @param params the parameters of step t
   */
  static double[][][] output(
      GatedFWALayer c, IntFunction<Params> params, INDArray x, INDArray mask) {
    int minibatch = (int) x.size(0);
    int nIn = (int) x.size(1);
    int time = (int) x.size(2);
    double[][][] out = new double[minibatch][(int) c.getNOut()][time];
    for (int b = 0; b < minibatch; b++) {
      double[][] tokens = new double[time][nIn];
      boolean[] real = new boolean[time];
      for (int t = 0; t < time; t++) {
        real[t] = mask == null || mask.getDouble(b, t) != 0;
        for (int i = 0; i < nIn; i++) {
          tokens[t][i] = x.getDouble(b, i, t);
        }
      }
      double[][] y = new DenseReference(c, params, tokens, real).sequence();
      for (int t = 0; t < time; t++) {
        for (int o = 0; o < c.getNOut(); o++) {
          out[b][o][t] = y[t][o];
        }
      }
    }
    return out;
  }

  private double[][] sequence() {
    double[][] concatenated = new double[time][c.getNHeads() * size];
    for (int h = 0; h < c.getNHeads(); h++) {
      int kv = h / (c.getNHeads() / c.getNKvHeads());
      double[][] q = new double[time][];
      double[][] k = new double[time][];
      double[][] v = new double[time][];
      double[] alpha = new double[time];
      for (int t = 0; t < time; t++) {
        q[t] = normalised(rotated(head("q", t, h), t));
        k[t] = normalised(rotated(shifted("k", c.isKeyShift() ? "WshiftK" : null, t, kv), t));
        v[t] = shifted("v", c.isValueShift() ? "WshiftV" : null, t, kv);
        alpha[t] = real[t] ? alpha(t, h) : 0;
      }
      for (int p = 0; p < time; p++) {
        double total = 0;
        double[] o = new double[size];
        double[] score = new double[time];
        double max = Double.NEGATIVE_INFINITY;
        for (int j = Math.max(0, p - c.getWindowSize() + 1); j <= p; j++) {
          if (!real[j]) {
            continue;
          }
          for (int i = 0; i < size; i++) {
            score[j] += q[p][i] * k[j][i] / Math.sqrt(size);
          }
          for (int s = j + 1; s <= p; s++) {
            score[j] -= alpha[s];
          }
          max = Math.max(max, score[j]);
        }
        for (int j = Math.max(0, p - c.getWindowSize() + 1); j <= p; j++) {
          if (real[j]) {
            double weight = Math.exp(score[j] - max);
            total += weight;
            for (int i = 0; i < size; i++) {
              o[i] += weight * v[j][i];
            }
          }
        }
        for (int i = 0; i < size; i++) {
          concatenated[p][h * size + i] = total == 0 ? 0 : o[i] / total;
        }
      }
    }
    double[][] y = new double[time][(int) c.getNOut()];
    for (int t = 0; t < time; t++) {
      for (int o = 0; o < y[t].length && real[t]; o++) {
        y[t][o] = c.isHasBias() ? params.apply(t).get("bo", 0, o) : 0;
        for (int i = 0; i < concatenated[t].length; i++) {
          y[t][o] += concatenated[t][i] * params.apply(t).get("Wo", i, o);
        }
      }
    }
    return y;
  }

  private double times(String weight, int t, int column) {
    double sum = 0;
    for (int i = 0; i < x[t].length; i++) {
      sum += x[t][i] * params.apply(t).get(weight, i, column);
    }
    return sum;
  }

  private double[] head(String name, int t, int head) {
    double[] result = new double[size];
    for (int i = 0; i < size; i++) {
      int column = head * size + i;
      result[i] = times("W" + name, t, column);
      if (c.isHasBias()) {
        result[i] += params.apply(t).get("b" + name, 0, column);
      }
    }
    return result;
  }

  private double[] shifted(String name, String shiftWeight, int t, int head) {
    double[] own = head(name, t, head);
    if (shiftWeight == null) {
      return own;
    }
    double[] before = t > 0 && real[t - 1] ? head(name, t - 1, head) : new double[size];
    double a = 1 / (1 + Math.exp(-times(shiftWeight, t, head)));
    double[] result = new double[size];
    for (int i = 0; i < size; i++) {
      result[i] = a * before[i] + (1 - a) * own[i];
    }
    return result;
  }

  private double[] rotated(double[] head, int position) {
    if (c.getRopeBase() == 0) {
      return head;
    }
    double[] result = new double[size];
    for (int i = 0; i < size / 2; i++) {
      double angle = position * Math.pow(c.getRopeBase(), -2.0 * i / size);
      double x = head[i];
      double y = head[i + size / 2];
      result[i] = x * Math.cos(angle) - y * Math.sin(angle);
      result[i + size / 2] = x * Math.sin(angle) + y * Math.cos(angle);
    }
    return result;
  }

  private double[] normalised(double[] head) {
    if (!c.isQkNorm()) {
      return head;
    }
    double squares = 0;
    for (double value : head) {
      squares += value * value;
    }
    double[] result = new double[size];
    for (int i = 0; i < size; i++) {
      result[i] = head[i] / Math.sqrt(squares / size + 1e-6);
    }
    return result;
  }

  private double alpha(int t, int head) {
    if (!c.isGated()) {
      return 0;
    }
    double h = times("Wg", t, head) + params.apply(t).get("bg", 0, head);
    double z = c.isLearnableAmplitude() ? times("Wbeta", t, head) : 0;
    double beta = z > 0 ? 1 + z : Math.exp(z);
    return Math.log(1 + Math.exp(-beta * h)) / (beta + 1e-3);
  }
}
