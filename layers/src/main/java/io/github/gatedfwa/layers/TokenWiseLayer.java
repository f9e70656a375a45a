package io.github.gatedfwa.layers;

import java.util.Objects;
import org.deeplearning4j.exception.DL4JInvalidConfigException;
import org.deeplearning4j.nn.conf.InputPreProcessor;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.conf.inputs.InputType;
import org.deeplearning4j.nn.conf.inputs.InputType.InputTypeRecurrent;
import org.deeplearning4j.nn.conf.layers.FeedForwardLayer;
import org.nd4j.linalg.activations.impl.ActivationIdentity;

/**
 * Configuration of a layer that treats every token of RNN data by itself, in place: RNN data
 * [minibatch, size, time] or [minibatch, time, size] keeps its format, and feed-forward data
 * [minibatch, size] is accepted too. Padded tokens of a feature mask give zeros.
 */
public abstract class TokenWiseLayer extends FeedForwardLayer {
  private static final long serialVersionUID = 1L;

  // Part of the JSON format of saved networks.
  private RNNFormat rnnDataFormat = RNNFormat.NCW;

  TokenWiseLayer() {}

  TokenWiseLayer(Builder<?> builder) {
    super(builder);
    activationFn = new ActivationIdentity(); // whatever the network's default is
    rnnDataFormat = builder.rnnDataFormat;
  }

  /**
   * Checks the options. Sizes may still be open.
   *
   * @throws DL4JInvalidConfigException if an option is not allowed
   */
  public void validateOptions() {
    RuntimeLayers.checkSizes(this);
    check(rnnDataFormat != null, "dataFormat = null: must be NCW or NWC");
  }

  final void check(boolean condition, String problem) {
    if (!condition) {
      throw new DL4JInvalidConfigException(
          "%s \"%s\": %s".formatted(getClass().getSimpleName(), getLayerName(), problem));
    }
  }

  @Override
  public InputType getOutputType(int layerIndex, InputType inputType) {
    if (inputType instanceof InputTypeRecurrent rnn) {
      return InputType.recurrent(nOut, rnn.getTimeSeriesLength(), rnn.getFormat());
    }
    return super.getOutputType(layerIndex, inputType);
  }

  @Override
  public void setNIn(InputType inputType, boolean override) {
    super.setNIn(inputType, override);
    if (inputType instanceof InputTypeRecurrent rnn && (rnnDataFormat == null || override)) {
      rnnDataFormat = rnn.getFormat();
    }
  }

  @Override
  public InputPreProcessor getPreProcessorForInputType(InputType inputType) {
    return inputType instanceof InputTypeRecurrent
        ? null
        : super.getPreProcessorForInputType(inputType);
  }

  /** Format of RNN input and output. */
  public RNNFormat getRnnDataFormat() {
    return rnnDataFormat;
  }

  public void setRnnDataFormat(RNNFormat rnnDataFormat) {
    this.rnnDataFormat = rnnDataFormat;
  }

  @Override
  public boolean equals(Object o) {
    return o instanceof TokenWiseLayer other
        && super.equals(o)
        && rnnDataFormat == other.rnnDataFormat;
  }

  @Override
  public int hashCode() {
    return Objects.hash(super.hashCode(), rnnDataFormat);
  }

  /**
   * Builder of a {@link TokenWiseLayer}.
   *
   * @param <T> the builder itself
   */
  public abstract static class Builder<T extends Builder<T>> extends FeedForwardLayer.Builder<T> {
    private RNNFormat rnnDataFormat = RNNFormat.NCW;

    Builder() {}

    /**
     * Format of RNN input and output; the network's input type, if set, overrides it. Default: NCW.
     */
    @SuppressWarnings("unchecked") // T is this builder's own type
    public T dataFormat(RNNFormat rnnDataFormat) {
      this.rnnDataFormat = rnnDataFormat;
      return (T) this;
    }
  }
}
