// One tile of queries walks over the keys that it sees: the loop of the forward pass and of the backward pass for dq.
#pragma once

#include "cpu/tiles.inl"

namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET {

/// At most kTile keys that the query tile sees: from before it, or (diagonal) of its own tokens.
template <typename A>
struct VisibleKeys {
  Rows<A> k, v;  ///< masked keys are zero
  int64_t count;
  const A* bias;              ///< [count], log2 units: decay to the newest real token before the tile; 0 if diagonal
  const A *whole, *fraction;  ///< [count], the two parts of `bias`; not if diagonal
  bool diagonal;
  int64_t lookback;  ///< key i and query l are l - i + lookback tokens apart
};

template <typename A>
struct QueryTile {
  static constexpr int64_t kSize = kQueryTile<A>;
  static constexpr int64_t kLeastItems = 64;  ///< below this, smaller tiles give more cores something to do

  const AttentionProblem& p;
  int64_t b, h, kvHead;
  int64_t t0, position, rows;  ///< first query, its absolute position, number of queries
  int64_t earlierEnd;          ///< one past the newest real token before the tile; the start of the window if none
  double gap;                  ///< sum of alpha from that token to `position`
  DiagonalDecay<A> decay;

  static int64_t size(const AttentionProblem& p) {
    int64_t size = kSize;
    while (size > kTile<A> && p.batch * p.heads * ((p.queryLength + size - 1) / size) < kLeastItems) size /= 2;
    return size;
  }
  static int64_t count(const AttentionProblem& p) { return (p.queryLength + size(p) - 1) / size(p); }
  static int64_t items(const AttentionProblem& p) { return p.batch * p.heads * count(p); }

  QueryTile(const AttentionProblem& problem, int64_t batch, int64_t head, int64_t firstQuery, int64_t queries)
      : p(problem),
        b(batch),
        h(head),
        kvHead(head / (p.heads / p.kvHeads)),
        t0(firstQuery),
        position(p.keyLength - p.queryLength + firstQuery),
        rows(queries) {
    const Decays<A> alpha = Decays<A>::of(p, b, h);
    const int64_t lowest = most(0, position - p.window + 1);
    gap = alpha[position];
    for (earlierEnd = position; earlierEnd > lowest && !isReal(p, b, earlierEnd - 1);)
      gap = addDecays(gap, alpha[--earlierEnd]);
    if (gap == kInfinity<double>) earlierEnd = lowest;
    if (earlierEnd == lowest) gap = 0;
    decay.set(alpha, position, rows, gap, [&](int64_t i) { return isReal(p, b, position + i); });
  }
  /// All heads of a tile are neighbours in the order of items: tokens hold their heads side by side, so they share
  /// memory pages, and heads of a group share keys.
  static QueryTile of(const AttentionProblem& p, int64_t item) {
    const int64_t h = item % p.heads, first = item / p.heads % count(p) * size(p);
    return QueryTile(p, item / p.heads / count(p), h, first, least(size(p), p.queryLength - first));
  }
  int64_t panels() const { return (rows + kPanel<A> - 1) / kPanel<A>; }

  /// factor * x^T of this tile's rows of a tensor like q or o, as panels [columns][kPanel].
  void pack(const Input& x, int64_t columns, A factor, A* buffer, A* packed) const {
    const Rows<A> staged = stageRows(p.type, x, b, t0, h, rows, columns, columns, nullptr, buffer);
    packTransposed<A>(staged, rows, columns, kPanel<A>, panels(), factor, packed);
  }

  struct Buffers {
    A *k, *v, *bias, *whole, *fraction;
    uint8_t* keep;
    Buffers(const AttentionProblem& p, Scratch& scratch)
        : k(scratch.take<A>(kTile<A> * p.headSize)),
          v(scratch.take<A>(kTile<A> * p.valueSize)),
          bias(scratch.take<A>(kTile<A>)),
          whole(scratch.take<A>(kTile<A>)),
          fraction(scratch.take<A>(kTile<A>)),
          keep(scratch.take<uint8_t>(kTile<A>)) {}
  };

  /// Calls visit(VisibleKeys) for the keys before the tile, nearest first, and then for the tile's own tokens.
  template <typename Visit>
  void forEachKeyTile(const Buffers& buffers, Visit visit) const {
    const Decays<A> alpha = Decays<A>::of(p, b, h);
    const int64_t lowest = most(0, position - p.window + 1);
    double sum = 0;
    for (int64_t end = earlierEnd, first; end > lowest && sum != kInfinity<double>; end = first) {
      first = alpha.newestReset(most(lowest, end - kTile<A>), end);
      const uint8_t* keep = maskOf(p, b, first, end - first, buffers.keep);
      sum = alpha.columns(first, end, sum, keep, [&](int64_t i, double bias) {
        double whole;
        split(bias, whole, buffers.fraction[i]);
        buffers.whole[i] = static_cast<A>(whole);
        buffers.bias[i] = static_cast<A>(bias);
      });
      visit(stage(buffers, keep, first, end - first, false, position - first));
    }
    for (int64_t i = 0; i < kTile<A>; i++) buffers.bias[i] = 0;
    for (int64_t own = 0; own < rows; own += kTile<A>) {
      const int64_t count = least(kTile<A>, rows - own);
      const uint8_t* keep = maskOf(p, b, position + own, count, buffers.keep);
      visit(stage(buffers, keep, position + own, count, true, -own));
    }
  }

  /// Keys [first, end) of the tile that any query of lanes [lane, lane + kPanel) sees.
  void visibleKeys(const VisibleKeys<A>& tile, int64_t lane, int64_t& first, int64_t& end) const {
    first = most(0, lane + tile.lookback - p.window + 1);
    end = least(tile.count, lane + kPanel<A> + tile.lookback);
  }

  /// Some pair of these lanes (queries of the tile) is invisible, or has a decay of its own.
  bool isEdge(const VisibleKeys<A>& tile, int64_t lane, int64_t lanes) const {
    return tile.diagonal || least(lane + lanes, rows) - 1 + tile.lookback >= p.window;
  }

  /// -log2(e) * decay of key `key` and lanes from `lane` on = whole[v] + fraction[v].
  GATEDFWA_INLINE void decayOf(const VisibleKeys<A>& tile, int64_t key, int64_t lane, Vector<A> (&whole)[2],
                               Vector<A> (&fraction)[2]) const {
    if (!tile.diagonal) {
      for (int v = 0; v < 2; v++) whole[v] = broadcast(tile.whole[key]), fraction[v] = broadcast(tile.fraction[key]);
      return;
    }
    const int64_t own = key - tile.lookback;
    alignas(64) A between[kPanel<A>];
    for (int64_t i = 0; i < kPanel<A>; i++) between[i] = decay.wholeBetween(own, lane + i);
    for (int v = 0; v < 2; v++) {
      whole[v] = load(between + v * kLanes<A>);
      fraction[v] = decay.fraction[own] - load(decay.fractionOfBase + lane + v * kLanes<A>);
    }
  }

  /// For a tile with invisible pairs: x[v] of key `key` and lanes from `lane` on gets -infinity where the pair is
  /// invisible, NaN where a NaN decay lies between.
  GATEDFWA_INLINE void restrict(const VisibleKeys<A>& tile, int64_t key, int64_t lane, Vector<A> (&x)[2]) const {
    const IntegerVector<A> lanes = laneIndex<A>();
    // Visible: 0 <= distance < window.
    const int64_t nearest = key - tile.lookback - lane, farthest = least(nearest + p.window, kPanel<A>);
    for (int v = 0; v < 2; v++) {
      if (tile.diagonal && decay.bounded) {
        const int64_t column = lane + v * kLanes<A>;
        const Vector<A> bound = load(decay.bound + column);
        x[v] = static_cast<A>(key - tile.lookback) < bound ? load(decay.barrier + column) : x[v];
      }
      const IntegerVector<A> l = lanes + v * kLanes<A>;
      x[v] = ((l < static_cast<int>(most(nearest, 0))) | (l >= static_cast<int>(most(farthest, 0))))
                 ? broadcast<A>(-kInfinity<A>)
                 : x[v];
    }
  }

 private:
  VisibleKeys<A> stage(const Buffers& buffers, const uint8_t* keep, int64_t first, int64_t count, bool diagonal,
                       int64_t lookback) const {
    const Rows<A> k = stageRows(p.type, p.k, b, first, kvHead, count, p.headSize, p.headSize, keep, buffers.k);
    const Rows<A> v = stageRows(p.type, p.v, b, first, kvHead, count, p.valueSize, p.valueSize, keep, buffers.v);
    return {k, v, count, buffers.bias, buffers.whole, buffers.fraction, diagonal, lookback};
  }
};

}  // namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET
