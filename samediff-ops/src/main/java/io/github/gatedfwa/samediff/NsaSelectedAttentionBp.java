package io.github.gatedfwa.samediff;

import java.util.List;
import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * The gradients of {@link NsaSelectedAttention}, the native op {@code nsa_selected_attention_bp}.
 * With δ_p = dO_p · o_p and dS = P ∘ (dO Vᵀ − δ):
 *
 * <pre>  dq = scale · dS K     dk = scale · dSᵀ Q     dv = Pᵀ dO</pre>
 *
 * <p>Inputs are those of the forward op, its results o and lse, and dO [B, N, H, Dv]; dq, dk and dv
 * have the shapes and types of q, k and v. dk and dv are summed over the heads of a group and over
 * the queries that chose the block.
 */
public final class NsaSelectedAttentionBp extends NsaOp {

  private static final String NAME = NsaArguments.SELECTED + "_bp";

  /** For {@code SameDiff.load}. */
  public NsaSelectedAttentionBp() {}

  /**
   * The op on arrays; {@code Nd4j.exec} gives [dq, dk, dv].
   *
   * @param mask or null, as in the forward op
   * @param o result of the forward op
   * @param lse result of the forward op
   * @param dO gradient of the loss by o
   * @throws IllegalArgumentException if an argument is not as described
   * @throws io.github.gatedfwa.nativeops.NativeLibraryException if there is no native library
   */
  public NsaSelectedAttentionBp(
      INDArray q,
      INDArray k,
      INDArray v,
      INDArray indices,
      INDArray mask,
      INDArray o,
      INDArray lse,
      INDArray dO,
      long selectionBlock,
      double scale) {
    this(q, k, v, indices, mask, o, lse, dO, selectionBlock, scale, null);
  }

  /**
   * The op on arrays, into {@code outputs}: dq, dk and dv. They must not overlap each other or any
   * input. See above.
   */
  public NsaSelectedAttentionBp(
      INDArray q,
      INDArray k,
      INDArray v,
      INDArray indices,
      INDArray mask,
      INDArray o,
      INDArray lse,
      INDArray dO,
      long selectionBlock,
      double scale,
      INDArray[] outputs) {
    super(new INDArray[] {q, k, v, indices, mask, o, lse, dO}, outputs);
    NsaArguments.selected(NAME, q, k, v, indices, mask, selectionBlock, scale);
    Arguments.results(NAME, q, v, o, lse, dO);
    addArguments(scale, mask != null, selectionBlock);
  }

  /** The op in a graph; {@link #outputVariables()} are dq, dk and dv. */
  public NsaSelectedAttentionBp(
      SameDiff sameDiff,
      SDVariable q,
      SDVariable k,
      SDVariable v,
      SDVariable indices,
      SDVariable mask,
      SDVariable o,
      SDVariable lse,
      SDVariable dO,
      long selectionBlock,
      double scale) {
    super(
        sameDiff,
        new SDVariable[] {
          Arguments.present(NAME, "q", q),
          Arguments.present(NAME, "k", k),
          Arguments.present(NAME, "v", v),
          Arguments.present(NAME, "indices", indices),
          mask,
          Arguments.present(NAME, "o", o),
          Arguments.present(NAME, "lse", lse),
          Arguments.present(NAME, "dO", dO)
        });
    NsaArguments.selectionBlock(NAME, selectionBlock);
    Arguments.scale(NAME, scale);
    addArguments(scale, mask != null, selectionBlock);
  }

  @Override
  public String opName() {
    return NAME;
  }

  @Override
  public int getNumOutputs() {
    return 3;
  }

  @Override
  public List<DataType> calculateOutputDataTypes(List<DataType> dataTypes) {
    DataType type = dataTypes.get(0);
    return List.of(type, type, type);
  }

  @Override
  public List<SDVariable> doDiff(List<SDVariable> gradients) {
    throw new UnsupportedOperationException(NAME + ": second derivatives are not supported");
  }
}
