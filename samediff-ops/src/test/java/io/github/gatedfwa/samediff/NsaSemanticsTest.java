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
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.indexing.INDArrayIndex;

/** The corners of the definition, for every implementation. */
class NsaSemanticsTest {

  private static NsaCase someCase(long seed, long queries, long keys) {
    return NsaCase.random(seed, new NsaCase.Sizes(2, queries, keys, 4, 2, 8, 6, 8, 4, 8, 4))
        .castTo(DataType.DOUBLE);
  }

  /** All results: compressed, indices, selected. */
  private static List<INDArray> run(NsaImplementation implementation, NsaCase c) {
    List<INDArray> results = new ArrayList<>(implementation.compressed(c));
    INDArray indices = implementation.select(c, results.get(1));
    results.add(indices);
    results.addAll(implementation.selected(c, indices));
    return results;
  }

  @ParameterizedTest
  @EnumSource(NsaImplementation.class)
  void rowsThatSeeNothingGiveZeroAndPassNoGradient(NsaImplementation implementation) {
    NsaCase c = someCase(1, 30, 30).withMask(Nd4j.zeros(DataType.DOUBLE, 2, 30));
    List<INDArray> results = run(implementation, c.castTo(DataType.FLOAT));
    for (int i = 0; i < results.size(); i++) {
      if (i != 5) {
        double expected = i % 6 == 1 ? Double.NEGATIVE_INFINITY : 0;
        double[] values = results.get(i).castTo(DataType.DOUBLE).dup('c').data().asDouble();
        assertThat(DoubleStream.of(values).allMatch(x -> x == expected))
            .as("result %s", i)
            .isTrue();
      }
    }
    // The block of the query is taken whatever the mask.
    for (int t = 0; t < 30; t++) {
      assertThat(results.get(5).getInt(1, t, 0, 0)).isEqualTo(t / 8);
      assertThat(results.get(5).getInt(1, t, 0, 1)).isEqualTo(-1);
    }
  }

  /** The last queries alone, against all keys, give the last rows of the whole pass. */
  @ParameterizedTest
  @EnumSource(NsaImplementation.class)
  void fewQueriesAgainstACacheAreTheLastRows(NsaImplementation implementation) {
    NsaCase whole = someCase(2, 90, 90);
    List<INDArray> expected = run(implementation, whole);
    for (int last : new int[] {1, 7, 89}) {
      List<INDArray> results =
          run(
              implementation,
              whole.withQueries(lastTokens(whole.q(), last), lastTokens(whole.dO(), last)));
      for (int i : new int[] {0, 2, 6, 8}) {
        assertThat(Errors.relative(results.get(i), lastTokens(expected.get(i), last)))
            .isLessThan(1e-12);
      }
      assertThat(results.get(5)).isEqualTo(lastTokens(expected.get(5), last));
    }
  }

  private static INDArray lastTokens(INDArray x, int count) {
    return x.get(all(), interval(x.size(1) - count, x.size(1)), all(), all()).dup();
  }

  /**
   * One token after the other gives the bits of the whole pass: a stream makes the same choices.
   */
  @Test
  void streamingGivesTheBitsOfTheWholePass() {
    NsaCase whole = someCase(3, 150, 150).castTo(DataType.FLOAT);
    List<INDArray> expected = run(NsaImplementation.NATIVE, whole);
    for (int end : new int[] {1, 7, 8, 9, 64, 65, 100, 150}) {
      long blocks = NsaArguments.blocks(end, 8, 4);
      NsaCase c =
          new NsaCase(
              tokens(whole.q(), end - 1, end),
              tokens(whole.kCmp(), 0, blocks),
              tokens(whole.vCmp(), 0, blocks),
              null,
              tokens(whole.k(), 0, end),
              tokens(whole.v(), 0, end),
              null,
              tokens(whole.dO(), end - 1, end),
              8,
              4,
              8,
              4,
              0);
      List<INDArray> results = run(NsaImplementation.NATIVE, c);
      for (int i : new int[] {0, 5, 6}) {
        assertThat(Bits.of(results.get(i)))
            .as("result %s at token %s", i, end)
            .isEqualTo(Bits.of(tokens(expected.get(i), end - 1, end)));
      }
    }
  }

  private static INDArray tokens(INDArray x, long from, long to) {
    if (from == to) {
      return Nd4j.create(x.dataType(), x.size(0), 0, x.size(2), x.size(3));
    }
    return x.get(all(), interval(from, to), all(), all()).dup();
  }

  /** Padding on the right changes nothing, on the left only the numbers of the blocks. */
  @ParameterizedTest
  @EnumSource(NsaImplementation.class)
  void paddingChangesNothing(NsaImplementation implementation) {
    NsaCase alone = someCase(4, 50, 50);
    List<INDArray> expected = run(implementation, alone);
    for (long left : new long[] {0, 8, 24}) {
      long right = 22;
      long length = left + 50 + right;
      INDArray mask = Nd4j.zeros(DataType.DOUBLE, 2, length);
      mask.get(all(), interval(left, left + 50)).assign(1);
      NsaCase padded =
          new NsaCase(
                  pad(alone.q(), left, length),
                  pad(alone.kCmp(), left / 4, NsaArguments.blocks(length, 8, 4)),
                  pad(alone.vCmp(), left / 4, NsaArguments.blocks(length, 8, 4)),
                  null,
                  pad(alone.k(), left, length),
                  pad(alone.v(), left, length),
                  null,
                  pad(alone.dO(), left, length),
                  8,
                  4,
                  8,
                  4,
                  0)
              .withMask(mask);
      INDArray dO = padded.dO();
      // Padded queries pass no gradient here, as a loss that ignores them.
      dO.muli(mask.reshape(2, length, 1, 1));
      List<INDArray> results = run(implementation, padded);
      for (int i : new int[] {0, 2, 6, 8, 9, 10}) {
        assertThat(Errors.relative(tokens(results.get(i), left, left + 50), expected.get(i)))
            .as("result %s, %s tokens of padding", i, left)
            .isLessThan(1e-12);
      }
      for (int i : new int[] {3, 4}) {
        long first = left / 4;
        assertThat(
                Errors.relative(
                    tokens(results.get(i), first, first + alone.kCmp().size(1)), expected.get(i)))
            .isLessThan(1e-12);
      }
      INDArray shifted = tokens(results.get(5), left, left + 50).castTo(DataType.DOUBLE);
      shifted.subi(shifted.gte(0).castTo(DataType.DOUBLE).muli(left / 8.0));
      assertThat(shifted.castTo(DataType.INT32)).isEqualTo(expected.get(5));
    }
  }

  /** Some numbers around x, to make tokens or blocks [first, first + ..) of `length`. */
  private static INDArray pad(INDArray x, long first, long length) {
    INDArray padded = Nd4j.rand(DataType.DOUBLE, x.size(0), length, x.size(2), x.size(3));
    padded.get(all(), interval(first, first + x.size(1)), all(), all()).assign(x);
    return padded;
  }

  /** Of k and v at a masked token or block nothing is read, forward and backward. */
  @ParameterizedTest
  @EnumSource(NsaImplementation.class)
  void maskedKeysAreNotRead(NsaImplementation implementation) {
    INDArray mask = Nd4j.ones(DataType.DOUBLE, 2, 150);
    mask.putScalar(0, 21, 0).putScalar(1, 130, 0);
    NsaCase clean = someCase(10, 150, 150).withMask(mask);
    List<INDArray> expected = run(implementation, clean);
    NsaCase c = someCase(10, 150, 150).withMask(mask);
    for (INDArray operand : List.of(c.k(), c.v())) {
      operand.slice(0).slice(21).assign(Double.NaN);
      operand.slice(1).slice(130).assign(Double.NaN);
    }
    for (INDArray operand : List.of(c.kCmp(), c.vCmp())) {
      for (int b = 0; b < 2; b++) {
        for (int block = 0; block < operand.size(1); block++) {
          if (c.blockMask().getDouble(b, block) == 0) {
            operand.slice(b).slice(block).assign(Double.NaN);
          }
        }
      }
    }
    List<INDArray> results = run(implementation, c);
    for (int i = 0; i < results.size(); i++) {
      assertThat(Errors.relative(results.get(i), expected.get(i)))
          .as("result %s", i)
          .isLessThan(1e-14);
    }
  }

  /** A NaN in token 133 of k or v, and in compressed block 32 of kCmp or vCmp: [128, 136). */
  @ParameterizedTest
  @EnumSource(NsaImplementation.class)
  void nanStaysInTheRowsThatSeeIt(NsaImplementation implementation) {
    List<INDArray> clean = run(implementation, someCase(11, 150, 150));
    for (boolean inKeys : new boolean[] {true, false}) {
      NsaCase c = someCase(11, 150, 150);
      (inKeys ? c.kCmp() : c.vCmp()).putScalar(new long[] {1, 32, 0, 3}, Double.NaN);
      (inKeys ? c.k() : c.v()).putScalar(new long[] {1, 133, 0, 3}, Double.NaN);
      INDArray compressed = implementation.compressed(c).get(0);
      INDArray selected = implementation.selected(c, clean.get(5)).get(0);
      for (int t = 0; t < 150; t++) {
        boolean[] seen = {t >= 135, false};
        for (int i = 0; i < 4; i++) {
          seen[1] |= t >= 133 && clean.get(5).getInt(1, t, 0, i) == 133 / 8;
        }
        for (int i = 0; i < 2; i++) {
          INDArrayIndex[] row = {interval(1, 2), interval(t, t + 1), all(), all()};
          INDArray o = (i == 0 ? compressed : selected).get(row).dup();
          assertThat(o.isNaN().any()).as("query %s, result %s", t, i).isEqualTo(seen[i]);
          if (!seen[i]) {
            assertThat(o).isEqualTo(clean.get(6 * i).get(row).dup());
          }
        }
        // The heads of the other key/value head.
        assertThat(selected.get(interval(1, 2), interval(t, t + 1), interval(2, 4), all()).dup())
            .isEqualTo(
                clean.get(6).get(interval(1, 2), interval(t, t + 1), interval(2, 4), all()).dup());
      }
    }
  }

  /** Equal importances: the lower index first. */
  @ParameterizedTest
  @EnumSource(NsaImplementation.class)
  void tiesGoToTheLowerIndex(NsaImplementation implementation) {
    NsaCase c = someCase(5, 120, 120);
    c.q().assign(0);
    INDArray indices = implementation.select(c, implementation.compressed(c).get(1));
    for (int t = 0; t < 120; t++) {
      int own = t / 8;
      int[] expected = own < 4 ? new int[] {0, 1, 2, 3} : new int[] {0, 1, own - 1, own};
      for (int i = 0; i < 4; i++) {
        assertThat(indices.getInt(1, t, 1, i))
            .as("query %s, place %s", t, i)
            .isEqualTo(expected[i] > own ? -1 : expected[i]);
      }
    }
  }

  /** All blocks chosen, or blocks of one token: full causal attention, as gated_fwa computes it. */
  @ParameterizedTest
  @EnumSource(NsaImplementation.class)
  void limitsAreFullCausalAttention(NsaImplementation implementation) {
    NsaCase c =
        NsaCase.random(6, new NsaCase.Sizes(2, 60, 70, 4, 2, 8, 6, 1, 1, 8, 9))
            .castTo(DataType.DOUBLE);
    NsaCase same =
        new NsaCase(c.q(), c.k(), c.v(), null, c.k(), c.v(), null, c.dO(), 1, 1, 8, 9, 0);
    List<INDArray> expected =
        Implementation.NATIVE.attention(
            new AttentionCase(c.q(), c.k(), c.v(), null, null, c.dO(), 70, 0));
    List<INDArray> results = run(implementation, same);
    for (int i = 0; i < 5; i++) {
      assertThat(Errors.relative(results.get(i), expected.get(i))).isLessThan(1e-12);
      assertThat(Errors.relative(results.get(6 + i), expected.get(i))).isLessThan(1e-12);
    }
  }

  @ParameterizedTest
  @EnumSource(
      value = NsaImplementation.class,
      names = {"NATIVE", "COMPOSED_ARRAYS"})
  void emptyArraysAndShortSequences(NsaImplementation implementation) {
    for (long[] size : new long[][] {{0, 9, 9}, {2, 0, 20}, {2, 0, 0}, {2, 5, 7}, {1, 1, 1}}) {
      NsaCase c =
          NsaCase.random(7, new NsaCase.Sizes(size[0], size[1], size[2], 2, 1, 4, 4, 8, 4, 16, 3))
              .castTo(DataType.FLOAT);
      List<INDArray> results = run(implementation, c);
      assertThat(results.get(0).shape()).containsExactly(size[0], size[1], 2, 4);
      assertThat(results.get(1).shape()).containsExactly(size[0], 2, size[1]);
      assertThat(results.get(5).shape()).containsExactly(size[0], size[1], 1, 3);
      assertThat(results.get(9).shape()).containsExactly(size[0], size[2], 1, 4);
      for (int i : new int[] {0, 2, 3, 4}) {
        // No compressed block is complete, or there is no query.
        assertThat(results.get(i)).isEqualTo(results.get(i).like());
      }
      if (size[1] == 0) {
        assertThat(results.get(9)).isEqualTo(results.get(9).like());
        assertThat(results.get(10)).isEqualTo(results.get(10).like());
      } else if (size[0] > 0 && size[2] < 8) {
        assertThat(results.get(5).getInt(0, 0, 0, 0)).isEqualTo(0);
        assertThat(results.get(5).getInt(0, 0, 0, 1)).isEqualTo(-1);
        assertThat(results.get(6).norm2Number().doubleValue()).isPositive();
      }
    }
  }

  @Test
  void manyThreadsGetTheSameBits() throws Exception {
    NsaCase c = someCase(8, 150, 150).castTo(DataType.FLOAT);
    List<Bits> expected = Bits.of(run(NsaImplementation.NATIVE, c));
    ExecutorService pool = Executors.newFixedThreadPool(8);
    try {
      List<Future<Boolean>> runs = new ArrayList<>();
      for (int i = 0; i < 40; i++) {
        runs.add(pool.submit(() -> Bits.of(run(NsaImplementation.NATIVE, c)).equals(expected)));
      }
      for (Future<Boolean> one : runs) {
        assertThat(one.get()).isTrue();
      }
    } finally {
      pool.shutdown();
    }
  }

  /** What the front door returns is what the implementations return. */
  @Test
  void frontDoorOnArrays() {
    NsaCase c = someCase(9, 40, 40).castTo(DataType.FLOAT);
    NDNsa ops = new NDNsa();
    List<INDArray> results = new ArrayList<>();
    INDArray[] cmp = ops.compressedAttention(c.q(), c.kCmp(), c.vCmp(), null, 8, 4, 0, 0);
    results.addAll(Arrays.asList(cmp));
    results.addAll(
        Arrays.asList(
            ops.compressedAttentionBp(
                c.q(), c.kCmp(), c.vCmp(), null, cmp[0], cmp[1], c.dO(), 8, 4, 40, 0)));
    INDArray indices = ops.select(c.q(), c.kCmp(), cmp[1], null, 8, 4, 8, 4, 0, 0);
    results.add(indices);
    INDArray[] slc = ops.selectedAttention(c.q(), c.k(), c.v(), indices, null, 8, 0);
    results.addAll(Arrays.asList(slc));
    results.addAll(
        Arrays.asList(
            ops.selectedAttentionBp(
                c.q(), c.k(), c.v(), indices, null, slc[0], slc[1], c.dO(), 8, 0)));
    assertThat(results).isEqualTo(run(NsaImplementation.NATIVE, c));
  }
}
