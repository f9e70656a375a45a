package io.github.gatedfwa.samediff;

import static io.github.gatedfwa.samediff.Arguments.any;
import static io.github.gatedfwa.samediff.Arguments.atLeast;
import static io.github.gatedfwa.samediff.Arguments.divisorOf;
import static io.github.gatedfwa.samediff.Arguments.is;
import static io.github.gatedfwa.samediff.Arguments.upTo;
import static io.github.gatedfwa.samediff.Arguments.wrong;

import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/** The checks of the NSA ops, in the words of the native ops' own; see {@link Arguments}. */
final class NsaArguments {

  static final String COMPRESSED = "nsa_compressed_attention";
  static final String SELECT = "nsa_select";
  static final String SELECTED = "nsa_selected_attention";

  private NsaArguments() {}

  /** libnd4j keeps 32 bits of an integer argument. */
  static void fits(String op, String name, long value) {
    if (value > Integer.MAX_VALUE) {
      throw wrong(
          op, "argument '" + name + "' is " + value + "; it must be at most " + Integer.MAX_VALUE);
    }
  }

  static void compression(String op, long blockLength, long stride) {
    if (blockLength < 1) {
      throw wrong(op, "argument 'blockLength' is " + blockLength + "; it must be at least 1");
    }
    fits(op, "blockLength", blockLength);
    if (stride < 1 || blockLength % stride != 0) {
      throw wrong(
          op,
          "argument 'stride' is "
              + stride
              + "; it must be a divisor of blockLength, "
              + blockLength);
    }
  }

  static void selection(String op, long blockLength, long selectionBlock, long topN) {
    if (selectionBlock < 1 || selectionBlock % blockLength != 0) {
      throw wrong(
          op,
          "argument 'selectionBlock' is "
              + selectionBlock
              + "; it must be a multiple of blockLength, "
              + blockLength);
    }
    fits(op, "selectionBlock", selectionBlock);
    if (topN < 3) {
      throw wrong(op, "argument 'topN' is " + topN + "; it must be at least 3");
    }
    fits(op, "topN", topN);
  }

  static void selectionBlock(String op, long selectionBlock) {
    if (selectionBlock < 1) {
      throw wrong(op, "argument 'selectionBlock' is " + selectionBlock + "; it must be at least 1");
    }
    fits(op, "selectionBlock", selectionBlock);
  }

  static void keyLength(String op, long keyLength) {
    if (keyLength < 0) {
      throw wrong(
          op,
          "argument 'keyLength' is " + keyLength + "; it must be at least 0 (0: the query length)");
    }
    fits(op, "keyLength", keyLength);
  }

  /** M where 0 stands for N. */
  static long keyLength(INDArray q, long keyLength) {
    return keyLength == 0 ? q.size(1) : keyLength;
  }

  /** C = ⌊(M − l)/d⌋ + 1, or 0. */
  static long blocks(long keyLength, long blockLength, long stride) {
    return keyLength < blockLength ? 0 : (keyLength - blockLength) / stride + 1;
  }

  static void compressed(
      String op,
      INDArray q,
      INDArray kCmp,
      INDArray vCmp,
      INDArray mask,
      long blockLength,
      long stride,
      long keyLength,
      double scale) {
    long blocks = compressedKeys(op, q, kCmp, blockLength, stride, keyLength, scale);
    Arguments.present(op, "vCmp", vCmp);
    Arguments.type(op, "vCmp", vCmp, q.dataType());
    Arguments.shape(
        op,
        "vCmp",
        vCmp,
        is(q.size(0)),
        is(blocks),
        is(kCmp.size(2)),
        upTo(Arguments.MAX_HEAD_SIZE));
    Arguments.mask(op, mask, q.dataType(), q.size(0), blocks);
  }

  static void select(
      String op,
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
    compression(op, blockLength, stride);
    selection(op, blockLength, selectionBlock, topN);
    long blocks = compressedKeys(op, q, kCmp, blockLength, stride, keyLength, scale);
    Arguments.lse(op, q, lse);
    Arguments.mask(op, mask, q.dataType(), q.size(0), blocks);
  }

  private static long compressedKeys(
      String op,
      INDArray q,
      INDArray kCmp,
      long blockLength,
      long stride,
      long keyLength,
      double scale) {
    compression(op, blockLength, stride);
    keyLength(op, keyLength);
    Arguments.scale(op, scale);
    Arguments.present(op, "q", q);
    Arguments.present(op, "kCmp", kCmp);
    Arguments.queries(op, q);
    if (keyLength != 0 && keyLength < q.size(1)) {
      throw wrong(
          op,
          "argument 'keyLength' is "
              + keyLength
              + "; it must be at least the query length, "
              + q.size(1)
              + ", or 0 for that");
    }
    long blocks = blocks(keyLength(q, keyLength), blockLength, stride);
    Arguments.type(op, "kCmp", kCmp, q.dataType());
    Arguments.shape(
        op, "kCmp", kCmp, is(q.size(0)), is(blocks), divisorOf(q.size(2)), is(q.size(3)));
    return blocks;
  }

  static void selected(
      String op,
      INDArray q,
      INDArray k,
      INDArray v,
      INDArray indices,
      INDArray mask,
      long selectionBlock,
      double scale) {
    selectionBlock(op, selectionBlock);
    Arguments.scale(op, scale);
    Arguments.present(op, "q", q);
    Arguments.present(op, "k", k);
    Arguments.present(op, "v", v);
    Arguments.present(op, "indices", indices);
    Arguments.queries(op, q);
    DataType type = q.dataType();
    Arguments.type(op, "k", k, type);
    Arguments.shape(
        op, "k", k, is(q.size(0)), atLeast(q.size(1)), divisorOf(q.size(2)), is(q.size(3)));
    Arguments.type(op, "v", v, type);
    Arguments.shape(
        op, "v", v, is(q.size(0)), is(k.size(1)), is(k.size(2)), upTo(Arguments.MAX_HEAD_SIZE));
    Arguments.type(op, "indices", indices, DataType.INT32);
    Arguments.shape(
        op, "indices", indices, is(q.size(0)), is(q.size(1)), is(k.size(2)), atLeast(1));
    Arguments.mask(op, mask, type, q.size(0), k.size(1));
  }

  /**
   * Each row of indices [B, N, Hkv, topN]: ascending block numbers, then −1s. The native op checks
   * this itself.
   */
  static void ascending(String op, INDArray indices, long keyLength, long selectionBlock) {
    long blocks = (keyLength + selectionBlock - 1) / selectionBlock;
    int topN = Math.toIntExact(indices.size(3));
    int[] values = indices.isEmpty() ? new int[0] : indices.dup('c').data().asInt();
    for (int i = 0; i < values.length; i++) {
      int before = i % topN == 0 ? Integer.MIN_VALUE : values[i - 1];
      boolean right = values[i] == -1 || (values[i] > before && before != -1);
      if (!right || values[i] < -1 || values[i] >= blocks) {
        long row = i / topN;
        long head = indices.size(2);
        throw wrong(
            op,
            String.format(
                "indices[%d, %d, %d, %d] is %d; expected ascending block numbers below %d, then -1",
                row / head / indices.size(1),
                row / head % indices.size(1),
                row % head,
                i % topN,
                values[i],
                blocks));
      }
    }
  }

  /** x [B, M, Hkv, D] that is to be compressed. */
  static void uncompressed(String op, INDArray x) {
    Arguments.present(op, "x", x);
    Arguments.shape(op, "x", x, any(), any(), atLeast(1), atLeast(1));
  }
}
