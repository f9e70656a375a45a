package io.github.gatedfwa.samediff;

import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;

/**
 * {@link VisiblePairs} in a graph, with gradients: ND4J's {@code where} has none. {@code seen} is 1
 * where a query sees a key and 0 elsewhere. Of the factors {@code x / x}, x = 0 makes a NaN of what
 * they multiply, and of its gradient.
 */
final class VisiblePairsGraph {

  private final SameDiff sd;

  VisiblePairsGraph(SameDiff sd) {
    this.sd = sd;
  }

  /** x where {@code seen} is 1, also a NaN, and 0 where it is 0, whatever x holds there. */
  SDVariable only(SDVariable seen, SDVariable x) {
    SDVariable bound = seen.div(seen.rsub(1)); // ∞ or 0
    SDVariable fine = sd.math().isNaN(x).castTo(x.dataType()).mul(seen).rsub(1);
    // ND4J's maximum of a NaN and a number is the number.
    return sd.min(sd.max(x, bound.neg()), bound).mul(seen.mul(fine.div(fine)));
  }

  /** Scores with a value below {@link VisiblePairs#DEAD} where a key is not seen. */
  SDVariable hide(SDVariable seen, SDVariable scores) {
    return only(seen, scores).sub(seen.rsub(1).mul(VisiblePairs.HIDDEN));
  }

  /**
   * weights · v, for weights [.., n, m] that are 0 where {@code seen}, of the same shape, is, and
   * any v [.., m, x]: NaN only where a query sees what is not finite.
   */
  SDVariable product(SDVariable seen, SDVariable weights, SDVariable v) {
    SDVariable finite = sd.math().isFinite(v).castTo(v.dataType());
    SDVariable fine = sd.mmul(seen, finite.rsub(1)).eq(0).castTo(v.dataType());
    return sd.mmul(weights, only(finite, v)).mul(fine.div(fine));
  }
}
