package io.github.gatedfwa.samediff;

import static org.nd4j.linalg.indexing.NDArrayIndex.all;
import static org.nd4j.linalg.indexing.NDArrayIndex.interval;

import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.ops.transforms.Transforms;

/**
 * φ of native sparse attention (arXiv 2502.11089, equation 7), on arrays with gradients and in
 * graphs: blocks of l tokens every d tokens become one token each. A block consists of l/d pieces
 * of d tokens, which it shares with its neighbours.
 *
 * <p>x is [B, M, Hkv, D], a result [B, C, Hkv, ..] with C = ⌊(M − l)/d⌋ + 1, or 0.
 */
final class NsaCompression {

  static final String MEAN = "nsa_compress_mean";
  static final String MLP = "nsa_compress_mlp";
  static final String MASK = "nsa_block_mask";

  private NsaCompression() {}

  /** Weights of the MLP, one per key/value head; see {@link NDNsa#compressMlp}. */
  record Mlp<T>(T position, T w1, T b1, T w2, T b2) {}

  static INDArray mean(INDArray x, long blockLength, long stride) {
    check(MEAN, x, blockLength, stride);
    Blocks blocks = new Blocks(x.shape(), blockLength, stride);
    DataType type = NativeOp.accumulatorType(x.dataType());
    INDArray result = Nd4j.create(type, blocks.batch, blocks.count, blocks.heads, blocks.size);
    if (!result.isEmpty()) {
      INDArray pieces = blocks.pieces(x.castTo(type)).sum(2);
      for (long i = 0; i < blocks.perBlock; i++) {
        result.addi(blocks.shifted(pieces, i));
      }
      result.divi(blockLength);
    }
    return result.castTo(x.dataType());
  }

  static INDArray meanBp(INDArray dResult, long keyLength, long blockLength, long stride) {
    NsaArguments.compression(MEAN + "_bp", blockLength, stride);
    Arguments.present(MEAN + "_bp", "gradient", dResult);
    Arguments.shape(
        MEAN + "_bp",
        "gradient",
        dResult,
        Arguments.any(),
        Arguments.is(NsaArguments.blocks(keyLength, blockLength, stride)),
        Arguments.atLeast(1),
        Arguments.atLeast(1));
    long[] shape = dResult.shape().clone();
    shape[1] = keyLength;
    Blocks blocks = new Blocks(shape, blockLength, stride);
    DataType type = NativeOp.accumulatorType(dResult.dataType());
    INDArray dx = Nd4j.create(type, shape);
    if (!dResult.isEmpty()) {
      INDArray share = dResult.castTo(type).div(blockLength);
      INDArray dPieces =
          Nd4j.create(type, blocks.batch, blocks.pieces, 1, blocks.heads, blocks.size);
      for (long i = 0; i < blocks.perBlock; i++) {
        INDArray own = dPieces.get(all(), interval(i, i + blocks.count), all(), all(), all());
        own.addi(share.reshape(own.shape()));
      }
      blocks.tokens(dx).assign(blocks.repeated(dPieces));
    }
    return dx.castTo(dResult.dataType());
  }

  static INDArray mlp(INDArray x, Mlp<INDArray> mlp, long blockLength, long stride) {
    check(MLP, x, blockLength, stride);
    checkMlp(MLP, x, mlp, blockLength);
    Blocks blocks = new Blocks(x.shape(), blockLength, stride);
    long outSize = mlp.w2().size(2);
    if (blocks.isEmpty()) {
      return Nd4j.create(x.dataType(), blocks.batch, blocks.count, blocks.heads, outSize);
    }
    Mlp<INDArray> wide = widen(mlp, x.dataType());
    INDArray z = blocks.hidden(blocks.inputs(x, wide.position()), wide);
    INDArray y = Nd4j.matmul(z.mul(Transforms.sigmoid(z, true)), wide.w2());
    y.addi(wide.b2().reshape(blocks.heads, 1, outSize));
    return y.dup('c')
        .reshape(blocks.heads, blocks.batch, blocks.count, outSize)
        .permute(1, 2, 0, 3)
        .dup('c')
        .castTo(x.dataType());
  }

  static INDArray[] mlpBp(
      INDArray x, Mlp<INDArray> mlp, INDArray dResult, long blockLength, long stride) {
    String op = MLP + "_bp";
    check(op, x, blockLength, stride);
    checkMlp(op, x, mlp, blockLength);
    Blocks blocks = new Blocks(x.shape(), blockLength, stride);
    long outSize = mlp.w2().size(2);
    Arguments.present(op, "gradient", dResult);
    Arguments.shape(
        op,
        "gradient",
        dResult,
        Arguments.is(blocks.batch),
        Arguments.is(blocks.count),
        Arguments.is(blocks.heads),
        Arguments.is(outSize));
    if (blocks.isEmpty()) {
      return new INDArray[] {
        x.ulike().assign(0),
        mlp.position().like(),
        mlp.w1().like(),
        mlp.b1().like(),
        mlp.w2().like(),
        mlp.b2().like()
      };
    }
    Mlp<INDArray> wide = widen(mlp, x.dataType());
    INDArray inputs = blocks.inputs(x, wide.position());
    INDArray z = blocks.hidden(inputs, wide);
    INDArray sigmoid = Transforms.sigmoid(z, true);
    INDArray activation = z.mul(sigmoid);
    INDArray dy =
        dResult
            .castTo(wide.w1().dataType())
            .permute(2, 0, 1, 3)
            .dup('c')
            .reshape(blocks.heads, blocks.batch * blocks.count, outSize);
    // silu'(z) = σ + silu(z) (1 − σ)
    INDArray slope = sigmoid.add(activation.mul(sigmoid.rsub(1)));
    INDArray dz = Nd4j.matmul(dy, wide.w2(), false, true, false).muli(slope);
    INDArray dInputs =
        Nd4j.matmul(dz, wide.w1(), false, true, false)
            .dup('c')
            .reshape(blocks.heads, blocks.batch, blocks.count, blockLength, blocks.size);
    INDArray dx = Nd4j.create(dInputs.dataType(), x.shape());
    INDArray dPieces =
        Nd4j.create(
            dInputs.dataType(), blocks.batch, blocks.pieces, stride, blocks.heads, blocks.size);
    for (long i = 0; i < blocks.perBlock; i++) {
      dPieces
          .get(all(), interval(i, i + blocks.count), all(), all(), all())
          .addi(
              dInputs
                  .get(all(), all(), all(), interval(i * stride, (i + 1) * stride), all())
                  .permute(1, 2, 3, 0, 4));
    }
    blocks
        .tokens(dx)
        .assign(dPieces.reshape(blocks.batch, blocks.pieces * stride, blocks.heads, blocks.size));
    INDArray[] result = {
      dx,
      dInputs.sum(1, 2),
      Nd4j.matmul(inputs, dz, true, false, false),
      dz.sum(1),
      Nd4j.matmul(activation, dy, true, false, false),
      dy.sum(1)
    };
    for (int i = 0; i < result.length; i++) {
      result[i] = result[i].castTo(x.dataType());
    }
    return result;
  }

  static INDArray blockMask(INDArray mask, long blockLength, long stride) {
    NsaArguments.compression(MASK, blockLength, stride);
    Arguments.present(MASK, "mask", mask);
    Arguments.shape(MASK, "mask", mask, Arguments.any(), Arguments.any());
    long count = NsaArguments.blocks(mask.size(1), blockLength, stride);
    INDArray result = Nd4j.create(mask.dataType(), mask.size(0), count);
    if (result.isEmpty()) {
      return result;
    }
    INDArray padded = mask.castTo(DataType.FLOAT).neq(0).castTo(DataType.FLOAT).rsub(1);
    INDArray x = padded.reshape(mask.size(0), mask.size(1), 1, 1);
    return result.assign(
        mean(x, blockLength, stride).eq(0).castTo(mask.dataType()).reshape(result.shape()));
  }

  private static void check(String op, INDArray x, long blockLength, long stride) {
    NsaArguments.compression(op, blockLength, stride);
    NsaArguments.uncompressed(op, x);
    if (!x.dataType().isFPType()) {
      throw Arguments.wrong(
          op, "x is " + x.dataType() + "; expected FLOAT, DOUBLE, HALF or BFLOAT16");
    }
  }

  private static void checkMlp(String op, INDArray x, Mlp<INDArray> mlp, long blockLength) {
    Arguments.Dimension heads = Arguments.is(x.size(2));
    weight(
        op,
        "position",
        mlp.position(),
        x,
        heads,
        Arguments.is(blockLength),
        Arguments.is(x.size(3)));
    weight(
        op, "w1", mlp.w1(), x, heads, Arguments.is(blockLength * x.size(3)), Arguments.atLeast(1));
    Arguments.Dimension hidden = Arguments.is(mlp.w1().size(2));
    weight(op, "b1", mlp.b1(), x, heads, hidden);
    weight(op, "w2", mlp.w2(), x, heads, hidden, Arguments.atLeast(1));
    weight(op, "b2", mlp.b2(), x, heads, Arguments.is(mlp.w2().size(2)));
  }

  private static void weight(
      String op, String name, INDArray weight, INDArray x, Arguments.Dimension... shape) {
    Arguments.present(op, name, weight);
    Arguments.type(op, name, weight, x.dataType());
    Arguments.shape(op, name, weight, shape);
  }

  private static Mlp<INDArray> widen(Mlp<INDArray> mlp, DataType type) {
    DataType wide = NativeOp.accumulatorType(type);
    return new Mlp<>(
        mlp.position().castTo(wide),
        mlp.w1().castTo(wide),
        mlp.b1().castTo(wide),
        mlp.w2().castTo(wide),
        mlp.b2().castTo(wide));
  }

  /** Sizes of the blocks of one array. */
  private static final class Blocks {

    final long batch;
    final long count;
    final long heads;
    final long size;
    final long blockLength;
    final long stride;
    final long perBlock;
    final long pieces;

    Blocks(long[] shape, long blockLength, long stride) {
      batch = shape[0];
      count = NsaArguments.blocks(shape[1], blockLength, stride);
      heads = shape[2];
      size = shape[3];
      this.blockLength = blockLength;
      this.stride = stride;
      perBlock = blockLength / stride;
      pieces = count == 0 ? 0 : count - 1 + perBlock;
    }

    boolean isEmpty() {
      return batch == 0 || count == 0;
    }

    /** The tokens that are in blocks. */
    INDArray tokens(INDArray x) {
      return x.get(all(), interval(0, pieces * stride), all(), all());
    }

    /** Those tokens as [B, pieces, d, Hkv, D]. */
    INDArray pieces(INDArray x) {
      return tokens(x).dup('c').reshape(batch, pieces, stride, heads, size);
    }

    /** Piece i of each block. */
    INDArray shifted(INDArray pieces, long i) {
      return pieces.get(all(), interval(i, i + count), all(), all());
    }

    /** [B, pieces, 1, Hkv, D] to all tokens of each piece. */
    INDArray repeated(INDArray ofPieces) {
      return ofPieces
          .broadcast(batch, pieces, stride, heads, size)
          .reshape(batch, pieces * stride, heads, size);
    }

    /** The tokens of each block with their positions, [Hkv, B·C, l·D]. */
    INDArray inputs(INDArray x, INDArray position) {
      INDArray ofPieces = pieces(x.castTo(position.dataType()));
      INDArray[] parts = new INDArray[Math.toIntExact(perBlock)];
      for (int i = 0; i < parts.length; i++) {
        parts[i] = ofPieces.get(all(), interval(i, i + count), all(), all(), all());
      }
      return Nd4j.concat(2, parts)
          .permute(3, 0, 1, 2, 4)
          .dup('c')
          .addi(position.reshape(heads, 1, 1, blockLength, size))
          .reshape(heads, batch * count, blockLength * size);
    }

    /** Before the activation, [Hkv, B·C, hidden]. */
    INDArray hidden(INDArray inputs, Mlp<INDArray> mlp) {
      return Nd4j.matmul(inputs, mlp.w1()).addi(mlp.b1().reshape(heads, 1, mlp.b1().size(1)));
    }
  }

  /** The same in a graph, of an x of any batch size and length. */
  static final class Graph {

    private final SameDiff sd;
    private final long blockLength;
    private final long stride;
    private final int perBlock;
    private final SDVariable[] shape;
    private final SDVariable count;

    Graph(SameDiff sd, SDVariable x, long blockLength, long stride) {
      this.sd = sd;
      this.blockLength = blockLength;
      this.stride = stride;
      perBlock = Math.toIntExact(blockLength / stride);
      shape = sd.unstack(sd.shape(x), 0, 4);
      count = blocks(sd, shape[1], blockLength, stride);
    }

    /** C = max(0, ⌊M/d⌋ − l/d + 1): the same as ⌊(M − l)/d⌋ + 1, for d divides l. */
    static SDVariable blocks(SameDiff sd, SDVariable length, long blockLength, long stride) {
      SDVariable all = sd.math().floorDiv(length, sd.constant(stride));
      long perBlock = blockLength / stride;
      return sd.max(all.sub((double) (perBlock - 1)), sd.constant(0L));
    }

    /** Piece i of each block, [B, C, d, Hkv, D]. */
    private SDVariable piece(SDVariable x, int i) {
      SDVariable zero = sd.constant(0L);
      SDVariable tokens = count.mul((double) stride);
      SDVariable part =
          sd.slice(
              x,
              sd.stack(0, zero, sd.constant(i * stride), zero, zero),
              sd.stack(0, shape[0], tokens, shape[2], shape[3]));
      return part.reshape(sd.stack(0, shape[0], count, sd.constant(stride), shape[2], shape[3]));
    }

    SDVariable mean(SDVariable x) {
      DataType type = x.dataType();
      SDVariable wide = x.castTo(NativeOp.accumulatorType(type));
      SDVariable sum = piece(wide, 0).sum(2);
      for (int i = 1; i < perBlock; i++) {
        sum = sum.add(piece(wide, i).sum(2));
      }
      return sum.div((double) blockLength).castTo(type);
    }

    SDVariable mlp(SDVariable x, Mlp<SDVariable> mlp) {
      DataType type = x.dataType();
      DataType wide = NativeOp.accumulatorType(type);
      SDVariable[] parts = new SDVariable[perBlock];
      for (int i = 0; i < perBlock; i++) {
        parts[i] = piece(x.castTo(wide), i);
      }
      SDVariable one = sd.constant(1L);
      SDVariable rest = sd.constant(-1L);
      SDVariable length = sd.constant(blockLength);
      SDVariable blocks = perBlock == 1 ? parts[0] : sd.concat(2, parts); // [B, C, l, Hkv, D]
      SDVariable position = mlp.position().castTo(wide);
      SDVariable inputs =
          blocks
              .permute(3, 0, 1, 2, 4)
              .add(position.reshape(sd.stack(0, shape[2], one, one, length, shape[3])))
              .reshape(sd.stack(0, shape[2], shape[0].mul(count), length.mul(shape[3])));
      SDVariable z =
          sd.mmul(inputs, mlp.w1().castTo(wide)).add(sd.expandDims(mlp.b1().castTo(wide), 1));
      SDVariable y =
          sd.mmul(z.mul(sd.nn().sigmoid(z)), mlp.w2().castTo(wide))
              .add(sd.expandDims(mlp.b2().castTo(wide), 1));
      return y.reshape(sd.stack(0, shape[2], shape[0], count, rest))
          .permute(1, 2, 0, 3)
          .castTo(type);
    }
  }
}
