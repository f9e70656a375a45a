// One tile of queries walks over the keys that it sees: the loop of the forward pass and of the backward pass for dq.
#pragma once

#include "cpu/tiles.inl"

namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET {

/// A block of at most kTile keys beside the query tile, before it or (diagonal) the same tokens.
template <typename A>
struct KeyTile {
  Rows<A> k, v;      ///< masked keys are zero
  int64_t count;
  const A* bias;     ///< [count], log2 units; not for the diagonal tile, except -infinity at masked keys
  bool diagonal;
  bool edge;         ///< some pair is invisible for its position
  int64_t lookback;  ///< key i and query l are l - i + lookback tokens apart
};

template <typename E>
struct QueryTile {
  using A = Accumulator<E>;
  static constexpr int64_t kSize = kTile<A>;

  const AttentionProblem& p;
  int64_t b, h, kvHead;
  int64_t t0, position, rows;  ///< first query, its absolute position, number of queries
  DiagonalDecay<A> decay;

  static int64_t count(const AttentionProblem& p) { return (p.queryLength + kSize - 1) / kSize; }
  static int64_t items(const AttentionProblem& p) { return p.batch * p.heads * count(p); }

  /// Heads that share keys are neighbours in the order of items.
  QueryTile(const AttentionProblem& problem, int64_t item) : p(problem) {
    const int64_t group = p.heads / p.kvHeads, tiles = count(p);
    const int64_t g = item % group;
    item /= group;
    t0 = item % tiles * kSize;
    item /= tiles;
    kvHead = item % p.kvHeads;
    h = kvHead * group + g;
    b = item / p.kvHeads;
    rows = least(kSize, p.queryLength - t0);
    position = p.keyLength - p.queryLength + t0;
    decay.set(Decays<A>::of(p, b, h), position, rows);
  }
  int64_t panels() const { return (rows + kPanel<A> - 1) / kPanel<A>; }

  /// factor * x^T of this tile's rows of a tensor like q or o, as panels [columns][kPanel].
  void pack(const Input& x, int64_t columns, A factor, A* buffer, A* packed) const {
    const Rows<A> staged =
        stageRows<E>(at<E>(x, b, t0, h), x.strides[1], x.strides[3], rows, columns, columns, nullptr, buffer);
    packTransposed<A>(staged, rows, columns, kPanel<A>, panels(), factor, packed);
  }

  struct Buffers {
    A *k, *v, *bias;
    uint8_t* keep;
    Buffers(const AttentionProblem& p, Scratch& scratch)
        : k(scratch.take<A>(kSize * p.headSize)),
          v(scratch.take<A>(kSize * p.valueSize)),
          bias(scratch.take<A>(kSize)),
          keep(scratch.take<uint8_t>(kSize)) {}
  };

  /// Calls visit(KeyTile) for the keys before the tile, nearest first, and last for the tile's own tokens.
  template <typename Visit>
  void forEachKeyTile(const Buffers& buffers, Visit visit) const {
    const Decays<A> alpha = Decays<A>::of(p, b, h);
    const int64_t lowest = most(0, position - p.window + 1);
    double sum = alpha[position];
    for (int64_t end = position, first; end > lowest && sum < kInfinity<double>; end = first) {
      first = most(lowest, end - kSize);
      const uint8_t* keep = maskOf<E>(p, b, first, end - first, buffers.keep);
      sum = alpha.columns(first, end, sum, keep, buffers.bias);
      const bool edge = position + rows - 1 - first >= p.window;
      visit(stage(buffers, keep, first, end - first, false, edge, position - first));
    }
    const uint8_t* keep = maskOf<E>(p, b, position, rows, buffers.keep);
    for (int64_t i = 0; i < rows; i++) buffers.bias[i] = keep && !keep[i] ? -kInfinity<A> : A(0);
    visit(stage(buffers, keep, position, rows, true, true, 0));
  }

  /// Keys [first, end) of the tile that any query of lanes [lane, lane + kPanel) sees.
  void visibleKeys(const KeyTile<A>& tile, int64_t lane, int64_t& first, int64_t& end) const {
    first = most(0, lane + tile.lookback - p.window + 1);
    end = tile.diagonal ? least(tile.count, lane + kPanel<A>) : tile.count;
  }

  /// The exponents (log2) of one panel, x[key][lane] += decay, -infinity where invisible.
  /// `rowTerm` [kPanel] is subtracted.
  template <typename PerVector>
  GATEDFWA_INLINE void exponents(const KeyTile<A>& tile, int64_t lane, int64_t first, int64_t end, const A* scores,
                                 const PerVector& use) const {
    const IntegerVector<A> lanes = laneIndex<A>();
    for (int64_t key = first; key < end; key++) {
      const A* row = scores + (key - first) * kPanel<A>;
      Vector<A> x[2] = {load(row) + tile.bias[key], load(row + kLanes<A>) + tile.bias[key]};
      if (tile.edge) {
        alignas(64) A own[kPanel<A>];
        if (tile.diagonal)
          for (int64_t i = 0; i < kPanel<A>; i++) own[i] = decay.between(key, lane + i);
        // Visible: 0 <= distance < window.
        const int64_t nearest = key - tile.lookback - lane, farthest = least(nearest + p.window, kPanel<A>);
        for (int v = 0; v < 2; v++) {
          if (tile.diagonal) x[v] += load(own + v * kLanes<A>);
          const IntegerVector<A> l = lanes + v * kLanes<A>;
          x[v] = (l < static_cast<int>(most(nearest, 0))) | (l >= static_cast<int>(most(farthest, 0)))
                     ? broadcast<A>(-kInfinity<A>)
                     : x[v];
        }
      }
      use(key - first, x);
    }
  }

 private:
  KeyTile<A> stage(const Buffers& buffers, const uint8_t* keep, int64_t first, int64_t count, bool diagonal, bool edge,
                   int64_t lookback) const {
    const Rows<A> k = stageRows<E>(at<E>(p.k, b, first, kvHead), p.k.strides[1], p.k.strides[3], count, p.headSize,
                                   p.headSize, keep, buffers.k);
    const Rows<A> v = stageRows<E>(at<E>(p.v, b, first, kvHead), p.v.strides[1], p.v.strides[3], count, p.valueSize,
                                   p.valueSize, keep, buffers.v);
    return {k, v, count, buffers.bias, diagonal, edge, lookback};
  }
};

}  // namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET
