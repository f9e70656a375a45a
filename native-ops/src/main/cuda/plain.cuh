// What the plain kernels share: a warp has one row; lanes take keys (queries) for the products and head elements for
// the sums over them.
#pragma once

#include "element.cuh"

namespace gatedfwa::cuda {

constexpr int kWarps = 4;  ///< of a block
constexpr int kMaxHead = 256;
constexpr int kPerLane = kMaxHead / 32;

template <typename F>
__device__ __forceinline__ F laneSum(F x) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(~0u, x, d);
  return x;
}
template <typename F>
__device__ __forceinline__ F laneMax(F x) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x = max(x, __shfl_xor_sync(~0u, x, d));
  return x;
}

template <typename T, typename F>
__device__ __forceinline__ F dot(const F* x, const T* y, int64_t stride, int width) {
  F sum = 0;
  for (int d = 0; d < width; ++d) sum = fma(x[d], static_cast<F>(toFloat(y[d * stride])), sum);
  return sum;
}

template <typename T>
__device__ __forceinline__ const T* at(const Input& x, int64_t b, int64_t row, int64_t head) {
  return static_cast<const T*>(x.data) + b * x.strides[0] + row * x.strides[1] + head * x.strides[2];
}
template <typename T>
__device__ __forceinline__ T* at(const Output& x, int64_t b, int64_t row, int64_t head) {
  return static_cast<T*>(x.data) + b * x.strides[0] + row * x.strides[1] + head * x.strides[2];
}

}  // namespace gatedfwa::cuda
