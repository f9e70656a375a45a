package io.github.gatedfwa.samediff;

import java.util.List;
import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * The gradients of {@link NsaCompressedAttention}, the native op {@code
 * nsa_compressed_attention_bp}. With δ_p = dO_p · o_p and dS = P ∘ (dO vCmpᵀ − δ):
 *
 * <pre>  dq = scale · dS kCmp     dkCmp = scale · dSᵀ q     dvCmp = Pᵀ dO</pre>
 *
 * <p>Inputs are those of the forward op, its results o and lse, and dO [B, N, H, Dv]; dq, dkCmp and
 * dvCmp have the shapes and types of q, kCmp and vCmp. dkCmp and dvCmp are summed over the heads of
 * a group.
 */
public final class NsaCompressedAttentionBp extends NsaOp {

  private static final String NAME = NsaArguments.COMPRESSED + "_bp";

  /** For {@code SameDiff.load}. */
  public NsaCompressedAttentionBp() {}

  /**
   * The op on arrays; {@code Nd4j.exec} gives [dq, dkCmp, dvCmp].
   *
   * @param mask or null, as in the forward op
   * @param o result of the forward op
   * @param lse result of the forward op
   * @param dO gradient of the loss by o
   * @throws IllegalArgumentException if an argument is not as described
   * @throws io.github.gatedfwa.nativeops.NativeLibraryException if there is no native library
   */
  public NsaCompressedAttentionBp(
      INDArray q,
      INDArray kCmp,
      INDArray vCmp,
      INDArray mask,
      INDArray o,
      INDArray lse,
      INDArray dO,
      long blockLength,
      long stride,
      long keyLength,
      double scale) {
    this(q, kCmp, vCmp, mask, o, lse, dO, blockLength, stride, keyLength, scale, null);
  }

  /**
   * The op on arrays, into {@code outputs}: dq, dkCmp and dvCmp. They must not overlap each other
   * or any input. See above.
   */
  public NsaCompressedAttentionBp(
      INDArray q,
      INDArray kCmp,
      INDArray vCmp,
      INDArray mask,
      INDArray o,
      INDArray lse,
      INDArray dO,
      long blockLength,
      long stride,
      long keyLength,
      double scale,
      INDArray[] outputs) {
    super(new INDArray[] {q, kCmp, vCmp, mask, o, lse, dO}, outputs);
    NsaArguments.compressed(NAME, q, kCmp, vCmp, mask, blockLength, stride, keyLength, scale);
    Arguments.results(NAME, q, vCmp, o, lse, dO);
    addArguments(scale, mask != null, blockLength, stride, keyLength);
  }

  /** The op in a graph; {@link #outputVariables()} are dq, dkCmp and dvCmp. */
  public NsaCompressedAttentionBp(
      SameDiff sameDiff,
      SDVariable q,
      SDVariable kCmp,
      SDVariable vCmp,
      SDVariable mask,
      SDVariable o,
      SDVariable lse,
      SDVariable dO,
      long blockLength,
      long stride,
      long keyLength,
      double scale) {
    super(
        sameDiff,
        new SDVariable[] {
          Arguments.present(NAME, "q", q),
          Arguments.present(NAME, "kCmp", kCmp),
          Arguments.present(NAME, "vCmp", vCmp),
          mask,
          Arguments.present(NAME, "o", o),
          Arguments.present(NAME, "lse", lse),
          Arguments.present(NAME, "dO", dO)
        });
    NsaArguments.compression(NAME, blockLength, stride);
    NsaArguments.keyLength(NAME, keyLength);
    Arguments.scale(NAME, scale);
    addArguments(scale, mask != null, blockLength, stride, keyLength);
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
