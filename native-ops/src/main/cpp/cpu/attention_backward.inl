// gated_fwa_bp on the CPU. Key-stationary: K and V are packed once per key tile, dk and dv stay in scratch, and the
// column sums of dS that dalpha needs fall out of the scores' layout, scores[query][key].
//
// A work item is a segment of key tiles, at least as long as the window. Its queries lie in this segment and the next,
// so all even segments can add to dq at the same time, then all odd ones: five products per tile, no atomics, and an
// order of additions that depends on the shape alone. For 16-bit types dq would be rounded twice on that way; a
// query-stationary pass of its own computes it (two products more).
#pragma once

#include "cpu/plan.h"
#include "cpu/query_tile.inl"

namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET {

template <typename E>
struct Backward {
  using A = Accumulator<E>;
  static constexpr int64_t kSize = kTile<A>;
  static constexpr int64_t kWidth = kPanel<A>;
  static constexpr bool kAddsToDq = kIsAccumulator<E>;
  static constexpr int64_t kLeastSegment = 4;
  static constexpr int64_t kBlock = 2;  ///< key tiles that share a staged query tile
  /// From here on the rounding of lse would show in P = exp(s - lse); see normalise.
  static constexpr A kLargeLse = 16;

  /// Key tiles are aligned with the queries' first token; the first may be cut short by the start of the sequence.
  struct Tiling {
    int64_t padding, tiles, firstQueryTile, segmentTiles, segments, reach;
    explicit Tiling(const AttentionProblem& p) {
      const int64_t past = p.keyLength - p.queryLength, span = (p.window - 1 + kSize - 1) / kSize;
      padding = roundUp(past, kSize) - past;
      tiles = (p.keyLength + padding + kSize - 1) / kSize;
      firstQueryTile = (past + padding) / kSize;
      segmentTiles = most(kLeastSegment, span);
      segments = (tiles + segmentTiles - 1) / segmentTiles;
      reach = least(segmentTiles + span, tiles - firstQueryTile);
    }
    int64_t begin(int64_t tile) const { return most(0, tile * kSize - padding); }
  };

  /// What the pairs of one query row share. P = exp2((scale' * q.k - high) + (bias - low)), scale' = scale * log2(e):
  /// `high` nearly cancels the score before the small terms come in.
  struct RowTerms {
    A* high;      ///< log2(e) * lse, rounded; +infinity for a row without a key
    A* low;       ///< what the rounding of `high` left
    A* lowDecay;  ///< low + log2(e) * sum of alpha from the row's tile to the row
    A* delta;     ///< dO . o
    RowTerms(int64_t rows, Scratch& scratch)
        : high(scratch.take<A>(rows)),
          low(scratch.take<A>(rows)),
          lowDecay(scratch.take<A>(rows)),
          delta(scratch.take<A>(rows)) {}
    RowTerms(const RowTerms& from, int64_t row)
        : high(from.high + row), low(from.low + row), lowDecay(from.lowDecay + row), delta(from.delta + row) {}
  };

  /// One key tile of the block at hand.
  struct KeyTileBuffers {
    A *k, *kPacked, *vPacked, *dk, *dv, *bias, *columnSum;
    uint8_t* keep;
  };

  struct Buffers {
    int64_t headColumns, valueColumns;
    A *q, *dO, *weight, *dS, *dq, *tileSum;
    KeyTileBuffers tiles[kBlock];
    typename QueryTile<E>::Buffers keys;
    RowTerms rows;  ///< [group][reach * kSize]
    Buffers(const AttentionProblem& p, const Tiling& tiling, Scratch& scratch)
        : headColumns(roundUp(p.headSize, kLanes<A>)),
          valueColumns(roundUp(p.valueSize, kLanes<A>)),
          q(scratch.take<A>(kSize * headColumns)),
          dO(scratch.take<A>(kSize * valueColumns)),
          weight(scratch.take<A>(kSize * kSize)),
          dS(scratch.take<A>(kSize * kSize)),
          dq(scratch.take<A>(kSize * most(headColumns, valueColumns))),
          tileSum(scratch.take<A>(kSize)),
          keys(p, scratch),
          rows(p.heads / p.kvHeads * tiling.reach * kSize, scratch) {
      for (KeyTileBuffers& tile : tiles)
        tile = {scratch.take<A>(kSize * headColumns),
                scratch.take<A>(kSize * p.headSize),
                scratch.take<A>(kSize * p.valueSize),
                scratch.take<A>(kSize * headColumns),
                scratch.take<A>(kSize * valueColumns),
                scratch.take<A>(kSize),
                scratch.take<A>(kSize),
                scratch.take<uint8_t>(kSize)};
    }
  };

  static Plan plan(const AttentionBackward& p) {
    using Params = AttentionBackward;
    Plan plan;
    const Tiling tiling(p);
    Scratch scratch(nullptr), queryScratch(nullptr);
    Buffers buffers(p, tiling, scratch);
    QueryBuffers queryBuffers(p, queryScratch);
    plan.scratchBytes = scratch.used() > queryScratch.used() ? scratch.used() : queryScratch.used();
    plan.flops = 5.0 * static_cast<double>(p.batch * p.heads * p.queryLength) *
                 static_cast<double>(least(p.window + kSize, p.keyLength) * (p.headSize + p.valueSize));
    plan.add(p.batch * p.heads,
             [](const void* params, int64_t item, void*) { clear(*static_cast<const Params*>(params), item); });
    plan.add(p.batch * p.kvHeads * ((tiling.segments + 1) / 2), [](const void* params, int64_t item, void* memory) {
      runSegment(*static_cast<const Params*>(params), item, 0, memory);
    });
    plan.add(p.batch * p.kvHeads * (tiling.segments / 2), [](const void* params, int64_t item, void* memory) {
      runSegment(*static_cast<const Params*>(params), item, 1, memory);
    });
    if (!kAddsToDq)
      plan.add(QueryTile<E>::items(p), [](const void* params, int64_t item, void* memory) {
        runQueryTile(*static_cast<const Params*>(params), item, memory);
      });
    if (p.dalpha.data)
      plan.add(p.batch * p.heads,
               [](const void* params, int64_t item, void*) { finishDecay(*static_cast<const Params*>(params), item); });
    return plan;
  }

 private:
  static void clear(const AttentionBackward& p, int64_t item) {
    const int64_t h = item % p.heads, b = item / p.heads;
    if (kAddsToDq)
      for (int64_t t = 0; t < p.queryLength; t++) {
        E* row = at<E>(p.dq, b, t, h);
        for (int64_t c = 0; c < p.headSize; c++) narrow(A(0), row[c * p.dq.strides[3]]);
      }
    if (p.dalpha.data)
      for (int64_t j = 0; j < p.keyLength; j++) *at<A>(p.dalpha, b, j, h) = 0;
  }

  /// With F(tau) = sum of dS over the pairs j < tau <= p, dalpha = -F. From one token to the next F grows by the
  /// column sum of dS at that token less its row sum: rows sum to 0 but for rounding, which must not add up. So while
  /// the segments run, dalpha at a tile's first token collects -F there, summed over the pairs that straddle it, and
  /// each other token its predecessor's row sum less the column sum; here they become running sums inside the tile.
  static void finishDecay(const AttentionBackward& p, int64_t item) {
    const int64_t h = item % p.heads, b = item / p.heads;
    const Tiling tiling(p);
    for (int64_t tile = 0; tile < tiling.tiles; tile++) {
      const int64_t first = tiling.begin(tile), end = least(p.keyLength, tiling.begin(tile + 1));
      for (int64_t j = first + 1; j < end; j++) *at<A>(p.dalpha, b, j, h) += *at<A>(p.dalpha, b, j - 1, h);
    }
  }

  static void runSegment(const AttentionBackward& p, int64_t item, int64_t parity, void* memory) {
    const Tiling tiling(p);
    const int64_t segments = parity ? tiling.segments / 2 : (tiling.segments + 1) / 2;
    const int64_t kvHead = item % p.kvHeads, b = item / p.kvHeads / segments;
    const int64_t firstTile = (2 * (item / p.kvHeads % segments) + parity) * tiling.segmentTiles;
    Scratch scratch(memory);
    const Buffers buffers(p, tiling, scratch);

    const int64_t firstQueryTile = most(firstTile, tiling.firstQueryTile), group = p.heads / p.kvHeads;
    const int64_t endQueryTile = least(tiling.tiles, firstQueryTile + tiling.reach);
    for (int64_t g = 0; g < group; g++)
      setRowTerms(p, tiling, b, kvHead * group + g, firstQueryTile, endQueryTile, buffers,
                  RowTerms(buffers.rows, g * tiling.reach * kSize));
    const int64_t end = least(tiling.tiles, firstTile + tiling.segmentTiles);
    for (int64_t tile = firstTile; tile < end; tile += kBlock)
      runKeyBlock(p, tiling, b, kvHead, tile, least(kBlock, end - tile), firstQueryTile, buffers);
  }

  static void setRowTerms(const AttentionBackward& p, const Tiling& tiling, int64_t b, int64_t h, int64_t firstTile,
                          int64_t endTile, const Buffers& buffers, RowTerms rows) {
    const Decays<A> alpha = Decays<A>::of(p, b, h);
    for (int64_t tile = firstTile; tile < endTile; tile++) {
      const int64_t position = tiling.begin(tile), count = least(kSize, p.keyLength - position);
      const int64_t t0 = position - (p.keyLength - p.queryLength);
      const RowTerms own(rows, (tile - firstTile) * kSize);
      const Rows<A> dO = stageRows<E>(at<E>(p.dO, b, t0, h), p.dO.strides[1], p.dO.strides[3], count, p.valueSize,
                                      p.valueSize, nullptr, buffers.dO);
      const Rows<A> o = stageRows<E>(at<E>(p.o, b, t0, h), p.o.strides[1], p.o.strides[3], count, p.valueSize,
                                     p.valueSize, nullptr, buffers.dq);
      rowDots(dO, o, count, p.valueSize, own.delta);
      double decay = 0;
      bool large = false;
      for (int64_t i = 0; i < count; i++) {
        if (i > 0) decay += alpha[position + i];
        const A lse = *(at<A>(p.lse, b, h) + (t0 + i) * p.lse.strides[2]);
        const bool empty = lse == -kInfinity<A>;
        own.high[i] = empty ? kInfinity<A> : static_cast<A>(kLog2E * lse);
        own.low[i] = empty ? A(0) : static_cast<A>(kLog2E * lse - own.high[i]);
        own.lowDecay[i] = static_cast<A>(own.low[i] + kLog2E * decay);
        large = large || (!empty && __builtin_fabs(static_cast<double>(lse)) > kLargeLse);
      }
      for (int64_t i = count; i < kSize; i++)
        own.high[i] = kInfinity<A>, own.low[i] = own.lowDecay[i] = own.delta[i] = 0;
      if constexpr (sizeof(E) == 4)
        if (large) normalise(QueryTile<E>(p, b, h, t0, count), buffers, own);
    }
  }

  /// A large lse has lost bits: the weights of a row then add up to 1 + error, and the whole row of gradients is off by
  /// that factor. Costs a product, and only where lse is large: sums the weights, computed bit for bit as in
  /// gradientOfScores, and puts the correction into `low`.
  static void normalise(const QueryTile<E>& tile, const Buffers& buffers, const RowTerms& rows) {
    const AttentionProblem& p = tile.p;
    const A scale = static_cast<A>(p.scale * kLog2E);
    A *packed = buffers.q, *scores = buffers.weight, *sums = buffers.tileSum;
    tile.pack(p.q, p.headSize, A(1), buffers.dq, packed);
    for (int64_t i = 0; i < kSize; i++) sums[i] = 0;
    tile.forEachKeyTile(buffers.keys, [&](const VisibleKeys<A>& keys) {
      for (int64_t lane = 0; lane < tile.rows; lane += kWidth) {
        int64_t first, end;
        tile.visibleKeys(keys, lane, first, end);
        if (first >= end) continue;
        panelProduct(end - first, p.headSize, Left<A>{keys.k.data + first * keys.k.ld, keys.k.ld, 1},
                     packed + lane * p.headSize, kWidth, scores, kWidth, Assign<A>{});
        const A* low = keys.diagonal ? rows.low : rows.lowDecay;
        for (int64_t key = first; key < end; key++) {
          Vector<A> x[2];
          for (int v = 0; v < 2; v++) {
            const int64_t column = lane + v * kLanes<A>;
            x[v] = load(scores + (key - first) * kWidth + v * kLanes<A>) * scale - load(rows.high + column);
            x[v] += keys.bias[key] - load(low + column);
          }
          if (tile.isEdge(keys, lane, kWidth)) tile.restrict(keys, key, lane, x);
          for (int v = 0; v < 2; v++) {
            A* sum = sums + lane + v * kLanes<A>;
            store(sum, load(sum) + exp2<A>(x[v]));
          }
        }
      }
    });
    for (int64_t i = 0; i < tile.rows; i++) {
      if (!(sums[i] > 0 && sums[i] < kInfinity<A>)) continue;
      const A correction = static_cast<A>(kLog2E * __builtin_log(static_cast<double>(sums[i])));
      rows.low[i] += correction;
      rows.lowDecay[i] += correction;
    }
  }

  struct KeyTile {
    KeyTileBuffers buffers;
    Rows<A> k;            ///< [keys][headColumns]
    const uint8_t* keep;  ///< null if all are kept
    int64_t first, keys, panels;
    bool finite;
    double gap;      ///< of the head at hand: sum of alpha over [end, first token of the query tile]
    int64_t summed;  ///< end of the tokens in `gap`
    int64_t end() const { return first + keys; }
  };

  static KeyTile loadKeyTile(const AttentionBackward& p, const Tiling& tiling, int64_t b, int64_t kvHead, int64_t index,
                             const KeyTileBuffers& own, const Buffers& buffers) {
    const int64_t first = tiling.begin(index), keys = least(p.keyLength, tiling.begin(index + 1)) - first;
    const int64_t panels = (keys + kWidth - 1) / kWidth;
    const uint8_t* keep = maskOf<E>(p, b, first, keys, own.keep);
    const Rows<A> v = stageRows<E>(at<E>(p.v, b, first, kvHead), p.v.strides[1], p.v.strides[3], keys, p.valueSize,
                                   p.valueSize, keep, buffers.dO);
    packTransposed<A>(v, keys, p.valueSize, kWidth, panels, A(1), own.vPacked);
    const Rows<A> k = stageRows<E>(at<E>(p.k, b, first, kvHead), p.k.strides[1], p.k.strides[3], keys, p.headSize,
                                   buffers.headColumns, keep, own.k);
    packTransposed<A>(k, keys, p.headSize, kWidth, panels, A(1), own.kPacked);
    for (int64_t i = 0; i < keys * buffers.headColumns; i++) own.dk[i] = 0;
    for (int64_t i = 0; i < keys * buffers.valueColumns; i++) own.dv[i] = 0;
    return {own, k, keep, first, keys, panels, allFinite(k.data, keys * buffers.headColumns), 0, 0};
  }

  /// dk, dv of key tiles [firstTile, firstTile + tiles), and what they add to dq and dalpha.
  static void runKeyBlock(const AttentionBackward& p, const Tiling& tiling, int64_t b, int64_t kvHead,
                          int64_t firstTile, int64_t tiles, int64_t firstQueryTile, const Buffers& buffers) {
    KeyTile block[kBlock] = {};
    for (int64_t i = 0; i < tiles; i++)
      block[i] = loadKeyTile(p, tiling, b, kvHead, firstTile + i, buffers.tiles[i], buffers);
    const int64_t group = p.heads / p.kvHeads, lastKey = block[tiles - 1].end() - 1;
    for (int64_t g = 0; g < group; g++) {
      const int64_t h = kvHead * group + g;
      const Decays<A> alpha = Decays<A>::of(p, b, h);
      for (int64_t i = 0; i < tiles; i++) {
        KeyTile& tile = block[i];
        alpha.columns(tile.first, tile.end(), 0, tile.keep, tile.buffers.bias);
        for (int64_t l = tile.keys; l < tile.panels * kWidth; l++) tile.buffers.bias[l] = -kInfinity<A>;
        for (int64_t l = 0; l < tile.panels * kWidth; l++) tile.buffers.columnSum[l] = 0;
        tile.gap = 0;
        tile.summed = tile.end();
      }
      for (int64_t index = most(firstTile, tiling.firstQueryTile); index < tiling.tiles; index++) {
        const int64_t position = tiling.begin(index);
        if (position - lastKey >= p.window) break;
        const RowTerms rowTerms(buffers.rows, (g * tiling.reach + index - firstQueryTile) * kSize);
        runQueries({p, b, h, index, position, least(kSize, p.keyLength - position), rowTerms}, alpha, tiling, firstTile,
                   tiles, block, buffers);
      }
      if (p.dalpha.data)
        for (int64_t i = 0; i < tiles; i++)
          for (int64_t l = 0; l + 1 < block[i].keys; l++)
            *at<A>(p.dalpha, b, block[i].first + l + 1, h) -= block[i].buffers.columnSum[l];
    }
    for (int64_t i = 0; i < tiles; i++) {
      const KeyTile& tile = block[i];
      writeRows<E>(tile.buffers.dk, buffers.headColumns, static_cast<A>(p.scale), tile.keys, p.headSize,
                   at<E>(p.dk, b, tile.first, kvHead), p.dk.strides[1], p.dk.strides[3]);
      writeRows<E>(tile.buffers.dv, buffers.valueColumns, A(1), tile.keys, p.valueSize,
                   at<E>(p.dv, b, tile.first, kvHead), p.dv.strides[1], p.dv.strides[3]);
    }
  }

  struct Queries {
    const AttentionBackward& p;
    int64_t b, h;
    int64_t index, position, rows;  ///< of the query tile
    RowTerms terms;
    int64_t t0() const { return position - (p.keyLength - p.queryLength); }
  };

  /// One query tile with each tile of the key block.
  static void runQueries(const Queries& x, const Decays<A>& alpha, const Tiling& tiling, int64_t firstTile,
                         int64_t tiles, KeyTile* block, const Buffers& buffers) {
    const AttentionBackward& p = x.p;
    const Rows<A> q = stageRows<E>(at<E>(p.q, x.b, x.t0(), x.h), p.q.strides[1], p.q.strides[3], x.rows, p.headSize,
                                   buffers.headColumns, nullptr, buffers.q);
    const Rows<A> dO = stageRows<E>(at<E>(p.dO, x.b, x.t0(), x.h), p.dO.strides[1], p.dO.strides[3], x.rows,
                                    p.valueSize, buffers.valueColumns, nullptr, buffers.dO);
    if (kAddsToDq)
      for (int64_t i = 0; i < x.rows * buffers.headColumns; i++) buffers.dq[i] = 0;
    for (int64_t i = 0; i < tiles; i++) {
      KeyTile& tile = block[i];
      const int64_t index = firstTile + i;
      if (index > x.index || x.position - (tile.end() - 1) >= p.window) continue;
      for (; tile.summed <= x.position && index < x.index; tile.summed++) tile.gap += alpha[tile.summed];
      if (tile.gap == kInfinity<double>) continue;
      const A sum = runPairs(x, tile, index == x.index, alpha, q, dO, buffers);
      if (p.dalpha.data)
        for (int64_t boundary = index + 1; boundary <= x.index; boundary++)
          *at<A>(p.dalpha, x.b, tiling.begin(boundary), x.h) -= sum;
    }
    if constexpr (kAddsToDq)
      for (int64_t i = 0; i < x.rows; i++) {
        E* row = at<E>(p.dq, x.b, x.t0() + i, x.h);
        const A* own = buffers.dq + i * buffers.headColumns;
        if (p.dq.strides[3] == 1) {
          for (int64_t c = 0; c < p.headSize; c++) row[c] += own[c];
        } else {
          for (int64_t c = 0; c < p.headSize; c++) row[c * p.dq.strides[3]] += own[c];
        }
      }
  }

  /// One tile of pairs: adds to dk, dv, dq and the column sums; returns the sum of its dS.
  static A runPairs(const Queries& x, const KeyTile& tile, bool diagonal, const Decays<A>& alpha, Rows<A> q, Rows<A> dO,
                    const Buffers& buffers) {
    const AttentionBackward& p = x.p;
    DiagonalDecay<A> decay;
    if (diagonal) decay.set(alpha, x.position, x.rows);
    const int64_t lookback = x.position - tile.first;
    const bool edge = diagonal || x.rows - 1 + lookback >= p.window;
    const bool finite = !edge || (tile.finite && allFinite(q.data, x.rows * buffers.headColumns) &&
                                  allFinite(dO.data, x.rows * buffers.valueColumns));
    A sum = 0;
    for (int64_t lane = 0; lane < tile.panels * kWidth; lane += kWidth) {
      // Queries that see any key of lanes [lane, lane + kWidth).
      const int64_t begin = diagonal ? least(lane, x.rows) : 0;
      const int64_t end = most(begin, least(x.rows, lane + kWidth - 1 - lookback + p.window));
      for (int64_t i = 0; i < x.rows; i++)
        if (i < begin || i >= end)
          for (int64_t l = 0; l < kWidth; l++) buffers.dS[i * kSize + lane + l] = 0;
      if (begin >= end) continue;

      A* weight = buffers.weight + begin * kSize + lane;
      A* dS = buffers.dS + begin * kSize + lane;
      panelProduct(end - begin, p.headSize, Left<A>{q.data + begin * q.ld, q.ld, 1},
                   tile.buffers.kPacked + lane * p.headSize, kWidth, weight, kSize, Assign<A>{});
      panelProduct(end - begin, p.valueSize, Left<A>{dO.data + begin * dO.ld, dO.ld, 1},
                   tile.buffers.vPacked + lane * p.valueSize, kWidth, dS, kSize, Assign<A>{});
      Vector<A> columns[2] = {};
      if (diagonal)
        gradientOfScores<true, true>(x, tile, decay, lane, begin, end, buffers, columns);
      else if (edge)
        gradientOfScores<true, false>(x, tile, decay, lane, begin, end, buffers, columns);
      else
        gradientOfScores<false, false>(x, tile, decay, lane, begin, end, buffers, columns);
      for (int v = 0; v < 2; v++) {
        A* total = tile.buffers.columnSum + lane + v * kLanes<A>;
        store(total, load(total) + columns[v]);
        store(buffers.tileSum + v * kLanes<A>, columns[v]);
      }
      const int64_t keys = least(kWidth, tile.keys - lane);
      for (int64_t l = 0; l < keys; l++) sum += buffers.tileSum[l];

      add(finite, keys, buffers.valueColumns, end - begin, Left<A>{weight, 1, kSize}, dO.data + begin * dO.ld, dO.ld,
          A(1), tile.buffers.dv + lane * buffers.valueColumns, buffers.valueColumns);
      add(finite, keys, buffers.headColumns, end - begin, Left<A>{dS, 1, kSize}, q.data + begin * q.ld, q.ld, A(1),
          tile.buffers.dk + lane * buffers.headColumns, buffers.headColumns);
    }
    if constexpr (kAddsToDq) {
      if (p.dalpha.data)
        for (int64_t i = 0; i + 1 < x.rows; i++)
          *at<A>(p.dalpha, x.b, x.position + i + 1, x.h) += sumOfRow(buffers.dS + i * kSize, tile.panels);
      add(finite, x.rows, buffers.headColumns, tile.keys, Left<A>{buffers.dS, kSize, 1}, tile.k.data, tile.k.ld,
          static_cast<A>(p.scale), buffers.dq, buffers.headColumns);
    }
    return sum;
  }

  static void add(bool finite, int64_t rows, int64_t columns, int64_t depth, Left<A> a, const A* b, int64_t ldb,
                  A factor, A* c, int64_t ldc) {
    if (finite)
      addProduct(rows, columns, depth, a, b, ldb, factor, c, ldc);
    else
      addProductOfVisible(rows, columns, depth, a, b, ldb, factor, c, ldc);
  }

  static A sumOfRow(const A* row, int64_t panels) {
    Vector<A> sums = load(row) + load(row + kLanes<A>);
    for (int64_t panel = 1; panel < panels; panel++)
      sums += load(row + panel * kWidth) + load(row + panel * kWidth + kLanes<A>);
    return sumOfLanes<A>(sums);
  }

  /// delta[i] = dO_i . o_i, added up in the order in which the products make dP: a row that sees one key has o = v,
  /// and then dS = P (dP - delta) is exactly 0.
  static void rowDots(Rows<A> dO, Rows<A> o, int64_t rows, int64_t columns, A* delta) {
    constexpr int64_t kChains = 8;
    for (int64_t first = 0; first < rows; first += kChains) {
      A sums[kChains] = {};
      for (int64_t c = 0; c < columns; c++)
        for (int64_t i = 0; i < kChains; i++) {
          const int64_t row = least(first + i, rows - 1);
          sums[i] += dO.data[row * dO.ld + c] * o.data[row * o.ld + c];
        }
      for (int64_t i = 0; i < least(kChains, rows - first); i++) delta[first + i] = sums[i];
    }
  }

  /// weight: q.k -> P; dS: dP -> P o (dP - delta); columns += column sums of dS.
  template <bool kEdge, bool kDiagonal>
  static void gradientOfScores(const Queries& x, const KeyTile& tile, const DiagonalDecay<A>& decay, int64_t lane,
                               int64_t begin, int64_t end, const Buffers& buffers, Vector<A> (&columns)[2]) {
    const IntegerVector<A> lanes = laneIndex<A>();
    const A gap = static_cast<A>(kLog2E * tile.gap), scale = static_cast<A>(x.p.scale * kLog2E);
    const A* shared = tile.buffers.bias + lane;
    const Vector<A> bias[2] = {load(shared) - gap, load(shared + kLanes<A>) - gap};
    const A* low = kDiagonal ? x.terms.low : x.terms.lowDecay;
    const int64_t lookback = x.position - tile.first;
    for (int64_t i = begin; i < end; i++) {
      alignas(64) A own[kWidth];
      if (kDiagonal)
        for (int64_t l = 0; l < kWidth; l++)
          own[l] = tile.keep && !tile.keep[least(lane + l, tile.keys - 1)] ? -kInfinity<A> : decay.between(lane + l, i);
      // Visible: 0 <= distance < window, distance = i - (lane + l) + lookback.
      const int64_t nearest = i + lookback - lane, farthest = nearest - x.p.window;
      for (int v = 0; v < 2; v++) {
        A* weight = buffers.weight + i * kSize + lane + v * kLanes<A>;
        A* dS = buffers.dS + i * kSize + lane + v * kLanes<A>;
        Vector<A> exponent = load(weight) * scale - x.terms.high[i];
        if (kDiagonal)
          exponent = (exponent - low[i]) + load(own + v * kLanes<A>);
        else
          exponent += bias[v] - low[i];
        if (kEdge) {
          const IntegerVector<A> l = lanes + v * kLanes<A>;
          exponent = (l > static_cast<int>(least(nearest, kWidth))) | (l <= static_cast<int>(most(farthest, -1)))
                         ? broadcast<A>(-kInfinity<A>)
                         : exponent;
        }
        const Vector<A> P = exp2<A>(exponent);
        Vector<A> gradient = P * (load(dS) - x.terms.delta[i]);
        // Invisible, or the only key of its row: P = 1 whatever the score.
        if (kEdge) gradient = (P == 0) | (x.p.window == 1) ? Vector<A>{} : gradient;
        store(weight, P);
        store(dS, gradient);
        columns[v] += gradient;
      }
    }
  }

  struct QueryBuffers {
    A *q, *dO, *dq, *rows, *scores, *dP, *rowTerm, *delta, *rowSum;
    typename QueryTile<E>::Buffers keys;
    QueryBuffers(const AttentionProblem& p, Scratch& scratch)
        : q(scratch.take<A>(QueryTile<E>::kSize * p.headSize)),
          dO(scratch.take<A>(QueryTile<E>::kSize * p.valueSize)),
          dq(scratch.take<A>(QueryTile<E>::kSize * p.headSize)),
          rows(scratch.take<A>(QueryTile<E>::kSize * most(p.headSize, p.valueSize))),
          scores(scratch.take<A>(kSize * kWidth)),
          dP(scratch.take<A>(kSize * kWidth)),
          rowTerm(scratch.take<A>(QueryTile<E>::kSize)),
          delta(scratch.take<A>(QueryTile<E>::kSize)),
          rowSum(scratch.take<A>(QueryTile<E>::kSize)),
          keys(p, scratch) {}
  };

  /// dq of one tile of queries, in the forward pass's layout, and the row sums for dalpha.
  static void runQueryTile(const AttentionBackward& p, int64_t item, void* memory) {
    Scratch scratch(memory);
    const QueryBuffers buffers(p, scratch);
    const QueryTile<E> tile = QueryTile<E>::of(p, item);
    const int64_t panels = tile.panels(), lanes = panels * kWidth;
    tile.pack(p.q, p.headSize, static_cast<A>(p.scale * kLog2E), buffers.rows, buffers.q);
    tile.pack(p.o, p.valueSize, A(1), buffers.rows, buffers.dO);
    for (int64_t i = 0; i < lanes; i++) buffers.delta[i] = buffers.rowSum[i] = 0;
    for (int64_t i = 0; i < tile.rows; i++) {
      const E* dO = at<E>(p.dO, tile.b, tile.t0 + i, tile.h);
      const A* o = buffers.dO + i / kWidth * kWidth * p.valueSize + i % kWidth;
      for (int64_t c = 0; c < p.valueSize; c++) buffers.delta[i] += widen(dO[c * p.dO.strides[3]]) * o[c * kWidth];
    }
    tile.pack(p.dO, p.valueSize, A(1), buffers.rows, buffers.dO);
    for (int64_t i = 0; i < lanes * p.headSize; i++) buffers.dq[i] = 0;
    const auto setRowTerm = [&](bool diagonal) {
      for (int64_t i = 0; i < lanes; i++) {
        buffers.rowTerm[i] = kInfinity<A>;
        if (i >= tile.rows) continue;
        const A lse = *(at<A>(p.lse, tile.b, tile.h) + (tile.t0 + i) * p.lse.strides[2]);
        if (lse != -kInfinity<A>)
          buffers.rowTerm[i] = static_cast<A>(kLog2E * ((diagonal ? 0 : tile.decay.row[i]) + lse));
      }
    };
    setRowTerm(false);

    tile.forEachKeyTile(buffers.keys, [&](const VisibleKeys<A>& keys) {
      if (keys.diagonal) setRowTerm(true);
      const bool finite = !tile.isEdge(keys, 0, QueryTile<E>::kSize) || allFinite(keys.k.data, keys.count * p.headSize);
      for (int64_t panel = 0; panel < panels; panel++) {
        const int64_t lane = panel * kWidth;
        int64_t first, end;
        tile.visibleKeys(keys, lane, first, end);
        if (first >= end) continue;
        const A* k = keys.k.data + first * keys.k.ld;
        panelProduct(end - first, p.headSize, Left<A>{k, keys.k.ld, 1}, buffers.q + lane * p.headSize, kWidth,
                     buffers.scores, kWidth, Assign<A>{});
        panelProduct(end - first, p.valueSize, Left<A>{keys.v.data + first * keys.v.ld, keys.v.ld, 1},
                     buffers.dO + lane * p.valueSize, kWidth, buffers.dP, kWidth, Assign<A>{});
        const bool edge = tile.isEdge(keys, lane, kWidth);
        for (int64_t key = 0; key < end - first; key++) {
          A* score = buffers.scores + key * kWidth;
          Vector<A> x[2] = {load(score) + keys.bias[first + key], load(score + kLanes<A>) + keys.bias[first + key]};
          if (edge) tile.restrict(keys, first + key, lane, x);
          for (int v = 0; v < 2; v++) {
            const int64_t column = lane + v * kLanes<A>;
            const Vector<A> P = exp2<A>(x[v] - load(buffers.rowTerm + column));
            const Vector<A> dP = load(buffers.dP + key * kWidth + v * kLanes<A>);
            Vector<A> gradient = P * (dP - load(buffers.delta + column));
            gradient = (P == 0) | (p.window == 1) ? Vector<A>{} : gradient;
            store(score + v * kLanes<A>, gradient);
            store(buffers.rowSum + column, load(buffers.rowSum + column) + gradient);
          }
        }
        A* dq = buffers.dq + lane * p.headSize;
        if (finite) {
          panelProduct(p.headSize, end - first, Left<A>{k, 1, keys.k.ld}, buffers.scores, kWidth, dq, kWidth,
                       AddScaled<A>{A(1)});
        } else {
          for (int64_t key = 0; key < end - first; key++)
            for (int64_t i = 0; i < kWidth; i++) {
              const A gradient = buffers.scores[key * kWidth + i];
              if (gradient == 0) continue;
              for (int64_t c = 0; c < p.headSize; c++) dq[c * kWidth + i] += gradient * k[key * keys.k.ld + c];
            }
        }
      }
    });

    for (int64_t i = 0; i < lanes; i++) buffers.delta[i] = static_cast<A>(p.scale);
    for (int64_t panel = 0; panel < panels; panel++) {
      const int64_t lane = panel * kWidth;
      unpackTransposed<E>(buffers.dq + lane * p.headSize, kWidth, buffers.delta + lane, least(kWidth, tile.rows - lane),
                          p.headSize, at<E>(p.dq, tile.b, tile.t0 + lane, tile.h), p.dq.strides[1], p.dq.strides[3]);
    }
    if (p.dalpha.data)
      for (int64_t i = 0; i + 1 < tile.rows; i++)
        if ((i + 1) % kSize != 0) *at<A>(p.dalpha, tile.b, tile.position + i + 1, tile.h) += buffers.rowSum[i];
  }
};

}  // namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET
