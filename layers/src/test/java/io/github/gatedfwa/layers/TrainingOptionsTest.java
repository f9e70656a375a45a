package io.github.gatedfwa.layers;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import org.deeplearning4j.nn.api.Model;
import org.deeplearning4j.nn.conf.GradientNormalization;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.conf.WorkspaceMode;
import org.deeplearning4j.nn.conf.layers.Layer;
import org.deeplearning4j.nn.conf.layers.RnnOutputLayer;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.deeplearning4j.nn.multilayer.MultiLayerNetwork;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.nd4j.linalg.activations.Activation;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.dataset.DataSet;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.indexing.NDArrayIndex;
import org.nd4j.linalg.learning.config.Adam;
import org.nd4j.linalg.learning.config.Sgd;
import org.nd4j.linalg.lossfunctions.impl.LossMCXENT;
import org.nd4j.linalg.schedule.MapSchedule;
import org.nd4j.linalg.schedule.ScheduleType;

/** What DL4J lets a user set for training acts on the layers as on its own, in either network. */
class TrainingOptionsTest {
  private static final int N_IN = 4;

  private static Layer[] layers(Options options) {
    return new Layer[] {
      RMSNormLayer.builder().build(),
      options.builder().build(),
      SwiGLULayer.builder().nOut(4).hiddenSize(8).build(),
      Nets.output(2)
    };
  }

  private static DataSet data(DataType type, long seed) {
    return new DataSet(
        Nets.random(type, seed, 3, N_IN, 9), Nets.labels(type, 3, 2, 9, RNNFormat.NCW));
  }

  /** What one step of SGD with a rate of 1 changes: the gradient after clipping, negated. */
  private static INDArray step(
      Nets.Kind kind, Options options, GradientNormalization clipping, double threshold) {
    Model net =
        Nets.shaken(
            kind.net(
                Nets.config(DataType.DOUBLE)
                    .updater(new Sgd(1))
                    .gradientNormalization(clipping)
                    .gradientNormalizationThreshold(threshold),
                N_IN,
                RNNFormat.NCW,
                layers(options)));
    INDArray before = net.params().dup();
    Nets.fit(net, data(DataType.DOUBLE, 1));
    return net.params().sub(before);
  }

  @ParameterizedTest
  @EnumSource
  void gradientsAreClippedPerElement(Nets.Kind kind) {
    for (Options options : new Options[] {Options.EVERYTHING, Options.NSA_EVERYTHING}) {
      INDArray whole = step(kind, options, GradientNormalization.None, 1);
      double threshold = whole.amaxNumber().doubleValue() / 10;
      INDArray clipped =
          step(kind, options, GradientNormalization.ClipElementWiseAbsoluteValue, threshold);
      INDArray expected = whole.dup();
      for (long i = 0; i < expected.length(); i++) {
        double x = expected.getDouble(i);
        expected.putScalar(i, Math.max(-threshold, Math.min(threshold, x)));
      }
      assertThat(Nets.distance(clipped, expected)).isLessThan(1e-12);
      assertThat(Nets.distance(clipped, whole)).isGreaterThan(1e-3);
    }
  }

  @ParameterizedTest
  @EnumSource
  void gradientsAreClippedPerLayer(Nets.Kind kind) {
    INDArray whole = step(kind, Options.EVERYTHING, GradientNormalization.None, 1);
    INDArray clipped =
        step(kind, Options.EVERYTHING, GradientNormalization.RenormalizeL2PerLayer, 1);
    Model net =
        kind.net(Nets.config(DataType.DOUBLE), N_IN, RNNFormat.NCW, layers(Options.EVERYTHING));
    long from = 0;
    for (org.deeplearning4j.nn.api.Layer layer : Nets.layers(net)) {
      long to = from + layer.numParams();
      INDArray expected = whole.get(NDArrayIndex.all(), NDArrayIndex.interval(from, to)).dup();
      expected.divi(expected.norm2Number());
      INDArray actual = clipped.get(NDArrayIndex.all(), NDArrayIndex.interval(from, to));
      assertThat(Nets.distance(actual, expected)).isLessThan(1e-12);
      from = to;
    }
    assertThat(from).isEqualTo(whole.length());
  }

  /** A schedule that ends: the steps of the first rate, then none. */
  @ParameterizedTest
  @EnumSource
  void schedulesSetTheLearningRate(Nets.Kind kind) {
    MapSchedule schedule =
        new MapSchedule.Builder(ScheduleType.ITERATION).add(0, 0.1).add(2, 0.0).build();
    Model scheduled =
        kind.net(
            Nets.config(DataType.DOUBLE).updater(new Sgd(schedule)),
            N_IN,
            RNNFormat.NCW,
            layers(Options.EVERYTHING));
    Model constant =
        kind.net(
            Nets.config(DataType.DOUBLE).updater(new Sgd(0.1)),
            N_IN,
            RNNFormat.NCW,
            layers(Options.EVERYTHING));
    INDArray start = scheduled.params().dup();
    for (int i = 0; i < 4; i++) {
      Nets.fit(scheduled, data(DataType.DOUBLE, i));
      if (i < 2) {
        Nets.fit(constant, data(DataType.DOUBLE, i));
      }
    }
    assertThat(Nets.distance(scheduled.params(), constant.params())).isZero();
    assertThat(Nets.distance(scheduled.params(), start)).isGreaterThan(1e-3);
  }

  @Test
  void learningRatesOfAGraphCanBeChanged() {
    ComputationGraph net =
        Nets.graph(
            Nets.config(DataType.FLOAT), N_IN, RNNFormat.NCW, layers(Options.NSA_EVERYTHING));
    INDArray before = net.params().dup();
    net.setLearningRate(0);
    net.fit(data(DataType.FLOAT, 2));
    assertThat(Nets.distance(net.params(), before)).isZero();
    net.setLearningRate("layer1", 0.1);
    net.fit(data(DataType.FLOAT, 2));
    assertThat(Nets.distance(net.params(), before)).isPositive();
    assertThat(Nets.distance(net.getParam("layer0_g"), Nd4j.onesLike(net.getParam("layer0_g"))))
        .isZero();
  }

  @ParameterizedTest
  @EnumSource(names = {"EVERYTHING", "COMPRESSION_MLP", "SELECTION", "NSA_EVERYTHING"})
  void workspacesDoNotChangeAGraphsResult(Options options) {
    ComputationGraph with =
        Nets.graph(Nets.config(DataType.FLOAT), N_IN, RNNFormat.NCW, layers(options));
    ComputationGraph without = with.clone();
    without.getConfiguration().setTrainingWorkspaceMode(WorkspaceMode.NONE);
    without.getConfiguration().setInferenceWorkspaceMode(WorkspaceMode.NONE);
    for (int i = 0; i < 3; i++) {
      DataSet data = data(DataType.FLOAT, i);
      with.fit(data);
      without.fit(data);
      assertThat(Nets.distance(with.params(), without.params())).isZero();
      assertThat(
              Nets.distance(
                  with.outputSingle(data.getFeatures()), without.outputSingle(data.getFeatures())))
          .isZero();
    }
  }

  /** The formula of each token, written out, for every memory layout. */
  @ParameterizedTest
  @CsvSource({"NCW,true", "NCW,false", "NWC,true", "NWC,false"})
  void normAndFeedForwardAreTheirFormulas(RNNFormat format, boolean bias) {
    int hidden = 5;
    MultiLayerNetwork net =
        Nets.shaken(
            Nets.net(
                DataType.DOUBLE,
                N_IN,
                format,
                RMSNormLayer.builder().eps(1e-3).build(),
                SwiGLULayer.builder().nOut(3).hiddenSize(hidden).hasBias(bias).build(),
                new RnnOutputLayer.Builder().nOut(2).activation(Activation.SOFTMAX).build()));
    INDArray x = Nets.random(DataType.DOUBLE, 3, 2, N_IN, 7);
    INDArray data = Nets.toFormat(x, format);
    INDArray larger = Nets.random(DataType.DOUBLE, 5, 4, data.size(1) + 3, data.size(2) + 2);
    INDArray view =
        larger.get(
            NDArrayIndex.interval(1, 3),
            NDArrayIndex.interval(2, 2 + data.size(1)),
            NDArrayIndex.interval(1, 1 + data.size(2)));
    view.assign(data);
    for (INDArray layout : new INDArray[] {data.dup('c'), data.dup('f'), view}) {
      INDArray output = net.feedForwardToLayer(1, layout, false).get(2);
      INDArray ncw = format == RNNFormat.NWC ? output.permute(0, 2, 1) : output;
      for (int b = 0; b < 2; b++) {
        for (int t = 0; t < 7; t++) {
          double[] expected = swiGlu(net, norm(net, token(x, b, t)), hidden);
          for (int i = 0; i < 3; i++) {
            assertThat(ncw.getDouble(b, i, t)).isCloseTo(expected[i], CLOSE);
          }
        }
      }
    }
  }

  private static final org.assertj.core.data.Offset<Double> CLOSE =
      org.assertj.core.data.Offset.offset(1e-12);

  private static double[] token(INDArray x, int b, int t) {
    double[] token = new double[(int) x.size(1)];
    for (int i = 0; i < token.length; i++) {
      token[i] = x.getDouble(b, i, t);
    }
    return token;
  }

  private static double[] norm(MultiLayerNetwork net, double[] x) {
    double square = 0;
    for (double value : x) {
      square += value * value / x.length;
    }
    double[] y = new double[x.length];
    for (int i = 0; i < x.length; i++) {
      y[i] = x[i] / Math.sqrt(square + 1e-3) * net.getParam("0_g").getDouble(i);
    }
    return y;
  }

  private static double[] swiGlu(MultiLayerNetwork net, double[] x, int hidden) {
    double[] product = new double[hidden];
    double[] gate = times(net, x, "1_W1", "1_b1");
    double[] value = times(net, x, "1_W3", "1_b3");
    for (int i = 0; i < hidden; i++) {
      product[i] = gate[i] / (1 + Math.exp(-gate[i])) * value[i];
    }
    return times(net, product, "1_W2", "1_b2");
  }

  private static double[] times(MultiLayerNetwork net, double[] x, String weights, String bias) {
    INDArray w = net.getParam(weights);
    double[] y = new double[(int) w.size(1)];
    for (int j = 0; j < y.length; j++) {
      y[j] = net.paramTable().containsKey(bias) ? net.getParam(bias).getDouble(j) : 0;
      for (int i = 0; i < x.length; i++) {
        y[j] += x[i] * w.getDouble(i, j);
      }
    }
    return y;
  }

  /** Long enough that a number out of HALF's range would have come up. */
  @Test
  void aLongHalfRunStaysFinite() {
    Layer[] layers = layers(Options.EVERYTHING);
    layers[3] =
        new RnnOutputLayer.Builder(new LossMCXENT(1e-3, null))
            .activation(Activation.SOFTMAX)
            .nOut(2)
            .build();
    MultiLayerNetwork net =
        Nets.net(
            Nets.config(DataType.HALF)
                .updater(Adam.builder().learningRate(0.01).epsilon(1e-4).build()),
            N_IN,
            RNNFormat.NCW,
            layers);
    for (int i = 0; i < 300; i++) {
      net.fit(data(DataType.HALF, i % 10));
      assertThat(Double.isFinite(net.score())).as("score of step %d", i).isTrue();
    }
    assertThat(net.params().isNaN().any()).isFalse();
    assertThat(net.params().isInfinite().any()).isFalse();
  }

  @ParameterizedTest
  @EnumSource
  void deeplearning4jHasNoBfloat16Networks(Nets.Kind kind) {
    assertThatThrownBy(
            () ->
                kind.net(
                    Nets.config(DataType.BFLOAT16),
                    N_IN,
                    RNNFormat.NCW,
                    layers(Options.EVERYTHING)))
        .hasMessageContaining("BFLOAT16");
  }
}
