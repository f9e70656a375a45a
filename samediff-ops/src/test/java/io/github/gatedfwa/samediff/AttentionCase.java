package io.github.gatedfwa.samediff;

import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

/** The inputs of one forward and backward pass; alpha and mask may be null. */
record AttentionCase(
    INDArray q,
    INDArray k,
    INDArray v,
    INDArray alpha,
    INDArray mask,
    INDArray dO,
    long window,
    double scale) {

  /** Standard normal q, k, v and dO; decays between 0 and {@code maxDecay}. */
  static AttentionCase random(
      long seed,
      long batch,
      long queries,
      long keys,
      long heads,
      long kvHeads,
      long headSize,
      long valueSize,
      long window,
      double maxDecay) {
    Nd4j.getRandom().setSeed(seed);
    return new AttentionCase(
        Nd4j.randn(DataType.DOUBLE, batch, queries, heads, headSize),
        Nd4j.randn(DataType.DOUBLE, batch, keys, kvHeads, headSize),
        Nd4j.randn(DataType.DOUBLE, batch, keys, kvHeads, valueSize),
        Nd4j.rand(DataType.DOUBLE, batch, keys, heads).muli(maxDecay),
        null,
        Nd4j.randn(DataType.DOUBLE, batch, queries, heads, valueSize),
        window,
        0);
  }

  AttentionCase withAlpha(INDArray other) {
    return new AttentionCase(q, k, v, other, mask, dO, window, scale);
  }

  AttentionCase withMask(INDArray other) {
    return new AttentionCase(q, k, v, alpha, other, dO, window, scale);
  }

  AttentionCase castTo(DataType type) {
    return new AttentionCase(
        q.castTo(type),
        k.castTo(type),
        v.castTo(type),
        alpha == null ? null : alpha.castTo(NativeOp.accumulatorType(type)),
        mask == null || mask.dataType() == DataType.BOOL ? mask : mask.castTo(type),
        dO.castTo(type),
        window,
        scale);
  }
}
