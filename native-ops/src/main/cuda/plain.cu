// The plain kernels: no tensor cores, any type, stride and scale. One warp per query row (forward, dq) or key (dk, dv,
// column sums); lanes take keys (queries) for the products q.k and dO.v and head elements for the sums over them.
// For DOUBLE, sm_75, and scales that are not positive; they are meant to be right, not fast.
#include "plain.cuh"

namespace gatedfwa::cuda {
namespace {

/// sums and key bits of one head, with absolute positions.
template <typename F>
struct HeadDecay {
  DecaySums<F> sums;
  const uint64_t* keyBits;
  int64_t row, tileRow, first;

  __device__ HeadDecay(const DecaySums<F>& s, const uint64_t* bits, Span keys, int64_t bh, int64_t b)
      : sums(s),
        keyBits(bits ? bits + b * keys.tiles() : nullptr),
        row(bh * keys.length),
        tileRow(bh * keys.tiles()),
        first(keys.first) {}

  __device__ bool real(int64_t j) const {
    return !keyBits || ((keyBits[(j - first) / kSumTile] >> (j % kSumTile)) & 1);
  }
  __device__ F total(int64_t tile) const {
    if (!sums.prefix) return 0;
    const int64_t i = tile - first / kSumTile;
    return sums.resets[tileRow + i] ? infinity<F>() : sums.prefix[row + i * kSumTile + kSumTile - 1];
  }
  /// sum_{tau=j+1..p} alpha_tau in log2 units; `between`: the totals of the tiles between those of j and p.
  __device__ F operator()(int64_t j, int64_t p, F between) const {
    if (!sums.prefix) return 0;
    const int64_t i = row + j - first, q = row + p - first;
    const uint64_t resets = sums.resets[tileRow + (p - first) / kSumTile];
    if (j / kSumTile == p / kSumTile) {
      if (resetBetween(resets, j % kSumTile, p % kSumTile)) return infinity<F>();
      F x = sums.prefix[q] - sums.prefix[i];
      if (sums.prefixLow) x += sums.prefixLow[q] - sums.prefixLow[i];
      return x;
    }
    if (resets & bitsThrough(p % kSumTile)) return infinity<F>();
    return sums.suffix[i] + between + sums.prefix[q];
  }
};

/// Runs `body(key, decay, valid)` over the visible keys of row p, 32 at a time, newest first, all lanes together.
template <typename F, typename Body>
__device__ __forceinline__ void overKeys(const HeadDecay<F>& decay, int64_t p, int64_t window, Body body) {
  const int64_t oldest = max(int64_t(0), p - window + 1), tile = p / kSumTile;
  const int lane = threadIdx.x % 32;
  F between = 0;
  for (int64_t first = p / 32 * 32; first + 31 >= oldest; first -= 32) {
    const int64_t key = first + lane;
    const bool visible = key <= p && key >= oldest && decay.real(key);
    body(key, first, visible ? decay(key, p, between) : infinity<F>(), visible);
    if (first % kSumTile == 0 && first / kSumTile < tile) between += decay.total(first / kSumTile);
    if (first == 0) break;
  }
}

template <typename T, typename F>
__global__ void __launch_bounds__(kWarps * 32)
    forwardPlainKernel(const __grid_constant__ AttentionForward p, DecaySums<F> sums, const uint64_t* keyBits,
                       Span keys) {
  __shared__ F query[kWarps][kMaxHead];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (index >= p.batch * p.heads * p.queryLength) return;
  const int64_t t = index % p.queryLength, bh = index / p.queryLength, b = bh / p.heads, h = bh % p.heads;
  const int64_t kvHead = h / (p.heads / p.kvHeads), position = p.keyLength - p.queryLength + t;
  const T* const q = at<T>(p.q, b, t, h);
  for (int d = lane; d < p.headSize; d += 32) query[warp][d] = toFloat(q[d * p.q.strides[3]]);
  __syncwarp();

  const HeadDecay<F> decay(sums, keyBits, keys, bh, b);
  const F scale = static_cast<F>(p.scale * kLog2e);
  F maximum = -infinity<F>(), sum = 0, out[kPerLane] = {};
  overKeys(decay, position, p.window, [&](int64_t key, int64_t first, F d, bool visible) {
    const F s =
        visible ? scale * dot(query[warp], at<T>(p.k, b, key, kvHead), p.k.strides[3], p.headSize) - d : -infinity<F>();
    const F newMax = max(maximum, laneMax(s));
    const F base = newMax == -infinity<F>() ? F(0) : newMax;
    const F factor = exp2(maximum - base), weight = exp2(s - base);
    maximum = newMax;
    sum = sum * factor + laneSum(weight);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) out[i] *= factor;
    for (int j = 0; j < 32; ++j) {
      const F w = __shfl_sync(~0u, weight, j);
      if (!__shfl_sync(~0u, visible, j)) continue;
      const T* const v = at<T>(p.v, b, first + j, kvHead);
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const int d = lane + 32 * i;
        if (d < p.valueSize) out[i] = fma(w, static_cast<F>(toFloat(v[d * p.v.strides[3]])), out[i]);
      }
    }
  });
  T* const o = at<T>(p.o, b, t, h);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int d = lane + 32 * i;
    if (d < p.valueSize) o[d * p.o.strides[3]] = fromFloat<T>(sum == 0 ? F(0) : out[i] / sum);
  }
  if (lane == 0)
    static_cast<F*>(p.lse.data)[b * p.lse.strides[0] + h * p.lse.strides[1] + t * p.lse.strides[2]] =
        sum == 0 ? -infinity<F>() : (maximum + log2(sum)) * static_cast<F>(kLn2);
}

template <typename F>
__device__ __forceinline__ F lseLog2(const AttentionBackward& p, int64_t b, int64_t h, int64_t t) {
  const F lse = static_cast<const F*>(p.lse.data)[b * p.lse.strides[0] + h * p.lse.strides[1] + t * p.lse.strides[2]];
  return lse == -infinity<F>() ? infinity<F>() : lse * static_cast<F>(kLog2e);
}

template <typename T, typename F>
__global__ void __launch_bounds__(kWarps * 32)
    dqPlainKernel(const __grid_constant__ AttentionBackward p, DecaySums<F> sums, const uint64_t* keyBits, Span keys,
                  F* rowDelta, F* rowSums) {
  __shared__ F query[kWarps][kMaxHead], gradient[kWarps][kMaxHead];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (index >= p.batch * p.heads * p.queryLength) return;
  const int64_t t = index % p.queryLength, bh = index / p.queryLength, b = bh / p.heads, h = bh % p.heads;
  const int64_t kvHead = h / (p.heads / p.kvHeads), position = p.keyLength - p.queryLength + t;
  const T* const q = at<T>(p.q, b, t, h);
  const T* const dO = at<T>(p.dO, b, t, h);
  const T* const o = at<T>(p.o, b, t, h);
  F delta = 0;
  for (int d = lane; d < p.headSize; d += 32) query[warp][d] = toFloat(q[d * p.q.strides[3]]);
  for (int d = lane; d < p.valueSize; d += 32) {
    gradient[warp][d] = toFloat(dO[d * p.dO.strides[3]]);
    delta = fma(gradient[warp][d], static_cast<F>(toFloat(o[d * p.o.strides[3]])), delta);
  }
  delta = laneSum(delta);
  if (lane == 0) rowDelta[index] = delta;
  __syncwarp();

  const HeadDecay<F> decay(sums, keyBits, keys, bh, b);
  const F scale = static_cast<F>(p.scale * kLog2e), lse = lseLog2<F>(p, b, h, t);
  F out[kPerLane] = {}, rowSum = 0;
  overKeys(decay, position, p.window, [&](int64_t key, int64_t first, F d, bool visible) {
    F ds = 0;
    if (visible) {
      const F s = scale * dot(query[warp], at<T>(p.k, b, key, kvHead), p.k.strides[3], p.headSize) - d;
      const F dP = dot(gradient[warp], at<T>(p.v, b, key, kvHead), p.v.strides[3], p.valueSize);
      ds = exp2(s - lse) * (dP - delta);
      rowSum += ds;
    }
    for (int j = 0; j < 32; ++j) {
      const F x = __shfl_sync(~0u, ds, j);
      if (!__shfl_sync(~0u, visible, j)) continue;
      const T* const k = at<T>(p.k, b, first + j, kvHead);
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const int e = lane + 32 * i;
        if (e < p.headSize) out[i] = fma(x, static_cast<F>(toFloat(k[e * p.k.strides[3]])), out[i]);
      }
    }
  });
  rowSum = laneSum(rowSum);
  if (lane == 0) rowSums[index] = rowSum;
  T* const dq = at<T>(p.dq, b, t, h);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int d = lane + 32 * i;
    if (d < p.headSize) dq[d * p.dq.strides[3]] = fromFloat<T>(static_cast<F>(p.scale) * out[i]);
  }
}

template <typename T, typename F>
__global__ void __launch_bounds__(kWarps * 32)
    dkdvPlainKernel(const __grid_constant__ AttentionBackward p, DecaySums<F> sums, const uint64_t* keyBits, Span keys,
                    const F* rowDelta, F* columnSums, F* warpSums, int boundary, int slots) {
  __shared__ F key[kWarps][kMaxHead], value[kWarps][kMaxHead];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (index >= p.batch * p.kvHeads * p.keyLength) return;
  const int64_t j = index % p.keyLength, b = index / p.keyLength / p.kvHeads, kvHead = index / p.keyLength % p.kvHeads;
  const int64_t group = p.heads / p.kvHeads, offset = p.keyLength - p.queryLength;
  const T* const k = at<T>(p.k, b, j, kvHead);
  const T* const v = at<T>(p.v, b, j, kvHead);
  for (int d = lane; d < p.headSize; d += 32) key[warp][d] = toFloat(k[d * p.k.strides[3]]);
  for (int d = lane; d < p.valueSize; d += 32) value[warp][d] = toFloat(v[d * p.v.strides[3]]);
  __syncwarp();

  const F scale = static_cast<F>(p.scale * kLog2e);
  F dk[kPerLane] = {}, dv[kPerLane] = {};
  const int64_t from = max(j, offset), to = min(p.keyLength - 1, j + p.window - 1);
  for (int64_t g = 0; g < group && from <= to; ++g) {
    const int64_t h = kvHead * group + g, bh = b * p.heads + h;
    const HeadDecay<F> decay(sums, keyBits, keys, bh, b);
    const bool real = decay.real(j);
    F between = 0, columnSum = 0;
    for (int64_t tile = j / kSumTile + 1; tile < from / kSumTile; ++tile) between += decay.total(tile);
    F* const marks = warpSums ? warpSums + (bh * keys.length + j - keys.first) * (slots + 1) : nullptr;
    int slot = 0;
    for (int64_t first = from / 32 * 32; first <= to; first += 32) {
      while (marks && slot < slots && (j / boundary + 1 + slot) * boundary <= first) {
        const F x = laneSum(columnSum);
        if (lane == 0) marks[slot] = x;
        ++slot;
      }
      const int64_t position = first + lane, t = position - offset;
      const bool visible = real && position >= from && position <= to;
      F weight = 0, ds = 0;
      if (visible) {
        const F s =
            scale * dot(key[warp], at<T>(p.q, b, t, h), p.q.strides[3], p.headSize) - decay(j, position, between);
        weight = exp2(s - lseLog2<F>(p, b, h, t));
        ds = weight *
             (dot(value[warp], at<T>(p.dO, b, t, h), p.dO.strides[3], p.valueSize) - rowDelta[bh * p.queryLength + t]);
        columnSum += ds;
      }
      for (int i = 0; i < 32; ++i) {
        const F x = __shfl_sync(~0u, weight, i), y = __shfl_sync(~0u, ds, i);
        if (!__shfl_sync(~0u, visible, i)) continue;
        const T* const q = at<T>(p.q, b, first + i - offset, h);
        const T* const dO = at<T>(p.dO, b, first + i - offset, h);
#pragma unroll
        for (int e = 0; e < kPerLane; ++e) {
          const int d = lane + 32 * e;
          if (d < p.headSize) dk[e] = fma(y, static_cast<F>(toFloat(q[d * p.q.strides[3]])), dk[e]);
          if (d < p.valueSize) dv[e] = fma(x, static_cast<F>(toFloat(dO[d * p.dO.strides[3]])), dv[e]);
        }
      }
      if ((first + 32) % kSumTile == 0 && first / kSumTile > j / kSumTile) between += decay.total(first / kSumTile);
    }
    if (marks) {
      const F x = laneSum(columnSum);
      if (lane == 0) {
        for (; slot <= slots; ++slot) marks[slot] = x;
        columnSums[bh * keys.length + j - keys.first] = x;
      }
    }
  }
  T* const dkRow = at<T>(p.dk, b, j, kvHead);
  T* const dvRow = at<T>(p.dv, b, j, kvHead);
#pragma unroll
  for (int e = 0; e < kPerLane; ++e) {
    const int d = lane + 32 * e;
    if (d < p.headSize) dkRow[d * p.dk.strides[3]] = fromFloat<T>(static_cast<F>(p.scale) * dk[e]);
    if (d < p.valueSize) dvRow[d * p.dv.strides[3]] = fromFloat<T>(dv[e]);
  }
}

}  // namespace

template <typename T, typename F>
cudaError_t launchForwardPlain(const AttentionForward& p, const DecaySums<F>& sums, const uint64_t* keyBits, Span keys,
                               cudaStream_t stream) {
  const int64_t blocks = divUp(p.batch * p.heads * p.queryLength, kWarps);
  forwardPlainKernel<T, F><<<static_cast<unsigned>(blocks), kWarps * 32, 0, stream>>>(p, sums, keyBits, keys);
  return lastLaunch();
}

template <typename T, typename F>
cudaError_t launchBackwardPlain(const AttentionBackward& p, const DecaySums<F>& sums, const uint64_t* keyBits,
                                Span keys, F* rowDelta, F* rowSums, F* columnSums, F* warpSums, int boundary, int slots,
                                cudaStream_t stream) {
  const int64_t rowBlocks = divUp(p.batch * p.heads * p.queryLength, kWarps);
  dqPlainKernel<T, F>
      <<<static_cast<unsigned>(rowBlocks), kWarps * 32, 0, stream>>>(p, sums, keyBits, keys, rowDelta, rowSums);
  const cudaError_t e = lastLaunch();
  if (e != cudaSuccess) return e;
  const int64_t keyBlocks = divUp(p.batch * p.kvHeads * p.keyLength, kWarps);
  dkdvPlainKernel<T, F><<<static_cast<unsigned>(keyBlocks), kWarps * 32, 0, stream>>>(
      p, sums, keyBits, keys, rowDelta, columnSums, warpSums, boundary, slots);
  return lastLaunch();
}

#define GATEDFWA_PLAIN(T, F)                                                                                           \
  template cudaError_t launchForwardPlain<T, F>(const AttentionForward&, const DecaySums<F>&, const uint64_t*, Span,   \
                                                cudaStream_t);                                                         \
  template cudaError_t launchBackwardPlain<T, F>(const AttentionBackward&, const DecaySums<F>&, const uint64_t*, Span, \
                                                 F*, F*, F*, F*, int, int, cudaStream_t);
GATEDFWA_PLAIN(double, double)
GATEDFWA_PLAIN(float, float)
GATEDFWA_PLAIN(__half, float)
GATEDFWA_PLAIN(__nv_bfloat16, float)

}  // namespace gatedfwa::cuda
