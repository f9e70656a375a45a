package io.github.gatedfwa.layers;

import io.github.gatedfwa.layers.params.RMSNormParamInitializer;
import io.github.gatedfwa.layers.runtime.RMSNorm;
import java.util.Collection;
import java.util.List;
import java.util.Objects;
import org.deeplearning4j.nn.api.Layer;
import org.deeplearning4j.nn.api.ParamInitializer;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.deeplearning4j.nn.conf.inputs.InputType;
import org.deeplearning4j.nn.conf.memory.LayerMemoryReport;
import org.deeplearning4j.optimize.api.TrainingListener;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.learning.regularization.Regularization;

/**
 * Root-mean-square normalisation (arXiv 1910.07467) of each token: y = g ∘ x / sqrt(mean(x²) + eps)
 * with a learned gain g that starts at {@code gainInit} (1). The gain is no weight, as in DL4J's
 * BatchNormalization: it is never regularised, and {@code constrainWeights} does not reach it. nOut
 * equals nIn.
 */
public class RMSNormLayer extends TokenWiseLayer {
  private static final long serialVersionUID = 1L;

  // Part of the JSON format of saved networks.
  private double eps;

  /** For deserialisation. */
  private RMSNormLayer() {}

  private RMSNormLayer(Builder builder) {
    super(builder);
    eps = builder.eps;
    if (nIn == 0) {
      nIn = nOut;
    } else if (nOut == 0) {
      nOut = nIn;
    }
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
    check(eps > 0 && Double.isFinite(eps), "eps = " + eps + ": must be above 0");
    check(nIn == nOut, "nOut = " + nOut + ": must equal nIn (" + nIn + ")");
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
    RuntimeLayers.checkDataType("RMSNormLayer", getLayerName(), networkDataType);
    return RuntimeLayers.complete(
        new RMSNorm(conf, networkDataType),
        conf,
        trainingListeners,
        layerIndex,
        layerParamsView,
        initializer().init(conf, layerParamsView, initializeParams));
  }

  @Override
  public ParamInitializer initializer() {
    return RMSNormParamInitializer.INSTANCE;
  }

  @Override
  public List<Regularization> getRegularizationByParam(String paramName) {
    return null;
  }

  @Override
  public LayerMemoryReport getMemoryReport(InputType inputType) {
    long size = RuntimeLayers.tokens(inputType) * nIn;
    return RuntimeLayers.memoryReport(
        this, inputType, getOutputType(-1, inputType), size, 2 * size);
  }

  @Override
  public void setNIn(InputType inputType, boolean override) {
    super.setNIn(inputType, override);
    nOut = nIn;
  }

  /** Sets nIn and nOut, which are one. */
  @Override
  public void setNIn(long nIn) {
    super.setNIn(nIn);
    super.setNOut(nIn);
  }

  /** Sets nIn and nOut, which are one. */
  @Override
  public void setNOut(long nOut) {
    setNIn(nOut);
  }

  /** Added to the mean square before the root. */
  public double getEps() {
    return eps;
  }

  public void setEps(double eps) {
    this.eps = eps;
  }

  @Override
  public RMSNormLayer clone() {
    return (RMSNormLayer) super.clone();
  }

  @Override
  public boolean equals(Object o) {
    return o instanceof RMSNormLayer other && super.equals(o) && eps == other.eps;
  }

  @Override
  public int hashCode() {
    return Objects.hash(super.hashCode(), eps);
  }

  @Override
  public String toString() {
    return "RMSNormLayer(nIn=%d, eps=%s)".formatted(nIn, eps);
  }

  /** Builder of {@link RMSNormLayer}. */
  @SuppressWarnings("unchecked") // build(), as DL4J declares it
  public static class Builder extends TokenWiseLayer.Builder<Builder> {
    private double eps = 1e-6;

    /** Added to the mean square before the root. Default: 1e-6. */
    public Builder eps(double eps) {
      this.eps = eps;
      return this;
    }

    @Override
    public RMSNormLayer build() {
      RuntimeLayers.checkIdentity("RMSNormLayer", layerName, activationFn);
      return new RMSNormLayer(this);
    }
  }
}
