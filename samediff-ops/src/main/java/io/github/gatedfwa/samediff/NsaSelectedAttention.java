package io.github.gatedfwa.samediff;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * Attention over chosen blocks of tokens, the native op {@code nsa_selected_attention}: the
 * selection branch of native sparse attention (arXiv 2502.11089, section 3.3.2).
 *
 * <p>Letters as in {@link NsaCompressedAttention}; selection blocks have l′ tokens. Query t has the
 * absolute position p = M − N + t. Its heads of the group of key/value head i see the tokens j ≤ p
 * of the blocks indices[b, t, i, ..]:
 *
 * <pre>
 *   s_pj = scale · (q_p · k_j)
 *   P    = softmax of s_p over the visible, unmasked j
 *   o_p  = Σ_j P_pj v_j         lse_p = log Σ_j exp(s_pj)   (natural logarithm)
 * </pre>
 *
 * <p>A row that sees no unmasked token gives o = 0 and lse = −∞, and passes no gradient.
 *
 * <table>
 * <caption>Arrays; any strides</caption>
 * <tr><td>q</td><td>[B, N, H, D]</td><td>FLOAT, DOUBLE, HALF or BFLOAT16</td></tr>
 * <tr><td>k</td><td>[B, M, Hkv, D]</td><td>as q</td></tr>
 * <tr><td>v</td><td>[B, M, Hkv, Dv]</td><td>as q</td></tr>
 * <tr><td>indices</td><td>[B, N, Hkv, topN], each row ascending block numbers below ⌈M/l′⌉ and then
 *     −1s, as {@link NsaSelect} gives them</td><td>INT</td></tr>
 * <tr><td>mask</td><td>[B, M], nonzero for a real token; may be absent</td><td>as q, or BOOL</td></tr>
 * <tr><td>o</td><td>[B, N, H, Dv]</td><td>as q</td></tr>
 * <tr><td>lse</td><td>[B, H, N]</td><td>FLOAT for half types, else as q</td></tr>
 * </table>
 *
 * <p>Half types are computed in float32. D and Dv are at most 256. Same inputs give the same bits.
 *
 * <p>Under nd4j-native the numbers in indices are checked before anything is computed. Under
 * nd4j-cuda they lie on the device and are not looked at: other rows give undefined results there.
 */
public final class NsaSelectedAttention extends NsaOp {

  /** For {@code SameDiff.load}. */
  public NsaSelectedAttention() {}

  /**
   * The op on arrays; {@code Nd4j.exec} gives [o, lse].
   *
   * @param mask or null
   * @param selectionBlock l′, at least 1
   * @param scale factor of the products q·k; 0 for 1/√D
   * @throws IllegalArgumentException if an argument is not as described above
   * @throws io.github.gatedfwa.nativeops.NativeLibraryException if there is no native library
   */
  public NsaSelectedAttention(
      INDArray q,
      INDArray k,
      INDArray v,
      INDArray indices,
      INDArray mask,
      long selectionBlock,
      double scale) {
    this(q, k, v, indices, mask, selectionBlock, scale, null);
  }

  /** The op on arrays, into o and lse, which must not overlap any input. See above. */
  public NsaSelectedAttention(
      INDArray q,
      INDArray k,
      INDArray v,
      INDArray indices,
      INDArray mask,
      long selectionBlock,
      double scale,
      INDArray o,
      INDArray lse) {
    this(q, k, v, indices, mask, selectionBlock, scale, new INDArray[] {o, lse});
  }

  private NsaSelectedAttention(
      INDArray q,
      INDArray k,
      INDArray v,
      INDArray indices,
      INDArray mask,
      long selectionBlock,
      double scale,
      INDArray[] outputs) {
    super(new INDArray[] {q, k, v, indices, mask}, outputs);
    NsaArguments.selected(NsaArguments.SELECTED, q, k, v, indices, mask, selectionBlock, scale);
    addArguments(scale, mask != null, selectionBlock);
  }

  /**
   * The op in a graph; {@link #outputVariables()} are o and lse. Gradients flow from o; a gradient
   * that arrives at lse is refused.
   *
   * @param indices gets no gradient
   * @param mask or null; gets a gradient of zero
   */
  public NsaSelectedAttention(
      SameDiff sameDiff,
      SDVariable q,
      SDVariable k,
      SDVariable v,
      SDVariable indices,
      SDVariable mask,
      long selectionBlock,
      double scale) {
    super(
        sameDiff,
        new SDVariable[] {
          Arguments.present(NsaArguments.SELECTED, "q", q),
          Arguments.present(NsaArguments.SELECTED, "k", k),
          Arguments.present(NsaArguments.SELECTED, "v", v),
          Arguments.present(NsaArguments.SELECTED, "indices", indices),
          mask
        });
    NsaArguments.selectionBlock(NsaArguments.SELECTED, selectionBlock);
    Arguments.scale(NsaArguments.SELECTED, scale);
    addArguments(scale, mask != null, selectionBlock);
  }

  /** l′: how many tokens a block has. */
  public long selectionBlock() {
    return getIArgument(0);
  }

  @Override
  public String opName() {
    return NsaArguments.SELECTED;
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
    requireNoGradientOfLse(gradients.get(1));
    SDVariable[] inputs = args();
    SDVariable mask = hasMask() ? inputs[4] : null;
    SDVariable[] outputs = outputVariables();
    List<SDVariable> result =
        new ArrayList<>(
            Arrays.asList(
                new NsaSelectedAttentionBp(
                        sameDiff,
                        inputs[0],
                        inputs[1],
                        inputs[2],
                        inputs[3],
                        mask,
                        outputs[0],
                        outputs[1],
                        gradients.get(0),
                        selectionBlock(),
                        scale())
                    .outputVariables()));
    result.add(sameDiff.zerosLike(inputs[3]));
    if (mask != null && mask.dataType().isFPType()) {
      result.add(sameDiff.zerosLike(mask));
    }
    return result;
  }
}
