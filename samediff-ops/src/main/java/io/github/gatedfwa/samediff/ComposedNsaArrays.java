package io.github.gatedfwa.samediff;

import static org.nd4j.linalg.indexing.NDArrayIndex.all;
import static org.nd4j.linalg.indexing.NDArrayIndex.interval;

import java.util.Arrays;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.ops.transforms.Transforms;

/**
 * The functions of the native NSA ops, composed of ND4J's own ops on arrays. Queries are taken a
 * tile at a time with all keys up to the last one's: memory is linear in the length, time is
 * quadratic even where few blocks are selected. Half types are computed in float32; as in {@link
 * ComposedArrays}, invisible keys get large negative scores.
 */
final class ComposedNsaArrays {

  private static final int TILE = 128;

  private ComposedNsaArrays() {}

  static INDArray[] compressedAttention(
      INDArray q,
      INDArray kCmp,
      INDArray vCmp,
      INDArray mask,
      long blockLength,
      long stride,
      long keyLength,
      double scale) {
    NsaArguments.compressed(
        NsaArguments.COMPRESSED, q, kCmp, vCmp, mask, blockLength, stride, keyLength, scale);
    return new Attention(q, kCmp, vCmp, scale)
        .forward(completeBlocks(q, kCmp, mask, blockLength, stride, keyLength));
  }

  static INDArray[] compressedAttentionBp(
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
    String op = NsaArguments.COMPRESSED + "_bp";
    NsaArguments.compressed(op, q, kCmp, vCmp, mask, blockLength, stride, keyLength, scale);
    Arguments.results(op, q, vCmp, o, lse, dO);
    return new Attention(q, kCmp, vCmp, scale)
        .backward(completeBlocks(q, kCmp, mask, blockLength, stride, keyLength), lse, dO);
  }

  static INDArray[] selectedAttention(
      INDArray q,
      INDArray k,
      INDArray v,
      INDArray indices,
      INDArray mask,
      long selectionBlock,
      double scale) {
    NsaArguments.selected(NsaArguments.SELECTED, q, k, v, indices, mask, selectionBlock, scale);
    NsaArguments.ascending(NsaArguments.SELECTED, indices, k.size(1), selectionBlock);
    return new Attention(q, k, v, scale)
        .forward(selectedTokens(q, k, indices, mask, selectionBlock));
  }

  static INDArray[] selectedAttentionBp(
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
    String op = NsaArguments.SELECTED + "_bp";
    NsaArguments.selected(op, q, k, v, indices, mask, selectionBlock, scale);
    Arguments.results(op, q, v, o, lse, dO);
    NsaArguments.ascending(op, indices, k.size(1), selectionBlock);
    return new Attention(q, k, v, scale)
        .backward(selectedTokens(q, k, indices, mask, selectionBlock), lse, dO);
  }

  static INDArray select(
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
    Attention x = new Attention(q, kCmp, kCmp, scale);
    long[] shape = {x.batch, x.queries, x.kvHeads, topN};
    if (x.batch == 0 || x.queries == 0) {
      return Nd4j.create(DataType.INT32, shape);
    }
    long length = NsaArguments.keyLength(q, keyLength);
    int blocks = Math.toIntExact((length + selectionBlock - 1) / selectionBlock);
    boolean[][] real = real(mask, x.batch, x.keys);
    Visibility visible = completeBlocks(q, kCmp, mask, blockLength, stride, keyLength);
    INDArray ownLse = VisiblePairs.finiteLse(lse.dup('c'));
    int[] chosen = new int[Math.toIntExact(x.batch * x.queries * x.kvHeads * topN)];
    for (long from = 0; from < x.queries; from += TILE) {
      int rows = Math.toIntExact(Math.min(TILE, x.queries - from));
      double[] weights = new double[0];
      if (x.keys > 0) {
        INDArray scores = visible.pairs(from, rows).hide(x.products(from, rows));
        INDArray weight = Transforms.exp(scores.subi(x.rowsOf(ownLse, from, rows)), false);
        weights =
            weight
                .reshape(x.batch, x.kvHeads, x.group, rows, x.keys)
                .sum(2)
                .castTo(DataType.DOUBLE)
                .dup('c')
                .data()
                .asDouble();
      }
      for (int b = 0; b < x.batch; b++) {
        for (int head = 0; head < x.kvHeads; head++) {
          for (int row = 0; row < rows; row++) {
            int at = Math.toIntExact(((b * x.kvHeads + head) * rows + row) * x.keys);
            int[] own =
                new Choice(
                        length - x.queries + from + row,
                        blocks,
                        blockLength,
                        stride,
                        selectionBlock)
                    .choose(weights, at, real[b], topN);
            long to = ((b * x.queries + from + row) * x.kvHeads + head) * topN;
            System.arraycopy(own, 0, chosen, Math.toIntExact(to), own.length);
          }
        }
      }
    }
    return Nd4j.createFromArray(chosen).reshape(shape);
  }

  /** The choice of one query. */
  private record Choice(
      long position, int blocks, long blockLength, long stride, long selectionBlock) {

    /** topN numbers; the query's weights of the compressed blocks start at {@code at}. */
    int[] choose(double[] weights, int at, boolean[] real, long topN) {
      double[] importance = new double[blocks];
      boolean[] candidate = new boolean[blocks];
      int perBlock = Math.toIntExact(selectionBlock / stride);
      for (int c = 0; c < real.length && c * stride + blockLength - 1 <= position; c++) {
        // Piece i is the tokens [i·d, (i + 1)·d).
        for (int piece = c; real[c] && piece < c + blockLength / stride; piece++) {
          double weight = weights[at + c];
          importance[piece / perBlock] += Double.isNaN(weight) ? 0 : weight;
          candidate[piece / perBlock] = true;
        }
      }
      int own = Math.toIntExact(position / selectionBlock);
      candidate[own] = true;
      int first = 0;
      while (!candidate[first]) {
        first++;
      }
      for (int taken : new int[] {first, own, Math.max(own - 1, 0)}) {
        importance[taken] = Double.POSITIVE_INFINITY;
      }
      int[] order = new int[Math.toIntExact(topN)];
      Arrays.fill(order, -1);
      int count = 0;
      for (; count < topN; count++) {
        int best = -1;
        for (int s = 0; s < blocks; s++) {
          if (candidate[s] && (best < 0 || importance[s] > importance[best])) {
            best = s;
          }
        }
        if (best < 0) {
          break;
        }
        order[count] = best;
        candidate[best] = false;
      }
      Arrays.sort(order, 0, count);
      return order;
    }
  }

  /** Which queries see which keys. */
  private interface Visibility {

    /** Of queries [from, from + rows). */
    VisiblePairs pairs(long from, int rows);
  }

  private static Visibility completeBlocks(
      INDArray q, INDArray kCmp, INDArray mask, long blockLength, long stride, long keyLength) {
    DataType type = NativeOp.accumulatorType(q.dataType());
    long kvHeads = kCmp.size(2);
    long past = NsaArguments.keyLength(q, keyLength) - q.size(1);
    int keys = Math.toIntExact(kCmp.size(1));
    boolean[][] real = real(mask, q.size(0), keys);
    return (from, rows) -> {
      double[] unseen = new double[real.length * rows * keys];
      for (int i = 0; i < unseen.length; i++) {
        int c = i % keys;
        boolean seen = c * stride + blockLength - 1 <= past + from + i / keys % rows;
        unseen[i] = seen && real[i / keys / rows][c] ? 0 : 1;
      }
      return new VisiblePairs(
          Nd4j.createFromArray(unseen).reshape(real.length, 1, 1, rows, keys).castTo(type),
          real.length,
          kvHeads,
          q.size(2) / kvHeads);
    };
  }

  private static Visibility selectedTokens(
      INDArray q, INDArray k, INDArray indices, INDArray mask, long selectionBlock) {
    DataType type = NativeOp.accumulatorType(q.dataType());
    int kvHeads = Math.toIntExact(k.size(2));
    int keys = Math.toIntExact(k.size(1));
    int past = keys - Math.toIntExact(q.size(1));
    int topN = Math.toIntExact(indices.size(3));
    boolean[][] real = real(mask, q.size(0), keys);
    INDArray ownIndices = indices.isEmpty() ? indices : indices.dup('c');
    return (from, rows) -> {
      int[] chosen =
          ownIndices.get(all(), interval(from, from + rows), all(), all()).dup('c').data().asInt();
      double[] unseen = new double[real.length * kvHeads * rows * keys];
      Arrays.fill(unseen, 1);
      for (int i = 0; i < chosen.length; i++) {
        int head = i / topN % kvHeads;
        int row = i / topN / kvHeads % rows;
        int b = i / topN / kvHeads / rows;
        long end = Math.min((chosen[i] + 1) * selectionBlock, past + from + row + 1);
        for (long j = chosen[i] * selectionBlock; chosen[i] >= 0 && j < end; j++) {
          if (real[b][(int) j]) {
            unseen[((b * kvHeads + head) * rows + row) * keys + (int) j] = 0;
          }
        }
      }
      return new VisiblePairs(
          Nd4j.createFromArray(unseen).reshape(real.length, kvHeads, 1, rows, keys).castTo(type),
          real.length,
          kvHeads,
          q.size(2) / kvHeads);
    };
  }

  /** Which keys of each batch entry are not masked. */
  private static boolean[][] real(INDArray mask, long batch, long keys) {
    boolean[][] real = new boolean[Math.toIntExact(batch)][Math.toIntExact(keys)];
    for (int b = 0; b < batch; b++) {
      for (int j = 0; j < keys; j++) {
        real[b][j] = mask == null || mask.getDouble(b, j) != 0;
      }
    }
    return real;
  }

  /** One call's arrays; a tile's are [B, Hkv, G·n, ..], the heads of a group below each other. */
  private static final class Attention {

    final DataType type;
    final long batch;
    final long queries;
    final long keys;
    final long heads;
    final long kvHeads;
    final long group;
    final long headSize;
    final long valueSize;
    final double scale;
    private final INDArray q;
    private final INDArray k;
    private final INDArray v;
    private final DataType valueType;

    Attention(INDArray q, INDArray k, INDArray v, double scale) {
      type = NativeOp.accumulatorType(q.dataType());
      valueType = q.dataType();
      batch = q.size(0);
      queries = q.size(1);
      keys = k.size(1);
      heads = q.size(2);
      kvHeads = k.size(2);
      group = heads / kvHeads;
      headSize = q.size(3);
      valueSize = v.size(3);
      this.scale = scale != 0 ? scale : 1 / Math.sqrt((double) headSize);
      this.q = VisiblePairs.headFirst(q, type);
      this.k = VisiblePairs.headFirst(k, type);
      this.v = VisiblePairs.headFirst(v, type);
    }

    private static INDArray rows(INDArray headFirst, long from, int rows) {
      return headFirst.get(all(), all(), interval(from, from + rows), all());
    }

    /** Queries [from, from + rows) of an array [B, H, N, x], as [B, Hkv, G·rows, x]. */
    private INDArray grouped(INDArray array, long from, int rows) {
      return rows(array, from, rows).dup('c').reshape(batch, kvHeads, group * rows, array.size(3));
    }

    private void put(INDArray grouped, INDArray to, long from, int rows) {
      rows(to, from, rows).assign(grouped.dup('c').reshape(batch, heads, rows, to.size(3)));
    }

    /** The same queries of lse, as [B, Hkv, G·rows, 1]. */
    INDArray rowsOf(INDArray lse, long from, int rows) {
      return grouped(lse.reshape(batch, heads, queries, 1), from, rows);
    }

    /** scale · q·k [B, Hkv, G·rows, keys]. */
    INDArray products(long from, int rows) {
      return Nd4j.matmul(grouped(q, from, rows), k, false, true, false).dup('c').muli(scale);
    }

    INDArray[] forward(Visibility visibility) {
      INDArray o = Nd4j.create(type, batch, heads, queries, valueSize);
      INDArray lse = Nd4j.create(type, batch, heads, queries);
      if (!lse.isEmpty()) {
        lse.assign(Double.NEGATIVE_INFINITY);
      }
      for (long from = 0; from < queries && batch > 0 && keys > 0; from += TILE) {
        int rows = Math.toIntExact(Math.min(TILE, queries - from));
        VisiblePairs visible = visibility.pairs(from, rows);
        INDArray scores = visible.hide(products(from, rows));
        INDArray max = Transforms.max(scores.max(true, 3), VisiblePairs.DEAD, false);
        INDArray weights = Transforms.exp(scores.subi(max), false);
        INDArray sum = weights.sum(true, 3);
        // A row that sees anything has a sum of at least 1.
        put(visible.product(weights, v).divi(Transforms.max(sum, 0.5, true)), o, from, rows);
        lse.get(all(), all(), interval(from, from + rows))
            .assign(Transforms.log(sum, false).addi(max).reshape(batch, heads, rows));
      }
      return new INDArray[] {VisiblePairs.tokenFirst(o, valueType), lse};
    }

    INDArray[] backward(Visibility visibility, INDArray lse, INDArray dO) {
      INDArray ownLse = lse.isEmpty() ? lse : VisiblePairs.finiteLse(lse.dup('c'));
      INDArray ownGradient = VisiblePairs.headFirst(dO, type);
      INDArray dq = Nd4j.create(type, batch, heads, queries, headSize);
      INDArray dk = Nd4j.create(type, batch, kvHeads, keys, headSize);
      INDArray dv = Nd4j.create(type, batch, kvHeads, keys, valueSize);
      for (long from = 0; from < queries && batch > 0 && keys > 0; from += TILE) {
        int rows = Math.toIntExact(Math.min(TILE, queries - from));
        VisiblePairs visible = visibility.pairs(from, rows);
        INDArray scores = visible.hide(products(from, rows));
        INDArray weights =
            visible.clear(Transforms.exp(scores.subi(rowsOf(ownLse, from, rows)), false));
        INDArray gradient = grouped(ownGradient, from, rows);
        INDArray dS = visible.clear(Nd4j.matmul(gradient, v, false, true, false).dup('c'));
        // dO · o, but summed so that a row's dS adds up to 0 as exactly as it can.
        INDArray delta = dS.mul(weights).sum(true, 3);
        dS = visible.clear(dS.subi(delta).muli(weights));
        put(visible.product(dS, k).muli(scale), dq, from, rows);
        dk.addi(visible.transposedProduct(dS, grouped(q, from, rows)).muli(scale));
        dv.addi(visible.transposedProduct(weights, gradient));
      }
      return new INDArray[] {
        VisiblePairs.tokenFirst(dq, valueType),
        VisiblePairs.tokenFirst(dk, valueType),
        VisiblePairs.tokenFirst(dv, valueType)
      };
    }
  }
}
