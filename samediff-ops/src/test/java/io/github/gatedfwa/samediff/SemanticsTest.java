package io.github.gatedfwa.samediff;

import static org.assertj.core.api.Assertions.assertThat;
import static org.nd4j.linalg.indexing.NDArrayIndex.all;
import static org.nd4j.linalg.indexing.NDArrayIndex.interval;

import io.github.gatedfwa.nativeops.Bits;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.stream.DoubleStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.indexing.INDArrayIndex;

/** The corners of the definition, for every implementation. */
class SemanticsTest {

  @ParameterizedTest
  @EnumSource(Implementation.class)
  void rowsThatSeeNothingGiveZeroAndPassNoGradient(Implementation implementation) {
    AttentionCase c = AttentionCase.random(1, 2, 20, 20, 2, 1, 8, 8, 4, 1).castTo(DataType.FLOAT);
    List<INDArray> results =
        implementation.attention(c.withMask(Nd4j.zeros(DataType.FLOAT, 2, 20)));
    for (int i = 0; i < results.size(); i++) {
      double expected = i == 1 ? Double.NEGATIVE_INFINITY : 0;
      double[] values = results.get(i).castTo(DataType.DOUBLE).dup('c').data().asDouble();
      assertThat(DoubleStream.of(values).allMatch(x -> x == expected))
          .as(Implementation.ATTENTION_NAMES.get(i))
          .isTrue();
    }
  }

  /** alpha = +∞ at a masked token: it sees neither itself nor what came before. */
  @ParameterizedTest
  @EnumSource(Implementation.class)
  void resetAtMaskedTokenSeesNothing(Implementation implementation) {
    AttentionCase c = AttentionCase.random(2, 1, 9, 9, 1, 1, 4, 4, 9, 1).castTo(DataType.FLOAT);
    INDArray mask = Nd4j.ones(DataType.FLOAT, 1, 9);
    mask.putScalar(0, 5, 0);
    c.alpha().putScalar(0, 5, 0, Float.POSITIVE_INFINITY);
    AttentionCase reset = c.withMask(mask);
    List<INDArray> exact = DenseOracle.exact(reset);
    assertThat(exact.get(1).getDouble(0, 0, 5)).isEqualTo(Double.NEGATIVE_INFINITY);
    List<INDArray> results = implementation.attention(reset);
    for (int i = 0; i < results.size(); i++) {
      assertThat(Errors.relative(results.get(i), exact.get(i)))
          .as(Implementation.ATTENTION_NAMES.get(i))
          .isLessThan(2e-6);
    }
  }

  /** The last queries alone, against all keys, give the last rows of the whole pass. */
  @ParameterizedTest
  @EnumSource(Implementation.class)
  void fewQueriesAgainstACacheAreTheLastRows(Implementation implementation) {
    AttentionCase whole =
        AttentionCase.random(3, 2, 50, 50, 4, 2, 16, 16, 13, 1).castTo(DataType.DOUBLE);
    List<INDArray> expected = implementation.attention(whole);
    for (int last : new int[] {1, 7, 49}) {
      AttentionCase part =
          new AttentionCase(
              lastTokens(whole.q(), last),
              whole.k(),
              whole.v(),
              whole.alpha(),
              null,
              lastTokens(whole.dO(), last),
              13,
              0);
      List<INDArray> results = implementation.attention(part);
      assertThat(Errors.relative(results.get(0), lastTokens(expected.get(0), last)))
          .isLessThan(1e-12);
      assertThat(
              Errors.relative(
                  results.get(1), expected.get(1).get(all(), all(), interval(50 - last, 50))))
          .isLessThan(1e-12);
      assertThat(Errors.relative(results.get(2), lastTokens(expected.get(2), last)))
          .isLessThan(1e-12);
    }
  }

  private static INDArray lastTokens(INDArray x, int count) {
    return x.get(all(), interval(x.size(1) - count, x.size(1)), all(), all()).dup();
  }

  /** A NaN in token 140 of one operand; it is query 120. */
  enum Poison {
    Q,
    K,
    V,
    ALPHA;

    AttentionCase clean() {
      return AttentionCase.random(4, 2, 150, 170, 2, 1, 8, 8, 10, 1);
    }

    AttentionCase poisoned() {
      AttentionCase c = clean();
      switch (this) {
        case Q -> c.q().putScalar(new long[] {0, 120, 0, 3}, Double.NaN);
        case K -> c.k().putScalar(new long[] {0, 140, 0, 3}, Double.NaN);
        case V -> c.v().putScalar(new long[] {0, 140, 0, 3}, Double.NaN);
        case ALPHA -> c.alpha().putScalar(new long[] {0, 140, 0}, Double.NaN);
      }
      return c;
    }
  }

  static Stream<Arguments> implementationsAndPoisons() {
    return Stream.of(Implementation.values())
        .flatMap(
            implementation ->
                Stream.of(Poison.values()).map(poison -> Arguments.of(implementation, poison)));
  }

  /** The formulas, pair by pair, say which rows: q 140; k, v 140 to 149; alpha 140 to 148. */
  @ParameterizedTest
  @MethodSource("implementationsAndPoisons")
  void nanStaysInTheRowsThatSeeIt(Implementation implementation, Poison poison) {
    INDArray expected = DenseOracle.exact(poison.poisoned()).get(0);
    INDArray clean = implementation.attention(poison.clean()).get(0);
    INDArray o = implementation.attention(poison.poisoned()).get(0);
    int nanRows = 0;
    for (int p = 0; p < 150; p++) {
      INDArrayIndex[] row = {all(), interval(p, p + 1), all(), all()};
      boolean nan = expected.get(row).isNaN().any();
      nanRows += nan ? 1 : 0;
      assertThat(o.get(row).isNaN()).as("row %s", p).isEqualTo(expected.get(row).isNaN());
      if (!nan) {
        if (implementation == Implementation.NATIVE && poison != Poison.V) {
          assertThat(Bits.of(o.get(row))).as("row %s", p).isEqualTo(Bits.of(clean.get(row)));
        } else { // products of what is not finite are summed in another order
          assertThat(Errors.relative(o.get(row), clean.get(row))).as("row %s", p).isLessThan(1e-14);
        }
      }
    }
    assertThat(nanRows).isEqualTo(poison == Poison.Q ? 1 : poison == Poison.ALPHA ? 9 : 10);
  }

  @ParameterizedTest
  @EnumSource(Poison.class)
  void nanStaysInTheGradientsOfTheRowsThatSeeIt(Poison poison) {
    assertNaNsAsInTheFormulas(poison.poisoned());
  }

  private static void assertNaNsAsInTheFormulas(AttentionCase c) {
    List<INDArray> expected = DenseOracle.exact(c);
    List<INDArray> results = Implementation.COMPOSED_ARRAYS.attention(c);
    for (int i = 0; i < results.size(); i++) {
      assertThat(results.get(i).isNaN())
          .as(Implementation.ATTENTION_NAMES.get(i))
          .isEqualTo(expected.get(i).isNaN());
    }
  }

  /** From token 143 on, a hard reset for the first head, nothing before is seen. */
  @ParameterizedTest
  @EnumSource(Implementation.class)
  void nanStaysBeforeAHardReset(Implementation implementation) {
    AttentionCase c = Poison.K.poisoned();
    c.v().putScalar(new long[] {0, 140, 0, 3}, Double.NaN);
    c.alpha().putScalar(new long[] {0, 143, 0}, Double.POSITIVE_INFINITY);
    INDArray o = implementation.attention(c).get(0);
    for (int p = 20; p < 170; p++) {
      for (int head = 0; head < 2; head++) {
        assertThat(Double.isNaN(o.getDouble(0, p - 20, head, 3)))
            .as("position %s, head %s", p, head)
            .isEqualTo(p >= 140 && p < (head == 0 ? 143 : 150));
      }
    }
  }

  /** A NaN in dO: in the gradients of what its row sees. */
  @Test
  void nanGradientStaysInWhatItsRowSees() {
    AttentionCase c = Poison.Q.clean();
    c.dO().putScalar(new long[] {0, 120, 0, 3}, Double.NaN);
    assertNaNsAsInTheFormulas(c);
  }

  /** Of k and v at a masked token nothing is read, forward and backward. */
  @ParameterizedTest
  @EnumSource(Implementation.class)
  void maskedKeysAreNotRead(Implementation implementation) {
    INDArray mask = Nd4j.ones(DataType.DOUBLE, 2, 170);
    mask.putScalar(0, 3, 0).putScalar(0, 100, 0).putScalar(1, 140, 0);
    AttentionCase clean = Poison.K.clean().withMask(mask);
    List<INDArray> expected = implementation.attention(clean);
    for (double x : new double[] {Double.NaN, Double.POSITIVE_INFINITY, Double.NEGATIVE_INFINITY}) {
      AttentionCase c = Poison.K.clean().withMask(mask);
      for (INDArray operand : List.of(c.k(), c.v())) {
        for (int[] token : new int[][] {{0, 3}, {0, 100}, {1, 140}}) {
          operand.slice(token[0]).slice(token[1]).assign(x);
        }
      }
      List<INDArray> results = implementation.attention(c);
      for (int i = 0; i < results.size(); i++) {
        assertThat(Errors.relative(results.get(i), expected.get(i)))
            .as("%s beside %s", Implementation.ATTENTION_NAMES.get(i), x)
            .isLessThan(1e-14);
      }
    }
  }

  @ParameterizedTest
  @EnumSource(
      value = Implementation.class,
      names = {"NATIVE", "COMPOSED_ARRAYS"})
  void emptyArraysGiveEmptyResults(Implementation implementation) {
    INDArray none = Nd4j.create(DataType.FLOAT, 0, 3, 2, 4);
    INDArray alpha = Nd4j.create(DataType.FLOAT, 0, 3, 2);
    List<INDArray> results =
        implementation.attention(new AttentionCase(none, none, none, alpha, null, none, 2, 0));
    assertThat(results).allMatch(INDArray::isEmpty);
    assertThat(results.get(1).shape()).containsExactly(0, 2, 3);
  }

  /** No queries: nothing to attend, and nothing that reaches the keys. */
  @ParameterizedTest
  @EnumSource(
      value = Implementation.class,
      names = {"NATIVE", "COMPOSED_ARRAYS"})
  void noQueriesGiveZeroGradients(Implementation implementation) {
    INDArray none = Nd4j.create(DataType.FLOAT, 2, 0, 2, 4);
    INDArray keys = Nd4j.ones(DataType.FLOAT, 2, 3, 2, 4);
    INDArray alpha = Nd4j.ones(DataType.FLOAT, 2, 3, 2);
    List<INDArray> results =
        implementation.attention(new AttentionCase(none, keys, keys, alpha, null, none, 2, 0));
    assertThat(results.get(0).shape()).containsExactly(2, 0, 2, 4);
    assertThat(results.subList(3, 6)).allMatch(x -> x.equals(x.like()));
  }

  @ParameterizedTest
  @EnumSource(Implementation.class)
  void gateKeepsTheTailAndDoesNotOverflow(Implementation implementation) {
    INDArray h = Nd4j.createFromArray(-2000f, -90f, -1f, 0f, 1f, 20f, 85f).reshape(1, 7, 1);
    INDArray ones = Nd4j.ones(DataType.FLOAT, 1, 7, 1);
    List<INDArray> results = implementation.gate(h, ones, ones, 1e-3);
    for (int t = 0; t < 7; t++) {
      double x = -h.getDouble(0, t, 0);
      double softplus = Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
      double sigmoid = 1 / (1 + Math.exp(-x));
      assertThat(results.get(0).getDouble(0, t, 0) / (softplus / 1.001))
          .as("alpha of %s", -x)
          .isBetween(1 - 1e-5, 1 + 1e-5);
      assertThat(results.get(1).getDouble(0, t, 0) / (-sigmoid / 1.001))
          .as("dh of %s", -x)
          .isBetween(1 - 1e-5, 1 + 1e-5);
    }
  }

  /** A window that does not fit into libnd4j's 32 bits still covers everything. */
  @Test
  void hugeWindowIsFullAttention() {
    AttentionCase c = AttentionCase.random(5, 1, 30, 30, 2, 2, 8, 8, 30, 1).castTo(DataType.FLOAT);
    INDArray expected = Nd4j.exec(new GatedFwa(c.q(), c.k(), c.v(), c.alpha(), null, 30, 0))[0];
    assertThat(Nd4j.exec(new GatedFwa(c.q(), c.k(), c.v(), c.alpha(), null, (1L << 32) + 1, 0))[0])
        .isEqualTo(expected);
  }

  @Test
  void manyThreadsGetTheSameBits() throws Exception {
    AttentionCase c =
        AttentionCase.random(6, 2, 150, 150, 4, 2, 32, 32, 64, 1).castTo(DataType.FLOAT);
    List<Bits> expected = Bits.of(Implementation.NATIVE.attention(c));
    ExecutorService pool = Executors.newFixedThreadPool(8);
    try {
      List<Future<Boolean>> runs = new ArrayList<>();
      for (int i = 0; i < 80; i++) {
        runs.add(pool.submit(() -> Bits.of(Implementation.NATIVE.attention(c)).equals(expected)));
      }
      for (Future<Boolean> run : runs) {
        assertThat(run.get()).isTrue();
      }
    } finally {
      pool.shutdown();
    }
  }

  /** What the front door returns is what the implementations return. */
  @Test
  void frontDoorOnArrays() {
    AttentionCase c = AttentionCase.random(8, 1, 12, 12, 2, 1, 8, 8, 5, 1).castTo(DataType.FLOAT);
    NDGatedFwa ops = new NDGatedFwa();
    INDArray[] forward = ops.gatedFwa(c.q(), c.k(), c.v(), c.alpha(), null, 5, 0);
    INDArray[] backward =
        ops.gatedFwaBp(c.q(), c.k(), c.v(), c.alpha(), null, forward[0], forward[1], c.dO(), 5, 0);
    List<INDArray> all = new ArrayList<>(Arrays.asList(forward));
    all.addAll(Arrays.asList(backward));
    assertThat(Bits.of(all)).isEqualTo(Bits.of(Implementation.NATIVE.attention(c)));
    INDArray h = Nd4j.randn(DataType.FLOAT, 1, 12, 2);
    INDArray beta = Nd4j.ones(DataType.FLOAT, 1, 12, 2);
    List<INDArray> gate = new ArrayList<>(List.of(ops.gate(h, beta, GatedFwaOps.DEFAULT_EPS)));
    gate.addAll(Arrays.asList(ops.gateBp(h, beta, beta, GatedFwaOps.DEFAULT_EPS)));
    assertThat(gate).isEqualTo(Implementation.NATIVE.gate(h, beta, beta, GatedFwaOps.DEFAULT_EPS));
  }
}
