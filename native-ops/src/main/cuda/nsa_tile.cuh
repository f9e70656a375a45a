// The query-stationary skeleton of the mma.sync kernels of native sparse attention (forward and dq).
//
// A warp keeps 16 rows: the heads of one token's group (of several tokens if the group is smaller than 16, 16 of them
// if it is larger). Warp 0 of a block copies tiles of K and of V into slots of shared memory, by TMA where there is
// one; the others take the tiles that one of their tokens uses. Neighbouring tokens share what they have both chosen:
// the copying warp walks over the union of their choices in ascending order.
//
// Each warp has a queue of the tiles that are meant for it, so that warps run apart, and a slot is free again as soon
// as the warps that use it are through, whatever happens to older ones. K and V have slots of their own. All of that
// goes by mbarriers, on which all lanes of a warp arrive (racecheck does not follow one lane's arrival for its warp).
//
// Blocks are persistent, one per multiprocessor: they take items (the tokens that their warps keep at a time) from a
// counter, and the copying warp is in the next item while the others end theirs.
#pragma once

#include <cuda.h>

#include "nsa_internal.h"
#include "tensor_map.h"
#include "tile.cuh"

namespace gatedfwa::cuda {

constexpr int kNsaMostTokens = 192;  ///< of a block
constexpr int kNoTile = 0x7fffffff;
constexpr int kNsaMostSlots = 26;
constexpr int kNsaChoices = 16;  ///< of a token: that many are copied ahead
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
/// Arrives `count` times; others must still be expected.
__device__ __forceinline__ void stageBarrierArriveMany(uint32_t barrier, int count) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(count) : "memory");
#elif GATEDFWA_TENSOR_CORES
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.noComplete.shared.b64 state, [%0], %1;\n}\n" ::"r"(barrier),
               "r"(count)
               : "memory");
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
/// The same of all panels at once, where a row is as wide as the tile.
__device__ __forceinline__ void copyWholeRows(uint32_t tile, const CUtensorMap& map, int row, int h, int b,
                                              uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %2, %4, %5}], "
      "[%6];\n" ::"r"(tile),
      "l"(reinterpret_cast<uint64_t>(&map)), "r"(0), "r"(row), "r"(h), "r"(b), "r"(barrier)
      : "memory");
#endif
}
/// Arrives once this thread's copies so far are there.
__device__ __forceinline__ void stageBarrierArriveAfterCopies(uint32_t barrier) {
#if GATEDFWA_TENSOR_CORES
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];\n" ::"r"(barrier) : "memory");
#endif
}
/// Is the phase of this parity complete (parity 1 of a fresh barrier is)?
__device__ __forceinline__ bool stageBarrierTest(uint32_t barrier, uint32_t parity) {
  uint32_t done = 0;
#if GATEDFWA_TENSOR_CORES
  asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
               : "=r"(done)
               : "r"(barrier), "r"(parity)
               : "memory");
#endif
  return done != 0;
}
/// Waits until it is.
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

/// How tiles are copied: by cp.async, by a bulk copy for each panel, or by one (rows as wide as the tile).
enum class NsaCopies { Async, Panels, Whole };

/// Which tokens and heads the warps of a block have.
template <int consumers>
struct NsaUnits {
  unsigned rowHeads;  ///< heads of a token in one warp
  unsigned tokens;    ///< of a warp
  unsigned parts;     ///< warps of a token
  unsigned items;     ///< of one (batch entry, key/value head)

  __host__ __device__ NsaUnits(int group, int N)
      : rowHeads(group < 16 ? group : 16), tokens(16 / rowHeads), parts((group + 15) / 16) {
    const unsigned units = (N + tokens - 1) / tokens * parts;  // below 2^30 + batch x heads x length / 16
    items = (units + consumers - 1) / consumers;
  }
};

/// A tile for a warp, or the end of its item.
struct alignas(16) NsaEntry {
  int first;         ///< key, or kNoTile at the end
  int end;           ///< of the keys; at the end the next item, or -1
  uint32_t members;  ///< a bit per token of the warp
  uint32_t slots;    ///< 2 * slot + parity of K, and of V above 16 bits
};

/// Shared memory: the slots, `rowBytes` for each consumer warp, the queues, choices of two items, barriers.
template <int head, int consumers, int rowBytes = 0>
struct NsaBlock {
  static constexpr int kTileBytes = kNsaTile * head * 2, kRows = consumers * rowBytes;
  static constexpr int kQueue = head == 64 ? 16 : 8, kHalfQueue = kQueue / 2;
  static constexpr int kEntries = consumers * kQueue * static_cast<int>(sizeof(NsaEntry));
  static constexpr int kChoiceTokens = 2 * consumers, kChoiceRow = kNsaChoices + 1;  // odd: no bank conflicts
  static_assert(kChoiceTokens <= 32, "a lane each");
  static constexpr int kBarriers = kRows + kEntries + 2 * kChoiceTokens * kChoiceRow * 4;
  static constexpr int kBarrierCount = 2 * kNsaMostSlots + consumers * (kQueue + 2);
  static constexpr int kRest = kBarriers + 8 * kBarrierCount;
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
    return reinterpret_cast<NsaEntry*>(rest() + kRows)[warp * kQueue + place % kQueue];
  }
  __device__ __forceinline__ int* choices(int buffer, int token) const {
    return reinterpret_cast<int*>(rest() + kRows + kEntries) + (kChoiceTokens * buffer + token) * kChoiceRow;
  }
  __device__ __forceinline__ uint32_t barrier(int i) const { return sharedAddress(rest()) + kBarriers + 8 * i; }
  /// The copy into a slot has landed.
  __device__ __forceinline__ uint32_t full(int slot) const { return barrier(slot); }
  /// All warps are through with a slot; those that do not use it count as such.
  __device__ __forceinline__ uint32_t freed(int slot) const { return barrier(kNsaMostSlots + slot); }
  /// An entry is there.
  __device__ __forceinline__ uint32_t queued(int warp, int place) const {
    return barrier(2 * kNsaMostSlots + warp * kQueue + place % kQueue);
  }
  /// The warp has read the entries of half a queue.
  __device__ __forceinline__ uint32_t taken(int warp, int place) const {
    return barrier(2 * kNsaMostSlots + consumers * kQueue + 2 * warp + place / kHalfQueue % 2);
  }
  __device__ __forceinline__ void initialise(NsaCopies copies) const {
    for (int i = threadIdx.x; i < kBarrierCount; i += blockDim.x) {
      const int arrivals = i < kNsaMostSlots                            ? (copies == NsaCopies::Async ? 32 : 1)
                           : i < 2 * kNsaMostSlots                      ? 32 * consumers
                           : i < 2 * kNsaMostSlots + consumers * kQueue ? 1
                                                                        : 32;
      stageBarrierInit(barrier(i), arrivals);
    }
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
#endif
    __syncthreads();
  }
};

/// An item's place: its batch entry, key/value head and tokens [token0, token0 + tokens).
struct NsaPlace {
  int b, kvHead, token0, tokens;
  unsigned firstUnit;

  template <int consumers, typename Args>
  __device__ static NsaPlace of(const Args& a, const NsaUnits<consumers>& units, unsigned item) {
    NsaPlace x;
    const unsigned bh = item / units.items, kvHeads = a.kvHeads;
    x.b = bh / kvHeads;
    x.kvHead = bh % kvHeads;
    // The last tokens see most: they come first.
    x.firstUnit = (units.items - 1 - item % units.items) * consumers;
    x.token0 = x.firstUnit / units.parts * units.tokens;
    const unsigned end = ((x.firstUnit + consumers - 1) / units.parts + 1) * units.tokens;
    x.tokens = static_cast<int>(min(end, static_cast<unsigned>(a.N))) - x.token0;
    return x;
  }
};

/// Calls visit(first, end, members) for each key tile that a token of the item uses, in ascending order; members(i,
/// n): a bit for each of the item's tokens i .. i + n - 1 (n <= 16) that uses it. By one warp. `staged`: the choices
/// of token `lane`, if they were copied ahead.
template <typename T, typename Visit>
__device__ __forceinline__ void forEachTile(const NsaArgs<T, CompressedRule>& a, const NsaPlace& x, const int*,
                                            Visit visit) {
  const int end = visibleEnd(a.rule, a.keys, a.M - a.N + x.token0 + x.tokens - 1);
  for (int first = 0; first < end; first += kNsaTile)
    visit(first, a.keys, [&](int i, int n) { return i < x.tokens ? (1u << min(n, x.tokens - i)) - 1 : 0u; });
}
/// Lane i walks along the choices of tokens i, i + 32, ..; each choice is loaded a step before it is needed.
/// choiceOf(token, i): the token's i-th choice.
template <int rounds, typename T, typename Choice, typename Visit>
__device__ __forceinline__ void forEachSelectedTile(const NsaArgs<T, SelectedRule>& a, const NsaPlace& x,
                                                    Choice choiceOf, Visit visit) {
  const int lane = threadIdx.x % 32, length = a.rule.selectionBlock, position0 = a.M - a.N + x.token0;
  const unsigned behind = static_cast<unsigned>(position0 + x.tokens - 1) / length;  // the last query's block
  const auto blockAt = [&](int token, int i) {  // a block behind all queries counts as none, and so do later ones
    if (token >= x.tokens || i >= a.rule.topN) return kNoTile;
    const int block = choiceOf(token, i);
    return static_cast<unsigned>(block) > behind ? kNoTile : block;
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
    const int begin = block * length, end = begin + min(length, a.keys - begin);
    uint32_t used[rounds + 1];
#pragma unroll
    for (int r = 0; r < rounds; ++r) used[r] = __ballot_sync(~0u, next[r] == block);
    used[rounds] = 0;
#pragma unroll
    for (int r = 0; r < rounds; ++r)
      if (next[r] == block) {
        next[r] = after[r];
        after[r] = blockAt(32 * r + lane, place[r]++);
      }
    const auto members = [&](int i, int n) {
      uint32_t low = used[0], high = rounds > 1 ? used[1] : 0;
#pragma unroll
      for (int r = 1; r < rounds; ++r)
        if (i / 32 == r) low = used[r], high = used[r + 1];
      return __funnelshift_r(low, high, i) & ((1u << n) - 1);
    };
    const int seen = min(end, position0 + x.tokens);  // by the last token
    for (int first = begin; first < seen; first += kNsaTile) visit(first, end, members);
  }
}
template <typename T>
__device__ __forceinline__ const int* choicesOf(const NsaArgs<T, SelectedRule>& a, const NsaPlace& x) {
  return a.rule.indices + x.b * a.rule.batch + x.token0 * a.rule.row + x.kvHead * a.rule.head;
}
template <typename T, typename Visit>
__device__ __forceinline__ void forEachTile(const NsaArgs<T, SelectedRule>& a, const NsaPlace& x, const int* staged,
                                            Visit visit) {
  const int* const indices = choicesOf(a, x);
  const auto choiceOf = [&](int token, int i) {
    return staged ? staged[i] : __ldg(indices + token * a.rule.row + i * a.rule.element);
  };
  if (x.tokens <= 32)
    forEachSelectedTile<1>(a, x, choiceOf, visit);
  else
    forEachSelectedTile<kNsaMostTokens / 32>(a, x, choiceOf, visit);
}
/// Starts the copy of the item's choices, a token a lane; false if there are too many. The same for all items.
template <int head, int consumers, int rowBytes, typename T>
__device__ __forceinline__ bool stageChoices(const NsaArgs<T, CompressedRule>&, const NsaUnits<consumers>&,
                                             const NsaBlock<head, consumers, rowBytes>&, int64_t, int) {
  return false;
}
template <int head, int consumers, int rowBytes, typename T>
__device__ __forceinline__ bool stageChoices(const NsaArgs<T, SelectedRule>& a, const NsaUnits<consumers>& units,
                                             const NsaBlock<head, consumers, rowBytes>& block, int64_t item,
                                             int buffer) {
  if (units.tokens * consumers > block.kChoiceTokens || a.rule.topN > kNsaChoices) return false;
  if (item >= 0) {
    const NsaPlace x = NsaPlace::of(a, units, item);
    const int lane = threadIdx.x % 32;
    if (lane < x.tokens) {
      const int* const from = choicesOf(a, x) + lane * a.rule.row;
      const uint32_t to = sharedAddress(block.choices(buffer, lane));
      for (int i = 0; i < a.rule.topN; ++i) copyAsync4(to + 4 * i, from + i * a.rule.element);
    }
  }
  copyCommit();
  return true;
}

/// Warp 0: copies the tiles of the block's items.
template <int head, int consumers, int rowBytes, typename T, typename Rule>
__device__ __forceinline__ void produceKeyTiles(const NsaArgs<T, Rule>& a, const NsaUnits<consumers>& units,
                                                const NsaBlock<head, consumers, rowBytes>& block, NsaCopies copies,
                                                const CUtensorMap& mapK, const CUtensorMap& mapV) {
  using Block = NsaBlock<head, consumers, rowBytes>;
  const int lane = threadIdx.x % 32;
  const int64_t items = a.batch * a.kvHeads * units.items;
  const auto takeItem = [&] { return lane == 0 ? atomicAdd(a.itemsTaken, 1u) : 0u; };
  // Lane i knows the queue of consumer warp i. A bit per slot: known to be free; the parity of its next use.
  uint32_t tail = 0, free = 0, parities = 0;
  const auto publish = [&](const NsaEntry& entry) {
    if (tail % Block::kHalfQueue == 0) stageBarrierWait(block.taken(lane, tail), ~(tail / Block::kQueue) & 1);
    block.entry(lane, tail) = entry;
    stageBarrierArrive(block.queued(lane, tail));
    ++tail;
  };
  int64_t item = blockIdx.x;
  uint32_t itemTaken = takeItem();
  stageChoices(a, units, block, item, 0);
  for (int count = 0; item >= 0; ++count) {
    const int64_t following = static_cast<int64_t>(gridDim.x) + __shfl_sync(~0u, itemTaken, 0);
    const int64_t nextItem = following < items ? following : -1;
    itemTaken = takeItem();  // of the item after: a round trip to L2
    const int* staged = nullptr;
    if (stageChoices(a, units, block, nextItem, (count + 1) % 2)) {
      copyWaitAllButOne();
      staged = block.choices(count % 2, lane);
    }
    const NsaPlace x = NsaPlace::of(a, units, item);
    // Lane i's consumer warp has these tokens.
    const int token0 = min(static_cast<int>((x.firstUnit + lane) / units.parts * units.tokens) - x.token0, x.tokens);
    const int tokens = lane < consumers && token0 < x.tokens ? static_cast<int>(units.tokens) : 0;
    forEachTile(a, x, staged, [&](int first, int end, auto&& members) {
      NsaEntry entry{first, end, members(token0, tokens), 0};
      const bool mine = entry.members != 0;
      const int others = 32 * (consumers - __popc(__ballot_sync(~0u, mine)));
      while (__popc(free) < 2) {
        free = __ballot_sync(~0u, lane < block.count && stageBarrierTest(block.freed(lane), ~(parities >> lane) & 1));
        __syncwarp();  // orders lane 0's copies behind what another lane has seen, which a ballot does not
      }
      int slots[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        slots[i] = __ffs(free) - 1;
        free &= free - 1;
        entry.slots |= (2 * slots[i] + ((parities >> slots[i]) & 1)) << (16 * i);
      }
      parities ^= 1u << slots[0] | 1u << slots[1];
      if (lane == 0) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (others > 0) stageBarrierArriveMany(block.freed(slots[i]), others);
          if (copies == NsaCopies::Async) continue;
          const CUtensorMap& map = i == 0 ? mapK : mapV;
          stageBarrierExpect(block.full(slots[i]), head * 128);
          if (copies == NsaCopies::Whole) {
            copyWholeRows(block.tile(slots[i]), map, first, x.kvHead, x.b, block.full(slots[i]));
          } else {
#pragma unroll
            for (int panel = 0; panel < head / 64; ++panel)
              copyPanel(block.tile(slots[i]) + panel * kNsaPanelBytes, map, 64 * panel, first, x.kvHead, x.b,
                        block.full(slots[i]));
          }
        }
      }
      if (copies == NsaCopies::Async) {
        // Every lane copies, so every lane sees for itself that the slots are free (racecheck asks for that).
#pragma unroll
        for (int i = 0; i < 2; ++i) stageBarrierWait(block.freed(slots[i]), (entry.slots >> (16 * i) ^ 1) & 1);
        const uint64_t bits = keyBitsFrom(a, x.b, first, end);
        copyPanels<T, head>(block.tile(slots[0]), a.k.data + x.b * a.k.batch + x.kvHead * a.k.head, a.k, first, bits);
        stageBarrierArriveAfterCopies(block.full(slots[0]));
        copyPanels<T, head>(block.tile(slots[1]), a.v.data + x.b * a.v.batch + x.kvHead * a.v.head, a.v, first, bits);
        stageBarrierArriveAfterCopies(block.full(slots[1]));
      }
      __syncwarp();  // the arrivals for the others come first
      if (mine) publish(entry);
    });
    if (lane < consumers) publish({kNoTile, static_cast<int>(nextItem), 0, 0});
    __syncwarp();
    item = nextItem;
  }
}

/// A warp's rows: of lane 4 g + t, rows g and g + 8.
struct NsaRows {
  bool valid[2];
  int t[2], h[2];
  int member[2];  ///< which of the warp's tokens
  int end[2];     ///< the row sees the keys below, of its tiles; rows that are not valid see what member 0 uses

  template <int consumers, typename Args>
  __device__ static NsaRows of(const Args& a, const NsaUnits<consumers>& units, const NsaPlace& x, int warp, int g) {
    NsaRows r;
    const unsigned unit = x.firstUnit + warp, part = unit % units.parts;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const unsigned row = g + 8 * i, member = row / units.rowHeads, head = 16 * part + row % units.rowHeads;
      const unsigned t = unit / units.parts * units.tokens + member;
      r.valid[i] = member < units.tokens && head < static_cast<unsigned>(a.group) && t < static_cast<unsigned>(a.N);
      r.t[i] = r.valid[i] ? static_cast<int>(t) : x.token0;
      r.h[i] = x.kvHead * a.group + (r.valid[i] ? static_cast<int>(head) : 0);
      r.member[i] = r.valid[i] ? static_cast<int>(member) : 0;
      r.end[i] = r.valid[i] ? visibleEnd(a.rule, a.keys, a.M - a.N + r.t[i]) : kNoTile;
    }
    return r;
  }
};

/// An item whose place is computed again rather than kept: the loop over tiles has no registers to spare.
__device__ __forceinline__ int again(int item) {
  asm volatile("" : "+r"(item));
  return item;
}

/// Keeps the compiler from computing the addresses of all fragments before a loop: there are no registers for them.
__device__ __forceinline__ void notHeld(LaneOffset& x, LaneOffset& y, int& lane) {
  asm volatile("" : "+r"(x.row), "+r"(x.swizzle), "+r"(y.row), "+r"(y.swizzle), "+r"(lane));
}

/// A consumer warp's tiles, and what it has to do with their slots.
template <typename Block>
struct NsaTile {
  const Block& block;
  uint32_t slots;

  __device__ __forceinline__ uint32_t slot(int i) const { return (slots >> (16 * i)) & 0xffff; }
  /// Waits for K (0) or V (1); its address.
  __device__ __forceinline__ uint32_t wait(int i) const {
    stageBarrierWait(block.full(slot(i) / 2), slot(i) & 1);
    return block.tile(slot(i) / 2);
  }
  /// The warp is through with K or V. Its reads are ordinary ones, and the bulk copy that comes next is not: without a
  /// fence between the two kinds, reads under way have met the next tile's bytes (one tile in 10^7).
  __device__ __forceinline__ void release(int i) const {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
#endif
    stageBarrierArrive(block.freed(slot(i) / 2));
  }
};

/// Runs body(maskedTag, tile, limit, bits, groups) for each tile that a row of the warp uses in this item, and returns
/// the next item, -1 if there is none. `head`: of the queue, 0 before the first item. Row i sees the tile's keys below
/// limit[i] that have a bit; no row sees a key from 16 * groups on. Unmasked tiles are seen whole by all rows (`valid`
/// or not: what others would see is nobody's). The body waits for K and V and releases them.
template <typename Block, typename Args, typename Body>
__device__ __forceinline__ int consumeKeyTiles(const Args& a, const Block& block, int b, const NsaRows& rows, int warp,
                                               uint32_t& head, Body body) {
  while (true) {
    stageBarrierWait(block.queued(warp, head), head / Block::kQueue & 1);
    const NsaEntry entry = block.entry(warp, head);
    if (head % Block::kHalfQueue == Block::kHalfQueue - 1) stageBarrierArrive(block.taken(warp, head));
    ++head;
    if (entry.first == kNoTile) return entry.end;
    const NsaTile<Block> tile{block, entry.slots};
    const uint64_t bits = keyBitsFrom(a, b, entry.first, entry.end);
    int limit[2];
#pragma unroll
    for (int i = 0; i < 2; ++i)
      limit[i] = (entry.members >> rows.member[i]) & 1 ? min(rows.end[i] - entry.first, kNsaTile) : 0;
    if (__all_sync(~0u, bits == ~0ull && min(limit[0], limit[1]) == kNsaTile)) {
      body(std::false_type(), tile, limit, bits, kNsaTile / 16);
      continue;
    }
    int most = max(limit[0], limit[1]);
#pragma unroll
    for (int d = 16; d > 0; d /= 2) most = max(most, __shfl_xor_sync(~0u, most, d));
    most = min(most, 64 - __clzll(bits));
    if (most > 0) {
      body(std::true_type(), tile, limit, bits, (most + 15) / 16);
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
  NsaCopies copies = NsaCopies::Async;
  CUtensorMap k{}, v{};

  static bool wholeTiles(const CompressedRule&) { return true; }
  static bool wholeTiles(const SelectedRule& rule) { return rule.selectionBlock % kNsaTile == 0; }
  template <typename T, typename Rule>
  NsaKeyMaps(const NsaArgs<T, Rule>& a, int head) {
    if (!a.bulk || a.keyBits || a.keys == 0 || !wholeTiles(a.rule)) return;
    const bool whole = a.k.width == head && a.v.width == head;
    const auto encode = whole ? encodeWholeRows<T> : encodeRows<T>;
    if (encode(&k, a.k, a.batch, a.keys, a.kvHeads) == cudaSuccess &&
        encode(&v, a.v, a.batch, a.keys, a.kvHeads) == cudaSuccess)
      copies = whole ? NsaCopies::Whole : NsaCopies::Panels;
  }
};

/// Is column 8 n + 2 t + e of row i hidden?
__device__ __forceinline__ bool hiddenKey(int column, int limit, uint64_t bits) {
  return column >= limit || !((bits >> column) & 1);
}

}  // namespace gatedfwa::cuda
