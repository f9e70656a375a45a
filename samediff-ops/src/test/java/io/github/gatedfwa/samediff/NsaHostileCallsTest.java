package io.github.gatedfwa.samediff;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.catchThrowable;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
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
class NsaHostileCallsTest {

  private static final DataType F = DataType.FLOAT;

  @BeforeAll
  static void load() {
    GatedFwaOps.load();
  }

  /**
   * B = 2, N = 9, M = 20, H = 4, Hkv = 2, D = 16, Dv = 8, l = 8, d = 4, l′ = 8, so C = 4 and S = 3.
   */
  private static final class Call {
    long blockLength = 8;
    long stride = 4;
    long selectionBlock = 8;
    long topN = 3;
    long keyLength = 20;
    double scale = 0;
    INDArray q = Nd4j.ones(F, 2, 9, 4, 16);
    INDArray kCmp = Nd4j.ones(F, 2, 4, 2, 16);
    INDArray vCmp = Nd4j.ones(F, 2, 4, 2, 8);
    INDArray blockMask = Nd4j.ones(F, 2, 4);
    INDArray k = Nd4j.ones(F, 2, 20, 2, 16);
    INDArray v = Nd4j.ones(F, 2, 20, 2, 8);
    INDArray mask = Nd4j.ones(F, 2, 20);
    INDArray indices = Nd4j.zeros(DataType.INT32, 2, 9, 2, 1);
    INDArray o = Nd4j.ones(F, 2, 9, 4, 8);
    INDArray lse = Nd4j.ones(F, 2, 4, 9);
    INDArray dO = Nd4j.ones(F, 2, 9, 4, 8);
  }

  /** Changes a call for the worse. */
  interface Spoil {
    void spoil(Call call);
  }

  record Wrong(String message, Spoil spoil) {
    Call call() {
      Call call = new Call();
      spoil.spoil(call);
      return call;
    }

    @Override
    public String toString() {
      return message;
    }
  }

  static Stream<Wrong> wrongKeys() {
    return Stream.of(
        new Wrong("argument 'blockLength' is 0; it must be at least 1", c -> c.blockLength = 0),
        new Wrong("argument 'blockLength' is -8; it must be at least 1", c -> c.blockLength = -8),
        new Wrong(
            "argument 'stride' is 3; it must be a divisor of blockLength, 8", c -> c.stride = 3),
        new Wrong(
            "argument 'stride' is 0; it must be a divisor of blockLength, 8", c -> c.stride = 0),
        new Wrong("argument 'keyLength' is -1; it must be at least 0", c -> c.keyLength = -1),
        new Wrong(
            "argument 'keyLength' is 8; it must be at least the query length, 9, or 0 for that",
            c -> c.keyLength = 8),
        new Wrong("it must be finite (0 means 1/sqrt(D))", c -> c.scale = Double.NaN),
        new Wrong(
            "q is INT; expected FLOAT, DOUBLE, HALF or BFLOAT16",
            c -> c.q = Nd4j.ones(DataType.INT32, 2, 9, 4, 16)),
        new Wrong("q has shape [9, 4, 16]", c -> c.q = Nd4j.ones(F, 9, 4, 16)),
        new Wrong("q has shape [2, 9, 4, 257]", c -> c.q = Nd4j.ones(F, 2, 9, 4, 257)),
        new Wrong("kCmp is DOUBLE; expected FLOAT", c -> c.kCmp = c.kCmp.castTo(DataType.DOUBLE)),
        new Wrong(
            "kCmp has shape [2, 5, 2, 16]; expected [2, 4, a divisor of 4, 16]",
            c -> c.kCmp = Nd4j.ones(F, 2, 5, 2, 16)),
        new Wrong("kCmp has shape [2, 4, 3, 16]", c -> c.kCmp = Nd4j.ones(F, 2, 4, 3, 16)),
        new Wrong(
            "mask has shape [2, 20]; expected [2, 4]", c -> c.blockMask = Nd4j.ones(F, 2, 20)),
        new Wrong(
            "mask is INT; expected FLOAT or BOOL",
            c -> c.blockMask = Nd4j.ones(DataType.INT32, 2, 4)));
  }

  static Stream<Wrong> wrongValues() {
    return Stream.of(
        new Wrong("vCmp is HALF; expected FLOAT", c -> c.vCmp = c.vCmp.castTo(DataType.FLOAT16)),
        new Wrong(
            "vCmp has shape [2, 4, 1, 8]; expected [2, 4, 2, 1..256]",
            c -> c.vCmp = Nd4j.ones(F, 2, 4, 1, 8)));
  }

  @ParameterizedTest
  @MethodSource({"wrongKeys", "wrongValues"})
  void compressed(Wrong wrong) {
    Call c = wrong.call();
    assertRefused(
        "nsa_compressed_attention: ",
        wrong.message(),
        () ->
            exec(
                "nsa_compressed_attention",
                c.scale,
                List.of(c.blockLength, c.stride, c.keyLength),
                c.q,
                c.kCmp,
                c.vCmp,
                c.blockMask),
        () ->
            new NsaCompressedAttention(
                c.q, c.kCmp, c.vCmp, c.blockMask, c.blockLength, c.stride, c.keyLength, c.scale),
        () ->
            ComposedNsaArrays.compressedAttention(
                c.q, c.kCmp, c.vCmp, c.blockMask, c.blockLength, c.stride, c.keyLength, c.scale));
    compressedGradient(wrong);
  }

  static Stream<Wrong> wrongResults() {
    return Stream.of(
        new Wrong("o is DOUBLE; expected FLOAT", c -> c.o = c.o.castTo(DataType.DOUBLE)),
        new Wrong(
            "o has shape [2, 9, 4, 16]; expected [2, 9, 4, 8]",
            c -> c.o = Nd4j.ones(F, 2, 9, 4, 16)),
        new Wrong(
            "lse has shape [2, 9, 4]; expected [2, 4, 9]", c -> c.lse = Nd4j.ones(F, 2, 9, 4)),
        new Wrong("dO has shape [2, 4, 9, 8]", c -> c.dO = Nd4j.ones(F, 2, 4, 9, 8)));
  }

  @ParameterizedTest
  @MethodSource("wrongResults")
  void gradients(Wrong wrong) {
    compressedGradient(wrong);
    selectedGradient(wrong);
  }

  private static void compressedGradient(Wrong wrong) {
    Call c = wrong.call();
    assertRefused(
        "nsa_compressed_attention_bp: ",
        wrong.message(),
        () ->
            exec(
                "nsa_compressed_attention_bp",
                c.scale,
                List.of(c.blockLength, c.stride, c.keyLength),
                c.q,
                c.kCmp,
                c.vCmp,
                c.blockMask,
                c.o,
                c.lse,
                c.dO),
        () ->
            new NsaCompressedAttentionBp(
                c.q,
                c.kCmp,
                c.vCmp,
                c.blockMask,
                c.o,
                c.lse,
                c.dO,
                c.blockLength,
                c.stride,
                c.keyLength,
                c.scale),
        () ->
            ComposedNsaArrays.compressedAttentionBp(
                c.q,
                c.kCmp,
                c.vCmp,
                c.blockMask,
                c.o,
                c.lse,
                c.dO,
                c.blockLength,
                c.stride,
                c.keyLength,
                c.scale));
  }

  static Stream<Wrong> wrongChoices() {
    return Stream.of(
        new Wrong(
            "argument 'selectionBlock' is 12; it must be a multiple of blockLength, 8",
            c -> c.selectionBlock = 12),
        new Wrong("argument 'selectionBlock' is 0; it must be", c -> c.selectionBlock = 0),
        new Wrong("argument 'topN' is 2; it must be at least 3", c -> c.topN = 2),
        new Wrong(
            "lse has shape [2, 9, 4]; expected [2, 4, 9]", c -> c.lse = Nd4j.ones(F, 2, 9, 4)),
        new Wrong("lse is HALF; expected FLOAT", c -> c.lse = c.lse.castTo(DataType.FLOAT16)));
  }

  @ParameterizedTest
  @MethodSource({"wrongKeys", "wrongChoices"})
  void select(Wrong wrong) {
    Call c = wrong.call();
    assertRefused(
        "nsa_select: ",
        wrong.message(),
        () ->
            exec(
                "nsa_select",
                c.scale,
                List.of(c.blockLength, c.stride, c.selectionBlock, c.topN, c.keyLength),
                c.q,
                c.kCmp,
                c.lse,
                c.blockMask),
        () ->
            new NsaSelect(
                c.q,
                c.kCmp,
                c.lse,
                c.blockMask,
                c.blockLength,
                c.stride,
                c.selectionBlock,
                c.topN,
                c.keyLength,
                c.scale),
        () ->
            ComposedNsaArrays.select(
                c.q,
                c.kCmp,
                c.lse,
                c.blockMask,
                c.blockLength,
                c.stride,
                c.selectionBlock,
                c.topN,
                c.keyLength,
                c.scale));
  }

  static Stream<Wrong> wrongSelections() {
    return Stream.of(
        new Wrong(
            "argument 'selectionBlock' is 0; it must be at least 1", c -> c.selectionBlock = 0),
        new Wrong("it must be finite (0 means 1/sqrt(D))", c -> c.scale = Double.POSITIVE_INFINITY),
        new Wrong("k is DOUBLE; expected FLOAT", c -> c.k = c.k.castTo(DataType.DOUBLE)),
        new Wrong(
            "k has shape [2, 8, 2, 16]; expected [2, >=9, a divisor of 4, 16]",
            c -> c.k = Nd4j.ones(F, 2, 8, 2, 16)),
        new Wrong(
            "v has shape [2, 20, 2, 300]; expected [2, 20, 2, 1..256]",
            c -> c.v = Nd4j.ones(F, 2, 20, 2, 300)),
        new Wrong(
            "indices is LONG; expected INT", c -> c.indices = c.indices.castTo(DataType.INT64)),
        new Wrong(
            "indices has shape [2, 9, 4, 1]; expected [2, 9, 2, >=1]",
            c -> c.indices = Nd4j.zeros(DataType.INT32, 2, 9, 4, 1)),
        new Wrong("mask has shape [2, 9]; expected [2, 20]", c -> c.mask = Nd4j.ones(F, 2, 9)));
  }

  @ParameterizedTest
  @MethodSource("wrongSelections")
  void selected(Wrong wrong) {
    Call c = wrong.call();
    assertRefused(
        "nsa_selected_attention: ",
        wrong.message(),
        () ->
            exec(
                "nsa_selected_attention",
                c.scale,
                List.of(c.selectionBlock),
                c.q,
                c.k,
                c.v,
                c.indices,
                c.mask),
        () -> new NsaSelectedAttention(c.q, c.k, c.v, c.indices, c.mask, c.selectionBlock, c.scale),
        () ->
            ComposedNsaArrays.selectedAttention(
                c.q, c.k, c.v, c.indices, c.mask, c.selectionBlock, c.scale));
    selectedGradient(wrong);
  }

  private static void selectedGradient(Wrong wrong) {
    Call c = wrong.call();
    assertRefused(
        "nsa_selected_attention_bp: ",
        wrong.message(),
        () ->
            exec(
                "nsa_selected_attention_bp",
                c.scale,
                List.of(c.selectionBlock),
                c.q,
                c.k,
                c.v,
                c.indices,
                c.mask,
                c.o,
                c.lse,
                c.dO),
        () ->
            new NsaSelectedAttentionBp(
                c.q, c.k, c.v, c.indices, c.mask, c.o, c.lse, c.dO, c.selectionBlock, c.scale),
        () ->
            ComposedNsaArrays.selectedAttentionBp(
                c.q, c.k, c.v, c.indices, c.mask, c.o, c.lse, c.dO, c.selectionBlock, c.scale));
  }

  /** Numbers that are no choice: only the values show it, and nd4j-cuda does not look at them. */
  @Tag("nd4j-native")
  @Test
  void wrongIndices() {
    int[][] rows = {{0, 3}, {-2, -1}, {1, 1}, {1, 0}, {-1, 0}, {0, Integer.MAX_VALUE}};
    int[] place = {1, 0, 1, 1, 1, 1};
    for (int i = 0; i < rows.length; i++) {
      Call c = new Call();
      c.indices = Nd4j.zeros(DataType.INT32, 2, 9, 2, 2);
      for (int b = 0; b < 2; b++) {
        for (int t = 0; t < 9; t++) {
          for (int h = 0; h < 2; h++) {
            boolean bad = b == 1 && t == 4 && h == 1;
            c.indices.putScalar(new int[] {b, t, h, 0}, bad ? rows[i][0] : 0);
            c.indices.putScalar(new int[] {b, t, h, 1}, bad ? rows[i][1] : -1);
          }
        }
      }
      String message =
          "indices[1, 4, 1, "
              + place[i]
              + "] is "
              + rows[i][place[i]]
              + "; expected ascending block numbers below 3, then -1";
      assertRefused(
          "nsa_selected_attention: ",
          message,
          () ->
              Nd4j.exec(
                  new NsaSelectedAttention(
                      c.q, c.k, c.v, c.indices, c.mask, c.selectionBlock, c.scale)),
          () ->
              ComposedNsaArrays.selectedAttention(
                  c.q, c.k, c.v, c.indices, c.mask, c.selectionBlock, c.scale));
      assertRefused(
          "nsa_selected_attention_bp: ",
          message,
          () ->
              Nd4j.exec(
                  new NsaSelectedAttentionBp(
                      c.q,
                      c.k,
                      c.v,
                      c.indices,
                      c.mask,
                      c.o,
                      c.lse,
                      c.dO,
                      c.selectionBlock,
                      c.scale)),
          () ->
              ComposedNsaArrays.selectedAttentionBp(
                  c.q, c.k, c.v, c.indices, c.mask, c.o, c.lse, c.dO, c.selectionBlock, c.scale));
    }
  }

  /** What only the bare op can be given, and what only the classes refuse. */
  @Test
  void wrongNumbersAndOutputs() {
    Call c = new Call();
    assertRefused(
        "nsa_compressed_attention: ",
        "got 2 integer arguments; expected 3: blockLength, stride, keyLength",
        () -> exec("nsa_compressed_attention", 0, List.of(8L, 4L), c.q, c.kCmp, c.vCmp, c.mask));
    assertRefused(
        "nsa_select: ",
        "got 3 inputs; expected 4: q, kCmp, lse, mask (hasMask is true)",
        () -> exec("nsa_select", 0, List.of(8L, 4L, 8L, 3L, 20L), c.q, c.kCmp, c.lse));
    assertRefused(
        "nsa_selected_attention: ",
        "got 0 inputs; expected 5: q, k, v, indices, mask (hasMask is true)",
        () -> exec("nsa_selected_attention", 0, List.of(8L)));
    assertRefused(
        "nsa_select: ",
        "indices is LONG; expected INT",
        () ->
            Nd4j.exec(
                new NsaSelect(
                    c.q,
                    c.kCmp,
                    c.lse,
                    null,
                    8,
                    4,
                    8,
                    3,
                    20,
                    0,
                    Nd4j.create(DataType.INT64, 2, 9, 2, 3))));
    assertRefused(
        "nsa_selected_attention: ",
        "the output o overlaps the input q in memory",
        () -> {
          INDArray q = Nd4j.ones(F, 2, 9, 4, 16);
          INDArray v = Nd4j.ones(F, 2, 20, 2, 16);
          Nd4j.exec(new NsaSelectedAttention(q, c.k, v, c.indices, null, 8, 0, q, c.lse));
        });
    assertThatThrownBy(
            () -> new NsaCompressedAttention(c.q, c.kCmp, c.vCmp, null, 8, 4, 20, 0, c.o, null))
        .hasMessage("nsa_compressed_attention: one of the outputs is null; expected 2 arrays");
    assertThatThrownBy(() -> new NsaSelect(c.q, c.kCmp, c.lse, null, 8, 4, 8, 1L << 40, 20, 0))
        .hasMessage("nsa_select: argument 'topN' is 1099511627776; it must be at most 2147483647");
  }

  private static void exec(String op, double scale, List<Long> integers, INDArray... inputs) {
    Nd4j.exec(
        DynamicCustomOp.builder(op)
            .addInputs(inputs)
            .addIntegerArguments(integers.stream().map(Long::intValue).toList())
            .addFloatingPointArguments(scale)
            .addBooleanArguments(true)
            .build());
  }

  private static void assertRefused(String op, String message, Runnable... calls) {
    for (Runnable call : calls) {
      Throwable thrown = catchThrowable(call::run);
      assertThat(thrown).as(op + message).isInstanceOf(RuntimeException.class);
      List<String> messages = new ArrayList<>();
      for (Throwable t = thrown; t != null; t = t.getCause()) {
        messages.add(t.getMessage());
      }
      assertThat(String.join("\n", messages)).contains(op).contains(message);
    }
  }

  @AfterEach
  void theNextCallWorks() {
    INDArray ones = Nd4j.ones(F, 1, 3, 1, 4);
    INDArray indices = Nd4j.zeros(DataType.INT32, 1, 3, 1, 1);
    INDArray o = Nd4j.exec(new NsaSelectedAttention(ones, ones, ones, indices, null, 8, 0))[0];
    float[] expected = new float[12];
    Arrays.fill(expected, 1);
    assertThat(o.dup('c').data().asFloat()).containsExactly(expected);
  }
}
