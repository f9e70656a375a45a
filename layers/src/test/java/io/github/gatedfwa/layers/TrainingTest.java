package io.github.gatedfwa.layers;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import io.github.gatedfwa.nativeops.Bits;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.deeplearning4j.nn.api.layers.LayerConstraint;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.conf.WorkspaceMode;
import org.deeplearning4j.nn.conf.constraint.MaxNormConstraint;
import org.deeplearning4j.nn.conf.constraint.UnitNormConstraint;
import org.deeplearning4j.nn.conf.dropout.Dropout;
import org.deeplearning4j.nn.conf.inputs.InputType;
import org.deeplearning4j.nn.conf.layers.BaseLayer;
import org.deeplearning4j.nn.conf.layers.Layer;
import org.deeplearning4j.nn.conf.layers.OutputLayer;
import org.deeplearning4j.nn.conf.layers.RnnOutputLayer;
import org.deeplearning4j.nn.conf.layers.misc.FrozenLayerWithBackprop;
import org.deeplearning4j.nn.conf.layers.recurrent.LastTimeStep;
import org.deeplearning4j.nn.conf.weightnoise.DropConnect;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.deeplearning4j.nn.multilayer.MultiLayerNetwork;
import org.deeplearning4j.nn.transferlearning.FineTuneConfiguration;
import org.deeplearning4j.nn.transferlearning.TransferLearning;
import org.deeplearning4j.nn.weights.WeightInit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.nd4j.evaluation.classification.Evaluation;
import org.nd4j.linalg.activations.Activation;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.dataset.DataSet;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.indexing.NDArrayIndex;
import org.nd4j.linalg.learning.config.Adam;
import org.nd4j.linalg.learning.config.Sgd;
import org.nd4j.linalg.lossfunctions.impl.LossMCXENT;

/** Networks with the layers learn, and DL4J's means of training apply to them. */
class TrainingTest {
  private static final int N_IN = 4;

  private static Layer[] layers() {
    return layers(Options.everything().windowSize(8).build());
  }

  private static Layer[] layers(Layer attention) {
    return new Layer[] {
      RMSNormLayer.builder().build(),
      attention,
      SwiGLULayer.builder().nOut(4).hiddenSize(8).hasBias(true).build(),
      Nets.output(2)
    };
  }

  private static MultiLayerNetwork net(DataType type) {
    return Nets.net(Nets.config(type).updater(new Adam(0.02)), N_IN, RNNFormat.NCW, layers());
  }

  private static MultiLayerNetwork net(DataType type, RNNFormat format, Options options) {
    return Nets.net(
        Nets.config(type).updater(new Adam(0.02)),
        N_IN,
        format,
        layers(options.builder().dataFormat(format).build()));
  }

  /** The class of a token is the sign of the sum of a feature over it and the three before it. */
  private static DataSet sums(DataType type, long seed, int minibatch, int time) {
    INDArray x = Nets.random(DataType.DOUBLE, seed, minibatch, N_IN, time);
    INDArray labels = Nd4j.zeros(DataType.DOUBLE, minibatch, 2, time);
    for (int b = 0; b < minibatch; b++) {
      for (int t = 0; t < time; t++) {
        double sum = 0;
        for (int s = Math.max(0, t - 3); s <= t; s++) {
          sum += x.getDouble(b, 0, s);
        }
        labels.putScalar(b, sum > 0 ? 1 : 0, t, 1);
      }
    }
    return new DataSet(x.castTo(type), labels.castTo(type));
  }

  @Test
  void learnsToSumOverTheWindow() {
    MultiLayerNetwork net =
        Nets.net(
            Nets.config(DataType.FLOAT).updater(new Adam(0.02)),
            N_IN,
            RNNFormat.NCW,
            GatedFWALayer.builder().nOut(8).nHeads(2).windowSize(4).build(),
            SwiGLULayer.builder().nOut(8).hiddenSize(8).build(),
            Nets.output(2));
    for (int i = 0; i < 80; i++) {
      net.fit(sums(DataType.FLOAT, i, 8, 24));
    }
    DataSet held = sums(DataType.FLOAT, 1_000_000, 32, 24);
    Evaluation evaluation = new Evaluation(2);
    evaluation.evalTimeSeries(held.getLabels(), net.output(held.getFeatures()));
    assertThat(evaluation.accuracy()).isGreaterThan(0.9);
  }

  @ParameterizedTest
  @CsvSource({
    "EVERYTHING,HALF",
    "EVERYTHING,FLOAT",
    "EVERYTHING,DOUBLE",
    "NSA_EVERYTHING,HALF",
    "NSA_EVERYTHING,FLOAT"
  })
  void trainsInEveryNetworkType(Options options, DataType type) {
    Layer[] layers = layers(options.builder().build());
    // The loss's own guard of log(0), 1e-10, is 0 in HALF.
    layers[3] =
        new RnnOutputLayer.Builder(new LossMCXENT(1e-3, null))
            .activation(Activation.SOFTMAX)
            .nOut(2)
            .build();
    MultiLayerNetwork net =
        Nets.net(
            Nets.config(type).updater(new Adam.Builder().learningRate(0.01).epsilon(1e-4).build()),
            N_IN,
            RNNFormat.NCW,
            layers);
    DataSet data = sums(type, 61, 4, 16);
    double before = net.score(data);
    for (int i = 0; i < 30; i++) {
      net.fit(data);
    }
    assertThat(net.params().dataType()).isEqualTo(type);
    assertThat(net.params().isNaN().any()).isFalse();
    assertThat(net.score(data)).isLessThan(before * 0.9);
  }

  @ParameterizedTest
  @EnumSource(names = {"EVERYTHING", "COMPRESSION_MLP", "SELECTION", "NSA_EVERYTHING"})
  void workspacesDoNotChangeTheResult(Options options) {
    MultiLayerNetwork with = net(DataType.FLOAT, RNNFormat.NCW, options);
    MultiLayerNetwork without = with.clone();
    without.getLayerWiseConfigurations().setTrainingWorkspaceMode(WorkspaceMode.NONE);
    without.getLayerWiseConfigurations().setInferenceWorkspaceMode(WorkspaceMode.NONE);
    for (int i = 0; i < 4; i++) {
      DataSet data = sums(DataType.FLOAT, i, 2 + i, 9 + 2 * i);
      with.fit(data);
      without.fit(data);
      assertThat(Bits.of(with.params())).isEqualTo(Bits.of(without.params()));
      assertThat(Bits.of(with.output(data.getFeatures())))
          .isEqualTo(Bits.of(without.output(data.getFeatures())));
    }
  }

  @ParameterizedTest
  @EnumSource(names = {"EVERYTHING", "COMPRESSION_MLP", "SELECTION", "NSA_EVERYTHING"})
  void formatsLearnTheSame(Options options) {
    MultiLayerNetwork ncw = net(DataType.DOUBLE, RNNFormat.NCW, options);
    MultiLayerNetwork nwc = net(DataType.DOUBLE, RNNFormat.NWC, options);
    nwc.setParams(ncw.params());
    for (int i = 0; i < 3; i++) {
      DataSet data = sums(DataType.DOUBLE, i, 3, 11);
      ncw.fit(data);
      nwc.fit(
          Nets.toFormat(data.getFeatures(), RNNFormat.NWC),
          Nets.toFormat(data.getLabels(), RNNFormat.NWC));
    }
    assertThat(Nets.distance(ncw.params(), nwc.params())).isLessThan(1e-10);
  }

  @Test
  void paddingDoesNotChangeTheGradient() {
    MultiLayerNetwork net = net(DataType.DOUBLE);
    MultiLayerNetwork padded = net.clone();
    DataSet data = sums(DataType.DOUBLE, 62, 3, 6);
    net.fit(data);
    INDArray x = Nets.random(DataType.DOUBLE, 63, 3, N_IN, 10);
    INDArray labels = Nd4j.zeros(DataType.DOUBLE, 3, 2, 10);
    INDArray mask = Nd4j.zeros(DataType.DOUBLE, 3, 10);
    Nets.steps(x, RNNFormat.NCW, 2, 8).assign(data.getFeatures());
    Nets.steps(labels, RNNFormat.NCW, 2, 8).assign(data.getLabels());
    mask.get(NDArrayIndex.all(), NDArrayIndex.interval(2, 8)).assign(1);
    padded.fit(new DataSet(x, labels, mask, mask));
    assertThat(Nets.distance(net.params(), padded.params())).isLessThan(1e-10);
  }

  @ParameterizedTest
  @EnumSource(
      names = {"EVERYTHING", "COMPRESSION_EVERYTHING", "SELECTION_EVERYTHING", "NSA_EVERYTHING"})
  void decoderBlocksTrainInAGraph(Options options) {
    DecoderBlock block =
        DecoderBlock.builder().nModel(8).attention(options.builder().nOut(8).build()).build();
    var graph = Nets.config(DataType.FLOAT).updater(new Adam(0.01)).graphBuilder().addInputs("in");
    String last = block.addTo(graph, "second", block.addTo(graph, "first", "in"));
    graph.addLayer("out", Nets.output(2), last).setOutputs("out");
    ComputationGraph net =
        new ComputationGraph(graph.setInputTypes(InputType.recurrent(8)).build());
    net.init();
    DataSet data =
        new DataSet(
            Nets.random(DataType.FLOAT, 64, 4, 8, 12),
            Nets.labels(DataType.FLOAT, 4, 2, 12, RNNFormat.NCW));
    double before = net.score(data);
    for (int i = 0; i < 30; i++) {
      net.fit(data);
    }
    assertThat(net.score(data)).isLessThan(before / 2);
    assertThat(net.summary())
        .contains("first-attention")
        .contains(net.getLayer("first-attention").getClass().getSimpleName());
  }

  @Test
  void feedForwardDataIsAccepted() {
    var conf =
        Nets.config(DataType.DOUBLE)
            .list()
            .layer(RMSNormLayer.builder().build())
            .layer(SwiGLULayer.builder().nOut(5).hiddenSize(6).build())
            .layer(new OutputLayer.Builder().nOut(2).activation(Activation.SOFTMAX).build())
            .setInputType(InputType.feedForward(N_IN))
            .build();
    MultiLayerNetwork net = new MultiLayerNetwork(conf);
    net.init();
    assertThat(conf.getInputPreProcess(0)).isNull();
    INDArray x = Nets.random(DataType.DOUBLE, 65, 6, N_IN);
    INDArray norm = net.feedForward(x).get(1);
    for (int row = 0; row < 6; row++) {
      double meanSquare = x.getRow(row).mul(x.getRow(row)).meanNumber().doubleValue();
      for (int i = 0; i < N_IN; i++) {
        assertThat(norm.getDouble(row, i))
            .isCloseTo(x.getDouble(row, i) / Math.sqrt(meanSquare + 1e-6), within(1e-12));
      }
    }
    assertThat(net.output(x).shape()).containsExactly(6, 2);
  }

  @Test
  void regularisationCountsInTheScore() {
    MultiLayerNetwork plain = net(DataType.DOUBLE);
    MultiLayerNetwork regularised =
        Nets.net(Nets.config(DataType.DOUBLE).l2(0.1).l1(0.01), N_IN, RNNFormat.NCW, layers());
    regularised.setParams(plain.params());
    DataSet data = sums(DataType.DOUBLE, 66, 2, 5);
    double expected = 0;
    for (var param : regularised.paramTable().entrySet()) {
      if (param.getKey().matches("._W.*")) {
        INDArray w = param.getValue();
        expected +=
            0.05 * w.mul(w).sumNumber().doubleValue() + 0.01 * w.norm1Number().doubleValue();
      }
    }
    assertThat(regularised.score(data) - plain.score(data)).isCloseTo(expected, within(1e-9));
  }

  @Test
  void dropoutNoiseAndConstraintsApply() {
    MultiLayerNetwork net =
        Nets.net(
            Nets.config(DataType.FLOAT).updater(new Sgd(0.5)),
            N_IN,
            RNNFormat.NCW,
            GatedFWALayer.builder()
                .nOut(4)
                .nHeads(2)
                .hasBias(true)
                .dropOut(0.5)
                .weightNoise(new DropConnect(0.5))
                .constrainWeights(new MaxNormConstraint(0.7, 1))
                .build(),
            SwiGLULayer.builder()
                .nOut(4)
                .hiddenSize(6)
                .dropOut(0.5)
                .weightNoise(new DropConnect(0.5))
                .build(),
            Nets.output(2));
    DataSet data = sums(DataType.FLOAT, 67, 8, 10);
    INDArray x = data.getFeatures();
    assertThat(net.output(x)).isEqualTo(net.output(x));
    assertThat(net.output(x, true)).isNotEqualTo(net.output(x, true));
    for (int i = 0; i < 20; i++) {
      net.fit(data);
    }
    for (String key : List.of("Wq", "Wk", "Wv", "Wg", "Wo")) {
      assertThat(net.getParam("0_" + key).norm2(1).maxNumber().doubleValue())
          .as(key)
          .isLessThan(0.7 + 1e-5);
    }
    assertThat(net.params().isNaN().any()).isFalse();
  }

  @Test
  void learningRatesCanBeChanged() {
    MultiLayerNetwork net = net(DataType.FLOAT);
    INDArray before = net.params().dup();
    net.setLearningRate(0);
    net.fit(sums(DataType.FLOAT, 68, 2, 6));
    // ND4J's Adam steps by its epsilon instead of 0.
    assertThat(Nets.distance(net.params(), before)).isLessThan(1e-7);
    net.setLearningRate(1, 0.1);
    net.fit(sums(DataType.FLOAT, 68, 2, 6));
    assertThat(net.getParam("1_Wq")).isNotEqualTo(before);
    assertThat(Nets.distance(net.getParam("0_g"), Nd4j.onesLike(net.getParam("0_g"))))
        .isLessThan(1e-6);
  }

  @Test
  void transferLearningFreezesAndReplaces() {
    MultiLayerNetwork net = net(DataType.FLOAT);
    net.fit(sums(DataType.FLOAT, 69, 4, 8));
    MultiLayerNetwork frozen =
        new TransferLearning.Builder(net)
            .fineTuneConfiguration(
                new FineTuneConfiguration.Builder().updater(new Sgd(0.1)).build())
            .setFeatureExtractor(1)
            .nOutReplace(3, 5, WeightInit.XAVIER)
            .build();
    INDArray attention = frozen.getParam("1_Wq").dup();
    assertThat(attention).isEqualTo(net.getParam("1_Wq"));
    INDArray feedForward = frozen.getParam("2_W1").dup();
    frozen.fit(
        sums(DataType.FLOAT, 70, 4, 8).getFeatures(),
        Nets.labels(DataType.FLOAT, 4, 5, 8, RNNFormat.NCW));
    assertThat(Bits.of(frozen.getParam("1_Wq"))).isEqualTo(Bits.of(attention));
    assertThat(frozen.getParam("2_W1")).isNotEqualTo(feedForward);

    MultiLayerNetwork wider =
        new TransferLearning.Builder(net).nOutReplace(1, 6, WeightInit.XAVIER).build();
    GatedFWALayer conf = (GatedFWALayer) wider.getLayer(1).conf().getLayer();
    assertThat(conf.getNOut()).isEqualTo(6);
    assertThat(conf.getHeadSize()).isEqualTo(4);
    assertThat(wider.getParam("1_Wo").shape()).containsExactly(16, 6);
    assertThat(wider.getParam("2_W1").shape()).containsExactly(6, 8);
    wider.fit(sums(DataType.FLOAT, 71, 4, 8));
    assertThat(wider.params().isNaN().any()).isFalse();
  }

  /** A frozen layer has neither dropout nor weight noise, whatever it had before. */
  @ParameterizedTest
  @CsvSource({"EVERYTHING,1", "EVERYTHING,0.5", "NSA_EVERYTHING,1", "NSA_EVERYTHING,0.5"})
  void frozenLayersPassGradientsOn(Options options, double keep) {
    Layer attention = options.builder().build();
    Layer[] layers = layers(attention.clone());
    for (int i = 1; i <= 2; i++) {
      if (keep < 1) {
        ((BaseLayer) layers[i]).setIDropout(new Dropout(keep));
        ((BaseLayer) layers[i]).setWeightNoise(new DropConnect(keep));
      }
      layers[i] = new FrozenLayerWithBackprop(layers[i]);
    }
    MultiLayerNetwork frozen = Nets.net(Nets.config(DataType.DOUBLE), N_IN, RNNFormat.NCW, layers);
    MultiLayerNetwork free =
        Nets.net(Nets.config(DataType.DOUBLE), N_IN, RNNFormat.NCW, layers(attention));
    free.setParams(frozen.params());
    INDArray before = frozen.params().dup();
    DataSet data = sums(DataType.DOUBLE, 72, 3, 7);
    frozen.fit(data);
    free.fit(data);
    assertThat(Nets.distance(frozen.getParam("0_g"), free.getParam("0_g"))).isLessThan(1e-12);
    assertThat(frozen.getParam("0_g").toDoubleVector()).doesNotContain(1);
    long norm = frozen.getLayer(0).numParams();
    long end = frozen.numParams() - frozen.getLayer(3).numParams();
    assertThat(
            Nets.distance(
                frozen.params().get(NDArrayIndex.all(), NDArrayIndex.interval(norm, end)),
                before.get(NDArrayIndex.all(), NDArrayIndex.interval(norm, end))))
        .isZero();
  }

  @ParameterizedTest
  @EnumSource(names = {"EVERYTHING", "NSA_EVERYTHING"})
  void noiselessNoiseChangesNothing(Options options) {
    MultiLayerNetwork plain = net(DataType.DOUBLE, RNNFormat.NCW, options);
    MultiLayerNetwork noisy =
        Nets.net(
            Nets.config(DataType.DOUBLE).updater(new Adam(0.02)).weightNoise(new DropConnect(1)),
            N_IN,
            RNNFormat.NCW,
            layers(options.builder().build()));
    noisy.setParams(plain.params());
    for (int i = 0; i < 3; i++) {
      plain.fit(sums(DataType.DOUBLE, i, 3, 6));
      noisy.fit(sums(DataType.DOUBLE, i, 3, 6));
    }
    assertThat(Nets.distance(plain.params(), noisy.params())).isLessThan(1e-10);
  }

  @Test
  void lastTimeStepTakesTheLastRealToken() {
    MultiLayerNetwork net =
        Nets.shaken(
            Nets.net(
                DataType.DOUBLE,
                N_IN,
                RNNFormat.NCW,
                new LastTimeStep(Options.EVERYTHING.builder().build()),
                new OutputLayer.Builder().nOut(2).activation(Activation.SOFTMAX).build()));
    INDArray x = Nets.random(DataType.DOUBLE, 73, 2, N_IN, 6);
    INDArray mask = Nd4j.createFromArray(new double[][] {{1, 1, 1, 0, 0, 0}, {1, 1, 1, 1, 1, 1}});
    INDArray output = net.output(x, false, mask, null);
    INDArray shorter = net.output(Nets.steps(x, RNNFormat.NCW, 0, 3));
    // With a mask, DL4J collects the last steps in ND4J's default type, FLOAT.
    assertThat(Nets.distance(output.getRow(0), shorter.getRow(0))).isLessThan(1e-6);
    assertThat(Nets.distance(output.getRow(1), net.output(x).getRow(1))).isLessThan(1e-6);
    net.fit(new DataSet(x, Nd4j.eye(2).castTo(DataType.DOUBLE), mask, null));
    assertThat(net.params().isNaN().any()).isFalse();
  }

  @ParameterizedTest
  @EnumSource(
      names = {"EVERYTHING", "COMPRESSION_EVERYTHING", "SELECTION_EVERYTHING", "NSA_EVERYTHING"})
  void weightConstraintsOfTheNetworkReachTheMatricesOnly(Options options) {
    assertOnlyMatricesAreConstrained(options, new MaxNormConstraint(0.7, 1), 1, 0.7);
    assertOnlyMatricesAreConstrained(options, new MaxNormConstraint(0.7, 0), 0, 0.7);
    assertOnlyMatricesAreConstrained(options, new UnitNormConstraint(1), 1, 1);
  }

  private static void assertOnlyMatricesAreConstrained(
      Options options, LayerConstraint constraint, int dimension, double norm) {
    DecoderBlock block =
        DecoderBlock.builder()
            .nModel(8)
            .attention(options.builder().nOut(8).build())
            .hasBias(true)
            .build();
    var graph =
        Nets.config(DataType.DOUBLE)
            .constrainWeights(constraint)
            .updater(new Sgd(0))
            .graphBuilder()
            .addInputs("in");
    String last = block.addTo(graph, "block", "in");
    graph.addLayer("out", Nets.output(2), last).setOutputs("out");
    ComputationGraph net =
        new ComputationGraph(graph.setInputTypes(InputType.recurrent(8)).build());
    net.init();
    Nets.shaken(net);
    Map<String, INDArray> before = new HashMap<>();
    net.paramTable().forEach((name, values) -> before.put(name, values.dup()));
    net.fit(
        new DataSet(
            Nets.random(DataType.DOUBLE, 74, 2, 8, 6),
            Nets.labels(DataType.DOUBLE, 2, 2, 6, RNNFormat.NCW)));
    net.paramTable()
        .forEach(
            (name, values) -> {
              if (name.contains("_W")) {
                assertThat(values.norm2(dimension).maxNumber().doubleValue())
                    .as(name)
                    .isLessThan(norm + 1e-4);
              } else {
                assertThat(Nets.distance(values, before.get(name))).as(name).isZero();
              }
            });
  }

  /** Whatever stands in the padding, numbers or none, nothing of it is learnt. */
  @ParameterizedTest
  @EnumSource
  void paddingOfNaNsDoesNotChangeTheGradient(Options options) {
    assertPaddingIsHidden(options.builder().build(), options.format());
  }

  @ParameterizedTest
  @EnumSource
  void paddingOfNaNsDoesNotChangeTheGradientOfTokenWiseLayers(RNNFormat format) {
    assertPaddingIsHidden(RMSNormLayer.builder().build(), format);
    assertPaddingIsHidden(
        SwiGLULayer.builder().nOut(4).hiddenSize(8).hasBias(true).build(), format);
    assertPaddingIsHidden(
        new FrozenLayerWithBackprop(SwiGLULayer.builder().nOut(4).hiddenSize(8).build()), format);
  }

  private static void assertPaddingIsHidden(Layer first, RNNFormat format) {
    MultiLayerNetwork net =
        Nets.shaken(Nets.net(Nets.config(DataType.DOUBLE), N_IN, format, first, Nets.output(2)));
    INDArray x = Nets.random(DataType.DOUBLE, 75, 3, N_IN, 10);
    INDArray nans = x.dup();
    INDArray mask = Nd4j.ones(DataType.DOUBLE, 3, 10);
    int[][] padded = {{0, 8}, {0, 9}, {1, 0}, {2, 4}};
    for (int[] token : padded) {
      mask.putScalar(token[0], token[1], 0);
      nans.get(NDArrayIndex.point(token[0]), NDArrayIndex.all(), NDArrayIndex.point(token[1]))
          .assign(Double.NaN);
    }
    INDArray labels = Nets.labels(DataType.DOUBLE, 3, 2, 10, format);
    INDArray[] gradients = new INDArray[2];
    INDArray[] epsilons = new INDArray[2];
    for (int i = 0; i < 2; i++) {
      INDArray data = Nets.toFormat(i == 0 ? x : nans, format);
      INDArray copy = data.dup();
      var gradient = net.calculateGradients(data, labels, mask, mask);
      gradients[i] = gradient.getFirst().gradient().dup();
      epsilons[i] = Nets.toFormat(gradient.getSecond(), format);
      assertThat(Bits.of(data)).isEqualTo(Bits.of(copy));
    }
    assertThat(Nets.distance(gradients[0], gradients[1])).isZero();
    assertThat(Nets.distance(epsilons[0], epsilons[1])).isZero();
    for (int[] token : padded) {
      assertThat(
              Nets.largest(
                  epsilons[1].get(
                      NDArrayIndex.point(token[0]),
                      NDArrayIndex.all(),
                      NDArrayIndex.point(token[1]))))
          .isZero();
    }
    assertThat(Nets.largest(epsilons[1])).isPositive();
  }

  /** The residual sums let the padding pass, the norms stop it. */
  @Test
  void paddingOfNaNsStaysOutOfDecoderBlocks() {
    DecoderBlock block =
        DecoderBlock.builder().nModel(N_IN).attention(Options.everything().build()).build();
    var graph = Nets.config(DataType.DOUBLE).graphBuilder().addInputs("in");
    String last = block.addTo(graph, "second", block.addTo(graph, "first", "in"));
    graph
        .addLayer("norm", RMSNormLayer.builder().build(), last)
        .addLayer("out", Nets.output(2), "norm")
        .setOutputs("out");
    ComputationGraph net =
        new ComputationGraph(graph.setInputTypes(InputType.recurrent(N_IN)).build());
    net.init();
    ComputationGraph other = net.clone();
    INDArray x = Nets.random(DataType.DOUBLE, 76, 2, N_IN, 9);
    INDArray labels = Nets.labels(DataType.DOUBLE, 2, 2, 9, RNNFormat.NCW);
    INDArray mask = Nd4j.ones(DataType.DOUBLE, 2, 9);
    mask.get(NDArrayIndex.all(), NDArrayIndex.interval(6, 9)).assign(0);
    net.fit(new DataSet(x, labels, mask, mask));
    INDArray nans = x.dup();
    Nets.steps(nans, RNNFormat.NCW, 6, 9).assign(Double.NaN);
    other.fit(new DataSet(nans, labels, mask, mask));
    assertThat(Nets.distance(net.params(), other.params())).isZero();
  }
}
