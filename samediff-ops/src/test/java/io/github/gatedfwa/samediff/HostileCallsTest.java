package io.github.gatedfwa.samediff;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.catchThrowable;
import static org.nd4j.linalg.indexing.NDArrayIndex.all;
import static org.nd4j.linalg.indexing.NDArrayIndex.interval;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.api.ops.DynamicCustomOp;
import org.nd4j.linalg.factory.Nd4j;

/**
 * Wrong calls: each must give an exception that names op, argument, what came and what is allowed,
 * whether the native op, its class or the composed version is called, and leave the JVM working.
 */
class HostileCallsTest {

  private static final long B = 2;
  private static final long N = 33;
  private static final long M = 40;
  private static final long H = 4;
  private static final long HKV = 2;
  private static final long D = 16;
  private static final long DV = 8;

  @BeforeAll
  static void load() {
    GatedFwaOps.load();
  }

  /** Inputs of one call, in order, and its arguments. */
  private static final class Call {
    final List<INDArray> inputs =
        new ArrayList<>(
            List.of(
                Nd4j.ones(DataType.FLOAT, B, N, H, D),
                Nd4j.ones(DataType.FLOAT, B, M, HKV, D),
                Nd4j.ones(DataType.FLOAT, B, M, HKV, DV),
                Nd4j.ones(DataType.FLOAT, B, M, H),
                Nd4j.ones(DataType.FLOAT, B, M),
                Nd4j.ones(DataType.FLOAT, B, N, H, DV),
                Nd4j.ones(DataType.FLOAT, B, H, N),
                Nd4j.ones(DataType.FLOAT, B, N, H, DV)));
    long window = 5;
    double scale = 0;

    Call input(int index, DataType type, long... shape) {
      inputs.set(index, Nd4j.ones(type, shape));
      return this;
    }

    Call window(long other) {
      window = other;
      return this;
    }

    Call scale(double other) {
      scale = other;
      return this;
    }

    INDArray get(int index) {
      return inputs.get(index);
    }
  }

  record Wrong(String message, Call call, boolean backwardOnly) {
    @Override
    public String toString() {
      return message;
    }
  }

  private static Wrong wrong(String message, Call call) {
    return new Wrong(message, call, false);
  }

  static Stream<Wrong> wrongCalls() {
    DataType f = DataType.FLOAT;
    return Stream.of(
        wrong("argument 'window' is -3; it must be at least 1", new Call().window(-3)),
        wrong("argument 'window' is 0; it must be at least 1", new Call().window(0)),
        wrong("it must be finite (0 means 1/sqrt(D))", new Call().scale(Double.NaN)),
        wrong("argument 'scale' is ", new Call().scale(Double.NEGATIVE_INFINITY)),
        wrong(
            "q is INT; expected FLOAT, DOUBLE, HALF or BFLOAT16",
            new Call().input(0, DataType.INT32, B, N, H, D)),
        wrong(
            "q has shape [33, 4, 16]; expected [>=0, >=0, >=1, 1..256]",
            new Call().input(0, f, N, H, D)),
        wrong("q has shape [2, 33, 4, 257]", new Call().input(0, f, B, N, H, 257)),
        wrong("q has shape [2, 33, 4, 0]", new Call().input(0, f, B, N, H, 0)),
        wrong("k is DOUBLE; expected FLOAT", new Call().input(1, DataType.DOUBLE, B, M, HKV, D)),
        wrong(
            "k has shape [2, 40, 3, 16]; expected [2, >=33, a divisor of 4, 16]",
            new Call().input(1, f, B, M, 3, D)),
        wrong("k has shape [2, 40, 8, 16]", new Call().input(1, f, B, M, 8, D)),
        wrong("k has shape [2, 32, 2, 16]", new Call().input(1, f, B, 32, HKV, D)),
        wrong("k has shape [3, 40, 2, 16]", new Call().input(1, f, 3, M, HKV, D)),
        wrong("k has shape [2, 40, 2, 15]", new Call().input(1, f, B, M, HKV, 15)),
        wrong("k has shape [16]", new Call().input(1, f, 16)),
        wrong("v is BFLOAT16; expected FLOAT", new Call().input(2, DataType.BFLOAT16, B, M, 2, 8)),
        wrong(
            "v has shape [2, 41, 2, 8]; expected [2, 40, 2, 1..256]",
            new Call().input(2, f, B, 41, HKV, DV)),
        wrong("v has shape [2, 40, 2, 300]", new Call().input(2, f, B, M, HKV, 300)),
        wrong("v has shape [2, 40, 4, 8]", new Call().input(2, f, B, M, H, DV)),
        wrong("alpha is DOUBLE; expected FLOAT", new Call().input(3, DataType.DOUBLE, B, M, H)),
        wrong("alpha has shape [2, 33, 4]; expected [2, 40, 4]", new Call().input(3, f, B, N, H)),
        wrong("alpha has shape [2, 40, 2]", new Call().input(3, f, B, M, HKV)),
        wrong("mask is INT; expected FLOAT or BOOL", new Call().input(4, DataType.INT32, B, M)),
        wrong("mask has shape [2, 33]; expected [2, 40]", new Call().input(4, f, B, N)),
        new Wrong("o is DOUBLE", new Call().input(5, DataType.DOUBLE, B, N, H, DV), true),
        new Wrong(
            "o has shape [2, 33, 4, 16]; expected [2, 33, 4, 8]",
            new Call().input(5, f, B, N, H, D),
            true),
        new Wrong(
            "lse has shape [2, 33, 4]; expected [2, 4, 33]", new Call().input(6, f, B, N, H), true),
        new Wrong("lse is BFLOAT16", new Call().input(6, DataType.BFLOAT16, B, H, N), true),
        new Wrong("dO has shape [2, 4, 33, 8]", new Call().input(7, f, B, H, N, DV), true));
  }

  @ParameterizedTest
  @MethodSource("wrongCalls")
  void attention(Wrong wrong) {
    Call c = wrong.call();
    if (!wrong.backwardOnly()) {
      assertRefused(
          "gated_fwa: ",
          wrong.message(),
          () -> exec("gated_fwa", c, c.inputs.subList(0, 5)),
          () ->
              Nd4j.exec(
                  new GatedFwa(
                      c.get(0), c.get(1), c.get(2), c.get(3), c.get(4), c.window, c.scale)),
          () ->
              ComposedArrays.gatedFwa(
                  c.get(0), c.get(1), c.get(2), c.get(3), c.get(4), c.window, c.scale));
    }
    assertRefused(
        "gated_fwa_bp: ",
        wrong.message(),
        () -> exec("gated_fwa_bp", c, c.inputs),
        () ->
            Nd4j.exec(
                new GatedFwaBp(
                    c.get(0), c.get(1), c.get(2), c.get(3), c.get(4), c.get(5), c.get(6), c.get(7),
                    c.window, c.scale)),
        () ->
            ComposedArrays.gatedFwaBp(
                c.get(0), c.get(1), c.get(2), c.get(3), c.get(4), c.get(5), c.get(6), c.get(7),
                c.window, c.scale));
  }

  @Test
  void gate() {
    INDArray h = Nd4j.ones(DataType.FLOAT, 2, 5, 3);
    INDArray wide = Nd4j.ones(DataType.DOUBLE, 2, 5, 3);
    INDArray half = Nd4j.ones(DataType.FLOAT16, 2, 5, 3);
    INDArray flat = Nd4j.ones(DataType.FLOAT, 5, 3);
    INDArray other = Nd4j.ones(DataType.FLOAT, 2, 4, 3);
    assertGateRefused("argument 'eps' is -1", h, h, h, -1);
    assertGateRefused("it must be finite and at least 0", h, h, h, Double.NaN);
    assertGateRefused("h is HALF; expected FLOAT or DOUBLE", half, h, h, 1e-3);
    assertGateRefused("h has shape [5, 3]; expected [>=0, >=0, >=1]", flat, h, h, 1e-3);
    assertGateRefused("beta is DOUBLE; expected FLOAT", h, wide, h, 1e-3);
    assertGateRefused("beta has shape [2, 4, 3]; expected [2, 5, 3]", h, other, h, 1e-3);
    assertRefused(
        "gated_fwa_gate_bp: ",
        "dalpha has shape [2, 4, 3]; expected [2, 5, 3]",
        () -> Nd4j.exec(new GatedFwaGateBp(h, h, other, 1e-3)),
        () -> ComposedArrays.gateBp(h, h, other, 1e-3));
  }

  private static void assertGateRefused(
      String message, INDArray h, INDArray beta, INDArray dalpha, double eps) {
    assertRefused(
        "gated_fwa_gate: ",
        message,
        () -> Nd4j.exec(new GatedFwaGate(h, beta, eps)),
        () -> ComposedArrays.gate(h, beta, eps),
        () ->
            Nd4j.exec(
                DynamicCustomOp.builder("gated_fwa_gate")
                    .addInputs(h, beta)
                    .addFloatingPointArguments(eps)
                    .build()));
    assertRefused(
        "gated_fwa_gate_bp: ",
        message,
        () -> Nd4j.exec(new GatedFwaGateBp(h, beta, dalpha, eps)),
        () -> ComposedArrays.gateBp(h, beta, dalpha, eps),
        () ->
            Nd4j.exec(
                DynamicCustomOp.builder("gated_fwa_gate_bp")
                    .addInputs(h, beta, dalpha)
                    .addFloatingPointArguments(eps)
                    .build()));
  }

  /** What only the bare op can be given. */
  @Test
  void wrongNumbersOfArguments() {
    List<INDArray> inputs = new Call().inputs;
    INDArray[] qkv = inputs.subList(0, 3).toArray(INDArray[]::new);
    assertRefused(
        "gated_fwa: ",
        "got 0 integer arguments; expected 1: window",
        () -> Nd4j.exec(DynamicCustomOp.builder("gated_fwa").addInputs(qkv).build()));
    assertRefused(
        "gated_fwa: ",
        "got 2 floating-point arguments; expected at most 1: scale",
        () ->
            Nd4j.exec(
                DynamicCustomOp.builder("gated_fwa")
                    .addInputs(qkv)
                    .addIntegerArguments(5)
                    .addFloatingPointArguments(1.0, 2.0)
                    .build()));
    assertRefused(
        "gated_fwa: ",
        "got 3 inputs; expected 5: q, k, v, alpha, mask (hasAlpha is true, hasMask is true)",
        () ->
            Nd4j.exec(
                DynamicCustomOp.builder("gated_fwa")
                    .addInputs(qkv)
                    .addIntegerArguments(5)
                    .addBooleanArguments(true, true)
                    .build()));
    assertRefused(
        "gated_fwa: ",
        "got 0 inputs; expected 3: q, k, v",
        () -> Nd4j.exec(DynamicCustomOp.builder("gated_fwa").addIntegerArguments(5).build()));
    assertRefused(
        "gated_fwa_gate_bp: ",
        "got 2 inputs; expected 3: h, beta, dalpha",
        () ->
            Nd4j.exec(
                DynamicCustomOp.builder("gated_fwa_gate_bp").addInputs(qkv[0], qkv[0]).build()));
    assertRefused(
        "gated_fwa: ",
        "k has shape []; expected [2, >=33, a divisor of 4, 16]",
        () ->
            Nd4j.exec(
                DynamicCustomOp.builder("gated_fwa")
                    .addInputs(qkv[0], Nd4j.empty(DataType.FLOAT), qkv[2])
                    .addIntegerArguments(5)
                    .build()));
  }

  @Test
  void wrongOutputs() {
    Call c = new Call();
    INDArray o = Nd4j.create(DataType.FLOAT, B, N, H, DV);
    INDArray lse = Nd4j.create(DataType.FLOAT, B, H, N);
    assertOutputsRefused("lse has shape [2, 33, 4]; expected [2, 4, 33]", o, lse.permute(0, 2, 1));
    assertOutputsRefused("o is DOUBLE; expected FLOAT", o.castTo(DataType.DOUBLE), lse);
    assertOutputsRefused("lse is HALF; expected FLOAT", o, lse.castTo(DataType.FLOAT16));
    INDArray row = Nd4j.create(DataType.FLOAT, B, N, H, 1);
    assertOutputsRefused(
        "expected an array whose elements do not overlap",
        Nd4j.create(row.data(), new long[] {B, N, H, DV}, new long[] {N * H, H, 1, 0}, 0, 'c'),
        lse);
    INDArray common = Nd4j.create(DataType.FLOAT, B * N * H * DV + B * H * N);
    INDArray first = common.get(interval(0, B * N * H * DV)).reshape(B, N, H, DV);
    INDArray overlapping =
        common.get(interval(B * N * H * DV - 1, B * N * H * DV - 1 + B * H * N)).reshape(B, H, N);
    assertOutputsRefused("the outputs o and lse overlap in memory", first, overlapping);
    assertThatThrownBy(() -> new GatedFwa(c.get(0), c.get(1), c.get(2), null, null, 5, 0, o, null))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessage("gated_fwa: one of the outputs is null; expected 2 arrays");

    INDArray square = Nd4j.ones(DataType.FLOAT, B, N, H, D);
    assertRefused(
        "gated_fwa: ",
        "the output o overlaps the input v in memory",
        () ->
            Nd4j.exec(
                new GatedFwa(square.dup(), square.dup(), square, null, null, 5, 0, square, lse)));
    assertThat(square.minNumber().floatValue()).isEqualTo(1);
  }

  private static void assertOutputsRefused(String message, INDArray o, INDArray lse) {
    Call c = new Call();
    assertRefused(
        "gated_fwa: ",
        message,
        () -> Nd4j.exec(new GatedFwa(c.get(0), c.get(1), c.get(2), null, null, 5, 0, o, lse)));
  }

  /** Parts of one array that never meet are fine: q, k and v packed token by token. */
  @Test
  void packedArraysAreNoOverlap() {
    INDArray packed = Nd4j.rand(DataType.FLOAT, B, N, 3 * H, D);
    INDArray gradients = Nd4j.create(DataType.FLOAT, B, N, 3 * H, D);
    INDArray[] in = split(packed);
    INDArray[] out = split(gradients);
    INDArray[] forward = Nd4j.exec(new GatedFwa(in[0], in[1], in[2], null, null, 5, 0));
    INDArray dO = Nd4j.rand(DataType.FLOAT, B, N, H, D);
    Nd4j.exec(
        new GatedFwaBp(in[0], in[1], in[2], null, null, forward[0], forward[1], dO, 5, 0, out));
    INDArray[] expected =
        Nd4j.exec(
            new GatedFwaBp(
                in[0].dup(),
                in[1].dup(),
                in[2].dup(),
                null,
                null,
                forward[0],
                forward[1],
                dO,
                5,
                0));
    for (int i = 0; i < 3; i++) {
      assertThat(out[i]).isEqualTo(expected[i]);
    }
  }

  private static INDArray[] split(INDArray packed) {
    return Stream.of(0, 1, 2)
        .map(i -> packed.get(all(), all(), interval(i * H, (i + 1) * H), all()))
        .toArray(INDArray[]::new);
  }

  private static void exec(String op, Call c, List<INDArray> inputs) {
    Nd4j.exec(
        DynamicCustomOp.builder(op)
            .addInputs(inputs.toArray(INDArray[]::new))
            .addIntegerArguments(c.window)
            .addFloatingPointArguments(c.scale)
            .addBooleanArguments(true, true)
            .build());
  }

  private static void assertRefused(String op, String message, Runnable... calls) {
    for (Runnable call : calls) {
      Throwable thrown = catchThrowable(call::run);
      assertThat(thrown).as(op + message).isInstanceOf(RuntimeException.class);
      StringBuilder messages = new StringBuilder();
      for (Throwable t = thrown; t != null; t = t.getCause()) {
        messages.append(t.getMessage()).append('\n');
      }
      assertThat(messages.toString()).contains(op).contains(message);
    }
  }

  @AfterEach
  void theNextCallWorks() {
    INDArray ones = Nd4j.ones(DataType.FLOAT, 1, 3, 1, 4);
    INDArray o = Nd4j.exec(new GatedFwa(ones, ones, ones, null, null, 2, 0))[0];
    float[] expected = new float[12];
    Arrays.fill(expected, 1);
    assertThat(o.dup('c').data().asFloat()).containsExactly(expected);
  }
}
