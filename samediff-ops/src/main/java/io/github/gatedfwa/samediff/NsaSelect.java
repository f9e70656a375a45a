package io.github.gatedfwa.samediff;

import java.util.ArrayList;
import java.util.List;
import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * The choice of blocks, the native op {@code nsa_select}: the selection of native sparse attention
 * (arXiv 2502.11089, equations 8 to 11). Letters as in {@link NsaCompressedAttention}; selection
 * blocks have l′ tokens, a multiple of l.
 *
 * <p>Each query and key/value head gets up to topN blocks of l′ tokens. Block s has the importance
 *
 * <pre>
 *   imp_s = Σ over the heads of the group Σ_{m=0}^{l′/d−1} Σ_{n=0}^{l/d−1} P_pc,  c = (l′/d)·s + m − n
 * </pre>
 *
 * where P = exp(scale · q·kCmp − lse) is that of the compressed attention: each compressed block
 * counts once for every d tokens that it shares with s. Candidates are the blocks that start at or
 * before p. Block 0, the block of p and the one before it are always taken and count as three of
 * the topN; the others are taken by importance, ties to the lower index. The result is in ascending
 * order, with −1 where there are fewer than topN. No gradient flows through the choice.
 *
 * <p>With a mask, a block is a candidate only if an unmasked compressed block that p sees shares a
 * token with it, and the first of them is always taken in place of block 0. So padding on the left,
 * a multiple of l′ long, leaves the choice as it was. The block of p is taken whatever the mask.
 *
 * <table>
 * <caption>Arrays; any strides</caption>
 * <tr><td>q</td><td>[B, N, H, D]</td><td>FLOAT, DOUBLE, HALF or BFLOAT16</td></tr>
 * <tr><td>kCmp</td><td>[B, C, Hkv, D]</td><td>as q</td></tr>
 * <tr><td>lse</td><td>[B, H, N], from {@link NsaCompressedAttention}</td>
 *     <td>FLOAT for half types, else as q</td></tr>
 * <tr><td>mask</td><td>[B, C], nonzero for a block that may be seen; may be absent</td>
 *     <td>as q, or BOOL</td></tr>
 * <tr><td>indices</td><td>[B, N, Hkv, topN]</td><td>INT</td></tr>
 * </table>
 *
 * <p>A NaN among the importances counts as 0. Same inputs give the same choice.
 */
public final class NsaSelect extends NsaOp {

  /** For {@code SameDiff.load}. */
  public NsaSelect() {}

  /**
   * The op on arrays; {@code Nd4j.exec} gives [indices].
   *
   * @param lse result of {@link NsaCompressedAttention}
   * @param mask or null
   * @param blockLength l, at least 1
   * @param stride d, a divisor of l
   * @param selectionBlock l′, a multiple of l
   * @param topN how many blocks a query gets, at least 3
   * @param keyLength M; 0 for N
   * @param scale factor of the products q·k; 0 for 1/√D
   * @throws IllegalArgumentException if an argument is not as described above
   * @throws io.github.gatedfwa.nativeops.NativeLibraryException if there is no native library
   */
  public NsaSelect(
      INDArray q,
      INDArray kCmp,
      INDArray lse,
      INDArray mask,
      long blockLength,
      long stride,
      long selectionBlock,
      long topN,
      long keyLength,
      double scale) {
    this(q, kCmp, lse, mask, blockLength, stride, selectionBlock, topN, keyLength, scale, null);
  }

  /** The op on arrays, into indices unless that is null. See above. */
  public NsaSelect(
      INDArray q,
      INDArray kCmp,
      INDArray lse,
      INDArray mask,
      long blockLength,
      long stride,
      long selectionBlock,
      long topN,
      long keyLength,
      double scale,
      INDArray indices) {
    super(new INDArray[] {q, kCmp, lse, mask}, indices == null ? null : new INDArray[] {indices});
    NsaArguments.select(
        NsaArguments.SELECT,
        q,
        kCmp,
        lse,
        mask,
        blockLength,
        stride,
        selectionBlock,
        topN,
        keyLength,
        scale);
    addArguments(scale, mask != null, blockLength, stride, selectionBlock, topN, keyLength);
  }

  /** The op in a graph; {@link #outputVariable()} is indices. */
  public NsaSelect(
      SameDiff sameDiff,
      SDVariable q,
      SDVariable kCmp,
      SDVariable lse,
      SDVariable mask,
      long blockLength,
      long stride,
      long selectionBlock,
      long topN,
      long keyLength,
      double scale) {
    super(
        sameDiff,
        new SDVariable[] {
          Arguments.present(NsaArguments.SELECT, "q", q),
          Arguments.present(NsaArguments.SELECT, "kCmp", kCmp),
          Arguments.present(NsaArguments.SELECT, "lse", lse),
          mask
        });
    NsaArguments.compression(NsaArguments.SELECT, blockLength, stride);
    NsaArguments.selection(NsaArguments.SELECT, blockLength, selectionBlock, topN);
    NsaArguments.keyLength(NsaArguments.SELECT, keyLength);
    Arguments.scale(NsaArguments.SELECT, scale);
    addArguments(scale, mask != null, blockLength, stride, selectionBlock, topN, keyLength);
  }

  /** l: how many tokens a compressed block stands for. */
  public long blockLength() {
    return getIArgument(0);
  }

  /** d: how many tokens lie between the starts of two compressed blocks. */
  public long stride() {
    return getIArgument(1);
  }

  /** l′: how many tokens a selection block has. */
  public long selectionBlock() {
    return getIArgument(2);
  }

  /** How many blocks a query gets at most. */
  public long topN() {
    return getIArgument(3);
  }

  /** M; 0 stands for the query length. */
  public long keyLength() {
    return getIArgument(4);
  }

  @Override
  public String opName() {
    return NsaArguments.SELECT;
  }

  @Override
  public int getNumOutputs() {
    return 1;
  }

  @Override
  public List<DataType> calculateOutputDataTypes(List<DataType> dataTypes) {
    return List.of(DataType.INT32);
  }

  /** Zeros: the choice has no gradient. */
  @Override
  public List<SDVariable> doDiff(List<SDVariable> gradients) {
    List<SDVariable> result = new ArrayList<>();
    for (SDVariable input : args()) {
      if (input.dataType().isFPType()) {
        result.add(sameDiff.zerosLike(input));
      }
    }
    return result;
  }
}
