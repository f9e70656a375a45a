// What the kernels are launched with, and the launchers behind gatedfwa_cuda.h.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>

#include "gatedfwa_cuda.h"
#include "tiling.h"

namespace gatedfwa::cuda {

constexpr int kSpan = 128;  ///< token ranges of the scratch arrays start and end at multiples of this
constexpr double kLog2e = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

/// Tile-relative sums of the decays, in units of log2(e): [B, H, span] each, position `first` first. For token j of a
/// tile of kSumTile tokens: suffix = sum over the later tokens of the tile; prefix = sum over the tile up to and
/// including j, with hard resets (alpha = +infinity) counted as 0; resets has a bit for each of them. suffix does count
/// them. prefixLow is what prefix lost to rounding (FLOAT only).
template <typename F>
struct DecaySums {
  const F* suffix = nullptr;
  const F* prefix = nullptr;
  const F* prefixLow = nullptr;
  const uint64_t* resets = nullptr;  ///< [B, H, span / kSumTile]
};

/// A range of tokens, multiples of kSpan.
struct Span {
  int64_t first = 0, length = 0;
  __host__ __device__ int64_t tiles() const { return length / kSumTile; }
};

/// Operand for the tensor-core kernels: last stride 1, rows 16-byte aligned, `width` elements to load of each row.
template <typename T>
struct Rows {
  const T* data;
  int64_t batch, row, head;  ///< strides
  int width;
};
template <typename T>
struct OutRows {
  T* data;
  int64_t batch, row, head, element;
  int width;
  bool vector;  ///< rows may be written 16 bytes at a time
};

/// (batch entry, key/value head) pairs from `from` on, below `to`.
struct Pairs {
  int from = 0, to = 0;
};

template <typename T, typename F = float>
struct AttentionArgs {
  Rows<T> q, k, v, dO;
  OutRows<T> o, dq, dk, dv;
  F* lse;  ///< output of the forward, input of the backward
  int64_t lseBatch, lseHead, lseRow;
  int N, M, H, group, window;
  int64_t batch;
  Pairs pairs;  ///< all, or those of one launch
  float scale, scaleLog2;
  DecaySums<F> sums;        ///< all null if there is no alpha
  const uint64_t* keyBits;  ///< [B, keys / kSumTile], bit = real token; null if there is no mask
  Span keys;                ///< positions that the sums and bits cover
  Span queries;             ///< positions that the row arrays cover
  // backward: per row, [B, H, queries]: lse in log2 units (+infinity where the row has no key), the same plus the decay
  // from the tile's start, and delta
  float *rowLse, *rowDecayedLse, *rowDelta;
  // dalpha: column sums of dS [B, H, keys]; running sums of whole key warps at boundaries, see dalpha.cu
  float *columnSums, *warpSums;
  float* rowSums;  ///< row sums of dS, [B, H, queries]: 0 but for rounding, see dalpha.cu
  int boundary, boundarySlots;
  Rows<T> forwardO;  ///< o of the forward, where dq computes delta itself (Hopper's two passes, D = 128)
  // One-pass backward (Hopper, D = 64): of each tile of kSumTile queries, dq so far as accumulators lie with its row
  // sums (D + 1 floats a row), and how many key blocks have added to it; after the last, how many items are taken.
  float* dqSums;
  int* dqCounts;
  // Stored backward (Hopper, D = 128), see backward_stored_hopper.cuh: dS of storedPairs pairs at a time, of each query
  // tile with storedTiles key tiles.
  uint4* storedDs;
  int storedPairs, storedTiles;
};

inline int64_t divUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Hands out 256-byte aligned pieces of the workspace; without a base it only counts.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <typename T>
  T* take(int64_t count) {
    char* p = base_ ? base_ + used_ : nullptr;
    used_ += (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
    return reinterpret_cast<T*>(p);
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

inline cudaError_t lastLaunch() { return cudaGetLastError(); }

// mma_*.cu: the tensor-core kernels, one instance per element type, multiplication and padded head size.
enum class MmaKind { Half, BFloat16, Float32Strict, Float32Tf32 };
template <MmaKind kind>
struct MmaElement;
template <>
struct MmaElement<MmaKind::Half> {
  using type = __half;
};
template <>
struct MmaElement<MmaKind::BFloat16> {
  using type = __nv_bfloat16;
};
template <>
struct MmaElement<MmaKind::Float32Strict> {
  using type = float;
};
template <>
struct MmaElement<MmaKind::Float32Tf32> {
  using type = float;
};
template <MmaKind kind>
cudaError_t launchForwardMma(const AttentionArgs<typename MmaElement<kind>::type>& args, int head, cudaStream_t stream);
template <MmaKind kind>
cudaError_t launchBackwardMma(const AttentionArgs<typename MmaElement<kind>::type>& args, int head,
                              cudaStream_t stream);

// hopper_*.cu: wgmma and TMA, 16-bit types, `head` 64 or 128 (both head sizes); operands as tensorMapLegal. The
// backward's warpSums are those of kHopperWarpRows keys.
constexpr int kHopperWarpRows = 16;
template <typename T>
cudaError_t launchForwardHopper(const AttentionArgs<T>& args, int head, int multiprocessors, cudaStream_t stream);
template <typename T>
cudaError_t launchBackwardHopper(const AttentionArgs<T>& args, int head, int multiprocessors, cudaStream_t stream);

// plain.cu; F is the type of the arithmetic. rowDelta [B, H, N]; columnSums [B, H, keys], warpSums as dalpha.cu with
// one key a warp (both null without alpha).
template <typename T, typename F>
cudaError_t launchForwardPlain(const AttentionForward& p, const DecaySums<F>& sums, const uint64_t* keyBits, Span keys,
                               cudaStream_t stream);
template <typename T, typename F>
cudaError_t launchBackwardPlain(const AttentionBackward& p, const DecaySums<F>& sums, const uint64_t* keyBits,
                                Span keys, F* rowDelta, F* rowSums, F* columnSums, F* warpSums, int boundary, int slots,
                                cudaStream_t stream);

// decode.cu; partial [B, H, N, splits, 2 + Dv]
int decodeSplits(const AttentionProblem& p, const Device& device);
template <typename T>
cudaError_t launchDecode(const AttentionForward& p, const DecaySums<float>& sums, const uint64_t* keyBits, Span keys,
                         int splits, float* partial, cudaStream_t stream);

// decay.cu
template <typename F>
struct DecaySumsOut {
  F *suffix, *prefix, *prefixLow;
  uint64_t* resets;
  operator DecaySums<F>() const { return {suffix, prefix, prefixLow, resets}; }
};
template <typename F>
DecaySumsOut<F> takeSums(Arena& arena, int64_t batch, int64_t heads, Span keys, bool withLow = true) {
  const int64_t n = batch * heads * keys.length;
  DecaySumsOut<F> s;
  s.suffix = arena.take<F>(n);
  s.prefix = arena.take<F>(n);
  s.prefixLow = sizeof(F) == 4 && withLow ? arena.take<F>(n) : nullptr;
  s.resets = arena.take<uint64_t>(n / kSumTile);
  return s;
}
template <typename F>
cudaError_t launchDecaySums(Input alpha, int64_t batch, int64_t length, int64_t heads, Span keys, DecaySumsOut<F> out,
                            cudaStream_t stream);
cudaError_t launchKeyBits(Input mask, ElementType type, int64_t batch, int64_t length, Span keys, uint64_t* bits,
                          cudaStream_t stream);

// rows.cu
/// Zeros in [batch, rows, heads, width]; Bits is an unsigned type of the element's size.
template <typename Bits>
cudaError_t launchZero(Output x, int64_t batch, int64_t rows, int64_t heads, int64_t width, cudaStream_t stream);
/// Can rows of `width` elements be moved 16 bytes at a time?
bool rowsAligned(const Input& x, int64_t width, int64_t elementBytes);
template <typename T>
cudaError_t launchPack(Input source, int64_t batch, int64_t rows, int64_t heads, int64_t width, int64_t paddedWidth,
                       T* packed, cudaStream_t stream);
template <typename T>
cudaError_t launchRowStatistics(const AttentionBackward& p, const DecaySums<float>& sums, Span keys, Span queries,
                                float* rowLse, float* rowDecayedLse, float* rowDelta, cudaStream_t stream);

// dalpha.cu
/// Boundaries lie at multiples of this; a key's window crosses at most boundarySlots of them.
inline int dalphaBoundary(int64_t window) {
  return static_cast<int>(kSpan * std::max<int64_t>(2, divUp(window, 6 * kSpan)));
}
inline int dalphaSlots(int64_t window) { return static_cast<int>((window + kSumTile) / dalphaBoundary(window)) + 1; }
template <typename F>
cudaError_t launchDalpha(const AttentionBackward& p, Span keys, Span queries, const F* rowSums, const F* columnSums,
                         const F* warpSums, int warpRows, int boundary, int slots, cudaStream_t stream);

}  // namespace gatedfwa::cuda
