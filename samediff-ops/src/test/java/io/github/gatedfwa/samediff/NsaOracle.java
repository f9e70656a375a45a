package io.github.gatedfwa.samediff;

import java.util.ArrayList;
import java.util.List;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

/**
 * The formulas of native sparse attention as they stand, in float64 or in float32: the latter is
 * the dense implementation that others are compared with.
 */
final class NsaOracle {

  private final boolean single;
  private final DataType type;

  private NsaOracle(boolean single, DataType type) {
    this.single = single;
    this.type = type;
  }

  static NsaOracle exact() {
    return new NsaOracle(false, DataType.DOUBLE);
  }

  /** Every intermediate result rounded to float32; o and its gradients to the type. */
  static NsaOracle inType(DataType type) {
    return new NsaOracle(true, type);
  }

  /** Whether query t of batch entry b sees key j of a key/value head. */
  private interface Visible {
    boolean test(int b, int kvHead, int t, int j);
  }

  /** o, lse, dq, dkCmp, dvCmp. */
  List<INDArray> compressed(NsaCase c) {
    long past = c.keyLength() - c.q().size(1);
    return attention(
        c,
        c.kCmp(),
        c.vCmp(),
        (b, kvHead, t, j) ->
            j * c.stride() + c.blockLength() - 1 <= past + t && real(c.blockMask(), b, j));
  }

  /** o, lse, dq, dk, dv. */
  List<INDArray> selected(NsaCase c, INDArray indices) {
    long past = c.keyLength() - c.q().size(1);
    return attention(
        c,
        c.k(),
        c.v(),
        (b, kvHead, t, j) -> {
          boolean chosen = false;
          for (long i = 0; i < indices.size(3); i++) {
            chosen |= indices.getInt(b, t, kvHead, (int) i) == j / c.selectionBlock();
          }
          return chosen && j <= past + t && real(c.mask(), b, j);
        });
  }

  private static boolean real(INDArray mask, int b, int j) {
    return mask == null || mask.getDouble(b, j) != 0;
  }

  /**
   * The importance of each selection block for each query, [B, N, Hkv, S] in float64; −1 for blocks
   * that are no candidates, +∞ for those that are always taken.
   */
  static double[][][][] importances(NsaCase c) {
    int batch = (int) c.q().size(0);
    int n = (int) c.q().size(1);
    int heads = (int) c.q().size(2);
    int kvHeads = (int) c.kCmp().size(2);
    int blocks = (int) c.kCmp().size(1);
    int group = heads / kvHeads;
    long l = c.blockLength();
    long d = c.stride();
    long selection = c.selectionBlock();
    int count = (int) ((c.keyLength() + selection - 1) / selection);
    double scale = c.scale() != 0 ? c.scale() : 1 / Math.sqrt((double) c.q().size(3));
    double[] q = values(c.q());
    double[] k = values(c.kCmp());
    int size = (int) c.q().size(3);
    double[][][][] result = new double[batch][n][kvHeads][count];
    for (int b = 0; b < batch; b++) {
      for (int t = 0; t < n; t++) {
        long p = c.keyLength() - n + t;
        for (int head = 0; head < kvHeads; head++) {
          double[] own = result[b][t][head];
          boolean[] candidate = new boolean[count];
          for (int g = 0; g < group; g++) {
            double[] weight = new double[blocks];
            double sum = 0;
            double max = Double.NEGATIVE_INFINITY;
            for (int j = 0; j < blocks; j++) {
              double score = 0;
              for (int i = 0; i < size; i++) {
                score +=
                    q[((b * n + t) * heads + head * group + g) * size + i]
                        * k[((b * blocks + j) * kvHeads + head) * size + i];
              }
              boolean sees = j * d + l - 1 <= p && real(c.blockMask(), b, j);
              weight[j] = sees ? scale * score : Double.NEGATIVE_INFINITY;
              max = Math.max(max, weight[j]);
              for (int s = 0; sees && s < count; s++) {
                candidate[s] |= j * d < (s + 1) * selection && j * d + l > s * selection;
              }
            }
            for (int j = 0; j < blocks; j++) {
              weight[j] = weight[j] == Double.NEGATIVE_INFINITY ? 0 : Math.exp(weight[j] - max);
              sum += weight[j];
            }
            // The formula as nsa.md and the paper have it.
            for (int s = 0; s < count && sum > 0; s++) {
              for (long m = 0; m < selection / d; m++) {
                for (long i = 0; i < l / d; i++) {
                  long j = selection / d * s + m - i;
                  own[s] += j >= 0 && j < blocks ? weight[(int) j] / sum : 0;
                }
              }
            }
          }
          candidate[(int) (p / selection)] = true;
          boolean first = true;
          for (int s = 0; s < count; s++) {
            if (!candidate[s]) {
              own[s] = -1;
            } else if (first || s == p / selection || s == p / selection - 1) {
              own[s] = Double.POSITIVE_INFINITY;
            }
            first &= !candidate[s];
          }
        }
      }
    }
    return result;
  }

  private double round(double x) {
    return single ? (float) x : x;
  }

  private double stored(double x) {
    return type == DataType.DOUBLE || type == DataType.FLOAT
        ? x
        : Nd4j.scalar(type, x).getDouble(0);
  }

  private static double[] values(INDArray x) {
    return x.isEmpty() ? new double[0] : x.castTo(DataType.DOUBLE).dup('c').data().asDouble();
  }

  private List<INDArray> attention(NsaCase c, INDArray keys, INDArray vals, Visible visible) {
    int batch = (int) c.q().size(0);
    int n = (int) c.q().size(1);
    int heads = (int) c.q().size(2);
    int d = (int) c.q().size(3);
    int m = (int) keys.size(1);
    int kvHeads = (int) keys.size(2);
    int dv = (int) vals.size(3);
    int group = heads / kvHeads;
    double scale = round(c.scale() != 0 ? c.scale() : 1 / Math.sqrt(d));
    double[] q = values(c.q());
    double[] k = values(keys);
    double[] v = values(vals);
    double[] dO = values(c.dO());
    double[] o = new double[batch * n * heads * dv];
    double[] lse = new double[batch * heads * n];
    double[] dq = new double[q.length];
    double[] dk = new double[k.length];
    double[] dvs = new double[v.length];
    double[] score = new double[m];
    for (int b = 0; b < batch; b++) {
      for (int h = 0; h < heads; h++) {
        for (int t = 0; t < n; t++) {
          int row = (b * n + t) * heads + h;
          int head = h / group;
          double max = Double.NEGATIVE_INFINITY;
          for (int j = 0; j < m; j++) {
            score[j] = Double.NEGATIVE_INFINITY;
            if (visible.test(b, head, t, j)) {
              double product = 0;
              for (int i = 0; i < d; i++) {
                product =
                    round(
                        product
                            + round(q[row * d + i] * k[((b * m + j) * kvHeads + head) * d + i]));
              }
              score[j] = round(scale * product);
              max = Math.max(max, score[j]);
            }
          }
          int ofLse = (b * heads + h) * n + t;
          lse[ofLse] = max;
          if (max == Double.NEGATIVE_INFINITY) {
            continue;
          }
          double sum = 0;
          for (int j = 0; j < m; j++) {
            score[j] = round(Math.exp(round(score[j] - max)));
            sum = round(sum + score[j]);
          }
          lse[ofLse] = round(max + round(Math.log(sum)));
          double delta = 0;
          for (int i = 0; i < dv; i++) {
            double x = 0;
            for (int j = 0; j < m; j++) {
              x = round(x + round(score[j] * v[((b * m + j) * kvHeads + head) * dv + i]));
            }
            o[row * dv + i] = stored(round(x / sum));
            delta = round(delta + round(dO[row * dv + i] * o[row * dv + i]));
          }
          for (int j = 0; j < m; j++) {
            double weight = round(score[j] / sum);
            int key = (b * m + j) * kvHeads + head;
            double dP = 0;
            for (int i = 0; i < dv; i++) {
              dP = round(dP + round(dO[row * dv + i] * v[key * dv + i]));
              dvs[key * dv + i] = round(dvs[key * dv + i] + round(weight * dO[row * dv + i]));
            }
            double scaled = round(scale * round(weight * round(dP - delta)));
            for (int i = 0; i < d; i++) {
              dq[row * d + i] = round(dq[row * d + i] + round(scaled * k[key * d + i]));
              dk[key * d + i] = round(dk[key * d + i] + round(scaled * q[row * d + i]));
            }
          }
        }
      }
    }
    List<INDArray> result = new ArrayList<>();
    result.add(array(o, c.dO().shape()));
    result.add(array(lse, batch, heads, n));
    result.add(array(dq, c.q().shape()));
    result.add(array(dk, keys.shape()));
    result.add(array(dvs, vals.shape()));
    if (single) {
      for (int i : new int[] {2, 3, 4}) {
        result.set(i, result.get(i).castTo(type).castTo(DataType.DOUBLE));
      }
    }
    return result;
  }

  private static INDArray array(double[] values, long... shape) {
    return values.length == 0
        ? Nd4j.create(DataType.DOUBLE, shape)
        : Nd4j.createFromArray(values).reshape(shape);
  }
}
