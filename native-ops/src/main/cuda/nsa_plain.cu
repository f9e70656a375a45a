// Native sparse attention without tensor cores: any type, stride and scale. One warp per query row (forward, dq), key
// (dk, dv) or query token (choice). For FLOAT and DOUBLE, sm_75, head sizes above 128 and scales that are not positive;
// they are meant to be right, not fast.
#include "nsa_internal.h"
#include "plain.cuh"

namespace gatedfwa::cuda {
namespace {

__device__ __forceinline__ CompressedRule ruleOf(const NsaCompressedProblem& p) {
  return {static_cast<int>(p.blockLength), static_cast<int>(p.stride)};
}
__device__ __forceinline__ SelectedRule ruleOf(const NsaSelectedProblem&) { return {}; }
__host__ __device__ __forceinline__ int64_t keysOf(const NsaCompressedProblem& p) { return p.blocks; }
__host__ __device__ __forceinline__ int64_t keysOf(const NsaSelectedProblem& p) { return p.keyLength; }

struct Mask {
  const uint64_t* bits;
  __device__ Mask(const uint64_t* keyBits, int64_t keyWords, int64_t b)
      : bits(keyBits ? keyBits + b * keyWords : nullptr) {}
  __device__ bool real(int64_t j) const { return !bits || ((bits[j / 64] >> (j % 64)) & 1); }
};

/// Runs `body(key, first, seen)` over the keys that query t sees, up to 32 from `first` on at a time, all lanes
/// together.
template <typename Body>
__device__ __forceinline__ void overKeys(const NsaCompressedProblem& p, int64_t, int64_t, int64_t position, Body body) {
  const int64_t end = visibleEnd(ruleOf(p), static_cast<int>(p.blocks), static_cast<int>(position));
  for (int64_t first = 0; first < end; first += 32)
    body(first + threadIdx.x % 32, first, first + threadIdx.x % 32 < end);
}
template <typename Body>
__device__ __forceinline__ void overKeys(const NsaSelectedProblem& p, int64_t b, int64_t kvHead, int64_t position,
                                         Body body) {
  const int* const row = at<int>(p.indices, b, position - p.keyLength + p.queryLength, kvHead);
  for (int64_t i = 0; i < p.topN; ++i) {
    const int64_t block = row[i * p.indices.strides[3]];
    if (block < 0) break;
    const int64_t end = min((block + 1) * p.selectionBlock, position + 1);
    for (int64_t first = block * p.selectionBlock; first < end; first += 32)
      body(first + threadIdx.x % 32, first, first + threadIdx.x % 32 < end);
  }
}

template <typename T, typename F, typename Problem>
__global__ void __launch_bounds__(kWarps * 32)
    forwardKernel(const __grid_constant__ NsaForward<Problem> p, const uint64_t* keyBits, int64_t keyWords) {
  __shared__ F query[kWarps][kMaxHead];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (index >= p.batch * p.heads * p.queryLength) return;
  const int64_t t = index % p.queryLength, bh = index / p.queryLength, b = bh / p.heads, h = bh % p.heads;
  const int64_t kvHead = h / (p.heads / p.kvHeads), position = p.keyLength - p.queryLength + t;
  const T* const q = at<T>(p.q, b, t, h);
  for (int d = lane; d < p.headSize; d += 32) query[warp][d] = toFloat(q[d * p.q.strides[3]]);
  __syncwarp();

  const Mask mask(keyBits, keyWords, b);
  const F scale = static_cast<F>(p.scale * kLog2e);
  F maximum = -infinity<F>(), sum = 0, out[kPerLane] = {};
  overKeys(p, b, kvHead, position, [&](int64_t key, int64_t first, bool seen) {
    const bool visible = seen && mask.real(key);
    const F s =
        visible ? scale * dot(query[warp], at<T>(p.k, b, key, kvHead), p.k.strides[3], p.headSize) : -infinity<F>();
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
__device__ __forceinline__ F lseLog2(const Input& lse, int64_t b, int64_t h, int64_t t) {
  const F x = static_cast<const F*>(lse.data)[b * lse.strides[0] + h * lse.strides[1] + t * lse.strides[2]];
  return x == -infinity<F>() ? infinity<F>() : x * static_cast<F>(kLog2e);
}

template <typename T, typename F, typename Problem>
__global__ void __launch_bounds__(kWarps * 32)
    dqKernel(const __grid_constant__ NsaBackward<Problem> p, const uint64_t* keyBits, int64_t keyWords, F* rowDelta) {
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

  const Mask mask(keyBits, keyWords, b);
  const F scale = static_cast<F>(p.scale * kLog2e), lse = lseLog2<F>(p.lse, b, h, t);
  F out[kPerLane] = {};
  overKeys(p, b, kvHead, position, [&](int64_t key, int64_t first, bool seen) {
    const bool visible = seen && mask.real(key);
    F ds = 0;
    if (visible) {
      const F s = scale * dot(query[warp], at<T>(p.k, b, key, kvHead), p.k.strides[3], p.headSize);
      const F dP = dot(gradient[warp], at<T>(p.v, b, key, kvHead), p.v.strides[3], p.valueSize);
      ds = exp2(s - lse) * (dP - delta);
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
  T* const dq = at<T>(p.dq, b, t, h);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int d = lane + 32 * i;
    if (d < p.headSize) dq[d * p.dq.strides[3]] = fromFloat<T>(static_cast<F>(p.scale) * out[i]);
  }
}

template <typename T, typename F, typename Problem>
__global__ void __launch_bounds__(kWarps * 32)
    dkdvKernel(const __grid_constant__ NsaBackward<Problem> p, const uint64_t* keyBits, int64_t keyWords,
               const __grid_constant__ NsaLists lists, const F* rowDelta) {
  __shared__ F key[kWarps][kMaxHead], value[kWarps][kMaxHead];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + warp, keys = keysOf(p);
  if (index >= p.batch * p.kvHeads * keys) return;
  const int64_t j = index % keys, head = index / keys, b = head / p.kvHeads, kvHead = head % p.kvHeads;
  const int64_t group = p.heads / p.kvHeads, offset = p.keyLength - p.queryLength;
  const T* const k = at<T>(p.k, b, j, kvHead);
  const T* const v = at<T>(p.v, b, j, kvHead);
  for (int d = lane; d < p.headSize; d += 32) key[warp][d] = toFloat(k[d * p.k.strides[3]]);
  for (int d = lane; d < p.valueSize; d += 32) value[warp][d] = toFloat(v[d * p.v.strides[3]]);
  __syncwarp();

  const F scale = static_cast<F>(p.scale * kLog2e);
  const int64_t unit = head * lists.blocks + j / lists.unitKeys;
  const int64_t count = Mask(keyBits, keyWords, b).real(j) ? lists.count[unit] : 0, rows = count * group;
  const int* const list = lists.tokens ? lists.tokens + head * lists.listLength + lists.offset[unit] : nullptr;
  F dk[kPerLane] = {}, dv[kPerLane] = {};
  for (int64_t first = 0; first < rows; first += 32) {
    const int64_t row = first + lane, place = row / group, h = kvHead * group + row % group;
    const int64_t t = row >= rows ? 0 : list ? list[place] : p.queryLength - count + place;
    const bool visible = row < rows && j < visibleEnd(ruleOf(p), static_cast<int>(keys), static_cast<int>(offset + t));
    F weight = 0, ds = 0;
    if (visible) {
      const F s = scale * dot(key[warp], at<T>(p.q, b, t, h), p.q.strides[3], p.headSize);
      weight = exp2(s - lseLog2<F>(p.lse, b, h, t));
      ds = weight * (dot(value[warp], at<T>(p.dO, b, t, h), p.dO.strides[3], p.valueSize) -
                     rowDelta[(b * p.heads + h) * p.queryLength + t]);
    }
    for (int i = 0; i < 32; ++i) {
      const F x = __shfl_sync(~0u, weight, i), y = __shfl_sync(~0u, ds, i);
      const int64_t ti = __shfl_sync(~0u, t, i), hi = __shfl_sync(~0u, h, i);
      if (!__shfl_sync(~0u, visible, i)) continue;
      const T* const q = at<T>(p.q, b, ti, hi);
      const T* const dO = at<T>(p.dO, b, ti, hi);
#pragma unroll
      for (int e = 0; e < kPerLane; ++e) {
        const int d = lane + 32 * e;
        if (d < p.headSize) dk[e] = fma(y, static_cast<F>(toFloat(q[d * p.q.strides[3]])), dk[e]);
        if (d < p.valueSize) dv[e] = fma(x, static_cast<F>(toFloat(dO[d * p.dO.strides[3]])), dv[e]);
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

/// Of a warp's token, by its first lane: selection blocks get their importance in ascending order.
template <typename F>
struct Choice {
  const NsaSelect& p;
  const Mask& mask;
  F* best;      ///< descending
  int* chosen;  ///< whose they are
  int64_t own, seen, first, before, count, s;
  F importance[2];  ///< of s and the next one, so far

  __device__ bool candidate(int64_t block) const {
    const int64_t r = p.selectionBlock / p.stride, e = p.blockLength / p.stride;
    for (int64_t c = max(int64_t(0), block * r - e + 1); c < min(seen, (block + 1) * r); ++c)
      if (mask.real(c)) return true;
    return false;
  }
  /// s has its importance.
  __device__ void compete() {
    const F x = importance[0] == importance[0] ? importance[0] : F(0);
    if (s < own && candidate(s)) {
      if (first < 0) {
        first = s;
      } else if (s == own - 1) {
        before = s;
      } else if (count < p.topN - 1 || x > best[count - 1]) {
        int64_t place = count < p.topN - 1 ? count++ : count - 1;
        for (; place > 0 && x > best[place - 1]; --place) {
          best[place] = best[place - 1];
          chosen[place] = chosen[place - 1];
        }
        best[place] = x;
        chosen[place] = static_cast<int>(s);
      }
    }
    importance[0] = importance[1];
    importance[1] = 0;
    ++s;
  }
};

template <typename T, typename F>
__global__ void __launch_bounds__(kWarps * 32)
    selectKernel(const __grid_constant__ NsaSelect p, const uint64_t* keyBits, int64_t keyWords, F* best, int* chosen) {
  __shared__ F query[kWarps][kMaxHead];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (index >= p.batch * p.kvHeads * p.queryLength) return;
  const int64_t t = index % p.queryLength, bh = index / p.queryLength, b = bh / p.kvHeads, kvHead = bh % p.kvHeads;
  const int64_t group = p.heads / p.kvHeads, position = p.keyLength - p.queryLength + t;
  const int64_t r = p.selectionBlock / p.stride, e = p.blockLength / p.stride;
  const Mask mask(keyBits, keyWords, b);
  const F scale = static_cast<F>(p.scale * kLog2e);
  Choice<F> x{p,
              mask,
              best + index * p.topN,
              chosen + index * p.topN,
              position / p.selectionBlock,
              visibleEnd(ruleOf(p), static_cast<int>(p.blocks), static_cast<int>(position)),
              -1,
              -1,
              0,
              0,
              {0, 0}};
  for (int64_t c0 = 0; c0 < x.seen; c0 += 32) {
    const int64_t c = c0 + lane;
    const bool visible = c < x.seen && mask.real(c);
    F sum = 0;
    for (int64_t h = kvHead * group; h < (kvHead + 1) * group; ++h) {
      __syncwarp();
      const T* const q = at<T>(p.q, b, t, h);
      for (int d = lane; d < p.headSize; d += 32) query[warp][d] = toFloat(q[d * p.q.strides[3]]);
      __syncwarp();
      if (visible)
        sum += exp2(scale * dot(query[warp], at<T>(p.k, b, c, kvHead), p.k.strides[3], p.headSize) -
                    lseLog2<F>(p.lse, b, h, t));
    }
    for (int i = 0; i < 32 && c0 + i < x.seen; ++i) {
      const F P = __shfl_sync(~0u, sum, i);
      if (lane != 0) continue;
      const int64_t s = (c0 + i) / r, own = min(e, (s + 1) * r - (c0 + i));
      while (x.s < s) x.compete();
      if (!mask.real(c0 + i)) continue;
      x.importance[0] += static_cast<F>(own) * P;
      if (own < e) x.importance[1] += static_cast<F>(e - own) * P;
    }
  }
  if (lane != 0) return;
  while (x.s < x.own) x.compete();
  int* const to = at<int>(p.indices, b, t, kvHead);
  int64_t certain = 1 + (x.first >= 0) + (x.before >= 0), count = min(p.topN - certain, x.count);
  if (x.first >= 0) x.chosen[count++] = static_cast<int>(x.first);
  if (x.before >= 0) x.chosen[count++] = static_cast<int>(x.before);
  x.chosen[count++] = static_cast<int>(x.own);
  for (int64_t i = 1; i < count; ++i) {
    const int block = x.chosen[i];
    int64_t place = i;
    for (; place > 0 && x.chosen[place - 1] > block; --place) x.chosen[place] = x.chosen[place - 1];
    x.chosen[place] = block;
  }
  for (int64_t i = 0; i < p.topN; ++i) to[i * p.indices.strides[3]] = i < count ? x.chosen[i] : -1;
}

}  // namespace

template <typename T, typename F, typename Problem>
cudaError_t launchNsaForwardPlain(const NsaForward<Problem>& p, const uint64_t* keyBits, int64_t keyWords,
                                  cudaStream_t stream) {
  const int64_t blocks = divUp(p.batch * p.heads * p.queryLength, kWarps);
  forwardKernel<T, F, Problem><<<static_cast<unsigned>(blocks), kWarps * 32, 0, stream>>>(p, keyBits, keyWords);
  return lastLaunch();
}

template <typename T, typename F, typename Problem>
cudaError_t launchNsaBackwardPlain(const NsaBackward<Problem>& p, const uint64_t* keyBits, int64_t keyWords,
                                   const NsaLists& lists, F* rowDelta, cudaStream_t stream) {
  const int64_t rowBlocks = divUp(p.batch * p.heads * p.queryLength, kWarps);
  dqKernel<T, F, Problem><<<static_cast<unsigned>(rowBlocks), kWarps * 32, 0, stream>>>(p, keyBits, keyWords, rowDelta);
  const cudaError_t e = lastLaunch();
  const int64_t keyBlocks = divUp(p.batch * p.kvHeads * keysOf(p), kWarps);
  if (e != cudaSuccess || keyBlocks == 0) return e;
  dkdvKernel<T, F, Problem>
      <<<static_cast<unsigned>(keyBlocks), kWarps * 32, 0, stream>>>(p, keyBits, keyWords, lists, rowDelta);
  return lastLaunch();
}

template <typename T, typename F>
cudaError_t launchNsaSelectPlain(const NsaSelect& p, const uint64_t* keyBits, int64_t keyWords, F* best, int* chosen,
                                 cudaStream_t stream) {
  const int64_t blocks = divUp(p.batch * p.kvHeads * p.queryLength, kWarps);
  selectKernel<T, F><<<static_cast<unsigned>(blocks), kWarps * 32, 0, stream>>>(p, keyBits, keyWords, best, chosen);
  return lastLaunch();
}

#define GATEDFWA_NSA_PLAIN_RULE(T, F, Problem)                                                                      \
  template cudaError_t launchNsaForwardPlain<T, F, Problem>(const NsaForward<Problem>&, const uint64_t*, int64_t,   \
                                                            cudaStream_t);                                          \
  template cudaError_t launchNsaBackwardPlain<T, F, Problem>(const NsaBackward<Problem>&, const uint64_t*, int64_t, \
                                                             const NsaLists&, F*, cudaStream_t);
#define GATEDFWA_NSA_PLAIN(T, F)                      \
  GATEDFWA_NSA_PLAIN_RULE(T, F, NsaCompressedProblem) \
  GATEDFWA_NSA_PLAIN_RULE(T, F, NsaSelectedProblem)   \
  template cudaError_t launchNsaSelectPlain<T, F>(const NsaSelect&, const uint64_t*, int64_t, F*, int*, cudaStream_t);
GATEDFWA_NSA_PLAIN(double, double)
GATEDFWA_NSA_PLAIN(float, float)
GATEDFWA_NSA_PLAIN(__half, float)
GATEDFWA_NSA_PLAIN(__nv_bfloat16, float)

}  // namespace gatedfwa::cuda
