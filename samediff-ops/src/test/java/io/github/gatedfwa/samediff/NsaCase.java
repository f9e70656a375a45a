package io.github.gatedfwa.samediff;

import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

/**
 * The inputs of compressed attention, choice and selected attention, forward and backward; the
 * masks, over compressed blocks and over tokens, may be null.
 */
record NsaCase(
    INDArray q,
    INDArray kCmp,
    INDArray vCmp,
    INDArray blockMask,
    INDArray k,
    INDArray v,
    INDArray mask,
    INDArray dO,
    long blockLength,
    long stride,
    long selectionBlock,
    long topN,
    double scale) {

  /** Sizes of a problem. */
  record Sizes(
      long batch,
      long queries,
      long keys,
      long heads,
      long kvHeads,
      long headSize,
      long valueSize,
      long blockLength,
      long stride,
      long selectionBlock,
      long topN) {}

  /** Standard normal arrays; kCmp and vCmp are no means, so that no choice is a close one. */
  static NsaCase random(long seed, Sizes s) {
    Nd4j.getRandom().setSeed(seed);
    long blocks = NsaArguments.blocks(s.keys(), s.blockLength(), s.stride());
    return new NsaCase(
        normal(s.batch(), s.queries(), s.heads(), s.headSize()),
        normal(s.batch(), blocks, s.kvHeads(), s.headSize()),
        normal(s.batch(), blocks, s.kvHeads(), s.valueSize()),
        null,
        normal(s.batch(), s.keys(), s.kvHeads(), s.headSize()),
        normal(s.batch(), s.keys(), s.kvHeads(), s.valueSize()),
        null,
        normal(s.batch(), s.queries(), s.heads(), s.valueSize()),
        s.blockLength(),
        s.stride(),
        s.selectionBlock(),
        s.topN(),
        0);
  }

  private static INDArray normal(long... shape) {
    INDArray x = Nd4j.create(DataType.DOUBLE, shape);
    return x.isEmpty() ? x : Nd4j.randn(DataType.DOUBLE, shape);
  }

  long keyLength() {
    return k.size(1);
  }

  NsaCase withQueries(INDArray otherQ, INDArray otherGradient) {
    return new NsaCase(
        otherQ,
        kCmp,
        vCmp,
        blockMask,
        k,
        v,
        mask,
        otherGradient,
        blockLength,
        stride,
        selectionBlock,
        topN,
        scale);
  }

  /** With a mask over tokens and the one over blocks that belongs to it. */
  NsaCase withMask(INDArray other) {
    return new NsaCase(
        q,
        kCmp,
        vCmp,
        NsaCompression.blockMask(other, blockLength, stride),
        k,
        v,
        other,
        dO,
        blockLength,
        stride,
        selectionBlock,
        topN,
        scale);
  }

  NsaCase castTo(DataType type) {
    return new NsaCase(
        q.castTo(type),
        kCmp.castTo(type),
        vCmp.castTo(type),
        cast(blockMask, type),
        k.castTo(type),
        v.castTo(type),
        cast(mask, type),
        dO.castTo(type),
        blockLength,
        stride,
        selectionBlock,
        topN,
        scale);
  }

  private static INDArray cast(INDArray mask, DataType type) {
    return mask == null || mask.dataType() == DataType.BOOL ? mask : mask.castTo(type);
  }
}
