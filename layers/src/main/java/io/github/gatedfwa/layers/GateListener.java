package io.github.gatedfwa.layers;

import io.github.gatedfwa.layers.runtime.WindowedAttention;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Consumer;
import org.deeplearning4j.nn.api.Layer;
import org.deeplearning4j.nn.api.Model;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.deeplearning4j.nn.layers.wrapper.BaseWrapperLayer;
import org.deeplearning4j.nn.multilayer.MultiLayerNetwork;
import org.deeplearning4j.optimize.api.BaseTrainingListener;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * Tells during training how far each head of each gated {@link WindowedAttentionLayer} looks back:
 *
 * <pre>
 *   network.addListeners(new GateListener(100, System.out::println));
 * </pre>
 */
public final class GateListener extends BaseTrainingListener {
  private final int frequency;
  private final Consumer<Reading> sink;

  /**
   * What the gate of a head did to a minibatch.
   *
   * @param iteration of the network
   * @param layer name of the layer
   * @param head from 0
   * @param meanDecay mean of alpha over the real tokens; exp(-alpha) is the forget gate
   * @param effectiveWindow mean over the real tokens of the distance, in tokens, at which the
   *     decays since then sum up to 1, that is, at which a weight has faded to 1/e; at most the
   *     layer's window. Tokens whose memory reaches back to the start of the sequence do not count;
   *     NaN if there are no others.
   */
  public record Reading(
      int iteration, String layer, int head, double meanDecay, double effectiveWindow) {}

  /**
   * @param frequency iterations from one reading to the next
   * @param sink takes a reading for each head
   * @throws IllegalArgumentException if frequency is less than 1 or sink is null
   */
  public GateListener(int frequency, Consumer<Reading> sink) {
    if (frequency < 1) {
      throw new IllegalArgumentException(
          "GateListener: frequency = " + frequency + ": must be at least 1");
    }
    if (sink == null) {
      throw new IllegalArgumentException(
          "GateListener: sink = null: must be a consumer of readings");
    }
    this.frequency = frequency;
    this.sink = sink;
  }

  @Override
  public void onForwardPass(Model model, List<INDArray> activations) {
    onForwardPass(model);
  }

  @Override
  public void onForwardPass(Model model, Map<String, INDArray> activations) {
    onForwardPass(model);
  }

  private void onForwardPass(Model model) {
    if (iteration(model) % frequency == 0) {
      read(model).forEach(sink);
    }
  }

  private static int iteration(Model model) {
    return model instanceof ComputationGraph graph
        ? graph.getIterationCount()
        : ((MultiLayerNetwork) model).getIterationCount();
  }

  /**
   * Reads all gates after a forward pass that keeps the layers' inputs, such as {@code
   * feedForward(inputs, false, false)} of a ComputationGraph or {@code feedForward(false, false)}
   * of a MultiLayerNetwork.
   *
   * @param model a MultiLayerNetwork or ComputationGraph
   * @throws IllegalStateException if there was no such pass
   */
  public static List<Reading> read(Model model) {
    List<Reading> readings = new ArrayList<>();
    gatedLayers(model).forEach((name, layer) -> read(iteration(model), name, layer, readings));
    return readings;
  }

  /**
   * The layers of a network that have a gate, frozen ones included, in the network's order.
   *
   * @param model a MultiLayerNetwork or ComputationGraph
   * @return run-time layers by name
   */
  public static Map<String, WindowedAttention<?>> gatedLayers(Model model) {
    Map<String, WindowedAttention<?>> gated = new LinkedHashMap<>();
    Layer[] layers =
        model instanceof ComputationGraph graph
            ? graph.getLayers()
            : ((MultiLayerNetwork) model).getLayers();
    for (Layer layer : layers) {
      Layer inner = layer;
      while (inner instanceof BaseWrapperLayer wrapper) {
        inner = wrapper.getUnderlying();
      }
      if (inner instanceof WindowedAttention<?> attention && attention.layerConf().isGated()) {
        gated.put(attention.layerConf().getLayerName(), attention);
      }
    }
    return gated;
  }

  private static void read(
      int iteration, String name, WindowedAttention<?> layer, List<Reading> readings) {
    INDArray alpha = layer.decays();
    int minibatch = (int) alpha.size(0);
    int time = (int) alpha.size(1);
    int heads = (int) alpha.size(2);
    double[] decays = alpha.data().asDouble();
    INDArray mask = layer.getMaskArray();
    double[] real = mask == null ? null : mask.dup('c').data().asDouble();
    for (int head = 0; head < heads; head++) {
      double sum = 0;
      long tokens = 0;
      long distances = 0;
      long faded = 0;
      for (int b = 0; b < minibatch; b++) {
        for (int t = 0; t < time; t++) {
          if (real != null && real[b * time + t] == 0) {
            continue;
          }
          tokens++;
          sum += decays[(b * time + t) * heads + head];
          int distance =
              distance(
                  decays, b * time * heads + head, heads, t, layer.layerConf().getWindowSize());
          if (distance > 0) {
            faded++;
            distances += distance;
          }
        }
      }
      readings.add(
          new Reading(
              iteration,
              name,
              head,
              sum / tokens,
              faded == 0 ? Double.NaN : distances / (double) faded));
    }
  }

  /** Distance from step t at which the decays sum up to 1; 0 if the sequence starts first. */
  private static int distance(double[] decays, int first, int stride, int t, int window) {
    double sum = 0;
    for (int distance = 1; distance <= t; distance++) {
      sum += decays[first + (t - distance + 1) * stride];
      if (sum >= 1 || distance == window) {
        return distance;
      }
    }
    return 0;
  }
}
