package io.github.gatedfwa.samediff;

import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;
import org.nd4j.autodiff.samediff.ops.SDOps;

/**
 * GatedFWA (arXiv 2512.07782) in SameDiff graphs. Builds the native ops where they can be loaded,
 * else the same functions from ND4J's own ops: see {@link GatedFwaOps}. Shapes and types are those
 * of {@link GatedFwa} and {@link GatedFwaGate}; they are checked when the graph runs.
 */
public class SDGatedFwa extends SDOps {

  /** Builds into the given graph. */
  public SDGatedFwa(SameDiff sameDiff) {
    super(sameDiff);
  }

  /**
   * Gated sliding-window attention.
   *
   * @param q queries [B, N, H, D]
   * @param k keys [B, M, Hkv, D]
   * @param v values [B, M, Hkv, Dv]
   * @param alpha decay [B, M, H], or null
   * @param mask [B, M], nonzero for a real token, or null; gets no gradient
   * @param window how many keys a query sees, its own included; at least 1
   * @param scale factor of the products q·k; 0 for 1/√D
   * @return o [B, N, H, Dv] and lse [B, H, N]; the native op takes gradients through o only
   * @throws IllegalArgumentException if window or scale is not as described, or q, k or v is null
   */
  public SDVariable[] gatedFwa(
      SDVariable q,
      SDVariable k,
      SDVariable v,
      SDVariable alpha,
      SDVariable mask,
      long window,
      double scale) {
    return gatedFwa(null, q, k, v, alpha, mask, window, scale);
  }

  /**
   * As {@link #gatedFwa(SDVariable, SDVariable, SDVariable, SDVariable, SDVariable, long, double)}.
   *
   * @param name of o; lse is called name:1. Null for names that SameDiff makes up
   */
  public SDVariable[] gatedFwa(
      String name,
      SDVariable q,
      SDVariable k,
      SDVariable v,
      SDVariable alpha,
      SDVariable mask,
      long window,
      double scale) {
    Arguments.window("gated_fwa", window);
    Arguments.scale("gated_fwa", scale);
    SDVariable[] outputs =
        GatedFwaOps.isNativeAvailable()
            ? new GatedFwa(sd, q, k, v, alpha, mask, window, scale).outputVariables()
            : new ComposedGraph(sd).gatedFwa(q, k, v, alpha, mask, window, scale);
    if (name != null) {
      outputs[0] = sd.updateVariableNameAndReference(outputs[0], name);
      outputs[1] = sd.updateVariableNameAndReference(outputs[1], name + ":1");
    }
    return outputs;
  }

  /**
   * The decay alpha = softplus(−beta · h) / (beta + eps).
   *
   * @param h gate logits [B, M, H]
   * @param beta amplitudes &gt; 0, [B, M, H]
   * @param eps {@link GatedFwaOps#DEFAULT_EPS} is the authors'
   * @return alpha [B, M, H]
   * @throws IllegalArgumentException if eps is not as described, or h or beta is null
   */
  public SDVariable gate(SDVariable h, SDVariable beta, double eps) {
    return gate(null, h, beta, eps);
  }

  /**
   * As {@link #gate(SDVariable, SDVariable, double)}.
   *
   * @param name of alpha; null for one that SameDiff makes up
   */
  public SDVariable gate(String name, SDVariable h, SDVariable beta, double eps) {
    Arguments.eps("gated_fwa_gate", eps);
    SDVariable alpha =
        GatedFwaOps.isNativeAvailable()
            ? new GatedFwaGate(sd, h, beta, eps).outputVariable()
            : new ComposedGraph(sd).gate(h, beta, eps);
    return name == null ? alpha : sd.updateVariableNameAndReference(alpha, name);
  }
}
