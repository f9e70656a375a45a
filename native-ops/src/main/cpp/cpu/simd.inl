// Vectors of one instruction set, from the compiler's vector extensions (GCC and Clang): no intrinsics, one source.
#pragma once

#include <cstdint>
#include <cstring>

namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET {

#define GATEDFWA_INLINE inline __attribute__((always_inline))

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
/// A NaN in x is dropped: the exponential brings it back.
template <typename T>
GATEDFWA_INLINE Vector<T> maximum(Vector<T> x, Vector<T> other) {
  return x > other ? x : other;
}

constexpr double kLog2E = 1.4426950408889634074;
constexpr double kLn2 = 0.69314718055994530942;
template <typename T>
constexpr T kInfinity = static_cast<T>(__builtin_inf());

template <typename T>
struct Exp2;
template <>
struct Exp2<float> {
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  static constexpr float kUnderflow = -126.0f;
  static constexpr int kExponentShift = 23, kExponentBias = 127;
  static constexpr int kDegree = 7;
};
template <>
struct Exp2<double> {
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kUnderflow = -1022.0;
  static constexpr int kExponentShift = 52, kExponentBias = 1023;
  static constexpr int kDegree = 13;
};

/// Taylor coefficient k of 2^x: ln(2)^k / k!. On [-1/2, 1/2] the first term left out is below a quarter ULP.
constexpr double exp2Coefficient(int k) { return k == 0 ? 1.0 : exp2Coefficient(k - 1) * kLn2 / k; }

template <typename T, int K>
GATEDFWA_INLINE Vector<T> exp2Polynomial(Vector<T> f) {
  constexpr T coefficient = static_cast<T>(exp2Coefficient(K));
  if constexpr (K == Exp2<T>::kDegree) {
    return broadcast<T>(coefficient);
  } else {
    return exp2Polynomial<T, K + 1>(f) * f + coefficient;
  }
}

/// 2^x for x below the exponent's upper limit, about 1 ULP; 0 below the smallest normal number; NaN stays NaN.
template <typename T>
GATEDFWA_INLINE Vector<T> exp2(Vector<T> x) {
  const Vector<T> shifted = x + Exp2<T>::kRound;
  const Vector<T> f = x - (shifted - Exp2<T>::kRound);
  const IntegerVector<T> exponent = (IntegerVector<T>)shifted << Exp2<T>::kExponentShift;
  const IntegerVector<T> one = (IntegerVector<T>)broadcast<T>(T(1));
  const Vector<T> power = (Vector<T>)(exponent + one);
  const Vector<T> y = exp2Polynomial<T, 0>(f) * power;
  return x < Exp2<T>::kUnderflow ? Vector<T>{} : y;
}

}  // namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET
