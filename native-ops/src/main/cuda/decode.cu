// Forward for few queries against a long cache: the keys of one query row are split over blocks, each leaves a maximum,
// a sum and an unnormalised output, and a second kernel merges them in order.
//
// Memory bound: K and V rows are read once, 16 bytes a thread; eight threads share a key, a warp takes sum tiles of 64
// keys in turn. Rows must be 16-byte aligned (rowsAligned).
#include "element.cuh"

namespace gatedfwa::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kLanes = 8;           ///< threads per key
constexpr int kKeys = 32 / kLanes;  ///< keys a warp handles at once
constexpr int kTilesPerSplit = 4;   ///< at least, so that merging stays small

template <typename T>
struct Chunk {
  union {
    uint4 bits;
    T element[16 / sizeof(T)];
  };
};

/// `chunks`: 16-byte pieces of a row that a thread holds.
template <typename T, int chunks>
__global__ void __launch_bounds__(kWarps * 32)
    decodeKernel(const __grid_constant__ AttentionForward p, DecaySums<float> sums, const uint64_t* keyBits, Span keys,
                 int splits, float* partial) {
  constexpr int perChunk = 16 / sizeof(T), elements = chunks * perChunk, rounds = kSumTile / kKeys;
  constexpr int headPadded = kLanes * elements;
  __shared__ float mergedOut[kWarps][headPadded], mergedMax[kWarps], mergedSum[kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, keyLane = lane / kLanes, part = lane % kLanes;
  const int split = blockIdx.x % splits;
  const int64_t row = blockIdx.x / splits, t = row % p.queryLength, bh = row / p.queryLength;
  const int64_t b = bh / p.heads, h = bh % p.heads, kvHead = h / (p.heads / p.kvHeads);
  const int64_t position = p.keyLength - p.queryLength + t, oldest = max(int64_t(0), position - p.window + 1);
  const int64_t rowTile = position / kSumTile, oldestTile = oldest / kSumTile;
  const int64_t perSplit = (rowTile - oldestTile + splits) / splits;  // ceil of the tile count over the splits
  const int64_t newestTile = rowTile - split * perSplit;
  const int64_t lastTile = max(oldestTile, newestTile - perSplit + 1);

  const T* const k = static_cast<const T*>(p.k.data) + b * p.k.strides[0] + kvHead * p.k.strides[2];
  const T* const v = static_cast<const T*>(p.v.data) + b * p.v.strides[0] + kvHead * p.v.strides[2];
  const T* const q = static_cast<const T*>(p.q.data) + b * p.q.strides[0] + t * p.q.strides[1] + h * p.q.strides[2];
  const float scale = static_cast<float>(p.scale * kLog2e), inf = infinity<float>();

  float query[elements], out[elements];
#pragma unroll
  for (int c = 0; c < chunks; ++c)
#pragma unroll
    for (int e = 0; e < perChunk; ++e) {
      const int d = (c * kLanes + part) * perChunk + e;
      query[c * perChunk + e] = d < p.headSize ? toFloat(q[d]) * scale : 0.f;
      out[c * perChunk + e] = 0.f;
    }
  float maximum = -inf, sum = 0.f;

  const int64_t sumRow = bh * keys.length - keys.first, tileRow = bh * keys.tiles() - keys.first / kSumTile;
  const auto total = [&](int64_t tile) {
    return sums.resets[tileRow + tile] ? inf : sums.prefix[sumRow + tile * kSumTile + kSumTile - 1];
  };
  const uint64_t rowResets = sums.prefix ? sums.resets[tileRow + rowTile] : 0ull;
  const float rowPrefix = sums.prefix ? sums.prefix[sumRow + position] : 0.f;
  const float rowPrefixLow = sums.prefixLow ? sums.prefixLow[sumRow + position] : 0.f;
  const float rowDecay = rowResets & bitsThrough(position % kSumTile) ? inf : rowPrefix;
  int64_t tile = newestTile - warp;
  float between = 0.f;  // decay of the tiles between `tile` and the row's
  if (sums.prefix && tile >= lastTile) {
    for (int64_t i = tile + 1 + lane; i < rowTile; i += 32) between += total(i);
#pragma unroll
    for (int d = 16; d > 0; d /= 2) between += __shfl_xor_sync(~0u, between, d);
  }

  for (; tile >= lastTile; tile -= kWarps) {
    const uint64_t bits = keyBits ? keyBits[b * keys.tiles() + tile - keys.first / kSumTile] : ~0ull;
    float score[rounds];
    float top = -inf;
#pragma unroll
    for (int r = 0; r < rounds; ++r) {
      const int inTile = r * kKeys + keyLane;
      const int64_t key = tile * kSumTile + inTile;
      const bool visible = key <= position && key >= oldest && ((bits >> inTile) & 1);
      float x = 0.f;
      if (visible) {
#pragma unroll
        for (int c = 0; c < chunks; ++c) {
          const int d = (c * kLanes + part) * perChunk;
          if (d < p.headSize) {
            Chunk<T> chunk;
            chunk.bits = *reinterpret_cast<const uint4*>(k + key * p.k.strides[1] + d);
#pragma unroll
            for (int e = 0; e < perChunk; ++e) x = fmaf(query[c * perChunk + e], toFloat(chunk.element[e]), x);
          }
        }
      }
#pragma unroll
      for (int d = kLanes / 2; d > 0; d /= 2) x += __shfl_xor_sync(~0u, x, d);
      if (sums.prefix && visible) {
        if (tile == rowTile) {
          x += (sums.prefix[sumRow + key] - rowPrefix) +
               ((sums.prefixLow ? sums.prefixLow[sumRow + key] : 0.f) - rowPrefixLow);
          if (resetBetween(rowResets, inTile, position % kSumTile)) x = -inf;
        } else {
          x -= sums.suffix[sumRow + key] + between + rowDecay;
        }
      }
      score[r] = visible ? x : -inf;
      top = fmaxf(top, score[r]);
    }
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 8));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 16));
    const float newMax = fmaxf(maximum, top), base = newMax == -inf ? 0.f : newMax;
    const float factor = exp2f(maximum - base);
    maximum = newMax;
    sum *= factor;
#pragma unroll
    for (int e = 0; e < elements; ++e) out[e] *= factor;
#pragma unroll
    for (int r = 0; r < rounds; ++r) {
      const float weight = exp2f(score[r] - base);
      sum += weight;
      const int inTile = r * kKeys + keyLane;
      const int64_t key = tile * kSumTile + inTile;
      if (key <= position && key >= oldest && ((bits >> inTile) & 1)) {
#pragma unroll
        for (int c = 0; c < chunks; ++c) {
          const int d = (c * kLanes + part) * perChunk;
          if (d < p.valueSize) {
            Chunk<T> chunk;
            chunk.bits = *reinterpret_cast<const uint4*>(v + key * p.v.strides[1] + d);
#pragma unroll
            for (int e = 0; e < perChunk; ++e)
              out[c * perChunk + e] = fmaf(weight, toFloat(chunk.element[e]), out[c * perChunk + e]);
          }
        }
      }
    }
    // On to the warp's next tile: the tiles passed, itself included, except the row's own.
    if (sums.prefix)
      for (int i = 0; i < kWarps && tile - i >= lastTile; ++i)
        if (tile - i < rowTile) between += total(tile - i);
  }

  // The warp's four key lanes, then the block's warps.
#pragma unroll
  for (int d = kLanes; d < 32; d *= 2) {
    sum += __shfl_xor_sync(~0u, sum, d);
#pragma unroll
    for (int e = 0; e < elements; ++e) out[e] += __shfl_xor_sync(~0u, out[e], d);
  }
  if (keyLane == 0) {
#pragma unroll
    for (int c = 0; c < chunks; ++c)
#pragma unroll
      for (int e = 0; e < perChunk; ++e) mergedOut[warp][(c * kLanes + part) * perChunk + e] = out[c * perChunk + e];
    if (part == 0) {
      mergedMax[warp] = maximum;
      mergedSum[warp] = sum;
    }
  }
  __syncthreads();
  float blockMax = mergedMax[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) blockMax = fmaxf(blockMax, mergedMax[w]);
  const float base = blockMax == -inf ? 0.f : blockMax;
  float weights[kWarps], blockSum = 0.f;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    weights[w] = exp2f(mergedMax[w] - base);
    blockSum += weights[w] * mergedSum[w];
  }
  float* const to = partial + static_cast<int64_t>(blockIdx.x) * (2 + p.valueSize);
  if (threadIdx.x == 0) {
    to[0] = blockMax;
    to[1] = blockSum;
  }
  for (int d = threadIdx.x; d < p.valueSize; d += kWarps * 32) {
    float x = 0.f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) x += weights[w] * mergedOut[w][d];
    to[2 + d] = x;
  }
}

template <typename T>
__global__ void __launch_bounds__(128)
    mergeKernel(const __grid_constant__ AttentionForward p, int splits, const float* partial) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * 4 + threadIdx.x / 32;
  if (row >= p.batch * p.heads * p.queryLength) return;
  const int lane = threadIdx.x % 32;
  const int64_t t = row % p.queryLength, bh = row / p.queryLength, b = bh / p.heads, h = bh % p.heads;
  const int64_t size = 2 + p.valueSize;
  const float* const from = partial + row * splits * size;
  const float inf = infinity<float>();
  float maximum = -inf, sum = 0.f;
  for (int s = 0; s < splits; ++s) maximum = fmaxf(maximum, from[s * size]);
  const float base = maximum == -inf ? 0.f : maximum;
  for (int s = 0; s < splits; ++s) sum += exp2f(from[s * size] - base) * from[s * size + 1];
  T* const o = static_cast<T*>(p.o.data) + b * p.o.strides[0] + t * p.o.strides[1] + h * p.o.strides[2];
  for (int64_t d = lane; d < p.valueSize; d += 32) {
    float x = 0.f;
    for (int s = 0; s < splits; ++s) x += exp2f(from[s * size] - base) * from[s * size + 2 + d];
    o[d * p.o.strides[3]] = fromFloat<T>(sum == 0.f ? 0.f : x / sum);
  }
  if (lane == 0)
    static_cast<float*>(p.lse.data)[b * p.lse.strides[0] + h * p.lse.strides[1] + t * p.lse.strides[2]] =
        sum == 0.f ? -inf : (maximum + log2f(sum)) * static_cast<float>(kLn2);
}

template <typename T, int chunks>
void launch(const AttentionForward& p, const DecaySums<float>& sums, const uint64_t* keyBits, Span keys, int splits,
            float* partial, cudaStream_t stream) {
  const int64_t blocks = p.batch * p.heads * p.queryLength * splits;
  decodeKernel<T, chunks>
      <<<static_cast<unsigned>(blocks), kWarps * 32, 0, stream>>>(p, sums, keyBits, keys, splits, partial);
}

}  // namespace

int decodeSplits(const AttentionProblem& p, const Device& device) {
  const int64_t tiles = std::min(p.window, p.keyLength) / kSumTile + 2;
  const int64_t rows = p.batch * p.heads * p.queryLength;
  const int64_t wanted = divUp(4 * static_cast<int64_t>(device.multiprocessors), rows);
  return static_cast<int>(std::max<int64_t>(1, std::min(wanted, tiles / kTilesPerSplit)));
}

template <typename T>
cudaError_t launchDecode(const AttentionForward& p, const DecaySums<float>& sums, const uint64_t* keyBits, Span keys,
                         int splits, float* partial, cudaStream_t stream) {
  constexpr int perRound = kLanes * 16 / sizeof(T);  // elements of one chunk per thread
  const int64_t chunks = divUp(std::max(p.headSize, p.valueSize), perRound);
  if (chunks <= 1)
    launch<T, 1>(p, sums, keyBits, keys, splits, partial, stream);
  else if (chunks <= 2)
    launch<T, 2>(p, sums, keyBits, keys, splits, partial, stream);
  else if (chunks <= 4)
    launch<T, 4>(p, sums, keyBits, keys, splits, partial, stream);
  else if constexpr (sizeof(T) == 4)
    launch<T, 8>(p, sums, keyBits, keys, splits, partial, stream);
  const cudaError_t e = lastLaunch();
  if (e != cudaSuccess) return e;
  const int64_t rows = p.batch * p.heads * p.queryLength;
  mergeKernel<T><<<static_cast<unsigned>(divUp(rows, 4)), 128, 0, stream>>>(p, splits, partial);
  return lastLaunch();
}
template cudaError_t launchDecode<float>(const AttentionForward&, const DecaySums<float>&, const uint64_t*, Span, int,
                                         float*, cudaStream_t);
template cudaError_t launchDecode<__half>(const AttentionForward&, const DecaySums<float>&, const uint64_t*, Span, int,
                                          float*, cudaStream_t);
template cudaError_t launchDecode<__nv_bfloat16>(const AttentionForward&, const DecaySums<float>&, const uint64_t*,
                                                 Span, int, float*, cudaStream_t);

}  // namespace gatedfwa::cuda
