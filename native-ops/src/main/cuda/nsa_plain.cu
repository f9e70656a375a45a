// Native sparse attention without tensor cores: any type, stride and scale. One warp per query row (forward, dq) or
// query token (choice), one block per key (dk, dv). For FLOAT and DOUBLE, sm_75, head sizes above 128 and scales that
// are not positive; they are meant to be right, not fast.
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

/// Runs body(key, decay, visible) over the keys that query t sees, up to 32 at a time, all lanes together. Nothing
/// decays.
template <typename F, typename Body>
__device__ __forceinline__ void overRange(const Mask& mask, int64_t first, int64_t end, Body body) {
  for (; first < end; first += 32) {
    const int64_t key = first + threadIdx.x % 32;
    body(key, F(0), key < end && mask.real(key));
  }
}
template <typename F, typename Body>
__device__ __forceinline__ void overKeys(const NsaCompressedProblem& p, const PlainRow& r, const Mask& mask,
                                         Body body) {
  const int64_t end = visibleEnd(ruleOf(p), static_cast<int>(p.blocks), static_cast<int>(r.position));
  overRange<F>(mask, 0, end, body);
}
template <typename F, typename Body>
__device__ __forceinline__ void overKeys(const NsaSelectedProblem& p, const PlainRow& r, const Mask& mask, Body body) {
  const int* const row = at<int>(p.indices, r.b, r.t, r.kvHead);
  for (int64_t i = 0; i < p.topN; ++i) {
    const int64_t block = row[i * p.indices.strides[3]];
    if (block < 0) break;
    overRange<F>(mask, block * p.selectionBlock, min((block + 1) * p.selectionBlock, r.position + 1), body);
  }
}

template <typename T, typename F, typename Problem>
__global__ void __launch_bounds__(kWarps * 32)
    forwardKernel(const __grid_constant__ NsaForward<Problem> p, const uint64_t* keyBits, int64_t keyWords) {
  __shared__ F query[kWarps][kMaxHead];
  const PlainRow r(p);
  if (!r.exists) return;
  const Mask mask(keyBits, keyWords, r.b);
  forwardRow<T>(p, r, query[threadIdx.x / 32], [&](auto body) { overKeys<F>(p, r, mask, body); });
}

template <typename T, typename F, typename Problem>
__global__ void __launch_bounds__(kWarps * 32)
    dqKernel(const __grid_constant__ NsaBackward<Problem> p, const uint64_t* keyBits, int64_t keyWords, F* rowDelta) {
  __shared__ F query[kWarps][kMaxHead], gradient[kWarps][kMaxHead];
  const int warp = threadIdx.x / 32;
  const PlainRow r(p);
  if (!r.exists) return;
  const Mask mask(keyBits, keyWords, r.b);
  dqRow<T>(p, r, query[warp], gradient[warp], rowDelta, [&](auto body) { overKeys<F>(p, r, mask, body); });
}

constexpr int kKeyWarps = 8;  ///< that share the queries of a key: of compressed keys there are few

template <typename T, typename F, typename Problem>
__global__ void __launch_bounds__(kKeyWarps * 32)
    dkdvKernel(const __grid_constant__ NsaBackward<Problem> p, const uint64_t* keyBits, int64_t keyWords,
               const __grid_constant__ NsaLists lists, const F* rowDelta) {
  __shared__ F key[kMaxHead], value[kMaxHead], dk[kKeyWarps][kMaxHead], dv[kKeyWarps][kMaxHead];
  const int warp = threadIdx.x / 32;
  const int64_t keys = keysOf(p), group = p.heads / p.kvHeads, offset = p.keyLength - p.queryLength;
  for (int64_t index = blockIdx.x; index < p.batch * p.kvHeads * keys; index += gridDim.x) {
    const int64_t j = index % keys, head = index / keys, b = head / p.kvHeads, kvHead = head % p.kvHeads;
    PlainKey<T, F, NsaBackward<Problem>> own{p, key, value, b, j, kvHead, {}, {}};
    if (warp == 0) own.load();
    __syncthreads();
    const int64_t unit = head * lists.blocks + j / lists.unitKeys;
    const int64_t count = Mask(keyBits, keyWords, b).real(j) ? lists.count[unit] : 0, rows = count * group;
    const int* const list = lists.tokens ? lists.tokens + head * lists.listLength + lists.offset[unit] : nullptr;
    for (int64_t first = 32 * warp; first < rows; first += 32 * kKeyWarps) {
      const int64_t row = first + threadIdx.x % 32, place = row / group;
      const int64_t t = row >= rows ? 0 : list ? list[place] : p.queryLength - count + place;
      const bool visible =
          row < rows && j < visibleEnd(ruleOf(p), static_cast<int>(keys), static_cast<int>(offset + t));
      own.add(t, kvHead * group + row % group, F(0), visible, rowDelta);
    }
    own.dk.store(F(1), dk[warp], 1, static_cast<int>(p.headSize));
    own.dv.store(F(1), dv[warp], 1, static_cast<int>(p.valueSize));
    __syncthreads();
    const auto writeSum = [&](const F(&sums)[kKeyWarps][kMaxHead], F factor, T* to, int64_t stride, int64_t width) {
      for (int64_t d = threadIdx.x; d < width; d += kKeyWarps * 32) {
        F sum = 0;
        for (int i = 0; i < kKeyWarps; ++i) sum += sums[i][d];
        to[d * stride] = fromFloat<T>(factor * sum);
      }
    };
    writeSum(dk, static_cast<F>(p.scale), at<T>(p.dk, b, j, kvHead), p.dk.strides[3], p.headSize);
    writeSum(dv, F(1), at<T>(p.dv, b, j, kvHead), p.dv.strides[3], p.valueSize);
    __syncthreads();
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
      loadRow(query[warp], at<T>(p.q, b, t, h), p.q.strides[3], p.headSize);
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
  const int64_t keys = std::min(p.batch * p.kvHeads * keysOf(p), int64_t(1) << 30);
  if (e != cudaSuccess || keys == 0) return e;
  dkdvKernel<T, F, Problem>
      <<<static_cast<unsigned>(keys), kKeyWarps * 32, 0, stream>>>(p, keyBits, keyWords, lists, rowDelta);
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
