// dalpha from the column sums of dS.
//
// dalpha_tau = -sum_{j < tau <= p} dS_pj, so for tau below a boundary E
//     dalpha_tau = dalpha_E + sum_{i=tau..E-1} (columnSum_i - rowSum_i),
// where the row sums would be 0 but for the rounding of o in delta; with them the identity is exact, and what remains
// are the errors of the very pairs that straddle tau. And dalpha_E is minus the sum of what straddles E. Boundaries are
// about a sixth of a window apart, so the running sums, and with them the error, do not grow with the sequence. Of each
// warp of keys the backward leaves, per boundary that its queries cross, the sum of its columns over the queries before
// the boundary, and last the sum over all queries.
#include "element.cuh"

namespace gatedfwa::cuda {
namespace {

constexpr int kThreads = 256;

template <typename F>
struct DalphaArgs {
  const F *rowSums, *columnSums, *warpSums;
  F* dalpha;
  int64_t batchStride, rowStride, headStride;
  int64_t length, first, span, window, offset, queryFirst, querySpan;
  int heads, warpRows, boundary, slots;
  int64_t blocks;  ///< boundaries per head
};

template <typename F>
__global__ void __launch_bounds__(kThreads) dalphaKernel(const __grid_constant__ DalphaArgs<F> a) {
  constexpr int kWarps = kThreads / 32;
  __shared__ double sums[2][kWarps];  // of warps, of two passes in turn
  const int64_t bh = blockIdx.x / a.blocks, b = bh / a.heads, h = bh % a.heads;
  const int64_t begin = blockIdx.x % a.blocks * a.boundary, end = begin + a.boundary;
  F* const dalpha = a.dalpha + b * a.batchStride + h * a.headStride;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;

  // What straddles the boundary at `end`.
  double straddling = 0;
  if (end < a.length) {
    const int64_t warps = a.span / a.warpRows;
    const int64_t from = max(a.first, end - a.window - a.warpRows) / a.warpRows;
    for (int64_t w = from + thread; w * a.warpRows < end; w += kThreads) {
      const int64_t warpFirst = w * a.warpRows;
      if (warpFirst < a.first) continue;
      const int64_t slot = (end - warpFirst / a.boundary * a.boundary) / a.boundary - 1;
      if (slot >= a.slots) continue;
      const F* const x = a.warpSums + (bh * warps + (warpFirst - a.first) / a.warpRows) * (a.slots + 1);
      straddling += static_cast<double>(x[a.slots]) - static_cast<double>(x[slot]);
    }
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) straddling += __shfl_xor_sync(~0u, straddling, d);
  if (lane == 0) sums[0][warp] = straddling;
  __syncthreads();
  double carry = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) carry -= sums[0][i];

  // Running sums from the boundary down.
  int pass = 1;
  for (int64_t top = end; top > begin; top -= kThreads, pass ^= 1) {
    const int64_t tau = top - 1 - thread;
    const bool inside = tau >= begin && tau < a.length;
    double x = 0;
    if (inside && tau >= a.first) x = a.columnSums[bh * a.span + tau - a.first];
    if (inside && tau >= a.offset) x -= a.rowSums[bh * a.querySpan + tau - a.queryFirst];
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const double y = __shfl_up_sync(~0u, x, d);
      if (lane >= d) x += y;
    }
    if (lane == 31) sums[pass][warp] = x;
    __syncthreads();
    double next = carry;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      if (i == warp) carry = next;  // what precedes the warp
      next += sums[pass][i];
    }
    if (inside) dalpha[tau * a.rowStride] = tau >= a.first && tau > 0 ? static_cast<F>(carry + x) : F(0);
    carry = next;
  }
}

}  // namespace

template <typename F>
cudaError_t launchDalpha(const AttentionBackward& p, Span keys, Span queries, const F* rowSums, const F* columnSums,
                         const F* warpSums, int warpRows, int boundary, int slots, cudaStream_t stream) {
  DalphaArgs<F> a{};
  a.rowSums = rowSums;
  a.offset = p.keyLength - p.queryLength;
  a.queryFirst = queries.first;
  a.querySpan = queries.length;
  a.columnSums = columnSums;
  a.warpSums = warpSums;
  a.dalpha = static_cast<F*>(p.dalpha.data);
  a.batchStride = p.dalpha.strides[0];
  a.rowStride = p.dalpha.strides[1];
  a.headStride = p.dalpha.strides[2];
  a.length = p.keyLength;
  a.first = keys.first;
  a.span = keys.length;
  a.window = p.window;
  a.heads = static_cast<int>(p.heads);
  a.warpRows = warpRows;
  a.boundary = boundary;
  a.slots = slots;
  a.blocks = divUp(p.keyLength, boundary);
  dalphaKernel<F><<<static_cast<unsigned>(p.batch * p.heads * a.blocks), kThreads, 0, stream>>>(a);
  return lastLaunch();
}
template cudaError_t launchDalpha<float>(const AttentionBackward&, Span, Span, const float*, const float*, const float*,
                                         int, int, int, cudaStream_t);
template cudaError_t launchDalpha<double>(const AttentionBackward&, Span, Span, const double*, const double*,
                                          const double*, int, int, int, cudaStream_t);

}  // namespace gatedfwa::cuda
