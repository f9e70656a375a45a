// The query-stationary skeleton of the mma.sync kernels of native sparse attention (forward and dq).
//
// A warp keeps 16 rows: the heads of one token's group (of several tokens if the group is smaller than 16, 16 of them
// if it is larger). Warp 0 of a block copies tiles of K and of V into slots of shared memory, by TMA where there is
// one; the others take the tiles that one of their tokens uses. Neighbouring tokens share what they have both chosen:
// the copying warp walks over the union of their choices in ascending order.
//
// Each warp has a queue of the tiles that are meant for it, so that warps run apart, and a slot is free again as soon
// as the warps that use it are through, whatever happens to older ones. K and V have slots of their own.
#pragma once

#include <cuda.h>

#include "nsa_internal.h"
#include "tensor_map.h"
#include "tile.cuh"

namespace gatedfwa::cuda {

constexpr int kNsaMostTokens = 192;  ///< of a block
constexpr int kNoTile = 0x7fffffff;
constexpr int kNsaMostSlots = 26, kNsaQueue = 16;
constexpr int kNsaPanelBytes = 64 * 128;

// ---- mbarriers (sm_80)

__device__ __forceinline__ void stageBarrierInit(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void stageBarrierArrive(uint32_t barrier) {
#if GATEDFWA_TENSOR_CORES
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}\n" ::"r"(barrier) : "memory");
#endif
}
/// Arrives, and lets the phase wait for `bytes` of bulk copies as well (sm_90).
__device__ __forceinline__ void stageBarrierExpect(uint32_t barrier, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes) : "memory");
#endif
}
/// Starts the copy of 64 rows x 64 elements (sm_90); `barrier` counts its bytes.
__device__ __forceinline__ void copyPanel(uint32_t panel, const CUtensorMap& map, int element, int row, int h, int b,
                                          uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
      "[%6];\n" ::"r"(panel),
      "l"(reinterpret_cast<uint64_t>(&map)), "r"(element), "r"(row), "r"(h), "r"(b), "r"(barrier)
      : "memory");
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
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
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

// ---- words of shared memory

__device__ __forceinline__ void storeShared(uint32_t address, uint32_t x) {
  asm volatile("st.shared.u32 [%0], %1;\n" ::"r"(address), "r"(x) : "memory");
}
/// What other threads wrote before they released the word is visible afterwards.
__device__ __forceinline__ uint32_t acquireShared(uint32_t address) {
  uint32_t x = 0;
#if GATEDFWA_TENSOR_CORES
  asm volatile("ld.acquire.cta.shared.u32 %0, [%1];\n" : "=r"(x) : "r"(address) : "memory");
#endif
  return x;
}
__device__ __forceinline__ void releaseShared(uint32_t address, uint32_t x) {
#if GATEDFWA_TENSOR_CORES
  asm volatile("st.release.cta.shared.u32 [%0], %1;\n" ::"r"(address), "r"(x) : "memory");
#endif
}
__device__ __forceinline__ void decrementShared(uint32_t address) {
#if GATEDFWA_TENSOR_CORES
  asm volatile("red.release.cta.shared.add.u32 [%0], %1;\n" ::"r"(address), "r"(~0u) : "memory");
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

/// Address of a tile's operands: panels of 64 rows x 64 elements, 128-byte rows whose 16-byte chunks are swizzled.
/// `byte0`: of the row, a multiple of 32.
__device__ __forceinline__ uint32_t panelAddress(uint32_t tile, LaneOffset lane, int row0, int byte0) {
  return fragmentAddress<128>(tile + byte0 / 128 * kNsaPanelBytes, lane, row0, byte0 % 128);
}
/// 16 rows of depth from row0 on, 16 columns from column0 on.
template <typename P>
__device__ __forceinline__ typename P::B loadPanelTransposed(uint32_t tile, int lane, int row0, int column0) {
  return P::template loadTransposed<128>(tile + column0 / 64 * kNsaPanelBytes, lane, row0, column0 % 64);
}

/// Rows [first, first + 64) that have a bit, the others as zeros, by one warp.
template <typename T, int head>
__device__ __forceinline__ void copyPanels(uint32_t tile, const T* base, const Rows<T>& rows, int first,
                                           uint64_t bits) {
  constexpr int chunks = head / 8, step = 32 / chunks;
  const int lane = threadIdx.x % 32, chunk = lane % chunks, row0 = lane / chunks;
  const bool inside = chunk * 8 < rows.width;
  const T* source = base + (static_cast<int64_t>(first) + row0) * rows.row + chunk * 8;
  const uint32_t to = tile + chunk / 8 * kNsaPanelBytes;
#pragma unroll 8
  for (int row = row0; row < kNsaTile; row += step) {
    const bool valid = inside && ((bits >> row) & 1);
    copyAsync16(chunkAddress<128>(to, row, chunk % 8), valid ? source : base, valid);
    source += step * rows.row;
  }
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

/// A tile for a warp.
struct NsaEntry {
  uint64_t bits;      ///< keys that may be seen
  int first;          ///< key, or kNoTile: there are no more
  uint32_t members;   ///< a bit per token of the warp
  uint32_t slots[2];  ///< of K and V: 2 * slot + parity
};

/// Shared memory: the slots, `rowBytes` for each consumer warp, the queues, barriers and counters.
template <int head, int consumers, int rowBytes = 0>
struct NsaBlock {
  static constexpr int kTileBytes = kNsaTile * head * 2, kRows = consumers * rowBytes;
  static constexpr int kEntries = consumers * kNsaQueue * static_cast<int>(sizeof(NsaEntry));
  static constexpr int kRest = kRows + kEntries + 8 * kNsaMostSlots + 4 * kNsaMostSlots + 4 * 32;
  static_assert(consumers * 16 <= kNsaMostTokens, "");
  static int slots(size_t limit) {
    return static_cast<int>(std::min<size_t>(kNsaMostSlots, (limit - kRest) / kTileBytes));
  }
  static size_t bytes(int slots) { return kRest + static_cast<size_t>(slots) * kTileBytes; }

  unsigned char* shared;
  int count;  ///< of slots
  __device__ NsaBlock(unsigned char* memory, int slotCount) : shared(memory), count(slotCount) {}
  __device__ __forceinline__ unsigned char* rest() const { return shared + count * kTileBytes; }
  __device__ __forceinline__ uint32_t tile(int slot) const { return sharedAddress(shared) + slot * kTileBytes; }
  __device__ __forceinline__ uint32_t warpRows(int warp) const { return sharedAddress(rest()) + warp * rowBytes; }
  __device__ __forceinline__ NsaEntry& entry(int warp, int place) const {
    return reinterpret_cast<NsaEntry*>(rest() + kRows)[warp * kNsaQueue + place % kNsaQueue];
  }
  __device__ __forceinline__ uint32_t full(int slot) const {
    return sharedAddress(rest()) + kRows + kEntries + 8 * slot;
  }
  /// How many warps still use a slot.
  __device__ __forceinline__ uint32_t users(int slot) const {
    return sharedAddress(rest()) + kRows + kEntries + 8 * kNsaMostSlots + 4 * slot;
  }
  /// How many entries a warp's queue has had.
  __device__ __forceinline__ uint32_t tail(int warp) const { return users(kNsaMostSlots) + 4 * warp; }
  /// `bulk`: the copies are TMA's.
  __device__ __forceinline__ void initialise(bool bulk) const {
    const int i = threadIdx.x;
    if (i < count) {
      stageBarrierInit(full(i), bulk ? 1 : 32);
      storeShared(users(i), 0);
    }
    if (i < 32) storeShared(tail(i), 0);
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
#endif
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

/// Calls visit(first, end, members) for each key tile that a token of the block uses, in ascending order; members(i,
/// n): a bit for each of the block's tokens i .. i + n - 1 (n <= 16) that uses it. By one warp.
template <typename T, typename Visit>
__device__ __forceinline__ void forEachTile(const NsaArgs<T, CompressedRule>& a, const NsaPlace& x, Visit visit) {
  const int end = visibleEnd(a.rule, a.keys, a.M - a.N + x.token0 + x.tokens - 1);
  for (int first = 0; first < end; first += kNsaTile)
    visit(first, a.keys, [&](int i, int n) { return i < x.tokens ? (1u << min(n, x.tokens - i)) - 1 : 0u; });
}
/// Lane i walks along the choices of tokens i, i + 32, ..; each choice is loaded a step before it is needed.
template <int rounds, typename T, typename Visit>
__device__ __forceinline__ void forEachSelectedTile(const NsaArgs<T, SelectedRule>& a, const NsaPlace& x, Visit visit) {
  const int lane = threadIdx.x % 32, length = a.rule.selectionBlock, position0 = a.M - a.N + x.token0;
  const int* const indices = a.rule.indices + x.b * a.rule.batch + x.token0 * a.rule.row + x.kvHead * a.rule.head;
  const auto blockAt = [&](int token, int i) {
    if (token >= x.tokens || i >= a.rule.topN) return kNoTile;
    const int block = __ldg(indices + token * a.rule.row + i * a.rule.element);
    return block < 0 ? kNoTile : block;
  };
  int next[rounds], after[rounds], place[rounds];
#pragma unroll
  for (int r = 0; r < rounds; ++r) {
    next[r] = blockAt(32 * r + lane, 0);
    after[r] = blockAt(32 * r + lane, 1);
    place[r] = 2;
  }
  while (true) {
    int block = next[0];
#pragma unroll
    for (int r = 1; r < rounds; ++r) block = min(block, next[r]);
    block = __reduce_min_sync(~0u, block);
    if (block == kNoTile) return;
    const int64_t begin = static_cast<int64_t>(block) * length;
    if (begin >= position0 + x.tokens) return;  // behind all queries, as are the later ones
    const int end = static_cast<int>(min(begin + length, static_cast<int64_t>(a.keys)));
    uint32_t used[rounds + 1];
#pragma unroll
    for (int r = 0; r < rounds; ++r) used[r] = __ballot_sync(~0u, next[r] == block);
    used[rounds] = 0;
    const auto members = [&](int i, int n) {
      uint32_t low = 0, high = 0;
#pragma unroll
      for (int r = 0; r < rounds; ++r)
        if (i / 32 == r) low = used[r], high = used[r + 1];
      return __funnelshift_r(low, high, i % 32) & ((1u << n) - 1);
    };
    const int seen = min(end, position0 + x.tokens);  // by the last token
    for (int first = static_cast<int>(begin); first < seen; first += kNsaTile) visit(first, end, members);
#pragma unroll
    for (int r = 0; r < rounds; ++r)
      if (next[r] == block) {
        next[r] = after[r];
        after[r] = blockAt(32 * r + lane, place[r]++);
      }
  }
}
template <typename T, typename Visit>
__device__ __forceinline__ void forEachTile(const NsaArgs<T, SelectedRule>& a, const NsaPlace& x, Visit visit) {
  if (x.tokens <= 32)
    forEachSelectedTile<1>(a, x, visit);
  else
    forEachSelectedTile<kNsaMostTokens / 32>(a, x, visit);
}

/// Warp 0: copies the tiles. `bulk`: by the tensor maps.
template <int head, int consumers, int rowBytes, typename T, typename Rule>
__device__ __forceinline__ void produceKeyTiles(const NsaArgs<T, Rule>& a, const NsaUnits<consumers>& units,
                                                const NsaPlace& x, const NsaBlock<head, consumers, rowBytes>& block,
                                                bool bulk, const CUtensorMap& mapK, const CUtensorMap& mapV) {
  const T* const k = a.k.data + x.b * a.k.batch + x.kvHead * a.k.head;
  const T* const v = a.v.data + x.b * a.v.batch + x.kvHead * a.v.head;
  const int lane = threadIdx.x % 32;
  // Lane i knows the queue and the tokens of consumer warp i, and slot i.
  const int token0 = static_cast<int>((x.firstUnit + lane) / units.parts) * units.tokens - x.token0;
  uint32_t tail = 0, phase = 0, free = 0;  // free: a bit per slot that is known to be
  const auto publish = [&](const NsaEntry& entry) {
    block.entry(lane, tail) = entry;
    releaseShared(block.tail(lane), ++tail);
  };
  const auto takeSlot = [&](uint32_t taken) {  // taken: whose users have not been noted yet
    while (free == 0) free = __ballot_sync(~0u, lane < block.count && acquireShared(block.users(lane)) == 0) & ~taken;
    const int slot = __ffs(free) - 1;
    free &= free - 1;
    return slot;
  };
  forEachTile(a, x, [&](int first, int end, auto&& members) {
    NsaEntry entry{keyBitsFrom(a, x.b, first, end), first, 0, {0, 0}};
    if (lane < consumers && token0 < x.tokens) entry.members = members(token0, units.tokens);
    const bool mine = entry.members != 0;
    const int users = __popc(__ballot_sync(~0u, mine));
    int slots[2];
    slots[0] = takeSlot(0);
    slots[1] = takeSlot(1u << slots[0]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      entry.slots[i] = 2 * slots[i] + (__shfl_sync(~0u, phase, slots[i]) & 1);
      if (lane == slots[i]) {
        storeShared(block.users(lane), users);
        ++phase;
      }
    }
    if (bulk) {
      constexpr int panels = head / 64;
      const int tensor = lane / panels, panel = lane % panels;
      if (tensor < 2) {  // a panel a lane
        const int slot = tensor == 0 ? slots[0] : slots[1];
        if (panel == 0) stageBarrierExpect(block.full(slot), head * 128);
        copyPanel(block.tile(slot) + panel * kNsaPanelBytes, tensor == 0 ? mapK : mapV, 64 * panel, first, x.kvHead,
                  x.b, block.full(slot));
      }
    } else {
      copyPanels<T, head>(block.tile(slots[0]), k, a.k, first, entry.bits);
      stageBarrierArriveAfterCopies(block.full(slots[0]));
      copyPanels<T, head>(block.tile(slots[1]), v, a.v, first, entry.bits);
      stageBarrierArriveAfterCopies(block.full(slots[1]));
    }
    __syncwarp();  // users
    if (mine) publish(entry);
  });
  if (lane < consumers) publish({0, kNoTile, 0, {0, 0}});
}

/// A warp's rows: of lane 4 g + t, rows g and g + 8.
struct NsaRows {
  bool valid[2];
  int member[2];  ///< which of the warp's tokens
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
      r.member[i] = member;
      r.end[i] = r.valid[i] ? visibleEnd(a.rule, a.keys, a.M - a.N + r.t[i]) : 0;
    }
    return r;
  }
};

/// A consumer warp's tiles, and what it has to do with their slots.
template <typename Block>
struct NsaTile {
  const Block& block;
  uint32_t slots[2];

  /// Waits for K (0) or V (1); its address.
  __device__ __forceinline__ uint32_t wait(int i) const {
    stageBarrierWait(block.full(slots[i] / 2), slots[i] & 1);
    return block.tile(slots[i] / 2);
  }
  /// The warp is through with K or V.
  __device__ __forceinline__ void release(int i) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) decrementShared(block.users(slots[i] / 2));
  }
};

/// Runs body(maskedTag, tile, limit, bits, groups) for each tile that a row of the warp uses: row i sees the tile's
/// keys below limit[i] that have a bit; no row sees a key from 16 * groups on. Unmasked tiles are seen whole by all
/// rows
/// (`valid` or not: what others would see is nobody's). The body waits for K and V and releases them.
template <typename Block, typename Body>
__device__ __forceinline__ void consumeKeyTiles(const Block& block, const NsaRows& rows, int warp, Body body) {
  for (uint32_t head = 0;; ++head) {
    while (acquireShared(block.tail(warp)) == head) __nanosleep(32);
    const NsaEntry entry = block.entry(warp, head);
    if (entry.first == kNoTile) return;
    const NsaTile<Block> tile{block, {entry.slots[0], entry.slots[1]}};
    int limit[2];
#pragma unroll
    for (int i = 0; i < 2; ++i)  // of rows that are not valid: negative or 0
      limit[i] = (entry.members >> rows.member[i]) & 1 ? min(rows.end[i] - entry.first, kNsaTile) : 0;
    const bool whole =
        entry.bits == ~0ull && (limit[0] == kNsaTile || !rows.valid[0]) && (limit[1] == kNsaTile || !rows.valid[1]);
    if (__all_sync(~0u, whole)) {
      body(std::false_type(), tile, limit, entry.bits, kNsaTile / 16);
      continue;
    }
    int most = max(limit[0], limit[1]);
#pragma unroll
    for (int d = 16; d > 0; d /= 2) most = max(most, __shfl_xor_sync(~0u, most, d));
    most = min(most, 64 - __clzll(entry.bits));
    if (most > 0) {
      body(std::true_type(), tile, limit, entry.bits, (most + 15) / 16);
    } else {
      // The copies must have landed before their slots are used again.
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        tile.wait(i);
        tile.release(i);
      }
    }
  }
}

/// A operands of a warp's 16 rows straight from global memory; zeros for rows that are not valid.
template <typename T, int head>
__device__ __forceinline__ void loadRowOperands(typename Mma16<T>::A (&x)[head / 16], const T* base,
                                                const Rows<T>& rows, const NsaRows& r, int t) {
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

/// How TMA sees K and V. It knows nothing of masks, and tiles that end with their block must not bring others' keys.
struct NsaKeyMaps {
  bool bulk;
  CUtensorMap k{}, v{};

  static bool wholeTiles(const CompressedRule&) { return true; }
  static bool wholeTiles(const SelectedRule& rule) { return rule.selectionBlock % kNsaTile == 0; }
  template <typename T, typename Rule>
  explicit NsaKeyMaps(const NsaArgs<T, Rule>& a) : bulk(a.bulk && !a.keyBits && a.keys > 0 && wholeTiles(a.rule)) {
    if (bulk)
      bulk = encodeRows(&k, a.k, a.batch, a.keys, a.kvHeads) == cudaSuccess &&
             encodeRows(&v, a.v, a.batch, a.keys, a.kvHeads) == cudaSuccess;
  }
};

/// Is column 8 n + 2 t + e of row i hidden?
__device__ __forceinline__ bool hiddenKey(int column, int limit, uint64_t bits) {
  return column >= limit || !((bits >> column) & 1);
}

}  // namespace gatedfwa::cuda
