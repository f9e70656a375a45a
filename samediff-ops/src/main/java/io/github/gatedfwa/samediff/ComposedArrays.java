package io.github.gatedfwa.samediff;

import static org.nd4j.linalg.indexing.NDArrayIndex.all;
import static org.nd4j.linalg.indexing.NDArrayIndex.interval;

import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.factory.ops.NDBase;
import org.nd4j.linalg.ops.transforms.Transforms;

/**
 * The functions of the native ops, composed of ND4J's own ops on arrays. Queries are taken a tile
 * at a time with the keys that the tile sees, so that time and memory are linear in the length.
 * Half types are computed in float32, sums of alpha in float64.
 *
 * <p>Where the native op has −∞ scores, this has ones below {@link #DEAD}: no inf − inf arises.
 */
final class ComposedArrays {

  /** What an invisible key adds to its score, and the largest decay: weights of exactly 0. */
  static final double HIDDEN = 1e30;

  /** A row whose largest score is below this sees nothing. */
  static final double DEAD = -1e20;

  private static final int TILE = 128;

  private ComposedArrays() {}

  static INDArray[] gatedFwa(
      INDArray q,
      INDArray k,
      INDArray v,
      INDArray alpha,
      INDArray mask,
      long window,
      double scale) {
    Arguments.attention("gated_fwa", q, k, v, alpha, mask, window, scale);
    Attention x = new Attention(q, k, v, alpha, mask, window, scale);
    INDArray o = Nd4j.create(x.type, x.batch, x.queries, x.heads, x.valueSize);
    INDArray lse = Nd4j.create(x.type, x.batch, x.heads, x.queries);
    if (o.isEmpty()) {
      return new INDArray[] {o.castTo(q.dataType()), lse};
    }
    for (long from = 0; from < x.queries; from += TILE) {
      Attention.Tile tile = x.tile(from);
      INDArray scores = tile.scores();
      INDArray max = Transforms.max(scores.max(true, 3), DEAD, false);
      INDArray weights = Transforms.exp(scores.subi(max), false);
      INDArray sum = weights.sum(true, 3);
      INDArray weighted = tile.ungrouped(Nd4j.matmul(tile.grouped(weights), tile.values()));
      // A row that sees anything has a sum of at least 1.
      weighted.divi(Transforms.max(sum, 0.5, true));
      tile.ofQueries(o).assign(weighted.permute(0, 2, 1, 3));
      INDArray logarithm = Transforms.log(sum, false).addi(max);
      lse.get(all(), all(), interval(tile.from, tile.to))
          .assign(logarithm.reshape(x.batch, x.heads, tile.rows));
    }
    return new INDArray[] {o.castTo(q.dataType()), lse};
  }

  static INDArray[] gatedFwaBp(
      INDArray q,
      INDArray k,
      INDArray v,
      INDArray alpha,
      INDArray mask,
      INDArray o,
      INDArray lse,
      INDArray dO,
      long window,
      double scale) {
    Arguments.attentionGradient("gated_fwa_bp", q, k, v, alpha, mask, o, lse, dO, window, scale);
    Attention x = new Attention(q, k, v, alpha, mask, window, scale);
    INDArray dq = Nd4j.create(x.type, q.shape());
    INDArray dk = Nd4j.create(x.type, k.shape());
    INDArray dv = Nd4j.create(x.type, v.shape());
    INDArray dalpha = alpha == null ? null : Nd4j.create(DataType.DOUBLE, alpha.shape());
    for (long from = 0; from < x.queries && x.batch > 0; from += TILE) {
      Attention.Tile tile = x.tile(from);
      INDArray lseOfRows =
          lse.get(all(), all(), interval(tile.from, tile.to))
              .dup('c')
              .reshape(x.batch, x.heads, tile.rows, 1);
      INDArray weights =
          Transforms.exp(tile.scores().subi(Transforms.max(lseOfRows, DEAD, false)), false);
      INDArray gradient = tile.ofQueries(dO).castTo(x.type).permute(0, 2, 1, 3).dup('c');
      INDArray grouped = tile.grouped(gradient);
      INDArray dS = tile.ungrouped(Nd4j.matmul(grouped, tile.values(), false, true, false));
      // dO · o, but summed so that a row's dS adds up to 0 as exactly as it can.
      INDArray delta = dS.mul(weights).sum(true, 3);
      dS.subi(delta).muli(weights);

      INDArray groupedDs = tile.grouped(dS);
      tile.ofQueries(dq)
          .assign(
              tile.ungrouped(Nd4j.matmul(groupedDs, tile.keys()).muli(x.scale))
                  .permute(0, 2, 1, 3));
      tile.ofKeys(dk)
          .addi(
              Nd4j.matmul(groupedDs, tile.queries(), true, false, false)
                  .muli(x.scale)
                  .permute(0, 2, 1, 3));
      tile.ofKeys(dv)
          .addi(
              Nd4j.matmul(tile.grouped(weights), grouped, true, false, false).permute(0, 2, 1, 3));
      if (dalpha != null) {
        tile.addDecayGradient(dS.castTo(DataType.DOUBLE), dalpha);
      }
    }
    INDArray[] result = {dq.castTo(q.dataType()), dk.castTo(q.dataType()), dv.castTo(q.dataType())};
    return dalpha == null
        ? result
        : new INDArray[] {result[0], result[1], result[2], dalpha.castTo(alpha.dataType())};
  }

  static INDArray gate(INDArray h, INDArray beta, double eps) {
    Arguments.gate("gated_fwa_gate", h, beta, eps);
    return h.isEmpty() ? h.ulike() : softplus(h.mul(beta).negi()).divi(beta.add(eps));
  }

  static INDArray[] gateBp(INDArray h, INDArray beta, INDArray dalpha, double eps) {
    Arguments.gateGradient("gated_fwa_gate_bp", h, beta, dalpha, eps);
    if (h.isEmpty()) {
      return new INDArray[] {h.ulike(), h.ulike()};
    }
    INDArray x = h.mul(beta).negi();
    INDArray divisor = beta.add(eps);
    INDArray slope = Transforms.sigmoid(x, true).divi(divisor);
    INDArray dh = slope.mul(beta).muli(dalpha).negi();
    INDArray quotient = softplus(x).divi(divisor).divi(divisor);
    INDArray dbeta = slope.muli(h).addi(quotient).muli(dalpha).negi();
    return new INDArray[] {dh, dbeta};
  }

  /**
   * log(1 + e^x) = max(x, 0) + log1p(e), e = e^−|x|. ND4J's log1p and softplus lose the tail; its
   * atanh does not: log1p(e) = 2 atanh(e / (2 + e)).
   */
  private static INDArray softplus(INDArray x) {
    INDArray e = Transforms.exp(Transforms.abs(x, true).negi(), false);
    INDArray logarithm = Transforms.atanh(e.divi(e.add(2)), false).muli(2);
    return logarithm.addi(Transforms.max(x, 0, true));
  }

  /** One call's arrays, laid out head by head: [B, Hkv, .., ..]. */
  private static final class Attention {

    final DataType type;
    final long batch;
    final long queries;
    final long keys;
    final long heads;
    final long kvHeads;
    final long group;
    final long headSize;
    final long valueSize;
    final long window;
    final double scale;
    private final INDArray q;
    private final INDArray k;
    private final INDArray v;
    private final INDArray alpha;
    private final INDArray mask;

    Attention(
        INDArray q,
        INDArray k,
        INDArray v,
        INDArray alpha,
        INDArray mask,
        long window,
        double scale) {
      type = NativeOp.accumulatorType(q.dataType());
      batch = q.size(0);
      queries = q.size(1);
      keys = k.size(1);
      heads = q.size(2);
      kvHeads = k.size(2);
      group = heads / kvHeads;
      headSize = q.size(3);
      valueSize = v.size(3);
      this.window = Math.min(window, keys);
      this.scale = scale != 0 ? scale : 1 / Math.sqrt((double) headSize);
      this.q = q;
      this.k = k;
      this.v = v;
      this.alpha = alpha;
      this.mask = mask;
    }

    Tile tile(long from) {
      return new Tile(from);
    }

    /** The queries [from, to) and the keys [first, end) that one of them or another sees. */
    final class Tile {

      final long from;
      final long to;
      final int rows;

      /** The position of query {@code from}: keys from there on are the tile's own. */
      private final long position;

      private final long first;
      private final long end;

      Tile(long from) {
        this.from = from;
        this.to = Math.min(queries, from + TILE);
        this.rows = Math.toIntExact(to - from);
        this.position = keys - queries + from;
        this.first = Math.max(0, position - window + 1);
        this.end = position + rows;
      }

      INDArray ofQueries(INDArray array) {
        return array.get(all(), interval(from, to), all(), all());
      }

      INDArray ofKeys(INDArray array) {
        return array.get(all(), interval(first, end), all(), all());
      }

      private INDArray headFirst(INDArray array) {
        return array.castTo(type).permute(0, 2, 1, 3).dup('c');
      }

      /** [B, H, n, x] as [B, Hkv, G·n, x]: the heads of a group below each other. */
      INDArray grouped(INDArray array) {
        return array.reshape(batch, kvHeads, group * rows, array.size(3));
      }

      INDArray ungrouped(INDArray array) {
        return array.dup('c').reshape(batch, heads, rows, array.size(3));
      }

      INDArray queries() {
        return grouped(headFirst(ofQueries(q)));
      }

      INDArray keys() {
        return headFirst(ofKeys(k));
      }

      INDArray values() {
        return headFirst(ofKeys(v));
      }

      /** scale · q·k − decay [B, H, n, m], below {@link #DEAD} where invisible. */
      INDArray scores() {
        INDArray scores = ungrouped(Nd4j.matmul(queries(), keys(), false, true, false));
        scores.muli(scale).subi(hidden());
        if (mask != null) {
          INDArray real = mask.get(all(), interval(first, end)).castTo(type).neq(0).castTo(type);
          scores.addi(real.subi(1).muli(HIDDEN).reshape(batch, 1, 1, end - first));
        }
        if (alpha != null) {
          scores.subi(decay().castTo(type));
        }
        return scores;
      }

      /** {@link #HIDDEN} where the key is after the query or beyond its window, [1, 1, n, m]. */
      private INDArray hidden() {
        INDArray row = Nd4j.arange(rows).castTo(DataType.DOUBLE).addi(position).reshape(rows, 1);
        INDArray column = Nd4j.arange((double) (end - first)).castTo(DataType.DOUBLE).addi(first);
        INDArray distance = row.sub(column.reshape(1, end - first));
        INDArray outside =
            distance.lt(0).castTo(type).addi(distance.gte(window).castTo(type)).muli(HIDDEN);
        return outside.reshape(1, 1, rows, end - first);
      }

      /** alpha of the keys [a, b), [B, H, b − a]. */
      private INDArray alpha(long a, long b) {
        INDArray decay = alpha.get(all(), interval(a, b), all()).castTo(DataType.DOUBLE);
        return Transforms.min(decay.permute(0, 2, 1).dup('c'), HIDDEN, false);
      }

      /** [τ &gt; j] of the tile's own keys, [1, 1, n, n]. */
      private INDArray after() {
        INDArray index = Nd4j.arange(rows).castTo(DataType.DOUBLE);
        return index
            .reshape(rows, 1)
            .gt(index.reshape(1, rows))
            .castTo(DataType.DOUBLE)
            .reshape(1, 1, rows, rows);
      }

      /**
       * Σ_{τ=j+1..p} alpha_τ, [B, H, n, m]: sums of what lies between j and p alone, never
       * differences of longer ones.
       */
      private INDArray decay() {
        INDArray own = alpha(position, end).reshape(batch, heads, rows, 1);
        INDArray among = cumsum(own.mul(after()), false, false, 2);
        if (first == position) {
          return among;
        }
        long before = position - first;
        INDArray earlier = cumsum(alpha(first, position), true, true, 2);
        INDArray across =
            earlier.reshape(batch, heads, 1, before).add(cumsum(own, false, false, 2));
        return Nd4j.concat(3, across, among);
      }

      /** Adds − Σ_{j &lt; τ ≤ p} dS_pj of this tile's p to dalpha. */
      void addDecayGradient(INDArray dS, INDArray dalpha) {
        long before = position - first;
        INDArray among = dS.get(all(), all(), all(), interval(before, end - first));
        INDArray own = cumsum(among, false, true, 2).mul(after()).sum(3);
        if (before > 0) {
          INDArray across = dS.get(all(), all(), all(), interval(0, before));
          own.addi(cumsum(across.sum(3), false, true, 2));
          INDArray earlier = cumsum(across.sum(2), true, false, 2);
          dalpha.get(all(), interval(first, position), all()).subi(earlier.permute(0, 2, 1));
        }
        dalpha.get(all(), interval(position, end), all()).subi(own.permute(0, 2, 1));
      }
    }
  }

  private static INDArray cumsum(INDArray x, boolean exclusive, boolean reverse, int axis) {
    return new NDBase().cumsum(x, exclusive, reverse, axis);
  }
}
