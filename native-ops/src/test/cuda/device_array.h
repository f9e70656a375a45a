// Device memory for tests and benchmarks, filled on the device by a function of the logical index that the host repeats
// bit for bit.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "kernel/params.h"

#define CHECK(call)                                                                                 \
  do {                                                                                              \
    const cudaError_t check = (call);                                                               \
    if (check != cudaSuccess) {                                                                     \
      std::fprintf(stderr, "%s:%d %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(check)); \
      std::exit(2);                                                                                 \
    }                                                                                               \
  } while (0)

namespace gatedfwa::test {

enum class Fill { Normal, SmallDecay, LargeDecay, Resets, HugeDecay, RandomMask, TileMask, LeftPadding };

__host__ __device__ inline uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

/// Element `index` of stream `seed`. Integer arithmetic and one exact product: the same on host and device.
/// `token`: position along the sequence (decays and masks).
__host__ __device__ inline double value(Fill fill, uint64_t seed, int64_t index, int64_t token) {
  const uint64_t r = mix(seed * 0x2545f4914f6cdd1dull + static_cast<uint64_t>(index));
  const double unit = static_cast<double>(r >> 40) * 0x1p-24;
  switch (fill) {
    case Fill::Normal: {  // sum of four 16-bit uniforms, unit variance
      const int64_t sum = static_cast<int64_t>((r & 0xffff) + ((r >> 16) & 0xffff) + ((r >> 32) & 0xffff) + (r >> 48));
      return static_cast<double>(sum - 131070) * (0x1p-16 * 1.7320508075688772);
    }
    case Fill::SmallDecay:
      return unit * 0.125;
    case Fill::LargeDecay:
      return unit * 50;
    case Fill::HugeDecay:
      return 50;
    case Fill::Resets:
      return (r & 31) == 0 ? HUGE_VAL : unit * 0.25;
    case Fill::RandomMask:
      return (r & 3) != 0;
    case Fill::TileMask:
      return (token / 100) % 3 == 0;
    case Fill::LeftPadding:
      return token >= 150;
  }
  return 0;
}

template <typename T>
__host__ __device__ inline T convert(double x) {
  return static_cast<T>(x);
}
template <>
__host__ __device__ inline __half convert<__half>(double x) {
  return __float2half_rn(static_cast<float>(x));
}
template <>
__host__ __device__ inline __nv_bfloat16 convert<__nv_bfloat16>(double x) {
  return __float2bfloat16_rn(static_cast<float>(x));
}
inline double widen(double x) { return x; }
inline double widen(float x) { return x; }
inline double widen(uint8_t x) { return x; }
inline double widen(int x) { return x; }
inline double widen(__half x) { return __half2float(x); }
inline double widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__global__ void fillKernel(T* to, int64_t n0, int64_t n1, int64_t n2, int64_t n3, int64_t s0, int64_t s1, int64_t s2,
                           int64_t s3, Fill fill, uint64_t seed, double factor) {
  const int64_t count = n0 * n1 * n2 * n3, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const int64_t d = i % n3, c = i / n3 % n2, b = i / n3 / n2 % n1, a = i / n3 / n2 / n1;
    to[a * s0 + b * s1 + c * s2 + d * s3] = convert<T>(value(fill, seed, i, b) * factor);
  }
}

}  // namespace gatedfwa::test
