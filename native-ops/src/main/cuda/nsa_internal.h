// What the kernels of native sparse attention are launched with (kernel/nsa_params.h has the mathematics).
#pragma once

#include "internal.h"
#include "kernel/nsa_params.h"

namespace gatedfwa::cuda {

constexpr int kNsaTile = 64;       ///< keys of a tile
constexpr int kNsaListParts = 16;  ///< of the tokens, for making lists

/// How the visible keys of a query are found.
struct CompressedRule {
  int blockLength, stride;
};
struct SelectedRule {
  const int* indices;
  int64_t batch, row, head, element;  ///< strides
  int topN, selectionBlock;
};

/// Which queries use which keys, for the key-stationary passes. Keys come in `blocks` units of `unitKeys` (the last may
/// be shorter) per (batch entry, key/value head), of which there are `heads`. A unit's queries are cut into segments of
/// `segment` tokens; segments of units that have several leave partial sums, which are then added in order.
struct NsaLists {
  int heads, blocks, unitKeys, segment;
  int64_t listLength;       ///< of one head's `tokens`
  const int* tokens;        ///< [heads, listLength], ascending within a unit; null: the last `count` queries
  const int* count;         ///< [heads, blocks]
  const int* offset;        ///< [kNsaListParts, heads, blocks]: where the unit's tokens start; part 0 is the first
  const int* segmentStart;  ///< [blocks * heads + 1]: number of segments before unit x = block * heads + head
  const int* partialStart;  ///< as segmentStart, of the units with several segments
  int64_t mostSegments;     ///< what segmentStart may reach
  int64_t mostPartials;     ///< what partialStart may reach
  __host__ __device__ int subTiles() const { return (unitKeys + kNsaTile - 1) / kNsaTile; }
};

template <typename T, typename Rule>
struct NsaArgs {
  Rows<T> q, k, v, dO;
  OutRows<T> o, dq, dk, dv;
  float* lse;
  int64_t lseBatch, lseHead, lseRow;
  int N, M, H, kvHeads, group, keys;  ///< keys: C or M
  int64_t batch;
  float scale, scaleLog2;
  Rule rule;
  const uint64_t* keyBits;  ///< [B, keyWords], bit = may be seen; null if there is no mask
  int64_t keyWords;
  // backward: lse in log2 units (+infinity where the row has no key) and delta, [B, H, queries]
  const float *rowLse, *rowDelta;
  Span queries;
  NsaLists lists;
  float* partials;  ///< [mostPartials, subTiles, 2, 64, head]: dk, dv
  bool bulk;        ///< K and V may be copied by TMA: sm_90, strides that it takes
  // query-stationary kernels: blocks are persistent
  int multiprocessors;
  unsigned int* itemsTaken;  ///< 0 before the kernel
};

/// What the choice's kernel is given.
template <typename T>
struct NsaSelectArgs {
  Rows<T> q, k;
  const float* lse;
  int64_t lseBatch, lseHead, lseRow;
  int* indices;
  int64_t indicesBatch, indicesRow, indicesHead, indicesElement;
  int N, M, H, kvHeads, group, keys;
  int64_t batch;
  float scaleLog2;
  int stride, pieces;  ///< d, l / d
  int perSelection;    ///< l' / d
  int selectionBlock, topN;
  const uint64_t* keyBits;
  int64_t keyWords;
  int logGroup;  ///< columns of a token are 2^logGroup >= group
};

// nsa_half.cu, nsa_bf16.cu: mma.sync kernels, `head` 64 or 128. sharedLimit: bytes a block may have.
template <typename T, typename Rule>
cudaError_t launchNsaForward(const NsaArgs<T, Rule>& args, int head, size_t sharedLimit, cudaStream_t stream);
template <typename T, typename Rule>
cudaError_t launchNsaDq(const NsaArgs<T, Rule>& args, int head, size_t sharedLimit, cudaStream_t stream);
template <typename T, typename Rule>
cudaError_t launchNsaDkDv(const NsaArgs<T, Rule>& args, int head, cudaStream_t stream);
// nsa_hopper_half.cu, nsa_hopper_bf16.cu: wgmma and TMA, sm_90a; what selectNsaKernel calls Hopper.
template <typename T, typename Rule>
cudaError_t launchNsaDkDvHopper(const NsaArgs<T, Rule>& args, int head, cudaStream_t stream);
constexpr int kNsaSelectMostN = 32, kNsaSelectMostGroup = 32;
template <typename T>
cudaError_t launchNsaSelect(const NsaSelectArgs<T>& args, int head, size_t sharedLimit, cudaStream_t stream);

// nsa_lists.cu
/// Fill the lists at the struct's pointers. On the way `offset` holds the counts of the parts.
cudaError_t launchNsaSelectedLists(const SelectedRule& rule, int64_t kvHeads, int N, int M, const NsaLists& lists,
                                   cudaStream_t stream);
cudaError_t launchNsaCompressedLists(const CompressedRule& rule, int N, int M, const NsaLists& lists,
                                     cudaStream_t stream);
/// dk and dv of the units with several segments from their partial sums, in order.
template <typename T, typename Rule>
cudaError_t launchNsaReduce(const NsaArgs<T, Rule>& args, int head, cudaStream_t stream);

// nsa_plain.cu: any type, stride and scale; F is the type of the arithmetic.
template <typename T, typename F, typename Problem>
cudaError_t launchNsaForwardPlain(const NsaForward<Problem>& p, const uint64_t* keyBits, int64_t keyWords,
                                  cudaStream_t stream);
/// rowDelta [B, H, N].
template <typename T, typename F, typename Problem>
cudaError_t launchNsaBackwardPlain(const NsaBackward<Problem>& p, const uint64_t* keyBits, int64_t keyWords,
                                   const NsaLists& lists, F* rowDelta, cudaStream_t stream);
/// Scratch: best [B, N, Hkv, topN] of F and as many ints.
template <typename T, typename F>
cudaError_t launchNsaSelectPlain(const NsaSelect& p, const uint64_t* keyBits, int64_t keyWords, F* best, int* chosen,
                                 cudaStream_t stream);

// ---- shared by host and device

/// Queries at position p see the keys below this.
__host__ __device__ inline int visibleEnd(const CompressedRule& r, int keys, int p) {
  const int end = p < r.blockLength - 1 ? 0 : (p - r.blockLength + 1) / r.stride + 1;
  return end < keys ? end : keys;
}
__host__ __device__ inline int visibleEnd(const SelectedRule&, int, int p) { return p + 1; }

}  // namespace gatedfwa::cuda
