package io.github.gatedfwa.samediff;

import static org.assertj.core.api.Assertions.assertThat;

import io.github.gatedfwa.nativeops.Bits;
import io.github.gatedfwa.samediff.OraclePropertyTest.Problem;
import java.util.List;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.ShrinkingMode;

/**
 * Random problems with each operand in a memory layout of its own: the results have the same bits
 * as with contiguous arrays, which {@link OraclePropertyTest} compares with the formulas.
 */
class LayoutPropertyTest {

  @Provide
  Arbitrary<Problem> problems() {
    return new OraclePropertyTest().problems();
  }

  @Provide
  Arbitrary<List<ViewsTest.Layout>> layouts() {
    return Arbitraries.of(ViewsTest.Layout.values()).list().ofSize(6);
  }

  @Property(shrinking = ShrinkingMode.OFF)
  void nativeOps(
      @ForAll("problems") Problem problem, @ForAll("layouts") List<ViewsTest.Layout> layouts) {
    check(Implementation.NATIVE, problem, layouts);
  }

  @Property(tries = 60, shrinking = ShrinkingMode.OFF)
  void composedArrays(
      @ForAll("problems") Problem problem, @ForAll("layouts") List<ViewsTest.Layout> layouts) {
    check(Implementation.COMPOSED_ARRAYS, problem, layouts);
  }

  private static void check(
      Implementation implementation, Problem problem, List<ViewsTest.Layout> layouts) {
    AttentionCase c = problem.attentionCase().castTo(problem.type());
    AttentionCase views =
        new AttentionCase(
            layouts.get(0).apply(c.q()),
            layouts.get(1).apply(c.k()),
            layouts.get(2).apply(c.v()),
            c.alpha() == null ? null : layouts.get(3).apply(c.alpha()),
            c.mask() == null ? null : layouts.get(4).apply(c.mask()),
            layouts.get(5).apply(c.dO()),
            c.window(),
            c.scale());
    assertThat(Bits.of(implementation.attention(views)))
        .as("%s in %s", problem, layouts)
        .isEqualTo(Bits.of(implementation.attention(c)));
  }
}
