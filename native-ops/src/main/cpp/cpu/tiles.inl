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

/// x = whole + fraction, `whole` an integer: sums of decays cancel among the whole parts without rounding, and what is
/// left has the precision of numbers below 1.
template <typename A>
GATEDFWA_INLINE void split(double x, double& whole, A& fraction) {
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  whole = (x + kRound) - kRound;
  fraction = whole - whole == 0 ? static_cast<A>(x - whole) : A(0);
}

/// Decays over neighbouring stretches of tokens, added: nothing is seen through a hard reset, NaN included.
GATEDFWA_INLINE double addDecays(double x, double y) {
  return x == kInfinity<double> || y == kInfinity<double> ? kInfinity<double> : x + y;
}

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

  /// set(j - first, bias) for the keys j in [first, end): bias = -log2(e) * (gap + sum of alpha over (j, end)), end
  /// exclusive; -infinity where keep is 0. Returns gap + sum of alpha over [first, end).
  template <typename Set>
  GATEDFWA_INLINE double columns(int64_t first, int64_t end, double gap, const uint8_t* keep, Set set) const {
    double near = 0;
    for (int64_t j = end - 1; j >= first; j--) {
      set(j - first, keep && !keep[j - first] ? -kInfinity<double> : -kLog2E * (gap + near));
      near = addDecays(near, (*this)[j]);
    }
    return addDecays(gap, near);
  }
  /// The newest hard reset of tokens (first, end), or `first`: tokens before it are not seen from `end` on.
  GATEDFWA_INLINE int64_t newestReset(int64_t first, int64_t end) const {
    for (int64_t j = end - 1; j > first; j--)
      if ((*this)[j] == kInfinity<double>) return j;
    return first;
  }
};

/// Inside a tile whose queries and keys are the same tokens every pair has a decay of its own, the difference of two
/// prefix sums. Infinite (and NaN) decays stay out of the sums and act as a bound on the keys instead.
///
/// The decay after the newest real token that a query sees is the same for all of its keys, so it cancels in the
/// softmax; with masked tokens it may be large. A query's decays therefore count from that token, its `base`: one of
/// the tile if there is any, or else the newest real token before the tile.
template <typename A>
struct DiagonalDecay {
  // log2(e) * sum of the finite alpha over (first, i] = whole + fraction, for a key and for a query's base; -infinity
  // for a masked key.
  static constexpr double kMostWhole = 0x1p43;  ///< as good as any larger one: no weight is left
  double whole[kQueryTile<A>], wholeOfBase[kQueryTile<A>];
  A fraction[kQueryTile<A>], fractionOfBase[kQueryTile<A>];
  double common[kQueryTile<A>];  ///< sum of alpha from the query's base to the query
  double toBase[kQueryTile<A>];  ///< from the newest real token before the tile to the query's base
  A bound[kQueryTile<A>];        ///< keys below this index are behind a non-finite alpha
  A barrier[kQueryTile<A>];      ///< their score: -infinity or NaN, as that alpha says
  bool bounded = false;          ///< any bound above 0

  /// isReal(i) of token first + i; `gap`: sum of alpha from the newest real token before the tile to `first`.
  template <typename IsReal>
  void set(const Decays<A>& alpha, int64_t first, int64_t count, double gap, IsReal isReal) {
    // The two parts are summed apart and exactly, whole parts up to kMostWhole and fractions as multiples of 2^-52:
    // what lies behind the window takes no bits from the differences inside it.
    double wholes = 0, fractions = 0;
    for (int64_t i = 0; i < roundUp(count, kPanel<A>); i++) {
      const double x = i > 0 && i < count ? alpha[first + i] : 0.0;
      const bool finite = x - x == 0, real = i < count && isReal(i);
      double part, rest;
      const double between = finite ? kLog2E * x : 0.0;
      split(between < kMostWhole ? between : kMostWhole, part, rest);
      wholes += part;
      rest = (rest + 1.5) - 1.5;
      split(fractions + rest, part, fractions);
      wholes += part;
      whole[i] = wholes;
      fraction[i] = static_cast<A>(fractions);
      bound[i] = finite ? (i > 0 ? bound[i - 1] : A(0)) : static_cast<A>(i);
      barrier[i] = finite ? (i > 0 ? barrier[i - 1] : A(0)) : -static_cast<A>(x);
      bounded = bounded || !finite;
      common[i] = addDecays(i > 0 ? common[i - 1] : gap, x);
      toBase[i] = i > 0 ? toBase[i - 1] : 0.0;
      wholeOfBase[i] = real || i == 0 ? whole[i] : wholeOfBase[i - 1];
      fractionOfBase[i] = real || i == 0 ? fraction[i] : fractionOfBase[i - 1];
      if (real || common[i] - common[i] != 0) toBase[i] = addDecays(toBase[i], common[i]);
      if (real) common[i] = 0;
      if (!real) whole[i] = -kInfinity<double>;
    }
  }
  /// The whole part of -log2(e) times the decay between a key and a query's base; the rest is fraction[key] -
  /// fractionOfBase[query].
  GATEDFWA_INLINE A wholeBetween(int64_t key, int64_t query) const {
    return static_cast<A>(whole[key] - wholeOfBase[query]);
  }
};

/// Whether token `token` of batch entry b is real: nonzero in the mask, NaN included, or there is none.
template <typename Problem>
GATEDFWA_INLINE bool isReal(const Problem& p, int64_t b, int64_t token) {
  if (!p.mask.data) return true;
  const int64_t offset = b * p.mask.strides[0] + token * p.mask.strides[1];
  switch (p.maskType) {
    case ElementType::Bool:
      return static_cast<const uint8_t*>(p.mask.data)[offset] != 0;
    case ElementType::Float32:
      return static_cast<const float*>(p.mask.data)[offset] != 0;
    case ElementType::Float64:
      return static_cast<const double*>(p.mask.data)[offset] != 0;
    default:  // 16 bits, of which the first is the sign
      return (static_cast<const uint16_t*>(p.mask.data)[offset] & 0x7fff) != 0;
  }
}

/// keep[i] = mask of token first + i; null if there is no mask or it keeps all.
template <typename Problem>
const uint8_t* maskOf(const Problem& p, int64_t b, int64_t first, int64_t count, uint8_t* keep) {
  if (!p.mask.data) return nullptr;
  bool all = true;
  for (int64_t i = 0; i < count; i++) {
    keep[i] = isReal(p, b, first + i);
    all = all && keep[i];
  }
  return all ? nullptr : keep;
}

}  // namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET
