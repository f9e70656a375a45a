// Backward on Hopper's tensor cores in one pass, D = 64, behind the skeleton of hopper.cuh: 5 products and one softmax
// where the two passes of backward_hopper.cuh have 7 and two.
//
// Two consumer groups keep 64 keys (K, V) each, query tiles (Q, dO) stream:  dv = P^T dO, dk = scale dS^T Q
// They also leave dS in shared memory; a third group multiplies it:           dq of the tile = dS K, over 128 keys
//
// dq is summed in global memory, in float32 and in a fixed order: of the key blocks that a query tile sees, newest
// first. A counter per tile says how many have added; a producer warp waits for its block's turn. The oldest block
// takes the sum and writes dq. The row sums of dS that dalpha needs are one more column of the product and go along.
//
// No wait closes a circle, whichever blocks are on the device. Items (key blocks) are numbered by head, within it
// newest keys first; a block takes the next number from a counter when it is about to need it. An item waits only for
// newer items of its head, tile by tile in the order in which all of them walk (query head of the group, then query
// tile): for smaller numbers, which blocks that run have taken. So the smallest number at work waits for nobody. N < M:
// a query tile starts with the block of its own positions and all from there to its oldest see it; others have no turn.
#pragma once

#include "backward_hopper.cuh"

namespace gatedfwa::cuda {

struct OnePassTile {
  static constexpr int head = 64, consumers = 2, rows = consumers * kSumTile, threads = 128 * (2 + consumers);
  static constexpr int stages = 6, tileBytes = kSumTile * head * 2;
  static constexpr int buffers = 2;  ///< of keys (this item's and the next one's), of dS, of dq
  static constexpr int items = 4;    ///< that a block's warps may be apart
  static constexpr int consumerRegisters = 192, dqRegisters = 104, producerRegisters = 24;
  static_assert(consumers * consumerRegisters + dqRegisters + producerRegisters <= 65536 / 128, "too many registers");
  static constexpr int weightBytes = kSumTile * kSumTile * 2;
  static constexpr int sums = kSumTile * (head + 1), sumBytes = 4 * sums;  ///< a tile's dq, as accumulators; row sums
  static constexpr int warpBytes = 80;                                     ///< a warp's own, where registers are short

  // Barriers by number, and offsets in shared memory.
  static constexpr int landed = 0, freed = landed + stages, keysKept = freed + stages,
                       keysReleased = keysKept + buffers * consumers, valuesKept = keysReleased + buffers * consumers,
                       valuesReleased = valuesKept + consumers, weightsFull = valuesReleased + consumers,
                       weightsFree = weightsFull + buffers * consumers, sumsFull = weightsFree + buffers * consumers,
                       sumsFree = sumsFull + buffers, sumsLoaded = sumsFree + buffers, itemFull = sumsLoaded + buffers,
                       itemFree = itemFull + items, barriers = itemFree + items;
  static constexpr int keysAt = 0, valuesAt = keysAt + buffers * consumers * tileBytes,
                       onesAt = valuesAt + consumers * tileBytes, ringAt = onesAt + kPanelBytes,
                       weightsAt = ringAt + 2 * stages * tileBytes,
                       sumsAt = weightsAt + buffers * consumers * weightBytes, termsAt = sumsAt + buffers * sumBytes,
                       itemsAt = termsAt + stages * static_cast<int>(sizeof(HopperQueryTerms)),
                       warpsAt = itemsAt + 16 * items, barriersAt = warpsAt + warpBytes * threads / 32,
                       shared = barriersAt + 8 * barriers;
  static_assert(shared <= 227 * 1024, "a Hopper tile does not fit");
};

#if GATEDFWA_HOPPER
struct OnePassBlock {
  using Size = OnePassTile;
  uint32_t base;
  unsigned char* shared;

  __device__ __forceinline__ explicit OnePassBlock(unsigned char* memory)
      : base(sharedAddress(memory)), shared(memory) {}
  __device__ __forceinline__ uint32_t keys(int buffer, int group) const {
    return base + Size::keysAt + (buffer * Size::consumers + group) * Size::tileBytes;
  }
  __device__ __forceinline__ uint32_t values(int group) const {
    return base + Size::valuesAt + group * Size::tileBytes;
  }
  /// A panel of ones.
  __device__ __forceinline__ uint32_t ones() const { return base + Size::onesAt; }
  __device__ __forceinline__ uint32_t streamedTile(int slot, int i) const {
    return base + Size::ringAt + (2 * slot + i) * Size::tileBytes;
  }
  /// A group's dS^T.
  __device__ __forceinline__ uint32_t weights(int buffer, int group) const {
    return base + Size::weightsAt + (buffer * Size::consumers + group) * Size::weightBytes;
  }
  /// dq on its way.
  __device__ __forceinline__ uint32_t sums(int buffer) const { return base + Size::sumsAt + buffer * Size::sumBytes; }
  __device__ __forceinline__ HopperQueryTerms& terms(int slot) const {
    return reinterpret_cast<HopperQueryTerms*>(shared + Size::termsAt)[slot];
  }
  __device__ __forceinline__ int4& item(int slot) const {
    return reinterpret_cast<int4*>(shared + Size::itemsAt)[slot];
  }
  __device__ __forceinline__ void* warpSpace(int warp) const { return shared + Size::warpsAt + Size::warpBytes * warp; }

  __device__ __forceinline__ uint32_t barrier(int i) const { return base + Size::barriersAt + 8 * i; }
  /// Q and dO are there; the consumer groups are done with them.
  __device__ __forceinline__ uint32_t landed(int slot) const { return barrier(Size::landed + slot); }
  __device__ __forceinline__ uint32_t freed(int slot) const { return barrier(Size::freed + slot); }
  /// A group's K and V are there; K is multiplied by the dq group to the end, V in registers.
  __device__ __forceinline__ uint32_t keysKept(int buffer, int group) const {
    return barrier(Size::keysKept + buffer * Size::consumers + group);
  }
  __device__ __forceinline__ uint32_t keysReleased(int buffer, int group) const {
    return barrier(Size::keysReleased + buffer * Size::consumers + group);
  }
  __device__ __forceinline__ uint32_t valuesKept(int group) const { return barrier(Size::valuesKept + group); }
  __device__ __forceinline__ uint32_t valuesReleased(int group) const { return barrier(Size::valuesReleased + group); }
  /// A group's dS is there; the dq group has multiplied it.
  __device__ __forceinline__ uint32_t weightsFull(int buffer, int group) const {
    return barrier(Size::weightsFull + buffer * Size::consumers + group);
  }
  __device__ __forceinline__ uint32_t weightsFree(int buffer, int group) const {
    return barrier(Size::weightsFree + buffer * Size::consumers + group);
  }
  /// The dq group is done with a buffer of sums; the writer is; the writer has put there what newer blocks have added.
  __device__ __forceinline__ uint32_t sumsFull(int buffer) const { return barrier(Size::sumsFull + buffer); }
  __device__ __forceinline__ uint32_t sumsFree(int buffer) const { return barrier(Size::sumsFree + buffer); }
  __device__ __forceinline__ uint32_t sumsLoaded(int buffer) const { return barrier(Size::sumsLoaded + buffer); }
  /// An item is there; the warps have read it.
  __device__ __forceinline__ uint32_t itemFull(int slot) const { return barrier(Size::itemFull + slot); }
  __device__ __forceinline__ uint32_t itemFree(int slot) const { return barrier(Size::itemFree + slot); }

  template <typename T>
  __device__ __forceinline__ void initialise() const {
    if (threadIdx.x == 0) {
      const auto init = [&](int first, int count, int arrivals) {
        for (int i = 0; i < count; ++i) barrierInit(barrier(first + i), arrivals);
      };
      init(Size::landed, Size::stages, 1);
      init(Size::freed, Size::stages, 128 * Size::consumers);
      init(Size::keysKept, Size::buffers * Size::consumers, 1);
      init(Size::keysReleased, Size::buffers * Size::consumers, 128);
      init(Size::valuesKept, Size::consumers, 1);
      init(Size::valuesReleased, Size::consumers, 128);
      init(Size::weightsFull, Size::buffers * Size::consumers, 128);
      init(Size::weightsFree, Size::buffers * Size::consumers, 128);
      init(Size::sumsFull, Size::buffers, 128);
      init(Size::sumsFree, Size::buffers, 1);
      init(Size::sumsLoaded, Size::buffers, 1);
      init(Size::itemFull, Size::items, 1);
      init(Size::itemFree, Size::items, Size::threads - 128 + 1 + Size::buffers);  // of the producers one thread a warp
      barrierInitFence();
    }
    uint32_t* const ones = reinterpret_cast<uint32_t*>(shared + Size::onesAt);
    for (int i = threadIdx.x; i < kPanelBytes / 4; i += Size::threads) ones[i] = packPair(T(), 1.f, 1.f);
    asyncProxyFence();
    __syncthreads();
  }
};

/// A warp's place in the work of its block, in shared memory.
struct KeyItem {
  int b, h, block;  ///< of 128 keys; b = batch: no more
  Ring<OnePassTile::items> at;
};
template <typename T>
__device__ __forceinline__ int keyBlocks(const AttentionArgs<T>& a) {
  return (a.M + OnePassTile::rows - 1) / OnePassTile::rows;
}
/// The next item, by all lanes of a warp (the wait of one lane alone costs registers, spilled ones); by one of a warp.
template <bool whole = true>
__device__ __forceinline__ void takeItem(KeyItem& item, const OnePassBlock& block, int lane = 0) {
  const Ring<OnePassTile::items> at = item.at;
  barrierWait(block.itemFull(at.slot), at.phase);
  const int4 x = block.item(at.slot);
  barrierArrive(block.itemFree(at.slot));
  if (whole) __syncwarp();
  if (lane == 0) {
    item.at.advance();
    item.b = x.x;
    item.h = x.y;
    item.block = x.z;
  }
  if (whole) __syncwarp();
}
template <typename T>
__device__ __forceinline__ KeyWork keyWork(const AttentionArgs<T>& a, const KeyItem& at) {
  KeyWork x;
  x.b = at.b;
  x.kvHead = at.h;
  x.origin = at.block * OnePassTile::rows;
  tilesThatSee(a, x.origin, OnePassTile::rows, x.firstTile, x.lastTile);
  return x;
}
/// A query tile's turns: the newest key block that it sees has turn 0.
__device__ __forceinline__ int turnOf(int tile, int block) { return tile / OnePassTile::consumers - block; }
template <typename T>
__device__ __forceinline__ bool lastTurn(const AttentionArgs<T>& a, int tile, int block) {
  return max(0, max(tile * kSumTile, a.M - a.N) - a.window + 1) / OnePassTile::rows == block;
}

// ---- dq in global memory, in order

/// Waits until `count` key blocks have added to a tile; what they wrote is then seen, by later bulk copies too.
__device__ __forceinline__ void waitTurn(const int* counter, int count) {
  int now;
#if defined(GATEDFWA_BOUNDED_WAITS)
  uint64_t start = 0, time;
#endif
  while (true) {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];\n" : "=r"(now) : "l"(counter) : "memory");
    if (now >= count) break;
#if defined(GATEDFWA_BOUNDED_WAITS)
    asm volatile("mov.u64 %0, %%globaltimer;\n" : "=l"(time));
    if (start == 0) start = time;
    if (time - start > 4000000000ull) __trap();
#endif
  }
  asm volatile("fence.proxy.async;\n" ::: "memory");
}
/// Lets the next block add; the own bulk copies are written.
__device__ __forceinline__ void countTurn(int* counter) {
  asm volatile("fence.proxy.async;\n" ::: "memory");
  asm volatile("red.release.gpu.global.add.s32 [%0], 1;\n" ::"l"(counter) : "memory");
}
__device__ __forceinline__ void bulkStore(float* to, uint32_t from, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\n" ::"l"(to), "r"(from), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void bulkAdd(float* to, uint32_t from, int bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;\n" ::"l"(to), "r"(from),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void bulkCommit() { asm volatile("cp.async.bulk.commit_group;\n" ::: "memory"); }
/// Waits until the thread's bulk copies have read shared memory; until they are written.
__device__ __forceinline__ void bulkWaitRead() { asm volatile("cp.async.bulk.wait_group.read 0;\n" ::: "memory"); }
__device__ __forceinline__ void bulkWait() { asm volatile("cp.async.bulk.wait_group 0;\n" ::: "memory"); }

/// Writer thread of the buffer `own` of sums: adds what the dq group leaves there when the block's turn has come; for
/// the last block of a tile, puts there what the others have added.
template <typename T>
__device__ __forceinline__ void writeSums(const AttentionArgs<T>& a, const OnePassBlock& block, KeyItem& work,
                                          int own) {
  const int bytes = a.rowSums ? OnePassTile::sumBytes : OnePassTile::sumBytes - kSumTile * 4;
  int count = 0;
  uint32_t phase = 0;
  for (work.at = {}, takeItem<false>(work, block); work.b < a.batch; takeItem<false>(work, block)) {
    const KeyWork x = keyWork(a, work);
    const int keyBlock = work.block;
    for (int h = x.kvHead * a.group; h < (x.kvHead + 1) * a.group; ++h) {
      const int64_t bh = static_cast<int64_t>(x.b) * a.H + h;
      for (int index = x.firstTile; index <= x.lastTile; ++index) {
        if (count++ % OnePassTile::buffers != own) continue;
        const int turn = turnOf(index, keyBlock);
        const bool last = lastTurn(a, index, keyBlock);
        const int64_t tile = bh * a.queries.tiles() + index - a.queries.first / kSumTile;
        float* const sums = a.dqSums + tile * OnePassTile::sums;
        if (last && turn > 0) {
          waitTurn(a.dqCounts + tile, turn);
          barrierExpect(block.sumsLoaded(own), bytes);
          copyBulk(block.sums(own), sums, bytes, block.sumsLoaded(own));
        }
        barrierWait(block.sumsFull(own), phase);
        phase ^= 1;
        if (last) {
          barrierArrive(block.sumsFree(own));
          continue;
        }
        if (turn == 0) {
          bulkStore(sums, block.sums(own), bytes);
        } else {
          waitTurn(a.dqCounts + tile, turn);
          bulkAdd(sums, block.sums(own), bytes);
        }
        bulkCommit();
        bulkWaitRead();
        barrierArrive(block.sumsFree(own));
        bulkWait();
        countTurn(a.dqCounts + tile);
      }
    }
  }
}

__device__ __forceinline__ void loadFour(float (&c)[4], uint32_t from) {
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];\n"
               : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
               : "r"(from)
               : "memory");
}
__device__ __forceinline__ void storeFour(uint32_t to, const float (&c)[4]) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};\n" ::"r"(to), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3])
               : "memory");
}
/// A group's dS^T in shared memory, rows = keys: what wgmma takes as dS by the transposing descriptor.
__device__ __forceinline__ void storeWeights(uint32_t tile, const uint32_t (&w)[4][4], int warp, int lane) {
  const LaneOffset at = laneOfA<128>(lane);
#pragma unroll
  for (int d = 0; d < 4; ++d) storeMatrix(fragmentAddress<128>(tile + warp * 16 * 128, at, 0, d * 32), w[d]);
}

// c (64 x 72) = [c +] a b, both from shared memory, stored with the depth as rows.
#define GATEDFWA_R36 GATEDFWA_R32 ",%32,%33,%34,%35"
#define GATEDFWA_WGMMA_OUTER_START(type)                                                                           \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 0, 0;\nwgmma.mma_async.sync.aligned.m64n72k16.f32." type "." type \
               " {" GATEDFWA_R36 "}, %36, %37, p, 1, 1, 1, 1;\n}\n"                                                \
               : GATEDFWA_D32(c), GATEDFWA_D4(c, 8)                                                                \
               : "l"(a), "l"(b))
#define GATEDFWA_WGMMA_OUTER(type)                                                           \
  asm volatile("wgmma.mma_async.sync.aligned.m64n72k16.f32." type "." type " {" GATEDFWA_R36 \
               "}, %36, %37, 1, 1, 1, 1, 1;\n"                                               \
               : GATEDFWA_C32(c, 0), GATEDFWA_C4(c, 8)                                       \
               : "l"(a), "l"(b))
template <typename T>
__device__ __forceinline__ void wgmmaOuterStart(float (&c)[9][4], uint64_t a, uint64_t b) {
  if constexpr (std::is_same<T, __half>::value)
    GATEDFWA_WGMMA_OUTER_START("f16");
  else
    GATEDFWA_WGMMA_OUTER_START("bf16");
}
template <typename T>
__device__ __forceinline__ void wgmmaOuter(float (&c)[9][4], uint64_t a, uint64_t b) {
  if constexpr (std::is_same<T, __half>::value)
    GATEDFWA_WGMMA_OUTER("f16");
  else
    GATEDFWA_WGMMA_OUTER("bf16");
}
/// A panel of keys with, as columns 64..71, those of the panel `ones`, which lies behind it.
__device__ __forceinline__ uint64_t descriptorWithOnes(uint32_t address, uint32_t ones) {
  return static_cast<uint64_t>((ones - address) >> 4) << 16 | static_cast<uint64_t>(1024 >> 4) << 32 | 1ull << 62 |
         ((address & 0x3ffff) >> 4);
}

/// dq of a tile and, in c[8], the row sums of dS, by the dq group: left in a buffer, to be added to what newer blocks
/// have added; or in the block that is the tile's last, written, with what the writer has put there of theirs.
/// `loaded`: a phase bit per buffer.
template <typename T>
__device__ __forceinline__ void leaveDq(const AttentionArgs<T>& a, const OnePassBlock& block, float (&c)[9][4],
                                        Ring<OnePassTile::buffers>& at, uint32_t& loaded, int b, int h, int index,
                                        int keyBlock, int warp, int lane) {
  const int t = lane % 4, row = 16 * warp + lane / 4;
  const uint32_t own = block.sums(at.slot) + 512 * warp;  // the warp's part: 512 of every 2048 bytes
  const uint32_t rowSums = block.sums(at.slot) + kSumTile * OnePassTile::head * 4 + row * 4;
  const bool last = lastTurn(a, index, keyBlock), first = turnOf(index, keyBlock) == 0;
  barrierWait(block.sumsFree(at.slot), at.phase ^ 1);
  if (!last) {
#pragma unroll
    for (int n = 0; n < 8; ++n) storeFour(own + n * 2048 + lane * 16, c[n]);
    if (t == 0) {
      asm volatile("st.shared.f32 [%0], %1;\n" ::"r"(rowSums), "f"(c[8][0]) : "memory");
      asm volatile("st.shared.f32 [%0], %1;\n" ::"r"(rowSums + 32), "f"(c[8][2]) : "memory");
    }
  } else {
    if (!first) {
      barrierWait(block.sumsLoaded(at.slot), (loaded >> at.slot) & 1);
      loaded ^= 1u << at.slot;
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        float y[4];
        loadFour(y, own + n * 2048 + lane * 16);
#pragma unroll
        for (int e = 0; e < 4; ++e) c[n][e] += y[e];
      }
      if (t == 0) {
        float y[2];
        asm volatile("ld.shared.f32 %0, [%1];\n" : "=f"(y[0]) : "r"(rowSums) : "memory");
        asm volatile("ld.shared.f32 %0, [%1];\n" : "=f"(y[1]) : "r"(rowSums + 32) : "memory");
        c[8][0] += y[0];
        c[8][2] += y[1];
      }
    }
    if (a.rowSums && t == 0) {
      float* const to =
          a.rowSums + (static_cast<int64_t>(b) * a.H + h) * a.queries.length + index * kSumTile - a.queries.first + row;
      to[0] = c[8][0];
      to[8] = c[8][2];
    }
    // By way of the warp's part of the buffer, four rows in 512 bytes, so that few registers do.
    __syncwarp();
#pragma unroll
    for (int d = 0; d < 4; ++d) {
      uint32_t w[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        w[i] = packPair(T(), c[2 * d + i / 2][i % 2 * 2] * a.scale, c[2 * d + i / 2][i % 2 * 2 + 1] * a.scale);
      const int r = lane & 15, chunk = 2 * d + (lane >> 4);
      storeMatrix(own + r / 4 * 2048 + r % 4 * 128 + ((chunk ^ (r & 7)) << 4), w);
    }
    __syncwarp();
    const int p = index * kSumTile + 16 * warp + lane / 8 - (a.M - a.N);
    T* to = a.dq.data + b * a.dq.batch + h * a.dq.head + p * a.dq.row + lane % 8 * 8 * a.dq.element;
#pragma unroll 1
    for (int i = 0; i < 4; ++i, to += 4 * a.dq.row) {
      uint32_t w[4];
      asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];\n"
                   : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                   : "r"(own + i * 2048 + lane / 8 * 128 + ((lane % 8 ^ (i % 2 * 4 + lane / 8)) << 4))
                   : "memory");
      if (p + 4 * i < 0 || p + 4 * i >= a.N) continue;
      if (a.dq.vector) {
        *reinterpret_cast<uint4*>(to) = make_uint4(w[0], w[1], w[2], w[3]);
      } else {
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const unsigned short bits = static_cast<unsigned short>(w[e / 2] >> (16 * (e % 2)));
          to[e * a.dq.element] = *reinterpret_cast<const T*>(&bits);
        }
      }
    }
  }
  asyncProxyFence();
  barrierArrive(block.sumsFull(at.slot));
  at.advance();
}

/// The dq group.
template <typename T>
__device__ __forceinline__ void multiplyDq(const AttentionArgs<T>& a, const OnePassBlock& block, int warp, int lane) {
  KeyItem& work = *static_cast<KeyItem*>(block.warpSpace(warp));
  if (lane == 0) work.at = {};
  __syncwarp();
  float c[9][4];
  Ring<OnePassTile::buffers> weights[2], sums;
  uint32_t keyPhases = 0, loaded = 0;
  int buffer = 0;
  for (takeItem(work, block, lane); work.b < a.batch; takeItem(work, block, lane), buffer ^= 1) {
    const KeyWork x = keyWork(a, work);
    const int keyBlock = x.origin / OnePassTile::rows;
    int ownFirst[2], ownLast[2];
#pragma unroll
    for (int group = 0; group < 2; ++group)
      tilesThatSee(a, x.origin + group * kSumTile, kSumTile, ownFirst[group], ownLast[group]);
    for (int member = 0; member < a.group; ++member) {
      for (int index = x.firstTile; index <= x.lastTile; ++index) {
        bool in[2];  // does the tile see the group's keys?
        uint64_t dS[2], keys[2];
#pragma unroll
        for (int group = 0; group < 2; ++group) {
          in[group] = index >= ownFirst[group] && index <= ownLast[group];
          dS[group] = descriptor(block.weights(weights[group].slot, group));
          keys[group] = descriptorWithOnes(block.keys(buffer, group), block.ones());
          if (!in[group]) continue;
          if (member == 0 && index == ownFirst[group])
            barrierWait(block.keysKept(buffer, group), (keyPhases >> (buffer * 2 + group)) & 1);
          barrierWait(block.weightsFull(weights[group].slot, group), weights[group].phase);
        }
        // Both branches whole, from fence to wait: else ptxas serialises.
        if (in[0] && in[1]) {
          wgmmaFence();
          wgmmaOuterStart<T>(c, dS[0], keys[0]);
#pragma unroll
          for (int d = 1; d < 4; ++d) wgmmaOuter<T>(c, rowStep(dS[0], d), rowStep(keys[0], d));
#pragma unroll
          for (int d = 0; d < 4; ++d) wgmmaOuter<T>(c, rowStep(dS[1], d), rowStep(keys[1], d));
          wgmmaCommit();
          wgmmaWait<0>();
        } else {
          const uint64_t y = in[0] ? dS[0] : dS[1], z = in[0] ? keys[0] : keys[1];
          wgmmaFence();
          wgmmaOuterStart<T>(c, y, z);
#pragma unroll
          for (int d = 1; d < 4; ++d) wgmmaOuter<T>(c, rowStep(y, d), rowStep(z, d));
          wgmmaCommit();
          wgmmaWait<0>();
        }
        hold(c);
#pragma unroll
        for (int group = 0; group < 2; ++group) {
          if (!in[group]) continue;
          barrierArrive(block.weightsFree(weights[group].slot, group));
          weights[group].advance();
          if (member == a.group - 1 && index == ownLast[group]) {
            barrierArrive(block.keysReleased(buffer, group));
            keyPhases ^= 1u << (buffer * 2 + group);
          }
        }
        leaveDq(a, block, c, sums, loaded, x.b, x.kvHead * a.group + member, index, keyBlock, warp % 4, lane);
      }
    }
    __syncwarp();
  }
}
#endif

template <typename T>
__global__ void __launch_bounds__(OnePassTile::threads, 1)
    onePassHopperKernel(const __grid_constant__ AttentionArgs<T> a, const __grid_constant__ CUtensorMap mapQ,
                        const __grid_constant__ CUtensorMap mapDo, const __grid_constant__ CUtensorMap mapK,
                        const __grid_constant__ CUtensorMap mapV) {
#if GATEDFWA_HOPPER
  using Size = OnePassTile;
  constexpr int head = Size::head;
  extern __shared__ __align__(1024) unsigned char hopperShared[];
  const OnePassBlock block(hopperShared);
  block.template initialise<T>();

  const int warp = warpIndex(), lane = threadIdx.x % 32;

  if (warp < 4) {
    lowerRegisters<Size::producerRegisters>();
    if (lane != 0) return;
    KeyItem& work = *static_cast<KeyItem*>(block.warpSpace(warp));  // few registers are left
    if (warp == 0) {                                                // items; Q and dO tiles with their terms
      Ring<Size::stages> at;
      int* const counter = a.dqCounts + a.batch * a.H * a.queries.tiles();
      const int blocks = keyBlocks(a), heads = a.H / a.group, items = static_cast<int>(a.batch) * heads * blocks;
      int number = atomicAdd(counter, 1);
      for (work.at = {};; work.at.advance()) {
        barrierWait(block.itemFree(work.at.slot), work.at.phase ^ 1);
        const int item = min(number, items);
        work.block = blocks - 1 - item % blocks;
        work.h = item / blocks % heads;
        work.b = item / blocks / heads;
        block.item(work.at.slot) = make_int4(work.b, work.h, work.block, 0);
        barrierArrive(block.itemFull(work.at.slot));
        if (number >= items) break;
        number = atomicAdd(counter, 1);  // on its way while this item's tiles are requested
        const KeyWork x = keyWork(a, work);
        for (int h = x.kvHead * a.group; h < (x.kvHead + 1) * a.group; ++h) {
          const int64_t bh = static_cast<int64_t>(x.b) * a.H + h;
          for (int index = x.firstTile; index <= x.lastTile; ++index, at.advance()) {
            barrierWait(block.freed(at.slot), at.phase ^ 1);
            copyQueries<head>(a, block.terms(at.slot), block.streamedTile(at.slot, 0), block.streamedTile(at.slot, 1),
                              block.landed(at.slot), mapQ, mapDo, x.b, h, bh, index);
          }
        }
      }
    } else if (warp == 1) {  // K and V
      uint32_t keyPhases = 0, valuePhases = 0;
      int buffer = 0;
      for (work.at = {}, takeItem<false>(work, block); work.b < a.batch; takeItem<false>(work, block), buffer ^= 1) {
        const KeyWork x = keyWork(a, work);
        for (int group = 0; group < Size::consumers; ++group) {
          const int first = x.origin + group * kSumTile;
          int ownFirst, ownLast;
          tilesThatSee(a, first, kSumTile, ownFirst, ownLast);
          if (ownFirst > ownLast) continue;
          const int bit = buffer * Size::consumers + group;
          barrierWait(block.keysReleased(buffer, group), (~keyPhases >> bit) & 1);
          keyPhases ^= 1u << bit;
          barrierExpect(block.keysKept(buffer, group), head * 128);
          copyTensor<head>(block.keys(buffer, group), mapK, first, x.kvHead, x.b, block.keysKept(buffer, group));
          barrierWait(block.valuesReleased(group), (~valuePhases >> group) & 1);
          valuePhases ^= 1u << group;
          barrierExpect(block.valuesKept(group), head * 128);
          copyTensor<head>(block.values(group), mapV, first, x.kvHead, x.b, block.valuesKept(group));
        }
      }
    } else {
      writeSums(a, block, work, warp - 2);
    }
    return;
  }
  if (warp >= 4 * (1 + Size::consumers)) {
    lowerRegisters<Size::dqRegisters>();
    multiplyDq(a, block, warp, lane);
    return;
  }

  raiseRegisters<Size::consumerRegisters>();
  const int group = warp / 4 - 1, warpInGroup = warp % 4, g = lane / 4, t = lane % 4;
  const int row = 16 * warpInGroup + g;
  const uint32_t sharedV = block.values(group);
  uint32_t values[head / 16][4];
  float s[8][4], dp[8][4], dk[head / 8][4], dv[head / 8][4];
  uint32_t weights[4][4];
  Ring<Size::stages> at;
  Ring<Size::buffers> put;

  // In shared memory: the accumulators need the registers.
  struct Parked {
    KeyItem work;
    int tile, ownFirst, ownLast;  // of the group: its keys, the query tiles that see one
    int buffer;                   // of its K
    uint32_t keyPhases, valuePhase;
    int boundarySlot, nextBoundary;  // of the warp's column sums, see putWarpSum
  };
  static_assert(sizeof(Parked) <= Size::warpBytes, "");
  Parked& parked = *static_cast<Parked*>(block.warpSpace(warp));
  KeyItem& work = parked.work;
  if (lane == 0) {
    work.at = {};
    parked.buffer = 0;
    parked.keyPhases = parked.valuePhase = 0;
  }
  __syncwarp();
  takeItem(work, block, lane);
  while (work.b < a.batch) {
    bool busy;
    {
      const int tile = Size::consumers * work.block + group;
      int ownFirst, ownLast;
      tilesThatSee(a, tile * kSumTile, kSumTile, ownFirst, ownLast);
      busy = ownFirst <= ownLast;
      __syncwarp();
      if (lane == 0) {
        parked.tile = tile;
        parked.ownFirst = ownFirst;
        parked.ownLast = ownLast;
      }
      __syncwarp();
    }
    const auto first = [&] { return parked.tile * kSumTile; };
    const auto sharedK = [&] { return block.keys(parked.buffer, group); };
    const auto release = [&](int slot) { barrierArrive(block.freed(slot)); };
#pragma unroll
    for (int n = 0; n < head / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) dk[n][e] = dv[n][e] = 0.f;
    const auto keyBits = [&] {
      return a.keyBits ? a.keyBits[work.b * a.keys.tiles() + parked.tile - a.keys.first / kSumTile] : ~0ull;
    };
    // K and V, once; meanwhile the first head's terms are on their way.
    const auto waitKeys = [&] {
      const int buffer = parked.buffer;
      barrierWait(block.keysKept(buffer, group), (parked.keyPhases >> buffer) & 1);
      barrierWait(block.valuesKept(group), parked.valuePhase);
      __syncwarp();
      if (lane == 0) {
        parked.keyPhases ^= 1u << buffer;
        parked.valuePhase ^= 1;
      }
      __syncwarp();
      const uint64_t bits = keyBits();
      if (bits != ~0ull) {
        zeroRows<head, 1>(sharedK(), bits | ~(0xffffull << (16 * warpInGroup)), lane);
        zeroRows<head, 1>(sharedV, bits | ~(0xffffull << (16 * warpInGroup)), lane);
        asyncProxyFence();
        groupBarrier(group);
      }
      loadRows<head>(values, sharedV, warpInGroup, lane);
      asyncProxyFence();  // ordinary reads, before the next bulk copy
      barrierArrive(block.valuesReleased(group));
    };

    for (int member = 0; member < a.group; ++member) {
      const auto bhOf = [&] { return static_cast<int64_t>(work.b) * a.H + work.h * a.group + member; };
      const int64_t bh = bhOf();
      int index = keyWork(a, work).firstTile;
      const auto skipTo = [&](int end) {
        for (; index < end; ++index, at.advance()) {
          barrierWait(block.landed(at.slot), at.phase);
          release(at.slot);
        }
      };
      if (!busy) {
        skipTo(keyWork(a, work).lastTile + 1);
        continue;
      }
      // Of each key: the decay to the start of the query tile (infinity if it is masked), column sum.
      float decay[2], columnSum[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        decay[i] = a.sums.suffix ? a.sums.suffix[bh * a.keys.length + first() + row + 8 * i - a.keys.first] : 0.f;
      }
      __syncwarp();
      if (lane == 0) {
        parked.boundarySlot = 0;  // a tile has no boundary inside
        parked.nextBoundary = a.columnSums ? (first() / a.boundary + 1) * a.boundary : INT_MAX;
      }
      __syncwarp();
      // What the warp's columns have summed before each boundary that its queries cross, and in all.
      const auto putWarpSum = [&](bool last) {
        const float sum = 0.25f * warpSum(columnSum[0] + columnSum[2]);
        __syncwarp();
        if (lane != 0) return;
        float* const to = a.warpSums + (bhOf() * (a.keys.length / kHopperWarpRows) +
                                        (first() - a.keys.first) / kHopperWarpRows + warpInGroup) *
                                           (a.boundarySlots + 1);
        int slot = parked.boundarySlot, next = parked.nextBoundary;
        for (; last ? slot <= a.boundarySlots : slot < a.boundarySlots && next <= index * kSumTile;
             ++slot, next += a.boundary)
          to[slot] = sum;
        parked.boundarySlot = slot;
        parked.nextBoundary = slot < a.boundarySlots ? next : INT_MAX;
      };

      skipTo(parked.ownFirst);
      if (member == 0) waitKeys();
      if (a.keyBits) {
        const uint64_t bits = keyBits();
#pragma unroll
        for (int i = 0; i < 2; ++i)
          if (!((bits >> (row + 8 * i)) & 1)) decay[i] = infinity<float>();
      }
      if (a.sums.prefix && parked.ownFirst > parked.tile + 1) {  // chunks whose queries start beyond: the tiles between
        float between = 0.f;
        for (int i = parked.tile + 1 + lane; i < parked.ownFirst; i += 32) {
          const int64_t at64 = bh * a.keys.tiles() + i - a.keys.first / kSumTile;
          between += a.sums.resets[at64] ? infinity<float>() : a.sums.prefix[at64 * kSumTile + kSumTile - 1];
        }
        between = warpSum(between);
        decay[0] += between;
        decay[1] += between;
      }
      const auto waitTile = [&] { barrierWait(block.landed(at.slot), at.phase); };
      // Products of the tile at `at`, with dk of the tile before between them: s is needed first.
      const auto multiply = [&](auto&& multiplyBetween) {
        wgmmaFence();
        multiplyTiles<T, head>(s, descriptorHere(sharedK()), descriptor(block.streamedTile(at.slot, 0)));
        wgmmaCommit();
        multiplyBetween();
        wgmmaCommit();
        multiplyTiles<T, head>(dp, values, descriptor(block.streamedTile(at.slot, 1)));
        wgmmaCommit();
      };
      const auto addDk = [&] { multiplyWeights<T>(dk, weights, descriptor(block.streamedTile(at.previousSlot(), 0))); };
      const auto putWeights = [&] {  // dS for dq
        barrierWait(block.weightsFree(put.slot, group), put.phase ^ 1);
        storeWeights(block.weights(put.slot, group), weights, warpInGroup, lane);
        asyncProxyFence();
        barrierArrive(block.weightsFull(put.slot, group));
        put.advance();
      };

      const auto passBoundaries = [&] {  // those up to the tile `index`
        if (parked.nextBoundary > index * kSumTile) return;
        putWarpSum(false);
        __syncwarp();
      };
      passBoundaries();
      waitTile();
      hold(dk);
      hold(dv);
      multiply([] {});
      while (true) {
        const HopperQueryTerms& terms = block.terms(at.slot);
        const bool diagonal = index == parked.tile;
        wgmmaWait<2>();
        hold(s);
        if (diagonal) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int key = row + 8 * i;
            uint64_t visible = bitsFrom(key) & bitsBelow(key + a.window);
            if (a.sums.prefix) {
              const float own = terms.prefix[key], rawPerLog2 = 1.f / a.scaleLog2;
#pragma unroll
              for (int n = 0; n < 8; ++n) {
                const float2 y = *reinterpret_cast<const float2*>(terms.prefix + 8 * n + 2 * t);
                s[n][2 * i] = fmaf(own - y.x, rawPerLog2, s[n][2 * i]);
                s[n][2 * i + 1] = fmaf(own - y.y, rawPerLog2, s[n][2 * i + 1]);
              }
              const uint64_t resets = terms.resets[parked.tile & 1] & ~bitsThrough(key);
              if (resets) visible &= bitsBelow(__ffsll(resets) - 1);
            }
            hideColumns(s, i, (keyBits() >> key) & 1 ? visible : 0, t);
          }
        } else if (first() <= index * kSumTile + kSumTile - 1 - a.window) {  // the window of the first key ends here
#pragma unroll
          for (int i = 0; i < 2; ++i)
            hideColumns(s, i, bitsBelow(first() + row + 8 * i - index * kSumTile + a.window), t);
        }
        const float bias[2] = {diagonal ? 0.f : decay[0], diagonal ? 0.f : decay[1]};
        const float* const lse = (diagonal ? terms.lse : terms.decayedLse) + 2 * t;
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          const float2 y = *reinterpret_cast<const float2*>(lse + 8 * n);
#pragma unroll
          for (int e = 0; e < 4; ++e)
            s[n][e] = exp2Approx(fmaf(s[n][e], a.scaleLog2, -(e % 2 ? y.y : y.x)) - bias[e / 2]);
        }
        if (!diagonal && a.sums.prefix) {
          const float total = tileTotal(terms.resets + (index & 1), terms.prefix + kSumTile - 1);
          decay[0] += total;
          decay[1] += total;
        }
        hold(s);
        if (index < parked.ownLast)  // here: see hold
          barrierWait(block.landed(at.next().slot), at.next().phase);
        wgmmaWait<1>();  // dk of the tile before
        if (index != parked.ownFirst) release(at.previousSlot());
        packWeights<T>(weights, s);
        wgmmaFence();
        multiplyWeights<T>(dv, weights, descriptor(block.streamedTile(at.slot, 1)));
        wgmmaCommit();
        wgmmaWait<1>();
        hold(dp);
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          const float2 y = *reinterpret_cast<const float2*>(terms.delta + 8 * n + 2 * t);
#pragma unroll
          for (int e = 0; e < 4; ++e) dp[n][e] = s[n][e] * (dp[n][e] - (e % 2 ? y.y : y.x));
        }
        wgmmaWait<0>();
        packWeights<T>(weights, dp);
        if (a.columnSums) {
#pragma unroll
          for (int d = 0; d < 4; ++d) addRowSums<T>(columnSum, weights[d]);
        }
        at.advance();
        if (++index > parked.ownLast) break;
        passBoundaries();
        multiply([&] {
          putWeights();  // under the product for s
          wgmmaFence();
          addDk();
        });
      }
      putWeights();
      wgmmaFence();
      addDk();
      wgmmaCommit();
      wgmmaWait<0>();
      release(at.previousSlot());
      if (a.columnSums) {
        putWarpSum(true);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (t == 0) a.columnSums[bhOf() * a.keys.length + first() + row + 8 * i - a.keys.first] = columnSum[2 * i];
        }
      }
      skipTo(keyWork(a, work).lastTile + 1);
    }

    hold(dk);
    hold(dv);
    T* const outK = a.dk.data + work.b * a.dk.batch + work.h * a.dk.head;
    T* const outV = a.dv.data + work.b * a.dv.batch + work.h * a.dv.head;
    const int64_t key0 = first() + row;
    __syncwarp();
    if (lane == 0) parked.buffer ^= 1;
    takeItem(work, block, lane);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t key = key0 + 8 * i;
      writeRow<T>(dk, i, a.scale, outK + key * a.dk.row, key < a.M, a.dk, t);
      writeRow<T>(dv, i, 1.f, outV + key * a.dv.row, key < a.M, a.dv, t);
    }
  }
#endif
}

template <typename T>
cudaError_t launchBackwardOnePass(const AttentionArgs<T>& a, int multiprocessors, cudaStream_t stream) {
  using Size = OnePassTile;
  const auto kernel = onePassHopperKernel<T>;
  cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Size::shared);
  CUtensorMap q, dO, k, v;
  const int64_t kvHeads = a.H / a.group;
  if (e == cudaSuccess) e = encodeRows(&q, a.q, a.batch, a.N, a.H);
  if (e == cudaSuccess) e = encodeRows(&dO, a.dO, a.batch, a.N, a.H);
  if (e == cudaSuccess) e = encodeRows(&k, a.k, a.batch, a.M, kvHeads);
  if (e == cudaSuccess) e = encodeRows(&v, a.v, a.batch, a.M, kvHeads);
  if (e != cudaSuccess) return e;
  e = cudaMemsetAsync(a.dqCounts, 0, (a.batch * a.H * a.queries.tiles() + 1) * sizeof(int), stream);
  if (e != cudaSuccess) return e;
  const int64_t items = a.batch * kvHeads * divUp(a.M, Size::rows);
  kernel<<<static_cast<unsigned>(std::min<int64_t>(items, multiprocessors)), Size::threads, Size::shared, stream>>>(
      a, q, dO, k, v);
  return lastLaunch();
}

}  // namespace gatedfwa::cuda
