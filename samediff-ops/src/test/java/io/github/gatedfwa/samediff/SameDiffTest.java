package io.github.gatedfwa.samediff;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.nd4j.linalg.indexing.NDArrayIndex.all;
import static org.nd4j.linalg.indexing.NDArrayIndex.point;

import io.github.gatedfwa.nativeops.JavaProcess;
import java.io.File;
import java.nio.file.Path;
import java.util.ArrayList;
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

/** The ops in SameDiff graphs. */
class SameDiffTest {

  private static final long HEADS = 4;
  private static final long SIZE = 6;

  @BeforeAll
  static void load() {
    GatedFwaOps.load();
  }

  static Stream<Arguments> gradientChecks() {
    return Stream.of(
        Arguments.of(false, false, "none"),
        Arguments.of(false, false, "BOOL"),
        Arguments.of(false, true, "none"),
        Arguments.of(false, true, "DOUBLE"),
        Arguments.of(true, true, "BOOL"));
  }

  /** q, k, v, gate logits and amplitudes, through gate and attention, by finite differences. */
  @ParameterizedTest
  @MethodSource("gradientChecks")
  void gradientsAreRight(boolean composed, boolean gated, String maskType) {
    Nd4j.getRandom().setSeed(11);
    SameDiff sd = SameDiff.create();
    SDVariable q = sd.var("q", Nd4j.randn(DataType.DOUBLE, 2, 3, 2, 3));
    SDVariable k = sd.var("k", Nd4j.randn(DataType.DOUBLE, 2, 5, 1, 3));
    SDVariable v = sd.var("v", Nd4j.randn(DataType.DOUBLE, 2, 5, 1, 2));
    SDVariable alpha = null;
    if (gated) {
      SDVariable h = sd.var("h", Nd4j.randn(DataType.DOUBLE, 2, 5, 2));
      SDVariable beta = sd.var("beta", Nd4j.rand(DataType.DOUBLE, 2, 5, 2).addi(0.5));
      alpha =
          composed
              ? new ComposedGraph(sd).gate(h, beta, GatedFwaOps.DEFAULT_EPS)
              : new SDGatedFwa(sd).gate("alpha", h, beta, GatedFwaOps.DEFAULT_EPS);
    }
    SDVariable mask =
        maskType.equals("none")
            ? null
            : sd.constant(
                "mask",
                Nd4j.createFromArray(1.0, 1, 0, 1, 1, 0, 0, 0, 1, 1)
                    .reshape(2, 5)
                    .castTo(DataType.valueOf(maskType)));
    SDVariable o =
        composed
            ? new ComposedGraph(sd).gatedFwa(q, k, v, alpha, mask, 3, 0.7)[0]
            : new SDGatedFwa(sd).gatedFwa("o", q, k, v, alpha, mask, 3, 0.7)[0];
    SDVariable weights = sd.constant("weights", Nd4j.randn(DataType.DOUBLE, 2, 3, 2, 2));
    sd.setLossVariables(o.mul(weights).sum());
    DataType defaultType = Nd4j.dataType();
    Nd4j.setDefaultDataTypes(DataType.DOUBLE, DataType.DOUBLE); // GradCheckUtil insists
    try {
      assertThat(GradCheckUtil.checkGradients(sd, Map.of())).isTrue();
    } finally {
      Nd4j.setDefaultDataTypes(defaultType, defaultType);
    }
  }

  @Test
  void namesAndTypesOfOutputs() {
    SameDiff sd = SameDiff.create();
    SDVariable q = sd.placeHolder("q", DataType.FLOAT16, -1, -1, 2, 8);
    SDVariable h = sd.placeHolder("h", DataType.FLOAT, -1, -1, 2);
    SDGatedFwa ops = new SDGatedFwa(sd);
    SDVariable alpha = ops.gate("alpha", h, h, 1e-3);
    SDVariable[] named = ops.gatedFwa("attention", q, q, q, alpha, null, 4, 0);
    SDVariable[] unnamed = ops.gatedFwa(q, q, q, null, null, 4, 0);
    assertThat(named[0].name()).isEqualTo("attention");
    assertThat(named[1].name()).isEqualTo("attention:1");
    assertThat(named[0].dataType()).isEqualTo(DataType.FLOAT16);
    assertThat(named[1].dataType()).isEqualTo(DataType.FLOAT);
    for (int length : new int[] {3, 7}) {
      INDArray x = Nd4j.rand(DataType.FLOAT16, 2, length, 2, 8);
      Map<String, INDArray> values =
          sd.output(
              Map.of("q", x, "h", Nd4j.ones(DataType.FLOAT, 2, length, 2)),
              "attention",
              "attention:1",
              unnamed[0].name());
      assertThat(values.get("attention").dataType()).isEqualTo(DataType.FLOAT16);
      assertThat(values.get("attention").shape()).containsExactly(2, length, 2, 8);
      assertThat(values.get("attention:1").dataType()).isEqualTo(DataType.FLOAT);
      assertThat(values.get("attention:1").shape()).containsExactly(2, 2, length);
    }
  }

  @Test
  void composedGraphTakesAnyBatchAndLength() {
    SameDiff sd = SameDiff.create();
    SDVariable q = sd.placeHolder("q", DataType.FLOAT, -1, -1, 4, 8);
    SDVariable kv = sd.placeHolder("kv", DataType.FLOAT, -1, -1, 2, 8);
    SDVariable alpha = sd.placeHolder("alpha", DataType.FLOAT, -1, -1, 4);
    SDVariable o = new ComposedGraph(sd).gatedFwa(q, kv, kv, alpha, null, 3, 0)[0];
    for (int batch = 1; batch < 4; batch++) {
      AttentionCase c =
          AttentionCase.random(batch, batch, batch, 2 * batch + 1, 4, 2, 8, 8, 3, 1)
              .castTo(DataType.FLOAT);
      INDArray value =
          sd.outputSingle(Map.of("q", c.q(), "kv", c.k(), "alpha", c.alpha()), o.name());
      INDArray expected = Nd4j.exec(new GatedFwa(c.q(), c.k(), c.k(), c.alpha(), null, 3, 0))[0];
      assertThat(Errors.relative(value, expected)).isLessThan(2e-6);
    }
  }

  @Test
  void lossThatDependsOnLseIsRefused() {
    SameDiff sd = SameDiff.create();
    SDVariable q = sd.var("q", Nd4j.rand(DataType.FLOAT, 1, 3, 1, 4));
    SDVariable[] outputs = new SDGatedFwa(sd).gatedFwa("att", q, q, q, null, null, 2, 0);
    sd.setLossVariables(outputs[0].sum().add(outputs[1].sum()));
    assertThatThrownBy(() -> sd.calculateGradients(Map.of(), "q"))
        .isInstanceOf(UnsupportedOperationException.class)
        .hasMessageContaining("gated_fwa: the loss depends on lse (att:1)");
  }

  @Test
  void maskThatIsComputedGetsGradientZero() {
    SameDiff sd = SameDiff.create();
    SDVariable q = sd.var("q", Nd4j.rand(DataType.FLOAT, 1, 3, 1, 4));
    SDVariable logits = sd.var("logits", Nd4j.rand(DataType.FLOAT, 1, 3));
    SDVariable mask = logits.mul(2);
    sd.setLossVariables(new SDGatedFwa(sd).gatedFwa(q, q, q, null, mask, 2, 0)[0].sum());
    Map<String, INDArray> gradients = sd.calculateGradients(Map.of(), "q", "logits");
    assertThat(gradients.get("logits")).isEqualTo(Nd4j.zeros(DataType.FLOAT, 1, 3));
    assertThat(gradients.get("q").norm2Number().doubleValue()).isPositive();
  }

  @Test
  void badArgumentsAreRefusedWhenTheGraphIsBuiltOrRun() {
    SameDiff sd = SameDiff.create();
    SDVariable q = sd.var("q", Nd4j.rand(DataType.FLOAT, 1, 3, 2, 4));
    SDVariable k = sd.var("k", Nd4j.rand(DataType.FLOAT, 1, 3, 2, 5));
    SDGatedFwa ops = new SDGatedFwa(sd);
    assertThatThrownBy(() -> ops.gatedFwa(q, q, q, null, null, 0, 0))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessage("gated_fwa: argument 'window' is 0; it must be at least 1");
    assertThatThrownBy(() -> ops.gate(q, q, -1))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessage("gated_fwa_gate: argument 'eps' is -1.0; it must be finite and at least 0");
    SDVariable o = ops.gatedFwa(q, k, q, null, null, 2, 0)[0];
    assertThatThrownBy(o::eval)
        .hasStackTraceContaining("gated_fwa: k has shape [1, 3, 2, 5]; expected [1, >=3,");
  }

  /** A block with everything in it: projections, gate, attention, loss. */
  private static SameDiff model(boolean composed) {
    Nd4j.getRandom().setSeed(5);
    SameDiff sd = SameDiff.create();
    long width = HEADS * SIZE;
    SDVariable x = sd.placeHolder("x", DataType.FLOAT, -1, 24, width);
    SDVariable y = sd.placeHolder("y", DataType.FLOAT, -1, 24, width);
    SDVariable[] projected = new SDVariable[4];
    long[] sizes = {width, width, width, HEADS};
    for (int i = 0; i < 4; i++) {
      SDVariable w = sd.var("w" + i, Nd4j.randn(DataType.FLOAT, 1, width, sizes[i]).muli(0.2));
      projected[i] =
          sd.mmul(x.reshape(-1, width), w.reshape(width, sizes[i])).reshape(-1, 24, sizes[i]);
    }
    SDVariable q = projected[0].reshape(-1, 24, HEADS, SIZE);
    SDVariable k = projected[1].reshape(-1, 24, HEADS, SIZE);
    SDVariable v = projected[2].reshape(-1, 24, HEADS, SIZE);
    SDVariable beta = sd.onesLike(projected[3]);
    SDVariable o;
    if (composed) {
      ComposedGraph graph = new ComposedGraph(sd);
      o = graph.gatedFwa(q, k, v, graph.gate(projected[3].add(2), beta, 1e-3), null, 8, 0)[0];
    } else {
      SDGatedFwa graph = new SDGatedFwa(sd);
      o = graph.gatedFwa(q, k, v, graph.gate(projected[3].add(2), beta, 1e-3), null, 8, 0)[0];
    }
    SDVariable out = o.reshape(-1, 24, width).rename("out");
    sd.loss().meanSquaredError("loss", y, out, null);
    sd.setLossVariables("loss");
    return sd;
  }

  /** Running means of the input: something that windowed attention can learn. */
  private static MultiDataSet data() {
    Nd4j.getRandom().setSeed(6);
    INDArray x = Nd4j.randn(DataType.FLOAT, 4, 24, HEADS * SIZE);
    INDArray y = x.dup();
    for (int t = 1; t < 24; t++) {
      y.get(all(), point(t), all()).addi(y.get(all(), point(t - 1), all())).muli(0.5);
    }
    return new MultiDataSet(new INDArray[] {x}, new INDArray[] {y});
  }

  private static List<Double> fit(SameDiff sd, int epochs) {
    sd.setTrainingConfig(
        TrainingConfig.builder()
            .updater(new Adam(1e-2))
            .dataSetFeatureMapping("x")
            .dataSetLabelMapping("y")
            .build());
    List<Double> losses = new ArrayList<>();
    for (int i = 0; i < epochs; i++) {
      sd.fit(new SingletonMultiDataSetIterator(data()), 1);
      losses.add(loss(sd));
    }
    return losses;
  }

  private static double loss(SameDiff sd) {
    MultiDataSet data = data();
    return sd.outputSingle(Map.of("x", data.getFeatures(0), "y", data.getLabels(0)), "loss")
        .getDouble(0);
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void fitLearns(boolean composed) {
    SameDiff sd = model(composed);
    double before = loss(sd);
    fit(sd, 20);
    assertThat(loss(sd)).isLessThan(0.8 * before);
  }

  @Test
  void composedModelTrainsAsTheNativeOneDoes() {
    List<Double> ofNative = fit(model(false), 5);
    List<Double> ofComposed = fit(model(true), 5);
    for (int i = 0; i < 5; i++) {
      assertThat(ofComposed.get(i) / ofNative.get(i)).isBetween(1 - 1e-4, 1 + 1e-4);
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
        .contains("window 8 scale 0.0 alpha true mask false eps 0.001")
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
      GatedFwa attention = op(sd, GatedFwa.class);
      GatedFwaGate gate = op(sd, GatedFwaGate.class);
      System.out.printf(
          "window %d scale %s alpha %s mask %s eps %s%n",
          attention.window(),
          attention.scale(),
          attention.hasAlpha(),
          attention.hasMask(),
          gate.eps());
      INDArray x = data().getFeatures(0);
      System.out.println("sum " + sd.outputSingle(Map.of("x", x), "out").sumNumber());
      sd.fit(new SingletonMultiDataSetIterator(data()), 2);
      System.out.println("trained on");
    }

    private static <T> T op(SameDiff sd, Class<T> type) {
      return sd.getOps().values().stream()
          .map(SameDiffOp::getOp)
          .filter(type::isInstance)
          .map(type::cast)
          .findFirst()
          .orElseThrow();
    }
  }
}
