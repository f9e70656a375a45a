// Hopper primitives (PTX ISA, sm_90a): wgmma, TMA copies, mbarriers, register reallocation; and the skeleton that the
// Hopper kernels share.
//
// Every kernel is one persistent block per multiprocessor: one producer warp group, whose warps start TMA copies and
// prepare per-row terms, and `consumers` warp groups, each of which keeps 64 stationary rows and multiplies them with
// the 64-row tiles of a ring of shared-memory stages. A consumer group skips the tiles that its rows do not see.
//
// A tile in shared memory is 64 rows x `head` elements as panels of 64 rows x 64 elements: 128-byte rows whose 16-byte
// chunks are XOR-swizzled by the row number (what TMA writes and wgmma reads as SWIZZLE_128B). The same tile serves as
// wgmma operand in both directions, by the descriptor.
#pragma once

#include <cuda.h>

#include "tile.cuh"

namespace gatedfwa::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define GATEDFWA_HOPPER 1
#else
#define GATEDFWA_HOPPER 0  // compiled for another architecture: these bodies compile to nothing and are never launched
#endif

constexpr int kPanelBytes = 64 * 128;

#if GATEDFWA_HOPPER

// ---- mbarriers

__device__ __forceinline__ void barrierInit(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals) : "memory");
}
/// Makes initialised barriers visible to the copy engine; a __syncthreads must follow.
__device__ __forceinline__ void barrierInitFence() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}
__device__ __forceinline__ void barrierArrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}
/// Arrives, and lets the phase wait for `bytes` of copies as well.
__device__ __forceinline__ void barrierExpect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ bool barrierTry(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}\n"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}
/// Waits until the phase of this parity is complete (parity 1 of a fresh barrier is).
__device__ __forceinline__ void barrierWait(uint32_t barrier, uint32_t parity) {
#if defined(GATEDFWA_BOUNDED_WAITS)  // debug builds: a deadlock traps after about four seconds
  uint64_t start = 0, now;
  while (!barrierTry(barrier, parity)) {
    asm volatile("mov.u64 %0, %%globaltimer;\n" : "=l"(now));
    if (start == 0) start = now;
    if (now - start > 4000000000ull) __trap();
  }
#else
  while (!barrierTry(barrier, parity)) {
  }
#endif
}
/// Orders ordinary shared-memory accesses before later ones of the copy engine and the tensor cores.
__device__ __forceinline__ void asyncProxyFence() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }
/// A barrier of the 128 threads of a warp group.
__device__ __forceinline__ void groupBarrier(int group) {
  asm volatile("bar.sync %0, 128;\n" ::"r"(group + 1) : "memory");
}

// ---- copies

/// Starts the copy of 64 rows of one head, all panels; `barrier` counts its bytes.
template <int head>
__device__ __forceinline__ void copyTensor(uint32_t tile, const CUtensorMap& map, int row, int h, int b,
                                           uint32_t barrier) {
#pragma unroll
  for (int panel = 0; panel < head / 64; ++panel)
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
        "[%6];\n" ::"r"(tile + panel * kPanelBytes),
        "l"(reinterpret_cast<uint64_t>(&map)), "r"(panel * 64), "r"(row), "r"(h), "r"(b), "r"(barrier)
        : "memory");
}

/// Starts the copy of `count` floats (16-byte aligned); `barrier` counts its bytes.
template <int count>
__device__ __forceinline__ void copyFloatsBulk(const float* shared, const float* global, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(
                   sharedAddress(shared)),
               "l"(global), "n"(count * 4), "r"(barrier)
               : "memory");
}

// ---- registers

template <int count>
__device__ __forceinline__ void raiseRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(count));
}
template <int count>
__device__ __forceinline__ void lowerRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(count));
}

// ---- wgmma

/// Before the first product, and whenever registers of a product were written.
__device__ __forceinline__ void wgmmaFence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ __forceinline__ void wgmmaCommit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
/// Waits until at most `pending` groups of products are under way.
template <int pending>
__device__ __forceinline__ void wgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(pending) : "memory");
}
/// Keeps the compiler from reading accumulators before the wait that precedes this.
template <int blocks>
__device__ __forceinline__ void hold(float (&c)[blocks][4]) {
#pragma unroll
  for (int n = 0; n < blocks; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(c[n][e])::"memory");
}

/// Shared-memory operand descriptor, 128-byte swizzle. As stored rows = M or N, columns = depth ("K-major"): 16 of
/// depth are 32 bytes on. As stored rows = depth, columns = N ("N-major"): 16 of depth are 2048 bytes on, and the next
/// 64 columns one panel. In both, groups of 8 rows are 1024 bytes apart.
__device__ __forceinline__ uint64_t descriptor(uint32_t address) {
  constexpr uint64_t fixed =
      static_cast<uint64_t>(kPanelBytes >> 4) << 16 | static_cast<uint64_t>(1024 >> 4) << 32 | 1ull << 62;
  return fixed | ((address & 0x3ffff) >> 4);
}
/// The same of an address that stays the same over a loop: keeps the compiler from holding the descriptor of every
/// depth step in registers through the loop (they end in local memory, whose loads cost as much as global ones).
__device__ __forceinline__ uint64_t descriptorHere(uint32_t address) {
  asm volatile("" : "+r"(address));
  return descriptor(address);
}
/// Step `d` along the depth, of a K-major operand and of an N-major one.
__device__ __forceinline__ uint64_t depthStep(uint64_t descriptor, int d) {
  return descriptor + ((d / 4) * (kPanelBytes >> 4) + (d % 4) * (32 >> 4));
}
__device__ __forceinline__ uint64_t rowStep(uint64_t descriptor, int d) { return descriptor + d * (2048 >> 4); }

#define GATEDFWA_C4(c, n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define GATEDFWA_C32(c, n)                                                                                       \
  GATEDFWA_C4(c, n), GATEDFWA_C4(c, n + 1), GATEDFWA_C4(c, n + 2), GATEDFWA_C4(c, n + 3), GATEDFWA_C4(c, n + 4), \
      GATEDFWA_C4(c, n + 5), GATEDFWA_C4(c, n + 6), GATEDFWA_C4(c, n + 7)
#define GATEDFWA_D4(c, n) "=f"(c[n][0]), "=f"(c[n][1]), "=f"(c[n][2]), "=f"(c[n][3])
#define GATEDFWA_D32(c)                                                                                             \
  GATEDFWA_D4(c, 0), GATEDFWA_D4(c, 1), GATEDFWA_D4(c, 2), GATEDFWA_D4(c, 3), GATEDFWA_D4(c, 4), GATEDFWA_D4(c, 5), \
      GATEDFWA_D4(c, 6), GATEDFWA_D4(c, 7)
#define GATEDFWA_R32                                                                                       \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27," \
  "%28,%29,%30,%31"
#define GATEDFWA_R64                                                                          \
  GATEDFWA_R32                                                                                \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53," \
  "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

// c (64 x 64) = [c +] a b; both operands in shared memory, K-major.
#define GATEDFWA_WGMMA_SHARED(type)                                                                                  \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type \
               " {" GATEDFWA_R32 "}, %32, %33, p, 1, 1, 0, 0;\n}\n"                                                  \
               : GATEDFWA_C32(c, 0)                                                                                  \
               : "l"(a), "l"(b), "r"(accumulate))
// c = a b: what c held before is dead.
#define GATEDFWA_WGMMA_SHARED_START(type)                                                                          \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 0, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type \
               " {" GATEDFWA_R32 "}, %32, %33, p, 1, 1, 0, 0;\n}\n"                                                \
               : GATEDFWA_D32(c)                                                                                   \
               : "l"(a), "l"(b))
#define GATEDFWA_WGMMA_REGISTERS_START(type)                                                                       \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 0, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type \
               " {" GATEDFWA_R32 "}, {%32,%33,%34,%35}, %36, p, 1, 1, 0;\n}\n"                                     \
               : GATEDFWA_D32(c)                                                                                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
// The same with a from registers and b K-major (trans 0) or N-major (trans 1).
#define GATEDFWA_WGMMA_REGISTERS(type, trans)                                                                        \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type \
               " {" GATEDFWA_R32 "}, {%32,%33,%34,%35}, %36, p, 1, 1, " trans ";\n}\n"                               \
               : GATEDFWA_C32(c, 0)                                                                                  \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate))
// c (64 x 128) += a b, a from registers, b N-major.
#define GATEDFWA_WGMMA_REGISTERS_WIDE(type)                                                   \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" GATEDFWA_R64 \
               "}, {%64,%65,%66,%67}, %68, 1, 1, 1, 1;\n"                                     \
               : GATEDFWA_C32(c, 0), GATEDFWA_C32(c, 8)                                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

template <typename T>
__device__ __forceinline__ void wgmmaScores(float (&c)[8][4], uint64_t a, uint64_t b, int accumulate) {
  if constexpr (std::is_same<T, __half>::value)
    GATEDFWA_WGMMA_SHARED("f16");
  else
    GATEDFWA_WGMMA_SHARED("bf16");
}
template <typename T>
__device__ __forceinline__ void wgmmaScores(float (&c)[8][4], const uint32_t (&a)[4], uint64_t b, int accumulate) {
  if constexpr (std::is_same<T, __half>::value)
    GATEDFWA_WGMMA_REGISTERS("f16", "0");
  else
    GATEDFWA_WGMMA_REGISTERS("bf16", "0");
}
/// c = a b.
template <typename T>
__device__ __forceinline__ void wgmmaStart(float (&c)[8][4], uint64_t a, uint64_t b) {
  if constexpr (std::is_same<T, __half>::value)
    GATEDFWA_WGMMA_SHARED_START("f16");
  else
    GATEDFWA_WGMMA_SHARED_START("bf16");
}
template <typename T>
__device__ __forceinline__ void wgmmaStart(float (&c)[8][4], const uint32_t (&a)[4], uint64_t b) {
  if constexpr (std::is_same<T, __half>::value)
    GATEDFWA_WGMMA_REGISTERS_START("f16");
  else
    GATEDFWA_WGMMA_REGISTERS_START("bf16");
}
/// c += a b with a = 64 x 16 weights, b N-major.
template <typename T>
__device__ __forceinline__ void wgmmaValues(float (&c)[8][4], const uint32_t (&a)[4], uint64_t b) {
  constexpr int accumulate = 1;
  if constexpr (std::is_same<T, __half>::value)
    GATEDFWA_WGMMA_REGISTERS("f16", "1");
  else
    GATEDFWA_WGMMA_REGISTERS("bf16", "1");
}
template <typename T>
__device__ __forceinline__ void wgmmaValues(float (&c)[16][4], const uint32_t (&a)[4], uint64_t b) {
  if constexpr (std::is_same<T, __half>::value)
    GATEDFWA_WGMMA_REGISTERS_WIDE("f16");
  else
    GATEDFWA_WGMMA_REGISTERS_WIDE("bf16");
}

/// c (64 x 64) = x y^T over the whole head, x and y tiles.
template <typename T, int head>
__device__ __forceinline__ void multiplyTiles(float (&c)[8][4], uint64_t x, uint64_t y) {
  wgmmaStart<T>(c, x, y);
#pragma unroll
  for (int d = 1; d < head / 16; ++d) wgmmaScores<T>(c, depthStep(x, d), depthStep(y, d), 1);
}
/// The same, x in registers.
template <typename T, int head>
__device__ __forceinline__ void multiplyTiles(float (&c)[8][4], const uint32_t (&x)[head / 16][4], uint64_t y) {
  wgmmaStart<T>(c, x[0], y);
#pragma unroll
  for (int d = 1; d < head / 16; ++d) wgmmaScores<T>(c, x[d], depthStep(y, d), 1);
}
/// c += x y^T where `accumulate` is not 0, else c = x y^T.
template <typename T, int head>
__device__ __forceinline__ void addTiles(float (&c)[8][4], uint64_t x, uint64_t y, int accumulate) {
#pragma unroll
  for (int d = 0; d < head / 16; ++d) wgmmaScores<T>(c, depthStep(x, d), depthStep(y, d), d > 0 ? 1 : accumulate);
}
template <typename T, int head>
__device__ __forceinline__ void addTiles(float (&c)[8][4], const uint32_t (&x)[head / 16][4], uint64_t y,
                                         int accumulate) {
#pragma unroll
  for (int d = 0; d < head / 16; ++d) wgmmaScores<T>(c, x[d], depthStep(y, d), d > 0 ? 1 : accumulate);
}
/// c (64 x head) += w y, w 64 x 64 weights in registers, y a tile.
template <typename T, int blocks>
__device__ __forceinline__ void multiplyWeights(float (&c)[blocks][4], const uint32_t (&w)[4][4], uint64_t y) {
#pragma unroll
  for (int d = 0; d < 4; ++d) wgmmaValues<T>(c, w[d], rowStep(y, d));
}
/// 64 x 64 accumulators as the weights of multiplyWeights.
template <typename T>
__device__ __forceinline__ void packWeights(uint32_t (&w)[4][4], const float (&c)[8][4]) {
#pragma unroll
  for (int d = 0; d < 4; ++d)
#pragma unroll
    for (int i = 0; i < 4; ++i) w[d][i] = packPair(T(), c[2 * d + i / 2][i % 2 * 2], c[2 * d + i / 2][i % 2 * 2 + 1]);
}
/// A warp's 16 rows of a tile as register operands.
template <int head>
__device__ __forceinline__ void loadRows(uint32_t (&x)[head / 16][4], uint32_t tile, int warp, int lane) {
  const LaneOffset at = laneOfA<128>(lane);
#pragma unroll
  for (int d = 0; d < head / 16; ++d)
    loadMatrix(x[d], fragmentAddress<128>(tile + (d / 4) * kPanelBytes + warp * 16 * 128, at, 0, (d % 4) * 32));
}

// ---- scores

/// One term per column: the thread's columns, and score accumulators that start with it.
__device__ __forceinline__ void loadColumns(float (&term)[8][2], const float* terms, int t) {
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const float2 x = *reinterpret_cast<const float2*>(terms + 8 * n + 2 * t);
    term[n][0] = x.x;
    term[n][1] = x.y;
  }
}
__device__ __forceinline__ void startColumns(float (&s)[8][4], const float (&term)[8][2]) {
#pragma unroll
  for (int n = 0; n < 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) s[n][e] = term[n][e % 2];
  hold(s);
}
/// Hides the columns of row half `i` whose bit is not set.
__device__ __forceinline__ void hideColumns(float (&s)[8][4], int i, uint64_t visible, int t) {
  const uint64_t bits = visible >> (2 * t);
  const uint32_t half[2] = {static_cast<uint32_t>(bits), static_cast<uint32_t>(bits >> 32)};
#pragma unroll
  for (int n = 0; n < 8; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e)
      if (!(half[n / 4] & (1u << (8 * (n % 4) + e)))) s[n][2 * i + e] = -infinity<float>();
}
/// Bits first..63 (none if first >= 64, all if first <= 0); bits 0..last-1 likewise.
__device__ __forceinline__ uint64_t bitsFrom(int first) {
  return first <= 0 ? ~0ull : first >= 64 ? 0ull : ~0ull << first;
}
__device__ __forceinline__ uint64_t bitsBelow(int last) { return ~bitsFrom(last); }

// ---- the skeleton

/// Position in a ring of stages; `phase` is the parity of its use.
template <int stages>
struct Ring {
  int slot = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void advance() {
    if (++slot == stages) {
      slot = 0;
      phase ^= 1;
    }
  }
  __device__ __forceinline__ int previousSlot() const { return slot == 0 ? stages - 1 : slot - 1; }
};

/// Shared memory of a block: each consumer group's stationary tiles, the ring (two tiles a stage), a stage's terms, the
/// barriers, and 64 bytes a warp.
template <typename Size, typename Terms>
struct HopperBlock {
  uint32_t stationary, ring, barriers;
  Terms* terms;

  __device__ __forceinline__ explicit HopperBlock(unsigned char* shared)
      : stationary(sharedAddress(shared)),
        ring(stationary + Size::consumers * Size::stationaryTiles * Size::tileBytes),
        barriers(ring + Size::stages * (2 * Size::tileBytes + static_cast<int>(sizeof(Terms)))),
        terms(reinterpret_cast<Terms*>(shared + Size::consumers * Size::stationaryTiles * Size::tileBytes +
                                       Size::stages * 2 * Size::tileBytes)) {}
  __device__ __forceinline__ void* warpSpace(int warp) const {
    return reinterpret_cast<char*>(terms + Size::stages) + 8 * Size::barriers + 64 * warp;
  }
  __device__ __forceinline__ uint32_t stationaryTile(int group, int i) const {
    return stationary + (group * Size::stationaryTiles + i) * Size::tileBytes;
  }
  __device__ __forceinline__ uint32_t streamedTile(int slot, int i) const {
    return ring + (2 * slot + i) * Size::tileBytes;
  }
  /// The copies of a stage are there; its masked rows are zeroed; every consumer warp is done with it.
  __device__ __forceinline__ uint32_t landed(int slot) const { return barriers + 8 * slot; }
  __device__ __forceinline__ uint32_t ready(int slot) const { return barriers + 8 * (Size::stages + slot); }
  __device__ __forceinline__ uint32_t freed(int slot) const { return barriers + 8 * (2 * Size::stages + slot); }
  /// Of a consumer group's stationary tiles.
  __device__ __forceinline__ uint32_t kept(int group) const { return barriers + 8 * (3 * Size::stages + group); }
  __device__ __forceinline__ uint32_t released(int group) const {
    return barriers + 8 * (3 * Size::stages + Size::consumers + group);
  }
  /// `landedArrivals`: 2 if the terms of a stage count as part of its copies, else 1.
  __device__ __forceinline__ void initialise(int landedArrivals) const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < Size::stages; ++i) {
        barrierInit(landed(i), landedArrivals);
        barrierInit(ready(i), 1);
        barrierInit(freed(i), 4 * Size::consumers);
      }
      for (int i = 0; i < Size::consumers; ++i) {
        barrierInit(kept(i), 1);
        barrierInit(released(i), 4);
      }
      barrierInitFence();
    }
    __syncthreads();
  }
};

/// Zeroes the rows of two neighbouring tiles whose bit is not set, so that no product sees what they hold. By a warp.
template <int head>
__device__ __forceinline__ void zeroRows(uint32_t tiles, uint64_t real, int lane) {
  constexpr int chunks = 2 * (head / 64) * 8;  // of a row: panels of both tiles
  for (uint64_t hidden = ~real; hidden; hidden &= hidden - 1) {
    const uint32_t row = tiles + (__ffsll(hidden) - 1) * 128;
    if (lane < chunks)
      asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};\n" ::"r"(row + lane / 8 * kPanelBytes + lane % 8 * 16),
                   "r"(0)
                   : "memory");
  }
}

/// What a query-stationary block needs of a streamed key tile besides K and V.
struct alignas(16) HopperKeyTerms {
  float term[kSumTile];    ///< -suffix in the kernel's units, -infinity where the key is masked
  float prefix[kSumTile];  ///< log2 units
  uint64_t bits, resets;
  float total;  ///< infinity if there is a reset
};

/// The work of a block: every gridDim.x-th of batch x heads x tiles, from blockIdx.x on.
struct WorkList {
  int b, h, tile, batch, heads, tiles, stepB, stepH, stepTile;

  __device__ __forceinline__ WorkList(int64_t batches, int headCount, int tileCount)
      : batch(static_cast<int>(batches)), heads(headCount), tiles(tileCount) {
    const int first = blockIdx.x, step = gridDim.x;
    tile = first % tiles;
    h = first / tiles % heads;
    b = first / tiles / heads;
    stepTile = step % tiles;
    stepH = step / tiles % heads;
    stepB = step / tiles / heads;
  }
  __device__ __forceinline__ bool more() const { return b < batch; }
  __device__ __forceinline__ void advance() {
    tile += stepTile;
    h += stepH;
    b += stepB;
    if (tile >= tiles) {
      tile -= tiles;
      ++h;
    }
    if (h >= heads) {
      h -= heads;
      ++b;
    }
  }
};

/// `rows` queries of one head, and the key tiles that any of them sees.
struct QueryWork {
  int64_t bh;
  int b, h, origin, newest, oldest;

  template <typename T>
  __device__ __forceinline__ QueryWork(const AttentionArgs<T>& a, const WorkList& at, int rows)
      : bh(static_cast<int64_t>(at.b) * a.H + at.h),
        b(at.b),
        h(at.h),
        origin(static_cast<int>(a.queries.first) + at.tile * rows),
        newest((min(origin + rows, a.M) - 1) / kSumTile),
        oldest(max(0, max(origin, a.M - a.N) - a.window + 1) / kSumTile) {}
};
template <typename T>
__device__ __forceinline__ WorkList queryWorkList(const AttentionArgs<T>& a, int rows) {
  return WorkList(a.batch, a.H, static_cast<int>((a.M - a.queries.first + rows - 1) / rows));
}

/// Producer thread of a query-stationary kernel: K and V tiles, newest first.
template <int head, int rows, typename Block, int stages, typename T>
__device__ __forceinline__ void produceKeys(const AttentionArgs<T>& a, const Block& block, Ring<stages> at,
                                            const CUtensorMap& mapK, const CUtensorMap& mapV) {
  for (WorkList work = queryWorkList(a, rows); work.more(); work.advance()) {
    const QueryWork x(a, work, rows);
    const int kvHead = x.h / a.group;
    for (int index = x.newest; index >= x.oldest; --index, at.advance()) {
      barrierWait(block.freed(at.slot), at.phase ^ 1);
      barrierExpect(block.landed(at.slot), 2 * head * 128);
      copyTensor<head>(block.streamedTile(at.slot, 0), mapK, index * kSumTile, kvHead, x.b, block.landed(at.slot));
      copyTensor<head>(block.streamedTile(at.slot, 1), mapV, index * kSumTile, kvHead, x.b, block.landed(at.slot));
    }
  }
}

/// Producer thread of a query-stationary kernel: each group's queries, and their dO if there is a map of it.
template <int head, int rows, typename Block, typename T>
__device__ __forceinline__ void produceQueries(const AttentionArgs<T>& a, const Block& block, const CUtensorMap& mapQ,
                                               const CUtensorMap* mapDo) {
  const int offset = a.M - a.N;
  uint32_t phases = 0;  // a bit per group
  for (WorkList work = queryWorkList(a, rows); work.more(); work.advance()) {
    const QueryWork x(a, work, rows);
    for (int group = rows / kSumTile - 1; group >= 0; --group) {  // the newest rows start, and end, first
      const int first = x.origin + group * kSumTile;
      if (first >= a.M || first + kSumTile <= offset) continue;
      barrierWait(block.released(group), (~phases >> group) & 1);
      phases ^= 1u << group;
      barrierExpect(block.kept(group), (mapDo ? 2 : 1) * head * 128);
      copyTensor<head>(block.stationaryTile(group, 0), mapQ, first - offset, x.h, x.b, block.kept(group));
      if (mapDo) copyTensor<head>(block.stationaryTile(group, 1), *mapDo, first - offset, x.h, x.b, block.kept(group));
    }
  }
}

/// Has a query-stationary kernel key terms? They arrive with the copies, unless rows must be zeroed in between.
template <typename T>
__device__ __forceinline__ bool hasKeyTerms(const AttentionArgs<T>& a) {
  return a.sums.suffix || a.keyBits;
}
template <typename T>
__device__ __forceinline__ int keyTileArrivals(const AttentionArgs<T>& a) {
  return hasKeyTerms(a) && !a.keyBits ? 2 : 1;
}

/// What a key tile's terms are made from, a column pair a lane.
struct KeyTermsInput {
  float2 suffix, prefix;
  uint64_t bits, resets;

  template <typename T>
  __device__ __forceinline__ void load(const AttentionArgs<T>& a, const QueryWork& x, int index, int lane) {
    const int64_t tile = index - a.keys.first / kSumTile;
    bits = a.keyBits ? a.keyBits[x.b * a.keys.tiles() + tile] : ~0ull;
    resets = 0;
    suffix = prefix = make_float2(0.f, 0.f);
    if (a.sums.suffix) {
      const int64_t from = x.bh * a.keys.length + tile * kSumTile + 2 * lane;
      suffix = *reinterpret_cast<const float2*>(a.sums.suffix + from);
      prefix = *reinterpret_cast<const float2*>(a.sums.prefix + from);
      resets = a.sums.resets[x.bh * a.keys.tiles() + tile];
    }
  }
};

/// Producer warp of a query-stationary kernel: the terms of the key tiles, suffixes times `unitsPerLog2`; zeroes masked
/// rows.
template <int head, int rows, typename Block, int stages, typename T>
__device__ __forceinline__ void produceKeyTerms(const AttentionArgs<T>& a, const Block& block, Ring<stages> at,
                                                float unitsPerLog2) {
  const int lane = threadIdx.x % 32;
  const float inf = infinity<float>();
  for (WorkList work = queryWorkList(a, rows); work.more(); work.advance()) {
    const QueryWork x(a, work, rows);
    KeyTermsInput next;
    next.load(a, x, x.newest, lane);
    for (int index = x.newest; index >= x.oldest; --index, at.advance()) {
      const KeyTermsInput from = next;
      if (index > x.oldest) next.load(a, x, index - 1, lane);
      barrierWait(block.freed(at.slot), at.phase ^ 1);
      HopperKeyTerms& to = block.terms[at.slot];
      *reinterpret_cast<float2*>(to.term + 2 * lane) =
          make_float2((from.bits >> (2 * lane)) & 1 ? -from.suffix.x * unitsPerLog2 : -inf,
                      (from.bits >> (2 * lane + 1)) & 1 ? -from.suffix.y * unitsPerLog2 : -inf);
      *reinterpret_cast<float2*>(to.prefix + 2 * lane) = from.prefix;
      if (lane == 31) {
        to.bits = from.bits;
        to.resets = from.resets;
        to.total = from.resets ? inf : from.prefix.y;
      }
      if (from.bits != ~0ull) {
        barrierWait(block.landed(at.slot), at.phase);
        zeroRows<head>(block.streamedTile(at.slot, 0), from.bits, lane);
        asyncProxyFence();
      }
      __syncwarp();
      if (lane == 0) barrierArrive(a.keyBits ? block.ready(at.slot) : block.landed(at.slot));
    }
  }
}

/// Scores of the tile that holds the rows themselves: the decay prefix_row - prefix_column is added, and what is not
/// visible (later columns, the window's end, what a hard reset cuts off, masked keys) hidden. `terms` is null if there
/// is neither decay nor mask; `row`: the thread's first row of the tile.
__device__ __forceinline__ void finishDiagonal(float (&s)[8][4], const HopperKeyTerms* terms, int row, int t,
                                               int window, float rawPerLog2) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int p = row + 8 * i;
    uint64_t visible = bitsThrough(p) & bitsFrom(p - window + 1);
    if (terms) {
      const float own = terms->prefix[p];
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const float2 x = *reinterpret_cast<const float2*>(terms->prefix + 8 * n + 2 * t);
        s[n][2 * i] = fmaf(x.x - own, rawPerLog2, s[n][2 * i]);
        s[n][2 * i + 1] = fmaf(x.y - own, rawPerLog2, s[n][2 * i + 1]);
      }
      const uint64_t resets = terms->resets & bitsThrough(p);
      if (resets) visible &= bitsFrom(63 - __clzll(resets));
      visible &= terms->bits;
    }
    hideColumns(s, i, visible, t);
  }
}

#endif  // GATEDFWA_HOPPER

}  // namespace gatedfwa::cuda
