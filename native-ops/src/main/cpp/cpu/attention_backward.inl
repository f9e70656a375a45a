// gated_fwa_bp on the CPU. Key-stationary: K and V are packed once per key tile, dk and dv stay in scratch, and the
// column sums of dS that dalpha needs fall out of the scores' layout, scores[query][key].
//
// A work item is a segment of key tiles, at least as long as the window. Its queries lie in this segment and the next,
// so all even segments can add to dq at the same time, then all odd ones: five products per tile, no atomics, and an
// order of additions that depends on the shape alone. For 16-bit types dq would be rounded twice on that way; a
// query-stationary pass of its own computes it (two products more).
#pragma once

#include "cpu/query_tile.inl"

namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET {

template <typename E>
struct Backward {
  using A = Accumulator<E>;
  static constexpr int64_t kSize = kTile<A>;
  static constexpr int64_t kWidth = kPanel<A>;
  static constexpr bool kAddsToDq = kIsAccumulator<E>;
  static constexpr int64_t kLeastSegment = 4;

  /// Key tiles are aligned with the query tiles; the first may be cut short by the start of the sequence.
  struct Tiling {
    int64_t padding, keyTiles, firstQueryTile, segmentTiles, segments;
    explicit Tiling(const AttentionProblem& p) {
      const int64_t past = p.keyLength - p.queryLength;
      padding = roundUp(past, kSize) - past;
      keyTiles = (p.keyLength + padding + kSize - 1) / kSize;
      firstQueryTile = (past + padding) / kSize;
      segmentTiles = most(kLeastSegment, (p.window - 1 + kSize - 1) / kSize);
      segments = (keyTiles + segmentTiles - 1) / segmentTiles;
    }
    int64_t begin(int64_t tile) const { return most(0, tile * kSize - padding); }
  };

  struct Buffers {
    int64_t headColumns, valueColumns;
    A *k, *kPacked, *vPacked, *q, *dO, *o, *weight, *dS, *dq, *dk, *dv, *bias, *rowTerm, *delta, *columnSum, *tileSum;
    uint8_t* keep;
    Buffers(const AttentionProblem& p, Scratch& scratch)
        : headColumns(roundUp(p.headSize, kLanes<A>)), valueColumns(roundUp(p.valueSize, kLanes<A>)) {
      k = scratch.take<A>(kSize * headColumns);
      kPacked = scratch.take<A>(kSize * p.headSize);
      vPacked = scratch.take<A>(kSize * p.valueSize);
      q = scratch.take<A>(kSize * headColumns);
      dO = scratch.take<A>(kSize * valueColumns);
      o = scratch.take<A>(kSize * most(headColumns, valueColumns));
      weight = scratch.take<A>(kSize * kSize);
      dS = scratch.take<A>(kSize * kSize);
      dq = scratch.take<A>(kSize * headColumns);
      dk = scratch.take<A>(kSize * headColumns);
      dv = scratch.take<A>(kSize * valueColumns);
      bias = scratch.take<A>(kSize);
      rowTerm = scratch.take<A>(kSize);
      delta = scratch.take<A>(kSize);
      columnSum = scratch.take<A>(kSize);
      tileSum = scratch.take<A>(kSize);
      keep = scratch.take<uint8_t>(kSize);
    }
  };

  static Plan plan(const AttentionBackward& p) {
    using Params = AttentionBackward;
    Plan plan;
    Scratch scratch(nullptr), queryScratch(nullptr);
    Buffers buffers(p, scratch);
    QueryBuffers queryBuffers(p, queryScratch);
    plan.scratchBytes = static_cast<size_t>(most(static_cast<int64_t>(scratch.used()), static_cast<int64_t>(queryScratch.used())));
    plan.flops = 5.0 * static_cast<double>(p.batch * p.heads * p.queryLength) *
                 static_cast<double>(least(p.window + kSize, p.keyLength) * (p.headSize + p.valueSize));
    const Tiling tiling(p);
    plan.add(p.batch * p.heads, [](const void* params, int64_t item, void*) {
      clear(*static_cast<const Params*>(params), item);
    });
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
      plan.add(p.batch * p.heads, [](const void* params, int64_t item, void*) {
        finishDecay(*static_cast<const Params*>(params), item);
      });
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
    for (int64_t tile = 0; tile < tiling.keyTiles; tile++) {
      const int64_t first = tiling.begin(tile), end = least(p.keyLength, tiling.begin(tile + 1));
      for (int64_t j = first + 1; j < end; j++) *at<A>(p.dalpha, b, j, h) += *at<A>(p.dalpha, b, j - 1, h);
    }
  }

  static void runSegment(const AttentionBackward& p, int64_t item, int64_t parity, void* memory) {
    const Tiling tiling(p);
    const int64_t segments = parity ? tiling.segments / 2 : (tiling.segments + 1) / 2;
    const int64_t segment = 2 * (item % segments) + parity;
    item /= segments;
    const int64_t kvHead = item % p.kvHeads, b = item / p.kvHeads;
    Scratch scratch(memory);
    const Buffers buffers(p, scratch);
    const int64_t end = least(tiling.keyTiles, (segment + 1) * tiling.segmentTiles);
    for (int64_t tile = segment * tiling.segmentTiles; tile < end; tile++) runKeyTile(p, tiling, b, kvHead, tile, buffers);
  }

  static void runKeyTile(const AttentionBackward& p, const Tiling& tiling, int64_t b, int64_t kvHead, int64_t tile,
                         const Buffers& buffers) {
    const int64_t first = tiling.begin(tile), end = least(p.keyLength, tiling.begin(tile + 1)), keys = end - first;
    const int64_t panels = (keys + kWidth - 1) / kWidth;
    const uint8_t* keep = maskOf<E>(p, b, first, keys, buffers.keep);
    const Rows<A> v = stageRows<E>(at<E>(p.v, b, first, kvHead), p.v.strides[1], p.v.strides[3], keys, p.valueSize,
                                   p.valueSize, keep, buffers.dO);
    packTransposed<A>(v, keys, p.valueSize, kWidth, panels, A(1), buffers.vPacked);
    const Rows<A> k = stageRows<E>(at<E>(p.k, b, first, kvHead), p.k.strides[1], p.k.strides[3], keys, p.headSize,
                                   buffers.headColumns, keep, buffers.k);
    packTransposed<A>(k, keys, p.headSize, kWidth, panels, static_cast<A>(p.scale * kLog2E), buffers.kPacked);
    const bool keysFinite = allFinite(k, keys, p.headSize);
    for (int64_t i = 0; i < keys * buffers.headColumns; i++) buffers.dk[i] = 0;
    for (int64_t i = 0; i < keys * buffers.valueColumns; i++) buffers.dv[i] = 0;

    const int64_t group = p.heads / p.kvHeads;
    for (int64_t h = kvHead * group; h < (kvHead + 1) * group; h++) {
      const Decays<A> alpha = Decays<A>::of(p, b, h);
      alpha.columns(first, end, 0, keep, buffers.bias);
      for (int64_t i = keys; i < panels * kWidth; i++) buffers.bias[i] = -kInfinity<A>;
      for (int64_t i = 0; i < panels * kWidth; i++) buffers.columnSum[i] = 0;

      double gap = 0;  // sum of alpha over [end, first token of the query tile]
      int64_t summed = end;
      for (int64_t queryTile = most(tile, tiling.firstQueryTile); queryTile < tiling.keyTiles; queryTile++) {
        const int64_t position = tiling.begin(queryTile);
        if (position - (end - 1) >= p.window) break;
        for (; summed <= position && queryTile > tile; summed++) gap += alpha[summed];
        if (gap == kInfinity<double>) break;
        const Pairs pairs{p, b, h, first, keys, position, least(kSize, p.keyLength - position), queryTile == tile,
                          k, keysFinite, keep};
        const A sum = runPairs(pairs, alpha, gap, panels, buffers);
        if (p.dalpha.data)
          for (int64_t boundary = tile + 1; boundary <= queryTile; boundary++)
            *at<A>(p.dalpha, b, tiling.begin(boundary), h) -= sum;
      }
      if (p.dalpha.data)
        for (int64_t i = 0; i + 1 < keys; i++) *at<A>(p.dalpha, b, first + i + 1, h) -= buffers.columnSum[i];
    }
    writeRows<E>(buffers.dk, buffers.headColumns, static_cast<A>(p.scale), keys, p.headSize,
                 at<E>(p.dk, b, first, kvHead), p.dk.strides[1], p.dk.strides[3]);
    writeRows<E>(buffers.dv, buffers.valueColumns, A(1), keys, p.valueSize, at<E>(p.dv, b, first, kvHead),
                 p.dv.strides[1], p.dv.strides[3]);
  }

  struct Pairs {
    const AttentionBackward& p;
    int64_t b, h;
    int64_t first, keys;      ///< of the key tile
    int64_t position, rows;   ///< of the query tile
    bool diagonal;
    Rows<A> k;
    bool keysFinite;
    const uint8_t* keep;      ///< of the key tile, or null
    bool edge() const { return diagonal || position + rows - 1 - first >= p.window; }
    int64_t t0() const { return position - (p.keyLength - p.queryLength); }
    int64_t lookback() const { return position - first; }
  };

  /// One tile of pairs: adds to dk, dv, dq and the column sums; returns the sum of its dS.
  static A runPairs(const Pairs& x, const Decays<A>& alpha, double gap, int64_t panels, const Buffers& buffers) {
    const AttentionBackward& p = x.p;
    const Rows<A> q = stageRows<E>(at<E>(p.q, x.b, x.t0(), x.h), p.q.strides[1], p.q.strides[3], x.rows, p.headSize,
                                   buffers.headColumns, nullptr, buffers.q);
    const Rows<A> dO = stageRows<E>(at<E>(p.dO, x.b, x.t0(), x.h), p.dO.strides[1], p.dO.strides[3], x.rows,
                                    p.valueSize, buffers.valueColumns, nullptr, buffers.dO);
    const Rows<A> o = stageRows<E>(at<E>(p.o, x.b, x.t0(), x.h), p.o.strides[1], p.o.strides[3], x.rows, p.valueSize,
                                   p.valueSize, nullptr, buffers.o);
    DiagonalDecay<A> decay;
    if (x.diagonal) decay.set(alpha, x.position, x.rows);
    double rowDecay = gap;
    for (int64_t i = 0; i < x.rows; i++) {
      if (i > 0) rowDecay += alpha[x.position + i];
      const A lse = *(at<A>(p.lse, x.b, x.h) + (x.t0() + i) * p.lse.strides[2]);
      // A row without a key has lse = -infinity; exp2(-infinity) makes all of its weights 0.
      buffers.rowTerm[i] = lse == -kInfinity<A> ? kInfinity<A>
                                                : static_cast<A>(kLog2E * ((x.diagonal ? 0.0 : rowDecay) + lse));
      buffers.delta[i] = dot(dO.data + i * dO.ld, o.data + i * o.ld, p.valueSize);
    }

    const bool edge = x.edge();
    const bool finite = !edge || (x.keysFinite && allFinite(q, x.rows, p.headSize) && allFinite(dO, x.rows, p.valueSize));
    A sum = 0;
    for (int64_t panel = 0; panel < panels; panel++) {
      const int64_t lane = panel * kWidth;
      // Queries that see any key of lanes [lane, lane + kWidth).
      const int64_t begin = x.diagonal ? lane : 0;
      const int64_t end = most(begin, least(x.rows, lane + kWidth - 1 - x.lookback() + p.window));
      for (int64_t i = 0; i < x.rows; i++)
        if (i < begin || i >= end)
          for (int64_t l = 0; l < kWidth; l++) buffers.dS[i * kSize + lane + l] = 0;
      if (begin >= end) continue;

      A* weight = buffers.weight + begin * kSize + lane;
      A* dS = buffers.dS + begin * kSize + lane;
      panelProduct(end - begin, p.headSize, Left<A>{q.data + begin * q.ld, q.ld, 1}, buffers.kPacked + lane * p.headSize,
                   kWidth, weight, kSize, Assign<A>{});
      panelProduct(end - begin, p.valueSize, Left<A>{dO.data + begin * dO.ld, dO.ld, 1},
                   buffers.vPacked + lane * p.valueSize, kWidth, dS, kSize, Assign<A>{});
      Vector<A> columns[2] = {};
      if (edge)
        gradientOfScores<true>(x, decay, lane, begin, end, buffers, columns);
      else
        gradientOfScores<false>(x, decay, lane, begin, end, buffers, columns);
      for (int v = 0; v < 2; v++) {
        A* total = buffers.columnSum + lane + v * kLanes<A>;
        store(total, load(total) + columns[v]);
        store(buffers.tileSum + v * kLanes<A>, columns[v]);
      }
      const int64_t keys = least(kWidth, x.keys - lane);
      for (int64_t l = 0; l < keys; l++) sum += buffers.tileSum[l];

      add(finite, keys, buffers.valueColumns, end - begin, Left<A>{weight, 1, kSize}, dO.data + begin * dO.ld, dO.ld,
          A(1), buffers.dv + lane * buffers.valueColumns, buffers.valueColumns);
      add(finite, keys, buffers.headColumns, end - begin, Left<A>{dS, 1, kSize}, q.data + begin * q.ld, q.ld, A(1),
          buffers.dk + lane * buffers.headColumns, buffers.headColumns);
    }
    if constexpr (kAddsToDq) {
      if (p.dalpha.data)
        for (int64_t i = 0; i + 1 < x.rows; i++)
          *at<A>(p.dalpha, x.b, x.position + i + 1, x.h) += sumOfRow(buffers.dS + i * kSize, panels);
      const Left<A> dS{buffers.dS, kSize, 1};
      const A scale = static_cast<A>(p.scale);
      E* dq = at<E>(p.dq, x.b, x.t0(), x.h);
      if (p.dq.strides[3] == 1 && buffers.headColumns == p.headSize) {
        add(finite, x.rows, p.headSize, x.keys, dS, x.k.data, x.k.ld, scale, dq, p.dq.strides[1]);
      } else {
        for (int64_t i = 0; i < x.rows * buffers.headColumns; i++) buffers.dq[i] = 0;
        add(finite, x.rows, buffers.headColumns, x.keys, dS, x.k.data, x.k.ld, scale, buffers.dq, buffers.headColumns);
        for (int64_t i = 0; i < x.rows; i++)
          for (int64_t c = 0; c < p.headSize; c++)
            dq[i * p.dq.strides[1] + c * p.dq.strides[3]] += buffers.dq[i * buffers.headColumns + c];
      }
    }
    return sum;
  }

  static void add(bool finite, int64_t rows, int64_t columns, int64_t depth, Left<A> a, const A* b, int64_t ldb, A factor,
                  A* c, int64_t ldc) {
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

  static A dot(const A* x, const A* y, int64_t length) {
    Vector<A> sums{};
    int64_t i = 0;
    for (; i + kLanes<A> <= length; i += kLanes<A>) sums += load(x + i) * load(y + i);
    A sum = sumOfLanes<A>(sums);
    for (; i < length; i++) sum += x[i] * y[i];
    return sum;
  }

  /// weight: scores -> P; dS: dP -> P o (dP - delta); columns += column sums of dS.
  template <bool kEdge>
  static void gradientOfScores(const Pairs& x, const DiagonalDecay<A>& decay, int64_t lane, int64_t begin, int64_t end,
                               const Buffers& buffers, Vector<A> (&columns)[2]) {
    const IntegerVector<A> lanes = laneIndex<A>();
    const Vector<A> bias[2] = {load(buffers.bias + lane), load(buffers.bias + lane + kLanes<A>)};
    for (int64_t i = begin; i < end; i++) {
      alignas(64) A own[kWidth];
      // Visible: 0 <= distance < window, distance = i - (lane + l) + lookback.
      const int64_t nearest = i + x.lookback() - lane, farthest = nearest - x.p.window;
      if (kEdge && x.diagonal)
        for (int64_t l = 0; l < kWidth; l++)
          own[l] = x.keep && !x.keep[least(lane + l, x.keys - 1)] ? -kInfinity<A> : decay.between(lane + l, i);
      for (int v = 0; v < 2; v++) {
        A* weight = buffers.weight + i * kSize + lane + v * kLanes<A>;
        A* dS = buffers.dS + i * kSize + lane + v * kLanes<A>;
        Vector<A> exponent = load(weight) + (kEdge && x.diagonal ? load(own + v * kLanes<A>) : bias[v]) - buffers.rowTerm[i];
        if (kEdge) {
          const IntegerVector<A> l = lanes + v * kLanes<A>;
          exponent = (l > static_cast<int>(least(nearest, kWidth))) | (l <= static_cast<int>(most(farthest, -1)))
                         ? broadcast<A>(-kInfinity<A>)
                         : exponent;
        }
        const Vector<A> P = exp2<A>(exponent);
        Vector<A> gradient = P * (load(dS) - buffers.delta[i]);
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
        : q(scratch.take<A>(kSize * p.headSize)),
          dO(scratch.take<A>(kSize * p.valueSize)),
          dq(scratch.take<A>(kSize * p.headSize)),
          rows(scratch.take<A>(kSize * most(p.headSize, p.valueSize))),
          scores(scratch.take<A>(kSize * kWidth)),
          dP(scratch.take<A>(kSize * kWidth)),
          rowTerm(scratch.take<A>(kSize)),
          delta(scratch.take<A>(kSize)),
          rowSum(scratch.take<A>(kSize)),
          keys(p, scratch) {}
  };

  /// dq of one tile of queries, in the forward pass's layout, and the row sums for dalpha.
  static void runQueryTile(const AttentionBackward& p, int64_t item, void* memory) {
    Scratch scratch(memory);
    const QueryBuffers buffers(p, scratch);
    const QueryTile<E> tile(p, item);
    const int64_t panels = tile.panels(), lanes = panels * kWidth;
    tile.pack(p.q, p.headSize, static_cast<A>(p.scale * kLog2E), buffers.rows, buffers.q);
    tile.pack(p.o, p.valueSize, A(1), buffers.rows, buffers.dO);
    for (int64_t i = 0; i < lanes; i++) buffers.rowTerm[i] = kInfinity<A>, buffers.delta[i] = buffers.rowSum[i] = 0;
    for (int64_t i = 0; i < tile.rows; i++) {
      const E* dO = at<E>(p.dO, tile.b, tile.t0 + i, tile.h);
      const A* o = buffers.dO + i / kWidth * kWidth * p.valueSize + i % kWidth;
      for (int64_t c = 0; c < p.valueSize; c++) buffers.delta[i] += widen(dO[c * p.dO.strides[3]]) * o[c * kWidth];
      const A lse = *(at<A>(p.lse, tile.b, tile.h) + (tile.t0 + i) * p.lse.strides[2]);
      if (lse != -kInfinity<A>) buffers.rowTerm[i] = static_cast<A>(kLog2E * (tile.decay.row[i] + lse));
    }
    tile.pack(p.dO, p.valueSize, A(1), buffers.rows, buffers.dO);
    for (int64_t i = 0; i < lanes * p.headSize; i++) buffers.dq[i] = 0;

    tile.forEachKeyTile(buffers.keys, [&](const KeyTile<A>& keys) {
      if (keys.diagonal)
        for (int64_t i = 0; i < tile.rows; i++) {
          const A lse = *(at<A>(p.lse, tile.b, tile.h) + (tile.t0 + i) * p.lse.strides[2]);
          if (lse != -kInfinity<A>) buffers.rowTerm[i] = static_cast<A>(kLog2E * lse);
        }
      const bool finite = !keys.edge || allFinite(keys.k, keys.count, p.headSize);
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
        tile.exponents(keys, lane, first, end, buffers.scores, [&](int64_t key, const Vector<A>(&x)[2]) {
          for (int v = 0; v < 2; v++) {
            const int64_t column = lane + v * kLanes<A>;
            A* score = buffers.scores + key * kWidth + v * kLanes<A>;
            const Vector<A> P = exp2<A>(x[v] - load(buffers.rowTerm + column));
            const Vector<A> dP = load(buffers.dP + key * kWidth + v * kLanes<A>);
            Vector<A> gradient = P * (dP - load(buffers.delta + column));
            gradient = (P == 0) | (p.window == 1) ? Vector<A>{} : gradient;
            store(score, gradient);
            store(buffers.rowSum + column, load(buffers.rowSum + column) + gradient);
          }
        });
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
        *at<A>(p.dalpha, tile.b, tile.position + i + 1, tile.h) += buffers.rowSum[i];
  }
};

}  // namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET
