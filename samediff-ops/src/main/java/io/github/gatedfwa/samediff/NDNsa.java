package io.github.gatedfwa.samediff;

import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

/**
 * Compression and selection of native sparse attention (arXiv 2502.11089) on arrays. Runs the
 * native ops where they can be loaded, else the same functions composed of ND4J's own ops: see
 * {@link GatedFwaOps}. Shapes and types are those of {@link NsaCompressedAttention}, {@link
 * NsaSelect} and {@link NsaSelectedAttention}.
 */
public class NDNsa {

  /** Has no state; any number of threads may share one. */
  public NDNsa() {}

  /**
   * Attention over compressed blocks.
   *
   * @param q queries [B, N, H, D]
   * @param kCmp compressed keys [B, C, Hkv, D]
   * @param vCmp compressed values [B, C, Hkv, Dv]
   * @param mask [B, C], nonzero for a block that may be seen, or null: see {@link #blockMask}
   * @param blockLength l, at least 1
   * @param stride d, a divisor of l
   * @param keyLength M, the number of tokens that were compressed; 0 for N
   * @param scale factor of the products q·k; 0 for 1/√D
   * @return o [B, N, H, Dv] and lse [B, H, N]
   * @throws IllegalArgumentException if an argument is not as {@link NsaCompressedAttention}
   *     describes
   */
  public INDArray[] compressedAttention(
      INDArray q,
      INDArray kCmp,
      INDArray vCmp,
      INDArray mask,
      long blockLength,
      long stride,
      long keyLength,
      double scale) {
    if (GatedFwaOps.isNativeAvailable()) {
      return Nd4j.exec(
          new NsaCompressedAttention(q, kCmp, vCmp, mask, blockLength, stride, keyLength, scale));
    }
    return ComposedNsaArrays.compressedAttention(
        q, kCmp, vCmp, mask, blockLength, stride, keyLength, scale);
  }

  /**
   * The gradients of {@link #compressedAttention}.
   *
   * @param o result of {@link #compressedAttention}
   * @param lse result of {@link #compressedAttention}
   * @param dO gradient of the loss by o, [B, N, H, Dv]
   * @return dq, dkCmp and dvCmp, with the shapes and types of q, kCmp and vCmp
   * @throws IllegalArgumentException if an argument is not as {@link NsaCompressedAttentionBp}
   *     describes
   */
  public INDArray[] compressedAttentionBp(
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
    if (GatedFwaOps.isNativeAvailable()) {
      return Nd4j.exec(
          new NsaCompressedAttentionBp(
              q, kCmp, vCmp, mask, o, lse, dO, blockLength, stride, keyLength, scale));
    }
    return ComposedNsaArrays.compressedAttentionBp(
        q, kCmp, vCmp, mask, o, lse, dO, blockLength, stride, keyLength, scale);
  }

  /**
   * The blocks that each query and key/value head attends to. Has no gradient.
   *
   * @param lse result of {@link #compressedAttention}
   * @param mask as in {@link #compressedAttention}
   * @param selectionBlock l′, a multiple of l
   * @param topN how many blocks a query gets, at least 3
   * @return indices [B, N, Hkv, topN], INT, ascending, then −1
   * @throws IllegalArgumentException if an argument is not as {@link NsaSelect} describes
   */
  public INDArray select(
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
    if (GatedFwaOps.isNativeAvailable()) {
      return Nd4j.exec(
          new NsaSelect(
              q, kCmp, lse, mask, blockLength, stride, selectionBlock, topN, keyLength, scale))[0];
    }
    return ComposedNsaArrays.select(
        q, kCmp, lse, mask, blockLength, stride, selectionBlock, topN, keyLength, scale);
  }

  /**
   * Attention over the tokens of chosen blocks.
   *
   * @param q queries [B, N, H, D]
   * @param k keys [B, M, Hkv, D]
   * @param v values [B, M, Hkv, Dv]
   * @param indices result of {@link #select}
   * @param mask [B, M], nonzero for a real token, or null
   * @param selectionBlock l′, at least 1
   * @param scale factor of the products q·k; 0 for 1/√D
   * @return o [B, N, H, Dv] and lse [B, H, N]
   * @throws IllegalArgumentException if an argument is not as {@link NsaSelectedAttention}
   *     describes
   */
  public INDArray[] selectedAttention(
      INDArray q,
      INDArray k,
      INDArray v,
      INDArray indices,
      INDArray mask,
      long selectionBlock,
      double scale) {
    if (GatedFwaOps.isNativeAvailable()) {
      return Nd4j.exec(new NsaSelectedAttention(q, k, v, indices, mask, selectionBlock, scale));
    }
    return ComposedNsaArrays.selectedAttention(q, k, v, indices, mask, selectionBlock, scale);
  }

  /**
   * The gradients of {@link #selectedAttention}.
   *
   * @param o result of {@link #selectedAttention}
   * @param lse result of {@link #selectedAttention}
   * @param dO gradient of the loss by o, [B, N, H, Dv]
   * @return dq, dk and dv, with the shapes and types of q, k and v
   * @throws IllegalArgumentException if an argument is not as {@link NsaSelectedAttentionBp}
   *     describes
   */
  public INDArray[] selectedAttentionBp(
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
    if (GatedFwaOps.isNativeAvailable()) {
      return Nd4j.exec(
          new NsaSelectedAttentionBp(q, k, v, indices, mask, o, lse, dO, selectionBlock, scale));
    }
    return ComposedNsaArrays.selectedAttentionBp(
        q, k, v, indices, mask, o, lse, dO, selectionBlock, scale);
  }

  /**
   * Compression by the mean of each block's tokens.
   *
   * @param x keys or values [B, M, Hkv, D], of a floating-point type
   * @param blockLength l, at least 1
   * @param stride d, a divisor of l
   * @return [B, C, Hkv, D] with C = ⌊(M − l)/d⌋ + 1, or 0 if M &lt; l
   * @throws IllegalArgumentException if an argument is not as described
   */
  public INDArray compressMean(INDArray x, long blockLength, long stride) {
    return NsaCompression.mean(x, blockLength, stride);
  }

  /**
   * The gradient of {@link #compressMean}.
   *
   * @param gradient of the loss by the result, [B, C, Hkv, D]
   * @param keyLength M
   * @return dx [B, M, Hkv, D]
   * @throws IllegalArgumentException if an argument is not as described
   */
  public INDArray compressMeanBp(INDArray gradient, long keyLength, long blockLength, long stride) {
    return NsaCompression.meanBp(gradient, keyLength, blockLength, stride);
  }

  /**
   * Compression by an MLP with one hidden layer per key/value head: the l tokens of a block, each
   * with the learned embedding of its position in the block, side by side:
   *
   * <pre>  φ(X) = silu((X + position) w1 + b1) w2 + b2,   silu(z) = z · sigmoid(z)</pre>
   *
   * @param x keys or values [B, M, Hkv, D], of a floating-point type
   * @param position [Hkv, l, D], as x
   * @param w1 [Hkv, l·D, hidden], as x; row i·D + j belongs to feature j of token i
   * @param b1 [Hkv, hidden], as x
   * @param w2 [Hkv, hidden, Dout], as x
   * @param b2 [Hkv, Dout], as x
   * @param blockLength l, at least 1
   * @param stride d, a divisor of l
   * @return [B, C, Hkv, Dout] with C = ⌊(M − l)/d⌋ + 1, or 0 if M &lt; l
   * @throws IllegalArgumentException if an argument is not as described
   */
  public INDArray compressMlp(
      INDArray x,
      INDArray position,
      INDArray w1,
      INDArray b1,
      INDArray w2,
      INDArray b2,
      long blockLength,
      long stride) {
    return NsaCompression.mlp(
        x, new NsaCompression.Mlp<>(position, w1, b1, w2, b2), blockLength, stride);
  }

  /**
   * The gradients of {@link #compressMlp}.
   *
   * @param gradient of the loss by the result, [B, C, Hkv, Dout]
   * @return dx, dPosition, dW1, db1, dW2 and db2, with the shapes and types of x and the weights
   * @throws IllegalArgumentException if an argument is not as described
   */
  public INDArray[] compressMlpBp(
      INDArray x,
      INDArray position,
      INDArray w1,
      INDArray b1,
      INDArray w2,
      INDArray b2,
      INDArray gradient,
      long blockLength,
      long stride) {
    return NsaCompression.mlpBp(
        x, new NsaCompression.Mlp<>(position, w1, b1, w2, b2), gradient, blockLength, stride);
  }

  /**
   * The mask over blocks that belongs to a mask over tokens: a block may be seen if all of its
   * tokens are real, for only then is it complete.
   *
   * @param mask [B, M], nonzero for a real token
   * @return [B, C] of 1 and 0, of the mask's type
   * @throws IllegalArgumentException if an argument is not as described
   */
  public INDArray blockMask(INDArray mask, long blockLength, long stride) {
    return NsaCompression.blockMask(mask, blockLength, stride);
  }
}
