package io.github.gatedfwa.layers.runtime;

import io.github.gatedfwa.layers.AttentionLayer;
import io.github.gatedfwa.layers.params.CompressionMlp;
import io.github.gatedfwa.layers.params.CompressionMlp.Of;
import io.github.gatedfwa.samediff.NDNsa;
import java.util.List;
import java.util.function.LongUnaryOperator;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

/**
 * Attention to compressed blocks (formulas: {@link
 * io.github.gatedfwa.layers.TokenCompressionLayer}). Keys are compressed as they come from the
 * projection, then turned by the position of their block: a mean of turned keys would lose what
 * turns fast, and an MLP of turned keys would depend on the position.
 */
final class CompressionBranch {
  /** Names of the caches. */
  static final String TAIL = "tail";

  static final String BLOCKS = "compressed";

  private static final NDNsa OPS = new NDNsa();

  private final Attention<?> layer;
  private final long keyColumn;
  private final long valueColumn;
  private final int blockLength;
  private final int stride;
  private final CompressionMlp mlp;

  /**
   * @param key name of the projections of keys; so the values
   * @param mlp null for the mean
   */
  CompressionBranch(
      Attention<?> layer,
      String key,
      String value,
      int blockLength,
      int stride,
      CompressionMlp mlp) {
    this.layer = layer;
    keyColumn = layer.projections().column(key);
    valueColumn = layer.projections().column(value);
    this.blockLength = blockLength;
    this.stride = stride;
    this.mlp = mlp;
  }

  /** What {@link #forward} leaves to {@link #backward} and to the selection. */
  static final class Result {
    private INDArray tokenKeys; // [minibatch, tokens, kvHeads, headSize] of the new blocks
    private INDArray tokenValues;
    private INDArray newKeys; // [minibatch · new blocks, kvHeads · headSize], turned
    private long newBlocks;
    private Rotation.Run rotation; // null for none
    private INDArray keyScales; // [minibatch · new blocks, kvHeads], null without normalisation
    private INDArray values; // [minibatch, blocks, kvHeads, headSize]

    INDArray keys; // the same
    INDArray opMask; // [minibatch, blocks], null if all are real
    long keyLength; // number of tokens up to the last one
    INDArray attended; // [minibatch, time, heads, headSize]
    INDArray lse; // [minibatch, heads, time]
  }

  /** The caches: tokens of blocks that are not complete, and all compressed blocks. */
  static List<Caches.Spec> caches(Attention<?> layer, int blockLength, int stride, long minibatch) {
    AttentionLayer c = layer.layerConf();
    KeyValueCache.Shape tail =
        new KeyValueCache.Shape(
            layer.computeType(), minibatch, 0, c.getNKvHeads(), c.getHeadSize(), blockLength - 1);
    return List.of(
        new Caches.Spec(TAIL, tail, LongUnaryOperator.identity(), true, List.of()),
        new Caches.Spec(
            BLOCKS,
            tail.keeping(KeyValueCache.ALL),
            tokens -> blocks(tokens, blockLength, stride),
            true,
            List.of()));
  }

  /** Number of complete blocks of so many tokens. */
  private static long blocks(long tokens, long blockLength, long stride) {
    return tokens < blockLength ? 0 : (tokens - blockLength) / stride + 1;
  }

  /**
   * Compresses and attends.
   *
   * @param caches null for none
   */
  Result forward(Pass p, Caches caches, Scope scope) {
    AttentionLayer c = layer.layerConf();
    long minibatch = p.input.minibatch();
    long time = p.input.time();
    Result r = new Result();
    long before = caches == null ? 0 : caches.position();
    long oldBlocks = blocks(before, blockLength, stride);
    r.keyLength = before + time;
    r.newBlocks = blocks(r.keyLength, blockLength, stride) - oldBlocks;
    Mask tokenMask = p.mask;
    if (caches == null) {
      r.tokenKeys =
          Tokens.heads(
              p.projected, keyColumn, minibatch, c.getNKvHeads(), c.getHeadSize(), scope.step());
      r.tokenValues =
          Tokens.heads(
              p.projected, valueColumn, minibatch, c.getNKvHeads(), c.getHeadSize(), scope.step());
    } else {
      KeyValueCache tail = caches.get(TAIL);
      tail.append(p.input, p.projected, keyColumn, p.projected, valueColumn, null, p.mask);
      // From the first token of the first new block on.
      long first = oldBlocks * stride - (r.keyLength - tail.length());
      r.tokenKeys = from(tail.keys(), first);
      r.tokenValues = from(tail.values(), first);
      tokenMask =
          tail.mask() == null
              ? null
              : Mask.of(layer.describe(), from(tail.mask(), first), minibatch, r.tokenKeys.size(1));
    }
    Mask blockMask = tokenMask == null ? null : tokenMask.ofBlocks(minibatch, blockLength, stride);

    long width = (long) c.getNKvHeads() * c.getHeadSize();
    INDArray newKeys = compress(r.tokenKeys, Of.KEYS, scope);
    INDArray newValues = compress(r.tokenValues, Of.VALUES, scope);
    if (r.newBlocks > 0) {
      r.newKeys = Memory.view(newKeys, 0, minibatch * r.newBlocks, width);
      r.rotation = layer.rotation(oldBlocks * stride, r.newBlocks, stride);
      if (c.isQkNorm()) {
        r.keyScales = scope.matrix(minibatch * r.newBlocks, c.getNKvHeads());
      }
      HeadMath.rotateAndNormalise(
          r.newKeys, 0, c.getNKvHeads(), c.getHeadSize(), r.newBlocks, r.rotation, r.keyScales);
    }
    r.keys = newKeys;
    r.values = newValues;
    if (caches == null) {
      r.opMask =
          blockMask == null
              ? null
              : blockMask.toArray(scope.type(), minibatch, scope.workspaces(), scope.memory());
    } else {
      KeyValueCache blocks = caches.get(BLOCKS);
      if (r.newBlocks > 0) {
        blocks.append(
            new Tokens(r.newKeys, minibatch, r.newBlocks, p.input.format()),
            r.newKeys,
            0,
            Memory.view(newValues, 0, minibatch * r.newBlocks, width),
            0,
            null,
            blockMask);
      }
      if (blocks.length() > 0) {
        r.keys = blocks.keys();
        r.values = blocks.values();
        r.opMask = blocks.mask();
      }
    }
    if (r.keys.isEmpty()) {
      r.attended =
          Memory.view(
              scope.matrix(p.input.count(), p.queries.size(2) * p.queries.size(3)).assign(0),
              0,
              p.queries.shape());
      r.lse =
          Memory.view(
              scope.matrix(minibatch * c.getNHeads(), time).assign(Double.NEGATIVE_INFINITY),
              0,
              minibatch,
              c.getNHeads(),
              time);
      return r;
    }
    INDArray[] result =
        scope.keep(
            () ->
                OPS.compressedAttention(
                    p.queries, r.keys, r.values, r.opMask, blockLength, stride, r.keyLength, 0));
    r.attended = result[0];
    r.lse = result[1];
    return r;
  }

  /**
   * Tokens from one on of an array [minibatch, tokens, ...], a view. INDArray.get makes a scalar of
   * an interval of one in some views.
   */
  private static INDArray from(INDArray array, long first) {
    long[] shape = array.shape().clone();
    shape[1] -= first;
    return Nd4j.create(
        array.data(), shape, array.stride(), array.offset() + first * array.stride(1), 'c');
  }

  /** [minibatch, tokens, kvHeads, headSize] to [minibatch, blocks, kvHeads, headSize]. */
  private INDArray compress(INDArray tokens, Of of, Scope scope) {
    if (tokens.size(1) < blockLength) {
      // Workspaces have no empty arrays.
      return Memory.detached(
          () -> Nd4j.create(scope.type(), tokens.size(0), 0, tokens.size(2), tokens.size(3)));
    }
    return scope.keepResult(
        () -> {
          if (mlp == null) {
            return OPS.compressMean(tokens, blockLength, stride);
          }
          INDArray[] w = weights(of, scope);
          return OPS.compressMlp(tokens, w[0], w[1], w[2], w[3], w[4], blockLength, stride);
        });
  }

  /** The weights of an MLP as the operation takes them: position, w1, b1, w2, b2. */
  private INDArray[] weights(Of of, Scope scope) {
    long heads = mlp.heads();
    return new INDArray[] {
      weight(of.position(), scope, heads, mlp.blockLength(), mlp.size()),
      weight(of.hiddenWeight(), scope, heads, mlp.blockLength() * mlp.size(), mlp.hidden()),
      weight(of.hiddenBias(), scope, heads, mlp.hidden()),
      weight(of.outputWeight(), scope, heads, mlp.hidden(), mlp.size()),
      weight(of.outputBias(), scope, heads, mlp.size())
    };
  }

  private INDArray weight(String key, Scope scope, long... shape) {
    return layer.param(key, scope).castTo(scope.type()).dup('c').reshape('c', shape);
  }

  /**
   * Writes the gradient of the branch's columns of P, and those of the MLPs' weights.
   *
   * @return gradient of the queries, [minibatch, time, heads, headSize]
   */
  INDArray backward(Pass p, Result r, INDArray dAttended, INDArray dProjected, Scope scope) {
    AttentionLayer c = layer.layerConf();
    if (r.newBlocks == 0) {
      writeZeros(p, dProjected, scope);
    }
    if (r.keys.isEmpty()) {
      return Memory.view(
          scope.matrix(p.input.count(), p.queries.size(2) * p.queries.size(3)).assign(0),
          0,
          p.queries.shape());
    }
    INDArray[] gradients =
        OPS.compressedAttentionBp(
            p.queries,
            r.keys,
            r.values,
            r.opMask,
            r.attended,
            r.lse,
            dAttended,
            blockLength,
            stride,
            r.keyLength,
            0);
    if (r.newBlocks == 0) {
      return gradients[0];
    }
    INDArray dKeys = Pass.lastRows(gradients[1], r.newBlocks, scope);
    HeadMath.rotateAndNormaliseBackward(
        r.newKeys,
        0,
        dKeys,
        dKeys,
        0,
        c.getNKvHeads(),
        c.getHeadSize(),
        r.newBlocks,
        r.rotation,
        r.keyScales);
    INDArray dValues = Pass.lastRows(gradients[2], r.newBlocks, scope);
    decompress(p, r.tokenKeys, dKeys, Of.KEYS, dProjected, keyColumn, scope);
    decompress(p, r.tokenValues, dValues, Of.VALUES, dProjected, valueColumn, scope);
    return gradients[0];
  }

  /** The gradients where nothing new is compressed. */
  private void writeZeros(Pass p, INDArray dProjected, Scope scope) {
    AttentionLayer c = layer.layerConf();
    INDArray zeros =
        scope.matrix(p.input.count(), (long) c.getNKvHeads() * c.getHeadSize()).assign(0);
    Matrices.copyToColumns(zeros, dProjected, keyColumn);
    Matrices.copyToColumns(zeros, dProjected, valueColumn);
    if (mlp != null) {
      for (Of of : Of.values()) {
        for (String key : params(of)) {
          layer.gradientView(key).assign(0);
        }
      }
    }
  }

  /** From the gradient of compressed rows to that of the projections. */
  private void decompress(
      Pass p,
      INDArray tokens,
      INDArray dRows,
      Of of,
      INDArray dProjected,
      long column,
      Scope scope) {
    long blocks = dRows.rows() / tokens.size(0);
    INDArray dBlocks =
        Memory.view(dRows, 0, tokens.size(0), blocks, tokens.size(2), tokens.size(3));
    INDArray dTokens;
    if (mlp == null) {
      dTokens = OPS.compressMeanBp(dBlocks, tokens.size(1), blockLength, stride);
    } else {
      INDArray[] w = weights(of, scope);
      INDArray[] gradients =
          OPS.compressMlpBp(tokens, w[0], w[1], w[2], w[3], w[4], dBlocks, blockLength, stride);
      dTokens = gradients[0];
      putWeights(of, gradients);
    }
    Matrices.copyToColumns(p.ownRows(dTokens, scope), dProjected, column);
  }

  /**
   * @param gradients of tokens, position, w1, b1, w2, b2
   */
  private void putWeights(Of of, INDArray[] gradients) {
    List<String> keys = params(of);
    for (int i = 0; i < keys.size(); i++) {
      INDArray view = layer.gradientView(keys.get(i));
      view.assign(gradients[i + 1].dup('c').reshape('c', view.shape()));
    }
  }

  private static List<String> params(Of of) {
    return List.of(
        of.position(), of.hiddenWeight(), of.hiddenBias(), of.outputWeight(), of.outputBias());
  }
}
