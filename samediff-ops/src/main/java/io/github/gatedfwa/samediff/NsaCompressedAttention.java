package io.github.gatedfwa.samediff;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * Attention over compressed blocks of tokens, the native op {@code nsa_compressed_attention}: the
 * compression branch of native sparse attention (arXiv 2502.11089, section 3.3.1).
 *
 * <p>B batch, N query length, M ≥ N key length, H query heads, Hkv key/value heads (H is a multiple
 * of Hkv), D head size of q and k, Dv of v; blocks of l tokens every d tokens (d divides l). Block
 * c stands for the tokens [c·d, c·d + l); there are C = ⌊(M − l)/d⌋ + 1 of them, 0 if M &lt; l.
 * Query t has the absolute position p = M − N + t and sees the blocks that are complete, c·d + l −
 * 1 ≤ p:
 *
 * <pre>
 *   s_pc = scale · (q_p · kCmp_c)
 *   P    = softmax of s_p over the visible, unmasked c
 *   o_p  = Σ_c P_pc vCmp_c      lse_p = log Σ_c exp(s_pc)   (natural logarithm)
 * </pre>
 *
 * <p>A row that sees no unmasked block gives o = 0 and lse = −∞, and passes no gradient.
 *
 * <table>
 * <caption>Arrays; any strides</caption>
 * <tr><td>q</td><td>[B, N, H, D]</td><td>FLOAT, DOUBLE, HALF or BFLOAT16</td></tr>
 * <tr><td>kCmp</td><td>[B, C, Hkv, D]</td><td>as q</td></tr>
 * <tr><td>vCmp</td><td>[B, C, Hkv, Dv]</td><td>as q</td></tr>
 * <tr><td>mask</td><td>[B, C], nonzero for a block that may be seen; may be absent: see
 *     {@link NDNsa#blockMask}</td><td>as q, or BOOL</td></tr>
 * <tr><td>o</td><td>[B, N, H, Dv]</td><td>as q</td></tr>
 * <tr><td>lse</td><td>[B, H, N]</td><td>FLOAT for half types, else as q</td></tr>
 * </table>
 *
 * <p>Half types are computed in float32. D and Dv are at most 256. Same inputs give the same bits.
 */
public final class NsaCompressedAttention extends NsaOp {

  /** For {@code SameDiff.load}. */
  public NsaCompressedAttention() {}

  /**
   * The op on arrays; {@code Nd4j.exec} gives [o, lse].
   *
   * @param mask or null
   * @param blockLength l, at least 1
   * @param stride d, a divisor of l
   * @param keyLength M; 0 for N
   * @param scale factor of the products q·k; 0 for 1/√D
   * @throws IllegalArgumentException if an argument is not as described above
   * @throws io.github.gatedfwa.nativeops.NativeLibraryException if there is no native library
   */
  public NsaCompressedAttention(
      INDArray q,
      INDArray kCmp,
      INDArray vCmp,
      INDArray mask,
      long blockLength,
      long stride,
      long keyLength,
      double scale) {
    this(q, kCmp, vCmp, mask, blockLength, stride, keyLength, scale, null);
  }

  /** The op on arrays, into o and lse, which must not overlap any input. See above. */
  public NsaCompressedAttention(
      INDArray q,
      INDArray kCmp,
      INDArray vCmp,
      INDArray mask,
      long blockLength,
      long stride,
      long keyLength,
      double scale,
      INDArray o,
      INDArray lse) {
    this(q, kCmp, vCmp, mask, blockLength, stride, keyLength, scale, new INDArray[] {o, lse});
  }

  private NsaCompressedAttention(
      INDArray q,
      INDArray kCmp,
      INDArray vCmp,
      INDArray mask,
      long blockLength,
      long stride,
      long keyLength,
      double scale,
      INDArray[] outputs) {
    super(new INDArray[] {q, kCmp, vCmp, mask}, outputs);
    NsaArguments.compressed(
        NsaArguments.COMPRESSED, q, kCmp, vCmp, mask, blockLength, stride, keyLength, scale);
    addArguments(scale, mask != null, blockLength, stride, keyLength);
  }

  /**
   * The op in a graph; {@link #outputVariables()} are o and lse. Gradients flow from o; a gradient
   * that arrives at lse is refused.
   *
   * @param mask or null; gets a gradient of zero
   */
  public NsaCompressedAttention(
      SameDiff sameDiff,
      SDVariable q,
      SDVariable kCmp,
      SDVariable vCmp,
      SDVariable mask,
      long blockLength,
      long stride,
      long keyLength,
      double scale) {
    super(
        sameDiff,
        new SDVariable[] {
          Arguments.present(NsaArguments.COMPRESSED, "q", q),
          Arguments.present(NsaArguments.COMPRESSED, "kCmp", kCmp),
          Arguments.present(NsaArguments.COMPRESSED, "vCmp", vCmp),
          mask
        });
    NsaArguments.compression(NsaArguments.COMPRESSED, blockLength, stride);
    NsaArguments.keyLength(NsaArguments.COMPRESSED, keyLength);
    Arguments.scale(NsaArguments.COMPRESSED, scale);
    addArguments(scale, mask != null, blockLength, stride, keyLength);
  }

  /** l: how many tokens a block stands for. */
  public long blockLength() {
    return getIArgument(0);
  }

  /** d: how many tokens lie between the starts of two blocks. */
  public long stride() {
    return getIArgument(1);
  }

  /** M; 0 stands for the query length. */
  public long keyLength() {
    return getIArgument(2);
  }

  @Override
  public String opName() {
    return NsaArguments.COMPRESSED;
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
    SDVariable mask = hasMask() ? inputs[3] : null;
    SDVariable[] outputs = outputVariables();
    List<SDVariable> result =
        new ArrayList<>(
            Arrays.asList(
                new NsaCompressedAttentionBp(
                        sameDiff,
                        inputs[0],
                        inputs[1],
                        inputs[2],
                        mask,
                        outputs[0],
                        outputs[1],
                        gradients.get(0),
                        blockLength(),
                        stride(),
                        keyLength(),
                        scale())
                    .outputVariables()));
    if (mask != null && mask.dataType().isFPType()) {
      result.add(sameDiff.zerosLike(mask));
    }
    return result;
  }
}
