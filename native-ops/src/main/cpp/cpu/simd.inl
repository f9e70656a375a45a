// Vectors of one instruction set, from the compiler's vector extensions (GCC and Clang): one source; intrinsics only
// where an instruction has no such expression.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET {

#define GATEDFWA_INLINE inline __attribute__((always_inline))
#define GATEDFWA_INLINE_LAMBDA __attribute__((always_inline))

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float Type __attribute__((vector_size(GATEDFWA_VECTOR_BYTES)));
  typedef float Unaligned __attribute__((vector_size(GATEDFWA_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t Integer __attribute__((vector_size(GATEDFWA_VECTOR_BYTES)));
  typedef float Quad __attribute__((vector_size(16), aligned(4), may_alias));
};
template <>
struct VectorOf<double> {
  typedef double Type __attribute__((vector_size(GATEDFWA_VECTOR_BYTES)));
  typedef double Unaligned __attribute__((vector_size(GATEDFWA_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t Integer __attribute__((vector_size(GATEDFWA_VECTOR_BYTES)));
  typedef double Quad __attribute__((vector_size(32), aligned(8), may_alias));
};
template <typename T>
using Vector = typename VectorOf<T>::Type;
template <typename T>
using IntegerVector = typename VectorOf<T>::Integer;

template <typename T>
constexpr int kLanes = GATEDFWA_VECTOR_BYTES / static_cast<int>(sizeof(T));

template <typename T>
GATEDFWA_INLINE Vector<T> load(const T* from) {
  return *reinterpret_cast<const typename VectorOf<T>::Unaligned*>(from);
}
template <typename T>
GATEDFWA_INLINE void store(T* to, Vector<T> x) {
  *reinterpret_cast<typename VectorOf<T>::Unaligned*>(to) = x;
}
template <typename T>
GATEDFWA_INLINE Vector<T> broadcast(T x) {
  return x - Vector<T>{};
}
template <typename T>
GATEDFWA_INLINE IntegerVector<T> laneIndex() {
  IntegerVector<T> index;
  for (int i = 0; i < kLanes<T>; i++) index[i] = i;
  return index;
}
template <typename T>
GATEDFWA_INLINE T sumOfLanes(Vector<T> x) {
  alignas(64) T lanes[kLanes<T>];
  store(lanes, x);
  for (int width = kLanes<T> / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
  return lanes[0];
}
template <typename T>
GATEDFWA_INLINE bool anyAbove(Vector<T> x, T limit) {
  bool any = false;
  for (int i = 0; i < kLanes<T>; i++) any |= x[i] > limit;
  return any;
}
/// A NaN in x is dropped: the exponential brings it back.
template <typename T>
GATEDFWA_INLINE Vector<T> greater(Vector<T> x, Vector<T> other) {
  return x > other ? x : other;
}

constexpr double kLog2E = 1.4426950408889634074;
constexpr double kLn2 = 0.69314718055994530942;
template <typename T>
constexpr T kInfinity = static_cast<T>(__builtin_inf());

/// ln(2)^k / k!, the Taylor coefficients of 2^x.
constexpr double exp2Taylor(int k) { return k == 0 ? 1.0 : exp2Taylor(k - 1) * kLn2 / k; }

template <typename T>
struct Exp2;
template <>
struct Exp2<float> {
  static constexpr float kRound = 12582912.0f + 127;  // adding 1.5 * 2^23 leaves the integer part in the low bits
  static constexpr float kUnderflow = -126.0f;
  static constexpr int kExponentShift = 23;
  static constexpr int kDegree = 6;
  /// Minimax on [-1/2, 1/2], relative error 1.6e-8 (Remez).
  static constexpr float kCoefficients[kDegree + 1] = {1.0f,           0x1.62e430p-1f,  0x1.ebfbdap-3f, 0x1.c6aed4p-5f,
                                                       0x1.3b2dbcp-7f, 0x1.5f456ap-10f, 0x1.41d334p-13f};
  static constexpr float coefficient(int k) { return kCoefficients[k]; }
};
template <>
struct Exp2<double> {
  static constexpr double kRound = 6755399441055744.0 + 1023;  // 1.5 * 2^52
  static constexpr double kUnderflow = -1022.0;
  static constexpr int kExponentShift = 52;
  static constexpr int kDegree = 13;
  static constexpr double coefficient(int k) { return exp2Taylor(k); }
};

template <typename T, int K>
GATEDFWA_INLINE Vector<T> exp2Polynomial(Vector<T> f) {
  constexpr T coefficient = Exp2<T>::coefficient(K);
  if constexpr (K == Exp2<T>::kDegree) {
    return broadcast<T>(coefficient);
  } else {
    return exp2Polynomial<T, K + 1>(f) * f + coefficient;
  }
}

/// An absent whole part of exp2's argument.
struct Nothing {
  template <typename V>
  friend GATEDFWA_INLINE V operator+(V x, Nothing) {
    return x;
  }
};

/// 2^(x + whole) below the exponent's upper limit, about 1 ULP; 0 below the smallest normal number; NaN stays NaN.
/// `whole` holds integers, which cost no bits of x.
template <typename T, typename Whole = Nothing>
GATEDFWA_INLINE Vector<T> exp2(Vector<T> x, Whole whole = {}) {
#ifdef __AVX512F__
  if constexpr (sizeof(T) == 4) {
    const __m512 nearest = _mm512_maskz_roundscale_ps(0xffff, x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 exponent = (Vector<T>)nearest + whole;
    const __mmask16 normal = _mm512_cmp_ps_mask(exponent, _mm512_set1_ps(Exp2<T>::kUnderflow), _CMP_NLE_UQ);
    return _mm512_maskz_scalef_ps(normal, exp2Polynomial<T, 0>(x - nearest), exponent);
  }
#endif
  const Vector<T> shifted = x + Exp2<T>::kRound;
  const Vector<T> f = x - (shifted - Exp2<T>::kRound);
  const Vector<T> exponent = shifted + whole;
  const Vector<T> power = (Vector<T>)((IntegerVector<T>)exponent << Exp2<T>::kExponentShift);
  const Vector<T> y = exp2Polynomial<T, 0>(f) * power;
  return exponent <= Exp2<T>::kRound + Exp2<T>::kUnderflow ? Vector<T>{} : y;
}

}  // namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET
