package io.github.gatedfwa.layers;

import java.util.HashMap;
import java.util.Map;
import java.util.TreeSet;
import java.util.function.DoubleUnaryOperator;
import java.util.function.IntFunction;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * The attention layers written down once more, in the plainest way: float64, one sequence, every
 * pair of tokens, straight from the formulas in the layers' documentation. It shares no code with
 * the layers.
 */
final class DenseReference {
  private final AttentionLayer c;
  private final IntFunction<Params> params;
  private final double[][] x; // [time][nIn]
  private final boolean[] real;

  /** Parameters by key: [rows][columns], vectors with one row. */
  static final class Params {
    private final Map<String, double[][]> values = new HashMap<>();

    private double get(String key, int row, int column) {
      return values.get(key)[row][column];
    }

    private int columns(String key) {
      return values.get(key)[0].length;
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
      AttentionLayer c, IntFunction<Params> params, double[][] x, boolean[] real) {
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
      AttentionLayer c, Map<String, INDArray> params, INDArray x, INDArray mask) {
    Params all = Params.of(params);
    return output(c, t -> all, x, mask);
  }

  /**
   * Output of the layer when each token is projected with parameters of its own.
   *
   * @param params the parameters of step t; those of an MLP are taken at a block's last step
   */
  static double[][][] output(
      AttentionLayer c, IntFunction<Params> params, INDArray x, INDArray mask) {
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
    double[][] concatenated = new double[time][];
    double[][][] heads = new double[c.getNHeads()][][];
    for (int h = 0; h < heads.length; h++) {
      heads[h] = attended(h);
    }
    for (int t = 0; t < time; t++) {
      concatenated[t] = new double[heads.length * size];
      for (int h = 0; h < heads.length; h++) {
        System.arraycopy(heads[h][t], 0, concatenated[t], h * size, size);
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

  /** Result of one query head. */
  private double[][] attended(int h) {
    if (c instanceof GatedFWALayer window) {
      return window(window, h, "k", "v");
    }
    if (c instanceof TokenCompressionLayer layer) {
      return attention(
          h,
          compressedKeys("k", layer.getCompression(), h, layer.getBlockLength(), layer.getStride()),
          compressed("v", layer.getCompression(), h, layer.getBlockLength(), layer.getStride()),
          sees(layer.getBlockLength(), layer.getStride()));
    }
    if (c instanceof TokenSelectionLayer layer) {
      boolean[][] chosen =
          choice(
              "k",
              Compression.MEAN,
              h,
              layer.getBlockLength(),
              layer.getStride(),
              layer.getSelectionBlock(),
              layer.getTopN());
      return selected(h, "k", "v", chosen, layer.getSelectionBlock());
    }
    NativeSparseAttentionLayer nsa = (NativeSparseAttentionLayer) c;
    int l = nsa.getBlockLength();
    int d = nsa.getStride();
    Compression compression = nsa.getCompression();
    String cmp = nsa.getSharing() == KeyValueSharing.NONE ? "Cmp" : "";
    String slc = nsa.getSharing() == KeyValueSharing.NONE ? "Slc" : "";
    String win = nsa.getSharing() == KeyValueSharing.ALL ? "" : "Win";
    boolean[][] chosen =
        choice("k" + cmp, compression, h, l, d, nsa.getSelectionBlock(), nsa.getTopN());
    double[][][] branches = {
      attention(
          h,
          compressedKeys("k" + cmp, compression, h, l, d),
          compressed("v" + cmp, compression, h, l, d),
          sees(l, d)),
      selected(h, "k" + slc, "v" + slc, chosen, nsa.getSelectionBlock()),
      window(nsa, h, "k" + win, "v" + win)
    };
    double[][] mixed = new double[time][size];
    for (int t = 0; t < time; t++) {
      for (int b = 0; b < 3; b++) {
        int column = b * c.getNHeads() + h;
        double logit = times("Wbranch", t, column);
        if (c.isHasBias()) {
          logit += params.apply(t).get("bbranch", 0, column);
        }
        for (int i = 0; i < size; i++) {
          mixed[t][i] += branches[b][t][i] / (1 + Math.exp(-logit));
        }
      }
    }
    return mixed;
  }

  private int kvHead(int h) {
    return h / (c.getNHeads() / c.getNKvHeads());
  }

  private double[] query(int h, int t) {
    return normalised(rotated(head("q", t, h), t));
  }

  private interface Sees {
    boolean test(int query, int key);
  }

  /** Softmax attention of one head; zeros where nothing is seen. */
  private double[][] attention(int h, double[][] k, double[][] v, Sees sees) {
    double[][] weights = weights(h, k, sees);
    double[][] o = new double[time][size];
    for (int p = 0; p < time; p++) {
      for (int j = 0; j < k.length; j++) {
        for (int i = 0; i < size; i++) {
          o[p][i] += weights[p][j] * v[j][i];
        }
      }
    }
    return o;
  }

  private double[][] weights(int h, double[][] k, Sees sees) {
    double[][] weights = new double[time][k.length];
    for (int p = 0; p < time; p++) {
      double[] q = query(h, p);
      double total = 0;
      for (int j = 0; j < k.length; j++) {
        if (sees.test(p, j)) {
          double score = 0;
          for (int i = 0; i < size; i++) {
            score += q[i] * k[j][i] / Math.sqrt(size);
          }
          weights[p][j] = Math.exp(score);
          total += weights[p][j];
        }
      }
      for (int j = 0; j < k.length && total > 0; j++) {
        weights[p][j] /= total;
      }
    }
    return weights;
  }

  private boolean isReal(int from, int to) {
    for (int t = from; t < to; t++) {
      if (!real[t]) {
        return false;
      }
    }
    return true;
  }

  /** Complete blocks of real tokens. */
  private Sees sees(int l, int d) {
    return (p, block) -> block * d + l - 1 <= p && isReal(block * d, block * d + l);
  }

  private double[][] compressed(String name, Compression compression, int h, int l, int d) {
    int blocks = time < l ? 0 : (time - l) / d + 1;
    double[][] result = new double[blocks][size];
    for (int block = 0; block < blocks; block++) {
      double[][] tokens = new double[l][];
      for (int i = 0; i < l; i++) {
        tokens[i] = head(name, block * d + i, kvHead(h));
      }
      result[block] =
          compression == Compression.MEAN
              ? mean(tokens)
              : mlp(params.apply(block * d + l - 1), name.charAt(0), tokens, kvHead(h));
    }
    return result;
  }

  private double[][] compressedKeys(String name, Compression compression, int h, int l, int d) {
    double[][] keys = compressed(name, compression, h, l, d);
    for (int block = 0; block < keys.length; block++) {
      keys[block] = normalised(rotated(keys[block], block * d));
    }
    return keys;
  }

  private double[] mean(double[][] tokens) {
    double[] mean = new double[size];
    for (double[] token : tokens) {
      for (int i = 0; i < size; i++) {
        mean[i] += token[i] / tokens.length;
      }
    }
    return mean;
  }

  private double[] mlp(Params params, char of, double[][] tokens, int head) {
    int l = tokens.length;
    String mlp = of + "Mlp";
    int hidden = params.columns("W1" + mlp);
    double[] y = new double[size];
    for (int i = 0; i < size; i++) {
      y[i] = params.get("b2" + mlp, 0, head * size + i);
    }
    for (int j = 0; j < hidden; j++) {
      double z = params.get("b1" + mlp, 0, head * hidden + j);
      for (int t = 0; t < l; t++) {
        for (int i = 0; i < size; i++) {
          double position = params.get("P" + mlp, head * l + t, i);
          z += (tokens[t][i] + position) * params.get("W1" + mlp, (head * l + t) * size + i, j);
        }
      }
      for (int i = 0; i < size; i++) {
        y[i] += z / (1 + Math.exp(-z)) * params.get("W2" + mlp, head * hidden + j, i);
      }
    }
    return y;
  }

  /** [query][selection block]. */
  private boolean[][] choice(
      String key, Compression compression, int h, int l, int d, int block, int topN) {
    int group = c.getNHeads() / c.getNKvHeads();
    int blocks = (time + block - 1) / block;
    boolean[][] chosen = new boolean[time][blocks];
    double[][] importance = new double[time][blocks];
    double[][] k = compressedKeys(key, compression, h, l, d);
    for (int g = 0; g < group; g++) {
      double[][] weights = weights(kvHead(h) * group + g, k, sees(l, d));
      for (int p = 0; p < time; p++) {
        for (int s = 0; s < blocks; s++) {
          for (int m = 0; m < block / d; m++) {
            for (int n = 0; n < l / d; n++) {
              int cmp = block / d * s + m - n;
              if (cmp >= 0 && cmp < k.length) {
                importance[p][s] += weights[p][cmp];
              }
            }
          }
        }
      }
    }
    for (int p = 0; p < time; p++) {
      int own = p / block;
      boolean[] candidate = new boolean[blocks];
      boolean masked = !isReal(0, time);
      for (int s = 0; s <= own; s++) {
        candidate[s] = !masked || s == own;
        for (int cmp = 0; cmp < k.length; cmp++) {
          boolean shares = cmp * d < (s + 1) * block && cmp * d + l > s * block;
          candidate[s] |= shares && sees(l, d).test(p, cmp);
        }
      }
      int first = 0;
      while (!candidate[first]) {
        first++;
      }
      for (int taken : new int[] {first, own, own - 1}) {
        if (taken >= 0 && candidate[taken]) {
          importance[p][taken] = Double.POSITIVE_INFINITY;
        }
      }
      for (int n = 0; n < topN; n++) {
        int best = -1;
        for (int s = 0; s <= own; s++) {
          boolean better = best < 0 || importance[p][s] > importance[p][best];
          best = candidate[s] && !chosen[p][s] && better ? s : best;
        }
        if (best >= 0) {
          chosen[p][best] = true;
        }
      }
    }
    return chosen;
  }

  private double[][] selected(int h, String key, String value, boolean[][] chosen, int block) {
    double[][] k = new double[time][];
    double[][] v = new double[time][];
    for (int t = 0; t < time; t++) {
      k[t] = normalised(rotated(head(key, t, kvHead(h)), t));
      v[t] = head(value, t, kvHead(h));
    }
    return attention(h, k, v, (p, j) -> j <= p && real[j] && chosen[p][j / block]);
  }

  private double[][] window(WindowedAttentionLayer w, int h, String key, String value) {
    int kv = kvHead(h);
    double[][] concatenated = new double[time][size];
    double[][] q = new double[time][];
    double[][] k = new double[time][];
    double[][] v = new double[time][];
    double[] alpha = new double[time];
    for (int t = 0; t < time; t++) {
      q[t] = query(h, t);
      k[t] = normalised(rotated(shifted(key, w.isKeyShift() ? "WshiftK" : null, t, kv), t));
      v[t] = shifted(value, w.isValueShift() ? "WshiftV" : null, t, kv);
      alpha[t] = real[t] ? alpha(w, t, h) : 0;
    }
    for (int p = 0; p < time; p++) {
      double total = 0;
      double[] o = new double[size];
      double[] score = new double[time];
      double max = Double.NEGATIVE_INFINITY;
      for (int j = Math.max(0, p - w.getWindowSize() + 1); j <= p; j++) {
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
      for (int j = Math.max(0, p - w.getWindowSize() + 1); j <= p; j++) {
        if (real[j]) {
          double weight = Math.exp(score[j] - max);
          total += weight;
          for (int i = 0; i < size; i++) {
            o[i] += weight * v[j][i];
          }
        }
      }
      for (int i = 0; i < size; i++) {
        concatenated[p][i] = total == 0 ? 0 : o[i] / total;
      }
    }
    return concatenated;
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

  private double alpha(WindowedAttentionLayer w, int t, int head) {
    if (!w.isGated()) {
      return 0;
    }
    double h = times("Wg", t, head) + params.apply(t).get("bg", 0, head);
    double z = w.isLearnableAmplitude() ? times("Wbeta", t, head) : 0;
    double beta = z > 0 ? 1 + z : Math.exp(z);
    return Math.log(1 + Math.exp(-beta * h)) / (beta + 1e-3);
  }
}
