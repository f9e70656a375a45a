package io.github.gatedfwa.samediff;

import java.util.ArrayList;
import java.util.List;
import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * The gradients of {@link GatedFwa}, the native op {@code gated_fwa_bp}. With δ_p = dO_p · o_p and
 * dS = P ∘ (dO Vᵀ − δ):
 *
 * <pre>
 *   dq = scale · dS K     dk = scale · dSᵀ Q     dv = Pᵀ dO     dalpha_τ = − Σ_{j &lt; τ ≤ p} dS_pj
 * </pre>
 *
 * <p>Inputs are those of the forward op, its results o and lse, and dO [B, N, H, Dv]; dq, dk, dv
 * and dalpha have the shapes and types of q, k, v and alpha. dk and dv are summed over the heads of
 * a group.
 */
public final class GatedFwaBp extends AttentionOp {

  /** For {@code SameDiff.load}. */
  public GatedFwaBp() {}

  /**
   * The op on arrays; {@code Nd4j.exec} gives [dq, dk, dv] and, if there is an alpha, dalpha.
   *
   * @param alpha or null, as in the forward op
   * @param mask or null, as in the forward op
   * @param o result of the forward op
   * @param lse result of the forward op
   * @param dO gradient of the loss by o
   * @throws IllegalArgumentException if an argument is not as described
   * @throws io.github.gatedfwa.nativeops.NativeLibraryException if there is no native library
   */
  public GatedFwaBp(
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
    this(q, k, v, alpha, mask, o, lse, dO, window, scale, null);
  }

  /**
   * The op on arrays, into {@code outputs}: dq, dk, dv and, if there is an alpha, dalpha. They must
   * not overlap each other or any input. See above.
   */
  public GatedFwaBp(
      INDArray q,
      INDArray k,
      INDArray v,
      INDArray alpha,
      INDArray mask,
      INDArray o,
      INDArray lse,
      INDArray dO,
      long window,
      double scale,
      INDArray[] outputs) {
    super(new INDArray[] {q, k, v, alpha, mask, o, lse, dO}, outputs);
    Arguments.attentionGradient("gated_fwa_bp", q, k, v, alpha, mask, o, lse, dO, window, scale);
    addArguments(window, scale, alpha != null, mask != null);
  }

  /** The op in a graph; {@link #outputVariables()} are dq, dk, dv and, with an alpha, dalpha. */
  public GatedFwaBp(
      SameDiff sameDiff,
      SDVariable q,
      SDVariable k,
      SDVariable v,
      SDVariable alpha,
      SDVariable mask,
      SDVariable o,
      SDVariable lse,
      SDVariable dO,
      long window,
      double scale) {
    super(
        sameDiff,
        new SDVariable[] {
          Arguments.present("gated_fwa_bp", "q", q),
          Arguments.present("gated_fwa_bp", "k", k),
          Arguments.present("gated_fwa_bp", "v", v),
          alpha,
          mask,
          Arguments.present("gated_fwa_bp", "o", o),
          Arguments.present("gated_fwa_bp", "lse", lse),
          Arguments.present("gated_fwa_bp", "dO", dO)
        });
    Arguments.window("gated_fwa_bp", window);
    Arguments.scale("gated_fwa_bp", scale);
    addArguments(window, scale, alpha != null, mask != null);
  }

  @Override
  public String opName() {
    return "gated_fwa_bp";
  }

  @Override
  public int getNumOutputs() {
    return hasAlpha() ? 4 : 3;
  }

  @Override
  public List<DataType> calculateOutputDataTypes(List<DataType> dataTypes) {
    DataType type = dataTypes.get(0);
    List<DataType> result = new ArrayList<>(List.of(type, type, type));
    if (hasAlpha()) {
      result.add(accumulatorType(type));
    }
    return result;
  }

  @Override
  public List<SDVariable> doDiff(List<SDVariable> gradients) {
    throw new UnsupportedOperationException("gated_fwa_bp: second derivatives are not supported");
  }
}
