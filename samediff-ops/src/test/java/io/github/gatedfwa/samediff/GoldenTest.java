package io.github.gatedfwa.samediff;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/** Every implementation against the float64 cases in {@code resources/golden}, in every type. */
class GoldenTest {

  private static final List<String> CASES =
      List.of(
          "basic",
          "chunk_with_cache",
          "decode_step",
          "gqa",
          "masked",
          "no_gate",
          "window_covers_all",
          "window_one");

  static Stream<Arguments> cases() {
    return CASES.stream()
        .flatMap(
            name ->
                Stream.of(DataType.FLOAT, DataType.DOUBLE, DataType.FLOAT16, DataType.BFLOAT16)
                    .flatMap(
                        type ->
                            Stream.of(Implementation.values())
                                .map(x -> Arguments.of(name, type, x))));
  }

  @ParameterizedTest
  @MethodSource("cases")
  void attention(String name, DataType type, Implementation implementation) throws IOException {
    Golden golden = new Golden(name);
    AttentionCase c =
        new AttentionCase(
                golden.array("q"),
                golden.array("k"),
                golden.array("v"),
                golden.has("alpha") ? golden.array("alpha") : null,
                golden.has("mask") ? golden.array("mask") : null,
                golden.array("dO"),
                golden.json.get("window").asLong(),
                golden.json.get("scale").asDouble())
            .castTo(type);
    List<INDArray> results = implementation.attention(c);
    assertThat(results).hasSize(golden.has("alpha") ? 6 : 5);
    for (int i = 0; i < results.size(); i++) {
      String array = Implementation.ATTENTION_NAMES.get(i);
      boolean accumulated = array.equals("lse") || array.equals("dalpha");
      assertThat(results.get(i).dataType())
          .isEqualTo(accumulated ? NativeOp.accumulatorType(type) : type);
      assertThat(Errors.relative(results.get(i), golden.array(array), unit(array, golden)))
          .as("relative error of %s", array)
          .isLessThanOrEqualTo(Errors.bound(type));
    }
  }

  /** With a window of 1 these gradients cancel: what is left is rounding of terms of dv's size. */
  private static Errors.Unit unit(String array, Golden golden) throws IOException {
    if (!List.of("dq", "dk", "dalpha").contains(array)) {
      return new Errors.Unit(0);
    }
    INDArray dv = golden.array("dv");
    double norm = dv.norm2Number().doubleValue();
    return new Errors.Unit(0.1 * norm / Math.sqrt((double) golden.array(array).length()));
  }

  @ParameterizedTest
  @MethodSource("cases")
  void gate(String name, DataType type, Implementation implementation) throws IOException {
    Golden golden = new Golden(name);
    if (!golden.has("h")) {
      assertThat(name).isEqualTo("no_gate");
      return;
    }
    DataType gateType = NativeOp.accumulatorType(type);
    List<INDArray> results =
        implementation.gate(
            golden.array("h").castTo(gateType),
            golden.array("beta").castTo(gateType),
            golden.array("dalpha").castTo(gateType),
            golden.json.get("eps").asDouble());
    for (int i = 0; i < results.size(); i++) {
      String array = Implementation.GATE_NAMES.get(i);
      assertThat(results.get(i).dataType()).isEqualTo(gateType);
      assertThat(Errors.relative(results.get(i), golden.array(array)))
          .as("relative error of %s", array)
          .isLessThanOrEqualTo(Errors.bound(gateType));
    }
  }
}
