package io.github.gatedfwa.samediff;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.api.ops.impl.shape.ZerosLike;

/**
 * Gated sliding-window attention, the native op {@code gated_fwa} (GatedFWA, arXiv 2512.07782).
 *
 * <p>B batch, N query length, M ≥ N key length, H query heads, Hkv key/value heads (H is a multiple
 * of Hkv), D head size of q and k, Dv of v, w window. Query t has the absolute position p = M − N +
 * t and sees the keys j in [max(0, p − w + 1), p]:
 *
 * <pre>
 *   s_pj = scale · (q_p · k_j) − Σ_{τ=j+1..p} alpha_τ
 *   P    = softmax of s_p over the visible, unmasked j
 *   o_p  = Σ_j P_pj v_j        lse_p = log Σ_j exp(s_pj)   (natural logarithm)
 * </pre>
 *
 * <p>A row that sees no unmasked key gives o = 0 and lse = −∞, and passes no gradient. alpha = +∞
 * is a hard reset: nothing before τ is seen from τ on.
 *
 * <table>
 * <caption>Arrays; any strides</caption>
 * <tr><td>q</td><td>[B, N, H, D]</td><td>FLOAT, DOUBLE, HALF or BFLOAT16</td></tr>
 * <tr><td>k</td><td>[B, M, Hkv, D]</td><td>as q</td></tr>
 * <tr><td>v</td><td>[B, M, Hkv, Dv]</td><td>as q</td></tr>
 * <tr><td>alpha</td><td>[B, M, H], decay ≥ 0; may be absent</td>
 *     <td>FLOAT for half types, else as q</td></tr>
 * <tr><td>mask</td><td>[B, M], nonzero for a real token; may be absent</td><td>as q, or BOOL</td></tr>
 * <tr><td>o</td><td>[B, N, H, Dv]</td><td>as q</td></tr>
 * <tr><td>lse</td><td>[B, H, N]</td><td>FLOAT for half types, else as q</td></tr>
 * </table>
 *
 * <p>Half types are computed in float32. D and Dv are at most 256. Same inputs give the same bits.
 */
public final class GatedFwa extends AttentionOp {

  /** For {@code SameDiff.load}. */
  public GatedFwa() {}

  /**
   * The op on arrays; {@code Nd4j.exec} gives [o, lse].
   *
   * @param alpha or null
   * @param mask or null
   * @param window at least 1
   * @param scale factor of the products q·k; 0 for 1/√D
   * @throws IllegalArgumentException if an argument is not as described above
   * @throws io.github.gatedfwa.nativeops.NativeLibraryException if there is no native library
   */
  public GatedFwa(
      INDArray q,
      INDArray k,
      INDArray v,
      INDArray alpha,
      INDArray mask,
      long window,
      double scale) {
    this(q, k, v, alpha, mask, window, scale, null);
  }

  /** The op on arrays, into o and lse, which must not overlap any input. See above. */
  public GatedFwa(
      INDArray q,
      INDArray k,
      INDArray v,
      INDArray alpha,
      INDArray mask,
      long window,
      double scale,
      INDArray o,
      INDArray lse) {
    this(q, k, v, alpha, mask, window, scale, new INDArray[] {o, lse});
  }

  private GatedFwa(
      INDArray q,
      INDArray k,
      INDArray v,
      INDArray alpha,
      INDArray mask,
      long window,
      double scale,
      INDArray[] outputs) {
    super(new INDArray[] {q, k, v, alpha, mask}, outputs);
    Arguments.attention("gated_fwa", q, k, v, alpha, mask, window, scale);
    addArguments(window, scale, alpha != null, mask != null);
  }

  /**
   * The op in a graph; {@link #outputVariables()} are o and lse. Gradients flow from o; a gradient
   * that arrives at lse is refused.
   *
   * @param alpha or null
   * @param mask or null; gets a gradient of zero
   */
  public GatedFwa(
      SameDiff sameDiff,
      SDVariable q,
      SDVariable k,
      SDVariable v,
      SDVariable alpha,
      SDVariable mask,
      long window,
      double scale) {
    super(
        sameDiff,
        new SDVariable[] {
          Arguments.present("gated_fwa", "q", q),
          Arguments.present("gated_fwa", "k", k),
          Arguments.present("gated_fwa", "v", v),
          alpha,
          mask
        });
    Arguments.window("gated_fwa", window);
    Arguments.scale("gated_fwa", scale);
    addArguments(window, scale, alpha != null, mask != null);
  }

  @Override
  public String opName() {
    return "gated_fwa";
  }

  @Override
  public int getNumOutputs() {
    return 2;
  }

  @Override
  public List<DataType> calculateOutputDataTypes(List<DataType> dataTypes) {
    return List.of(dataTypes.get(0), accumulatorType(dataTypes.get(0)));
  }

  @Override
  public List<SDVariable> doDiff(List<SDVariable> gradients) {
    SDVariable lseGradient = gradients.get(1);
    if (lseGradient != null
        && !(sameDiff.getVariableOutputOp(lseGradient.name()) instanceof ZerosLike)) {
      throw new UnsupportedOperationException(
          "gated_fwa: the loss depends on lse ("
              + outputVariables()[1].name()
              + "); gradients are supported through o only");
    }
    SDVariable[] inputs = args();
    int next = 3;
    SDVariable alpha = hasAlpha() ? inputs[next++] : null;
    SDVariable mask = hasMask() ? inputs[next] : null;
    SDVariable[] outputs = outputVariables();
    SDVariable[] own =
        new GatedFwaBp(
                sameDiff,
                inputs[0],
                inputs[1],
                inputs[2],
                alpha,
                mask,
                outputs[0],
                outputs[1],
                gradients.get(0),
                window(),
                scale())
            .outputVariables();
    List<SDVariable> result = new ArrayList<>(Arrays.asList(own));
    if (mask != null && mask.dataType().isFPType()) {
      result.add(sameDiff.zerosLike(mask));
    }
    return result;
  }
}
