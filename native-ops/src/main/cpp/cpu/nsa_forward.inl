// nsa_compressed_attention and nsa_selected_attention on the CPU (NSA, sections 3.3.1 and 3.3.2): query-stationary,
// with an online softmax. A chunk of query tokens walks over the tiles of keys that any of them uses; each tile is
// staged once for all of them and all heads of the group.
#pragma once

#include "cpu/nsa_tiles.inl"
#include "cpu/plan.h"

namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET {

/// The target's rows are first rescaled, each by its own factor.
template <typename A>
struct RescaleRowsAndAdd {
  const A* factors;
  GATEDFWA_INLINE Vector<A> operator()(Vector<A> c, Vector<A> x, int64_t row, int) const {
    return c * factors[row] + x;
  }
  static constexpr bool kReadsTarget = true;
};

template <typename A, typename Keys>
struct NsaAttentionForward {
  using Params = NsaForward<typename Keys::Problem>;
  static constexpr int64_t kKeys = kTile<A>;

  struct Buffers {
    int64_t headColumns, valueColumns;
    Chunk chunk;
    typename Keys::Cursor cursor;
    A *q, *o, *max, *sum;                                         ///< of the chunk's rows
    A *k, *kPacked, *v, *bias, *scores, *factor, *qRows, *oRows;  ///< of a tile and a batch
    uint8_t* keep;
    Buffers(const Params& p, Scratch& scratch)
        : headColumns(roundUp(p.headSize, kLanes<A>)),
          valueColumns(roundUp(p.valueSize, kLanes<A>)),
          chunk(tokens(p), scratch),
          cursor(tokens(p), scratch),
          q(scratch.take<A>(tokens(p) * groupOf(p) * headColumns)),
          o(scratch.take<A>(tokens(p) * groupOf(p) * valueColumns)),
          max(scratch.take<A>(tokens(p) * groupOf(p))),
          sum(scratch.take<A>(tokens(p) * groupOf(p))),
          k(scratch.take<A>(kKeys * headColumns)),
          kPacked(scratch.take<A>(kKeys * p.headSize)),
          v(scratch.take<A>(kKeys * valueColumns)),
          bias(scratch.take<A>(kKeys)),
          scores(scratch.take<A>(kBatch<A> * kKeys)),
          factor(scratch.take<A>(kBatch<A>)),
          qRows(scratch.take<A>(kBatch<A> * headColumns)),
          oRows(scratch.take<A>(kBatch<A> * valueColumns)),
          keep(scratch.take<uint8_t>(kKeys)) {}
  };

  static int64_t tokens(const Params& p) { return chunkTokens<A>(p, p.headSize + p.valueSize); }

  static Plan plan(const Params& p) {
    Plan plan;
    Scratch scratch(nullptr);
    Buffers buffers(p, scratch);
    plan.scratchBytes = scratch.used();
    plan.flops = 2.0 * static_cast<double>(p.batch * p.heads * p.queryLength) * Keys::meanKeys(p) *
                 static_cast<double>(p.headSize + p.valueSize);
    plan.add(
        p.batch * p.kvHeads * ceilDivide(p.queryLength, tokens(p)),
        [](const void* params, int64_t item, void* memory) { run(*static_cast<const Params*>(params), item, memory); });
    return plan;
  }

  static void run(const Params& p, int64_t item, void* memory) {
    Scratch scratch(memory);
    Buffers buffers(p, scratch);
    Chunk& chunk = buffers.chunk;
    const int64_t group = groupOf(p), chunks = ceilDivide(p.queryLength, tokens(p));
    chunk.kvHead = item % p.kvHeads, chunk.b = item / p.kvHeads / chunks;
    // The last tokens see most: they come first, so that no worker is left with them at the end.
    const int64_t first = (chunks - 1 - item / p.kvHeads % chunks) * tokens(p);
    for (int64_t t = first; t < least(first + tokens(p), p.queryLength); t++) {
      for (int64_t g = 0; g < group; g++)
        stageRow(p.type, p.q, chunk.b, t, chunk.kvHead * group + g, p.headSize,
                 buffers.q + (chunk.count * group + g) * buffers.headColumns);
      chunk.add<Keys>(p, t);
    }
    const int64_t rows = chunk.count * group;
    for (int64_t i = 0; i < rows; i++) buffers.max[i] = -kInfinity<A>, buffers.sum[i] = 0;
    for (int64_t i = 0; i < rows * buffers.valueColumns; i++) buffers.o[i] = 0;

    Keys::template walk<kKeys>(p, chunk, 0, Keys::count(p), buffers.cursor, [&](const KeyRange& range) {
      const uint8_t* keep = maskOf(p, chunk.b, range.first, range.count, buffers.keep);
      const A* bias = biasOf(keep, range.count, buffers.bias);
      const Staged<A> k = stageKeys(p.type, p.k, chunk.b, chunk.kvHead, range.first, range.count, p.headSize, keep,
                                    buffers.k, buffers.kPacked);
      const Staged<A> v = stageKeys(p.type, p.v, chunk.b, chunk.kvHead, range.first, range.count, p.valueSize, keep,
                                    buffers.v, static_cast<A*>(nullptr));
      for (int64_t row = 0; row < range.memberCount * group; row += kBatch<A>)
        attend(p, Batch<A>(chunk, range, group, row), range, k, v.rows, bias, buffers);
    });

    for (int64_t i = 0; i < chunk.count; i++)
      for (int64_t g = 0; g < group; g++) {
        const int64_t row = i * group + g, h = chunk.kvHead * group + g, t = chunk.tokens[i];
        const A sum = buffers.sum[row];
        *(at<A>(p.lse, chunk.b, h) + t * p.lse.strides[2]) =
            sum == 0 ? -kInfinity<A>
                     : static_cast<A>(kLn2 * buffers.max[row] + __builtin_log(static_cast<double>(sum)));
        writeRows(buffers.o + row * buffers.valueColumns, buffers.valueColumns, sum == 0 ? A(0) : 1 / sum, 1,
                  p.valueSize, p.type, p.o, chunk.b, t, h);
      }
  }

 private:
  static void attend(const Params& p, const Batch<A>& batch, const KeyRange& range, const Staged<A>& k, Rows<A> v,
                     const A* bias, const Buffers& buffers) {
    const A* q = batch.gather(buffers.q, buffers.headColumns, buffers.qRows);
    scoresProduct<A>(batch.count, batch.depth, p.headSize, {q, buffers.headColumns}, k.packed, buffers.scores);
    const int64_t vectors = ceilDivide(batch.depth, kPanel<A>) * 2;
    const A scale = static_cast<A>(p.scale * kLog2E);
    for (int64_t i = 0; i < batch.count; i++) {
      A* scores = buffers.scores + i * kKeys;
      if (bias != nullptr || batch.limit[i] < vectors * kLanes<A>)
        softmax<true>(scores, vectors, scale, batch.limit[i], bias, batch.row[i], buffers.factor[i], buffers);
      else
        softmax<false>(scores, vectors, scale, batch.limit[i], bias, batch.row[i], buffers.factor[i], buffers);
    }

    const int64_t columns = buffers.valueColumns;
    const Left<A> weights{buffers.scores, kKeys, 1};
    A* o = buffers.o;
    if (batch.edge && !allFinite(v.data, range.count * v.ld)) {
      // A query must not see a NaN or infinity of a key that is hidden from it as 0 * NaN.
      for (int64_t i = 0; i < batch.count; i++) {
        A* row = o + batch.row[i] * columns;
        for (int64_t c = 0; c < columns; c++) row[c] *= buffers.factor[i];
        addProductOfVisible(1, columns, batch.depth, Left<A>{buffers.scores + i * kKeys, kKeys, 1}, v.data, v.ld, row,
                            columns);
      }
    } else if (batch.isContiguous()) {
      rowsProduct(batch.count, columns, batch.depth, weights, v.data, v.ld, o + batch.first * columns, columns,
                  RescaleRowsAndAdd<A>{buffers.factor});
    } else {
      rowsProduct(batch.count, columns, batch.depth, weights, v.data, v.ld, buffers.oRows, columns, Assign<A>{});
      for (int64_t i = 0; i < batch.count; i++) {
        A* row = o + batch.row[i] * columns;
        for (int64_t c = 0; c < columns; c += kLanes<A>)
          store(row + c, load(row + c) * buffers.factor[i] + load(buffers.oRows + i * columns + c));
      }
    }
  }

  /// scores: q.k -> weights relative to the row's new maximum; factor: what the row's older weights shrink by.
  template <bool kEdge>
  static void softmax(A* scores, int64_t vectors, A scale, int64_t limit, const A* bias, int64_t row, A& factor,
                      const Buffers& buffers) {
    Vector<A> most = broadcast<A>(-kInfinity<A>);
    for (int64_t v = 0; v < vectors; v++) {
      Vector<A> x = load(scores + v * kLanes<A>) * scale;
      if (kEdge) x = restrictRow<A>(x, limit, v, bias);
      most = greater<A>(x, most);
    }
    const A old = buffers.max[row], highest = maxOfLanes<A>(most), fresh = highest > old ? highest : old;
    const A reference = fresh == -kInfinity<A> ? A(0) : fresh;  // no key yet: exp2(-infinity - 0) = 0
    Vector<A> sum{};
    for (int64_t v = 0; v < vectors; v++) {
      Vector<A> x = load(scores + v * kLanes<A>) * scale - reference;
      if (kEdge) x = restrictRow<A>(x, limit, v, bias);
      const Vector<A> weight = exp2<A>(x);
      store(scores + v * kLanes<A>, weight);
      sum += weight;
    }
    factor = exp2<A>(broadcast<A>(old - reference))[0];
    buffers.max[row] = fresh;
    buffers.sum[row] = buffers.sum[row] * factor + sumOfLanes<A>(sum);
  }
};

}  // namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET
