// What a test knows of the element types: how they round, and which error against float64 is allowed.
#pragma once

#include <cstring>

#include "device_array.h"
#include "gatedfwa_cuda.h"
#include "oracle.h"

namespace gatedfwa::test {

template <typename T>
struct TypeOf;
template <>
struct TypeOf<float> {
  static constexpr ElementType type = ElementType::Float32;
  static constexpr const char* name = "FLOAT";
};
template <>
struct TypeOf<double> {
  static constexpr ElementType type = ElementType::Float64;
  static constexpr const char* name = "DOUBLE";
};
template <>
struct TypeOf<__half> {
  static constexpr ElementType type = ElementType::Float16;
  static constexpr const char* name = "HALF";
};
template <>
struct TypeOf<__nv_bfloat16> {
  static constexpr ElementType type = ElementType::BFloat16;
  static constexpr const char* name = "BFLOAT16";
};

template <typename T>
struct Wide {
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};

inline double bound(ElementType type, cuda::FloatMode mode) {
  switch (type) {
    case ElementType::Float64:
      return 1e-12;
    case ElementType::Float32:
      return mode == cuda::FloatMode::Strict ? 2e-6 : 2e-3;
    case ElementType::Float16:
      return 2e-3;
    default:
      return 1.5e-2;
  }
}

inline double norm(const std::vector<double>& x) {
  double sum = 0;
  for (double v : x)
    if (std::isfinite(v)) sum += v * v;
  return std::sqrt(sum);
}

/// ||x - ref||; infinities must agree, NaN never passes.
inline double distance(const std::vector<double>& x, const std::vector<double>& ref) {
  double sum = 0;
  for (size_t i = 0; i < ref.size(); ++i) {
    if (std::isinf(ref[i]) || std::isinf(x[i])) {
      if (x[i] != ref[i]) return std::numeric_limits<double>::infinity();
      continue;
    }
    sum += (x[i] - ref[i]) * (x[i] - ref[i]);
  }
  return std::isnan(sum) ? std::numeric_limits<double>::infinity() : std::sqrt(sum);
}

template <typename T>
double roundTo(double x) {
  return widen(convert<T>(x));
}

/// A dense implementation in the element type: whatever rounds as it must may err about as much.
template <typename T>
Gradients yardstick(const Problem& x, cuda::FloatMode mode) {
  using F = typename Wide<T>::type;
  const auto same = [](F y) { return y; };
  const auto toType = [](F y) { return static_cast<F>(roundTo<T>(y)); };
  const auto toTf32 = [](F y) {
    const float f = static_cast<float>(y);
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    bits = (bits + 0x1000) & ~0x1fffu;
    float g;
    std::memcpy(&g, &bits, 4);
    return static_cast<F>(g);
  };
  return mode == cuda::FloatMode::Tf32 ? dense<F>(x, toTf32, toTf32, same) : dense<F>(x, toType, same, toType);
}

}  // namespace gatedfwa::test
