package io.github.gatedfwa.layers.runtime;

import io.github.gatedfwa.layers.AttentionLayer;
import io.github.gatedfwa.samediff.NDNsa;
import java.util.List;
import java.util.function.LongUnaryOperator;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * Attention to the tokens of chosen blocks (formulas: {@link
 * io.github.gatedfwa.layers.TokenSelectionLayer}). The choice comes from a {@link
 * CompressionBranch} over the same queries and has no gradient.
 */
final class SelectionBranch {
  /** Name of the cache. */
  static final String ALL = "selection";

  private static final NDNsa OPS = new NDNsa();

  private final Attention<?> layer;
  private final long keyColumn;
  private final long valueColumn;
  private final int blockLength;
  private final int stride;
  private final int selectionBlock;
  private final int topN;

  /**
   * @param key name of the projections of keys; so the values
   */
  SelectionBranch(
      Attention<?> layer,
      String key,
      String value,
      int blockLength,
      int stride,
      int selectionBlock,
      int topN) {
    this.layer = layer;
    keyColumn = layer.projections().column(key);
    valueColumn = layer.projections().column(value);
    this.blockLength = blockLength;
    this.stride = stride;
    this.selectionBlock = selectionBlock;
    this.topN = topN;
  }

  /** What {@link #forward} leaves to {@link #backward}. */
  static final class Result {
    private INDArray keyScales; // [R, kvHeads], null without normalisation
    private INDArray keys; // [minibatch, tokens, kvHeads, headSize]
    private INDArray values; // the same
    private INDArray opMask; // [minibatch, tokens], null if all are real
    private INDArray indices; // [minibatch, time, kvHeads, topN]
    private INDArray lse; // [minibatch, heads, time]

    INDArray attended; // [minibatch, time, heads, headSize]
  }

  /** The cache: all tokens. */
  static Caches.Spec cache(Attention<?> layer, long minibatch) {
    AttentionLayer c = layer.layerConf();
    return new Caches.Spec(
        ALL,
        new KeyValueCache.Shape(
            layer.computeType(), minibatch, 0, c.getNKvHeads(), c.getHeadSize(), KeyValueCache.ALL),
        LongUnaryOperator.identity(),
        true,
        List.of());
  }

  /**
   * Turns and normalises the keys in place, chooses, and attends.
   *
   * @param compression result for the same tokens
   * @param cache null for none
   */
  Result forward(Pass p, CompressionBranch.Result compression, KeyValueCache cache, Scope scope) {
    AttentionLayer c = layer.layerConf();
    int kvHeads = c.getNKvHeads();
    int size = c.getHeadSize();
    long minibatch = p.input.minibatch();
    Result r = new Result();
    if (c.isQkNorm()) {
      r.keyScales = scope.matrix(p.input.count(), kvHeads);
    }
    HeadMath.rotateAndNormalise(
        p.projected, keyColumn, kvHeads, size, p.input.time(), p.rotation, r.keyScales);
    if (cache == null) {
      r.keys = Tokens.heads(p.projected, keyColumn, minibatch, kvHeads, size, scope.step());
      r.values = Tokens.heads(p.projected, valueColumn, minibatch, kvHeads, size, scope.step());
      r.opMask = p.opMask;
    } else {
      cache.append(p.input, p.projected, keyColumn, p.projected, valueColumn, null, p.mask);
      r.keys = cache.keys();
      r.values = cache.values();
      r.opMask = cache.mask();
    }
    r.indices =
        compression.keys.isEmpty()
            ? Memory.detached(() -> choose(p, compression))
            : scope.keep(() -> choose(p, compression));
    INDArray[] result =
        scope.keep(
            () ->
                OPS.selectedAttention(
                    p.queries, r.keys, r.values, r.indices, r.opMask, selectionBlock, 0));
    r.attended = result[0];
    r.lse = result[1];
    return r;
  }

  private INDArray choose(Pass p, CompressionBranch.Result compression) {
    return OPS.select(
        p.queries,
        compression.keys,
        compression.lse,
        compression.opMask,
        blockLength,
        stride,
        selectionBlock,
        topN,
        compression.keyLength,
        0);
  }

  /**
   * Writes the gradient of the branch's columns of P.
   *
   * @return gradient of the queries, [minibatch, time, heads, headSize]
   */
  INDArray backward(Pass p, Result r, INDArray dAttended, INDArray dProjected, Scope scope) {
    AttentionLayer c = layer.layerConf();
    INDArray[] gradients =
        OPS.selectedAttentionBp(
            p.queries,
            r.keys,
            r.values,
            r.indices,
            r.opMask,
            r.attended,
            r.lse,
            dAttended,
            selectionBlock,
            0);
    HeadMath.rotateAndNormaliseBackward(
        p.projected,
        keyColumn,
        p.ownRows(gradients[1], scope),
        dProjected,
        keyColumn,
        c.getNKvHeads(),
        c.getHeadSize(),
        p.input.time(),
        p.rotation,
        r.keyScales);
    Matrices.copyToColumns(p.ownRows(gradients[2], scope), dProjected, valueColumn);
    return gradients[0];
  }
}
