package io.github.gatedfwa.samediff;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;
import org.nd4j.autodiff.validation.GradCheckUtil;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

/** Compression on arrays and in graphs: values, gradients, types, short sequences. */
class NsaCompressionTest {

  private static final long HEADS = 2;
  private static final long SIZE = 3;
  private static final long HIDDEN = 5;
  private static final long OUT = 4;

  private static final NDNsa OPS = new NDNsa();

  /** Position, w1, b1, w2, b2. */
  private static INDArray[] weights(DataType type, long blockLength) {
    Nd4j.getRandom().setSeed(3);
    return new INDArray[] {
      Nd4j.randn(DataType.DOUBLE, HEADS, blockLength, SIZE).castTo(type),
      Nd4j.randn(DataType.DOUBLE, HEADS, blockLength * SIZE, HIDDEN).muli(0.4).castTo(type),
      Nd4j.randn(DataType.DOUBLE, HEADS, HIDDEN).castTo(type),
      Nd4j.randn(DataType.DOUBLE, HEADS, HIDDEN, OUT).castTo(type),
      Nd4j.randn(DataType.DOUBLE, HEADS, OUT).castTo(type)
    };
  }

  private static INDArray mlp(INDArray x, INDArray[] w, long blockLength, long stride) {
    return OPS.compressMlp(x, w[0], w[1], w[2], w[3], w[4], blockLength, stride);
  }

  private static INDArray[] mlpBp(
      INDArray x, INDArray[] w, INDArray gradient, long blockLength, long stride) {
    return OPS.compressMlpBp(x, w[0], w[1], w[2], w[3], w[4], gradient, blockLength, stride);
  }

  /** One block after the other, as the paper has it. */
  private static INDArray byHand(INDArray x, INDArray[] w, long blockLength, long stride) {
    long blocks = NsaArguments.blocks(x.size(1), blockLength, stride);
    INDArray result =
        Nd4j.create(DataType.DOUBLE, x.size(0), blocks, HEADS, w == null ? SIZE : OUT);
    for (int b = 0; b < x.size(0); b++) {
      for (int c = 0; c < blocks; c++) {
        for (int h = 0; h < HEADS; h++) {
          double[] hidden = new double[(int) (w == null ? SIZE : HIDDEN)];
          for (int u = 0; u < hidden.length; u++) {
            double z = w == null ? 0 : w[2].getDouble(h, u);
            for (int i = 0; i < blockLength; i++) {
              for (int j = 0; j < SIZE; j++) {
                double value = x.getDouble(b, (int) (c * stride) + i, h, j);
                if (w == null) {
                  z += j == u ? value / blockLength : 0;
                } else {
                  z +=
                      (value + w[0].getDouble(h, i, j))
                          * w[1].getDouble(h, (int) (i * SIZE + j), u);
                }
              }
            }
            hidden[u] = w == null ? z : z / (1 + Math.exp(-z));
          }
          for (int o = 0; o < result.size(3); o++) {
            double y = w == null ? hidden[o] : w[4].getDouble(h, o);
            for (int u = 0; w != null && u < HIDDEN; u++) {
              y += hidden[u] * w[3].getDouble(h, u, o);
            }
            result.putScalar(new int[] {b, c, h, o}, y);
          }
        }
      }
    }
    return result;
  }

  @ParameterizedTest
  @CsvSource({"8,4,4", "8,4,2", "9,3,1", "13,4,2", "13,6,2", "23,6,6", "4,4,1", "31,8,8"})
  void valuesAreThePapers(long length, long blockLength, long stride) {
    INDArray x = Nd4j.randn(DataType.DOUBLE, 2, length, HEADS, SIZE);
    INDArray[] w = weights(DataType.DOUBLE, blockLength);
    INDArray mean = byHand(x, null, blockLength, stride);
    INDArray mlp = byHand(x, w, blockLength, stride);
    assertThat(Errors.relative(OPS.compressMean(x, blockLength, stride), mean)).isLessThan(1e-13);
    assertThat(Errors.relative(mlp(x, w, blockLength, stride), mlp)).isLessThan(1e-13);

    SameDiff sd = SameDiff.create();
    SDVariable variable = sd.placeHolder("x", DataType.DOUBLE, -1, -1, HEADS, SIZE);
    SDNsa ops = new SDNsa(sd);
    String ofMean = ops.compressMean(variable, blockLength, stride).name();
    String ofMlp =
        ops.compressMlp(
                variable,
                sd.constant(w[0]),
                sd.constant(w[1]),
                sd.constant(w[2]),
                sd.constant(w[3]),
                sd.constant(w[4]),
                blockLength,
                stride)
            .name();
    Map<String, INDArray> values = sd.output(Map.of("x", x), ofMean, ofMlp);
    assertThat(Errors.relative(values.get(ofMean), mean)).isLessThan(1e-13);
    assertThat(Errors.relative(values.get(ofMlp), mlp)).isLessThan(1e-13);
  }

  /** A graph by finite differences, and the gradients on arrays against the graph's. */
  @ParameterizedTest
  @CsvSource({"9,4,2", "11,4,4", "7,3,1"})
  void gradients(long length, long blockLength, long stride) {
    INDArray x = Nd4j.randn(DataType.DOUBLE, 2, length, HEADS, SIZE);
    INDArray[] w = weights(DataType.DOUBLE, blockLength);
    long blocks = NsaArguments.blocks(length, blockLength, stride);
    INDArray ofMean = Nd4j.randn(DataType.DOUBLE, 2, blocks, HEADS, SIZE);
    INDArray ofMlp = Nd4j.randn(DataType.DOUBLE, 2, blocks, HEADS, OUT);
    SameDiff sd = SameDiff.create();
    SDVariable variable = sd.var("x", x);
    SDVariable[] v = new SDVariable[5];
    for (int i = 0; i < 5; i++) {
      v[i] = sd.var("w" + i, w[i]);
    }
    SDNsa ops = new SDNsa(sd);
    SDVariable mean = ops.compressMean(variable, blockLength, stride);
    SDVariable mlp = ops.compressMlp(variable, v[0], v[1], v[2], v[3], v[4], blockLength, stride);
    sd.setLossVariables(mean.mul(sd.constant(ofMean)).sum().add(mlp.mul(sd.constant(ofMlp)).sum()));
    DataType defaultType = Nd4j.dataType();
    Nd4j.setDefaultDataTypes(DataType.DOUBLE, DataType.DOUBLE); // GradCheckUtil insists
    try {
      // Some elements of each variable: those of arrays on one are compared with all of them below.
      assertThat(
              GradCheckUtil.checkGradients(
                  sd,
                  Map.of(),
                  GradCheckUtil.DEFAULT_EPS,
                  GradCheckUtil.DEFAULT_MAX_REL_ERROR,
                  GradCheckUtil.DEFAULT_MIN_ABS_ERROR,
                  false,
                  false,
                  false,
                  false,
                  null,
                  null,
                  12,
                  GradCheckUtil.Subset.RANDOM))
          .isTrue();
    } finally {
      Nd4j.setDefaultDataTypes(defaultType, defaultType);
    }

    Map<String, INDArray> expected =
        sd.calculateGradients(Map.of(), "x", "w0", "w1", "w2", "w3", "w4");
    INDArray[] gradients = mlpBp(x, w, ofMlp, blockLength, stride);
    INDArray dx = gradients[0].add(OPS.compressMeanBp(ofMean, length, blockLength, stride));
    assertThat(Errors.relative(dx, expected.get("x"))).isLessThan(1e-13);
    for (int i = 0; i < 5; i++) {
      assertThat(Errors.relative(gradients[i + 1], expected.get("w" + i)))
          .as("weight %s", i)
          .isLessThan(1e-13);
    }
  }

  @ParameterizedTest
  @EnumSource(names = {"FLOAT", "HALF", "BFLOAT16"})
  void otherTypes(DataType type) {
    INDArray x = Nd4j.randn(DataType.DOUBLE, 2, 19, HEADS, SIZE).castTo(type);
    INDArray[] w = weights(type, 6);
    INDArray[] exactWeights = new INDArray[5];
    for (int i = 0; i < 5; i++) {
      exactWeights[i] = w[i].castTo(DataType.DOUBLE);
    }
    INDArray exactX = x.castTo(DataType.DOUBLE);
    INDArray mean = OPS.compressMean(x, 6, 2);
    INDArray mlp = mlp(x, w, 6, 2);
    List<INDArray> gradients = List.of(mlpBp(x, w, mlp, 6, 2));
    INDArray[] exact = mlpBp(exactX, exactWeights, mlp.castTo(DataType.DOUBLE), 6, 2);
    assertThat(mean.dataType()).isEqualTo(type);
    assertThat(mlp.dataType()).isEqualTo(type);
    assertThat(Errors.relative(mean, OPS.compressMean(exactX, 6, 2)))
        .isLessThan(Errors.bound(type));
    assertThat(Errors.relative(mlp, mlp(exactX, exactWeights, 6, 2)))
        .isLessThan(Errors.bound(type));
    INDArray dx = OPS.compressMeanBp(mean, 19, 6, 2);
    assertThat(dx.dataType()).isEqualTo(type);
    assertThat(Errors.relative(dx, OPS.compressMeanBp(mean.castTo(DataType.DOUBLE), 19, 6, 2)))
        .isLessThan(Errors.bound(type));
    for (int i = 0; i < 6; i++) {
      assertThat(gradients.get(i).dataType()).isEqualTo(type);
      assertThat(Errors.relative(gradients.get(i), exact[i])).isLessThan(Errors.bound(type));
    }
  }

  @ParameterizedTest
  @ValueSource(longs = {0, 1, 5})
  void shortSequencesHaveNoBlocks(long length) {
    INDArray x = Nd4j.ones(DataType.FLOAT, 2, length, HEADS, SIZE);
    INDArray[] w = weights(DataType.FLOAT, 6);
    assertThat(OPS.compressMean(x, 6, 2).shape()).containsExactly(2, 0, HEADS, SIZE);
    INDArray none = mlp(x, w, 6, 2);
    assertThat(none.shape()).containsExactly(2, 0, HEADS, OUT);
    INDArray dx = OPS.compressMeanBp(OPS.compressMean(x, 6, 2), length, 6, 2);
    assertThat(dx).isEqualTo(x.like());
    INDArray[] gradients = mlpBp(x, w, none, 6, 2);
    assertThat(gradients[0]).isEqualTo(x.like());
    for (int i = 0; i < 5; i++) {
      assertThat(gradients[i + 1]).isEqualTo(w[i].like());
    }
  }

  @ParameterizedTest
  @EnumSource(names = {"FLOAT", "DOUBLE", "HALF", "BFLOAT16", "BOOL"})
  void blocksWithoutPaddingAreReal(DataType type) {
    INDArray mask =
        Nd4j.createFromArray(
                new float[][] {{0, 0, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 0, 1, 1, 1, 1}})
            .castTo(type);
    INDArray expected =
        Nd4j.createFromArray(new float[][] {{0, 1, 1, 1}, {1, 0, 0, 1}}).castTo(type);
    assertThat(OPS.blockMask(mask, 4, 2)).isEqualTo(expected);
    SameDiff sd = SameDiff.create();
    SDVariable variable = sd.placeHolder("mask", type, -1, -1);
    String name = new SDNsa(sd).blockMask(variable, 4, 2).name();
    assertThat(sd.outputSingle(Map.of("mask", mask), name)).isEqualTo(expected);
    assertThat(OPS.blockMask(mask, 20, 2).shape()).containsExactly(2, 0);
  }

  @Test
  void wrongCallsAreRefused() {
    INDArray x = Nd4j.ones(DataType.FLOAT, 2, 10, HEADS, SIZE);
    INDArray[] w = weights(DataType.FLOAT, 4);
    assertThatThrownBy(() -> OPS.compressMean(x, 4, 3))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessage(
            "nsa_compress_mean: argument 'stride' is 3; it must be a divisor of blockLength, 4");
    assertThatThrownBy(() -> OPS.compressMean(x.castTo(DataType.INT32), 4, 2))
        .hasMessageContaining("nsa_compress_mean: x is INT; expected FLOAT, DOUBLE, HALF");
    assertThatThrownBy(() -> OPS.compressMean(null, 4, 2))
        .hasMessage("nsa_compress_mean: x is null; expected an array");
    assertThatThrownBy(() -> OPS.compressMeanBp(x, 10, 4, 2))
        .hasMessageContaining(
            "nsa_compress_mean_bp: gradient has shape [2, 10, 2, 3]; expected [>=0, 4, >=1, >=1]");
    assertThatThrownBy(() -> mlp(x, w, 6, 2))
        .hasMessageContaining("nsa_compress_mlp: position has shape [2, 4, 3]; expected [2, 6, 3]");
    w[1] = w[1].castTo(DataType.DOUBLE);
    assertThatThrownBy(() -> mlp(x, w, 4, 2))
        .hasMessageContaining("nsa_compress_mlp: w1 is DOUBLE; expected FLOAT");
    assertThatThrownBy(() -> OPS.blockMask(x, 4, 2))
        .hasMessageContaining("nsa_block_mask: mask has shape [2, 10, 2, 3]; expected [>=0, >=0]");
    SameDiff sd = SameDiff.create();
    SDVariable variable = sd.constant(x);
    assertThatThrownBy(() -> new SDNsa(sd).compressMean(variable, 0, 1))
        .hasMessage("nsa_compress_mean: argument 'blockLength' is 0; it must be at least 1");
  }
}
