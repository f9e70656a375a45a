package io.github.gatedfwa.layers;

import java.util.Map;

/** An {@link AttentionLayer} with a gated sliding window (arXiv 2512.07782), and its options. */
public abstract class WindowedAttentionLayer extends AttentionLayer {
  private static final long serialVersionUID = 1L;

  // Names are part of the JSON format of saved networks.
  private int windowSize;
  private boolean gated;
  private boolean learnableAmplitude;
  private double gateBiasInit;
  private boolean keyShift;
  private boolean valueShift;

  WindowedAttentionLayer() {}

  WindowedAttentionLayer(Builder<?> builder) {
    super(builder);
    windowSize = builder.windowSize;
    gated = builder.gated;
    learnableAmplitude = builder.learnableAmplitude;
    gateBiasInit = builder.gateBiasInit;
    keyShift = builder.keyShift;
    valueShift = builder.valueShift;
  }

  @Override
  public void validateOptions() {
    super.validateOptions();
    check(windowSize > 0, "windowSize = " + windowSize + ": must be at least 1");
    check(Double.isFinite(gateBiasInit), "gateBiasInit = " + gateBiasInit + ": must be finite");
  }

  @Override
  long workingSizePerToken() {
    return queryWidth()
        + keyWidth() * ((keyShift ? 1 : 0) + (valueShift ? 1 : 0))
        + 4L * getNHeads();
  }

  /** Number of tokens in the window of a token, itself included. */
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

  /** Whether the window's keys are shifted. */
  public boolean isKeyShift() {
    return keyShift;
  }

  public void setKeyShift(boolean keyShift) {
    this.keyShift = keyShift;
  }

  /** Whether the window's values are shifted. */
  public boolean isValueShift() {
    return valueShift;
  }

  public void setValueShift(boolean valueShift) {
    this.valueShift = valueShift;
  }

  @Override
  Map<String, Object> options() {
    Map<String, Object> options = super.options();
    options.put("windowSize", windowSize);
    options.put("gated", gated);
    options.put("learnableAmplitude", learnableAmplitude);
    options.put("gateBiasInit", gateBiasInit);
    options.put("keyShift", keyShift);
    options.put("valueShift", valueShift);
    return options;
  }

  /**
   * Builder of a {@link WindowedAttentionLayer}.
   *
   * @param <T> the builder itself
   */
  public abstract static class Builder<T extends Builder<T>> extends AttentionLayer.Builder<T> {
    private int windowSize = 512;
    private boolean gated = true;
    private boolean learnableAmplitude = true;
    private double gateBiasInit = 2;
    private boolean keyShift;
    private boolean valueShift;

    Builder() {}

    /** Number of tokens in the window of a token, itself included. Default: 512. */
    public T windowSize(int windowSize) {
      this.windowSize = windowSize;
      return self();
    }

    /**
     * Whether memory decays by a learned gate; if not, plain sliding-window attention. Default:
     * true.
     */
    public T gated(boolean gated) {
      this.gated = gated;
      return self();
    }

    /** Whether the gate's amplitude beta is learned; if not, it is 1. Default: true. */
    public T learnableAmplitude(boolean learnableAmplitude) {
      this.learnableAmplitude = learnableAmplitude;
      return self();
    }

    /** Initial value of the gate bias b_g: the larger, the longer the memory. Default: 2. */
    public T gateBiasInit(double gateBiasInit) {
      this.gateBiasInit = gateBiasInit;
      return self();
    }

    /** Whether the window's keys are shifted. Default: false. */
    public T keyShift(boolean keyShift) {
      this.keyShift = keyShift;
      return self();
    }

    /** Whether the window's values are shifted. Default: false. */
    public T valueShift(boolean valueShift) {
      this.valueShift = valueShift;
      return self();
    }
  }
}
