package io.github.gatedfwa.samediff;

import static org.assertj.core.api.Assertions.assertThat;

import io.github.gatedfwa.nativeops.Bits;
import java.util.List;
import java.util.Random;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.Combinators;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.ShrinkingMode;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

/**
 * Random problems against the formulas in float64: an error may be up to twice that of the dense
 * formulas in the same type, or up to the type's bound, per tensor.
 */
class OraclePropertyTest {

  /** A drawn problem; NONE, FINITE or RESETS (some alpha are +∞) says what the gate is like. */
  record Problem(
      long seed,
      int batch,
      int queries,
      int earlier,
      int kvHeads,
      int group,
      int headSize,
      int valueSize,
      int window,
      Gate gate,
      double maxDecay,
      Mask mask,
      DataType type) {

    AttentionCase attentionCase() {
      int keys = queries + earlier;
      AttentionCase c =
          AttentionCase.random(
              seed,
              batch,
              queries,
              keys,
              (long) kvHeads * group,
              kvHeads,
              headSize,
              valueSize,
              window,
              maxDecay);
      if (gate == Gate.NONE) {
        c = c.withAlpha(null);
      } else if (gate == Gate.RESETS) {
        double[] alpha = c.alpha().data().asDouble();
        Random random = new Random(seed);
        for (int i = 0; i < alpha.length; i++) {
          alpha[i] = random.nextInt(10) == 0 ? Double.POSITIVE_INFINITY : alpha[i];
        }
        c = c.withAlpha(Nd4j.createFromArray(alpha).reshape(c.alpha().shape()));
      }
      INDArray real = Nd4j.rand(DataType.DOUBLE, batch, keys).lt(mask == Mask.MOST ? 0.8 : 0.05);
      return switch (mask) {
        case NONE -> c;
        case MOST, FEW -> c.withMask(real.castTo(DataType.DOUBLE));
        case BOOL -> c.withMask(real);
      };
    }
  }

  enum Gate {
    NONE,
    FINITE,
    RESETS
  }

  enum Mask {
    NONE,
    MOST,
    FEW,
    BOOL
  }

  @Provide
  Arbitrary<Problem> problems() {
    Arbitrary<int[]> lengths =
        Combinators.combine(
                Arbitraries.oneOf(
                    Arbitraries.integers().between(1, 40), Arbitraries.of(63, 64, 65, 113, 129)),
                Arbitraries.oneOf(Arbitraries.just(0), Arbitraries.integers().between(1, 70)))
            .as((queries, earlier) -> new int[] {queries, earlier});
    Arbitrary<int[]> sizes =
        Combinators.combine(
                Arbitraries.of(1, 2),
                Arbitraries.of(1, 2, 4, 8),
                Arbitraries.of(1, 3, 8, 16, 20),
                Arbitraries.of(1, 5, 8, 24))
            .as((kvHeads, group, d, dv) -> new int[] {kvHeads, group, d, dv});
    Arbitrary<Integer> windows =
        Arbitraries.oneOf(
            Arbitraries.integers().between(1, 40), Arbitraries.of(63, 64, 65, 128, 1000));
    return Combinators.combine(
            Arbitraries.longs().between(0, 1L << 40),
            lengths,
            sizes,
            windows,
            Arbitraries.of(Gate.values()),
            Arbitraries.of(0.0, 0.01, 1.0, 10.0, 50.0),
            Arbitraries.of(Mask.values()),
            Arbitraries.of(DataType.FLOAT, DataType.DOUBLE, DataType.FLOAT16, DataType.BFLOAT16))
        .as(
            (seed, length, size, window, gate, decay, mask, type) ->
                new Problem(
                    seed,
                    1 + (int) (seed % 2),
                    length[0],
                    length[1],
                    size[0],
                    size[1],
                    size[2],
                    size[3],
                    window,
                    gate,
                    decay,
                    mask,
                    type));
  }

  @Property(shrinking = ShrinkingMode.OFF)
  void nativeOps(@ForAll("problems") Problem problem) {
    check(Implementation.NATIVE, problem);
  }

  @Property(tries = 60, shrinking = ShrinkingMode.OFF)
  void composedArrays(@ForAll("problems") Problem problem) {
    check(Implementation.COMPOSED_ARRAYS, problem);
  }

  @Property(tries = 30, shrinking = ShrinkingMode.OFF)
  void composedGraph(@ForAll("problems") Problem problem) {
    check(Implementation.COMPOSED_GRAPH, problem);
  }

  private static void check(Implementation implementation, Problem problem) {
    AttentionCase c = problem.attentionCase().castTo(problem.type());
    List<INDArray> exact = DenseOracle.exact(c);
    List<INDArray> dense = DenseOracle.inType(c);
    List<INDArray> results = implementation.attention(c);
    boolean composed = implementation != Implementation.NATIVE;
    double ofLse = composed ? roundingOf(exact.get(1), problem.type()) : 0;
    for (int i = 0; i < exact.size(); i++) {
      String name = Implementation.ATTENTION_NAMES.get(i);
      Errors.Unit unit = new Errors.Unit(leastSize(name, composed, problem));
      double error = Errors.relative(results.get(i), exact.get(i), unit);
      // The dense formulas in float64 are the reference itself.
      double ofDense =
          problem.type() == DataType.DOUBLE ? 0 : Errors.relative(dense.get(i), exact.get(i), unit);
      assertThat(error)
          .as("error of %s of %s", name, problem)
          .isLessThanOrEqualTo(
              Math.max(i < 2 ? 0 : ofLse, Math.max(2 * ofDense, Errors.bound(problem.type()))));
    }
  }

  /**
   * Below this a result is what happens to be left of larger terms. o is a mean of random values
   * over the window. lse is the largest score plus the logarithm of a sum; its error is a relative
   * error of every weight, whatever its size. dv adds the heads of a group. The others are made of
   * dS, and that of dO·v, which is of the order of the root of Dv; only the composed versions lose
   * what cancels in dS itself.
   */
  private static double leastSize(String name, boolean composed, Problem problem) {
    return switch (name) {
      case "o" ->
          0.5 / Math.sqrt(Math.min(problem.window(), problem.queries() + problem.earlier()));
      case "lse" -> 1;
      case "dv" -> 0.5 * Math.sqrt(problem.group());
      default -> composed ? 0.5 * Math.sqrt(problem.valueSize()) : 0.1; // dq, dk, dalpha
    };
  }

  /** The backward pass is given lse: four ulp of it are a relative error of every weight. */
  private static double roundingOf(INDArray lse, DataType type) {
    double largest = 0;
    for (double x : lse.dup('c').data().asDouble()) {
      largest = Double.isInfinite(x) ? largest : Math.max(largest, Math.abs(x));
    }
    return 4 * (type == DataType.DOUBLE ? Math.ulp(largest) : Math.ulp((float) largest));
  }

  @Property(tries = 100, shrinking = ShrinkingMode.OFF)
  void repeatsBitForBit(@ForAll("problems") Problem problem) {
    AttentionCase c = problem.attentionCase().castTo(problem.type());
    List<Bits> first = Bits.of(Implementation.NATIVE.attention(c));
    assertThat(Bits.of(Implementation.NATIVE.attention(c))).as("%s", problem).isEqualTo(first);
  }
}
