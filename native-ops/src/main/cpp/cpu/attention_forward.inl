// gated_fwa on the CPU: query-stationary flash attention over a window (GatedFWA, section 3), online softmax.
//
// Everything is transposed, scores[key][query]: the softmax then runs down the vector lanes without a horizontal
// reduction, and neither K nor V needs packing; only Q goes in and O comes out transposed, once per tile.
#pragma once

#include "cpu/plan.h"
#include "cpu/query_tile.inl"

namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET {

template <typename A>
struct Forward {
  using Tile = QueryTile<A>;
  static constexpr int64_t kWidth = kPanel<A>;

  struct Buffers {
    A *q, *o, *rows, *scores, *max, *sum, *factor;
    typename Tile::Buffers keys;
    Buffers(const AttentionProblem& p, Scratch& scratch)
        : q(scratch.take<A>(Tile::kSize * p.headSize)),
          o(scratch.take<A>(Tile::kSize * p.valueSize)),
          rows(scratch.take<A>(Tile::kSize * p.headSize)),
          scores(scratch.take<A>(kTile<A> * kWidth)),
          max(scratch.take<A>(Tile::kSize)),
          sum(scratch.take<A>(Tile::kSize)),
          factor(scratch.take<A>(kWidth)),
          keys(p, scratch) {}
  };

  static Plan plan(const AttentionForward& p) {
    Plan plan;
    Scratch scratch(nullptr);
    Buffers buffers(p, scratch);
    plan.scratchBytes = scratch.used();
    plan.flops = 2.0 * static_cast<double>(p.batch * p.heads * p.queryLength) *
                 static_cast<double>(least(p.window + Tile::kSize, p.keyLength) * (p.headSize + p.valueSize));
    plan.add(Tile::items(p), [](const void* params, int64_t item, void* memory) {
      run(*static_cast<const AttentionForward*>(params), item, memory);
    });
    return plan;
  }

  static void run(const AttentionForward& p, int64_t item, void* memory) {
    Scratch scratch(memory);
    const Buffers buffers(p, scratch);
    const Tile tile = Tile::of(p, item);
    const int64_t panels = tile.panels();

    tile.pack(p.q, p.headSize, A(1), buffers.rows, buffers.q);
    for (int64_t i = 0; i < panels * kWidth; i++) buffers.max[i] = -kInfinity<A>, buffers.sum[i] = 0;
    for (int64_t i = 0; i < panels * kWidth * p.valueSize; i++) buffers.o[i] = 0;

    tile.forEachKeyTile(buffers.keys, [&](const VisibleKeys<A>& keys) {
      if (keys.diagonal && keys.lookback == 0) {
        // Until here the decay from there to the row's base was left out: it is the same for all keys before the tile.
        for (int64_t i = 0; i < tile.rows; i++) {
          if (tile.decay.toBase[i] == kInfinity<double>) forget(i, buffers, p.valueSize);
          if (buffers.sum[i] != 0) buffers.max[i] -= static_cast<A>(kLog2E * tile.decay.toBase[i]);
        }
      }
      const bool finite = !tile.isEdge(keys, 0, Tile::kSize) || allFinite(keys.v.data, keys.count * p.valueSize);
      for (int64_t panel = 0; panel < panels; panel++) attend(tile, keys, panel, finite, buffers);
    });

    for (int64_t i = 0; i < tile.rows; i++) {
      const A sum = buffers.sum[i];
      *(at<A>(p.lse, tile.b, tile.h) + (tile.t0 + i) * p.lse.strides[2]) =
          sum == 0 ? -kInfinity<A>
                   : static_cast<A>((kLn2 * buffers.max[i] + __builtin_log(static_cast<double>(sum))) -
                                    tile.decay.common[i]);
      buffers.sum[i] = sum == 0 ? A(0) : 1 / sum;
    }
    for (int64_t panel = 0; panel < panels; panel++) {
      const int64_t lane = panel * kWidth;
      unpackTransposed(buffers.o + lane * p.valueSize, kWidth, buffers.sum + lane, least(kWidth, tile.rows - lane),
                       p.valueSize, p.type, p.o, tile.b, tile.t0 + lane, tile.h);
    }
  }

 private:
  /// Row i has seen nothing: what it saw, NaN included, is behind a hard reset.
  static void forget(int64_t i, const Buffers& buffers, int64_t columns) {
    buffers.max[i] = -kInfinity<A>, buffers.sum[i] = 0;
    A* o = buffers.o + i / kWidth * kWidth * columns + i % kWidth;
    for (int64_t c = 0; c < columns; c++) o[c * kWidth] = 0;
  }

  /// Keeps the products q.k as they are and the maximum of the scores.
  struct Scores {
    const A* bias;
    A scale;
    Vector<A> max[2];
    static constexpr bool kReadsTarget = false;
    GATEDFWA_INLINE void add(Vector<A> score, int v) { max[v] = greater<A>(score, max[v]); }
    GATEDFWA_INLINE Vector<A> operator()(Vector<A>, Vector<A> x, int64_t key, int v) {
      add(x * scale + bias[key], v);
      return x;
    }
  };

  /// x of an edge tile gets the diagonal's decay, and -infinity where the pair is invisible.
  static GATEDFWA_INLINE void restrict(const Tile& tile, const VisibleKeys<A>& keys, int64_t key, int64_t lane,
                                       Vector<A> (&x)[2]) {
    if (keys.diagonal) {
      Vector<A> whole[2], fraction[2];
      tile.decayOf(keys, key, lane, whole, fraction);
      for (int v = 0; v < 2; v++) x[v] += whole[v] + fraction[v];
    }
    tile.restrict(keys, key, lane, x);
  }

  static void attend(const Tile& tile, const VisibleKeys<A>& keys, int64_t panel, bool finite, const Buffers& buffers) {
    const int64_t lane = panel * kWidth;
    int64_t first, end;
    tile.visibleKeys(keys, lane, first, end);
    if (first >= end) return;
    const int64_t count = end - first;
    A* scores = buffers.scores;

    const A scale = static_cast<A>(tile.p.scale * kLog2E);
    const bool edge = tile.isEdge(keys, lane, kWidth);
    Scores maximum{keys.bias + first, scale, {broadcast<A>(-kInfinity<A>), broadcast<A>(-kInfinity<A>)}};
    panelProduct(count, tile.p.headSize, Left<A>{keys.k.data + first * keys.k.ld, keys.k.ld, 1},
                 buffers.q + lane * tile.p.headSize, kWidth, scores, kWidth, maximum);
    if (edge) {
      for (Vector<A>& max : maximum.max) max = broadcast<A>(-kInfinity<A>);
      for (int64_t key = 0; key < count; key++) {
        Vector<A> x[2];
        for (int v = 0; v < 2; v++) x[v] = load(scores + key * kWidth + v * kLanes<A>) * scale + keys.bias[first + key];
        restrict(tile, keys, first + key, lane, x);
        for (int v = 0; v < 2; v++) maximum.add(x[v], v);
      }
    }

    Vector<A> reference[2], sum[2];
    for (int v = 0; v < 2; v++) {
      A* state = buffers.max + lane + v * kLanes<A>;
      const Vector<A> old = load(state), fresh = greater<A>(old, maximum.max[v]);
      store(state, fresh);
      reference[v] = fresh == -kInfinity<A> ? Vector<A>{} : fresh;  // no key yet: exp2(-infinity - 0) = 0
      const Vector<A> factor = exp2<A>(old - reference[v]);
      store(buffers.factor + v * kLanes<A>, factor);
      sum[v] = load(buffers.sum + lane + v * kLanes<A>) * factor;
    }
    // The reference nearly cancels the score before the small terms come in: no bits are lost to large scores.
    for (int64_t key = 0; key < count; key++) {
      A* row = scores + key * kWidth;
      Vector<A> x[2];
      for (int v = 0; v < 2; v++) x[v] = (load(row + v * kLanes<A>) * scale - reference[v]) + keys.bias[first + key];
      if (edge) restrict(tile, keys, first + key, lane, x);
      for (int v = 0; v < 2; v++) {
        const Vector<A> weight = exp2<A>(x[v]);
        store(row + v * kLanes<A>, weight);
        sum[v] += weight;
      }
    }
    for (int v = 0; v < 2; v++) store(buffers.sum + lane + v * kLanes<A>, sum[v]);

    const A* value = keys.v.data + first * keys.v.ld;
    A* o = buffers.o + lane * tile.p.valueSize;
    if (finite) {
      panelProduct(tile.p.valueSize, count, Left<A>{value, 1, keys.v.ld}, scores, kWidth, o, kWidth,
                   RescaleAndAdd<A>{buffers.factor});
      return;
    }
    // A query must not see a NaN or infinity of a key outside its window as 0 * NaN.
    for (int64_t c = 0; c < tile.p.valueSize; c++)
      for (int64_t i = 0; i < kWidth; i++) {
        A x = o[c * kWidth + i] * buffers.factor[i];
        for (int64_t key = 0; key < count; key++) {
          const A weight = scores[key * kWidth + i];
          if (weight != 0) x += weight * value[key * keys.v.ld + c];
        }
        o[c * kWidth + i] = x;
      }
  }
};

}  // namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET
