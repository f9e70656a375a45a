package io.github.gatedfwa.layers;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import java.util.List;
import org.deeplearning4j.datasets.iterator.ExistingDataSetIterator;
import org.deeplearning4j.nn.api.Model;
import org.deeplearning4j.nn.api.NeuralNetwork;
import org.deeplearning4j.nn.conf.BackpropType;
import org.deeplearning4j.nn.conf.CacheMode;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.conf.inputs.InputType;
import org.deeplearning4j.nn.conf.layers.Layer;
import org.deeplearning4j.nn.conf.memory.MemoryReport;
import org.deeplearning4j.nn.conf.memory.MemoryUseMode;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.deeplearning4j.nn.multilayer.MultiLayerNetwork;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.nd4j.evaluation.classification.Evaluation;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.dataset.DataSet;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.indexing.NDArrayIndex;

/** Evaluation and scores of sequences of different lengths; reports on a network. */
class EvaluationTest {
  private static final int N_IN = 4;
  private static final int CLASSES = 3;
  private static final int TIME = 11;

  private static Layer[] layers() {
    return new Layer[] {
      RMSNormLayer.builder().build(),
      Options.EVERYTHING.builder().build(),
      Options.NSA_EVERYTHING.builder().build(),
      SwiGLULayer.builder().nOut(4).hiddenSize(6).build(),
      Nets.output(CLASSES)
    };
  }

  /** Sequences of 11, 5 and 1 tokens, padded on the right. */
  private static DataSet padded() {
    INDArray mask = Nd4j.zeros(DataType.DOUBLE, 3, TIME);
    int[] lengths = {TIME, 5, 1};
    for (int b = 0; b < 3; b++) {
      mask.get(NDArrayIndex.point(b), NDArrayIndex.interval(0, lengths[b])).assign(1);
    }
    return new DataSet(
        Nets.random(DataType.DOUBLE, 3, 3, N_IN, TIME),
        Nets.labels(DataType.DOUBLE, 3, CLASSES, TIME, RNNFormat.NCW),
        mask,
        mask);
  }

  /** The same sequences, each on its own. */
  private static List<DataSet> alone() {
    DataSet all = padded();
    return List.of(part(all, 0, TIME), part(all, 1, 5), part(all, 2, 1));
  }

  private static DataSet part(DataSet all, int example, int length) {
    return new DataSet(
        cut(all.getFeatures(), example, length), cut(all.getLabels(), example, length));
  }

  private static INDArray cut(INDArray x, int example, int length) {
    return x.get(
            NDArrayIndex.interval(example, example + 1),
            NDArrayIndex.all(),
            NDArrayIndex.interval(0, length))
        .dup();
  }

  private static Evaluation evaluate(Model net, List<DataSet> data) {
    return ((NeuralNetwork) net)
        .doEvaluation(new ExistingDataSetIterator(data), new Evaluation(CLASSES))[0];
  }

  @ParameterizedTest
  @EnumSource
  void paddedTokensCountInNeitherEvaluationNorScore(Nets.Kind kind) {
    Model net = Nets.shaken(kind.net(Nets.config(DataType.DOUBLE), N_IN, RNNFormat.NCW, layers()));
    Evaluation ofPadded = evaluate(net, List.of(padded()));
    Evaluation ofEach = evaluate(net, alone());
    assertThat(ofPadded.getNumRowCounter()).isEqualTo(TIME + 5 + 1);
    assertThat(ofPadded.getConfusion()).isEqualTo(ofEach.getConfusion());
    double sum = alone().stream().mapToDouble(data -> Nets.score(net, data)).sum();
    // The score is the sum over time, averaged over the examples.
    assertThat(Nets.score(net, padded())).isCloseTo(sum / 3, within(1e-9));
  }

  /** With truncated BPTT, DL4J evaluates long sequences segment by segment, with state. */
  @ParameterizedTest
  @EnumSource
  void evaluationUnderTruncatedBpttCarriesTheState(Nets.Kind kind) {
    Model net = Nets.shaken(kind.net(Nets.config(DataType.DOUBLE), N_IN, RNNFormat.NCW, layers()));
    List<DataSet> data =
        List.of(
            new DataSet(
                Nets.random(DataType.DOUBLE, 4, 5, N_IN, 23),
                Nets.labels(DataType.DOUBLE, 5, CLASSES, 23, RNNFormat.NCW)));
    Evaluation atOnce = evaluate(net, data);
    if (net instanceof ComputationGraph graph) {
      graph.getConfiguration().setBackpropType(BackpropType.TruncatedBPTT);
      graph.getConfiguration().setTbpttFwdLength(4);
    } else {
      ((MultiLayerNetwork) net)
          .getLayerWiseConfigurations()
          .setBackpropType(BackpropType.TruncatedBPTT);
      ((MultiLayerNetwork) net).getLayerWiseConfigurations().setTbpttFwdLength(4);
    }
    Evaluation inSegments = evaluate(net, data);
    assertThat(inSegments.getNumRowCounter()).isEqualTo(5 * 23);
    assertThat(inSegments.getConfusion()).isEqualTo(atOnce.getConfusion());
  }

  @ParameterizedTest
  @EnumSource
  void reportsNameTheLayers(Nets.Kind kind) {
    Model net = kind.net(Nets.config(DataType.FLOAT), N_IN, RNNFormat.NCW, layers());
    InputType input = InputType.recurrent(N_IN, TIME, RNNFormat.NCW);
    String summary;
    MemoryReport report;
    if (net instanceof ComputationGraph graph) {
      summary = graph.summary(input);
      report = graph.getConfiguration().getMemoryReport(input);
    } else {
      summary = ((MultiLayerNetwork) net).summary(input);
      report = ((MultiLayerNetwork) net).getLayerWiseConfigurations().getMemoryReport(input);
    }
    assertThat(summary)
        .contains("RMSNorm", "GatedFWA", "NativeSparseAttention", "SwiGLU")
        .contains(String.format("%,d", net.numParams()));
    assertThat(
            report.getTotalMemoryBytes(2, MemoryUseMode.TRAINING, CacheMode.NONE, DataType.FLOAT))
        .isGreaterThan(2L * net.numParams() * Float.BYTES);
    assertThat(report.toString()).contains("GatedFWALayer", "NativeSparseAttentionLayer");
  }
}
