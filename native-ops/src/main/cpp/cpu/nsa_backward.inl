// nsa_compressed_attention_bp and nsa_selected_attention_bp on the CPU. Two passes, neither of which has two workers
// add to one number: dq query-stationary as in the forward pass; dk and dv key-stationary, each work item looking for
// the queries that use its keys. Additions happen in an order that shape and indices alone decide.
#pragma once

#include "cpu/nsa_tiles.inl"
#include "cpu/plan.h"

namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET {

template <typename A, typename Keys>
struct NsaAttentionBackward {
  using Params = NsaBackward<typename Keys::Problem>;
  static constexpr int64_t kKeys = kTile<A>;
  template <typename T>
  static constexpr T kEpsilon = sizeof(T) == 4 ? T(0x1p-23) : T(0x1p-52);

  /// Rows of a chunk of queries. P = exp2((scale' * q.k - high) - low), scale' = scale * log2(e): `high` nearly cancels
  /// the score before the small term comes in.
  struct QueryRows {
    int64_t headColumns, valueColumns;
    Chunk chunk;
    typename Keys::Cursor cursor;
    A *q, *dO;
    A* high;   ///< log2(e) * lse, rounded; +infinity for a row without a key
    A* low;    ///< what the rounding of `high` left
    A* delta;  ///< dO . o
    A* sum;    ///< of the weights
    A *qRows, *dORows, *weight, *dS, *o;
    uint8_t* keep;
    QueryRows(const Params& p, int64_t tokens, Scratch& scratch)
        : headColumns(roundUp(p.headSize, kLanes<A>)),
          valueColumns(roundUp(p.valueSize, kLanes<A>)),
          chunk(tokens, scratch),
          cursor(tokens, scratch),
          q(scratch.take<A>(tokens * groupOf(p) * headColumns)),
          dO(scratch.take<A>(tokens * groupOf(p) * valueColumns)),
          high(scratch.take<A>(tokens * groupOf(p))),
          low(scratch.take<A>(tokens * groupOf(p))),
          delta(scratch.take<A>(tokens * groupOf(p))),
          sum(scratch.take<A>(tokens * groupOf(p))),
          qRows(scratch.take<A>(kBatch<A> * headColumns)),
          dORows(scratch.take<A>(kBatch<A> * valueColumns)),
          weight(scratch.take<A>(kBatch<A> * kKeys)),
          dS(scratch.take<A>(kBatch<A> * kKeys)),
          o(scratch.take<A>(valueColumns)),
          keep(scratch.take<uint8_t>(kKeys)) {}

    /// Takes a token on; `first`: in the first pass.
    void add(const Params& p, int64_t t, bool first) {
      const int64_t group = groupOf(p);
      for (int64_t g = 0; g < group; g++) {
        const int64_t row = chunk.count * group + g, h = chunk.kvHead * group + g;
        stageRow(p.type, p.q, chunk.b, t, h, p.headSize, q + row * headColumns);
        A* gradient = dO + row * valueColumns;
        stageRow(p.type, p.dO, chunk.b, t, h, p.valueSize, gradient);
        const A lse = *(at<A>(p.lse, chunk.b, h) + t * p.lse.strides[2]);
        const bool empty = lse == -kInfinity<A>;
        high[row] = empty ? kInfinity<A> : static_cast<A>(kLog2E * lse);
        if (!first) {
          const RowTerms& terms = rowTerms(p, chunk.b, h, t);
          low[row] = terms.low;
          delta[row] = terms.delta;
          continue;
        }
        low[row] = empty ? A(0) : static_cast<A>(kLog2E * lse - high[row]);
        sum[row] = 0;
        stageRow(p.type, p.o, chunk.b, t, h, p.valueSize, o);
        // Added up as the products make dP, fused or not: a row that sees one key has o = v, and then dP - delta is 0.
        Vector<A> dot{};
        for (int64_t c = 0; c < p.valueSize; c++) dot += broadcast<A>(gradient[c]) * broadcast<A>(o[c]);
        delta[row] = dot[0];
      }
      chunk.template add<Keys>(p, t);
    }
  };

  /// What the first pass leaves to the second: `low` corrected so that the weights add up to 1, and delta.
  struct RowTerms {
    A low, delta;
  };
  static RowTerms& rowTerms(const Params& p, int64_t b, int64_t h, int64_t t) {
    return static_cast<RowTerms*>(p.workspace)[(b * p.heads + h) * p.queryLength + t];
  }

  /// A staged tile of keys.
  struct KeyTile {
    A *k, *kPacked, *vPacked, *bias;
    Rows<A> rows;  ///< of k
    const A* ownBias;
    KeyTile() = default;
    KeyTile(const Params& p, int64_t keys, Scratch& scratch)
        : k(scratch.take<A>(keys * roundUp(p.headSize, kLanes<A>))),
          kPacked(scratch.take<A>(roundUp(keys, kPanel<A>) * p.headSize)),
          vPacked(scratch.take<A>(roundUp(keys, kPanel<A>) * p.valueSize)),
          bias(scratch.take<A>(roundUp(keys, kPanel<A>))),
          rows{nullptr, 0},
          ownBias(nullptr) {}
    /// `buffer` has room for kKeys rows of v.
    void load(const Params& p, int64_t b, int64_t kvHead, int64_t first, int64_t count, uint8_t* keep, A* buffer) {
      const uint8_t* kept = maskOf(p, b, first, count, keep);
      ownBias = biasOf(kept, count, bias);
      rows = stageKeys(p.type, p.k, b, kvHead, first, count, p.headSize, kept, k, kPacked).rows;
      stageKeys(p.type, p.v, b, kvHead, first, count, p.valueSize, kept, buffer, vPacked);
    }
  };

  static int64_t queryTokens(const Params& p) { return chunkTokens<A>(p, 2 * p.headSize + p.valueSize); }
  /// Tokens that a key-stationary item gathers before it computes.
  static int64_t keyTokens(const Params& p) { return most(1, least(16 * kBatch<A> / groupOf(p), p.queryLength)); }
  static int64_t tileKeys(const Params& p) { return Keys::tileKeys(p, kKeys); }
  static int64_t itemKeys(const Params& p) {
    constexpr int64_t kLeastItems = 64;
    const int64_t unit = Keys::unit(p, kKeys);
    int64_t units = Keys::units(p, kKeys);
    while (units > 1 && p.batch * p.kvHeads * ceilDivide(Keys::count(p), units * unit) < kLeastItems) units /= 2;
    return units * unit;
  }

  struct QueryBuffers {
    QueryRows rows;
    KeyTile tile;
    A *dq, *v, *dqRows;
    QueryBuffers(const Params& p, Scratch& scratch)
        : rows(p, queryTokens(p), scratch),
          tile(p, kKeys, scratch),
          dq(scratch.take<A>(queryTokens(p) * groupOf(p) * rows.headColumns)),
          v(scratch.take<A>(kKeys * rows.valueColumns)),
          dqRows(scratch.take<A>(kBatch<A> * rows.headColumns)) {}
  };

  struct KeyBuffers {
    QueryRows rows;
    int64_t slots;
    char* tiles;
    A *dk, *dv, *v;  ///< dk, dv: [slots][tileKeys][columns]
    KeyBuffers(const Params& p, Scratch& scratch)
        : rows(p, keyTokens(p), scratch),
          slots(Keys::slots(p, itemKeys(p), kKeys)),
          tiles(scratch.take<char>(slots * tileBytes(p))),
          dk(scratch.take<A>(slots * tileKeys(p) * rows.headColumns)),
          dv(scratch.take<A>(slots * tileKeys(p) * rows.valueColumns)),
          v(scratch.take<A>(kKeys * rows.valueColumns)) {}
    static int64_t tileBytes(const Params& p) {
      Scratch scratch(nullptr);
      scratch.take<KeyTile>(1);
      KeyTile(p, tileKeys(p), scratch);
      return static_cast<int64_t>(scratch.used());
    }
    KeyTile& tile(const Params& p, int64_t slot) const {
      return *reinterpret_cast<KeyTile*>(tiles + slot * tileBytes(p));
    }
  };

  static Plan plan(const Params& p) {
    Plan plan;
    Scratch queryScratch(nullptr), keyScratch(nullptr);
    QueryBuffers queryBuffers(p, queryScratch);
    KeyBuffers keyBuffers(p, keyScratch);
    plan.scratchBytes = queryScratch.used() > keyScratch.used() ? queryScratch.used() : keyScratch.used();
    plan.workspaceBytes = static_cast<size_t>(p.batch * p.heads * p.queryLength) * sizeof(RowTerms);
    plan.flops = 7.0 * static_cast<double>(p.batch * p.heads * p.queryLength) * Keys::meanKeys(p) *
                 static_cast<double>(p.headSize + p.valueSize);
    plan.add(p.batch * p.kvHeads * ceilDivide(p.queryLength, queryTokens(p)),
             [](const void* params, int64_t item, void* memory) {
               runQueries(*static_cast<const Params*>(params), item, memory);
             });
    plan.add(p.batch * p.kvHeads * ceilDivide(Keys::count(p), itemKeys(p)),
             [](const void* params, int64_t item, void* memory) {
               runKeys(*static_cast<const Params*>(params), item, memory);
             });
    return plan;
  }

 private:
  /// dq of a chunk of tokens.
  static void runQueries(const Params& p, int64_t item, void* memory) {
    Scratch scratch(memory);
    QueryBuffers buffers(p, scratch);
    QueryRows& rows = buffers.rows;
    const int64_t group = groupOf(p), chunks = ceilDivide(p.queryLength, queryTokens(p));
    rows.chunk.kvHead = item % p.kvHeads, rows.chunk.b = item / p.kvHeads / chunks;
    const int64_t first = (chunks - 1 - item / p.kvHeads % chunks) * queryTokens(p);
    for (int64_t t = first; t < least(first + queryTokens(p), p.queryLength); t++) rows.add(p, t, true);
    const int64_t columns = rows.headColumns;
    for (int64_t i = 0; i < rows.chunk.count * group * columns; i++) buffers.dq[i] = 0;

    Keys::template walk<kKeys>(p, rows.chunk, 0, Keys::count(p), rows.cursor, [&](const KeyRange& range) {
      KeyTile& tile = buffers.tile;
      tile.load(p, rows.chunk.b, rows.chunk.kvHead, range.first, range.count, rows.keep, buffers.v);
      for (int64_t row = 0; row < range.memberCount * group; row += kBatch<A>) {
        const Batch<A> batch(rows.chunk, range, group, row);
        pairs<true>(p, batch, tile, rows);
        const bool finite = !batch.edge || allFinite(tile.rows.data, range.count * tile.rows.ld);
        const Left<A> dS{rows.dS, kKeys, 1};
        if (batch.isContiguous()) {
          addGuarded<A>(finite, batch.count, columns, batch.depth, dS, tile.rows.data, tile.rows.ld,
                        buffers.dq + batch.first * columns, columns);
          continue;
        }
        for (int64_t i = 0; i < batch.count * columns; i++) buffers.dqRows[i] = 0;
        addGuarded<A>(finite, batch.count, columns, batch.depth, dS, tile.rows.data, tile.rows.ld, buffers.dqRows,
                      columns);
        for (int64_t i = 0; i < batch.count; i++) {
          A* to = buffers.dq + batch.row[i] * columns;
          for (int64_t c = 0; c < columns; c += kLanes<A>)
            store(to + c, load(to + c) + load(buffers.dqRows + i * columns + c));
        }
      }
    });

    for (int64_t i = 0; i < rows.chunk.count; i++)
      for (int64_t g = 0; g < group; g++) {
        const int64_t row = i * group + g, h = rows.chunk.kvHead * group + g, t = rows.chunk.tokens[i];
        // Not for a row without a key, nor if somebody brought another lse than the forward pass's: then the weights
        // need not add up to 1.
        const A sum = rows.sum[row], lse = static_cast<A>(kLn2 * rows.high[row]);
        const A rounding = A(8) * kEpsilon<A> * (lse < 0 ? 1 - lse : 1 + lse);
        const bool corrected = rounding < kInfinity<A> && sum - 1 < rounding && 1 - sum < rounding;
        writeRows(buffers.dq + row * columns, columns, static_cast<A>(p.scale) / (corrected ? sum : A(1)), 1,
                  p.headSize, p.type, p.dq, rows.chunk.b, t, h);
        const A correction = corrected ? static_cast<A>(kLog2E * __builtin_log(static_cast<double>(sum))) : A(0);
        rowTerms(p, rows.chunk.b, h, t) = {rows.low[row] + correction, rows.delta[row]};
      }
  }

  /// dk, dv of a range of keys.
  static void runKeys(const Params& p, int64_t item, void* memory) {
    Scratch scratch(memory);
    KeyBuffers buffers(p, scratch);
    QueryRows& rows = buffers.rows;
    const int64_t parts = ceilDivide(Keys::count(p), itemKeys(p));
    const int64_t b = item / p.kvHeads / parts, kvHead = item % p.kvHeads;
    const int64_t begin = item / p.kvHeads % parts * itemKeys(p), end = least(begin + itemKeys(p), Keys::count(p));
    rows.chunk.b = b, rows.chunk.kvHead = kvHead;
    Keys::forEachTile(p, begin, end, kKeys, [&](int64_t first, int64_t count, int64_t slot) {
      Scratch own(buffers.tiles + slot * KeyBuffers::tileBytes(p));
      KeyTile* tile = own.take<KeyTile>(1);
      *tile = KeyTile(p, tileKeys(p), own);
      tile->load(p, b, kvHead, first, count, rows.keep, buffers.v);
    });
    for (int64_t i = 0; i < buffers.slots * tileKeys(p) * rows.headColumns; i++) buffers.dk[i] = 0;
    for (int64_t i = 0; i < buffers.slots * tileKeys(p) * rows.valueColumns; i++) buffers.dv[i] = 0;

    const int64_t capacity = keyTokens(p);
    for (int64_t t = 0; t < p.queryLength; t++) {
      if (Keys::uses(p, b, kvHead, t, begin, end)) rows.add(p, t, false);
      if (rows.chunk.count == capacity || (t == p.queryLength - 1 && rows.chunk.count > 0)) {
        addToKeys(p, begin, end, buffers);
        rows.chunk.count = 0;
      }
    }

    Keys::forEachTile(p, begin, end, kKeys, [&](int64_t first, int64_t count, int64_t slot) {
      writeRows(buffers.dk + slot * tileKeys(p) * rows.headColumns, rows.headColumns, static_cast<A>(p.scale), count,
                p.headSize, p.type, p.dk, b, first, kvHead);
      writeRows(buffers.dv + slot * tileKeys(p) * rows.valueColumns, rows.valueColumns, A(1), count, p.valueSize,
                p.type, p.dv, b, first, kvHead);
    });
  }

  static void addToKeys(const Params& p, int64_t begin, int64_t end, const KeyBuffers& buffers) {
    const QueryRows& rows = buffers.rows;
    const int64_t group = groupOf(p);
    Keys::template walk<kKeys>(p, rows.chunk, begin, end, rows.cursor, [&](const KeyRange& range) {
      const KeyTile& tile = buffers.tile(p, range.slot);
      A* dk = buffers.dk + range.slot * tileKeys(p) * rows.headColumns;
      A* dv = buffers.dv + range.slot * tileKeys(p) * rows.valueColumns;
      for (int64_t row = 0; row < range.memberCount * group; row += kBatch<A>) {
        const Batch<A> batch(rows.chunk, range, group, row);
        const auto [q, dO] = pairs<false>(p, batch, tile, rows);
        const bool edge = batch.edge || tile.ownBias != nullptr;
        const bool finite =
            !edge || (allFinite(q, batch.count * rows.headColumns) && allFinite(dO, batch.count * rows.valueColumns));
        addGuarded<A>(finite, batch.depth, rows.valueColumns, batch.count, Left<A>{rows.weight, 1, kKeys}, dO,
                      rows.valueColumns, dv, rows.valueColumns);
        addGuarded<A>(finite, batch.depth, rows.headColumns, batch.count, Left<A>{rows.dS, 1, kKeys}, q,
                      rows.headColumns, dk, rows.headColumns);
      }
    });
  }

  struct Operands {
    const A *q, *dO;
  };

  /// weight = P and dS = P o (dP - delta) of a batch of rows and a tile; returns the rows' q and dO.
  template <bool kFirst>
  static Operands pairs(const Params& p, const Batch<A>& batch, const KeyTile& tile, const QueryRows& rows) {
    const A* q = batch.gather(rows.q, rows.headColumns, rows.qRows);
    const A* dO = batch.gather(rows.dO, rows.valueColumns, rows.dORows);
    scoresProduct<A>(batch.count, batch.depth, p.headSize, {q, rows.headColumns}, tile.kPacked, rows.weight);
    scoresProduct<A>(batch.count, batch.depth, p.valueSize, {dO, rows.valueColumns}, tile.vPacked, rows.dS);
    const int64_t vectors = ceilDivide(batch.depth, kPanel<A>) * 2;
    const A scale = static_cast<A>(p.scale * kLog2E);
    for (int64_t i = 0; i < batch.count; i++) {
      A *weight = rows.weight + i * kKeys, *dS = rows.dS + i * kKeys;
      if (tile.ownBias != nullptr || batch.limit[i] < vectors * kLanes<A>)
        gradientOfScores<kFirst, true>(weight, dS, vectors, scale, batch.limit[i], tile.ownBias, batch.row[i], rows);
      else
        gradientOfScores<kFirst, false>(weight, dS, vectors, scale, batch.limit[i], tile.ownBias, batch.row[i], rows);
    }
    return {q, dO};
  }

  template <bool kFirst, bool kEdge>
  static void gradientOfScores(A* weight, A* dS, int64_t vectors, A scale, int64_t limit, const A* bias, int64_t row,
                               const QueryRows& rows) {
    const A high = rows.high[row], low = rows.low[row], delta = rows.delta[row];
    Vector<A> sum{};
    for (int64_t v = 0; v < vectors; v++) {
      Vector<A> exponent = (load(weight + v * kLanes<A>) * scale - high) - low;
      if (kEdge) exponent = restrictRow<A>(exponent, limit, v, bias);
      const Vector<A> P = exp2<A>(exponent);
      Vector<A> gradient = P * (load(dS + v * kLanes<A>) - delta);
      if (kEdge) gradient = P == 0 ? Vector<A>{} : gradient;
      store(weight + v * kLanes<A>, P);
      store(dS + v * kLanes<A>, gradient);
      if (kFirst) sum += P;
    }
    if (kFirst) rows.sum[row] += sumOfLanes<A>(sum);
  }
};

}  // namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET
