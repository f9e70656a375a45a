// What the kernel tests share: 16-bit types by their definitions, tensors in guarded memory.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/cpu_kernels.h"
#include "thread_executor.h"

namespace gatedfwa::test {

struct Float16 {
  uint16_t bits;
};
struct BrainFloat {
  uint16_t bits;
};

// Conversions by definition, independent of the kernels'.
inline double widen(float x) { return x; }
inline double widen(double x) { return x; }
inline double widen(BrainFloat x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline double widen(Float16 x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  const double sign = x.bits & 0x8000 ? -1 : 1;
  if (exponent == 31) return fraction ? std::nan("") : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}
template <typename E>
E narrow(double x) {
  if constexpr (std::is_floating_point_v<E>) {
    return static_cast<E>(x);
  } else {
    // The nearest of all 2^16 values would be slow: round the significand by hand.
    constexpr int kBits = std::is_same_v<E, Float16> ? 11 : 8;
    constexpr int kLowest = std::is_same_v<E, Float16> ? -24 : -133;
    if (x == 0) return E{0};
    int exponent;
    std::frexp(x, &exponent);
    const double unit = std::ldexp(1.0, std::max(exponent - kBits, kLowest));
    const double rounded = std::nearbyint(x / unit) * unit;
    const float f = static_cast<float>(rounded);
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    if constexpr (std::is_same_v<E, BrainFloat>) return E{static_cast<uint16_t>(bits >> 16)};
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    const double magnitude = std::abs(rounded);
    if (magnitude >= 65536) return E{static_cast<uint16_t>(sign | 0x7c00)};
    if (magnitude < std::ldexp(1.0, -14))
      return E{static_cast<uint16_t>(sign | static_cast<int>(std::ldexp(magnitude, 24)))};
    std::frexp(magnitude, &exponent);
    const int fraction = static_cast<int>(std::ldexp(magnitude, 11 - exponent)) - 1024;
    return E{static_cast<uint16_t>(sign | (exponent + 14) << 10 | fraction)};
  }
}

template <typename E>
constexpr ElementType kType = std::is_same_v<E, float>     ? ElementType::Float32
                              : std::is_same_v<E, double>  ? ElementType::Float64
                              : std::is_same_v<E, Float16> ? ElementType::Float16
                                                           : ElementType::BFloat16;
template <typename E>
using AccumulatorOf = std::conditional_t<std::is_same_v<E, double>, double, float>;

/// A tensor in memory: contiguous, or with its dimensions reversed and gaps, surrounded by canaries. Poisoned with NaN.
template <typename T>
struct Buffer {
  std::vector<T> memory;
  std::vector<int64_t> shape, strides;
  static constexpr size_t kGuard = 64;

  Buffer(std::vector<int64_t> dimensions, bool strided) : shape(std::move(dimensions)), strides(shape.size()) {
    int64_t step = strided ? 2 : 1;
    for (size_t i = 0; i < shape.size(); i++) {
      const size_t dimension = strided ? i : shape.size() - 1 - i;
      strides[dimension] = step;
      step *= shape[dimension];
    }
    memory.resize(static_cast<size_t>(step) + 2 * kGuard);
    std::memset(static_cast<void*>(memory.data()), 0xff, memory.size() * sizeof(T));  // NaN in every type
  }
  T* data() { return memory.data() + kGuard; }
  int64_t offset(size_t index) const {
    int64_t at = 0;
    for (size_t i = shape.size(); i-- > 0; index /= static_cast<size_t>(shape[i]))
      at += static_cast<int64_t>(index % static_cast<size_t>(shape[i])) * strides[i];
    return at;
  }
  size_t length() const {
    size_t n = 1;
    for (int64_t d : shape) n *= static_cast<size_t>(d);
    return n;
  }
  template <typename From>
  void set(const std::vector<From>& from) {
    for (size_t i = 0; i < from.size(); i++) data()[offset(i)] = narrow<T>(static_cast<double>(from[i]));
  }
  std::vector<double> get() {
    std::vector<double> to(length());
    for (size_t i = 0; i < to.size(); i++) to[i] = widen(data()[offset(i)]);
    return to;
  }
  /// Every byte that is no element is as it was.
  bool untouchedElsewhere() {
    std::vector<char> used(memory.size());
    for (size_t i = 0; i < length(); i++) used[kGuard + static_cast<size_t>(offset(i))] = 1;
    for (size_t i = 0; i < memory.size(); i++)
      for (size_t byte = 0; !used[i] && byte < sizeof(T); byte++)
        if (reinterpret_cast<unsigned char*>(&memory[i])[byte] != 0xff) return false;
    return true;
  }
  template <typename Tensor>
  Tensor view() {
    Tensor tensor;
    tensor.data = data();
    for (size_t i = 0; i < shape.size(); i++) tensor.strides[i] = strides[i];
    return tensor;
  }
};

}  // namespace gatedfwa::test
