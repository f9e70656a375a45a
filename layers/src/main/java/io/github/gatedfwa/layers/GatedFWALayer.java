package io.github.gatedfwa.layers;

import io.github.gatedfwa.layers.params.GatedFWAParamInitializer;
import io.github.gatedfwa.layers.runtime.GatedFWA;
import org.deeplearning4j.exception.DL4JInvalidConfigException;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.nd4j.linalg.api.buffer.DataType;

/**
 * Gated flash windowed attention (arXiv 2512.07782) as a DL4J layer: causal multi-head attention
 * over a sliding window whose memory decays by a learned gate.
 *
 * <p>Formats and types are those of {@link AttentionLayer}. The layer computes
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
 * </ol>
 *
 * <p>A feature mask [minibatch, time] marks padding with 0, wherever it stands: padded tokens are
 * never attended to, decay nothing, count as missing for the token shift, and give zeros. They do
 * take up a position, in the window as in the rotary embedding.
 *
 * <p>{@code rnnTimeStep} accepts one token or chunks of any size and keeps the last {@code
 * windowSize - 1} keys and values. Truncated BPTT carries them from segment to segment; no gradient
 * crosses the border.
 */
public class GatedFWALayer extends WindowedAttentionLayer {
  private static final long serialVersionUID = 1L;

  /** For deserialisation. */
  private GatedFWALayer() {}

  private GatedFWALayer(Builder builder) {
    super(builder);
    complete(builder);
  }

  /** Starts a configuration. */
  public static Builder builder() {
    return new Builder();
  }

  @Override
  GatedFWA newRuntimeLayer(NeuralNetConfiguration conf, DataType dataType) {
    return new GatedFWA(conf, dataType);
  }

  @Override
  public GatedFWAParamInitializer initializer() {
    return GatedFWAParamInitializer.INSTANCE;
  }

  @Override
  public GatedFWALayer clone() {
    return (GatedFWALayer) super.clone();
  }

  /** Builder of {@link GatedFWALayer}. */
  @SuppressWarnings("unchecked") // build(), as DL4J declares it
  public static class Builder extends WindowedAttentionLayer.Builder<Builder> {
    /**
     * {@inheritDoc}
     *
     * @throws DL4JInvalidConfigException if an option is not allowed
     */
    @Override
    public GatedFWALayer build() {
      checkInherited("GatedFWALayer");
      return new GatedFWALayer(this);
    }
  }
}
