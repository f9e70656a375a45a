// Hopper primitives (PTX ISA, sm_90a): wgmma, TMA copies, mbarriers, register reallocation; and the skeleton that the
// Hopper kernels share.
//
// Every kernel is one persistent block per multiprocessor: one producer warp group, whose warps start TMA copies
// (decays travel with the tiles) and zero masked rows, and `consumers` warp groups, each of which keeps 64 stationary
// rows and multiplies them with the 64-row tiles of a ring of shared-memory stages. A consumer group skips the tiles
// that its rows do not see.
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

/// Starts the copy of `bytes` bytes, 16-byte aligned and a multiple of 16; `barrier` counts them.
__device__ __forceinline__ void copyBulk(uint32_t shared, const void* global, int bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(shared),
      "l"(global), "r"(bytes), "r"(barrier)
      : "memory");
}
template <int count, typename E>
__device__ __forceinline__ void copyBulk(const E* shared, const E* global, uint32_t barrier) {
  copyBulk(sharedAddress(shared), global, count * static_cast<int>(sizeof(E)), barrier);
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
/// Keeps the compiler from reading accumulators before the wait that precedes this, and from computing what they hold
/// after a wait that follows. ptxas still moves such a wait up within a block of instructions: where arithmetic is to
/// run under products, a branch (a barrier's wait) must lie between it and the wait.
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
/// sum (16 x 8, columns alike) += the row sums of 16 x 16 weights.
template <typename T>
__device__ __forceinline__ void addRowSums(float (&sum)[4], const uint32_t (&w)[4]) {
  const uint32_t ones = packPair(T(), 1.f, 1.f);
#define GATEDFWA_MMA_ONES(type)                                         \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type   \
               ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%8},"            \
               " {%0,%1,%2,%3};\n"                                      \
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]) \
               : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(ones))
  if constexpr (std::is_same<T, __half>::value)
    GATEDFWA_MMA_ONES("f16");
  else
    GATEDFWA_MMA_ONES("bf16");
}

/// A warp's 16 rows of a tile as register operands.
template <int head>
__device__ __forceinline__ void loadRows(uint32_t (&x)[head / 16][4], uint32_t tile, int warp, int lane) {
  const LaneOffset at = laneOfA<128>(lane);
#pragma unroll
  for (int d = 0; d < head / 16; ++d)
    loadMatrix(x[d], fragmentAddress<128>(tile + (d / 4) * kPanelBytes + warp * 16 * 128, at, 0, (d % 4) * 32));
}

// ---- outputs

/// A warp's fragment of 16 rows x 16 columns, `to` as for loadMatrix.
__device__ __forceinline__ void storeMatrix(uint32_t to, const uint32_t (&w)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(to), "r"(w[0]), "r"(w[1]),
               "r"(w[2]), "r"(w[3])
               : "memory");
}
/// Writes a warp's accumulators, 16 rows, to the rows `row` of the thread's row halves, each times its factor. They go
/// by way of `space`, kRowSpace bytes of the warp's own, so that each lane writes 16 bytes.
template <typename T, int blocks>
__device__ __forceinline__ void writeRowsShared(const float (&c)[blocks][4], const float (&factor)[2],
                                                T* const (&row)[2], const bool (&valid)[2], const OutRows<T>& out,
                                                uint32_t space, int lane) {
  // Chunk j of row r lies at 64 r + 16 (j ^ (r / 2) % 4): no bank conflicts, by rows of a matrix or by chunks of a row.
  const uint32_t put = space + lane % 8 * 64 + (lane / 8 ^ lane / 2 % 4) * 16;
  const uint32_t get = space + lane / 4 * 64 + (lane % 4 ^ lane / 8) * 16;
  uint32_t v[2][blocks / 4][4];
#pragma unroll
  for (int m = 0; m < blocks / 4; ++m) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t w[4];
#pragma unroll
      for (int j = 0; j < 4; ++j)
        w[j] = packPair(T(), c[4 * m + j][2 * i] * factor[i], c[4 * m + j][2 * i + 1] * factor[i]);
      storeMatrix(put + i * 512, w);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; ++i)
      asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];\n"
                   : "=r"(v[i][m][0]), "=r"(v[i][m][1]), "=r"(v[i][m][2]), "=r"(v[i][m][3])
                   : "r"(get + i * 512)
                   : "memory");
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) writeChunks<T>(v[i], row[i], valid[i], out, lane % 4);
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
__device__ __forceinline__ void startColumns(float (&s)[8][4], const float (&term)[8][2], float factor) {
#pragma unroll
  for (int n = 0; n < 8; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) s[n][e] = s[n][e + 2] = term[n][e] * factor;
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
  __device__ __forceinline__ Ring next() const {
    Ring x = *this;
    x.advance();
    return x;
  }
  __device__ __forceinline__ int previousSlot() const { return slot == 0 ? stages - 1 : slot - 1; }
};

/// Shared memory of a block: each consumer group's stationary tiles, the ring (two tiles a stage), a stage's terms,
/// kRowSpace for each consumer warp, the barriers, and 64 bytes a warp.
template <typename Size, typename Terms>
struct HopperBlock {
  uint32_t stationary, ring, barriers;
  Terms* terms;

  __device__ __forceinline__ explicit HopperBlock(unsigned char* shared)
      : stationary(sharedAddress(shared)),
        ring(stationary + Size::consumers * Size::stationaryTiles * Size::tileBytes),
        barriers(ring + Size::stages * (2 * Size::tileBytes + static_cast<int>(sizeof(Terms))) + Size::rowSpaces),
        terms(reinterpret_cast<Terms*>(shared + Size::consumers * Size::stationaryTiles * Size::tileBytes +
                                       Size::stages * 2 * Size::tileBytes)) {}
  __device__ __forceinline__ void* warpSpace(int warp) const {
    return reinterpret_cast<char*>(terms + Size::stages) + Size::rowSpaces + 8 * Size::barriers + 64 * warp;
  }
  /// kRowSpace bytes of a consumer warp's own.
  __device__ __forceinline__ uint32_t rowSpace(int group, int warpInGroup) const {
    return sharedAddress(terms + Size::stages) + (4 * group + warpInGroup) * kRowSpace;
  }
  __device__ __forceinline__ uint32_t stationaryTile(int group, int i) const {
    return stationary + (group * Size::stationaryTiles + i) * Size::tileBytes;
  }
  __device__ __forceinline__ uint32_t streamedTile(int slot, int i) const {
    return ring + (2 * slot + i) * Size::tileBytes;
  }
  /// The copies of a stage are there; its masked rows are zeroed; the consumers are done with it. All lanes of a warp
  /// arrive: each vouches for its own accesses, which compute-sanitizer's racecheck can follow.
  __device__ __forceinline__ uint32_t landed(int slot) const { return barriers + 8 * slot; }
  __device__ __forceinline__ uint32_t ready(int slot) const { return barriers + 8 * (Size::stages + slot); }
  __device__ __forceinline__ uint32_t freed(int slot) const { return barriers + 8 * (2 * Size::stages + slot); }
  /// What a consumer group keeps is there; its warps are done with it. In two parts, `i` = 0, 1.
  __device__ __forceinline__ uint32_t kept(int group, int i = 0) const {
    return barriers + 8 * (3 * Size::stages + 2 * group + i);
  }
  __device__ __forceinline__ uint32_t released(int group, int i = 0) const {
    return barriers + 8 * (3 * Size::stages + 2 * Size::consumers + 2 * group + i);
  }
  __device__ __forceinline__ void initialise() const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < Size::stages; ++i) {
        barrierInit(landed(i), 1);
        barrierInit(ready(i), 32);
        barrierInit(freed(i), 128 * Size::consumers);
      }
      for (int i = 0; i < Size::consumers; ++i) {
        for (int part = 0; part < 2; ++part) {
          barrierInit(kept(i, part), 1);
          barrierInit(released(i, part), 128);
        }
      }
      barrierInitFence();
    }
    __syncthreads();
  }
};

/// Zeroes the rows of neighbouring tiles whose bit is not set, so that no product sees what they hold. By a warp.
template <int head, int count = 2>
__device__ __forceinline__ void zeroRows(uint32_t tiles, uint64_t real, int lane) {
  constexpr int chunks = count * (head / 64) * 8;  // of a row: panels of all tiles
  for (uint64_t hidden = ~real; hidden; hidden &= hidden - 1) {
    const uint32_t row = tiles + (__ffsll(hidden) - 1) * 128;
    if (lane < chunks)
      asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};\n" ::"r"(row + lane / 8 * kPanelBytes + lane % 8 * 16),
                   "r"(0)
                   : "memory");
  }
}

/// A tile's decay, in shared memory; infinity if it has a reset. Not by the compiler's own loads: it knows the value to
/// be the same in all lanes and would wait for it here, to move it to a uniform register.
__device__ __forceinline__ float tileTotal(const uint64_t* resets, const float* lastPrefix) {
  uint32_t low, high;
  float total;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];\n" : "=r"(low), "=r"(high) : "r"(sharedAddress(resets)) : "memory");
  asm volatile("ld.shared.f32 %0, [%1];\n" : "=f"(total) : "r"(sharedAddress(lastPrefix)) : "memory");
  return low | high ? infinity<float>() : total;
}

/// What a query-stationary block needs of a streamed key tile besides K and V: decays in log2 units, and which keys are
/// real.
struct alignas(16) HopperKeyTerms {
  float suffix[kSumTile], prefix[kSumTile];
  uint64_t resets[2];  ///< of the tile and its neighbour, the even one first
  uint64_t bits;

  /// The decay over the tile `index`; infinity if there is a reset.
  __device__ __forceinline__ float total(int index) const {
    return tileTotal(resets + (index & 1), prefix + kSumTile - 1);
  }
};

/// The work of a block: every gridDim.x-th of the tiles of the (batch entry, head) pairs [from, to).
struct WorkList {
  int b, h, tile, end, heads, tiles, stepB, stepH, stepTile;

  __device__ __forceinline__ WorkList(int from, int to, int headCount, int tileCount)
      : end(to), heads(headCount), tiles(tileCount) {
    const int first = from * tiles + blockIdx.x, step = gridDim.x;
    tile = first % tiles;
    h = first / tiles % heads;
    b = first / tiles / heads;
    stepTile = step % tiles;
    stepH = step / tiles % heads;
    stepB = step / tiles / heads;
  }
  __device__ __forceinline__ bool more() const { return b * heads + h < end; }
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
  return WorkList(a.pairs.from * a.group, a.pairs.to * a.group, a.H,
                  static_cast<int>((a.M - a.queries.first + rows - 1) / rows));
}

/// Producer thread of a query-stationary kernel: K and V tiles with their decays, newest first.
template <int head, int rows, typename Block, int stages, typename T>
__device__ __forceinline__ void produceKeys(const AttentionArgs<T>& a, const Block& block, Ring<stages> at,
                                            const CUtensorMap& mapK, const CUtensorMap& mapV) {
  constexpr int termBytes = 2 * kSumTile * 4 + 16;
  for (WorkList work = queryWorkList(a, rows); work.more(); work.advance()) {
    const QueryWork x(a, work, rows);
    const int kvHead = x.h / a.group;
    for (int index = x.newest; index >= x.oldest; --index, at.advance()) {
      const uint32_t landed = block.landed(at.slot);
      barrierWait(block.freed(at.slot), at.phase ^ 1);
      barrierExpect(landed, 2 * head * 128 + (a.sums.suffix ? termBytes : 0));
      copyTensor<head>(block.streamedTile(at.slot, 0), mapK, index * kSumTile, kvHead, x.b, landed);
      copyTensor<head>(block.streamedTile(at.slot, 1), mapV, index * kSumTile, kvHead, x.b, landed);
      if (a.sums.suffix) {
        const HopperKeyTerms& terms = block.terms[at.slot];
        const int64_t tile = x.bh * a.keys.tiles() + index - a.keys.first / kSumTile;
        copyBulk<kSumTile>(terms.suffix, a.sums.suffix + tile * kSumTile, landed);
        copyBulk<kSumTile>(terms.prefix, a.sums.prefix + tile * kSumTile, landed);
        copyBulk<2>(terms.resets, a.sums.resets + (tile & ~1), landed);
      }
    }
  }
}

/// Producer thread of a query-stationary kernel: each group's queries; in the backward their dO with them, and o.
template <int head, int rows, typename Block, typename T>
__device__ __forceinline__ void produceQueries(const AttentionArgs<T>& a, const Block& block, const CUtensorMap& mapQ,
                                               const CUtensorMap* mapDo = nullptr, const CUtensorMap* mapO = nullptr) {
  const int offset = a.M - a.N;
  uint32_t phases = 0;  // a bit per group
  for (WorkList work = queryWorkList(a, rows); work.more(); work.advance()) {
    const QueryWork x(a, work, rows);
    const uint32_t before = phases;
    for (int part = mapO ? 1 : 0; part >= 0; --part) {              // o is done with long before Q and dO
      for (int group = rows / kSumTile - 1; group >= 0; --group) {  // the newest rows start, and end, first
        const int first = x.origin + group * kSumTile;
        if (first >= a.M || first + kSumTile <= offset) continue;
        const uint32_t kept = block.kept(group, part);
        barrierWait(block.released(group, part), (~before >> group) & 1);
        if (part == 1) {
          barrierExpect(kept, head * 128);
          copyTensor<head>(block.stationaryTile(group, 2), *mapO, first - offset, x.h, x.b, kept);
        } else {
          phases ^= 1u << group;
          barrierExpect(kept, (mapDo ? 2 : 1) * head * 128);
          copyTensor<head>(block.stationaryTile(group, 0), mapQ, first - offset, x.h, x.b, kept);
          if (mapDo) copyTensor<head>(block.stationaryTile(group, 1), *mapDo, first - offset, x.h, x.b, kept);
        }
      }
    }
  }
}

/// Producer warp of a query-stationary kernel where keys are masked: which are real; zeroes the rows of the others, so
/// that no product sees what they hold.
template <int head, int rows, typename Block, int stages, typename T>
__device__ __forceinline__ void produceKeyBits(const AttentionArgs<T>& a, const Block& block, Ring<stages> at) {
  const int lane = threadIdx.x % 32;
  for (WorkList work = queryWorkList(a, rows); work.more(); work.advance()) {
    const QueryWork x(a, work, rows);
    const uint64_t* const keyBits = a.keyBits + x.b * a.keys.tiles() - a.keys.first / kSumTile;
    uint64_t own = 0;  // a tile's bits a lane
    for (int i = 0, index = x.newest; index >= x.oldest; ++i, --index, at.advance()) {
      if (i % 32 == 0 && index - lane >= x.oldest) own = keyBits[index - lane];
      const uint64_t bits = __shfl_sync(~0u, own, i % 32);
      barrierWait(block.freed(at.slot), at.phase ^ 1);
      if (lane == 0) block.terms[at.slot].bits = bits;
      if (bits != ~0ull) {
        barrierWait(block.landed(at.slot), at.phase);
        zeroRows<head>(block.streamedTile(at.slot, 0), bits, lane);
        asyncProxyFence();
      }
      barrierArrive(block.ready(at.slot));
    }
  }
}

/// Scores of the tile that holds the rows themselves: the decay prefix_row - prefix_column is added if there is one,
/// and what is not visible (later columns, the window's end, what a hard reset cuts off, masked keys) hidden. `row`:
/// the thread's first row of the tile `tile`.
__device__ __forceinline__ void finishDiagonal(float (&s)[8][4], const HopperKeyTerms& terms, bool decays, bool masked,
                                               int tile, int row, int t, int window, float rawPerLog2) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int p = row + 8 * i;
    uint64_t visible = bitsThrough(p) & bitsFrom(p - window + 1);
    if (decays) {
      const float own = terms.prefix[p];
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const float2 x = *reinterpret_cast<const float2*>(terms.prefix + 8 * n + 2 * t);
        s[n][2 * i] = fmaf(x.x - own, rawPerLog2, s[n][2 * i]);
        s[n][2 * i + 1] = fmaf(x.y - own, rawPerLog2, s[n][2 * i + 1]);
      }
      const uint64_t resets = terms.resets[tile & 1] & bitsThrough(p);
      if (resets) visible &= bitsFrom(63 - __clzll(resets));
    }
    if (masked) visible &= terms.bits;
    hideColumns(s, i, visible, t);
  }
}
/// Hides what the rows of an earlier tile do not see: masked keys, and where the window's left edge runs through the
/// tile, the columns before it; `left`: the first column that row 0 sees.
__device__ __forceinline__ void hideEdge(float (&s)[8][4], const HopperKeyTerms& terms, bool masked, int left, int row,
                                         int t) {
  const uint64_t bits = masked ? terms.bits : ~0ull;
  if (left + kSumTile - 1 <= 0 && bits == ~0ull) return;
#pragma unroll
  for (int i = 0; i < 2; ++i) hideColumns(s, i, bits & bitsFrom(left + row + 8 * i), t);
}

#endif  // GATEDFWA_HOPPER

}  // namespace gatedfwa::cuda
