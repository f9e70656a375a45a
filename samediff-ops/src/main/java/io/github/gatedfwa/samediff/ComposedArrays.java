package io.github.gatedfwa.samediff;

import static org.nd4j.linalg.indexing.NDArrayIndex.all;
import static org.nd4j.linalg.indexing.NDArrayIndex.interval;

import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.factory.ops.NDBase;
import org.nd4j.linalg.indexing.BooleanIndexing;
import org.nd4j.linalg.indexing.conditions.Conditions;
import org.nd4j.linalg.ops.transforms.Transforms;

/**
 * The functions of the native ops, composed of ND4J's own ops on arrays. Queries are taken a tile
 * at a time with the keys that the tile sees, so that time and memory are linear in the length.
 * Half types are computed in float32, sums of alpha in float64.
 *
 * <p>Where the native op has −∞ scores, this has ones below {@link VisiblePairs#DEAD}: no inf − inf
 * arises.
 */
final class ComposedArrays {

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
    INDArray o = Nd4j.create(type(q), q.size(0), q.size(2), q.size(1), v.size(3));
    INDArray lse = Nd4j.create(type(q), q.size(0), q.size(2), q.size(1));
    Attention x = new Attention(q, k, v, alpha, mask, window, scale);
    for (long from = 0; from < x.queries && x.batch > 0; from += TILE) {
      Attention.Tile tile = x.tile(from);
      INDArray scores = tile.scores();
      INDArray max = Transforms.max(scores.max(true, 3), VisiblePairs.DEAD, false);
      INDArray weights = Transforms.exp(scores.subi(max), false);
      INDArray sum = weights.sum(true, 3);
      INDArray weighted = tile.visible.product(weights, tile.values);
      // A row that sees anything has a sum of at least 1.
      weighted.divi(Transforms.max(sum, 0.5, true));
      tile.ofQueries(o).assign(tile.ungrouped(weighted));
      tile.ofQueries(lse).assign(Transforms.log(sum, false).addi(max).reshape(tile.lseShape()));
    }
    return new INDArray[] {VisiblePairs.tokenFirst(o, q.dataType()), lse};
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
    INDArray ownLse = lse.isEmpty() ? lse : VisiblePairs.finiteLse(lse.dup('c'));
    INDArray ownGradient = VisiblePairs.headFirst(dO, x.type);
    INDArray dq = Nd4j.create(x.type, x.batch, x.heads, x.queries, x.headSize);
    INDArray dk = Nd4j.create(x.type, x.batch, x.kvHeads, x.keys, x.headSize);
    INDArray dv = Nd4j.create(x.type, x.batch, x.kvHeads, x.keys, x.valueSize);
    INDArray dalpha =
        alpha == null ? null : Nd4j.create(DataType.DOUBLE, x.batch, x.heads, x.keys, 1);
    for (long from = 0; from < x.queries && x.batch > 0; from += TILE) {
      Attention.Tile tile = x.tile(from);
      VisiblePairs visible = tile.visible;
      INDArray lseOfRows = tile.grouped(ownLse.reshape(x.batch, x.heads, x.queries, 1));
      INDArray weights = visible.clear(Transforms.exp(tile.scores().subi(lseOfRows), false));
      INDArray gradient = tile.grouped(ownGradient);
      INDArray dS = visible.clear(Nd4j.matmul(gradient, tile.values, false, true, false).dup('c'));
      // dO · o, but summed so that a row's dS adds up to 0 as exactly as it can.
      INDArray delta = dS.mul(weights).sum(true, 3);
      dS = visible.clear(dS.subi(delta).muli(weights));

      tile.ofQueries(dq).assign(tile.ungrouped(visible.product(dS, tile.keys).muli(x.scale)));
      tile.ofKeys(dk).addi(visible.transposedProduct(dS, tile.queries).muli(x.scale));
      tile.ofKeys(dv).addi(visible.transposedProduct(weights, gradient));
      if (dalpha != null) {
        tile.addDecayGradient(tile.ungrouped(dS).castTo(DataType.DOUBLE), dalpha);
      }
    }
    INDArray[] result = {
      VisiblePairs.tokenFirst(dq, q.dataType()),
      VisiblePairs.tokenFirst(dk, q.dataType()),
      VisiblePairs.tokenFirst(dv, q.dataType())
    };
    if (dalpha == null) {
      return result;
    }
    INDArray ofTokens = Nd4j.create(alpha.dataType(), alpha.shape());
    if (!ofTokens.isEmpty()) {
      ofTokens.assign(dalpha.reshape(x.batch, x.heads, x.keys).permute(0, 2, 1));
    }
    return new INDArray[] {result[0], result[1], result[2], ofTokens};
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

    /** [B, H, M, 1]; in float64, +∞ as {@link VisiblePairs#HIDDEN}. */
    private final INDArray alpha;

    /** 1 where the key is masked, [B, 1, M, 1]. */
    private final INDArray masked;

    Attention(
        INDArray q,
        INDArray k,
        INDArray v,
        INDArray alpha,
        INDArray mask,
        long window,
        double scale) {
      type = type(q);
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
      this.q = VisiblePairs.headFirst(q, type);
      this.k = VisiblePairs.headFirst(k, type);
      this.v = VisiblePairs.headFirst(v, type);
      boolean empty = batch == 0 || keys == 0;
      this.alpha = alpha == null || empty ? null : decays(alpha);
      masked =
          mask == null || empty
              ? null
              : mask.dup('c').castTo(type).eq(0).castTo(type).reshape(batch, 1, keys, 1);
    }

    private static INDArray decays(INDArray alpha) {
      INDArray decays = alpha.castTo(DataType.DOUBLE).permute(0, 2, 1).dup('c');
      // Not a minimum: ND4J's takes a NaN for the larger number.
      BooleanIndexing.replaceWhere(
          decays, VisiblePairs.HIDDEN, Conditions.greaterThan(VisiblePairs.HIDDEN));
      return decays.reshape(alpha.size(0), alpha.size(2), alpha.size(1), 1);
    }

    Tile tile(long from) {
      return new Tile(from);
    }

    /** The queries [from, to) and the keys [first, end) that one of them or another sees. */
    final class Tile {

      final long from;
      final long to;
      final int rows;

      /** [B, Hkv, G·n, D], the heads of a group below each other. */
      final INDArray queries;

      /** [B, Hkv, m, D] */
      final INDArray keys;

      /** [B, Hkv, m, Dv] */
      final INDArray values;

      final VisiblePairs visible;

      /** Σ alpha between key and query, [B, H, n, m], or null. */
      private final INDArray decay;

      /** The position of query {@code from}: keys from there on are the tile's own. */
      private final long position;

      private final long first;
      private final long end;

      Tile(long from) {
        this.from = from;
        this.to = Math.min(Attention.this.queries, from + TILE);
        this.rows = Math.toIntExact(to - from);
        this.position = Attention.this.keys - Attention.this.queries + from;
        this.first = Math.max(0, position - window + 1);
        this.end = position + rows;
        this.queries = grouped(q);
        this.keys = ofKeys(k).dup('c');
        this.values = ofKeys(v).dup('c');
        this.decay = alpha == null ? null : decay();
        this.visible = new VisiblePairs(unseen(), batch, kvHeads, group);
      }

      /** The part of an array [B, H, N, ..]. */
      INDArray ofQueries(INDArray array) {
        return part(array, from, to);
      }

      /** The part of an array [B, Hkv, M, ..]. */
      INDArray ofKeys(INDArray array) {
        return part(array, first, end);
      }

      private INDArray part(INDArray array, long a, long b) {
        return array.rank() == 3
            ? array.get(all(), all(), interval(a, b))
            : array.get(all(), all(), interval(a, b), all());
      }

      /** [B, H, N, x] as [B, Hkv, G·n, x]: the heads of a group below each other. */
      INDArray grouped(INDArray array) {
        return ofQueries(array).dup('c').reshape(batch, kvHeads, group * rows, array.size(3));
      }

      INDArray ungrouped(INDArray array) {
        return array.dup('c').reshape(batch, heads, rows, array.size(3));
      }

      long[] lseShape() {
        return new long[] {batch, heads, rows};
      }

      /** scale · q·k − decay [B, Hkv, G·n, m], below {@link VisiblePairs#DEAD} where invisible. */
      INDArray scores() {
        INDArray scores = Nd4j.matmul(queries, keys, false, true, false).dup('c').muli(scale);
        if (decay != null) {
          scores.subi(decay.castTo(type).reshape(scores.shape()));
        }
        return visible.hide(scores);
      }

      /**
       * Not 0 where the key is after the query, beyond its window, masked or before a hard reset:
       * [B or 1, Hkv or 1, G or 1, n, m].
       */
      private INDArray unseen() {
        INDArray row = Nd4j.arange(rows).castTo(DataType.DOUBLE).addi(position).reshape(rows, 1);
        INDArray column = Nd4j.arange((double) (end - first)).castTo(DataType.DOUBLE).addi(first);
        INDArray distance = row.sub(column.reshape(1, end - first));
        INDArray outside =
            distance
                .lt(0)
                .castTo(type)
                .addi(distance.gte(window).castTo(type))
                .reshape(1, 1, 1, rows, end - first);
        INDArray unseen =
            masked == null
                ? outside
                : outside.add(ofKeys(masked).dup('c').reshape(batch, 1, 1, 1, end - first));
        if (decay == null || decay.maxNumber().doubleValue() < VisiblePairs.HIDDEN) {
          return unseen;
        }
        INDArray reset = decay.gte(VisiblePairs.HIDDEN).castTo(type);
        return unseen.add(reset.reshape(batch, kvHeads, group, rows, end - first));
      }

      /** alpha of the keys [a, b), [B, H, b − a, 1]. */
      private INDArray alpha(long a, long b) {
        return part(alpha, a, b).dup('c');
      }

      /** x [B, H, n, y] with 0 where τ ≤ j: of the tile's own keys, τ down, j across. */
      private INDArray after(INDArray x) {
        INDArray index = Nd4j.arange(rows).castTo(DataType.DOUBLE);
        INDArray notAfter =
            index.reshape(rows, 1).gt(index.reshape(1, rows)).castTo(DataType.DOUBLE).rsub(1);
        return new VisiblePairs(notAfter.reshape(1, 1, 1, rows, rows), batch, heads, 1).only(x);
      }

      /**
       * Σ_{τ=j+1..p} alpha_τ, [B, H, n, m]: sums of what lies between j and p alone, never
       * differences of longer ones.
       */
      private INDArray decay() {
        INDArray own = alpha(position, end);
        INDArray among =
            cumsum(after(own.mul(Nd4j.ones(DataType.DOUBLE, 1, 1, rows, rows))), false, false, 2);
        if (first == position) {
          return among;
        }
        long before = position - first;
        INDArray earlier = cumsum(alpha(first, position), true, true, 2);
        INDArray across =
            earlier.reshape(batch, heads, 1, before).add(cumsum(own, false, false, 2));
        return Nd4j.concat(3, across, among);
      }

      /** Adds − Σ_{j &lt; τ ≤ p} dS_pj of this tile's p, dS [B, H, n, m], to dalpha. */
      void addDecayGradient(INDArray dS, INDArray dalpha) {
        long before = position - first;
        INDArray among = dS.get(all(), all(), all(), interval(before, end - first)).dup('c');
        INDArray own = after(cumsum(among, false, true, 2)).sum(true, 3);
        if (before > 0) {
          INDArray across = dS.get(all(), all(), all(), interval(0, before)).dup('c');
          own.addi(cumsum(across.sum(true, 3), false, true, 2));
          INDArray earlier = cumsum(across.sum(2), true, false, 2);
          part(dalpha, first, position).subi(earlier.reshape(batch, heads, before, 1));
        }
        part(dalpha, position, end).subi(own);
      }
    }
  }

  private static DataType type(INDArray q) {
    return NativeOp.accumulatorType(q.dataType());
  }

  private static INDArray cumsum(INDArray x, boolean exclusive, boolean reverse, int axis) {
    return new NDBase().cumsum(x, exclusive, reverse, axis);
  }
}
