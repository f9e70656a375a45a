package io.github.gatedfwa.examples;

import static java.nio.charset.StandardCharsets.UTF_8;
import static org.assertj.core.api.Assertions.assertThat;

import io.github.gatedfwa.layers.GateListener.Reading;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import org.deeplearning4j.nn.conf.ComputationGraphConfiguration.GraphBuilder;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.conf.inputs.InputType;
import org.deeplearning4j.nn.conf.layers.RnnOutputLayer;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.deeplearning4j.nn.multilayer.MultiLayerNetwork;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.dataset.DataSet;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.indexing.NDArrayIndex;

/** The code of docs/layers.md and docs/nsa.md does what the pages say. */
class LayerGuideTest {
  private static INDArray input(int minibatch, int time) {
    return Nd4j.randn(DataType.FLOAT, minibatch, 16, time);
  }

  private static DataSet data(int classes, DataType type) {
    INDArray labels = Nd4j.zeros(type, 2, classes, 30);
    labels.get(NDArrayIndex.all(), NDArrayIndex.point(1), NDArrayIndex.all()).assign(1);
    return new DataSet(input(2, 30).castTo(type), labels);
  }

  /** NaN if there is one. */
  private static double largest(INDArray x) {
    double[] values = x.castTo(DataType.DOUBLE).dup('c').data().asDouble();
    return Arrays.stream(values).map(Math::abs).max().orElseThrow();
  }

  @Test
  void theGuideShowsThisCode() throws Exception {
    assertThat(Snippets.of(LayerGuide.class, "layers.md"))
        .hasSize(10)
        .allSatisfy(
            snippet ->
                assertThat(Path.of("..", "docs", "layers.md")).content(UTF_8).contains(snippet));
  }

  @Test
  void thePageOnSparseAttentionShowsItsLayer() throws Exception {
    assertThat(Snippets.of(LayerGuide.class, "nsa.md"))
        .hasSize(1)
        .allSatisfy(
            snippet ->
                assertThat(Path.of("..", "docs", "nsa.md")).content(UTF_8).contains(snippet));
    GraphBuilder graph =
        new NeuralNetConfiguration.Builder()
            .graphBuilder()
            .addInputs("in")
            .setInputTypes(InputType.recurrent(256, RNNFormat.NWC));
    String last = LayerGuide.sparseBlock().addTo(graph, "block", "in");
    graph.addLayer("out", new RnnOutputLayer.Builder().nOut(3).build(), last).setOutputs("out");
    ComputationGraph network = new ComputationGraph(graph.build());
    network.init();
    assertThat(network.outputSingle(Nd4j.randn(DataType.FLOAT, 1, 100, 256)).shape())
        .containsExactly(1, 100, 3);
    assertThat(network.getLayer("block-attention").conf().getLayer().toString())
        .contains("blockLength=32", "stride=16", "selectionBlock=64", "topN=16", "windowSize=512");
  }

  @Test
  void theGraphTakesSequences() {
    ComputationGraph network = LayerGuide.graph();
    assertThat(network.outputSingle(Nd4j.randn(DataType.FLOAT, 2, 9, 256)).shape())
        .containsExactly(2, 9, 100);
  }

  @Test
  void masksHidePadding() {
    MultiLayerNetwork network = LayerGuide.truncated();
    INDArray x = input(2, 12);
    INDArray output = LayerGuide.masked(network, x, new int[] {12, 5});
    INDArray alone =
        network.output(
            x.get(NDArrayIndex.interval(1, 2), NDArrayIndex.all(), NDArrayIndex.interval(0, 5))
                .dup());
    INDArray part =
        output.get(NDArrayIndex.interval(1, 2), NDArrayIndex.all(), NDArrayIndex.interval(0, 5));
    assertThat(largest(part.sub(alone))).isLessThan(1e-6);
  }

  @Test
  void streamsGoOnFromASavedState(@TempDir Path folder) throws Exception {
    MultiLayerNetwork network = LayerGuide.truncated();
    INDArray x = input(1, 8);
    List<INDArray> outputs = LayerGuide.stream(network, x);
    INDArray full = network.output(x);
    for (int t = 0; t < 8; t++) {
      INDArray expected =
          full.get(NDArrayIndex.all(), NDArrayIndex.all(), NDArrayIndex.interval(t, t + 1));
      assertThat(largest(outputs.get(t).sub(expected))).isLessThan(1e-6);
    }
    LayerGuide.saveState(network, 0, folder.resolve("state"));
    INDArray next = network.rnnTimeStep(input(1, 1).assign(1));
    MultiLayerNetwork other = network.clone();
    LayerGuide.restoreState(other, 0, folder.resolve("state"));
    assertThat(other.rnnTimeStep(input(1, 1).assign(1))).isEqualTo(next);
  }

  @Test
  void networksTrain() {
    for (MultiLayerNetwork network :
        List.of(
            LayerGuide.truncated(),
            LayerGuide.half(),
            LayerGuide.newHead(LayerGuide.truncated()))) {
      DataType type = network.getLayerWiseConfigurations().getDataType();
      int classes = (int) network.getOutputLayer().paramTable().get("b").length();
      DataSet data = data(classes, type);
      double before = network.score(data);
      for (int i = 0; i < 10; i++) {
        network.fit(data);
      }
      assertThat(network.score(data)).isLessThan(before);
    }
  }

  @Test
  void gatesCanBeRead() {
    MultiLayerNetwork network = LayerGuide.truncated();
    List<Reading> readings = LayerGuide.gates(network, data(5, DataType.FLOAT));
    assertThat(readings).hasSize(2);
    assertThat(readings.get(1).layer()).isEqualTo("layer0");
    assertThat(readings.get(1).meanDecay()).isBetween(0.01, 1.0);
    assertThat(LayerGuide.decays(network, input(2, 30)).shape()).containsExactly(2, 30, 2);
  }
}
