package io.github.gatedfwa.samediff;

import java.util.Arrays;
import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;
import org.nd4j.autodiff.samediff.ops.SDOps;
import org.nd4j.linalg.api.buffer.DataType;

/**
 * Native sparse attention (arXiv 2502.11089) in SameDiff graphs: its ops, compression, and the
 * three branches with GatedFWA as the window. Builds the native ops where they can be loaded, else
 * the same functions from ND4J's own ops: see {@link GatedFwaOps}. Shapes and types are those of
 * {@link NsaCompressedAttention}, {@link NsaSelect} and {@link NsaSelectedAttention}; they are
 * checked when the graph runs.
 */
public class SDNsa extends SDOps {

  private static final String OP = "nsa";

  /** Builds into the given graph. */
  public SDNsa(SameDiff sameDiff) {
    super(sameDiff);
  }

  /**
   * The three branches over the same queries, mixed by gates:
   *
   * <pre>  o = g_cmp ∘ o_cmp + g_slc ∘ o_slc + g_win ∘ o_win</pre>
   *
   * where o_cmp attends to the compressed blocks, o_slc to the selected ones and o_win is GatedFWA
   * over the last w tokens.
   *
   * @param q queries [B, N, H, D]
   * @param k keys of the selected attention [B, M, Hkv, D]; M is N unless it is known when the
   *     graph is built
   * @param v values of the selected attention [B, M, Hkv, Dv]
   * @param kCmp compressed keys [B, C, Hkv, D], from {@link #compressMean} or {@link #compressMlp}
   * @param vCmp compressed values [B, C, Hkv, Dv]
   * @param kWin keys of the window [B, M, Hkv, D]; may be k
   * @param vWin values of the window [B, M, Hkv, Dv]; may be v
   * @param alpha decay of the window [B, M, H] from {@link SDGatedFwa#gate}, or null
   * @param gates g_cmp, g_slc and g_win of each head, [B, N, H, 3], as a rule the sigmoid of a
   *     projection
   * @param mask [B, M], nonzero for a real token, or null
   * @param config l, d, l′, topN and w
   * @return o [B, N, H, Dv]
   * @throws IllegalArgumentException if M is known and smaller than a known N, or a variable but
   *     alpha and mask is null
   */
  public SDVariable attention(
      SDVariable q,
      SDVariable k,
      SDVariable v,
      SDVariable kCmp,
      SDVariable vCmp,
      SDVariable kWin,
      SDVariable vWin,
      SDVariable alpha,
      SDVariable gates,
      SDVariable mask,
      NsaConfig config) {
    return attention(null, q, k, v, kCmp, vCmp, kWin, vWin, alpha, gates, mask, config);
  }

  /**
   * As the method of that name without one.
   *
   * @param name of o; null for one that SameDiff makes up
   */
  public SDVariable attention(
      String name,
      SDVariable q,
      SDVariable k,
      SDVariable v,
      SDVariable kCmp,
      SDVariable vCmp,
      SDVariable kWin,
      SDVariable vWin,
      SDVariable alpha,
      SDVariable gates,
      SDVariable mask,
      NsaConfig config) {
    long l = config.blockLength();
    long d = config.stride();
    Arguments.present(OP, "q", q);
    Arguments.present(OP, "k", k);
    Arguments.present(OP, "v", v);
    Arguments.present(OP, "kCmp", kCmp);
    Arguments.present(OP, "vCmp", vCmp);
    Arguments.present(OP, "kWin", kWin);
    Arguments.present(OP, "vWin", vWin);
    Arguments.present(OP, "gates", gates);
    long length = lengthIfKnown(k);
    if (length > 0 && length < lengthIfKnown(q)) {
      throw Arguments.wrong(
          OP,
          "k has shape "
              + Arrays.toString(k.getShape())
              + "; expected at least as many tokens as q has, "
              + lengthIfKnown(q));
    }
    SDVariable blockMask = mask == null ? null : blockMask(mask, l, d);
    SDVariable[] compressed = compressedAttention(q, kCmp, vCmp, blockMask, l, d, length, 0);
    SDVariable indices =
        select(
            q,
            kCmp,
            compressed[1],
            blockMask,
            l,
            d,
            config.selectionBlock(),
            config.topN(),
            length,
            0);
    SDVariable selected = selectedAttention(q, k, v, indices, mask, config.selectionBlock(), 0)[0];
    SDVariable window =
        new SDGatedFwa(sd).gatedFwa(q, kWin, vWin, alpha, mask, config.window(), 0)[0];
    SDVariable[] weight = sd.unstack(gates, 3, 3);
    SDVariable o =
        sd.expandDims(weight[0], 3)
            .mul(compressed[0])
            .add(sd.expandDims(weight[1], 3).mul(selected))
            .add(sd.expandDims(weight[2], 3).mul(window));
    return named(o, name);
  }

  /**
   * Attention over compressed blocks.
   *
   * @param q queries [B, N, H, D]
   * @param kCmp compressed keys [B, C, Hkv, D]
   * @param vCmp compressed values [B, C, Hkv, Dv]
   * @param mask [B, C], nonzero for a block that may be seen, or null: see {@link #blockMask}; gets
   *     no gradient
   * @param blockLength l, at least 1
   * @param stride d, a divisor of l
   * @param keyLength M, the number of tokens that were compressed; 0 for N
   * @param scale factor of the products q·k; 0 for 1/√D
   * @return o [B, N, H, Dv] and lse [B, H, N]; the native op takes gradients through o only
   * @throws IllegalArgumentException if a number is not as described or a variable is null that
   *     must not be
   */
  public SDVariable[] compressedAttention(
      SDVariable q,
      SDVariable kCmp,
      SDVariable vCmp,
      SDVariable mask,
      long blockLength,
      long stride,
      long keyLength,
      double scale) {
    return compressedAttention(null, q, kCmp, vCmp, mask, blockLength, stride, keyLength, scale);
  }

  /**
   * As the method of that name without one.
   *
   * @param name of o; lse is called name:1. Null for names that SameDiff makes up
   */
  public SDVariable[] compressedAttention(
      String name,
      SDVariable q,
      SDVariable kCmp,
      SDVariable vCmp,
      SDVariable mask,
      long blockLength,
      long stride,
      long keyLength,
      double scale) {
    NsaArguments.compression(NsaArguments.COMPRESSED, blockLength, stride);
    NsaArguments.keyLength(NsaArguments.COMPRESSED, keyLength);
    Arguments.scale(NsaArguments.COMPRESSED, scale);
    return named(
        GatedFwaOps.isNativeAvailable()
            ? new NsaCompressedAttention(
                    sd, q, kCmp, vCmp, mask, blockLength, stride, keyLength, scale)
                .outputVariables()
            : new ComposedNsaGraph(sd)
                .compressedAttention(q, kCmp, vCmp, mask, blockLength, stride, keyLength, scale),
        name);
  }

  /**
   * The blocks that each query and key/value head attends to. No gradient flows through the choice.
   *
   * @param q queries [B, N, H, D]
   * @param kCmp compressed keys [B, C, Hkv, D]
   * @param lse the second result of {@link #compressedAttention}
   * @param mask as in {@link #compressedAttention}
   * @param blockLength l, at least 1
   * @param stride d, a divisor of l
   * @param selectionBlock l′, a multiple of l
   * @param topN how many blocks a query gets, at least 3
   * @param keyLength M, the number of tokens that were compressed; 0 for N
   * @param scale factor of the products q·k; 0 for 1/√D
   * @return indices [B, N, Hkv, topN], INT, ascending, then −1
   * @throws IllegalArgumentException if a number is not as described or a variable is null that
   *     must not be
   */
  public SDVariable select(
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
    return select(
        null, q, kCmp, lse, mask, blockLength, stride, selectionBlock, topN, keyLength, scale);
  }

  /**
   * As the method of that name without one.
   *
   * @param name of indices; null for one that SameDiff makes up
   */
  public SDVariable select(
      String name,
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
    NsaArguments.compression(NsaArguments.SELECT, blockLength, stride);
    NsaArguments.selection(NsaArguments.SELECT, blockLength, selectionBlock, topN);
    NsaArguments.keyLength(NsaArguments.SELECT, keyLength);
    Arguments.scale(NsaArguments.SELECT, scale);
    return named(
        GatedFwaOps.isNativeAvailable()
            ? new NsaSelect(
                    sd,
                    q,
                    kCmp,
                    lse,
                    mask,
                    blockLength,
                    stride,
                    selectionBlock,
                    topN,
                    keyLength,
                    scale)
                .outputVariable()
            : new ComposedNsaGraph(sd)
                .select(
                    q,
                    kCmp,
                    lse,
                    mask,
                    blockLength,
                    stride,
                    selectionBlock,
                    topN,
                    keyLength,
                    scale),
        name);
  }

  /**
   * Attention over the tokens of chosen blocks.
   *
   * @param q queries [B, N, H, D]
   * @param k keys [B, M, Hkv, D]
   * @param v values [B, M, Hkv, Dv]
   * @param indices result of {@link #select}; gets no gradient
   * @param mask [B, M], nonzero for a real token, or null; gets no gradient
   * @param selectionBlock l′, at least 1
   * @param scale factor of the products q·k; 0 for 1/√D
   * @return o [B, N, H, Dv] and lse [B, H, N]; the native op takes gradients through o only
   * @throws IllegalArgumentException if a number is not as described or a variable is null that
   *     must not be
   */
  public SDVariable[] selectedAttention(
      SDVariable q,
      SDVariable k,
      SDVariable v,
      SDVariable indices,
      SDVariable mask,
      long selectionBlock,
      double scale) {
    return selectedAttention(null, q, k, v, indices, mask, selectionBlock, scale);
  }

  /**
   * As the method of that name without one.
   *
   * @param name of o; lse is called name:1. Null for names that SameDiff makes up
   */
  public SDVariable[] selectedAttention(
      String name,
      SDVariable q,
      SDVariable k,
      SDVariable v,
      SDVariable indices,
      SDVariable mask,
      long selectionBlock,
      double scale) {
    NsaArguments.selectionBlock(NsaArguments.SELECTED, selectionBlock);
    Arguments.scale(NsaArguments.SELECTED, scale);
    return named(
        GatedFwaOps.isNativeAvailable()
            ? new NsaSelectedAttention(sd, q, k, v, indices, mask, selectionBlock, scale)
                .outputVariables()
            : new ComposedNsaGraph(sd)
                .selectedAttention(q, k, v, indices, mask, selectionBlock, scale),
        name);
  }

  /**
   * Compression by the mean of each block's tokens.
   *
   * @param x keys or values [B, M, Hkv, D]
   * @param blockLength l, at least 1
   * @param stride d, a divisor of l
   * @return [B, C, Hkv, D] with C = ⌊(M − l)/d⌋ + 1, or 0 if M &lt; l
   * @throws IllegalArgumentException if a number is not as described or a variable is null that
   *     must not be
   */
  public SDVariable compressMean(SDVariable x, long blockLength, long stride) {
    NsaArguments.compression(NsaCompression.MEAN, blockLength, stride);
    Arguments.present(NsaCompression.MEAN, "x", x);
    return new NsaCompression.Graph(sd, x, blockLength, stride).mean(x);
  }

  /**
   * Compression by an MLP with one hidden layer per key/value head; see {@link NDNsa#compressMlp}.
   *
   * @param x keys or values [B, M, Hkv, D]
   * @param position [Hkv, l, D]: the learned embedding of a token's position in its block
   * @param w1 [Hkv, l·D, hidden]
   * @param b1 [Hkv, hidden]
   * @param w2 [Hkv, hidden, Dout]
   * @param b2 [Hkv, Dout]
   * @param blockLength l, at least 1
   * @param stride d, a divisor of l
   * @return [B, C, Hkv, Dout] with C = ⌊(M − l)/d⌋ + 1, or 0 if M &lt; l
   * @throws IllegalArgumentException if a number is not as described or a variable is null that
   *     must not be
   */
  public SDVariable compressMlp(
      SDVariable x,
      SDVariable position,
      SDVariable w1,
      SDVariable b1,
      SDVariable w2,
      SDVariable b2,
      long blockLength,
      long stride) {
    NsaArguments.compression(NsaCompression.MLP, blockLength, stride);
    Arguments.present(NsaCompression.MLP, "x", x);
    Arguments.present(NsaCompression.MLP, "position", position);
    Arguments.present(NsaCompression.MLP, "w1", w1);
    Arguments.present(NsaCompression.MLP, "b1", b1);
    Arguments.present(NsaCompression.MLP, "w2", w2);
    Arguments.present(NsaCompression.MLP, "b2", b2);
    return new NsaCompression.Graph(sd, x, blockLength, stride)
        .mlp(x, new NsaCompression.Mlp<>(position, w1, b1, w2, b2));
  }

  /**
   * The mask over blocks that belongs to a mask over tokens; see {@link NDNsa#blockMask}.
   *
   * @param mask [B, M], nonzero for a real token
   * @return [B, C] of 1 and 0, of the mask's type
   * @throws IllegalArgumentException if a number is not as described or a variable is null that
   *     must not be
   */
  public SDVariable blockMask(SDVariable mask, long blockLength, long stride) {
    NsaArguments.compression(NsaCompression.MASK, blockLength, stride);
    Arguments.present(NsaCompression.MASK, "mask", mask);
    SDVariable padded = mask.castTo(DataType.FLOAT).neq(0).castTo(DataType.FLOAT).rsub(1);
    SDVariable x = sd.expandDims(sd.expandDims(padded, 2), 3);
    return sd.squeeze(sd.squeeze(compressMean(x, blockLength, stride), 3), 2)
        .eq(0)
        .castTo(mask.dataType());
  }

  /** The second dimension, or 0. */
  private static long lengthIfKnown(SDVariable x) {
    long[] shape = x.getShape();
    return shape == null || shape.length < 2 ? 0 : Math.max(0, shape[1]);
  }

  private SDVariable named(SDVariable variable, String name) {
    return name == null ? variable : sd.updateVariableNameAndReference(variable, name);
  }

  private SDVariable[] named(SDVariable[] outputs, String name) {
    if (name != null) {
      outputs[0] = named(outputs[0], name);
      outputs[1] = named(outputs[1], name + ":1");
    }
    return outputs;
  }
}
