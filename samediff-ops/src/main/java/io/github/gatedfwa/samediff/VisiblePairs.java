package io.github.gatedfwa.samediff;

import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.factory.ops.NDBase;
import org.nd4j.linalg.indexing.BooleanIndexing;
import org.nd4j.linalg.indexing.conditions.Conditions;
import org.nd4j.linalg.ops.transforms.Transforms;

/**
 * Which queries of a tile see which keys: attention over [B, Hkv, G, n, m] where what a pair that
 * is not seen holds does not matter, not even a NaN. Weights of 0 do not suffice: 0 · NaN is NaN.
 * Finite numbers take the short way, for ND4J's {@code where} is slow.
 */
final class VisiblePairs {

  /** What an invisible key adds to its score, and the largest decay: weights of exactly 0. */
  static final double HIDDEN = 1e30;

  /** A row whose largest score is below this sees nothing. */
  static final double DEAD = -1e20;

  private static final NDBase OPS = new NDBase();

  /** 0 where a key is seen, [B or 1, Hkv or 1, G or 1, n, m]. */
  private final INDArray unseen;

  private final long[] shape;

  VisiblePairs(INDArray unseen, long batch, long kvHeads, long group) {
    this.unseen = unseen;
    shape = new long[] {batch, kvHeads, group, unseen.size(3), unseen.size(4)};
  }

  /** Gives scores [B, Hkv, G·n, m] of pairs that are not seen a value below {@link #DEAD}. */
  INDArray hide(INDArray scores) {
    return clear(scores).reshape(shape).subi(unseen.mul(HIDDEN)).reshape(flat());
  }

  /** Takes NaN and infinities from the pairs of x [B, Hkv, G·n, m] that are not seen. */
  INDArray clear(INDArray x) {
    return isFinite(x) ? x : OPS.where(x, x.like(), seen());
  }

  /** x [B, Hkv, G·n, m] with 0 for the pairs that are not seen. */
  INDArray only(INDArray x) {
    return clear(x).reshape(shape).mul(unseen.eq(0).castTo(x.dataType())).reshape(flat());
  }

  /** a · b, for an a [B, Hkv, G·n, m] that is 0 where not seen and any b [B, Hkv, m, x]. */
  INDArray product(INDArray a, INDArray b) {
    return product(a, b, false);
  }

  /** aᵀ · b, for an a [B, Hkv, G·n, m] that is 0 where not seen and any b [B, Hkv, G·n, x]. */
  INDArray transposedProduct(INDArray a, INDArray b) {
    return product(a, b, true);
  }

  private INDArray product(INDArray a, INDArray b, boolean transposed) {
    INDArray product = Nd4j.matmul(a, b, transposed, false, false);
    if (isFinite(b)) {
      return product;
    }
    INDArray bad = Transforms.or(b.isNaN(), b.isInfinite());
    INDArray ofFinite =
        Nd4j.matmul(a, OPS.where(b.like(), b, bad), transposed, false, false).dup('c');
    INDArray badOnesSeen =
        Nd4j.matmul(
            seen().castTo(a.dataType()), bad.castTo(a.dataType()), transposed, false, false);
    return OPS.where(product.dup('c'), ofFinite, badOnesSeen.dup('c').gt(0));
  }

  private INDArray seen() {
    return unseen.eq(0).broadcast(shape).reshape(flat());
  }

  private long[] flat() {
    return new long[] {shape[0], shape[1], shape[2] * shape[3], shape[4]};
  }

  private static boolean isFinite(INDArray x) {
    return Double.isFinite(x.sumNumber().doubleValue());
  }

  /** lse of the forward pass with {@link #DEAD} for −∞, in place. */
  static INDArray finiteLse(INDArray lse) {
    // Not a maximum: ND4J's takes a NaN for the smaller number.
    BooleanIndexing.replaceWhere(lse, DEAD, Conditions.lessThan(DEAD));
    return lse;
  }

  /**
   * A copy of [B, n, H, x] as [B, H, n, x], in one piece: of a view, {@code INDArray.get} may give
   * an array of another shape.
   */
  static INDArray headFirst(INDArray x, DataType type) {
    return swapped(x.castTo(type));
  }

  /** A copy of [B, H, n, x] as [B, n, H, x]. */
  static INDArray tokenFirst(INDArray x, DataType type) {
    return swapped(x).castTo(type);
  }

  private static INDArray swapped(INDArray x) {
    return x.isEmpty()
        ? Nd4j.create(x.dataType(), x.size(0), x.size(2), x.size(1), x.size(3))
        : x.permute(0, 2, 1, 3).dup('c');
  }
}
