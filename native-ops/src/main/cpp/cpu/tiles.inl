// What forward and backward share: tile sizes, visibility and decay of one tile.
#pragma once

#include "cpu/products.inl"

namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET {

/// Keys of a tile: its scores with one panel of queries fit into the first-level cache.
template <typename A>
constexpr int64_t kTile = sizeof(A) == 4 ? 64 : 32;
/// At most so many queries share a key tile once it is staged.
template <typename A>
constexpr int64_t kQueryTile = 4 * kTile<A>;
static_assert(kTile<float> % kPanel<float> == 0 && kTile<double> % kPanel<double> == 0);

/// The decays of one batch entry and head, or none. Sums are in float64 and start inside the window, so that their
/// rounding does not depend on the position in the sequence.
template <typename A>
struct Decays {
  const A* alpha;  ///< null without a gate
  int64_t stride;

  static Decays of(const AttentionProblem& p, int64_t b, int64_t h) {
    if (!p.alpha.data) return {nullptr, 0};
    return {static_cast<const A*>(p.alpha.data) + b * p.alpha.strides[0] + h * p.alpha.strides[2], p.alpha.strides[1]};
  }
  GATEDFWA_INLINE double operator[](int64_t j) const { return alpha ? static_cast<double>(alpha[j * stride]) : 0.0; }

  /// bias[j - first] = -log2(e) * (gap + sum of alpha over (j, end)), end exclusive; -infinity where keep is 0. Returns
  /// gap + sum of alpha over [first, end). The two parts are rounded one by one: the backward pass, which learns of the
  /// gap later, then gets the same bits.
  double columns(int64_t first, int64_t end, double gap, const uint8_t* keep, A* bias) const {
    const A far = static_cast<A>(kLog2E * gap);
    double near = 0;
    for (int64_t j = end - 1; j >= first; j--) {
      bias[j - first] = keep && !keep[j - first] ? -kInfinity<A> : static_cast<A>(-kLog2E * near) - far;
      near += (*this)[j];
    }
    return gap + near;
  }
};

/// Inside a tile whose queries and keys are the same tokens every pair has a decay of its own, the difference of two
/// prefix sums. Infinite (and NaN) decays stay out of the sums and act as a bound on the keys instead.
template <typename A>
struct DiagonalDecay {
  double prefix[kQueryTile<A>];  ///< sum of the finite alpha over (first, i]
  double row[kQueryTile<A>];     ///< sum of all alpha over (first, i]
  A barrier[kQueryTile<A>];      ///< for keys before `bound`: -infinity or NaN
  int64_t bound[kQueryTile<A>];  ///< keys below this index are behind a non-finite alpha
  bool bounded = false;          ///< any bound above 0

  void set(const Decays<A>& alpha, int64_t first, int64_t count) {
    prefix[0] = row[0] = 0;
    bound[0] = 0;
    barrier[0] = 0;
    for (int64_t i = 1; i < count; i++) {
      const double x = alpha[first + i];
      const bool finite = x - x == 0;
      prefix[i] = prefix[i - 1] + (finite ? x : 0.0);
      row[i] = row[i - 1] + x;
      bound[i] = finite ? bound[i - 1] : i;
      barrier[i] = finite ? barrier[i - 1] : barrier[i - 1] - static_cast<A>(x);
      bounded = bounded || !finite;
    }
    for (int64_t i = count; i < roundUp(count, kPanel<A>); i++) {
      prefix[i] = row[i] = 0;
      bound[i] = 0;
      barrier[i] = 0;
    }
  }
  /// -log2(e) times the decay between key and query, both indices into the tile, key <= query.
  GATEDFWA_INLINE A between(int64_t key, int64_t query) const {
    if (bounded && key < bound[query]) return barrier[query];
    return static_cast<A>(kLog2E * (prefix[key] - prefix[query]));
  }
};

/// keep[i] = mask of token first + i; null if there is no mask or it keeps all.
template <typename E>
const uint8_t* maskOf(const AttentionProblem& p, int64_t b, int64_t first, int64_t count, uint8_t* keep) {
  if (!p.mask.data) return nullptr;
  bool all = true;
  for (int64_t i = 0; i < count; i++) {
    const int64_t offset = b * p.mask.strides[0] + (first + i) * p.mask.strides[1];
    keep[i] = p.maskType == ElementType::Bool ? static_cast<const uint8_t*>(p.mask.data)[offset] != 0
                                              : widen(static_cast<const E*>(p.mask.data)[offset]) != 0;
    all = all && keep[i];
  }
  return all ? nullptr : keep;
}

}  // namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET
