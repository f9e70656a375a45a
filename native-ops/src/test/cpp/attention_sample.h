// An attention problem with random contents in host memory of its own, for tests that compare two ways to run it.
#pragma once

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "kernel/params.h"

namespace gatedfwa::test {

inline uint16_t bfloat16Of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float bfloat16From(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}
/// Normal numbers of moderate size only.
inline uint16_t halfOf(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 16 & 0x8000;
  const int exponent = static_cast<int>(bits >> 23 & 0xff) - 127 + 15;
  if (exponent <= 0) return static_cast<uint16_t>(sign);
  const uint32_t rounded = (static_cast<uint32_t>(exponent) << 10 | (bits >> 13 & 0x3ff)) + (bits >> 12 & 1);
  return static_cast<uint16_t>(sign | rounded);
}
inline float halfFrom(uint16_t x) {
  const uint32_t exponent = x >> 10 & 0x1f, mantissa = x & 0x3ff;
  float result;
  if (exponent == 0) {
    result = static_cast<float>(mantissa) * 0x1p-24f;
    return x & 0x8000 ? -result : result;
  }
  const uint32_t bits = (x & 0x8000u) << 16 | (exponent == 31 ? 0xffu : exponent - 15 + 127) << 23 | mantissa << 13;
  std::memcpy(&result, &bits, 4);
  return result;
}

/// A tensor with gaps between its rows if `strided`; everything starts as NaN.
struct HostTensor {
  ElementType type = ElementType::Float32;
  std::vector<int64_t> shape, strides;
  std::vector<char> memory;

  HostTensor() = default;
  HostTensor(ElementType elementType, std::vector<int64_t> sizes, bool strided) : type(elementType), shape(sizes) {
    strides.resize(shape.size());
    int64_t next = 1;
    for (size_t i = shape.size(); i-- > 0;) {
      strides[i] = next;
      next = next * shape[i] + (strided && i > 0 ? 3 : 0);
    }
    memory.assign(static_cast<size_t>(next * bytes()), static_cast<char>(0xff));
  }
  int64_t bytes() const {
    switch (type) {
      case ElementType::Float64:
        return 8;
      case ElementType::Float32:
        return 4;
      case ElementType::Bool:
        return 1;
      default:
        return 2;
    }
  }
  int64_t size() const {
    int64_t n = 1;
    for (const int64_t s : shape) n *= s;
    return n;
  }
  char* at(int64_t index) {
    int64_t offset = 0;
    for (size_t i = shape.size(); i-- > 0; index /= shape[i]) offset += index % shape[i] * strides[i];
    return memory.data() + offset * bytes();
  }
  void set(int64_t index, double x) {
    char* const to = at(index);
    const float f = static_cast<float>(x);
    const uint16_t bits = type == ElementType::BFloat16 ? bfloat16Of(f) : halfOf(f);
    const char flag = x != 0;
    switch (type) {
      case ElementType::Float64:
        std::memcpy(to, &x, 8);
        break;
      case ElementType::Float32:
        std::memcpy(to, &f, 4);
        break;
      case ElementType::Bool:
        *to = flag;
        break;
      default:
        std::memcpy(to, &bits, 2);
    }
  }
  double get(int64_t index) {
    const char* const from = at(index);
    double d;
    float f;
    uint16_t bits;
    switch (type) {
      case ElementType::Float64:
        std::memcpy(&d, from, 8);
        return d;
      case ElementType::Float32:
        std::memcpy(&f, from, 4);
        return f;
      case ElementType::Bool:
        return *from;
      default:
        std::memcpy(&bits, from, 2);
        return type == ElementType::BFloat16 ? bfloat16From(bits) : halfFrom(bits);
    }
  }
  template <typename Tensor>
  Tensor view() {
    Tensor x;
    x.data = memory.data();
    for (size_t i = 0; i < shape.size(); i++) x.strides[i] = strides[i];
    return x;
  }
};

struct SampleShape {
  ElementType type = ElementType::Float32;
  int64_t batch = 1, queryLength = 1, keyLength = 1, heads = 1, kvHeads = 1, headSize = 64, valueSize = 64, window = 1;
  bool gated = true, masked = false, boolMask = false, resets = false, strided = false;
};

/// What problems of all kinds of attention have in common.
template <typename Problem, typename Shape>
void setSizes(Problem& p, const Shape& s, ElementType maskType) {
  p.type = s.type;
  p.maskType = maskType;
  p.batch = s.batch;
  p.queryLength = s.queryLength;
  p.keyLength = s.keyLength;
  p.heads = s.heads;
  p.kvHeads = s.kvHeads;
  p.headSize = s.headSize;
  p.valueSize = s.valueSize;
  p.scale = 1 / std::sqrt(static_cast<double>(s.headSize));
}

struct AttentionSample {
  SampleShape s;
  HostTensor q, k, v, alpha, mask, dO;
  HostTensor o, lse, dq, dk, dv, dalpha;

  explicit AttentionSample(const SampleShape& shape, uint32_t seed = 1) : s(shape) {
    const ElementType sums = s.type == ElementType::Float64 ? ElementType::Float64 : ElementType::Float32;
    q = {s.type, {s.batch, s.queryLength, s.heads, s.headSize}, s.strided};
    k = {s.type, {s.batch, s.keyLength, s.kvHeads, s.headSize}, s.strided};
    v = {s.type, {s.batch, s.keyLength, s.kvHeads, s.valueSize}, s.strided};
    dO = {s.type, {s.batch, s.queryLength, s.heads, s.valueSize}, s.strided};
    alpha = {sums, {s.batch, s.keyLength, s.heads}, s.strided};
    mask = {s.boolMask ? ElementType::Bool : s.type, {s.batch, s.keyLength}, s.strided};
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform;
    for (HostTensor* x : {&q, &k, &v, &dO})
      for (int64_t i = 0; i < x->size(); i++) x->set(i, normal(random));
    for (int64_t i = 0; i < alpha.size(); i++)
      alpha.set(i, s.resets && uniform(random) < 0.02 ? HUGE_VAL : 0.1 * uniform(random));
    for (int64_t i = 0; i < mask.size(); i++) mask.set(i, uniform(random) < 0.8);
    clearResults();
  }

  void clearResults() {
    const ElementType sums = alpha.type;
    o = {s.type, dO.shape, s.strided};
    lse = {sums, {s.batch, s.heads, s.queryLength}, s.strided};
    dq = {s.type, q.shape, s.strided};
    dk = {s.type, k.shape, s.strided};
    dv = {s.type, v.shape, s.strided};
    dalpha = {sums, alpha.shape, s.strided};
  }

  AttentionForward forward() {
    AttentionForward p{};
    common(p);
    p.o = o.view<Output>();
    p.lse = lse.view<Output>();
    return p;
  }
  AttentionBackward backward() {
    AttentionBackward p{};
    common(p);
    p.o = o.view<Input>();
    p.lse = lse.view<Input>();
    p.dO = dO.view<Input>();
    p.dq = dq.view<Output>();
    p.dk = dk.view<Output>();
    p.dv = dv.view<Output>();
    if (s.gated) p.dalpha = dalpha.view<Output>();
    return p;
  }

 private:
  void common(AttentionProblem& p) {
    setSizes(p, s, mask.type);
    p.window = s.window;
    p.q = q.view<Input>();
    p.k = k.view<Input>();
    p.v = v.view<Input>();
    if (s.gated) p.alpha = alpha.view<Input>();
    if (s.masked) p.mask = mask.view<Input>();
  }
};

/// ||x - reference|| / ||reference||; equal infinities and NaNs count as equal.
inline double relativeError(HostTensor& x, HostTensor& reference) {
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < x.size(); i++) {
    const double a = x.get(i), b = reference.get(i);
    if (a == b || (std::isnan(a) && std::isnan(b))) {
      if (std::isfinite(b)) norm += b * b;
      continue;
    }
    difference += (a - b) * (a - b);
    norm += b * b;
  }
  return difference == 0 ? 0 : std::sqrt(difference / (norm == 0 ? 1 : norm));
}

}  // namespace gatedfwa::test
