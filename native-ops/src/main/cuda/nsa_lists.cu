// The inverse of the choice: for each selection block the queries that chose it, ascending (a counting sort, by block,
// of each (batch entry, key/value head); integers only, so the order of threads leaves no trace). And the sums of what
// the segments of long lists leave.
#include "element.cuh"
#include "nsa_internal.h"

namespace gatedfwa::cuda {
namespace {

constexpr int kUnits = 128;   ///< units (selection blocks) of a block of threads
constexpr int kChunk = 1024;  ///< tokens looked at at a time
constexpr int kThreads = 512;

/// Calls visit(token, unit) for the entries of tokens [from, from + kChunk) that name one of the block's units, by all
/// threads.
template <typename Visit>
__device__ __forceinline__ void forEachEntry(const SelectedRule& rule, const int* indices, int offset, int N, int from,
                                             int unit0, Visit visit) {
  const unsigned topN = rule.topN, end = min(kChunk, N - from) * topN;
  const int* const row = indices + from * rule.row;
#pragma unroll 4
  for (unsigned i = threadIdx.x; i < end; i += kThreads) {
    const unsigned token = i / topN, place = i - token * topN;
    const int unit = __ldg(row + token * rule.row + place * rule.element);
    // A query has nothing to see in a block behind it.
    if (unit >= unit0 && unit < unit0 + kUnits &&
        static_cast<int64_t>(unit) * rule.selectionBlock <= offset + from + static_cast<int>(token))
      visit(static_cast<int>(token), unit - unit0);
  }
}

/// A block of threads has the units [unit0, unit0 + kUnits) of one head and a part of its tokens.
struct Place {
  const int* indices;
  int head, unit0, part, from, to;
};
__device__ __forceinline__ Place placeOf(const SelectedRule& rule, int kvHeads, int N, int blocks) {
  const int ranges = (blocks + kUnits - 1) / kUnits;
  Place x;
  x.part = blockIdx.x % kNsaListParts;
  x.unit0 = blockIdx.x / kNsaListParts % ranges * kUnits;
  x.head = blockIdx.x / kNsaListParts / ranges;
  x.indices = rule.indices + x.head / kvHeads * rule.batch + x.head % kvHeads * rule.head;
  const int chunks = (N + kChunk - 1) / kChunk;
  x.from = static_cast<int>(static_cast<int64_t>(chunks) * x.part / kNsaListParts) * kChunk;
  x.to = min(N, static_cast<int>(static_cast<int64_t>(chunks) * (x.part + 1) / kNsaListParts) * kChunk);
  return x;
}

/// Writes what the calling block's threads have before them; returns the block's sum. blockDim.x = 1024.
__device__ __forceinline__ int prefixOf(int value, int* before) {
  __shared__ int sums[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int x = value;
  for (int d = 1; d < 32; d *= 2) {
    const int y = __shfl_up_sync(~0u, x, d);
    if (lane >= d) x += y;
  }
  if (lane == 31) sums[warp] = x;
  __syncthreads();
  int sum = sums[lane];
  for (int d = 1; d < 32; d *= 2) {
    const int y = __shfl_up_sync(~0u, sum, d);
    if (lane >= d) sum += y;
  }
  const int total = __shfl_sync(~0u, sum, 31), warpsBefore = warp > 0 ? __shfl_sync(~0u, sum, warp - 1) : 0;
  __syncthreads();
  *before = warpsBefore + x - value;
  return total;
}

/// count[head][unit], and offset[part][head][unit]: the part's counts become where its tokens start. A block per head.
__global__ void __launch_bounds__(1024) offsetKernel(int heads, int blocks, int* count, int* offset) {
  const int64_t units = static_cast<int64_t>(heads) * blocks;
  int before = 0;
  for (int first = 0; first < blocks; first += 1024) {
    const int unit = first + threadIdx.x;
    const int64_t at = static_cast<int64_t>(blockIdx.x) * blocks + unit;
    int own = 0, start;
    if (unit < blocks)
      for (int part = 0; part < kNsaListParts; ++part) own += offset[part * units + at];
    const int total = prefixOf(own, &start);
    start += before;
    if (unit < blocks) {
      count[at] = own;
      for (int part = 0; part < kNsaListParts; ++part) {
        const int partCount = offset[part * units + at];
        offset[part * units + at] = start;
        start += partCount;
      }
    }
    before += total;
  }
}

/// segmentStart and partialStart, x = unit * heads + head. One block.
__global__ void __launch_bounds__(1024)
    segmentKernel(int heads, int blocks, int segment, const int* count, int* segmentStart, int* partialStart) {
  const int64_t units = static_cast<int64_t>(heads) * blocks;
  int segments = 0, partials = 0;
  for (int64_t first = 0; first < units; first += 1024) {
    const int64_t x = first + threadIdx.x;
    int own = 0;
    if (x < units) own = max(1, (count[x % heads * blocks + x / heads] + segment - 1) / segment);
    int before, partialsBefore;
    const int total = prefixOf(own, &before);
    const int partialTotal = prefixOf(own > 1 ? own : 0, &partialsBefore);
    if (x < units) {
      segmentStart[x] = segments + before;
      partialStart[x] = partials + partialsBefore;
    }
    segments += total;
    partials += partialTotal;
  }
  if (threadIdx.x == 0) {
    segmentStart[units] = segments;
    partialStart[units] = partials;
  }
}

/// Without `fill` the units' counts in each part, else their tokens from where the parts start. A unit that a token
/// names twice counts once.
template <bool fill>
__global__ void __launch_bounds__(kThreads) listKernel(SelectedRule rule, int kvHeads, int N, int offset, int heads,
                                                       int blocks, int* parts, int64_t listLength, int* tokens) {
  __shared__ uint32_t bits[kUnits][kChunk / 32 + 1];
  __shared__ int next[kUnits];
  const Place x = placeOf(rule, kvHeads, N, blocks);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int* const own = parts + (static_cast<int64_t>(x.part) * heads + x.head) * blocks + x.unit0 + threadIdx.x;
  const bool isUnit = threadIdx.x < kUnits && x.unit0 + threadIdx.x < blocks;
  if (threadIdx.x < kUnits) next[threadIdx.x] = fill && isUnit ? *own : 0;
  [[maybe_unused]] int* const list = tokens + x.head * listLength;
  for (int from = x.from; from < x.to; from += kChunk) {
    for (int i = threadIdx.x; i < kUnits * (kChunk / 32); i += kThreads) bits[i / (kChunk / 32)][i % (kChunk / 32)] = 0;
    __syncthreads();
    forEachEntry(rule, x.indices, offset, N, from, x.unit0,
                 [&](int token, int unit) { atomicOr(&bits[unit][token / 32], 1u << (token % 32)); });
    __syncthreads();
    for (int unit = warp; unit < kUnits; unit += kThreads / 32) {
      uint32_t word = bits[unit][lane];
      int through = __popc(word);
      for (int d = 1; d < 32; d *= 2) {
        const int y = __shfl_up_sync(~0u, through, d);
        if (lane >= d) through += y;
      }
      const int start = next[unit];
      if constexpr (fill) {
        int at = start + through - __popc(word);
        for (; word; word &= word - 1) list[at++] = from + 32 * lane + __ffs(word) - 1;
      }
      __syncwarp();
      if (lane == 31) next[unit] = start + through;
    }
    __syncthreads();
  }
  if (!fill && isUnit) *own = next[threadIdx.x];
}
static_assert(kChunk == 32 * 32, "a word of bits for each lane");

__global__ void compressedCountKernel(CompressedRule rule, int N, int M, NsaLists lists, int* count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= static_cast<int64_t>(lists.heads) * lists.blocks) return;
  // The first query that sees the unit's first key.
  const int64_t position = i % lists.blocks * lists.unitKeys * rule.stride + rule.blockLength - 1;
  const int64_t first = max(int64_t(0), position - (M - N));
  count[i] = static_cast<int>(max(int64_t(0), N - first));
}

template <typename T, typename Rule>
__global__ void reduceKernel(const __grid_constant__ NsaArgs<T, Rule> a, int head) {
  const NsaLists& lists = a.lists;
  const int subTiles = lists.subTiles(), subTile = blockIdx.x % subTiles;
  const int64_t x = blockIdx.x / subTiles;
  const int from = lists.partialStart[x], count = lists.partialStart[x + 1] - from;
  if (count == 0) return;
  const int unit = static_cast<int>(x / lists.heads), b = static_cast<int>(x % lists.heads) / a.kvHeads;
  const int kvHead = static_cast<int>(x % lists.heads) % a.kvHeads;
  const int64_t first = static_cast<int64_t>(unit) * lists.unitKeys + subTile * kNsaTile;
  const int64_t end = min((static_cast<int64_t>(unit) + 1) * lists.unitKeys, static_cast<int64_t>(a.keys));
  for (int i = threadIdx.x; i < 2 * kNsaTile * head; i += blockDim.x) {
    float sum = 0.f;
    for (int j = 0; j < count; ++j)
      sum += a.partials[(static_cast<int64_t>(from + j) * subTiles + subTile) * 2 * kNsaTile * head + i];
    const bool isKey = i < kNsaTile * head;
    const int64_t key = first + i / head % kNsaTile;
    const int d = i % head;
    const OutRows<T>& out = isKey ? a.dk : a.dv;
    if (key < end && d < out.width)
      out.data[b * out.batch + key * out.row + kvHead * out.head + d * out.element] =
          fromFloat<T>(isKey ? sum * a.scale : sum);
  }
}

cudaError_t launchSegments(const NsaLists& lists, cudaStream_t stream) {
  segmentKernel<<<1, 1024, 0, stream>>>(lists.heads, lists.blocks, lists.segment, lists.count,
                                        const_cast<int*>(lists.segmentStart), const_cast<int*>(lists.partialStart));
  return lastLaunch();
}

}  // namespace

cudaError_t launchNsaSelectedLists(const SelectedRule& rule, int64_t kvHeads, int N, int M, const NsaLists& lists,
                                   cudaStream_t stream) {
  const unsigned grid = static_cast<unsigned>(lists.heads * divUp(lists.blocks, kUnits) * kNsaListParts);
  const int heads = static_cast<int>(kvHeads);
  int* const offset = const_cast<int*>(lists.offset);
  listKernel<false><<<grid, kThreads, 0, stream>>>(rule, heads, N, M - N, lists.heads, lists.blocks, offset,
                                                   lists.listLength, nullptr);
  cudaError_t e = lastLaunch();
  if (e != cudaSuccess) return e;
  offsetKernel<<<lists.heads, 1024, 0, stream>>>(lists.heads, lists.blocks, const_cast<int*>(lists.count), offset);
  if ((e = lastLaunch()) != cudaSuccess) return e;
  listKernel<true><<<grid, kThreads, 0, stream>>>(rule, heads, N, M - N, lists.heads, lists.blocks, offset,
                                                  lists.listLength, const_cast<int*>(lists.tokens));
  if ((e = lastLaunch()) != cudaSuccess) return e;
  return launchSegments(lists, stream);
}

cudaError_t launchNsaCompressedLists(const CompressedRule& rule, int N, int M, const NsaLists& lists,
                                     cudaStream_t stream) {
  const unsigned grid = static_cast<unsigned>(divUp(static_cast<int64_t>(lists.heads) * lists.blocks, 256));
  compressedCountKernel<<<grid, 256, 0, stream>>>(rule, N, M, lists, const_cast<int*>(lists.count));
  const cudaError_t e = lastLaunch();
  return e == cudaSuccess ? launchSegments(lists, stream) : e;
}

template <typename T, typename Rule>
cudaError_t launchNsaReduce(const NsaArgs<T, Rule>& a, int head, cudaStream_t stream) {
  const int64_t grid = static_cast<int64_t>(a.lists.blocks) * a.lists.heads * a.lists.subTiles();
  reduceKernel<T, Rule><<<static_cast<unsigned>(grid), 256, 0, stream>>>(a, head);
  return lastLaunch();
}

#define GATEDFWA_NSA_REDUCE(T)                                                                                   \
  template cudaError_t launchNsaReduce<T, CompressedRule>(const NsaArgs<T, CompressedRule>&, int, cudaStream_t); \
  template cudaError_t launchNsaReduce<T, SelectedRule>(const NsaArgs<T, SelectedRule>&, int, cudaStream_t);
GATEDFWA_NSA_REDUCE(__half)
GATEDFWA_NSA_REDUCE(__nv_bfloat16)

}  // namespace gatedfwa::cuda
