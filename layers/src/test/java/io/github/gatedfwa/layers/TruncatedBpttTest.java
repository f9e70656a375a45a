package io.github.gatedfwa.layers;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import io.github.gatedfwa.nativeops.Bits;
import java.util.List;
import java.util.Map;
import org.deeplearning4j.nn.api.Model;
import org.deeplearning4j.nn.api.layers.RecurrentLayer;
import org.deeplearning4j.nn.conf.BackpropType;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.conf.WorkspaceMode;
import org.deeplearning4j.nn.conf.inputs.InputType;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.deeplearning4j.nn.multilayer.MultiLayerNetwork;
import org.deeplearning4j.nn.workspace.LayerWorkspaceMgr;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.indexing.NDArrayIndex;

/** Truncated BPTT: the cache is carried from segment to segment, the gradient is not. */
class TruncatedBpttTest {
  private static final int N_IN = 3;

  private static MultiLayerNetwork net(Options options) {
    var conf =
        Nets.config(DataType.DOUBLE)
            .list()
            .layer(options.builder().build())
            .layer(Nets.output(2))
            .setInputType(InputType.recurrent(N_IN, options.format()))
            .backpropType(BackpropType.TruncatedBPTT)
            .tBPTTForwardLength(4)
            .tBPTTBackwardLength(4)
            .build();
    MultiLayerNetwork net = new MultiLayerNetwork(conf);
    net.init();
    return Nets.shaken(net);
  }

  private static long position(Map<String, INDArray> state) {
    return state.entrySet().stream()
        .filter(entry -> entry.getKey().endsWith("position"))
        .mapToLong(entry -> entry.getValue().getLong(0))
        .max()
        .orElse(-1);
  }

  private static double score(
      MultiLayerNetwork net, Map<String, INDArray> state, INDArray x, INDArray labels) {
    ((RecurrentLayer) net.getLayer(0)).rnnSetTBPTTState(state);
    net.setInput(x);
    net.setLabels(labels);
    net.computeGradientAndScore();
    return net.score();
  }

  @ParameterizedTest
  @EnumSource(names = {"GATED", "EVERYTHING", "COMPRESSION_MLP", "SELECTION", "NSA_SHARING_ALL"})
  void gradientOfASegmentTakesTheCacheAsGiven(Options options) {
    MultiLayerNetwork net = net(options);
    INDArray x = Nets.random(DataType.DOUBLE, 41, 2, N_IN, 8);
    INDArray labels = Nets.labels(DataType.DOUBLE, 2, 2, 8, RNNFormat.NCW);
    score(
        net, Map.of(), Nets.steps(x, RNNFormat.NCW, 0, 4), Nets.steps(labels, RNNFormat.NCW, 0, 4));
    Map<String, INDArray> state = ((RecurrentLayer) net.getLayer(0)).rnnGetTBPTTState();
    assertThat(position(state)).isEqualTo(4);

    INDArray segment = Nets.steps(x, RNNFormat.NCW, 4, 8);
    INDArray segmentLabels = Nets.steps(labels, RNNFormat.NCW, 4, 8);
    score(net, state, segment, segmentLabels);
    INDArray gradient = net.gradient().gradient().dup();
    double epsilon = 1e-6;
    for (long i = 0; i < net.numParams(); i++) {
      double value = net.params().getDouble(i);
      net.params().putScalar(i, value + epsilon);
      double above = score(net, state, segment, segmentLabels);
      net.params().putScalar(i, value - epsilon);
      double below = score(net, state, segment, segmentLabels);
      net.params().putScalar(i, value);
      // The score is the mean over the minibatch, the gradient the sum.
      assertThat(gradient.getDouble(i) / 2)
          .as("parameter %d", i)
          .isCloseTo((above - below) / (2 * epsilon), within(1e-7));
    }
  }

  @ParameterizedTest
  @EnumSource(
      names = {
        "GATED",
        "WINDOW_ONE",
        "KEY_SHIFT",
        "EVERYTHING",
        "COMPRESSION_EVERYTHING",
        "SELECTION_EVERYTHING",
        "NSA_EVERYTHING"
      })
  void segmentsGiveTheValuesOfTheFullPass(Options options) {
    MultiLayerNetwork net = net(options);
    INDArray x = Nets.random(DataType.DOUBLE, 42, 2, N_IN, 12);
    INDArray full = net.output(x);
    for (int at = 0; at < 12; at += 4) {
      INDArray segment = Nets.steps(x, RNNFormat.NCW, at, at + 4);
      List<INDArray> unstored = net.rnnActivateUsingStoredState(segment, false, false);
      List<INDArray> stored = net.rnnActivateUsingStoredState(segment, true, true);
      INDArray expected = Nets.steps(full, RNNFormat.NCW, at, at + 4);
      assertThat(Nets.distance(unstored.get(2), expected)).isLessThan(1e-12);
      assertThat(Nets.distance(stored.get(2), expected)).isLessThan(1e-12);
    }
  }

  @ParameterizedTest
  @EnumSource(names = {"EVERYTHING", "NSA_EVERYTHING"})
  void fitCutsTheSequenceIntoSegments(Options options) {
    MultiLayerNetwork net = net(options);
    MultiLayerNetwork byHand = net.clone();
    INDArray x = Nets.random(DataType.DOUBLE, 43, 2, N_IN, 12);
    INDArray labels = Nets.labels(DataType.DOUBLE, 2, 2, 12, RNNFormat.NCW);
    net.fit(x, labels);

    Map<String, INDArray> state = Map.of();
    for (int at = 0; at < 12; at += 4) {
      score(
          byHand,
          state,
          Nets.steps(x, RNNFormat.NCW, at, at + 4),
          Nets.steps(labels, RNNFormat.NCW, at, at + 4));
      state = ((RecurrentLayer) byHand.getLayer(0)).rnnGetTBPTTState();
      byHand.params().subi(byHand.gradient().gradient().div(2).mul(0.1));
    }
    assertThat(Nets.distance(net.params(), byHand.params())).isLessThan(1e-12);
    assertThat(net.rnnGetPreviousState(0)).isEmpty();
  }

  /**
   * The same training written out by hand, without the layer: {@link DenseReference} on the whole
   * sequence, in which each token is projected with the parameters of its segment, and only those
   * of the current segment are varied.
   */
  @ParameterizedTest
  @EnumSource(names = {"GATED", "ROPE_AND_NORM", "EVERYTHING"})
  void fitEqualsAReferenceByHand(Options options) {
    MultiLayerNetwork net = net(options);
    INDArray start = net.params().dup();
    INDArray x = Nets.random(DataType.DOUBLE, 49, 2, N_IN, 12);
    INDArray labels = Nets.labels(DataType.DOUBLE, 2, 2, 12, RNNFormat.NCW);
    net.fit(x, labels);

    // Only its configuration and the places of its parameters are used.
    MultiLayerNetwork layout = net(options);
    GatedFWALayer conf = (GatedFWALayer) layout.getLayer(0).conf().getLayer();
    DenseReference.Params[] ofSegment = new DenseReference.Params[3];
    INDArray params = start.dup();
    for (int segment = 0; segment < 3; segment++) {
      INDArray gradient = Nd4j.create(DataType.DOUBLE, params.shape());
      double epsilon = 1e-5;
      for (long i = 0; i < params.length(); i++) {
        double[] loss = new double[2];
        for (int side = 0; side < 2; side++) {
          INDArray moved = params.dup();
          moved.putScalar(i, params.getDouble(i) + (side == 0 ? epsilon : -epsilon));
          layout.setParams(moved);
          ofSegment[segment] = DenseReference.Params.of(layout.getLayer(0).paramTable());
          loss[side] =
              segmentLoss(
                  DenseReference.output(
                      conf,
                      t -> ofSegment[t / 4],
                      Nets.steps(x, RNNFormat.NCW, 0, 4 * segment + 4),
                      null),
                  layout.getLayer(1).paramTable(),
                  labels,
                  4 * segment);
        }
        gradient.putScalar(i, (loss[0] - loss[1]) / (2 * epsilon));
      }
      layout.setParams(params);
      ofSegment[segment] = DenseReference.Params.of(layout.getLayer(0).paramTable());
      params.subi(gradient.mul(0.1));
    }
    assertThat(Nets.distance(net.params(), params)).isLessThan(1e-8);
    assertThat(Nets.distance(net.params(), start)).isGreaterThan(1e-3);
  }

  /** Cross-entropy of a softmax output layer over the steps from one on, averaged over examples. */
  private static double segmentLoss(
      double[][][] hidden, Map<String, INDArray> head, INDArray labels, int from) {
    double loss = 0;
    for (int b = 0; b < hidden.length; b++) {
      for (int t = from; t < hidden[b][0].length; t++) {
        double[] logits = new double[2];
        for (int c = 0; c < 2; c++) {
          logits[c] = head.get("b").getDouble(c);
          for (int i = 0; i < hidden[b].length; i++) {
            logits[c] += hidden[b][i][t] * head.get("W").getDouble(i, c);
          }
        }
        double total = Math.exp(logits[0]) + Math.exp(logits[1]);
        int label = labels.getDouble(b, 0, t) == 1 ? 0 : 1;
        loss -= logits[label] - Math.log(total);
      }
    }
    return loss / hidden.length;
  }

  @Test
  void gradientReachesTheLastStepsOnly() {
    MultiLayerNetwork net = net(Options.EVERYTHING);
    RecurrentLayer layer = (RecurrentLayer) net.getLayer(0);
    net.setInput(Nets.random(DataType.DOUBLE, 44, 2, N_IN, 6));
    net.setLabels(Nets.labels(DataType.DOUBLE, 2, 2, 6, RNNFormat.NCW));
    net.computeGradientAndScore(); // makes the gradient views
    LayerWorkspaceMgr workspaces = LayerWorkspaceMgr.noWorkspaces();
    layer.activate(Nets.random(DataType.DOUBLE, 44, 2, N_IN, 6), true, workspaces);
    INDArray epsilon = Nets.random(DataType.DOUBLE, 45, 2, 4, 6);
    INDArray toInput = layer.tbpttBackpropGradient(epsilon, 2, workspaces).getSecond().dup();
    assertThat(Nets.largest(Nets.steps(toInput, RNNFormat.NCW, 0, 4))).isZero();
    INDArray later = epsilon.dup();
    Nets.steps(later, RNNFormat.NCW, 0, 4).assign(0);
    INDArray all = layer.backpropGradient(later, workspaces).getSecond();
    assertThat(
            Nets.distance(
                Nets.steps(toInput, RNNFormat.NCW, 4, 6), Nets.steps(all, RNNFormat.NCW, 4, 6)))
        .isLessThan(1e-12);
  }

  @Test
  void worksInAGraph() {
    DecoderBlock block =
        DecoderBlock.builder()
            .nModel(4)
            .attention(Options.EVERYTHING.builder().build())
            .hiddenSize(4)
            .build();
    var graph =
        Nets.config(DataType.DOUBLE)
            .graphBuilder()
            .addInputs("in")
            .backpropType(BackpropType.TruncatedBPTT)
            .tBPTTForwardLength(4)
            .tBPTTBackwardLength(4);
    graph.addLayer("out", Nets.output(2), block.addTo(graph, "block", "in")).setOutputs("out");
    ComputationGraph net =
        new ComputationGraph(graph.setInputTypes(InputType.recurrent(4)).build());
    net.init();
    INDArray x = Nets.random(DataType.DOUBLE, 46, 3, 4, 10);
    INDArray labels = Nets.labels(DataType.DOUBLE, 3, 2, 10, RNNFormat.NCW);
    double before = net.score(new org.nd4j.linalg.dataset.DataSet(x, labels));
    for (int i = 0; i < 20; i++) {
      net.fit(new INDArray[] {x}, new INDArray[] {labels});
    }
    assertThat(net.score(new org.nd4j.linalg.dataset.DataSet(x, labels))).isLessThan(before);
  }

  /** A last segment that is shorter, and a mask that hides whole segments of an example. */
  @ParameterizedTest
  @EnumSource
  void segmentsOfMaskedSequencesGiveTheValuesOfTheFullPass(Nets.Kind kind) {
    Model net =
        Nets.shaken(
            kind.net(
                Nets.config(DataType.DOUBLE),
                N_IN,
                RNNFormat.NCW,
                Options.EVERYTHING.builder().build(),
                Nets.output(2)));
    INDArray x = Nets.random(DataType.DOUBLE, 50, 2, N_IN, 10);
    INDArray mask =
        Nd4j.createFromArray(
            new double[][] {{0, 0, 0, 0, 1, 1, 1, 1, 1, 0}, {1, 1, 1, 0, 0, 0, 0, 0, 0, 1}});
    INDArray full =
        net instanceof ComputationGraph graph
            ? graph.output(false, new INDArray[] {x}, new INDArray[] {mask}, null)[0]
            : ((MultiLayerNetwork) net).output(x, false, mask, null);
    for (int at = 0; at < 10; at += 4) {
      int to = Math.min(10, at + 4);
      INDArray segment = Nets.steps(x, RNNFormat.NCW, at, to);
      INDArray segmentMask = mask.get(NDArrayIndex.all(), NDArrayIndex.interval(at, to)).dup();
      INDArray out;
      if (net instanceof ComputationGraph graph) {
        graph.setLayerMaskArrays(new INDArray[] {segmentMask}, null);
        out = graph.rnnActivateUsingStoredState(new INDArray[] {segment}, true, true).get("layer1");
      } else {
        MultiLayerNetwork list = (MultiLayerNetwork) net;
        list.setLayerMaskArrays(segmentMask, null);
        out = list.rnnActivateUsingStoredState(segment, true, true).get(2);
      }
      assertThat(Nets.distance(out, Nets.steps(full, RNNFormat.NCW, at, to)))
          .as("from %d", at)
          .isLessThan(1e-12);
    }
  }

  @ParameterizedTest
  @EnumSource
  void workspacesDoNotChangeTheResult(WorkspaceMode mode) {
    MultiLayerNetwork net = net(Options.EVERYTHING);
    net.getLayerWiseConfigurations().setTrainingWorkspaceMode(mode);
    MultiLayerNetwork other = net(Options.EVERYTHING);
    other.getLayerWiseConfigurations().setTrainingWorkspaceMode(WorkspaceMode.NONE);
    for (int i = 0; i < 3; i++) {
      INDArray x = Nets.random(DataType.DOUBLE, i, 1 + i, N_IN, 9 + i);
      INDArray labels = Nets.labels(DataType.DOUBLE, 1 + i, 2, 9 + i, RNNFormat.NCW);
      net.fit(x, labels);
      other.fit(x, labels);
    }
    assertThat(Bits.of(net.params())).isEqualTo(Bits.of(other.params()));
  }

  @Test
  void nwcIsAnError() {
    MultiLayerNetwork net = net(Options.EVERYTHING_NWC);
    INDArray x = Nets.random(DataType.DOUBLE, 47, 2, N_IN, N_IN);
    INDArray labels = Nets.random(DataType.DOUBLE, 48, 2, N_IN, N_IN);
    assertThatThrownBy(() -> net.fit(x, labels))
        .hasStackTraceContaining("truncated BPTT needs the data format NCW");
  }
}
