package io.github.gatedfwa.samediff;

import static org.assertj.core.api.Assertions.assertThat;

import io.github.gatedfwa.nativeops.Bits;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

/** Arrays in other layouts hold the same numbers, so they must give the same bits. */
class NsaViewsTest {

  static Stream<Arguments> layoutsAndTypes() {
    return Stream.of(ViewsTest.Layout.values())
        .flatMap(
            layout ->
                Stream.of(DataType.FLOAT, DataType.DOUBLE, DataType.FLOAT16, DataType.BFLOAT16)
                    .map(type -> Arguments.of(layout, type)));
  }

  private static NsaCase someCase(DataType type) {
    NsaCase c = NsaCase.random(7, new NsaCase.Sizes(2, 60, 73, 4, 2, 24, 16, 8, 4, 16, 4));
    return c.withMask(Nd4j.rand(DataType.DOUBLE, 2, 73).gt(0.05)).castTo(type);
  }

  @ParameterizedTest
  @MethodSource("layoutsAndTypes")
  void inputs(ViewsTest.Layout layout, DataType type) {
    NsaCase c = someCase(type);
    NsaCase views =
        new NsaCase(
            layout.apply(c.q()),
            layout.apply(c.kCmp()),
            layout.apply(c.vCmp()),
            layout.apply(c.blockMask()),
            layout.apply(c.k()),
            layout.apply(c.v()),
            layout.apply(c.mask()),
            layout.apply(c.dO()),
            c.blockLength(),
            c.stride(),
            c.selectionBlock(),
            c.topN(),
            c.scale());
    for (NsaImplementation implementation :
        List.of(NsaImplementation.NATIVE, NsaImplementation.COMPOSED_ARRAYS)) {
      List<INDArray> compressed = implementation.compressed(c);
      assertThat(Bits.of(implementation.compressed(views))).isEqualTo(Bits.of(compressed));
      INDArray indices = implementation.select(c, compressed.get(1));
      assertThat(implementation.select(views, layout.apply(compressed.get(1)))).isEqualTo(indices);
      assertThat(Bits.of(implementation.selected(views, viewOf(layout, indices))))
          .isEqualTo(Bits.of(implementation.selected(c, indices)));
    }
  }

  /**
   * One of the layouts fills what it does not use with NaN, which an array of INT does not take.
   */
  private static INDArray viewOf(ViewsTest.Layout layout, INDArray indices) {
    return layout == ViewsTest.Layout.INNER_PART ? indices : layout.apply(indices);
  }

  @ParameterizedTest
  @MethodSource("layoutsAndTypes")
  void outputs(ViewsTest.Layout layout, DataType type) {
    NsaCase c = someCase(type);
    List<INDArray> cmp = NsaImplementation.NATIVE.compressed(c);
    INDArray[] out =
        cmp.stream().map(x -> layout.apply(x.mul(Double.NaN))).toArray(INDArray[]::new);
    Nd4j.exec(
        new NsaCompressedAttention(
            c.q(), c.kCmp(), c.vCmp(), c.blockMask(), 8, 4, 73, 0, out[0], out[1]));
    Nd4j.exec(
        new NsaCompressedAttentionBp(
            c.q(),
            c.kCmp(),
            c.vCmp(),
            c.blockMask(),
            out[0],
            out[1],
            c.dO(),
            8,
            4,
            73,
            0,
            new INDArray[] {out[2], out[3], out[4]}));
    assertThat(Bits.of(List.of(out))).isEqualTo(Bits.of(cmp));

    INDArray indices = NsaImplementation.NATIVE.select(c, cmp.get(1));
    INDArray chosen = viewOf(layout, Nd4j.valueArrayOf(indices.shape(), -7, DataType.INT32));
    Nd4j.exec(new NsaSelect(c.q(), c.kCmp(), out[1], c.blockMask(), 8, 4, 16, 4, 73, 0, chosen));
    assertThat(chosen).isEqualTo(indices);

    List<INDArray> slc = NsaImplementation.NATIVE.selected(c, indices);
    out = slc.stream().map(x -> layout.apply(x.mul(Double.NaN))).toArray(INDArray[]::new);
    Nd4j.exec(
        new NsaSelectedAttention(c.q(), c.k(), c.v(), chosen, c.mask(), 16, 0, out[0], out[1]));
    Nd4j.exec(
        new NsaSelectedAttentionBp(
            c.q(),
            c.k(),
            c.v(),
            chosen,
            c.mask(),
            out[0],
            out[1],
            c.dO(),
            16,
            0,
            new INDArray[] {out[2], out[3], out[4]}));
    assertThat(Bits.of(List.of(out))).isEqualTo(Bits.of(slc));
  }
}
