package io.github.gatedfwa.samediff;

import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;
import org.nd4j.linalg.api.buffer.DataType;

/**
 * The functions of the native ops as graphs of ND4J's own ops, whose gradients are ND4J's. Dense:
 * memory grows with N · M, and M² where there is an alpha. Half types are computed in float32, sums
 * of alpha in float64. As in {@link ComposedArrays}, invisible keys get large negative scores, and
 * a NaN reaches the rows that see it; but it may reach the gradients of other rows, unless its key
 * is masked.
 */
final class ComposedGraph {

  private final SameDiff sd;
  private final VisiblePairsGraph pairs;

  ComposedGraph(SameDiff sd) {
    this.sd = sd;
    pairs = new VisiblePairsGraph(sd);
  }

  SDVariable[] gatedFwa(
      SDVariable q,
      SDVariable k,
      SDVariable v,
      SDVariable alpha,
      SDVariable mask,
      long window,
      double scale) {
    Arguments.present("gated_fwa", "q", q);
    Arguments.present("gated_fwa", "k", k);
    Arguments.present("gated_fwa", "v", v);
    DataType type = NativeOp.accumulatorType(q.dataType());
    SDVariable[] shape = sd.unstack(sd.shape(q), 0, 4);
    SDVariable batch = shape[0];
    SDVariable queries = shape[1];
    SDVariable heads = shape[2];
    SDVariable headSize = shape[3];
    SDVariable[] valueShape = sd.unstack(sd.shape(v), 0, 4);
    SDVariable keys = valueShape[1];
    SDVariable kvHeads = valueShape[2];
    SDVariable valueSize = valueShape[3];
    SDVariable rest = sd.constant(-1L);
    SDVariable one = sd.constant(1L);

    SDVariable row =
        sd.expandDims(range(keys.sub(queries), keys), 1); // position of each query, [N, 1]
    SDVariable column = sd.expandDims(range(sd.constant(0L), keys), 0); // [1, M]
    SDVariable distance = row.sub(column);
    SDVariable seen =
        distance
            .gte(0)
            .castTo(type)
            .mul(distance.lt((double) window).castTo(type))
            .reshape(sd.stack(0, one, one, queries, keys));
    SDVariable ownK = k.castTo(type);
    if (mask != null) {
      SDVariable real = mask.castTo(type).neq(0).castTo(type);
      seen = seen.mul(real.reshape(sd.stack(0, batch, one, one, keys)));
      ownK = pairs.only(real.reshape(sd.stack(0, batch, keys, one, one)), ownK);
    }

    // The heads of a group below each other: [B, Hkv, G·N, D].
    SDVariable grouped = headFirst(q, type).reshape(sd.stack(0, batch, kvHeads, rest, headSize));
    SDVariable products = sd.mmul(grouped, headFirst(ownK, type), false, true, false);
    SDVariable scores = products.reshape(sd.stack(0, batch, heads, queries, keys));
    scores = scale != 0 ? scores.mul(scale) : scores.div(sd.math().sqrt(headSize.castTo(type)));

    if (alpha != null) {
      SDVariable decay = decay(alpha, batch, queries, heads, keys);
      scores = scores.sub(decay.castTo(type));
      seen = seen.mul(decay.gte(VisiblePairs.HIDDEN).castTo(type).rsub(1)); // no hard reset between
    }
    scores = pairs.hide(seen, scores);

    SDVariable dead = sd.constant(VisiblePairs.DEAD).castTo(type);
    SDVariable max = sd.max(sd.max(scores, true, 3), dead);
    SDVariable weights = sd.math().exp(scores.sub(max));
    SDVariable sum = weights.sum(true, 3);
    // A row that sees anything has a sum of at least 1.
    SDVariable probabilities = weights.div(sd.max(sum, sd.constant(0.5).castTo(type)));
    SDVariable flat = sd.stack(0, batch, kvHeads, rest, keys);
    SDVariable ofHeads = seen.add(sd.zerosLike(scores));
    SDVariable o =
        pairs.product(ofHeads.reshape(flat), probabilities.reshape(flat), headFirst(v, type));
    SDVariable perHead = o.reshape(sd.stack(0, batch, heads, queries, valueSize));
    SDVariable lse = sd.math().log(sum).add(max).reshape(sd.stack(0, batch, heads, queries));
    return new SDVariable[] {perHead.permute(0, 2, 1, 3).castTo(q.dataType()), lse};
  }

  SDVariable gate(SDVariable h, SDVariable beta, double eps) {
    Arguments.present("gated_fwa_gate", "h", h);
    Arguments.present("gated_fwa_gate", "beta", beta);
    return softplus(h.mul(beta).neg()).div(beta.add(eps));
  }

  /** As in {@link ComposedArrays}; a trifle beside 0, where max(x, 0) and |x| have no slope. */
  private SDVariable softplus(SDVariable x) {
    SDVariable beside = x.add(1e-30);
    SDVariable e = sd.math().exp(sd.math().abs(beside).neg());
    SDVariable logarithm = sd.math().atanh(e.div(e.add(2))).mul(2);
    return logarithm.add(sd.nn().relu(beside, 0));
  }

  /**
   * Σ_{τ=j+1..p} alpha_τ, [B, H, N, M]: a running sum over τ of what comes after j, so that neither
   * it nor its gradient is a difference of long sums. τ comes first in the layout because ND4J's
   * gradient of cumsum is right for axis 0 only. NaN are taken out before and counted: one between
   * j and p makes a NaN.
   */
  private SDVariable decay(
      SDVariable alpha, SDVariable batch, SDVariable queries, SDVariable heads, SDVariable keys) {
    SDVariable zero = sd.constant(0L);
    SDVariable one = sd.constant(1L);
    SDVariable index = range(zero, keys);
    SDVariable after = sd.expandDims(index, 1).gt(sd.expandDims(index, 0)); // [τ > j]
    SDVariable wide = alpha.castTo(DataType.DOUBLE);
    SDVariable isNaN = sd.math().isNaN(wide).castTo(DataType.DOUBLE);
    SDVariable finite = sd.min(pairs.only(isNaN.rsub(1), wide), sd.constant(VisiblePairs.HIDDEN));
    SDVariable token = finite.permute(1, 0, 2).reshape(sd.stack(0, keys, batch, heads, one));
    SDVariable counted =
        token.mul(after.castTo(DataType.DOUBLE).reshape(sd.stack(0, keys, one, one, keys)));
    SDVariable ofQueries =
        sd.slice(
            sd.cumsum(counted, false, false, 0),
            sd.stack(0, keys.sub(queries), zero, zero, zero),
            sd.stack(0, queries, batch, heads, keys));
    SDVariable count = sd.cumsum(isNaN.permute(1, 0, 2), false, false, 0).permute(1, 2, 0);
    SDVariable countOfQueries =
        sd.slice(
            count, sd.stack(0, zero, zero, keys.sub(queries)), sd.stack(0, batch, heads, queries));
    SDVariable between = sd.expandDims(countOfQueries, 3).sub(sd.expandDims(count, 2));
    SDVariable fine = between.lte(0).castTo(DataType.DOUBLE);
    return ofQueries.permute(1, 2, 0, 3).mul(fine.div(fine));
  }

  private SDVariable range(SDVariable from, SDVariable to) {
    return sd.range(from, to, sd.constant(1L), DataType.INT64);
  }

  private static SDVariable headFirst(SDVariable x, DataType type) {
    return x.castTo(type).permute(0, 2, 1, 3);
  }
}
