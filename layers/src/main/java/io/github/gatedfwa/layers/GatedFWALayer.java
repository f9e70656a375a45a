package io.github.gatedfwa.layers;

import io.github.gatedfwa.layers.params.GatedFWAParamInitializer;
import io.github.gatedfwa.layers.runtime.GatedFWA;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashSet;
import java.util.List;
import java.util.Objects;
import java.util.Set;
import org.deeplearning4j.exception.DL4JInvalidConfigException;
import org.deeplearning4j.nn.api.Layer;
import org.deeplearning4j.nn.api.ParamInitializer;
import org.deeplearning4j.nn.api.layers.LayerConstraint;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.deeplearning4j.nn.conf.inputs.InputType;
import org.deeplearning4j.nn.conf.layers.BaseRecurrentLayer;
import org.deeplearning4j.nn.conf.layers.recurrent.Bidirectional;
import org.deeplearning4j.nn.conf.memory.LayerMemoryReport;
import org.deeplearning4j.optimize.api.TrainingListener;
import org.nd4j.linalg.activations.impl.ActivationIdentity;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * Gated flash windowed attention (arXiv 2512.07782) as a DL4J layer: causal multi-head attention
 * over a sliding window whose memory decays by a learned gate.
 *
 * <p>Input and output are RNN data: [minibatch, size, time] ({@code NCW}, the default) or
 * [minibatch, time, size] ({@code NWC}, which needs no transposition and is the faster one). The
 * layer computes
 *
 * <ol>
 *   <li>queries, keys and values by linear projections, with biases if {@link Builder#hasBias};
 *   <li>the token shift of keys and values, if {@link Builder#keyShift} and {@link
 *       Builder#valueShift}: k_t = a_t k̃_{t-1} + (1 - a_t) k̃_t with a_t = sigmoid(x_t W_a) per
 *       token and key/value head, and k̃_{-1} = 0;
 *   <li>rotary position embedding of queries and keys, if {@link Builder#ropeBase} is set: pairs
 *       (i, i + headSize/2) turn by position · base^(-2i/headSize);
 *   <li>root-mean-square normalisation of queries and keys per head, without weights, if {@link
 *       Builder#qkNorm};
 *   <li>the gate, if {@link Builder#gated}: h = x W_g + b_g, amplitude beta = 1 + ELU(x W_beta) (1
 *       if not {@link Builder#learnableAmplitude}), decay alpha = softplus(-beta h) / (beta +
 *       1e-3);
 *   <li>attention of each token to itself and the {@code windowSize - 1} tokens before it, with the
 *       summed decay of the tokens between subtracted from the scores;
 *   <li>the output projection of the concatenated heads, with a bias if {@link Builder#hasBias}.
 *       There is no activation function.
 * </ol>
 *
 * <p>A feature mask [minibatch, time] marks padding with 0, wherever it stands: padded tokens are
 * never attended to, decay nothing, count as missing for the token shift, and give zeros. They do
 * take up a position, in the window as in the rotary embedding.
 *
 * <p>{@code rnnTimeStep} accepts one token or chunks of any size and keeps the last {@code
 * windowSize - 1} keys and values. Truncated BPTT carries them from segment to segment; no gradient
 * crosses the border.
 *
 * <p>In a HALF network the parameters, the input and the output are HALF, everything between is
 * computed in FLOAT.
 */
public class GatedFWALayer extends BaseRecurrentLayer {
  private static final long serialVersionUID = 1L;

  // Names are part of the JSON format of saved networks.
  private int nHeads;
  private int nKvHeads;
  private int headSize;
  private int windowSize;
  private boolean gated;
  private boolean learnableAmplitude;
  private double gateBiasInit;
  private double ropeBase;
  private boolean qkNorm;
  private boolean keyShift;
  private boolean valueShift;
  private boolean hasBias;

  /** For deserialisation. */
  private GatedFWALayer() {}

  private GatedFWALayer(Builder builder) {
    super(builder);
    activationFn = new ActivationIdentity(); // whatever the network's default is
    nHeads = builder.nHeads;
    nKvHeads = builder.nKvHeads == 0 ? builder.nHeads : builder.nKvHeads;
    headSize = builder.headSize;
    windowSize = builder.windowSize;
    gated = builder.gated;
    learnableAmplitude = builder.learnableAmplitude;
    gateBiasInit = builder.gateBiasInit;
    ropeBase = builder.ropeBase;
    qkNorm = builder.qkNorm;
    keyShift = builder.keyShift;
    valueShift = builder.valueShift;
    hasBias = builder.hasBias;
    deriveHeadSize();
    validateOptions();
    initializeConstraints(builder);
  }

  /** Starts a configuration. */
  public static Builder builder() {
    return new Builder();
  }

  @Override
  protected void initializeConstraints(
      org.deeplearning4j.nn.conf.layers.Layer.Builder<?> layerBuilder) {
    super.initializeConstraints(layerBuilder);
    Builder builder = (Builder) layerBuilder;
    if (builder.getInputWeightConstraints() == null) {
      return;
    }
    List<LayerConstraint> all = constraints == null ? new ArrayList<>() : constraints;
    Set<String> keys = new HashSet<>(initializer().weightKeys(this));
    keys.remove(GatedFWAParamInitializer.OUTPUT_WEIGHT);
    for (LayerConstraint constraint : builder.getInputWeightConstraints()) {
      LayerConstraint own = constraint.clone();
      own.setParams(keys);
      all.add(own);
    }
    constraints = all;
  }

  /** A head size that was not set is nOut / nHeads; it stays when nOut is replaced later. */
  private void deriveHeadSize() {
    if (headSize == 0 && nHeads > 0 && nOut > 0 && nOut % nHeads == 0) {
      headSize = Math.toIntExact(nOut / nHeads);
    }
  }

  private void validateOptions() {
    check(nHeads > 0, "nHeads = " + nHeads + ": must be at least 1");
    check(nKvHeads > 0, "nKvHeads = " + nKvHeads + ": must be at least 1");
    check(
        nHeads % nKvHeads == 0,
        "nKvHeads = " + nKvHeads + ": nHeads (" + nHeads + ") must be a multiple of it");
    check(
        headSize >= 0 && headSize <= 256,
        "headSize = " + headSize + ": must be from 1 to 256 (0 stands for nOut / nHeads)");
    check(windowSize > 0, "windowSize = " + windowSize + ": must be at least 1");
    check(
        ropeBase == 0 || (ropeBase > 1 && Double.isFinite(ropeBase)),
        "ropeBase = " + ropeBase + ": must be above 1 (0 stands for no rotary embedding)");
    check(
        ropeBase == 0 || headSize % 2 == 0,
        "headSize = " + headSize + ": must be even with a rotary embedding");
    check(Double.isFinite(gateBiasInit), "gateBiasInit = " + gateBiasInit + ": must be finite");
    check(rnnDataFormat != null, "dataFormat = null: must be NCW or NWC");
  }

  private void check(boolean condition, String problem) {
    if (!condition) {
      throw new DL4JInvalidConfigException("GatedFWALayer \"" + getLayerName() + "\": " + problem);
    }
  }

  /**
   * {@inheritDoc}
   *
   * @throws DL4JInvalidConfigException if an option is missing or not allowed, if the network is
   *     not FLOAT, DOUBLE or HALF, or if the layer stands in a {@link Bidirectional} wrapper
   */
  @Override
  public Layer instantiate(
      NeuralNetConfiguration conf,
      Collection<TrainingListener> trainingListeners,
      int layerIndex,
      INDArray layerParamsView,
      boolean initializeParams,
      DataType networkDataType) {
    deriveHeadSize();
    validateOptions();
    check(nIn > 0, "nIn = " + nIn + ": must be at least 1 (set it or the network's input type)");
    check(nOut > 0, "nOut = " + nOut + ": must be at least 1");
    check(
        headSize > 0,
        "headSize is not set and nOut (" + nOut + ") is not a multiple of nHeads (" + nHeads + ")");
    RuntimeLayers.checkDataType("GatedFWALayer", getLayerName(), networkDataType);
    check(
        !calledByBidirectional(),
        "cannot stand in a Bidirectional wrapper: its attention is causal, and half of the wrapped"
            + " output would see only the future");
    return RuntimeLayers.complete(
        new GatedFWA(conf, networkDataType),
        conf,
        trainingListeners,
        layerIndex,
        layerParamsView,
        initializer().init(conf, layerParamsView, initializeParams));
  }

  /** Nothing in the arguments tells the wrapped layer from a free one, but the caller does. */
  private static boolean calledByBidirectional() {
    return StackWalker.getInstance()
        .walk(
            frames ->
                frames
                    .limit(4)
                    .anyMatch(f -> f.getClassName().equals(Bidirectional.class.getName())));
  }

  @Override
  public ParamInitializer initializer() {
    return GatedFWAParamInitializer.INSTANCE;
  }

  @Override
  public LayerMemoryReport getMemoryReport(InputType inputType) {
    InputType outputType = getOutputType(-1, inputType);
    long time = Math.max(1, ((InputType.InputTypeRecurrent) inputType).getTimeSeriesLength());
    long projected = GatedFWAParamInitializer.projectionSize(this);
    long heads = (long) nHeads * headSize;
    long shifted = (long) nKvHeads * headSize * ((keyShift ? 1 : 0) + (valueShift ? 1 : 0));
    long forward = time * (projected + heads + shifted + 4L * nHeads);
    return RuntimeLayers.memoryReport(this, inputType, outputType, forward, 2 * forward);
  }

  @Override
  public void setNOut(long nOut) {
    super.setNOut(nOut);
    deriveHeadSize();
  }

  /** Number of query heads. */
  public int getNHeads() {
    return nHeads;
  }

  public void setNHeads(int nHeads) {
    this.nHeads = nHeads;
  }

  /** Number of key and value heads. */
  public int getNKvHeads() {
    return nKvHeads;
  }

  public void setNKvHeads(int nKvHeads) {
    this.nKvHeads = nKvHeads;
  }

  /** Size of each head; 0 until it is derived from nOut. */
  public int getHeadSize() {
    return headSize;
  }

  public void setHeadSize(int headSize) {
    this.headSize = headSize;
  }

  /** Number of tokens that a token attends to, itself included. */
  public int getWindowSize() {
    return windowSize;
  }

  public void setWindowSize(int windowSize) {
    this.windowSize = windowSize;
  }

  /** Whether memory decays by a learned gate. */
  public boolean isGated() {
    return gated;
  }

  public void setGated(boolean gated) {
    this.gated = gated;
  }

  /** Whether the gate's amplitude beta is learned. */
  public boolean isLearnableAmplitude() {
    return learnableAmplitude;
  }

  public void setLearnableAmplitude(boolean learnableAmplitude) {
    this.learnableAmplitude = learnableAmplitude;
  }

  /** Initial value of the gate bias b_g. */
  public double getGateBiasInit() {
    return gateBiasInit;
  }

  public void setGateBiasInit(double gateBiasInit) {
    this.gateBiasInit = gateBiasInit;
  }

  /** Base of the rotary embedding; 0 for none. */
  public double getRopeBase() {
    return ropeBase;
  }

  public void setRopeBase(double ropeBase) {
    this.ropeBase = ropeBase;
  }

  /** Whether queries and keys are normalised. */
  public boolean isQkNorm() {
    return qkNorm;
  }

  public void setQkNorm(boolean qkNorm) {
    this.qkNorm = qkNorm;
  }

  /** Whether keys are shifted. */
  public boolean isKeyShift() {
    return keyShift;
  }

  public void setKeyShift(boolean keyShift) {
    this.keyShift = keyShift;
  }

  /** Whether values are shifted. */
  public boolean isValueShift() {
    return valueShift;
  }

  public void setValueShift(boolean valueShift) {
    this.valueShift = valueShift;
  }

  /** Whether the projections have biases (the gate always has one). */
  public boolean isHasBias() {
    return hasBias;
  }

  public void setHasBias(boolean hasBias) {
    this.hasBias = hasBias;
  }

  @Override
  public GatedFWALayer clone() {
    return (GatedFWALayer) super.clone();
  }

  @Override
  public boolean equals(Object o) {
    return o instanceof GatedFWALayer other && super.equals(o) && options().equals(other.options());
  }

  @Override
  public int hashCode() {
    return Objects.hash(super.hashCode(), options());
  }

  @Override
  public String toString() {
    return "GatedFWALayer(nIn=%d, nOut=%d, %s)".formatted(nIn, nOut, options());
  }

  /** All options of this class, for comparison and printing. */
  private record Options(
      int nHeads,
      int nKvHeads,
      int headSize,
      int windowSize,
      boolean gated,
      boolean learnableAmplitude,
      double gateBiasInit,
      double ropeBase,
      boolean qkNorm,
      boolean keyShift,
      boolean valueShift,
      boolean hasBias) {}

  private Options options() {
    return new Options(
        nHeads,
        nKvHeads,
        headSize,
        windowSize,
        gated,
        learnableAmplitude,
        gateBiasInit,
        ropeBase,
        qkNorm,
        keyShift,
        valueShift,
        hasBias);
  }

  /** Builder of {@link GatedFWALayer}. */
  @SuppressWarnings("unchecked") // build(), as DL4J declares it
  public static class Builder extends BaseRecurrentLayer.Builder<Builder> {
    private int nHeads = 1;
    private int nKvHeads;
    private int headSize;
    private int windowSize = 512;
    private boolean gated = true;
    private boolean learnableAmplitude = true;
    private double gateBiasInit = 2;
    private double ropeBase;
    private boolean qkNorm;
    private boolean keyShift;
    private boolean valueShift;
    private boolean hasBias;

    /** Number of query heads. Default: 1. */
    public Builder nHeads(int nHeads) {
      this.nHeads = nHeads;
      return this;
    }

    /** Number of key and value heads, a divisor of nHeads. Default: nHeads. */
    public Builder nKvHeads(int nKvHeads) {
      this.nKvHeads = nKvHeads;
      return this;
    }

    /** Size of each head, from 1 to 256. Default: nOut / nHeads. */
    public Builder headSize(int headSize) {
      this.headSize = headSize;
      return this;
    }

    /** Number of tokens that a token attends to, itself included. Default: 512. */
    public Builder windowSize(int windowSize) {
      this.windowSize = windowSize;
      return this;
    }

    /**
     * Whether memory decays by a learned gate; if not, plain sliding-window attention. Default:
     * true.
     */
    public Builder gated(boolean gated) {
      this.gated = gated;
      return this;
    }

    /** Whether the gate's amplitude beta is learned; if not, it is 1. Default: true. */
    public Builder learnableAmplitude(boolean learnableAmplitude) {
      this.learnableAmplitude = learnableAmplitude;
      return this;
    }

    /** Initial value of the gate bias b_g: the larger, the longer the memory. Default: 2. */
    public Builder gateBiasInit(double gateBiasInit) {
      this.gateBiasInit = gateBiasInit;
      return this;
    }

    /** Base of the rotary position embedding, usually 10000; 0 for none. Default: 0. */
    public Builder ropeBase(double ropeBase) {
      this.ropeBase = ropeBase;
      return this;
    }

    /** Whether queries and keys are RMS-normalised per head. Default: false. */
    public Builder qkNorm(boolean qkNorm) {
      this.qkNorm = qkNorm;
      return this;
    }

    /** Whether keys are shifted. Default: false. */
    public Builder keyShift(boolean keyShift) {
      this.keyShift = keyShift;
      return this;
    }

    /** Whether values are shifted. Default: false. */
    public Builder valueShift(boolean valueShift) {
      this.valueShift = valueShift;
      return this;
    }

    /** Whether the projections have biases; the gate always has one. Default: false. */
    public Builder hasBias(boolean hasBias) {
      this.hasBias = hasBias;
      return this;
    }

    /**
     * {@inheritDoc}
     *
     * @throws DL4JInvalidConfigException if an option is not allowed
     */
    @Override
    public GatedFWALayer build() {
      RuntimeLayers.checkIdentity("GatedFWALayer", layerName, activationFn);
      if (recurrentConstraints != null || weightInitFnRecurrent != null) {
        throw new DL4JInvalidConfigException(
            "GatedFWALayer \""
                + layerName
                + "\": constrainRecurrent and weightInitRecurrent do not apply: there are no"
                + " recurrent weights");
      }
      return new GatedFWALayer(this);
    }
  }
}
