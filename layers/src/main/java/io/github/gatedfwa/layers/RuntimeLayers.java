package io.github.gatedfwa.layers;

import java.util.Collection;
import java.util.Map;
import org.deeplearning4j.exception.DL4JInvalidConfigException;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.deeplearning4j.nn.conf.inputs.InputType;
import org.deeplearning4j.nn.conf.inputs.InputType.InputTypeRecurrent;
import org.deeplearning4j.nn.conf.layers.FeedForwardLayer;
import org.deeplearning4j.nn.conf.memory.LayerMemoryReport;
import org.deeplearning4j.nn.conf.memory.MemoryReport;
import org.deeplearning4j.optimize.api.TrainingListener;
import org.nd4j.linalg.activations.IActivation;
import org.nd4j.linalg.activations.impl.ActivationIdentity;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/** What the configurations of this package share when they make their run-time layers. */
final class RuntimeLayers {
  private RuntimeLayers() {}

  static <L extends org.deeplearning4j.nn.layers.BaseLayer<?>> L complete(
      L layer,
      NeuralNetConfiguration conf,
      Collection<TrainingListener> listeners,
      int index,
      INDArray paramsView,
      Map<String, INDArray> paramTable) {
    layer.setListeners(listeners);
    layer.setIndex(index);
    layer.setParamsViewArray(paramsView);
    layer.setParamTable(paramTable);
    layer.setConf(conf);
    return layer;
  }

  /** Refuses sizes below 0, which stands for one that is not set yet. */
  static void checkSizes(FeedForwardLayer layer) {
    checkSize(layer, "nIn", layer.getNIn());
    checkSize(layer, "nOut", layer.getNOut());
  }

  private static void checkSize(FeedForwardLayer layer, String what, long size) {
    if (size < 0) {
      throw new DL4JInvalidConfigException(
          "%s \"%s\": %s = %d: must be at least 1"
              .formatted(layer.getClass().getSimpleName(), layer.getLayerName(), what, size));
    }
  }

  static void checkDataType(String type, String name, DataType dataType) {
    if (dataType != DataType.FLOAT && dataType != DataType.DOUBLE && dataType != DataType.FLOAT16) {
      throw new DL4JInvalidConfigException(
          "%s \"%s\": network data type %s: must be FLOAT, DOUBLE or HALF"
              .formatted(type, name, dataType));
    }
  }

  static void checkIdentity(String type, String name, IActivation activation) {
    if (activation != null && !(activation instanceof ActivationIdentity)) {
      throw new DL4JInvalidConfigException(
          "%s \"%s\": activation = %s: the layer has no activation function; put an ActivationLayer after it"
              .formatted(type, name, activation));
    }
  }

  /** Number of tokens per example; 1 where the length of sequences is open. */
  static long tokens(InputType in) {
    return in instanceof InputTypeRecurrent rnn ? Math.max(1, rnn.getTimeSeriesLength()) : 1;
  }

  /**
   * Memory of a layer beyond parameters and activations, in array elements per example.
   *
   * @param forward working memory of inference
   * @param training working memory of training
   */
  static LayerMemoryReport memoryReport(
      FeedForwardLayer conf, InputType in, InputType out, long forward, long training) {
    long parameters = conf.initializer().numParams(conf);
    long updaterState = conf.getIUpdater() == null ? 0 : conf.getIUpdater().stateSize(parameters);
    long dropout = conf.getIDropout() == null ? 0 : tokens(in) * conf.getNIn();
    return new LayerMemoryReport.Builder(conf.getLayerName(), conf.getClass(), in, out)
        .standardMemory(parameters, updaterState)
        .workingMemory(0, forward, 0, training + dropout)
        .cacheMemory(MemoryReport.CACHE_MODE_ALL_ZEROS, MemoryReport.CACHE_MODE_ALL_ZEROS)
        .build();
  }
}
