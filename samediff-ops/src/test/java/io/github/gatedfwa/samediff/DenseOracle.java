package io.github.gatedfwa.samediff;

import java.util.ArrayList;
import java.util.List;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

/**
 * GatedFWA's formulas, one pair of tokens after the other. In float32 as they stand: the dense
 * implementation that others are compared with. In float64, the reference, rearranged so that
 * nothing cancels: decays count from the newest real token that the row sees, and with c the dP of
 * the row's heaviest key dS = P ((dP − c) − Σ P (dP − c)).
 */
final class DenseOracle {

  private final boolean single;
  private final DataType type;

  private DenseOracle(boolean single, DataType type) {
    this.single = single;
    this.type = type;
  }

  /** o, lse, dq, dk, dv and, if there is an alpha, dalpha, in float64. */
  static List<INDArray> exact(AttentionCase c) {
    return new DenseOracle(false, DataType.DOUBLE).attention(c);
  }

  /** The same with every intermediate result rounded to float32; o, dq, dk and dv to q's type. */
  static List<INDArray> inType(AttentionCase c) {
    DataType type = c.q().dataType();
    List<INDArray> results = new DenseOracle(true, type).attention(c);
    for (int i : new int[] {2, 3, 4}) {
      results.set(i, results.get(i).castTo(type).castTo(DataType.DOUBLE));
    }
    return results;
  }

  private double round(double x) {
    return single ? (float) x : x;
  }

  /** As the backward pass finds it in the array o. */
  private double stored(double x) {
    return type == DataType.DOUBLE || type == DataType.FLOAT
        ? x
        : Nd4j.scalar(type, x).getDouble(0);
  }

  private static double[] values(INDArray x) {
    return x.castTo(DataType.DOUBLE).dup('c').data().asDouble();
  }

  private List<INDArray> attention(AttentionCase c) {
    int batch = (int) c.q().size(0);
    int n = (int) c.q().size(1);
    int heads = (int) c.q().size(2);
    int d = (int) c.q().size(3);
    int m = (int) c.k().size(1);
    int kvHeads = (int) c.k().size(2);
    int dv = (int) c.v().size(3);
    int group = heads / kvHeads;
    double scale = round(c.scale() != 0 ? c.scale() : 1 / Math.sqrt(d));
    double[] q = values(c.q());
    double[] k = values(c.k());
    double[] v = values(c.v());
    double[] dO = values(c.dO());
    double[] alpha = c.alpha() == null ? null : values(c.alpha());
    double[] mask = c.mask() == null ? null : values(c.mask());
    double[] o = new double[batch * n * heads * dv];
    double[] lse = new double[batch * heads * n];
    double[] dq = new double[q.length];
    double[] dk = new double[k.length];
    double[] dvs = new double[v.length];
    double[] dalpha = alpha == null ? null : new double[alpha.length];
    double[] score = new double[m];
    double[] dP = new double[m];
    double[] dS = new double[m];

    for (int b = 0; b < batch; b++) {
      for (int h = 0; h < heads; h++) {
        for (int t = 0; t < n; t++) {
          int p = m - n + t;
          int first = (int) Math.max(0, p - c.window() + 1);
          int row = ((b * n + t) * heads + h);
          double max = Double.NEGATIVE_INFINITY;
          double decay = 0;
          double common = 0;
          for (int j = p; j >= first; j--) {
            int key = (b * m + j) * kvHeads + h / group;
            double product = 0;
            for (int i = 0; i < d; i++) {
              product = round(product + round(q[row * d + i] * k[key * d + i]));
            }
            boolean real = mask == null || mask[b * m + j] != 0;
            if (!single && real && max == Double.NEGATIVE_INFINITY && Double.isFinite(decay)) {
              common = decay;
              decay = 0;
            }
            score[j] = real ? round(round(scale * product) - decay) : Double.NEGATIVE_INFINITY;
            max = Math.max(max, score[j]);
            if (alpha != null) {
              decay = round(decay + alpha[(b * m + j) * heads + h]);
            }
          }
          if (max == Double.NEGATIVE_INFINITY) {
            lse[(b * heads + h) * n + t] = max;
            continue;
          }
          double sum = 0;
          for (int j = first; j <= p; j++) {
            score[j] = round(Math.exp(round(score[j] - max)));
            sum = round(sum + score[j]);
          }
          lse[(b * heads + h) * n + t] = round(max + round(Math.log(sum))) - common;
          double delta = 0;
          for (int i = 0; i < dv; i++) {
            double x = 0;
            for (int j = first; j <= p; j++) {
              int key = (b * m + j) * kvHeads + h / group;
              x = round(x + round(score[j] * v[key * dv + i]));
            }
            o[row * dv + i] = stored(round(x / sum));
            delta = round(delta + round(dO[row * dv + i] * o[row * dv + i]));
          }
          double heaviest = 0;
          double center = 0;
          for (int j = first; j <= p; j++) {
            int key = (b * m + j) * kvHeads + h / group;
            score[j] = round(score[j] / sum);
            dP[j] = 0;
            for (int i = 0; i < dv; i++) {
              dP[j] = round(dP[j] + round(dO[row * dv + i] * v[key * dv + i]));
              dvs[key * dv + i] = round(dvs[key * dv + i] + round(score[j] * dO[row * dv + i]));
            }
            if (!single && score[j] > heaviest) {
              heaviest = score[j];
              center = dP[j];
            }
          }
          if (!single) {
            delta = 0;
            for (int j = first; j <= p; j++) {
              delta += score[j] * (dP[j] - center);
            }
          }
          for (int j = first; j <= p; j++) {
            int key = (b * m + j) * kvHeads + h / group;
            dS[j] = round(score[j] * round(dP[j] - center - delta));
            double scaled = round(scale * dS[j]);
            for (int i = 0; i < d; i++) {
              dq[row * d + i] = round(dq[row * d + i] + round(scaled * k[key * d + i]));
              dk[key * d + i] = round(dk[key * d + i] + round(scaled * q[row * d + i]));
            }
          }
          double before = 0;
          for (int tau = first + 1; alpha != null && tau <= p; tau++) {
            before = round(before + dS[tau - 1]);
            int gate = (b * m + tau) * heads + h;
            dalpha[gate] = round(dalpha[gate] - before);
          }
        }
      }
    }
    List<INDArray> result = new ArrayList<>();
    result.add(array(o, batch, n, heads, dv));
    result.add(array(lse, batch, heads, n));
    result.add(array(dq, c.q().shape()));
    result.add(array(dk, c.k().shape()));
    result.add(array(dvs, c.v().shape()));
    if (alpha != null) {
      result.add(array(dalpha, c.alpha().shape()));
    }
    return result;
  }

  private static INDArray array(double[] values, long... shape) {
    return Nd4j.createFromArray(values).reshape(shape);
  }
}
