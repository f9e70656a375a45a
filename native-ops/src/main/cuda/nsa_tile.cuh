// The query-stationary skeleton of the mma.sync kernels of native sparse attention (forward and dq).
//
// A warp keeps 16 rows: the heads of one token's group (of several tokens if the group is smaller than 16, 16 of them if
// it is larger). Warp 0 of a block copies key tiles into a ring of shared-memory stages; the others take from it the
// tiles that one of their tokens uses. Neighbouring tokens share a block's tiles: the copying warp walks over the
// union of their choices in ascending order. Stages are handed over by mbarriers, so that warps which use different
// tiles work at the same time.
#pragma once

#include "nsa_internal.h"
#include "tile.cuh"

namespace gatedfwa::cuda {

constexpr int kNsaMostTokens = 192;  ///< of a block
constexpr int kNoTile = 0x7fffffff;

// ---- mbarriers (sm_80)

__device__ __forceinline__ void stageBarrierInit(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void stageBarrierArrive(uint32_t barrier) {
#if GATEDFWA_TENSOR_CORES
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}\n" ::"r"(barrier) : "memory");
#endif
}
/// Arrives once this thread's copies so far are there.
__device__ __forceinline__ void stageBarrierArriveAfterCopies(uint32_t barrier) {
#if GATEDFWA_TENSOR_CORES
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];\n" ::"r"(barrier) : "memory");
#endif
}
/// Waits until the phase of this parity is complete (parity 1 of a fresh barrier is).
__device__ __forceinline__ void stageBarrierWait(uint32_t barrier, uint32_t parity) {
#if GATEDFWA_TENSOR_CORES
  uint32_t done;
#if defined(GATEDFWA_BOUNDED_WAITS)
  uint64_t start = 0, now;
#endif
  do {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
#else
    asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
#endif
#if defined(GATEDFWA_BOUNDED_WAITS)
    asm volatile("mov.u64 %0, %%globaltimer;\n" : "=l"(now));
    if (start == 0) start = now;
    if (now - start > 4000000000ull) __trap();
#endif
  } while (!done);
#endif
}

// ---- keys

/// Bits of keys first, first + 1, .. first + 63 of a batch entry; those from `end` on are 0.
template <typename Args>
__device__ __forceinline__ uint64_t keyBitsFrom(const Args& a, int64_t b, int first, int end) {
  uint64_t bits = ~0ull;
  if (a.keyBits) {
    const uint64_t* const words = a.keyBits + b * a.keyWords;
    const int word = first / 64, shift = first % 64;
    bits = words[word] >> shift;
    if (shift && word + 1 < a.keyWords) bits |= words[word + 1] << (64 - shift);
  }
  return end - first < 64 ? bits & ((1ull << (end - first)) - 1) : bits;
}

/// K (or V) rows [first, first + 64) that have a bit, by one warp (warp 0).
template <typename T, int head>
__device__ __forceinline__ void copyKeyTile(uint32_t tile, const T* base, const Rows<T>& rows, int first, int end,
                                            uint64_t bits) {
  const int shift = first % 64;
  const uint64_t at = shift ? bits << shift | bits >> (64 - shift) : bits;  // copyTile's bits are by position
  copyTile<T, kNsaTile, head, 32>(tile, base, rows.row, rows.width, first, 0, end, at);
}

// ---- blocks and warps

/// Which tokens and heads the warps of a block have.
template <int consumers>
struct NsaUnits {
  int rowHeads;    ///< heads of a token in one warp
  int tokens;      ///< of a warp
  int parts;       ///< warps of a token
  int64_t blocks;  ///< of one (batch entry, key/value head)

  __host__ __device__ NsaUnits(int group, int N)
      : rowHeads(group < 16 ? group : 16), tokens(16 / rowHeads), parts((group + 15) / 16) {
    const int64_t units = static_cast<int64_t>((N + tokens - 1) / tokens) * parts;
    blocks = (units + consumers - 1) / consumers;
  }
};

struct NsaStage {
  uint64_t bits;
  int first;  ///< key, or kNoTile: there are no more
  int padding;
  uint32_t members[kNsaMostTokens / 32];  ///< a bit per token of the block
};

/// Shared memory: stages of {K tile, V tile}, their descriptions, barriers, cursors; `rowBytes` for each consumer warp.
template <int head, int consumers, int rowBytes = 0>
struct NsaBlock {
  static constexpr int kTileBytes = kNsaTile * head * 2, kStageBytes = 2 * kTileBytes;
  static constexpr int kRows = consumers * rowBytes, kFixed = kRows + 2 * kNsaMostTokens * 4;
  static constexpr int kPerStage = kStageBytes + static_cast<int>(sizeof(NsaStage)) + 16;
  static_assert(consumers * 16 <= kNsaMostTokens, "");
  static int stages(size_t limit) {
    return static_cast<int>(std::min<size_t>(6, (limit - kFixed) / kPerStage));
  }
  static size_t bytes(int stages) { return kFixed + static_cast<size_t>(stages) * kPerStage; }

  unsigned char* shared;
  int count;
  __device__ NsaBlock(unsigned char* memory, int stageCount) : shared(memory), count(stageCount) {}
  __device__ __forceinline__ uint32_t tile(int slot, int i) const {
    return sharedAddress(shared) + kRows + slot * kStageBytes + i * kTileBytes;
  }
  __device__ __forceinline__ uint32_t warpRows(int warp) const { return sharedAddress(shared) + warp * rowBytes; }
  __device__ __forceinline__ NsaStage& stage(int slot) const {
    return reinterpret_cast<NsaStage*>(shared + kRows + count * kStageBytes)[slot];
  }
  __device__ __forceinline__ uint32_t full(int slot) const {
    return sharedAddress(shared) + kRows + count * (kStageBytes + static_cast<int>(sizeof(NsaStage))) + slot * 16;
  }
  __device__ __forceinline__ uint32_t empty(int slot) const { return full(slot) + 8; }
  __device__ __forceinline__ int* cursors() const { return reinterpret_cast<int*>(shared + kRows + count * kPerStage); }

  __device__ __forceinline__ void initialise() const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < count; ++i) {
        stageBarrierInit(full(i), 33);  // the copies of 32 lanes, the description
        stageBarrierInit(empty(i), consumers);
      }
    }
    __syncthreads();
  }
};

/// A block's place: its batch entry, key/value head and tokens [token0, token0 + tokens).
struct NsaPlace {
  int b, kvHead, token0, tokens;
  int64_t firstUnit;

  template <int consumers, typename Args>
  __device__ static NsaPlace of(const Args& a, const NsaUnits<consumers>& units) {
    NsaPlace x;
    const int64_t bh = blockIdx.x / units.blocks;
    x.b = static_cast<int>(bh / a.kvHeads);
    x.kvHead = static_cast<int>(bh % a.kvHeads);
    // The last tokens see most: they come first.
    x.firstUnit = (units.blocks - 1 - blockIdx.x % units.blocks) * consumers;
    x.token0 = static_cast<int>(x.firstUnit / units.parts) * units.tokens;
    const int64_t last = (x.firstUnit + consumers - 1) / units.parts * units.tokens + units.tokens;
    x.tokens = static_cast<int>(min(last, static_cast<int64_t>(a.N)) - x.token0);
    return x;
  }
};

/// Calls visit(first, end, member) for each key tile that a token of the block uses, in ascending order; member(i) is
/// a word of bits of tokens 32 i .. 32 i + 31, the same in all lanes. By one warp, whose cursors are in `shared`.
template <typename T, typename Visit>
__device__ __forceinline__ void forEachTile(const NsaArgs<T, CompressedRule>& a, const NsaPlace& x, int*, Visit visit) {
  const int end = visibleEnd(a.rule, a.keys, a.M - a.N + x.token0 + x.tokens - 1);
  for (int first = 0; first < end; first += kNsaTile) visit(first, a.keys, [](int) { return ~0u; });
}
template <typename T, typename Visit>
__device__ __forceinline__ void forEachTile(const NsaArgs<T, SelectedRule>& a, const NsaPlace& x, int* shared,
                                            Visit visit) {
  const int lane = threadIdx.x % 32, length = a.rule.selectionBlock, position0 = a.M - a.N + x.token0;
  int *const next = shared, *const place = shared + kNsaMostTokens;
  const int* const indices = a.rule.indices + x.b * a.rule.batch + x.token0 * a.rule.row + x.kvHead * a.rule.head;
  const auto blockAt = [&](int token, int i) {
    const int block = i < a.rule.topN ? __ldg(indices + token * a.rule.row + i * a.rule.element) : -1;
    // Blocks behind the query have nothing to see; nor have the later ones.
    return block < 0 || static_cast<int64_t>(block) * length > position0 + token ? kNoTile : block;
  };
  for (int i = lane; i < x.tokens; i += 32) {
    place[i] = 0;
    next[i] = blockAt(i, 0);
  }
  __syncwarp();
  while (true) {
    int block = kNoTile;
    for (int i = lane; i < x.tokens; i += 32) block = min(block, next[i]);
#pragma unroll
    for (int d = 16; d > 0; d /= 2) block = min(block, __shfl_xor_sync(~0u, block, d));
    if (block == kNoTile) return;
    const int begin = block * length, end = min(begin + length, a.keys);
    const int seen = min(end, position0 + x.tokens);  // by the last token
    const auto member = [&](int i) {
      const int token = 32 * i + lane;
      return __ballot_sync(~0u, token < x.tokens && next[token] == block);
    };
    for (int first = begin; first < seen; first += kNsaTile) visit(first, end, member);
    for (int i = lane; i < x.tokens; i += 32)
      if (next[i] == block) next[i] = blockAt(i, ++place[i]);
    __syncwarp();
  }
}

/// Warp 0: copies the tiles.
template <int head, int consumers, int rowBytes, typename T, typename Rule>
__device__ __forceinline__ void produceKeyTiles(const NsaArgs<T, Rule>& a, const NsaPlace& x,
                                                const NsaBlock<head, consumers, rowBytes>& block) {
  const T* const k = a.k.data + x.b * a.k.batch + x.kvHead * a.k.head;
  const T* const v = a.v.data + x.b * a.v.batch + x.kvHead * a.v.head;
  const int lane = threadIdx.x % 32, words = (x.tokens + 31) / 32;
  int slot = 0;
  uint32_t phase = 0;
  const auto publish = [&](int first, uint64_t bits) {
    if (lane == 0) {
      block.stage(slot).first = first;
      block.stage(slot).bits = bits;
    }
    __syncwarp();
    if (lane == 0) stageBarrierArrive(block.full(slot));
    stageBarrierArriveAfterCopies(block.full(slot));
    if (++slot == block.count) {
      slot = 0;
      phase ^= 1;
    }
  };
  forEachTile(a, x, block.cursors(), [&](int first, int end, auto&& member) {
    const uint64_t bits = keyBitsFrom(a, x.b, first, end);
    stageBarrierWait(block.empty(slot), phase ^ 1);
    copyKeyTile<T, head>(block.tile(slot, 0), k, a.k, first, end, bits);
    copyKeyTile<T, head>(block.tile(slot, 1), v, a.v, first, end, bits);
    for (int i = 0; i < words; ++i) {
      const uint32_t word = member(i);
      if (lane == 0) block.stage(slot).members[i] = word;
    }
    publish(first, bits);
  });
  stageBarrierWait(block.empty(slot), phase ^ 1);
  publish(kNoTile, 0);
}

/// A warp's rows: of lane 4 g + t, rows g and g + 8.
struct NsaRows {
  bool valid[2];
  int token[2];  ///< in the block
  int t[2], h[2];
  int end[2];  ///< the row sees the keys below, of its tiles

  template <int consumers, typename Args>
  __device__ static NsaRows of(const Args& a, const NsaUnits<consumers>& units, const NsaPlace& x, int warp, int g) {
    NsaRows r;
    const int64_t unit = x.firstUnit + warp;
    const int part = static_cast<int>(unit % units.parts);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = g + 8 * i, member = row / units.rowHeads, head = 16 * part + row % units.rowHeads;
      const int64_t t = unit / units.parts * units.tokens + member;
      r.valid[i] = member < units.tokens && head < a.group && t < a.N;
      r.t[i] = r.valid[i] ? static_cast<int>(t) : x.token0;
      r.h[i] = x.kvHead * a.group + (r.valid[i] ? head : 0);
      r.token[i] = r.t[i] - x.token0;
      r.end[i] = r.valid[i] ? visibleEnd(a.rule, a.keys, a.M - a.N + r.t[i]) : 0;
    }
    return r;
  }
};

/// Runs body(maskedTag, slot, limit, bits, groups) for each tile that a row of the warp uses: row i sees the tile's keys
/// below limit[i] that have a bit; no row sees a key from 16 * groups on. Unmasked tiles are seen whole by all rows
/// (`valid` or not: what others would see is nobody's).
template <typename Block, typename Body>
__device__ __forceinline__ void consumeKeyTiles(const Block& block, const NsaRows& rows, Body body) {
  const int lane = threadIdx.x % 32;
  int slot = 0;
  uint32_t phase = 0;
  while (true) {
    stageBarrierWait(block.full(slot), phase);
    const NsaStage& stage = block.stage(slot);
    const int first = stage.first;
    if (first == kNoTile) return;
    int limit[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool member = (stage.members[rows.token[i] / 32] >> (rows.token[i] % 32)) & 1;
      limit[i] = member ? min(rows.end[i] - first, kNsaTile) : 0;  // of rows that are not valid: negative or 0
    }
    if (__any_sync(~0u, max(limit[0], limit[1]) > 0)) {
      const uint64_t bits = stage.bits;
      const bool whole = bits == ~0ull && (limit[0] == kNsaTile || !rows.valid[0]) &&
                         (limit[1] == kNsaTile || !rows.valid[1]);
      if (__all_sync(~0u, whole)) {
        body(std::false_type(), slot, limit, bits, kNsaTile / 16);
      } else {
        int most = max(limit[0], limit[1]);
#pragma unroll
        for (int d = 16; d > 0; d /= 2) most = max(most, __shfl_xor_sync(~0u, most, d));
        most = min(most, 64 - __clzll(bits));
        body(std::true_type(), slot, limit, bits, (most + 15) / 16);
      }
    }
    __syncwarp();
    if (lane == 0) stageBarrierArrive(block.empty(slot));
    if (++slot == block.count) {
      slot = 0;
      phase ^= 1;
    }
  }
}

/// A operands of a warp's 16 rows straight from global memory; zeros for rows that are not valid.
template <typename T, int head>
__device__ __forceinline__ void loadRowOperands(typename Mma16<T>::A (&x)[head / 16], const T* base, const Rows<T>& rows,
                                                const NsaRows& r, int t) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const T* const row = base + r.t[i] * rows.row + r.h[i] * rows.head;
#pragma unroll
    for (int d = 0; d < head / 16; ++d)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int column = 16 * d + 8 * half + 2 * t;
        x[d].r[i + 2 * half] =
            r.valid[i] && column < rows.width ? __ldg(reinterpret_cast<const unsigned int*>(row + column)) : 0u;
      }
  }
}

/// Is column 8 n + 2 t + e of row i hidden?
__device__ __forceinline__ bool hiddenKey(int column, int limit, uint64_t bits) {
  return column >= limit || !((bits >> column) & 1);
}

}  // namespace gatedfwa::cuda
