package io.github.gatedfwa.samediff;

import static org.assertj.core.api.Assertions.assertThat;
import static org.nd4j.linalg.indexing.NDArrayIndex.all;
import static org.nd4j.linalg.indexing.NDArrayIndex.interval;

import io.github.gatedfwa.nativeops.Bits;
import java.util.Arrays;
import java.util.List;
import java.util.function.UnaryOperator;
import java.util.stream.Stream;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.indexing.INDArrayIndex;

/** Arrays in other layouts hold the same numbers, so they must give the same bits. */
class ViewsTest {

  /** Copies an array into memory laid out in another way. */
  enum Layout implements UnaryOperator<INDArray> {
    FORTRAN {
      @Override
      public INDArray apply(INDArray x) {
        return x.dup('f');
      }
    },
    REVERSED_AXES {
      @Override
      public INDArray apply(INDArray x) {
        int[] order = new int[x.rank()];
        Arrays.setAll(order, i -> x.rank() - 1 - i);
        return x.permute(order).dup('c').permute(order);
      }
    },
    INNER_PART {
      @Override
      public INDArray apply(INDArray x) {
        long[] padded = x.shape().clone();
        INDArrayIndex[] part = new INDArrayIndex[x.rank()];
        for (int i = 0; i < padded.length; i++) {
          part[i] = interval(i + 1, i + 1 + padded[i]);
          padded[i] += 2 * i + 2;
        }
        INDArray whole = Nd4j.create(x.dataType(), padded);
        if (x.dataType() != DataType.BOOL) {
          whole.assign(Double.NaN);
        }
        INDArray view = whole.get(part);
        view.assign(x);
        return view;
      }
    },
    LAST_DIMENSION_PART {
      @Override
      public INDArray apply(INDArray x) {
        long[] wider = x.shape().clone();
        wider[wider.length - 1] += 3;
        INDArrayIndex[] part = new INDArrayIndex[x.rank()];
        Arrays.fill(part, all());
        part[x.rank() - 1] = interval(1, wider[wider.length - 1] - 2);
        INDArray view = Nd4j.create(x.dataType(), wider).get(part);
        view.assign(x);
        return view;
      }
    },
    EVERY_OTHER_ELEMENT {
      @Override
      public INDArray apply(INDArray x) {
        long[] wider = x.shape().clone();
        wider[wider.length - 1] *= 2;
        INDArrayIndex[] part = new INDArrayIndex[x.rank()];
        Arrays.fill(part, all());
        part[x.rank() - 1] = interval(0, 2, wider[wider.length - 1]);
        INDArray view = Nd4j.create(x.dataType(), wider).get(part);
        view.assign(x);
        return view;
      }
    }
  }

  static Stream<Arguments> layoutsAndTypes() {
    return Stream.of(Layout.values())
        .flatMap(
            layout ->
                Stream.of(DataType.FLOAT, DataType.DOUBLE, DataType.FLOAT16, DataType.BFLOAT16)
                    .map(type -> Arguments.of(layout, type)));
  }

  @ParameterizedTest
  @MethodSource("layoutsAndTypes")
  void inputsOfAttention(Layout layout, DataType type) {
    AttentionCase c = someCase(type);
    AttentionCase views = inLayout(c, layout);
    for (Implementation implementation :
        List.of(Implementation.NATIVE, Implementation.COMPOSED_ARRAYS)) {
      assertThat(Bits.of(implementation.attention(views)))
          .isEqualTo(Bits.of(implementation.attention(c)));
    }
  }

  static Stream<Arguments> layoutsAndLengths() {
    return Stream.of(Layout.values())
        .flatMap(
            layout ->
                Stream.of(new int[] {129, 129}, new int[] {200, 257}, new int[] {1, 129})
                    .map(lengths -> Arguments.of(layout, lengths[0], lengths[1])));
  }

  /** The composed version takes queries a tile of 128 at a time. */
  @ParameterizedTest
  @MethodSource("layoutsAndLengths")
  void composedBeyondATile(Layout layout, int queries, int keys) {
    AttentionCase c = AttentionCase.random(8, 1, queries, keys, 2, 1, 5, 4, 150, 1);
    c = c.withMask(Nd4j.rand(DataType.DOUBLE, 1, keys).gt(0.2).castTo(DataType.DOUBLE));
    List<INDArray> results = Implementation.COMPOSED_ARRAYS.attention(c);
    List<INDArray> exact = DenseOracle.exact(c);
    for (int i = 0; i < exact.size(); i++) {
      assertThat(Errors.relative(results.get(i), exact.get(i)))
          .as(Implementation.ATTENTION_NAMES.get(i))
          .isLessThan(1e-12);
    }
    assertThat(Bits.of(Implementation.COMPOSED_ARRAYS.attention(inLayout(c, layout))))
        .isEqualTo(Bits.of(results));
  }

  private static AttentionCase inLayout(AttentionCase c, Layout layout) {
    return new AttentionCase(
        layout.apply(c.q()),
        layout.apply(c.k()),
        layout.apply(c.v()),
        layout.apply(c.alpha()),
        layout.apply(c.mask()),
        layout.apply(c.dO()),
        c.window(),
        c.scale());
  }

  @ParameterizedTest
  @MethodSource("layoutsAndTypes")
  void outputsOfAttention(Layout layout, DataType type) {
    AttentionCase c = someCase(type);
    List<INDArray> expected = Implementation.NATIVE.attention(c);
    INDArray[] out =
        expected.stream().map(x -> layout.apply(x.mul(Double.NaN))).toArray(INDArray[]::new);
    Nd4j.exec(
        new GatedFwa(
            c.q(), c.k(), c.v(), c.alpha(), c.mask(), c.window(), c.scale(), out[0], out[1]));
    Nd4j.exec(
        new GatedFwaBp(
            c.q(),
            c.k(),
            c.v(),
            c.alpha(),
            c.mask(),
            out[0],
            out[1],
            c.dO(),
            c.window(),
            c.scale(),
            Arrays.copyOfRange(out, 2, 6)));
    assertThat(Bits.of(List.of(out))).isEqualTo(Bits.of(expected));
  }

  @ParameterizedTest
  @EnumSource(Layout.class)
  void gate(Layout layout) {
    INDArray h = Nd4j.randn(DataType.FLOAT, 2, 9, 3);
    INDArray beta = Nd4j.rand(DataType.FLOAT, 2, 9, 3).addi(0.5);
    INDArray dalpha = Nd4j.randn(DataType.FLOAT, 2, 9, 3);
    List<INDArray> expected = Implementation.NATIVE.gate(h, beta, dalpha, 1e-3);
    INDArray[] out =
        expected.stream().map(x -> layout.apply(x.mul(Double.NaN))).toArray(INDArray[]::new);
    Nd4j.exec(new GatedFwaGate(layout.apply(h), layout.apply(beta), 1e-3, out[0]));
    Nd4j.exec(
        new GatedFwaGateBp(
            layout.apply(h),
            layout.apply(beta),
            layout.apply(dalpha),
            1e-3,
            Arrays.copyOfRange(out, 1, 3)));
    assertThat(Bits.of(List.of(out))).isEqualTo(Bits.of(expected));
  }

  private static AttentionCase someCase(DataType type) {
    AttentionCase c = AttentionCase.random(7, 2, 70, 83, 4, 2, 24, 16, 20, 1);
    return c.withMask(Nd4j.rand(DataType.DOUBLE, 2, 83).gt(0.2)).castTo(type);
  }
}
