// Element conversion and the arithmetic of decay sums that every kernel shares.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "internal.h"

namespace gatedfwa::cuda {

__device__ __forceinline__ float toFloat(float x) { return x; }
__device__ __forceinline__ float toFloat(__half x) { return __half2float(x); }
__device__ __forceinline__ float toFloat(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ double toFloat(double x) { return x; }

template <typename T, typename F>
__device__ __forceinline__ T fromFloat(F x) {
  return static_cast<T>(x);
}
template <>
__device__ __forceinline__ __half fromFloat<__half, float>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 fromFloat<__nv_bfloat16, float>(float x) {
  return __float2bfloat16_rn(x);
}

template <typename F>
__device__ __forceinline__ F infinity();
template <>
__device__ __forceinline__ float infinity<float>() {
  return __int_as_float(0x7f800000);
}
template <>
__device__ __forceinline__ double infinity<double>() {
  return __longlong_as_double(0x7ff0000000000000ll);
}

/// Bits 0..i of a tile.
__device__ __forceinline__ uint64_t bitsThrough(int i) { return (2ull << i) - 1; }
/// A hard reset in (j, p], positions within one tile?
__device__ __forceinline__ bool resetBetween(uint64_t resets, int j, int p) {
  return (resets & bitsThrough(p) & ~bitsThrough(j)) != 0;
}

}  // namespace gatedfwa::cuda
