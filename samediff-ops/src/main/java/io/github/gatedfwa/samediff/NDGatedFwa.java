package io.github.gatedfwa.samediff;

import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

/**
 * GatedFWA (arXiv 2512.07782) on arrays. Runs the native ops where they can be loaded, else the
 * same functions composed of ND4J's own ops: see {@link GatedFwaOps}. Shapes and types are those of
 * {@link GatedFwa} and {@link GatedFwaGate}.
 */
public class NDGatedFwa {

  /** Has no state; any number of threads may share one. */
  public NDGatedFwa() {}

  /**
   * Gated sliding-window attention.
   *
   * @param q queries [B, N, H, D]
   * @param k keys [B, M, Hkv, D]
   * @param v values [B, M, Hkv, Dv]
   * @param alpha decay [B, M, H], or null
   * @param mask [B, M], nonzero for a real token, or null
   * @param window how many keys a query sees, its own included; at least 1
   * @param scale factor of the products q·k; 0 for 1/√D
   * @return o [B, N, H, Dv] and lse [B, H, N]
   * @throws IllegalArgumentException if an argument is not as {@link GatedFwa} describes
   */
  public INDArray[] gatedFwa(
      INDArray q,
      INDArray k,
      INDArray v,
      INDArray alpha,
      INDArray mask,
      long window,
      double scale) {
    if (GatedFwaOps.isNativeAvailable()) {
      return Nd4j.exec(new GatedFwa(q, k, v, alpha, mask, window, scale));
    }
    return ComposedArrays.gatedFwa(q, k, v, alpha, mask, window, scale);
  }

  /**
   * {@link #gatedFwa(INDArray, INDArray, INDArray, INDArray, INDArray, long, double)} into arrays
   * that are there already, which must not overlap any input.
   *
   * @param o result [B, N, H, Dv], to write
   * @param lse result [B, H, N], to write
   * @throws IllegalArgumentException if an argument is not as {@link GatedFwa} describes
   */
  public void gatedFwa(
      INDArray q,
      INDArray k,
      INDArray v,
      INDArray alpha,
      INDArray mask,
      long window,
      double scale,
      INDArray o,
      INDArray lse) {
    if (GatedFwaOps.isNativeAvailable()) {
      Nd4j.exec(new GatedFwa(q, k, v, alpha, mask, window, scale, o, lse));
    } else {
      INDArray[] results = ComposedArrays.gatedFwa(q, k, v, alpha, mask, window, scale);
      Arguments.sameAs("gated_fwa", "o", o, results[0]);
      Arguments.sameAs("gated_fwa", "lse", lse, results[1]);
      o.assign(results[0]);
      lse.assign(results[1]);
    }
  }

  /**
   * The gradients of {@link #gatedFwa}.
   *
   * @param o result of {@link #gatedFwa}
   * @param lse result of {@link #gatedFwa}
   * @param dO gradient of the loss by o, [B, N, H, Dv]
   * @return dq, dk, dv and, if there is an alpha, dalpha, with the shapes and types of q, k, v,
   *     alpha
   * @throws IllegalArgumentException if an argument is not as {@link GatedFwaBp} describes
   */
  public INDArray[] gatedFwaBp(
      INDArray q,
      INDArray k,
      INDArray v,
      INDArray alpha,
      INDArray mask,
      INDArray o,
      INDArray lse,
      INDArray dO,
      long window,
      double scale) {
    if (GatedFwaOps.isNativeAvailable()) {
      return Nd4j.exec(new GatedFwaBp(q, k, v, alpha, mask, o, lse, dO, window, scale));
    }
    return ComposedArrays.gatedFwaBp(q, k, v, alpha, mask, o, lse, dO, window, scale);
  }

  /**
   * The decay alpha = softplus(−beta · h) / (beta + eps).
   *
   * @param h gate logits [B, M, H]
   * @param beta amplitudes &gt; 0, [B, M, H]
   * @param eps {@link GatedFwaOps#DEFAULT_EPS} is the authors'
   * @return alpha [B, M, H]
   * @throws IllegalArgumentException if an argument is not as {@link GatedFwaGate} describes
   */
  public INDArray gate(INDArray h, INDArray beta, double eps) {
    if (GatedFwaOps.isNativeAvailable()) {
      return Nd4j.exec(new GatedFwaGate(h, beta, eps))[0];
    }
    return ComposedArrays.gate(h, beta, eps);
  }

  /**
   * {@link #gate(INDArray, INDArray, double)} into an array that is there already, which must not
   * overlap an input.
   *
   * @param alpha result [B, M, H], to write
   * @throws IllegalArgumentException if an argument is not as {@link GatedFwaGate} describes
   */
  public void gate(INDArray h, INDArray beta, double eps, INDArray alpha) {
    Arguments.present("gated_fwa_gate", "alpha", alpha);
    if (GatedFwaOps.isNativeAvailable()) {
      Nd4j.exec(new GatedFwaGate(h, beta, eps, alpha));
    } else {
      INDArray result = ComposedArrays.gate(h, beta, eps);
      Arguments.sameAs("gated_fwa_gate", "alpha", alpha, result);
      alpha.assign(result);
    }
  }

  /**
   * The gradients of {@link #gate}.
   *
   * @param dalpha gradient of the loss by alpha, [B, M, H]
   * @return dh and dbeta, [B, M, H]
   * @throws IllegalArgumentException if an argument is not as {@link GatedFwaGateBp} describes
   */
  public INDArray[] gateBp(INDArray h, INDArray beta, INDArray dalpha, double eps) {
    if (GatedFwaOps.isNativeAvailable()) {
      return Nd4j.exec(new GatedFwaGateBp(h, beta, dalpha, eps));
    }
    return ComposedArrays.gateBp(h, beta, dalpha, eps);
  }
}
