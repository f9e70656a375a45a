package io.github.gatedfwa.samediff;

import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;
import org.nd4j.linalg.api.buffer.DataType;

/**
 * The functions of the native NSA ops as graphs of ND4J's own ops, whose gradients are ND4J's.
 * Dense: memory grows with N · C and N · M. Half types are computed in float32; as in {@link
 * ComposedGraph}, invisible keys get large negative scores and a NaN reaches the rows that see it.
 */
final class ComposedNsaGraph {

  /** An importance above all others. */
  private static final double ALWAYS = 1e30;

  private final SameDiff sd;
  private final VisiblePairsGraph pairs;

  ComposedNsaGraph(SameDiff sd) {
    this.sd = sd;
    pairs = new VisiblePairsGraph(sd);
  }

  SDVariable[] compressedAttention(
      SDVariable q,
      SDVariable kCmp,
      SDVariable vCmp,
      SDVariable mask,
      long blockLength,
      long stride,
      long keyLength,
      double scale) {
    Arguments.present(NsaArguments.COMPRESSED, "q", q);
    Arguments.present(NsaArguments.COMPRESSED, "kCmp", kCmp);
    Arguments.present(NsaArguments.COMPRESSED, "vCmp", vCmp);
    Sizes sizes = new Sizes(q, kCmp);
    SDVariable seen = seenBlocks(sizes, mask, blockLength, stride, keyLength);
    return attention(sizes, q, vCmp, seen, scores(sizes, q, kCmp, mask, seen, scale));
  }

  SDVariable[] selectedAttention(
      SDVariable q,
      SDVariable k,
      SDVariable v,
      SDVariable indices,
      SDVariable mask,
      long selectionBlock,
      double scale) {
    Arguments.present(NsaArguments.SELECTED, "q", q);
    Arguments.present(NsaArguments.SELECTED, "k", k);
    Arguments.present(NsaArguments.SELECTED, "v", v);
    Arguments.present(NsaArguments.SELECTED, "indices", indices);
    Sizes sizes = new Sizes(q, k);
    SDVariable token = row(sizes.keys); // [1, M]
    SDVariable block = sd.math().floorDiv(token, sd.constant(selectionBlock));
    SDVariable chosen =
        sd.expandDims(indices.castTo(DataType.INT64), 4)
            .eq(block.reshape(1, 1, 1, 1, -1))
            .castTo(sizes.type)
            .sum(3);
    SDVariable one = sd.constant(1L);
    SDVariable seen =
        chosen
            .permute(0, 2, 1, 3)
            .reshape(sd.stack(0, sizes.batch, sizes.kvHeads, one, sizes.queries, sizes.keys));
    SDVariable position = positions(sizes, sizes.keys);
    SDVariable past = position.gte(token).castTo(sizes.type);
    seen = seen.mul(past);
    if (mask != null) {
      seen = seen.mul(real(sizes, mask));
    }
    return attention(sizes, q, v, seen, scores(sizes, q, k, mask, seen, scale));
  }

  SDVariable select(
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
    Arguments.present(NsaArguments.SELECT, "q", q);
    Arguments.present(NsaArguments.SELECT, "kCmp", kCmp);
    Arguments.present(NsaArguments.SELECT, "lse", lse);
    Sizes sizes = new Sizes(q, kCmp);
    SDVariable one = sd.constant(1L);
    SDVariable seen = seenBlocks(sizes, mask, blockLength, stride, keyLength);
    SDVariable scores = scores(sizes, q, kCmp, mask, seen, scale);
    SDVariable finiteLse = sd.max(lse, sd.constant(VisiblePairs.DEAD).castTo(sizes.type));
    SDVariable rows =
        sd.where(lse, finiteLse, sd.math().isNaN(lse))
            .reshape(sd.stack(0, sizes.batch, sizes.kvHeads, sd.constant(-1L), sizes.queries, one));
    SDVariable weights = sd.math().exp(scores.sub(rows)).sum(2).castTo(DataType.DOUBLE);
    weights = sd.where(sd.zerosLike(weights), weights, sd.math().isNaN(weights));

    // How many pieces of d tokens compressed block c (row) and selection block s (column) share.
    SDVariable length = keyLength(sizes, keyLength);
    SDVariable blocks =
        sd.math().floorDiv(length.add((double) (selectionBlock - 1)), sd.constant(selectionBlock));
    SDVariable index = row(blocks);
    long perBlock = blockLength / stride;
    long perSelection = selectionBlock / stride;
    SDVariable firstPiece = index.mul((double) perSelection);
    SDVariable compressed = row(sizes.keys).reshape(-1, 1);
    SDVariable shared =
        sd.max(
                sd.min(compressed.add((double) perBlock), firstPiece.add((double) perSelection))
                    .sub(sd.max(compressed, firstPiece)),
                sd.constant(0L))
            .castTo(DataType.DOUBLE);

    // [B, Hkv, N, S]
    SDVariable flat = sd.stack(0, sd.constant(-1L), sizes.keys);
    SDVariable perQuery = sd.stack(0, sizes.batch, sizes.kvHeads, sizes.queries, blocks);
    SDVariable importance = sd.mmul(weights.reshape(flat), shared).reshape(perQuery);
    SDVariable seenPieces =
        sd.mmul(seen.castTo(DataType.DOUBLE).reshape(flat), shared)
            .reshape(sd.stack(0, sd.constant(-1L), one, sizes.queries, blocks));
    SDVariable candidate = seenPieces.gt(0).castTo(DataType.DOUBLE);
    SDVariable ownBlock =
        sd.math().floorDiv(positions(sizes, length), sd.constant(selectionBlock)); // [N, 1]
    SDVariable own = ownBlock.eq(index).castTo(DataType.DOUBLE);
    SDVariable before = ownBlock.sub(1).eq(index).castTo(DataType.DOUBLE);
    candidate = sd.max(candidate, own.mul(sd.onesLike(candidate)));
    SDVariable first = sd.cumsum(candidate, false, false, 3).eq(1).castTo(DataType.DOUBLE);
    SDVariable always = sd.max(own, sd.max(before, first)).mul(candidate);
    // −1 for no candidate: a place behind all others.
    SDVariable rankedBy = importance.add(always.mul(ALWAYS)).add(1).mul(candidate).sub(1);
    SDVariable mine = sd.expandDims(rankedBy, 4);
    SDVariable others = sd.expandDims(rankedBy, 3);
    SDVariable earlier = index.lt(index.reshape(-1, 1)).castTo(DataType.DOUBLE);
    SDVariable rank =
        others
            .gt(mine)
            .castTo(DataType.DOUBLE)
            .add(others.eq(mine).castTo(DataType.DOUBLE).mul(earlier))
            .sum(4);
    SDVariable taken = rank.lt((double) topN).castTo(DataType.DOUBLE).mul(candidate);
    SDVariable place = sd.cumsum(taken, true, false, 3);
    // Each place's block number plus one, 0 for none.
    SDVariable numbered = taken.mul(index.castTo(DataType.DOUBLE).add(1));
    SDVariable places = row(sd.constant(topN)).castTo(DataType.DOUBLE).reshape(1, 1, 1, 1, -1);
    SDVariable atPlace = sd.expandDims(place, 4).eq(places).castTo(DataType.DOUBLE);
    return atPlace
        .mul(sd.expandDims(numbered, 4))
        .sum(3)
        .sub(1)
        .permute(0, 2, 1, 3)
        .castTo(DataType.INT32);
  }

  /** Sizes of a call, and the type that it is computed in. */
  private final class Sizes {

    final DataType type;
    final SDVariable batch;
    final SDVariable queries;
    final SDVariable heads;
    final SDVariable headSize;
    final SDVariable keys;
    final SDVariable kvHeads;

    Sizes(SDVariable q, SDVariable k) {
      type = NativeOp.accumulatorType(q.dataType());
      SDVariable[] ofQueries = sd.unstack(sd.shape(q), 0, 4);
      batch = ofQueries[0];
      queries = ofQueries[1];
      heads = ofQueries[2];
      headSize = ofQueries[3];
      SDVariable[] ofKeys = sd.unstack(sd.shape(k), 0, 4);
      keys = ofKeys[1];
      kvHeads = ofKeys[2];
    }
  }

  private SDVariable keyLength(Sizes sizes, long keyLength) {
    return keyLength == 0 ? sizes.queries : sd.constant(keyLength);
  }

  /** Of each query, [N, 1]. */
  private SDVariable positions(Sizes sizes, SDVariable length) {
    return sd.expandDims(range(length.sub(sizes.queries), length), 1);
  }

  /** 1 where a query sees a block, else 0: [B or 1, 1, 1, N, C]. */
  private SDVariable seenBlocks(
      Sizes sizes, SDVariable mask, long blockLength, long stride, long keyLength) {
    SDVariable last = row(sizes.keys).mul((double) stride).add((double) (blockLength - 1));
    SDVariable complete =
        positions(sizes, keyLength(sizes, keyLength)).gte(last).castTo(sizes.type);
    SDVariable one = sd.constant(1L);
    SDVariable seen = complete.reshape(sd.stack(0, one, one, one, sizes.queries, sizes.keys));
    return mask == null ? seen : seen.mul(real(sizes, mask));
  }

  private SDVariable real(Sizes sizes, SDVariable mask) {
    SDVariable one = sd.constant(1L);
    return mask.castTo(sizes.type)
        .neq(0)
        .castTo(sizes.type)
        .reshape(sd.stack(0, sizes.batch, one, one, one, sizes.keys));
  }

  /** [B, Hkv, G, N, keys] */
  private SDVariable scores(
      Sizes sizes, SDVariable q, SDVariable k, SDVariable mask, SDVariable seen, double scale) {
    SDVariable rest = sd.constant(-1L);
    SDVariable ownK = k.castTo(sizes.type);
    if (mask != null) {
      SDVariable one = sd.constant(1L);
      SDVariable ofTokens = sd.stack(0, sizes.batch, sizes.keys, one, one);
      ownK = pairs.only(real(sizes, mask).reshape(ofTokens), ownK);
    }
    SDVariable grouped =
        headFirst(q, sizes.type)
            .reshape(sd.stack(0, sizes.batch, sizes.kvHeads, rest, sizes.headSize));
    SDVariable products =
        sd.mmul(grouped, headFirst(ownK, sizes.type), false, true, false)
            .reshape(sd.stack(0, sizes.batch, sizes.kvHeads, rest, sizes.queries, sizes.keys));
    SDVariable scaled =
        scale != 0
            ? products.mul(scale)
            : products.div(sd.math().sqrt(sizes.headSize.castTo(sizes.type)));
    return pairs.hide(seen, scaled);
  }

  private SDVariable[] attention(
      Sizes sizes, SDVariable q, SDVariable v, SDVariable seen, SDVariable scores) {
    SDVariable rest = sd.constant(-1L);
    SDVariable dead = sd.constant(VisiblePairs.DEAD).castTo(sizes.type);
    SDVariable max = sd.max(sd.max(scores, true, 4), dead);
    SDVariable weights = sd.math().exp(scores.sub(max));
    SDVariable sum = weights.sum(true, 4);
    // A row that sees anything has a sum of at least 1.
    SDVariable probabilities = weights.div(sd.max(sum, sd.constant(0.5).castTo(sizes.type)));
    SDVariable flat = sd.stack(0, sizes.batch, sizes.kvHeads, rest, sizes.keys);
    SDVariable ofHeads = seen.add(sd.zerosLike(scores));
    SDVariable o =
        pairs.product(ofHeads.reshape(flat), probabilities.reshape(flat), headFirst(v, sizes.type));
    SDVariable perHead = o.reshape(sd.stack(0, sizes.batch, sizes.heads, sizes.queries, rest));
    SDVariable lse =
        sd.math().log(sum).add(max).reshape(sd.stack(0, sizes.batch, sizes.heads, sizes.queries));
    return new SDVariable[] {perHead.permute(0, 2, 1, 3).castTo(q.dataType()), lse};
  }

  /** 0, 1, .. as [1, count]: a single query's [1, 1] against [count] would broadcast to [count]. */
  private SDVariable row(SDVariable count) {
    return sd.expandDims(range(sd.constant(0L), count), 0);
  }

  private SDVariable range(SDVariable from, SDVariable to) {
    return sd.range(from, to, sd.constant(1L), DataType.INT64);
  }

  private static SDVariable headFirst(SDVariable x, DataType type) {
    return x.castTo(type).permute(0, 2, 1, 3);
  }
}
