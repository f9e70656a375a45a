package io.github.gatedfwa.layers;

import io.github.gatedfwa.layers.params.AttentionParamInitializer;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import org.deeplearning4j.exception.DL4JInvalidConfigException;
import org.deeplearning4j.nn.api.Layer;
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
 * What the causal attention layers of this package have in common: heads, rotary embedding,
 * normalisation, biases, data formats.
 *
 * <p>Input and output are RNN data: [minibatch, size, time] ({@code NCW}, the default) or
 * [minibatch, time, size] ({@code NWC}, which needs no transposition and is the faster one). There
 * is no activation function. In a HALF network the parameters, the input and the output are HALF,
 * everything between is computed in FLOAT.
 */
public abstract class AttentionLayer extends BaseRecurrentLayer {
  private static final long serialVersionUID = 1L;

  // Names are part of the JSON format of saved networks.
  private int nHeads;
  private int nKvHeads;
  private int headSize;
  private double ropeBase;
  private boolean qkNorm;
  private boolean hasBias;

  AttentionLayer() {}

  AttentionLayer(Builder<?> builder) {
    super(builder);
    activationFn = new ActivationIdentity(); // whatever the network's default is
    nHeads = builder.nHeads;
    nKvHeads = builder.nKvHeads == 0 ? builder.nHeads : builder.nKvHeads;
    headSize = builder.headSize;
    ropeBase = builder.ropeBase;
    qkNorm = builder.qkNorm;
    hasBias = builder.hasBias;
  }

  /** The last step of a subclass's constructor. */
  final void complete(Builder<?> builder) {
    deriveHeadSize();
    validateOptions();
    initializeConstraints(builder);
  }

  @Override
  protected void initializeConstraints(
      org.deeplearning4j.nn.conf.layers.Layer.Builder<?> layerBuilder) {
    super.initializeConstraints(layerBuilder);
    Builder<?> builder = (Builder<?>) layerBuilder;
    if (builder.getInputWeightConstraints() == null) {
      return;
    }
    List<LayerConstraint> all = constraints == null ? new ArrayList<>() : constraints;
    Set<String> keys = new HashSet<>(initializer().weightKeys(this));
    keys.removeIf(key -> !AttentionParamInitializer.isProjection(key));
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

  /**
   * Checks the options. Sizes may still be open.
   *
   * @throws DL4JInvalidConfigException if an option is not allowed
   */
  public void validateOptions() {
    RuntimeLayers.checkSizes(this);
    check(nHeads > 0, "nHeads = " + nHeads + ": must be at least 1");
    check(nKvHeads > 0, "nKvHeads = " + nKvHeads + ": must be at least 1");
    check(
        nHeads % nKvHeads == 0,
        "nKvHeads = " + nKvHeads + ": nHeads (" + nHeads + ") must be a multiple of it");
    check(
        headSize >= 0 && headSize <= 256,
        "headSize = " + headSize + ": must be from 1 to 256 (0 stands for nOut / nHeads)");
    check(
        ropeBase == 0 || (ropeBase > 1 && Double.isFinite(ropeBase)),
        "ropeBase = " + ropeBase + ": must be above 1 (0 stands for no rotary embedding)");
    check(
        ropeBase == 0 || headSize % 2 == 0,
        "headSize = " + headSize + ": must be even with a rotary embedding");
    check(rnnDataFormat != null, "dataFormat = null: must be NCW or NWC");
  }

  final void check(boolean condition, String problem) {
    if (!condition) {
      throw new DL4JInvalidConfigException(
          "%s \"%s\": %s".formatted(getClass().getSimpleName(), getLayerName(), problem));
    }
  }

  final void checkBlocks(int blockLength, int stride) {
    check(blockLength > 0, "blockLength = " + blockLength + ": must be at least 1");
    check(
        stride > 0 && blockLength % stride == 0,
        "stride = " + stride + ": must be a divisor of blockLength (" + blockLength + ")");
  }

  final void checkSelection(int blockLength, int selectionBlock, int topN) {
    check(
        selectionBlock > 0 && selectionBlock % blockLength == 0,
        "selectionBlock = "
            + selectionBlock
            + ": must be a multiple of blockLength ("
            + blockLength
            + ")");
    check(
        topN >= 3,
        "topN = "
            + topN
            + ": must be at least 3: the first block, the token's own and the one before it are"
            + " always among them");
  }

  final void checkCompression(Compression compression, int compressionHiddenSize) {
    check(compression != null, "compression = null: must be MEAN or MLP");
    check(
        compressionHiddenSize >= 0,
        "compressionHiddenSize = "
            + compressionHiddenSize
            + ": must be at least 1 (0 stands for headSize)");
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
    RuntimeLayers.checkDataType(getClass().getSimpleName(), getLayerName(), networkDataType);
    check(
        !calledByBidirectional(),
        "cannot stand in a Bidirectional wrapper: its attention is causal, and half of the wrapped"
            + " output would see only the future");
    return RuntimeLayers.complete(
        newRuntimeLayer(conf, networkDataType),
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

  abstract org.deeplearning4j.nn.layers.BaseLayer<?> newRuntimeLayer(
      NeuralNetConfiguration conf, DataType dataType);

  @Override
  public abstract AttentionParamInitializer<?> initializer();

  @Override
  public LayerMemoryReport getMemoryReport(InputType inputType) {
    InputType outputType = getOutputType(-1, inputType);
    long forward =
        RuntimeLayers.tokens(inputType)
            * (initializer().projectionSize(this) + workingSizePerToken());
    return RuntimeLayers.memoryReport(this, inputType, outputType, forward, 2 * forward);
  }

  /** Elements per token that a forward pass needs beside the projections. */
  abstract long workingSizePerToken();

  /** Elements per token of all query heads. */
  final long queryWidth() {
    return (long) nHeads * headSize;
  }

  /** Elements per token of all key heads. */
  final long keyWidth() {
    return (long) nKvHeads * headSize;
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

  /** Whether the projections have biases. */
  public boolean isHasBias() {
    return hasBias;
  }

  public void setHasBias(boolean hasBias) {
    this.hasBias = hasBias;
  }

  @Override
  public AttentionLayer clone() {
    return (AttentionLayer) super.clone();
  }

  @Override
  public boolean equals(Object o) {
    return o instanceof AttentionLayer other
        && getClass() == other.getClass()
        && super.equals(o)
        && options().equals(other.options());
  }

  @Override
  public int hashCode() {
    return Objects.hash(super.hashCode(), options());
  }

  @Override
  public String toString() {
    return "%s(nIn=%d, nOut=%d, %s)".formatted(getClass().getSimpleName(), nIn, nOut, options());
  }

  /** All options by name, for comparison and printing; subclasses add theirs. */
  Map<String, Object> options() {
    Map<String, Object> options = new LinkedHashMap<>();
    options.put("nHeads", nHeads);
    options.put("nKvHeads", nKvHeads);
    options.put("headSize", headSize);
    options.put("ropeBase", ropeBase);
    options.put("qkNorm", qkNorm);
    options.put("hasBias", hasBias);
    return options;
  }

  /**
   * Builder of an {@link AttentionLayer}.
   *
   * @param <T> the builder itself
   */
  public abstract static class Builder<T extends Builder<T>> extends BaseRecurrentLayer.Builder<T> {
    private int nHeads = 1;
    private int nKvHeads;
    private int headSize;
    private double ropeBase;
    private boolean qkNorm;
    private boolean hasBias;

    Builder() {}

    @SuppressWarnings("unchecked") // T is this builder's own type
    final T self() {
      return (T) this;
    }

    /** Number of query heads. Default: 1. */
    public T nHeads(int nHeads) {
      this.nHeads = nHeads;
      return self();
    }

    /** Number of key and value heads, a divisor of nHeads. Default: nHeads. */
    public T nKvHeads(int nKvHeads) {
      this.nKvHeads = nKvHeads;
      return self();
    }

    /** Size of each head, from 1 to 256. Default: nOut / nHeads. */
    public T headSize(int headSize) {
      this.headSize = headSize;
      return self();
    }

    /** Base of the rotary position embedding, usually 10000; 0 for none. Default: 0. */
    public T ropeBase(double ropeBase) {
      this.ropeBase = ropeBase;
      return self();
    }

    /** Whether queries and keys are RMS-normalised per head. Default: false. */
    public T qkNorm(boolean qkNorm) {
      this.qkNorm = qkNorm;
      return self();
    }

    /** Whether the projections have biases; a decay gate always has one. Default: false. */
    public T hasBias(boolean hasBias) {
      this.hasBias = hasBias;
      return self();
    }

    /** Refuses what DL4J's own builders offer and these layers do not have. */
    final void checkInherited(String type) {
      RuntimeLayers.checkIdentity(type, layerName, activationFn);
      if (recurrentConstraints != null || weightInitFnRecurrent != null) {
        throw new DL4JInvalidConfigException(
            "%s \"%s\": constrainRecurrent and weightInitRecurrent do not apply: there are no recurrent weights"
                .formatted(type, layerName));
      }
    }
  }
}
