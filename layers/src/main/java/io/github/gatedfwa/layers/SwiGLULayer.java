package io.github.gatedfwa.layers;

import io.github.gatedfwa.layers.params.SwiGLUParamInitializer;
import io.github.gatedfwa.layers.runtime.SwiGLU;
import java.util.Collection;
import java.util.Objects;
import org.deeplearning4j.nn.api.Layer;
import org.deeplearning4j.nn.api.ParamInitializer;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.deeplearning4j.nn.conf.inputs.InputType;
import org.deeplearning4j.nn.conf.memory.LayerMemoryReport;
import org.deeplearning4j.optimize.api.TrainingListener;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * SwiGLU feed-forward layer (arXiv 2002.05202) of each token: y = (silu(x W1) ∘ (x W3)) W2 with
 * silu(a) = a · sigmoid(a), W1 and W3 [nIn, hiddenSize], W2 [hiddenSize, nOut], and a bias on each
 * product if {@link Builder#hasBias}.
 */
public class SwiGLULayer extends TokenWiseLayer {
  private static final long serialVersionUID = 1L;

  // Names are part of the JSON format of saved networks.
  private int hiddenSize;
  private boolean hasBias;

  /** For deserialisation. */
  private SwiGLULayer() {}

  private SwiGLULayer(Builder builder) {
    super(builder);
    hiddenSize = builder.hiddenSize;
    hasBias = builder.hasBias;
    validateOptions();
    initializeConstraints(builder);
  }

  /** Starts a configuration. */
  public static Builder builder() {
    return new Builder();
  }

  @Override
  public void validateOptions() {
    super.validateOptions();
    check(hiddenSize > 0, "hiddenSize = " + hiddenSize + ": must be at least 1");
  }

  @Override
  public Layer instantiate(
      NeuralNetConfiguration conf,
      Collection<TrainingListener> trainingListeners,
      int layerIndex,
      INDArray layerParamsView,
      boolean initializeParams,
      DataType networkDataType) {
    validateOptions();
    check(nIn > 0, "nIn = " + nIn + ": must be at least 1 (set it or the network's input type)");
    check(nOut > 0, "nOut = " + nOut + ": must be at least 1");
    RuntimeLayers.checkDataType("SwiGLULayer", getLayerName(), networkDataType);
    return RuntimeLayers.complete(
        new SwiGLU(conf, networkDataType),
        conf,
        trainingListeners,
        layerIndex,
        layerParamsView,
        initializer().init(conf, layerParamsView, initializeParams));
  }

  @Override
  public ParamInitializer initializer() {
    return SwiGLUParamInitializer.INSTANCE;
  }

  @Override
  public LayerMemoryReport getMemoryReport(InputType inputType) {
    long hidden = RuntimeLayers.tokens(inputType) * hiddenSize;
    return RuntimeLayers.memoryReport(
        this, inputType, getOutputType(-1, inputType), 3 * hidden, 6 * hidden);
  }

  /** Size of the hidden layer. */
  public int getHiddenSize() {
    return hiddenSize;
  }

  public void setHiddenSize(int hiddenSize) {
    this.hiddenSize = hiddenSize;
  }

  /** Whether the three products have biases. */
  public boolean isHasBias() {
    return hasBias;
  }

  public void setHasBias(boolean hasBias) {
    this.hasBias = hasBias;
  }

  @Override
  public SwiGLULayer clone() {
    return (SwiGLULayer) super.clone();
  }

  @Override
  public boolean equals(Object o) {
    return o instanceof SwiGLULayer other
        && super.equals(o)
        && hiddenSize == other.hiddenSize
        && hasBias == other.hasBias;
  }

  @Override
  public int hashCode() {
    return Objects.hash(super.hashCode(), hiddenSize, hasBias);
  }

  @Override
  public String toString() {
    return "SwiGLULayer(nIn=%d, nOut=%d, hiddenSize=%d, hasBias=%s)"
        .formatted(nIn, nOut, hiddenSize, hasBias);
  }

  /** Builder of {@link SwiGLULayer}. */
  @SuppressWarnings("unchecked") // build(), as DL4J declares it
  public static class Builder extends TokenWiseLayer.Builder<Builder> {
    private int hiddenSize;
    private boolean hasBias;

    /** Size of the hidden layer; 8/3 of nIn gives as many weights as a plain layer of 4 · nIn. */
    public Builder hiddenSize(int hiddenSize) {
      this.hiddenSize = hiddenSize;
      return this;
    }

    /** Whether the three products have biases. Default: false. */
    public Builder hasBias(boolean hasBias) {
      this.hasBias = hasBias;
      return this;
    }

    @Override
    public SwiGLULayer build() {
      RuntimeLayers.checkIdentity("SwiGLULayer", layerName, activationFn);
      return new SwiGLULayer(this);
    }
  }
}
