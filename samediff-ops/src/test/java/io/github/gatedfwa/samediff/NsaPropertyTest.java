package io.github.gatedfwa.samediff;

import static org.assertj.core.api.Assertions.assertThat;

import io.github.gatedfwa.nativeops.Bits;
import java.util.ArrayList;
import java.util.List;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.Combinators;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.ShrinkingMode;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/** Drawn problems of native sparse attention. */
class NsaPropertyTest {

  @Provide
  Arbitrary<NsaProblem> problems() {
    Arbitrary<int[]> lengths =
        Combinators.combine(
                Arbitraries.oneOf(
                    Arbitraries.integers().between(1, 40), Arbitraries.of(63, 64, 65, 113, 129)),
                Arbitraries.oneOf(Arbitraries.just(0), Arbitraries.integers().between(1, 70)))
            .as((queries, earlier) -> new int[] {queries, queries + earlier});
    Arbitrary<int[]> heads =
        Combinators.combine(
                Arbitraries.of(1, 2),
                Arbitraries.of(1, 2, 4, 8),
                Arbitraries.of(1, 3, 8, 20),
                Arbitraries.of(1, 5, 8, 24))
            .as((kvHeads, group, d, dv) -> new int[] {kvHeads, group, d, dv});
    Arbitrary<int[]> blocks =
        Combinators.combine(
                Arbitraries.of(1, 2, 4, 8),
                Arbitraries.of(1, 2, 4),
                Arbitraries.of(1, 2, 3),
                Arbitraries.of(3, 4, 7, 40))
            .as((d, perBlock, multiple, topN) -> new int[] {d, perBlock, multiple, topN});
    return Combinators.combine(
            Arbitraries.longs().between(0, 1L << 40),
            lengths,
            heads,
            blocks,
            Arbitraries.of(NsaProblem.Mask.values()),
            Arbitraries.of(DataType.FLOAT, DataType.DOUBLE, DataType.FLOAT16, DataType.BFLOAT16))
        .as(
            (seed, length, head, block, mask, type) -> {
              int l = block[0] * block[1];
              return new NsaProblem(
                  seed,
                  new NsaCase.Sizes(
                      1 + seed % 2,
                      length[0],
                      length[1],
                      (long) head[0] * head[1],
                      head[0],
                      head[2],
                      head[3],
                      l,
                      block[0],
                      (long) l * block[2],
                      block[3]),
                  mask,
                  type);
            });
  }

  @Property(tries = 200, shrinking = ShrinkingMode.OFF)
  void nativeOps(@ForAll("problems") NsaProblem problem) {
    problem.check(NsaImplementation.NATIVE);
  }

  @Property(tries = 40, shrinking = ShrinkingMode.OFF)
  void composedArrays(@ForAll("problems") NsaProblem problem) {
    problem.check(NsaImplementation.COMPOSED_ARRAYS);
  }

  @Property(tries = 20, shrinking = ShrinkingMode.OFF)
  void composedGraph(@ForAll("problems") NsaProblem problem) {
    problem.check(NsaImplementation.COMPOSED_GRAPH);
  }

  @Property(tries = 50, shrinking = ShrinkingMode.OFF)
  void repeatsBitForBit(@ForAll("problems") NsaProblem problem) {
    NsaCase c = problem.nsaCase().castTo(problem.type());
    List<List<Bits>> runs = new ArrayList<>();
    for (int i = 0; i < 2; i++) {
      List<INDArray> run = new ArrayList<>(NsaImplementation.NATIVE.compressed(c));
      INDArray indices = NsaImplementation.NATIVE.select(c, run.get(1));
      run.add(indices);
      run.addAll(NsaImplementation.NATIVE.selected(c, indices));
      runs.add(Bits.of(run));
    }
    assertThat(runs.get(1)).as("%s", problem).isEqualTo(runs.get(0));
  }
}
