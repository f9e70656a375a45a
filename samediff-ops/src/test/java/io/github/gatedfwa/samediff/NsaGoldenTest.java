package io.github.gatedfwa.samediff;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.util.Map;
import java.util.stream.Stream;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

/** Every implementation against the float64 case {@code nsa_small}, in every type. */
class NsaGoldenTest {

  static Stream<Arguments> cases() {
    return Stream.of(DataType.FLOAT, DataType.DOUBLE, DataType.FLOAT16, DataType.BFLOAT16)
        .flatMap(type -> Stream.of(NsaImplementation.values()).map(x -> Arguments.of(type, x)));
  }

  @ParameterizedTest
  @MethodSource("cases")
  void branches(DataType type, NsaImplementation implementation) throws IOException {
    Golden golden = new Golden("nsa_small");
    long l = golden.json.get("blockLength").asLong();
    long d = golden.json.get("stride").asLong();
    INDArray k = golden.array("k");
    INDArray v = golden.array("v");
    NsaCase c =
        new NsaCase(
                golden.array("q"),
                new NDNsa().compressMean(k, l, d),
                new NDNsa().compressMean(v, l, d),
                null,
                k,
                v,
                null,
                Nd4j.zeros(DataType.DOUBLE, golden.array("q").shape()),
                l,
                d,
                golden.json.get("selectionBlock").asLong(),
                golden.json.get("topN").asLong(),
                golden.json.get("scale").asDouble())
            .castTo(type);
    var compressed = implementation.compressed(c);
    INDArray indices = implementation.select(c, compressed.get(1));
    var selected = implementation.selected(c, indices);
    assertThat(indices).isEqualTo(golden.integers("selected"));
    assertThat(Errors.relative(compressed.get(0), golden.array("o_cmp")))
        .isLessThanOrEqualTo(Errors.bound(type));
    assertThat(Errors.relative(selected.get(0), golden.array("o_slc")))
        .isLessThanOrEqualTo(Errors.bound(type));
  }

  /** The three branches and their gates, as a user builds them. */
  @ParameterizedTest
  @EnumSource(names = {"FLOAT", "DOUBLE", "HALF", "BFLOAT16"})
  void graph(DataType type) throws IOException {
    Golden golden = new Golden("nsa_small");
    NsaConfig config =
        new NsaConfig(
            golden.json.get("blockLength").asLong(),
            golden.json.get("stride").asLong(),
            golden.json.get("selectionBlock").asLong(),
            golden.json.get("topN").asLong(),
            golden.json.get("window").asLong());
    SameDiff sd = SameDiff.create();
    SDVariable q = sd.placeHolder("q", type, -1, -1, 4, 16);
    SDVariable k = sd.placeHolder("k", type, -1, -1, 2, 16);
    SDVariable v = sd.placeHolder("v", type, -1, -1, 2, 16);
    SDVariable kWin = sd.placeHolder("k_win", type, -1, -1, 2, 16);
    SDVariable vWin = sd.placeHolder("v_win", type, -1, -1, 2, 16);
    DataType gateType = NativeOp.accumulatorType(type);
    SDVariable alpha = sd.placeHolder("alpha", gateType, -1, -1, 4);
    SDVariable gates = sd.placeHolder("gates", type, -1, -1, 4, 3);
    SDNsa nsa = new SDNsa(sd);
    SDVariable kCmp = nsa.compressMean(k, config.blockLength(), config.stride());
    SDVariable vCmp = nsa.compressMean(v, config.blockLength(), config.stride());
    nsa.attention("o", q, k, v, kCmp, vCmp, kWin, vWin, alpha, gates, null, config);

    INDArray o =
        sd.outputSingle(
            Map.of(
                "q",
                golden.array("q").castTo(type),
                "k",
                golden.array("k").castTo(type),
                "v",
                golden.array("v").castTo(type),
                "k_win",
                golden.array("k_win").castTo(type),
                "v_win",
                golden.array("v_win").castTo(type),
                "alpha",
                golden.array("alpha").castTo(gateType),
                "gates",
                Nd4j.stack(3, golden.array("g_cmp"), golden.array("g_slc"), golden.array("g_win"))
                    .castTo(type)),
            "o");
    assertThat(o.dataType()).isEqualTo(type);
    assertThat(Errors.relative(o, golden.array("o"))).isLessThanOrEqualTo(Errors.bound(type));
  }
}
