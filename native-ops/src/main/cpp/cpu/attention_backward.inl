// gated_fwa_bp on the CPU. Key-stationary: K and V are packed once per key tile, dk and dv stay in scratch, and the
// column sums of dS that dalpha needs fall out of the scores' layout, scores[query][key].
//
// A work item is a segment of key tiles, at least as long as the window. Its queries lie in this segment and the next,
// so all even segments can add to dq at the same time, then all odd ones: five products per tile, no atomics, and an
// order of additions that depends on the shape alone. For 16-bit types dq would be rounded twice on that way; a
// query-stationary pass of its own computes it (two products more).
//
// delta = dO . o comes from the rounded o, and P from the rounded lse. Where dP - delta nearly cancels - one key has
// nearly all of a row's weight, or the values hardly differ - that is not good enough: dS is then of the size of the
// rounding. Each tile of pairs is tested for that while it is computed (gradientOfScores), and if it failed, is
// computed again with the sums of P and of P dP taken from the very P and dP of these rows (refine).
#pragma once

#include "cpu/plan.h"
#include "cpu/query_tile.inl"

namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET {

template <typename A>
struct Backward {
  static constexpr int64_t kSize = kTile<A>;
  static constexpr int64_t kWidth = kPanel<A>;
  static constexpr int64_t kLeastSegment = 4;
  static constexpr int64_t kBlock = 2;  ///< key tiles that share a staged query tile
  /// From here on the rounding of lse would show in P = exp(s - lse).
  static constexpr A kLargeLse = 16;
  /// delta is in doubt where, weighted with P, the square of dP - delta is below that of this times the norm of dO o o:
  /// delta has an error of about that norm times the rounding of o, which 16-bit types feel first.
  static A doubtFactor(const AttentionProblem& p) { return isAccumulator<A>(p.type) ? A(0.5) : A(1); }
  /// Where dO . o has terms like these, their squares may leave the range of A.
  static constexpr A kLeastTerms = A(1e-12), kMostTerms = A(1e12);

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
    int64_t tileOf(int64_t token) const { return (token + padding) / kSize; }
    int64_t begin(int64_t tile) const { return most(0, tile * kSize - padding); }
  };

  /// What the pairs of one query row share.
  struct RowTerms {
    double* level;  ///< log2(e) * lse; +infinity for a row without a key
    double* decay;  ///< sum of alpha from the row's tile to the row
    int64_t* last;  ///< the newest real token that the row sees: its last key
    A* delta;       ///< dO . o
    A* deltaLow;    ///< what `delta` lacks, once refined
    A* doubt;       ///< (doubtFactor * |dO o o|)^2; 0 once refined
    RowTerms(int64_t rows, Scratch& scratch)
        : level(scratch.take<double>(rows)),
          decay(scratch.take<double>(rows)),
          last(scratch.take<int64_t>(rows)),
          delta(scratch.take<A>(rows)),
          deltaLow(scratch.take<A>(rows)),
          doubt(scratch.take<A>(rows)) {}
    RowTerms(const RowTerms& from, int64_t row)
        : level(from.level + row),
          decay(from.decay + row),
          last(from.last + row),
          delta(from.delta + row),
          deltaLow(from.deltaLow + row),
          doubt(from.doubt + row) {}
  };

  /// With level + log2(e) * decay = high + low, the decay between the row and what the keys' decays count from,
  /// P = exp2((scale' * q.k - high) + (fraction - low), whole), scale' = scale * log2(e): `high` nearly cancels the
  /// score before the small terms come in.
  struct Levels {
    A *high, *low;
    Levels(int64_t rows, Scratch& scratch) : high(scratch.take<A>(rows)), low(scratch.take<A>(rows)) {}

    GATEDFWA_INLINE void set(int64_t row, double level, double decay) const {
      level += kLog2E * decay;
      high[row] = static_cast<A>(level);
      low[row] = high[row] == kInfinity<A> ? A(0) : static_cast<A>(level - high[row]);
    }
    /// For keys before the rows' tile and their decays up to `gap` before it.
    void setEarlier(const RowTerms& rows, int64_t count, double gap) const {
      for (int64_t i = 0; i < count; i++) set(i, rows.level[i], rows.decay[i] + gap);
    }
    /// For the tile's own keys.
    void setOwn(const RowTerms& rows, int64_t count, const DiagonalDecay<A>& decay) const {
      for (int64_t i = 0; i < count; i++) set(i, rows.level[i], decay.common[i]);
    }
  };

  /// What refine works with.
  struct RefineBuffers {
    A *scores, *dP, *sum, *heaviest, *center, *moment, *momentOfDelta;
    Levels levels;
    typename QueryTile<A>::Buffers keys;
    RefineBuffers(const AttentionProblem& p, Scratch& scratch)
        : scores(scratch.take<A>(kSize * kWidth)),
          dP(scratch.take<A>(kSize * kWidth)),
          sum(scratch.take<A>(QueryTile<A>::kSize)),
          heaviest(scratch.take<A>(QueryTile<A>::kSize)),
          center(scratch.take<A>(QueryTile<A>::kSize)),
          moment(scratch.take<A>(QueryTile<A>::kSize)),
          momentOfDelta(scratch.take<A>(QueryTile<A>::kSize)),
          levels(QueryTile<A>::kSize, scratch),
          keys(p, scratch) {}
  };

  /// One key tile of the block at hand.
  struct KeyTileBuffers {
    A *k, *kPacked, *vPacked, *dk, *dv, *whole, *fraction, *columnSum;
    uint8_t* keep;
  };

  struct Buffers {
    int64_t headColumns, valueColumns;
    A *q, *dO, *weight, *dS, *dq, *rowSum;
    KeyTileBuffers tiles[kBlock];
    Levels levels;
    RowTerms rows;  ///< [group][reach * kSize]
    A *refineRows, *refineQ, *refineDO;
    RefineBuffers refine;
    Buffers(const AttentionProblem& p, const Tiling& tiling, Scratch& scratch)
        : headColumns(roundUp(p.headSize, kLanes<A>)),
          valueColumns(roundUp(p.valueSize, kLanes<A>)),
          q(scratch.take<A>(kSize * headColumns)),
          dO(scratch.take<A>(kSize * valueColumns)),
          weight(scratch.take<A>(kSize * kSize)),
          dS(scratch.take<A>(kSize * kSize)),
          dq(scratch.take<A>(kSize * most(headColumns, valueColumns))),
          rowSum(scratch.take<A>(kSize)),
          levels(kSize, scratch),
          rows(p.heads / p.kvHeads * tiling.reach * kSize, scratch),
          refineRows(scratch.take<A>(kSize * most(p.headSize, p.valueSize))),
          refineQ(scratch.take<A>(kSize * p.headSize)),
          refineDO(scratch.take<A>(kSize * p.valueSize)),
          refine(p, scratch) {
      for (KeyTileBuffers& tile : tiles)
        tile = {scratch.take<A>(kSize * headColumns),
                scratch.take<A>(kSize * p.headSize),
                scratch.take<A>(kSize * p.valueSize),
                scratch.take<A>(kSize * headColumns),
                scratch.take<A>(kSize * valueColumns),
                scratch.take<A>(kSize),
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
    if (!addsToDq(p))
      plan.add(QueryTile<A>::items(p), [](const void* params, int64_t item, void* memory) {
        runQueryTile(*static_cast<const Params*>(params), item, memory);
      });
    if (p.dalpha.data)
      plan.add(p.batch * p.heads,
               [](const void* params, int64_t item, void*) { finishDecay(*static_cast<const Params*>(params), item); });
    return plan;
  }

 private:
  /// Whether dq is a sum in the caller's tensor, or too rounded there and has a pass of its own.
  static bool addsToDq(const AttentionProblem& p) { return isAccumulator<A>(p.type); }

  static void clear(const AttentionBackward& p, int64_t item) {
    const int64_t h = item % p.heads, b = item / p.heads;
    if (addsToDq(p))
      for (int64_t t = 0; t < p.queryLength; t++) {
        A* row = at<A>(p.dq, b, t, h);
        for (int64_t c = 0; c < p.headSize; c++) row[c * p.dq.strides[3]] = 0;
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

  /// Of query tiles [firstTile, endTile).
  static void setRowTerms(const AttentionBackward& p, const Tiling& tiling, int64_t b, int64_t h, int64_t firstTile,
                          int64_t endTile, const Buffers& buffers, RowTerms rows) {
    for (int64_t tile = firstTile; tile < endTile; tile++) {
      const int64_t position = tiling.begin(tile), count = least(kSize, p.keyLength - position);
      const int64_t t0 = position - (p.keyLength - p.queryLength);
      const RowTerms own(rows, (tile - firstTile) * kSize);
      const Refine needed = setRowTerms(p, b, h, t0, count, buffers.dO, buffers.dq, own);
      if (needed != Refine::Nothing) refineTile(p, b, h, t0, count, needed == Refine::All, buffers, own);
    }
  }

  enum class Refine { Nothing, Weights, All };

  /// Of queries [t0, t0 + count), the first of which begins a tile. Returns what has to be refined in any case.
  static Refine setRowTerms(const AttentionBackward& p, int64_t b, int64_t h, int64_t t0, int64_t count, A* dOBuffer,
                            A* oBuffer, const RowTerms& rows) {
    const Decays<A> alpha = Decays<A>::of(p, b, h);
    const int64_t position = p.keyLength - p.queryLength + t0;
    int64_t last = position;
    while (last > most(0, position - p.window + 1) && !isReal(p, b, last)) last--;
    double decay = 0;
    bool large = false, extreme = false;
    for (int64_t first = 0; first < count; first += kSize) {
      const int64_t end = least(count, first + kSize);
      const auto stage = [&](const Input& x, A* buffer) {
        return stageRows(p.type, x, b, t0 + first, h, end - first, p.valueSize, p.valueSize, nullptr, buffer);
      };
      const Rows<A> dO = stage(p.dO, dOBuffer), o = stage(p.o, oBuffer);
      rowDots(dO, o, end - first, p.valueSize, rows.delta + first);
      for (int64_t i = first; i < first + kSize; i++) {
        rows.level[i] = kInfinity<double>;
        rows.deltaLow[i] = rows.doubt[i] = 0;
        rows.decay[i] = 0;
        if (i >= end) {
          rows.delta[i] = 0;
          continue;
        }
        if (i > 0) decay += alpha[position + i];
        if (isReal(p, b, position + i)) last = position + i;
        rows.decay[i] = decay;
        rows.last[i] = last;
        const A lse = *(at<A>(p.lse, b, h) + (t0 + i) * p.lse.strides[2]);
        if (lse == -kInfinity<A>) continue;
        rows.level[i] = kLog2E * lse;
        large = large || __builtin_fabs(static_cast<double>(lse)) > kLargeLse;
        rows.doubt[i] = doubtOf(dO.data + (i - first) * dO.ld, o.data + (i - first) * o.ld, p, extreme);
      }
    }
    return extreme ? Refine::All : large && p.type == ElementType::Float32 ? Refine::Weights : Refine::Nothing;
  }

  /// The doubt of a row; `extreme` if its terms are.
  static A doubtOf(const A* dO, const A* o, const AttentionBackward& p, bool& extreme) {
    if (p.window == 1) return 0;  // see gradientOfScores
    Vector<A> squares{}, sizes{};
    int64_t c = 0;
    for (; c + kLanes<A> <= p.valueSize; c += kLanes<A>) {
      const Vector<A> term = load(dO + c) * load(o + c);
      squares += term * term;
      sizes += term < 0 ? -term : term;
    }
    A square = sumOfLanes<A>(squares), size = sumOfLanes<A>(sizes);
    for (; c < p.valueSize; c++) {
      const A term = dO[c] * o[c];
      square += term * term;
      size += term < 0 ? -term : term;
    }
    extreme = extreme || (size > 0 && size < kLeastTerms) || size > kMostTerms;
    return doubtFactor(p) * doubtFactor(p) * square;
  }

  static void refineTile(const AttentionBackward& p, int64_t b, int64_t h, int64_t t0, int64_t count, bool gradients,
                         const Buffers& buffers, const RowTerms& rows) {
    const QueryTile<A> tile(p, b, h, t0, count);
    tile.pack(p.q, p.headSize, A(1), buffers.refineRows, buffers.refineQ);
    if (gradients) tile.pack(p.dO, p.valueSize, A(1), buffers.refineRows, buffers.refineDO);
    refine(tile, 0, tile.panels() * kWidth, buffers.refineQ, gradients ? buffers.refineDO : nullptr, buffers.refine,
           rows);
  }

  /// For the queries [begin, end) of a tile, given its q and dO as panels: sums P over all keys and normalises `level`,
  /// for a large lse has lost bits and the row's P then add up to 1 + error. With dO also sums P (dP - c), where c is
  /// delta or, if one key has more than half of the weight, the dP of that key, which has the very bits that
  /// gradientOfScores finds: dP - delta = (dP - c) - sum of P (dP - c) is as exact as the other keys' share allows, and
  /// exactly 0 if there is no other key.
  static void refine(const QueryTile<A>& tile, int64_t begin, int64_t end, const A* q, const A* dO,
                     const RefineBuffers& buffers, const RowTerms& rows) {
    const AttentionProblem& p = tile.p;
    const A scale = static_cast<A>(p.scale * kLog2E);
    for (int64_t i = begin; i < end; i++)
      buffers.sum[i] = buffers.heaviest[i] = buffers.center[i] = buffers.moment[i] = buffers.momentOfDelta[i] = 0;
    buffers.levels.setEarlier(rows, tile.panels() * kWidth, tile.gap);
    tile.forEachKeyTile(buffers.keys, [&](const VisibleKeys<A>& keys) {
      if (keys.diagonal && keys.lookback == 0) buffers.levels.setOwn(rows, tile.panels() * kWidth, tile.decay);
      for (int64_t lane = begin; lane < end; lane += kWidth) {
        int64_t first, last;
        tile.visibleKeys(keys, lane, first, last);
        if (first >= last) continue;
        assignProduct(last - first, p.headSize, Left<A>{keys.k.data + first * keys.k.ld, keys.k.ld, 1},
                      q + lane * p.headSize, kWidth, buffers.scores, kWidth);
        if (dO)
          assignProduct(last - first, p.valueSize, Left<A>{keys.v.data + first * keys.v.ld, keys.v.ld, 1},
                        dO + lane * p.valueSize, kWidth, buffers.dP, kWidth);
        const bool edge = tile.isEdge(keys, lane, kWidth);
        for (int64_t key = first; key < last; key++) {
          Vector<A> x[2], whole[2], fraction[2];
          tile.decayOf(keys, key, lane, whole, fraction);
          for (int v = 0; v < 2; v++) {
            const int64_t column = lane + v * kLanes<A>;
            x[v] = load(buffers.scores + (key - first) * kWidth + v * kLanes<A>) * scale;
            x[v] = (x[v] - load(buffers.levels.high + column)) + (fraction[v] - load(buffers.levels.low + column));
          }
          if (edge) tile.restrict(keys, key, lane, x);
          for (int v = 0; v < 2; v++) {
            const int64_t column = lane + v * kLanes<A>;
            const Vector<A> P = exp2<A>(x[v], whole[v]), sum = load(buffers.sum + column);
            store(buffers.sum + column, sum + P);
            if (!dO) continue;
            const Vector<A> dP = load(buffers.dP + (key - first) * kWidth + v * kLanes<A>);
            const Vector<A> heaviest = load(buffers.heaviest + column), old = load(buffers.center + column);
            const Vector<A> center = P > heaviest ? dP : old;
            const auto add = [&](A* moment, Vector<A> origin, Vector<A> moved) GATEDFWA_INLINE_LAMBDA {
              store(moment + column, load(moment + column) + moved + (P == 0 ? Vector<A>{} : P * (dP - origin)));
            };
            add(buffers.moment, center, P > heaviest ? sum * (old - dP) : Vector<A>{});
            add(buffers.momentOfDelta, load(rows.delta + column), Vector<A>{});
            store(buffers.center + column, center);
            store(buffers.heaviest + column, greater<A>(P, heaviest));
          }
        }
      }
    });
    for (int64_t i = begin; i < least(end, tile.rows); i++) {
      const A sum = buffers.sum[i];
      if (!(sum > 0 && sum < kInfinity<A>)) continue;
      rows.level[i] += kLog2E * __builtin_log(static_cast<double>(sum));
      if (!dO) continue;
      const bool dominated = 2 * buffers.heaviest[i] > sum;
      if (dominated) rows.delta[i] = buffers.center[i];
      rows.deltaLow[i] = (dominated ? buffers.moment[i] : buffers.momentOfDelta[i]) / sum;
    }
    if (dO)
      for (int64_t i = begin; i < end; i++) rows.doubt[i] = 0;
  }

  struct KeyTile {
    KeyTileBuffers buffers;
    Rows<A> k;            ///< [keys][headColumns]
    const uint8_t* keep;  ///< null if all are kept
    int64_t first, keys, panels;
    bool finite;
    double gap;      ///< of the head at hand: sum of alpha from the newest real token to the query tile's first
    int64_t summed;  ///< end of the tokens in `gap`
    int64_t end() const { return first + keys; }
  };

  static KeyTile loadKeyTile(const AttentionBackward& p, const Tiling& tiling, int64_t b, int64_t kvHead, int64_t index,
                             const KeyTileBuffers& own, const Buffers& buffers) {
    const int64_t first = tiling.begin(index), keys = least(p.keyLength, tiling.begin(index + 1)) - first;
    const int64_t panels = (keys + kWidth - 1) / kWidth;
    const uint8_t* keep = maskOf(p, b, first, keys, own.keep);
    const Rows<A> v = stageRows(p.type, p.v, b, first, kvHead, keys, p.valueSize, p.valueSize, keep, buffers.dO);
    packTransposed<A>(v, keys, p.valueSize, kWidth, panels, A(1), own.vPacked);
    const Rows<A> k = stageRows(p.type, p.k, b, first, kvHead, keys, p.headSize, buffers.headColumns, keep, own.k);
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
        setDecays(alpha, tile);
        for (int64_t l = 0; l < tile.panels * kWidth; l++) tile.buffers.columnSum[l] = 0;
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
      writeRows(tile.buffers.dk, buffers.headColumns, static_cast<A>(p.scale), tile.keys, p.headSize, p.type, p.dk, b,
                tile.first, kvHead);
      writeRows(tile.buffers.dv, buffers.valueColumns, A(1), tile.keys, p.valueSize, p.type, p.dv, b, tile.first,
                kvHead);
    }
  }

  /// Keys' decays up to the tile's newest real token; from there to the queries they are the same for all (`gap`).
  static void setDecays(const Decays<A>& alpha, KeyTile& tile) {
    const KeyTileBuffers& own = tile.buffers;
    for (int64_t l = 0; l < tile.panels * kWidth; l++) own.whole[l] = -kInfinity<A>, own.fraction[l] = 0;
    int64_t end = tile.keys;
    tile.gap = 0;
    tile.summed = tile.end();
    while (tile.keep && end > 0 && !tile.keep[end - 1]) tile.gap += alpha[tile.first + --end];
    alpha.columns(tile.first, tile.first + end, 0, tile.keep, [&](int64_t l, double bias) {
      double whole;
      split(bias, whole, own.fraction[l]);
      own.whole[l] = static_cast<A>(whole);
    });
    if (end == 0) tile.gap = kInfinity<double>;
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
    const Rows<A> q =
        stageRows(p.type, p.q, x.b, x.t0(), x.h, x.rows, p.headSize, buffers.headColumns, nullptr, buffers.q);
    const Rows<A> dO =
        stageRows(p.type, p.dO, x.b, x.t0(), x.h, x.rows, p.valueSize, buffers.valueColumns, nullptr, buffers.dO);
    if (addsToDq(p))
      for (int64_t i = 0; i < x.rows * buffers.headColumns; i++) buffers.dq[i] = 0;
    for (int64_t i = 0; i < tiles; i++) {
      KeyTile& tile = block[i];
      const int64_t index = firstTile + i;
      if (index > x.index || x.position - (tile.end() - 1) >= p.window) continue;
      for (; tile.summed <= x.position && index < x.index; tile.summed++) tile.gap += alpha[tile.summed];
      if (index < x.index && tile.gap == kInfinity<double>) continue;
      runPairs(x, tile, index == x.index, alpha, q, dO, buffers);
      if (p.dalpha.data) addToDecay(x, tiling, index, buffers);
    }
    const A scale = static_cast<A>(p.scale);
    if (addsToDq(p))
      for (int64_t i = 0; i < x.rows; i++) {
        A* row = at<A>(p.dq, x.b, x.t0() + i, x.h);
        const A* own = buffers.dq + i * buffers.headColumns;
        if (p.dq.strides[3] == 1) {
          for (int64_t c = 0; c < p.headSize; c++) row[c] += scale * own[c];
        } else {
          for (int64_t c = 0; c < p.headSize; c++) row[c * p.dq.strides[3]] += scale * own[c];
        }
      }
  }

  /// The row sums of the pairs with key tile `index`, for finishDecay. What is left of a row's sum after its last key
  /// is rounding, so it counts for tokens up to there.
  static void addToDecay(const Queries& x, const Tiling& tiling, int64_t index, const Buffers& buffers) {
    const AttentionBackward& p = x.p;
    const auto dalpha = [&](int64_t token) -> A& { return *at<A>(p.dalpha, x.b, token, x.h); };
    for (int64_t boundary = index + 1; boundary <= x.index; boundary++) {
      const int64_t token = tiling.begin(boundary);
      A sum = 0;
      for (int64_t i = 0; i < x.rows; i++)
        if (x.terms.last[i] >= token) sum += buffers.rowSum[i];
      dalpha(token) -= sum;
    }
    for (int64_t i = 0; i < x.rows; i++) {
      const int64_t next = x.terms.last[i] + 1;
      if (next < p.keyLength && tiling.begin(tiling.tileOf(next)) != next) dalpha(next) += buffers.rowSum[i];
    }
  }

  /// One tile of pairs: adds to dk, dv, dq, and the column and row sums.
  static void runPairs(const Queries& x, const KeyTile& tile, bool diagonal, const Decays<A>& alpha, Rows<A> q,
                       Rows<A> dO, const Buffers& buffers) {
    const AttentionBackward& p = x.p;
    DiagonalDecay<A> decay;
    const auto setLevels = [&] {
      if (diagonal)
        buffers.levels.setOwn(x.terms, x.rows, decay);
      else
        buffers.levels.setEarlier(x.terms, x.rows, tile.gap);
    };
    if (diagonal) decay.set(alpha, x.position, x.rows, 0, [&](int64_t i) { return !tile.keep || tile.keep[i]; });
    setLevels();
    const int64_t lookback = x.position - tile.first;
    const bool edge = diagonal || x.rows - 1 + lookback >= p.window;
    const bool finite = !edge || (tile.finite && allFinite(q.data, x.rows * buffers.headColumns) &&
                                  allFinite(dO.data, x.rows * buffers.valueColumns));
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
      Vector<A> columns[2];
      const auto compute = [&] {
        assignProduct(end - begin, p.headSize, Left<A>{q.data + begin * q.ld, q.ld, 1},
                      tile.buffers.kPacked + lane * p.headSize, kWidth, weight, kSize);
        assignProduct(end - begin, p.valueSize, Left<A>{dO.data + begin * dO.ld, dO.ld, 1},
                      tile.buffers.vPacked + lane * p.valueSize, kWidth, dS, kSize);
        columns[0] = columns[1] = Vector<A>{};
        return diagonal ? gradientOfScores<true, true>(x, tile, decay, lane, begin, end, buffers, columns)
               : edge   ? gradientOfScores<true, false>(x, tile, decay, lane, begin, end, buffers, columns)
                        : gradientOfScores<false, false>(x, tile, decay, lane, begin, end, buffers, columns);
      };
      if (compute() > 0) {
        refineTile(p, x.b, x.h, x.t0(), x.rows, true, buffers, x.terms);
        setLevels();
        compute();
      }
      for (int v = 0; v < 2; v++) {
        A* total = tile.buffers.columnSum + lane + v * kLanes<A>;
        store(total, load(total) + columns[v]);
      }
      const int64_t keys = least(kWidth, tile.keys - lane);
      addGuarded(finite, keys, buffers.valueColumns, end - begin, Left<A>{weight, 1, kSize}, dO.data + begin * dO.ld,
                 dO.ld, tile.buffers.dv + lane * buffers.valueColumns, buffers.valueColumns);
      addGuarded(finite, keys, buffers.headColumns, end - begin, Left<A>{dS, 1, kSize}, q.data + begin * q.ld, q.ld,
                 tile.buffers.dk + lane * buffers.headColumns, buffers.headColumns);
    }
    if (p.dalpha.data)
      for (int64_t i = 0; i < x.rows; i++) buffers.rowSum[i] = sumOfRow(buffers.dS + i * kSize, tile.panels);
    if (addsToDq(p))
      addGuarded(finite, x.rows, buffers.headColumns, tile.keys, Left<A>{buffers.dS, kSize, 1}, tile.k.data, tile.k.ld,
                 buffers.dq, buffers.headColumns);
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

  /// weight: q.k -> P; dS: dP -> P o (dP - delta); columns += column sums of dS. A result above 0 says that delta is in
  /// doubt.
  template <bool kEdge, bool kDiagonal>
  static A gradientOfScores(const Queries& x, const KeyTile& tile, const DiagonalDecay<A>& decay, int64_t lane,
                            int64_t begin, int64_t end, const Buffers& buffers, Vector<A> (&columns)[2]) {
    const IntegerVector<A> lanes = laneIndex<A>();
    const A scale = static_cast<A>(x.p.scale * kLog2E);
    const int64_t lookback = x.position - tile.first;
    Vector<A> heaviest{};
    for (int64_t i = begin; i < end; i++) {
      alignas(64) A between[kWidth];
      if (kDiagonal)
        for (int64_t l = 0; l < kWidth; l++) between[l] = decay.wholeBetween(lane + l, i);
      const A* whole = kDiagonal ? between : tile.buffers.whole + lane;
      const A* fraction = (kDiagonal ? decay.fraction : tile.buffers.fraction) + lane;
      const A low = buffers.levels.low[i] + (kDiagonal ? decay.fractionOfBase[i] : A(0));
      // Visible: 0 <= distance < window, distance = i - (lane + l) + lookback.
      const int64_t nearest = i + lookback - lane, farthest = nearest - x.p.window;
      for (int v = 0; v < 2; v++) {
        A* weight = buffers.weight + i * kSize + lane + v * kLanes<A>;
        A* dS = buffers.dS + i * kSize + lane + v * kLanes<A>;
        Vector<A> exponent = load(weight) * scale - buffers.levels.high[i];
        exponent += load(fraction + v * kLanes<A>) - low;
        const IntegerVector<A> l = lanes + v * kLanes<A>;
        if (kDiagonal && decay.bounded)
          exponent =
              l < static_cast<int>(decay.bound[i]) - static_cast<int>(lane) ? broadcast(decay.barrier[i]) : exponent;
        if (kEdge)
          exponent = ((l > static_cast<int>(least(nearest, kWidth))) | (l <= static_cast<int>(most(farthest, -1))))
                         ? broadcast<A>(-kInfinity<A>)
                         : exponent;
        const Vector<A> P = exp2<A>(exponent, load(whole + v * kLanes<A>));
        Vector<A> gradient = P * ((load(dS) - x.terms.delta[i]) - x.terms.deltaLow[i]);
        // Invisible, or the only key of its row: P = 1 whatever the score.
        if (kEdge) gradient = ((P == 0) | (x.p.window == 1)) ? Vector<A>{} : gradient;
        store(weight, P);
        store(dS, gradient);
        columns[v] += gradient;
        heaviest = greater<A>(P, heaviest);
      }
    }
    return isAccumulator<A>(x.p.type) && !anyAbove<A>(heaviest, A(0.5)) ? A(0) : doubtOf(x, lane, begin, end, buffers);
  }

  /// The doubt in delta of a panel of pairs (doubtFactor).
  static A doubtOf(const Queries& x, int64_t lane, int64_t begin, int64_t end, const Buffers& buffers) {
    Vector<A> doubt{};
    for (int64_t i = begin; i < end; i++)
      for (int v = 0; v < 2; v++) {
        const Vector<A> P = load(buffers.weight + i * kSize + lane + v * kLanes<A>);
        const Vector<A> gradient = load(buffers.dS + i * kSize + lane + v * kLanes<A>);
        doubt += P * P * x.terms.doubt[i] - gradient * gradient;
      }
    return sumOfLanes<A>(doubt);
  }

  struct QueryBuffers {
    A *q, *dO, *dq, *packingRows;
    RowTerms rows;
    Levels levels;
    typename QueryTile<A>::Buffers keys;
    RefineBuffers refine;
    QueryBuffers(const AttentionProblem& p, Scratch& scratch)
        : q(scratch.take<A>(QueryTile<A>::kSize * p.headSize)),
          dO(scratch.take<A>(QueryTile<A>::kSize * p.valueSize)),
          dq(scratch.take<A>(QueryTile<A>::kSize * p.headSize)),
          packingRows(scratch.take<A>(QueryTile<A>::kSize * most(p.headSize, p.valueSize))),
          rows(QueryTile<A>::kSize, scratch),
          levels(QueryTile<A>::kSize, scratch),
          keys(p, scratch),
          refine(p, scratch) {}
  };

  /// dq of one tile of queries, in the forward pass's layout.
  static void runQueryTile(const AttentionBackward& p, int64_t item, void* memory) {
    Scratch scratch(memory);
    const QueryBuffers buffers(p, scratch);
    const QueryTile<A> tile = QueryTile<A>::of(p, item);
    const int64_t panels = tile.panels(), lanes = panels * kWidth;
    tile.pack(p.q, p.headSize, A(1), buffers.packingRows, buffers.q);
    tile.pack(p.dO, p.valueSize, A(1), buffers.packingRows, buffers.dO);
    for (int64_t i = 0; i < lanes * p.headSize; i++) buffers.dq[i] = 0;
    A* half = buffers.packingRows + kSize * p.valueSize;
    const Refine needed = setRowTerms(p, tile.b, tile.h, tile.t0, tile.rows, buffers.packingRows, half, buffers.rows);
    if (needed != Refine::Nothing) refine(tile, 0, lanes, buffers.q, buffers.dO, buffers.refine, buffers.rows);
    buffers.levels.setEarlier(buffers.rows, lanes, tile.gap);

    tile.forEachKeyTile(buffers.keys, [&](const VisibleKeys<A>& keys) {
      const auto setLevels = [&] {
        if (keys.diagonal)
          buffers.levels.setOwn(buffers.rows, lanes, tile.decay);
        else
          buffers.levels.setEarlier(buffers.rows, lanes, tile.gap);
      };
      if (keys.diagonal && keys.lookback == 0) setLevels();
      const bool finite = !tile.isEdge(keys, 0, QueryTile<A>::kSize) || allFinite(keys.k.data, keys.count * p.headSize);
      for (int64_t lane = 0; lane < lanes; lane += kWidth) {
        int64_t first, end;
        tile.visibleKeys(keys, lane, first, end);
        if (first >= end) continue;
        if (transposedGradientOfScores(tile, keys, lane, first, end, buffers) > 0) {
          refine(tile, lane, lane + kWidth, buffers.q, buffers.dO, buffers.refine, buffers.rows);
          setLevels();
          transposedGradientOfScores(tile, keys, lane, first, end, buffers);
        }
        const A *k = keys.k.data + first * keys.k.ld, *gradients = buffers.refine.scores;
        A* dq = buffers.dq + lane * p.headSize;
        if (finite) {
          panelProduct(p.headSize, end - first, Left<A>{k, 1, keys.k.ld}, gradients, kWidth, dq, kWidth, Add<A>{});
        } else {
          for (int64_t key = 0; key < end - first; key++)
            for (int64_t i = 0; i < kWidth; i++) {
              const A gradient = gradients[key * kWidth + i];
              if (gradient == 0) continue;
              for (int64_t c = 0; c < p.headSize; c++) dq[c * kWidth + i] += gradient * k[key * keys.k.ld + c];
            }
        }
      }
    });

    A* factor = buffers.levels.high;
    for (int64_t i = 0; i < lanes; i++) factor[i] = static_cast<A>(p.scale);
    for (int64_t panel = 0; panel < panels; panel++) {
      const int64_t lane = panel * kWidth;
      unpackTransposed(buffers.dq + lane * p.headSize, kWidth, factor + lane, least(kWidth, tile.rows - lane),
                       p.headSize, p.type, p.dq, tile.b, tile.t0 + lane, tile.h);
    }
  }

  /// For keys [first, end) of a tile and queries [lane, lane + kWidth): refine.scores[key][query] = dS. A result above
  /// 0 says that delta is in doubt.
  static A transposedGradientOfScores(const QueryTile<A>& tile, const VisibleKeys<A>& keys, int64_t lane, int64_t first,
                                      int64_t end, const QueryBuffers& buffers) {
    const AttentionProblem& p = tile.p;
    assignProduct(end - first, p.headSize, Left<A>{keys.k.data + first * keys.k.ld, keys.k.ld, 1},
                  buffers.q + lane * p.headSize, kWidth, buffers.refine.scores, kWidth);
    assignProduct(end - first, p.valueSize, Left<A>{keys.v.data + first * keys.v.ld, keys.v.ld, 1},
                  buffers.dO + lane * p.valueSize, kWidth, buffers.refine.dP, kWidth);
    const A scale = static_cast<A>(p.scale * kLog2E);
    const bool edge = tile.isEdge(keys, lane, kWidth);
    Vector<A> doubt{};
    for (int64_t key = first; key < end; key++) {
      A* score = buffers.refine.scores + (key - first) * kWidth;
      Vector<A> x[2], whole[2], fraction[2];
      tile.decayOf(keys, key, lane, whole, fraction);
      for (int v = 0; v < 2; v++) {
        const int64_t column = lane + v * kLanes<A>;
        x[v] = load(score + v * kLanes<A>) * scale - load(buffers.levels.high + column);
        x[v] += fraction[v] - load(buffers.levels.low + column);
      }
      if (edge) tile.restrict(keys, key, lane, x);
      for (int v = 0; v < 2; v++) {
        const int64_t column = lane + v * kLanes<A>;
        const Vector<A> P = exp2<A>(x[v], whole[v]);
        const Vector<A> dP = load(buffers.refine.dP + (key - first) * kWidth + v * kLanes<A>);
        Vector<A> gradient = P * ((dP - load(buffers.rows.delta + column)) - load(buffers.rows.deltaLow + column));
        gradient = ((P == 0) | (p.window == 1)) ? Vector<A>{} : gradient;
        store(score + v * kLanes<A>, gradient);
        doubt += P * P * load(buffers.rows.doubt + column) - gradient * gradient;
      }
    }
    return sumOfLanes<A>(doubt);
  }
};

}  // namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET
