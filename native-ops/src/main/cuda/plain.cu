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

/// Runs body(key, decay, visible) over the visible keys of row p, 32 at a time, newest first, all lanes together.
template <typename F, typename Body>
__device__ __forceinline__ void overKeys(const HeadDecay<F>& decay, int64_t p, int64_t window, Body body) {
  const int64_t oldest = max(int64_t(0), p - window + 1), tile = p / kSumTile;
  F between = 0;
  for (int64_t first = p / 32 * 32; first + 31 >= oldest; first -= 32) {
    const int64_t key = first + threadIdx.x % 32;
    const bool visible = key <= p && key >= oldest && decay.real(key);
    body(key, visible ? decay(key, p, between) : infinity<F>(), visible);
    if (first % kSumTile == 0 && first / kSumTile < tile) between += decay.total(first / kSumTile);
    if (first == 0) break;
  }
}

template <typename T, typename F>
__global__ void __launch_bounds__(kWarps * 32)
    forwardPlainKernel(const __grid_constant__ AttentionForward p, DecaySums<F> sums, const uint64_t* keyBits,
                       Span keys) {
  __shared__ F query[kWarps][kMaxHead];
  const PlainRow r(p);
  if (!r.exists) return;
  const HeadDecay<F> decay(sums, keyBits, keys, r.b * p.heads + r.h, r.b);
  forwardRow<T>(p, r, query[threadIdx.x / 32], [&](auto body) { overKeys(decay, r.position, p.window, body); });
}

template <typename T, typename F>
__global__ void __launch_bounds__(kWarps * 32)
    dqPlainKernel(const __grid_constant__ AttentionBackward p, DecaySums<F> sums, const uint64_t* keyBits, Span keys,
                  F* rowDelta, F* rowSums) {
  __shared__ F query[kWarps][kMaxHead], gradient[kWarps][kMaxHead];
  const int warp = threadIdx.x / 32;
  const PlainRow r(p);
  if (!r.exists) return;
  const HeadDecay<F> decay(sums, keyBits, keys, r.b * p.heads + r.h, r.b);
  const F rowSum = dqRow<T>(p, r, query[warp], gradient[warp], rowDelta,
                            [&](auto body) { overKeys(decay, r.position, p.window, body); });
  if (threadIdx.x % 32 == 0) rowSums[r.index] = rowSum;
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
  PlainKey<T, F, AttentionBackward> own{p, key[warp], value[warp], b, j, kvHead, {}, {}};
  own.load();

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
      const int64_t position = first + lane;
      const bool visible = real && position >= from && position <= to;
      columnSum += own.add(position - offset, h, visible ? decay(j, position, between) : F(0), visible, rowDelta);
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
  own.store();
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
