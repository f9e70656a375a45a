package io.github.gatedfwa.layers.params;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.deeplearning4j.nn.api.ParamInitializer;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.deeplearning4j.nn.conf.layers.Layer;
import org.deeplearning4j.nn.weights.IWeightInit;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.indexing.NDArrayIndex;

/**
 * Parameters laid out one after the other, in the order of {@link #layout}: weight matrices [in,
 * out] in 'f' order, so that neighbours with the same number of rows are one wider matrix, then
 * vectors.
 *
 * @param <C> the layer's configuration
 */
abstract class LayoutParamInitializer<C extends Layer> implements ParamInitializer {
  private final Class<C> type;

  LayoutParamInitializer(Class<C> type) {
    this.type = type;
  }

  /**
   * Shapes by name: rank 2 for weights, rank 1 for vectors. It is the first thing that DL4J asks
   * for, so the options are checked here.
   */
  abstract Map<String, long[]> layout(C conf);

  /** Sets the start value of one parameter, given as a flat view. */
  abstract void fill(C conf, String key, long[] shape, INDArray view);

  /** Draws a weight matrix [in, out] into its flat view. */
  static void draw(IWeightInit init, long[] shape, INDArray view) {
    init.init((double) shape[0], (double) shape[1], shape, 'f', view);
  }

  @Override
  public final long numParams(NeuralNetConfiguration conf) {
    return numParams(conf.getLayer());
  }

  @Override
  public final long numParams(Layer layer) {
    return layout(type.cast(layer)).values().stream()
        .mapToLong(LayoutParamInitializer::length)
        .sum();
  }

  @Override
  public final List<String> paramKeys(Layer layer) {
    return new ArrayList<>(layout(type.cast(layer)).keySet());
  }

  @Override
  public List<String> weightKeys(Layer layer) {
    return paramKeys(layer).stream().filter(key -> isWeightParam(layer, key)).toList();
  }

  @Override
  public List<String> biasKeys(Layer layer) {
    return paramKeys(layer).stream().filter(key -> isBiasParam(layer, key)).toList();
  }

  @Override
  public final Map<String, INDArray> init(
      NeuralNetConfiguration conf, INDArray paramsView, boolean initializeParams) {
    C layer = type.cast(conf.getLayer());
    Map<String, INDArray> params = views(layer, paramsView);
    Map<String, long[]> layout = layout(layer);
    params.forEach(
        (key, view) -> {
          if (initializeParams) {
            fill(layer, key, layout.get(key), view.reshape('f', new long[] {view.length()}));
          }
          conf.addVariable(key);
        });
    return params;
  }

  @Override
  public final Map<String, INDArray> getGradientsFromFlattened(
      NeuralNetConfiguration conf, INDArray gradientView) {
    return views(type.cast(conf.getLayer()), gradientView);
  }

  private Map<String, INDArray> views(C layer, INDArray flat) {
    INDArray vector = flat.reshape(flat.length());
    Map<String, INDArray> views = new LinkedHashMap<>();
    long offset = 0;
    for (Map.Entry<String, long[]> entry : layout(layer).entrySet()) {
      long length = length(entry.getValue());
      INDArray part = vector.get(NDArrayIndex.interval(offset, offset + length));
      views.put(entry.getKey(), part.reshape('f', entry.getValue()));
      offset += length;
    }
    return views;
  }

  private static long length(long[] shape) {
    return shape.length == 2 ? shape[0] * shape[1] : shape[0];
  }
}
