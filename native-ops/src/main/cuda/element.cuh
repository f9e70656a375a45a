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

/// The sums of a tile's decays in units of log2(e), see DecaySums. By a warp, whose lane l holds tokens 2l and 2l+1; `low`
/// is what the prefix lost to rounding. Sums run in float64: 64 terms, and prefix differences stay exact to float32.
template <typename F>
struct TileSums {
  F prefix[2], low[2], suffix[2];
  uint64_t resets;
};
/// 32 bits to the even bits of 64.
__device__ __forceinline__ uint64_t spread(uint32_t bits) {
  uint64_t x = bits;
  x = (x | (x << 16)) & 0x0000ffff0000ffffull;
  x = (x | (x << 8)) & 0x00ff00ff00ff00ffull;
  x = (x | (x << 4)) & 0x0f0f0f0f0f0f0f0full;
  x = (x | (x << 2)) & 0x3333333333333333ull;
  return (x | (x << 1)) & 0x5555555555555555ull;
}
template <typename F>
__device__ __forceinline__ TileSums<F> sumTile(F alpha0, F alpha1, int lane) {
  TileSums<F> r;
  const F inf = infinity<F>();
  const bool reset0 = alpha0 == inf, reset1 = alpha1 == inf;
  r.resets = spread(__ballot_sync(~0u, reset0)) | spread(__ballot_sync(~0u, reset1)) << 1;
  const double y0 = reset0 ? 0.0 : kLog2e * alpha0, y1 = reset1 ? 0.0 : kLog2e * alpha1;
  double sum = y0 + y1;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const double x = __shfl_up_sync(~0u, sum, d);
    if (lane >= d) sum += x;
  }
  const double prefix[2] = {sum - y1, sum}, total = __shfl_sync(~0u, sum, 31);
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    r.prefix[e] = static_cast<F>(prefix[e]);
    r.low[e] = static_cast<F>(prefix[e] - r.prefix[e]);
    r.suffix[e] = resetBetween(r.resets, 2 * lane + e, 63) ? inf : static_cast<F>(total - prefix[e]);
  }
  return r;
}

}  // namespace gatedfwa::cuda
