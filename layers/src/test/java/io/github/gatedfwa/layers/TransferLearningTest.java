package io.github.gatedfwa.layers;

import static org.assertj.core.api.Assertions.assertThat;

import io.github.gatedfwa.nativeops.Bits;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import org.deeplearning4j.nn.api.Model;
import org.deeplearning4j.nn.conf.BackpropType;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.conf.inputs.InputType;
import org.deeplearning4j.nn.conf.layers.Layer;
import org.deeplearning4j.nn.conf.layers.RnnOutputLayer;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.deeplearning4j.nn.multilayer.MultiLayerNetwork;
import org.deeplearning4j.nn.transferlearning.FineTuneConfiguration;
import org.deeplearning4j.nn.transferlearning.TransferLearning;
import org.deeplearning4j.nn.transferlearning.TransferLearningHelper;
import org.deeplearning4j.nn.weights.WeightInit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.nd4j.linalg.activations.Activation;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.dataset.DataSet;
import org.nd4j.linalg.learning.config.Adam;
import org.nd4j.linalg.learning.config.Sgd;
import org.nd4j.linalg.lossfunctions.LossFunctions.LossFunction;

/** Trained networks get new heads and sizes, and what is frozen stays as it is. */
class TransferLearningTest {
  private static final int N_IN = 4;
  private static final int TIME = 8;

  private static final FineTuneConfiguration FINE_TUNE =
      new FineTuneConfiguration.Builder().updater(new Sgd(0.1)).build();

  private static Layer[] layers() {
    return new Layer[] {
      RMSNormLayer.builder().build(),
      Options.everything().windowSize(8).build(),
      SwiGLULayer.builder().nOut(4).hiddenSize(8).hasBias(true).build(),
      Nets.output(2)
    };
  }

  private static DataSet data(int classes) {
    return new DataSet(
        Nets.random(DataType.FLOAT, 1, 4, N_IN, TIME),
        Nets.labels(DataType.FLOAT, 4, classes, TIME, RNNFormat.NCW));
  }

  private static MultiLayerNetwork trained() {
    MultiLayerNetwork net =
        Nets.net(
            Nets.config(DataType.FLOAT).updater(new Adam(0.02)), N_IN, RNNFormat.NCW, layers());
    net.fit(data(2));
    return net;
  }

  private static ComputationGraph trainedGraph() {
    var graph = Nets.config(DataType.FLOAT).updater(new Adam(0.02)).graphBuilder().addInputs("in");
    String first = block(Options.EVERYTHING).addTo(graph, "first", "in");
    String last = block(Options.NSA_EVERYTHING).addTo(graph, "second", first);
    graph
        .addLayer("norm", RMSNormLayer.builder().build(), last)
        .addLayer("out", Nets.output(2), "norm")
        .setOutputs("out");
    ComputationGraph net =
        new ComputationGraph(graph.setInputTypes(InputType.recurrent(N_IN)).build());
    net.init();
    net.fit(data(2));
    return net;
  }

  private static DecoderBlock block(Options options) {
    return DecoderBlock.builder()
        .nModel(N_IN)
        .attention(options.builder().build())
        .hiddenSize(6)
        .build();
  }

  /** Names of the parameters that training changes; they must keep their names and shapes. */
  private static Set<String> changedByFitting(Model net, DataSet data) {
    Map<String, Bits> before = new TreeMap<>();
    net.paramTable().forEach((name, values) -> before.put(name, Bits.of(values)));
    Nets.fit(net, data);
    Set<String> changed = new TreeSet<>();
    net.paramTable()
        .forEach(
            (name, values) -> {
              if (!Bits.of(values).equals(before.get(name))) {
                changed.add(name);
              }
            });
    return changed;
  }

  private static Set<String> names(Model net, String pattern) {
    Set<String> names = new TreeSet<>(net.paramTable().keySet());
    names.removeIf(name -> !name.matches(pattern));
    return names;
  }

  @Test
  void frozenLayersStayAndTheNewHeadLearns() {
    MultiLayerNetwork net = trained();
    MultiLayerNetwork tuned =
        new TransferLearning.Builder(net)
            .fineTuneConfiguration(FINE_TUNE)
            .setFeatureExtractor(1)
            .removeOutputLayer()
            .addLayer(
                new RnnOutputLayer.Builder(LossFunction.MCXENT)
                    .nIn(4)
                    .nOut(5)
                    .dataFormat(RNNFormat.NCW) // there is no input type to tell
                    .activation(Activation.SOFTMAX)
                    .build())
            .build();
    INDArray x = data(2).getFeatures();
    assertThat(tuned.feedForward(x).get(3)).isEqualTo(net.feedForward(x).get(3));
    assertThat(changedByFitting(tuned, data(5))).isEqualTo(names(tuned, "[23]_.*"));
  }

  @Test
  void aGraphsFrozenBlockStaysAndTheNewHeadLearns() {
    ComputationGraph net = trainedGraph();
    ComputationGraph tuned =
        new TransferLearning.GraphBuilder(net)
            .fineTuneConfiguration(FINE_TUNE)
            .setFeatureExtractor("first-ffn-residual")
            .removeVertexKeepConnections("out")
            .addLayer(
                "out",
                new RnnOutputLayer.Builder(LossFunction.MCXENT)
                    .nIn(N_IN)
                    .nOut(5)
                    .dataFormat(RNNFormat.NCW)
                    .activation(Activation.SOFTMAX)
                    .build(),
                "norm")
            .setOutputs("out")
            .build();
    INDArray x = data(2).getFeatures();
    assertThat(tuned.feedForward(x, false).get("norm"))
        .isEqualTo(net.feedForward(x, false).get("norm"));
    assertThat(changedByFitting(tuned, data(5))).isEqualTo(names(tuned, "(second|norm|out).*"));
  }

  @ParameterizedTest
  @EnumSource(names = {"EVERYTHING", "NSA_EVERYTHING"})
  void widthsCanBeReplaced(Options options) {
    ComputationGraph wider =
        new TransferLearning.GraphBuilder(chain(options))
            .nOutReplace("attention", 6, WeightInit.XAVIER)
            .build();
    AttentionLayer attention = (AttentionLayer) wider.getLayer("attention").conf().getLayer();
    assertThat(attention.getNOut()).isEqualTo(6);
    AttentionLayer before = (AttentionLayer) options.builder().build();
    assertThat(attention.getHeadSize()).isEqualTo(before.getHeadSize());
    assertThat(wider.getParam("attention_Wo").shape())
        .containsExactly((long) before.getNHeads() * before.getHeadSize(), 6);
    assertThat(wider.getParam("ffn_W1").shape()).containsExactly(6, 8);
    Nets.fit(wider, data(2));
    assertThat(wider.params().isNaN().any()).isFalse();

    ComputationGraph net = chain(options);
    ComputationGraph widerInside =
        new TransferLearning.GraphBuilder(net).nOutReplace("ffn", 7, WeightInit.XAVIER).build();
    assertThat(widerInside.getParam("ffn_W2").shape()).containsExactly(8, 7);
    assertThat(widerInside.getParam("attention_Wq")).isEqualTo(net.getParam("attention_Wq"));
    Nets.fit(widerInside, data(2));
    assertThat(widerInside.params().isNaN().any()).isFalse();
  }

  /** Attention and feed-forward layer one after the other, trained. */
  private static ComputationGraph chain(Options options) {
    ComputationGraph net =
        new ComputationGraph(
            Nets.config(DataType.FLOAT)
                .graphBuilder()
                .addInputs("in")
                .addLayer("attention", options.builder().build(), "in")
                .addLayer("ffn", SwiGLULayer.builder().nOut(4).hiddenSize(8).build(), "attention")
                .addLayer("out", Nets.output(2), "ffn")
                .setOutputs("out")
                .setInputTypes(InputType.recurrent(N_IN))
                .build());
    net.init();
    net.fit(data(2));
    return net;
  }

  /** DL4J asks the layer inside a frozen one for the state. */
  @ParameterizedTest
  @EnumSource
  void frozenLayersStream(Nets.Kind kind) {
    Model frozen;
    if (kind == Nets.Kind.GRAPH) {
      frozen =
          new TransferLearning.GraphBuilder(trainedGraph())
              .setFeatureExtractor("second-ffn-residual")
              .build();
    } else {
      frozen = new TransferLearning.Builder(trained()).setFeatureExtractor(2).build();
    }
    INDArray x = data(2).getFeatures();
    INDArray full = Nets.output(frozen, x);
    for (int t = 0; t < TIME; t++) {
      INDArray step = Nets.timeStep(frozen, Nets.steps(x, RNNFormat.NCW, t, t + 1));
      assertThat(Nets.distance(step, Nets.steps(full, RNNFormat.NCW, t, t + 1)))
          .as("step %d", t)
          .isLessThan(1e-6);
    }
  }

  @ParameterizedTest
  @EnumSource
  void frozenLayersTakePartInTruncatedBptt(Nets.Kind kind) {
    Model tuned;
    if (kind == Nets.Kind.GRAPH) {
      ComputationGraph graph =
          new TransferLearning.GraphBuilder(trainedGraph())
              .fineTuneConfiguration(FINE_TUNE)
              .setFeatureExtractor("first-ffn-residual")
              .build();
      graph.getConfiguration().setBackpropType(BackpropType.TruncatedBPTT);
      graph.getConfiguration().setTbpttFwdLength(4);
      graph.getConfiguration().setTbpttBackLength(4);
      tuned = graph;
    } else {
      MultiLayerNetwork net =
          new TransferLearning.Builder(trained())
              .fineTuneConfiguration(FINE_TUNE)
              .setFeatureExtractor(1)
              .build();
      net.getLayerWiseConfigurations().setBackpropType(BackpropType.TruncatedBPTT);
      net.getLayerWiseConfigurations().setTbpttFwdLength(4);
      net.getLayerWiseConfigurations().setTbpttBackLength(4);
      tuned = net;
    }
    assertThat(changedByFitting(tuned, data(2)))
        .isEqualTo(names(tuned, kind == Nets.Kind.GRAPH ? "(second|norm|out).*" : "[23]_.*"));
  }

  @Test
  void featuresOfTheFrozenPartCanBeKept() {
    MultiLayerNetwork net = trained();
    TransferLearningHelper helper = new TransferLearningHelper(net.clone(), 1);
    DataSet features = helper.featurize(data(2));
    assertThat(features.getFeatures()).isEqualTo(net.feedForward(data(2).getFeatures()).get(2));
    MultiLayerNetwork frozen =
        new TransferLearning.Builder(net.clone()).setFeatureExtractor(1).build();
    Nets.fit(frozen, data(2));
    helper.fitFeaturized(features);
    assertThat(Nets.distance(helper.unfrozenMLN().getParam("0_W1"), frozen.getParam("2_W1")))
        .isLessThan(1e-6);
  }
}
