package io.github.gatedfwa.samediff;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

/**
 * A random problem of native sparse attention against the formulas in float64: an error may be up
 * to twice that of the dense formulas in the same type, or up to the type's bound, per tensor; a
 * choice must be one of the best.
 */
record NsaProblem(long seed, NsaCase.Sizes sizes, Mask mask, DataType type) {

  enum Mask {
    NONE,
    MOST,
    FEW,
    BOOL
  }

  NsaCase nsaCase() {
    NsaCase c = NsaCase.random(seed, sizes);
    INDArray draw = Nd4j.rand(DataType.DOUBLE, sizes.batch(), sizes.keys());
    return switch (mask) {
      case NONE -> c;
      case MOST -> c.withMask(draw.lt(0.97).castTo(DataType.DOUBLE));
      case FEW -> c.withMask(draw.lt(0.3).castTo(DataType.DOUBLE));
      case BOOL -> c.withMask(draw.lt(0.9));
    };
  }

  void check(NsaImplementation implementation) {
    NsaCase c = nsaCase().castTo(type);
    if (implementation == NsaImplementation.COMPOSED_GRAPH && c.kCmp().isEmpty()) {
      return; // SameDiff has no empty arrays
    }
    List<INDArray> compressed = implementation.compressed(c);
    NsaOracle dense = NsaOracle.inType(type);
    compare(
        "compressed",
        compressed,
        NsaOracle.exact().compressed(c),
        dense.compressed(c),
        c.kCmp().size(1));
    INDArray indices = implementation.select(c, compressed.get(1));
    checkChoice(c, indices);
    compare(
        "selected",
        implementation.selected(c, indices),
        NsaOracle.exact().selected(c, indices),
        dense.selected(c, indices),
        Math.min(sizes.keys(), c.topN() * c.selectionBlock()));
  }

  private void compare(
      String op, List<INDArray> results, List<INDArray> exact, List<INDArray> dense, long visible) {
    double ofLse = roundingOf(exact.get(1), type);
    for (int i = 0; i < exact.size(); i++) {
      String name = NsaImplementation.NAMES.get(i);
      Errors.Unit unit = new Errors.Unit(leastSize(name, visible, sizes));
      double error = Errors.relative(results.get(i), exact.get(i), unit);
      // The dense formulas in float64 are the reference itself.
      double ofDense =
          type == DataType.DOUBLE ? 0 : Errors.relative(dense.get(i), exact.get(i), unit);
      assertThat(error)
          .as("%s: error of %s of %s", op, name, this)
          .isLessThanOrEqualTo(
              Math.max(i < 2 ? 0 : ofLse, Math.max(2 * ofDense, Errors.bound(type))));
    }
  }

  /**
   * Below this a result is what happens to be left of larger terms. o is a mean of random values
   * over at most so many visible keys; lse's error is a relative error of every weight; dv adds the
   * heads of a group; dq and dk are made of dO·v, which is of the order of the root of Dv.
   */
  private static double leastSize(String name, long visible, NsaCase.Sizes sizes) {
    return switch (name) {
      case "o" -> 0.5 / Math.sqrt(Math.max(1.0, (double) visible));
      case "lse" -> 1;
      case "dv" -> 0.5 * Math.sqrt((double) sizes.heads() / sizes.kvHeads());
      default -> 0.5 * Math.sqrt((double) sizes.valueSize());
    };
  }

  /** The backward pass is given lse: four ulp of it are a relative error of every weight. */
  private static double roundingOf(INDArray lse, DataType type) {
    double largest = 0;
    for (double x : lse.isEmpty() ? new double[0] : lse.dup('c').data().asDouble()) {
      largest = Double.isInfinite(x) ? largest : Math.max(largest, Math.abs(x));
    }
    return 4 * (type == DataType.DOUBLE ? Math.ulp(largest) : Math.ulp((float) largest));
  }

  /**
   * As many as there can be, ascending, and none left out that is clearly better than one taken.
   */
  private void checkChoice(NsaCase c, INDArray indices) {
    double[][][][] importances = NsaOracle.importances(c);
    double tolerance = c.q().dataType() == DataType.DOUBLE ? 1e-12 : 1e-5;
    int topN = (int) c.topN();
    assertThat(indices.dataType()).isEqualTo(DataType.INT32);
    for (int b = 0; b < importances.length; b++) {
      for (int t = 0; t < importances[b].length; t++) {
        for (int head = 0; head < importances[b][t].length; head++) {
          double[] importance = importances[b][t][head];
          List<Integer> taken = new ArrayList<>();
          for (int i = 0; i < topN; i++) {
            int s = indices.getInt(b, t, head, i);
            if (s == -1) {
              break;
            }
            taken.add(s);
          }
          String where = String.format("batch %d, query %d, head %d of %s", b, t, head, this);
          for (int i = taken.size(); i < topN; i++) {
            assertThat(indices.getInt(b, t, head, i)).as(where).isEqualTo(-1);
          }
          assertThat(taken).as(where).isSorted().doesNotHaveDuplicates();
          long candidates = Arrays.stream(importance).filter(x -> x >= 0).count();
          assertThat((long) taken.size()).as(where).isEqualTo(Math.min(topN, candidates));
          double least = Double.POSITIVE_INFINITY;
          for (int s : taken) {
            assertThat(importance[s]).as(where).isNotNegative();
            least = Math.min(least, importance[s]);
          }
          for (int s = 0; s < importance.length; s++) {
            if (!taken.contains(s)) {
              assertThat(importance[s])
                  .as("block %d, %s", s, where)
                  .isLessThanOrEqualTo(least + tolerance * c.q().size(2));
            }
          }
        }
      }
    }
  }
}
