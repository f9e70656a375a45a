package io.github.gatedfwa.samediff;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.github.gatedfwa.nativeops.JavaProcess;
import java.io.File;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;
import org.nd4j.autodiff.samediff.TrainingConfig;
import org.nd4j.autodiff.samediff.internal.SameDiffOp;
import org.nd4j.autodiff.validation.GradCheckUtil;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.dataset.MultiDataSet;
import org.nd4j.linalg.dataset.adapter.SingletonMultiDataSetIterator;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.learning.config.Adam;

/** Native sparse attention in SameDiff graphs. */
class NsaSameDiffTest {

  private static final NsaConfig CONFIG = new NsaConfig(4, 2, 8, 3, 6);

  @BeforeAll
  static void load() {
    GatedFwaOps.load();
  }

  static Stream<Arguments> gradientChecks() {
    return Stream.of(
        Arguments.of(false, "none"),
        Arguments.of(false, "BOOL"),
        Arguments.of(false, "DOUBLE"),
        Arguments.of(true, "BOOL"));
  }

  /**
   * By finite differences, with the choice held fixed: a step that changed it would see another
   * function.
   */
  @ParameterizedTest
  @MethodSource("gradientChecks")
  void gradientsAreRight(boolean composed, String maskType) {
    NsaCase c = NsaCase.random(11, new NsaCase.Sizes(2, 3, 11, 2, 1, 3, 2, 2, 1, 4, 3));
    if (!maskType.equals("none")) {
      INDArray mask = Nd4j.ones(DataType.DOUBLE, 2, 11);
      for (int[] padding : new int[][] {{0, 4}, {1, 0}, {1, 9}, {1, 10}}) {
        mask.putScalar(padding, 0);
      }
      c = c.withMask(mask.castTo(DataType.valueOf(maskType)));
    }
    INDArray lse = NsaImplementation.NATIVE.compressed(c).get(1);
    INDArray chosen = NsaImplementation.NATIVE.select(c, lse);
    SameDiff sd = SameDiff.create();
    SDVariable q = sd.var("q", c.q());
    SDVariable kCmp = sd.var("kCmp", c.kCmp());
    SDVariable vCmp = sd.var("vCmp", c.vCmp());
    SDVariable k = sd.var("k", c.k());
    SDVariable v = sd.var("v", c.v());
    SDVariable indices = sd.constant("indices", chosen);
    SDVariable mask = c.mask() == null ? null : sd.constant("mask", c.mask());
    SDVariable blockMask = c.mask() == null ? null : sd.constant("blockMask", c.blockMask());
    SDVariable[] outputs = new SDVariable[2];
    if (composed) {
      ComposedNsaGraph graph = new ComposedNsaGraph(sd);
      outputs[0] = graph.compressedAttention(q, kCmp, vCmp, blockMask, 2, 1, 11, 0.7)[0];
      outputs[1] = graph.selectedAttention(q, k, v, indices, mask, 4, 0.7)[0];
    } else {
      SDNsa graph = new SDNsa(sd);
      outputs[0] = graph.compressedAttention("cmp", q, kCmp, vCmp, blockMask, 2, 1, 11, 0.7)[0];
      outputs[1] = graph.selectedAttention("slc", q, k, v, indices, mask, 4, 0.7)[0];
    }
    SDVariable weights = sd.constant("weights", c.dO());
    sd.setLossVariables(outputs[0].mul(weights).sum().add(outputs[1].mul(outputs[1]).sum()));
    DataType defaultType = Nd4j.dataType();
    Nd4j.setDefaultDataTypes(DataType.DOUBLE, DataType.DOUBLE); // GradCheckUtil insists
    try {
      assertThat(GradCheckUtil.checkGradients(sd, Map.of())).isTrue();
    } finally {
      Nd4j.setDefaultDataTypes(defaultType, defaultType);
    }
  }

  /** The gradients of the branch with the choice in the graph are those with the choice given. */
  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void noGradientFlowsThroughTheChoice(boolean composed) {
    NsaCase c = NsaCase.random(12, new NsaCase.Sizes(1, 40, 40, 2, 1, 4, 4, 4, 2, 4, 4));
    SameDiff sd = SameDiff.create();
    SDVariable q = sd.var("q", c.q());
    SDVariable kCmp = sd.var("kCmp", c.kCmp());
    SDVariable vCmp = sd.var("vCmp", c.vCmp());
    SDVariable k = sd.var("k", c.k());
    SDVariable o;
    SDVariable indices;
    if (composed) {
      ComposedNsaGraph graph = new ComposedNsaGraph(sd);
      SDVariable lse = graph.compressedAttention(q, kCmp, vCmp, null, 4, 2, 0, 0)[1];
      indices = graph.select(q, kCmp, lse, null, 4, 2, 4, 4, 0, 0);
      o = graph.selectedAttention(q, k, k, indices, null, 4, 0)[0];
    } else {
      SDNsa graph = new SDNsa(sd);
      SDVariable lse = graph.compressedAttention(q, kCmp, vCmp, null, 4, 2, 0, 0)[1];
      indices = graph.select("chosen", q, kCmp, lse, null, 4, 2, 4, 4, 0, 0);
      o = graph.selectedAttention(q, k, k, indices, null, 4, 0)[0];
    }
    sd.setLossVariables(o.mul(sd.constant(c.dO())).sum());
    Map<String, INDArray> gradients = sd.calculateGradients(Map.of(), "q", "k");

    INDArray chosen = sd.outputSingle(Map.of(), indices.name());
    SameDiff fixed = SameDiff.create();
    SDVariable fixedQ = fixed.var("q", c.q());
    SDVariable fixedK = fixed.var("k", c.k());
    SDVariable fixedIndices = fixed.constant("indices", chosen);
    SDVariable fixedO =
        composed
            ? new ComposedNsaGraph(fixed)
                .selectedAttention(fixedQ, fixedK, fixedK, fixedIndices, null, 4, 0)[0]
            : new SDNsa(fixed)
                .selectedAttention(fixedQ, fixedK, fixedK, fixedIndices, null, 4, 0)[0];
    fixed.setLossVariables(fixedO.mul(fixed.constant(c.dO())).sum());
    Map<String, INDArray> expected = fixed.calculateGradients(Map.of(), "q", "k");
    assertThat(gradients.get("q")).isEqualTo(expected.get("q"));
    assertThat(gradients.get("k")).isEqualTo(expected.get("k"));
  }

  /** A loss on both branches that share kCmp: its gradient is the compressed branch's alone. */
  @Test
  void choiceAddsNothingToGradientsOfTheCompressedBranch() {
    NsaCase c = NsaCase.random(13, new NsaCase.Sizes(1, 40, 40, 2, 1, 4, 4, 4, 2, 4, 4));
    SameDiff sd = SameDiff.create();
    SDVariable q = sd.var("q", c.q());
    SDVariable kCmp = sd.var("kCmp", c.kCmp());
    SDVariable vCmp = sd.var("vCmp", c.vCmp());
    SDVariable k = sd.var("k", c.k());
    SDNsa ops = new SDNsa(sd);
    SDVariable[] compressed = ops.compressedAttention(q, kCmp, vCmp, null, 4, 2, 0, 0);
    SDVariable indices = ops.select(q, kCmp, compressed[1], null, 4, 2, 4, 4, 0, 0);
    SDVariable selected = ops.selectedAttention(q, k, k, indices, null, 4, 0)[0];
    sd.setLossVariables(compressed[0].mul(sd.constant(c.dO())).sum().add(selected.sum()));
    INDArray gradient = sd.calculateGradients(Map.of(), "kCmp").get("kCmp");
    assertThat(gradient).isEqualTo(NsaImplementation.NATIVE.compressed(c).get(3));
  }

  @Test
  void namesAndTypesOfOutputs() {
    SameDiff sd = SameDiff.create();
    SDVariable q = sd.placeHolder("q", DataType.FLOAT16, -1, -1, 2, 8);
    SDVariable k = sd.placeHolder("k", DataType.FLOAT16, -1, -1, 1, 8);
    SDNsa ops = new SDNsa(sd);
    SDVariable kCmp = ops.compressMean(k, 4, 2);
    SDVariable[] cmp = ops.compressedAttention("cmp", q, kCmp, kCmp, null, 4, 2, 0, 0);
    SDVariable indices = ops.select("indices", q, kCmp, cmp[1], null, 4, 2, 8, 3, 0, 0);
    SDVariable[] slc = ops.selectedAttention("slc", q, k, k, indices, null, 8, 0);
    assertThat(Stream.of(cmp[0], cmp[1], indices, slc[0], slc[1]).map(SDVariable::name))
        .containsExactly("cmp", "cmp:1", "indices", "slc", "slc:1");
    assertThat(Stream.of(cmp[0], cmp[1], indices, slc[0], slc[1]).map(SDVariable::dataType))
        .containsExactly(
            DataType.FLOAT16, DataType.FLOAT, DataType.INT32, DataType.FLOAT16, DataType.FLOAT);
    for (int length : new int[] {5, 17}) {
      Map<String, INDArray> values =
          sd.output(
              Map.of(
                  "q",
                  Nd4j.rand(DataType.FLOAT16, 2, length, 2, 8),
                  "k",
                  Nd4j.rand(DataType.FLOAT16, 2, length, 1, 8)),
              "cmp",
              "indices",
              "slc",
              "slc:1");
      assertThat(values.get("cmp").shape()).containsExactly(2, length, 2, 8);
      assertThat(values.get("indices").shape()).containsExactly(2, length, 1, 3);
      assertThat(values.get("indices").dataType()).isEqualTo(DataType.INT32);
      assertThat(values.get("slc").dataType()).isEqualTo(DataType.FLOAT16);
      assertThat(values.get("slc:1").shape()).containsExactly(2, 2, length);
    }
  }

  @Test
  void lossThatDependsOnLseIsRefused() {
    SameDiff sd = SameDiff.create();
    SDVariable q = sd.var("q", Nd4j.rand(DataType.FLOAT, 1, 8, 1, 4));
    SDNsa ops = new SDNsa(sd);
    SDVariable kCmp = ops.compressMean(q, 4, 2);
    SDVariable[] outputs = ops.compressedAttention("cmp", q, kCmp, kCmp, null, 4, 2, 0, 0);
    sd.setLossVariables(outputs[0].sum().add(outputs[1].sum()));
    assertThatThrownBy(() -> sd.calculateGradients(Map.of(), "q"))
        .isInstanceOf(UnsupportedOperationException.class)
        .hasMessageContaining("nsa_compressed_attention: the loss depends on lse (cmp:1)");
  }

  @Test
  void maskThatIsComputedGetsGradientZero() {
    SameDiff sd = SameDiff.create();
    SDVariable q = sd.var("q", Nd4j.rand(DataType.FLOAT, 1, 8, 1, 4));
    SDVariable logits = sd.var("logits", Nd4j.rand(DataType.FLOAT, 1, 8).addi(1));
    SDVariable mask = logits.mul(2);
    SDNsa ops = new SDNsa(sd);
    SDVariable indices = sd.constant(Nd4j.zeros(DataType.INT32, 1, 8, 1, 1));
    sd.setLossVariables(ops.selectedAttention(q, q, q, indices, mask, 8, 0)[0].sum());
    Map<String, INDArray> gradients = sd.calculateGradients(Map.of(), "q", "logits");
    assertThat(gradients.get("logits")).isEqualTo(Nd4j.zeros(DataType.FLOAT, 1, 8));
    assertThat(gradients.get("q").norm2Number().doubleValue()).isPositive();
  }

  @Test
  void badArgumentsAreRefusedWhenTheGraphIsBuiltOrRun() {
    SameDiff sd = SameDiff.create();
    SDVariable q = sd.var("q", Nd4j.rand(DataType.FLOAT, 1, 8, 2, 4));
    SDNsa ops = new SDNsa(sd);
    assertThatThrownBy(() -> ops.compressedAttention(q, q, q, null, 4, 3, 0, 0))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessage(
            "nsa_compressed_attention: argument 'stride' is 3; it must be a divisor of"
                + " blockLength, 4");
    assertThatThrownBy(() -> ops.select(q, q, q, null, 4, 2, 8, 2, 0, 0))
        .hasMessage("nsa_select: argument 'topN' is 2; it must be at least 3");
    assertThatThrownBy(() -> ops.select(q, q, q, null, 4, 2, 6, 3, 0, 0))
        .hasMessageContaining("'selectionBlock' is 6; it must be a multiple of blockLength, 4");
    assertThatThrownBy(() -> ops.selectedAttention(q, q, q, q, null, 0, 0))
        .hasMessageContaining("argument 'selectionBlock' is 0; it must be at least 1");
    assertThatThrownBy(() -> new NsaConfig(32, 16, 64, 16, 0))
        .hasMessage("nsa: argument 'window' is 0; it must be at least 1");
    assertThatThrownBy(() -> new NsaConfig(32, 12, 64, 16, 512))
        .hasMessage("nsa: argument 'stride' is 12; it must be a divisor of blockLength, 32");
    SDVariable o = ops.compressedAttention(q, q, q, null, 4, 2, 0, 0)[0];
    assertThatThrownBy(o::eval)
        .hasStackTraceContaining(
            "nsa_compressed_attention: kCmp has shape [1, 8, 2, 4]; expected [1, 3, a divisor of 2,"
                + " 4]");
  }

  /** Three branches with their projections, gates and compression by an MLP. */
  private static SameDiff model(boolean composed) {
    Nd4j.getRandom().setSeed(5);
    SameDiff sd = SameDiff.create();
    long heads = 4;
    long size = 6;
    long width = heads * size;
    SDVariable x = sd.placeHolder("x", DataType.FLOAT, -1, 24, width);
    SDVariable y = sd.placeHolder("y", DataType.FLOAT, -1, 24, width);
    SDVariable[] projected = new SDVariable[6];
    long[] sizes = {width, width / 2, width / 2, width / 2, width / 2, 3 * heads};
    for (int i = 0; i < sizes.length; i++) {
      SDVariable w = sd.var("w" + i, Nd4j.randn(DataType.FLOAT, width, sizes[i]).muli(0.2));
      projected[i] = sd.mmul(x.reshape(-1, width), w).reshape(-1, 24, sizes[i] / size, size);
    }
    SDVariable q = projected[0];
    SDVariable gates = sd.nn().sigmoid(projected[5]).reshape(-1, 24, heads, 3);
    SDVariable position = sd.var("position", Nd4j.randn(DataType.FLOAT, 2, 4, size).muli(0.1));
    SDVariable w1 = sd.var("mlp1", Nd4j.randn(DataType.FLOAT, 2, 4 * size, 8).muli(0.2));
    SDVariable b1 = sd.var("bias1", Nd4j.zeros(DataType.FLOAT, 2, 8));
    SDVariable w2 = sd.var("mlp2", Nd4j.randn(DataType.FLOAT, 2, 8, size).muli(0.3));
    SDVariable b2 = sd.var("bias2", Nd4j.zeros(DataType.FLOAT, 2, size));
    SDVariable o;
    SDNsa nsa = new SDNsa(sd);
    SDVariable kCmp = nsa.compressMlp(projected[1], position, w1, b1, w2, b2, 4, 2);
    SDVariable vCmp = nsa.compressMean(projected[2], 4, 2);
    if (composed) {
      ComposedNsaGraph graph = new ComposedNsaGraph(sd);
      SDVariable[] cmp = graph.compressedAttention(q, kCmp, vCmp, null, 4, 2, 24, 0);
      SDVariable indices = graph.select(q, kCmp, cmp[1], null, 4, 2, 8, 3, 24, 0);
      SDVariable slc =
          graph.selectedAttention(q, projected[1], projected[2], indices, null, 8, 0)[0];
      SDVariable win =
          new ComposedGraph(sd).gatedFwa(q, projected[3], projected[4], null, null, 6, 0)[0];
      SDVariable[] g = sd.unstack(gates, 3, 3);
      o =
          sd.expandDims(g[0], 3)
              .mul(cmp[0])
              .add(sd.expandDims(g[1], 3).mul(slc))
              .add(sd.expandDims(g[2], 3).mul(win));
    } else {
      o =
          nsa.attention(
              q,
              projected[1],
              projected[2],
              kCmp,
              vCmp,
              projected[3],
              projected[4],
              null,
              gates,
              null,
              CONFIG);
    }
    SDVariable out = o.reshape(-1, 24, width).rename("out");
    sd.loss().meanSquaredError("loss", y, out, null);
    sd.setLossVariables("loss");
    return sd;
  }

  /** The input eight tokens ago: something that the window of six cannot see. */
  private static MultiDataSet data() {
    Nd4j.getRandom().setSeed(6);
    INDArray x = Nd4j.randn(DataType.FLOAT, 8, 24, 24);
    INDArray y = x.mul(0.3);
    return new MultiDataSet(new INDArray[] {x}, new INDArray[] {y});
  }

  private static double[] fit(SameDiff sd, int epochs) {
    sd.setTrainingConfig(
        TrainingConfig.builder()
            .updater(new Adam(1e-2))
            .dataSetFeatureMapping("x")
            .dataSetLabelMapping("y")
            .build());
    double[] losses = new double[epochs + 1];
    for (int i = 0; i <= epochs; i++) {
      MultiDataSet data = data();
      losses[i] =
          sd.outputSingle(Map.of("x", data.getFeatures(0), "y", data.getLabels(0)), "loss")
              .getDouble(0);
      if (i < epochs) {
        sd.fit(new SingletonMultiDataSetIterator(data), 1);
      }
    }
    return losses;
  }

  @Test
  void composedModelTrainsAsTheNativeOneDoes() {
    double[] ofNative = fit(model(false), 6);
    double[] ofComposed = fit(model(true), 6);
    assertThat(ofNative[6]).isLessThan(0.9 * ofNative[0]);
    for (int i = 0; i <= 6; i++) {
      assertThat(ofComposed[i] / ofNative[i]).isBetween(1 - 1e-4, 1 + 1e-4);
    }
  }

  /** Saved with updater state, loaded by a JVM that has not seen the graph; arguments restored. */
  @Test
  void savedGraphsRunInAFreshJvm(@TempDir Path directory) {
    SameDiff sd = model(false);
    fit(sd, 2);
    File file = directory.resolve("model.fb").toFile();
    sd.save(file, true);
    INDArray x = data().getFeatures(0);
    INDArray expected = sd.outputSingle(Map.of("x", x), "out");
    JavaProcess.Result result = JavaProcess.run(SavedGraph.class, List.of("-Dmodel=" + file));
    assertThat(result.output())
        .contains("compressed 4 2 0 0.0 false")
        .contains("select 4 2 8 3 0 0.0 false")
        .contains("selected 8 0.0 false")
        .contains("sum " + expected.sumNumber())
        .contains("trained on");
    assertThat(result.exitCode()).isZero();
  }

  /** The main program of that JVM. */
  static final class SavedGraph {

    private SavedGraph() {}

    public static void main(String[] args) {
      GatedFwaOps.load();
      SameDiff sd = SameDiff.load(new File(System.getProperty("model")), true);
      for (SameDiffOp op : sd.getOps().values()) {
        if (op.getOp() instanceof NsaCompressedAttention x) {
          System.out.printf(
              "compressed %d %d %d %s %s%n",
              x.blockLength(), x.stride(), x.keyLength(), x.scale(), x.hasMask());
        } else if (op.getOp() instanceof NsaSelect x) {
          System.out.printf(
              "select %d %d %d %d %d %s %s%n",
              x.blockLength(),
              x.stride(),
              x.selectionBlock(),
              x.topN(),
              x.keyLength(),
              x.scale(),
              x.hasMask());
        } else if (op.getOp() instanceof NsaSelectedAttention x) {
          System.out.printf("selected %d %s %s%n", x.selectionBlock(), x.scale(), x.hasMask());
        }
      }
      INDArray x = data().getFeatures(0);
      System.out.println("sum " + sd.outputSingle(Map.of("x", x), "out").sumNumber());
      sd.fit(new SingletonMultiDataSetIterator(data()), 2);
      System.out.println("trained on");
    }
  }
}
