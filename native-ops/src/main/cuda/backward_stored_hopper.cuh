// Backward on Hopper's tensor cores in two passes of 5 products in all, D = 128: dq needs no scores of its own, for the
// dk/dv pass of backward_hopper.cuh leaves dS in global memory.
//
//   dkdvHopperKernel<store>  dv = P^T dO, dk = scale dS^T Q; leaves dS as 16-bit fragments
//   storedDqHopperKernel     dq = scale dS K: a group keeps the dq of 64 queries, tiles of K and of dS stream
//
// The second pass lives on memory: 2 bytes a score, written once and read once. So that the workspace stays bounded,
// both passes run for some (batch entry, key/value head) pairs at a time. It is deterministic: each dq is summed in
// registers, newest keys first. The rows' delta and lse come from launchRowStatistics, for dk/dv goes first.
#pragma once

#include "backward_hopper.cuh"

namespace gatedfwa::cuda {

struct StoredDqTile {
  static constexpr int head = 128, consumers = 3, rows = consumers * kSumTile, threads = 128 * (1 + consumers);
  static constexpr int consumerRegisters = 144, producerRegisters = 72;
  static_assert(consumers * consumerRegisters + producerRegisters <= 65536 / 128, "too many registers");
  static constexpr int keyBytes = kSumTile * head * 2, scoreBytes = kSumTile * kSumTile * 2;
  static constexpr int stages = 5, stageBytes = keyBytes + consumers * scoreBytes;
  static constexpr int shared = stages * (stageBytes + 3 * 8);
  static_assert(shared <= 227 * 1024, "a Hopper tile does not fit");
};

#if GATEDFWA_HOPPER
struct StoredDqBlock {
  using Size = StoredDqTile;
  uint32_t base;

  __device__ __forceinline__ explicit StoredDqBlock(unsigned char* memory) : base(sharedAddress(memory)) {}
  __device__ __forceinline__ uint32_t keys(int slot) const { return base + slot * Size::stageBytes; }
  __device__ __forceinline__ uint32_t scores(int slot, int group) const {
    return keys(slot) + Size::keyBytes + group * Size::scoreBytes;
  }
  __device__ __forceinline__ uint32_t barrier(int i) const { return base + Size::stages * Size::stageBytes + 8 * i; }
  /// The copies of a stage are there; its masked keys are zeroed; the consumers are done with it.
  __device__ __forceinline__ uint32_t landed(int slot) const { return barrier(slot); }
  __device__ __forceinline__ uint32_t ready(int slot) const { return barrier(Size::stages + slot); }
  __device__ __forceinline__ uint32_t freed(int slot) const { return barrier(2 * Size::stages + slot); }
  __device__ __forceinline__ void initialise() const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < Size::stages; ++i) {
        barrierInit(landed(i), 1);
        barrierInit(ready(i), 32);
        barrierInit(freed(i), 128 * Size::consumers);
      }
      barrierInitFence();
    }
    __syncthreads();
  }
};

/// The key tiles [oldest, newest] that one group's queries see; none if they are no queries.
struct StoredDqGroup {
  int newest, oldest;

  template <typename T>
  __device__ __forceinline__ StoredDqGroup(const AttentionArgs<T>& a, int origin, int group) {
    const int first = origin + group * kSumTile, offset = a.M - a.N;
    newest = first / kSumTile;
    oldest =
        first < a.M && first + kSumTile > offset ? max(0, max(first, offset) - a.window + 1) / kSumTile : newest + 1;
  }
  __device__ __forceinline__ bool sees(int index) const { return index <= newest && index >= oldest; }
};

/// Producer thread: tiles of K, newest first, each with what the groups need of dS.
template <typename T>
__device__ __forceinline__ void produceStored(const AttentionArgs<T>& a, const StoredDqBlock& block,
                                              const CUtensorMap& mapK) {
  using Size = StoredDqTile;
  Ring<Size::stages> at;
  for (WorkList work = queryWorkList(a, Size::rows); work.more(); work.advance()) {
    const QueryWork x(a, work, Size::rows);
    const int kvHead = x.h / a.group;
    for (int index = x.newest; index >= x.oldest; --index, at.advance()) {
      int members = 0;
#pragma unroll
      for (int group = 0; group < Size::consumers; ++group) members += StoredDqGroup(a, x.origin, group).sees(index);
      const uint32_t landed = block.landed(at.slot);
      barrierWait(block.freed(at.slot), at.phase ^ 1);
      barrierExpect(landed, Size::keyBytes + members * Size::scoreBytes);
      copyTensor<Size::head>(block.keys(at.slot), mapK, index * kSumTile, kvHead, x.b, landed);
#pragma unroll
      for (int group = 0; group < Size::consumers; ++group) {
        const StoredDqGroup own(a, x.origin, group);
        if (own.sees(index))
          copyBulk(block.scores(at.slot, group), a.storedDs + storedTile(a, x.bh, own.newest, index), Size::scoreBytes,
                   landed);
      }
    }
  }
}
/// Producer warp where keys are masked: zeroes their rows, so that no product sees what they hold.
template <typename T>
__device__ __forceinline__ void zeroStoredKeys(const AttentionArgs<T>& a, const StoredDqBlock& block, int lane) {
  using Size = StoredDqTile;
  Ring<Size::stages> at;
  for (WorkList work = queryWorkList(a, Size::rows); work.more(); work.advance()) {
    const QueryWork x(a, work, Size::rows);
    for (int index = x.newest; index >= x.oldest; --index, at.advance()) {
      const uint64_t bits = a.keyBits[x.b * a.keys.tiles() + index - a.keys.first / kSumTile];
      barrierWait(block.landed(at.slot), at.phase);
      if (bits != ~0ull) {
        zeroRows<Size::head, 1>(block.keys(at.slot), bits, lane);
        asyncProxyFence();
      }
      barrierArrive(block.ready(at.slot));
    }
  }
}

/// A warp's 16 rows of dS as register operands, from what four warps have left of dS^T.
__device__ __forceinline__ void loadStored(uint32_t (&w)[4][4], uint32_t scores, int warp, int lane) {
#pragma unroll
  for (int d = 0; d < 4; ++d) {
    uint32_t x[4];
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(scores + (4 * d + warp) * 512 + lane * 16)
                 : "memory");
#pragma unroll
    for (int i = 0; i < 4; ++i)  // the blocks off the diagonal change places
      asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(w[d][i]) : "r"(x[i % 2 * 2 + i / 2]));
  }
}
#endif

template <typename T>
__global__ void __launch_bounds__(StoredDqTile::threads, 1)
    storedDqHopperKernel(const __grid_constant__ AttentionArgs<T> a, const __grid_constant__ CUtensorMap mapK) {
#if GATEDFWA_HOPPER
  using Size = StoredDqTile;
  constexpr int head = Size::head;
  extern __shared__ __align__(1024) unsigned char hopperShared[];
  const StoredDqBlock block(hopperShared);
  block.initialise();

  const int warp = warpIndex(), lane = threadIdx.x % 32, offset = a.M - a.N;
  if (warp < 4) {
    lowerRegisters<Size::producerRegisters>();
    if (warp == 0 && lane == 0) {
      produceStored(a, block, mapK);
    } else if (warp == 1 && a.keyBits) {
      zeroStoredKeys(a, block, lane);
    }
    return;
  }

  raiseRegisters<Size::consumerRegisters>();
  const int group = warp / 4 - 1, warpInGroup = warp % 4, g = lane / 4, t = lane % 4;
  const int row = 16 * warpInGroup + g;
  float dq[head / 8][4];
  Ring<Size::stages> at;
  for (WorkList work = queryWorkList(a, Size::rows); work.more(); work.advance()) {
    const QueryWork x(a, work, Size::rows);
    const StoredDqGroup own(a, x.origin, group);
    float rowSum[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
    for (int n = 0; n < head / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) dq[n][e] = 0.f;
    for (int index = x.newest; index >= x.oldest; --index, at.advance()) {
      barrierWait(block.landed(at.slot), at.phase);
      if (own.sees(index)) {
        if (a.keyBits) barrierWait(block.ready(at.slot), at.phase);
        uint32_t dS[4][4];
        loadStored(dS, block.scores(at.slot, group), warpInGroup, lane);
        asyncProxyFence();  // ordinary reads, before the next bulk copy
        hold(dq);
        wgmmaFence();
        multiplyWeights<T>(dq, dS, descriptor(block.keys(at.slot)));
        wgmmaCommit();
        if (a.rowSums) {
#pragma unroll
          for (int d = 0; d < 4; ++d) addRowSums<T>(rowSum, dS[d]);
        }
        wgmmaWait<0>();
        hold(dq);
      }
      barrierArrive(block.freed(at.slot));
    }
    if (own.oldest > own.newest) continue;

    const int first = own.newest * kSumTile;
    T* const out = a.dq.data + x.b * a.dq.batch + x.h * a.dq.head;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (a.rowSums && t == 0)
        a.rowSums[x.bh * a.queries.length + first + row + 8 * i - a.queries.first] = rowSum[2 * i];
      const int p = first + row + 8 * i;
      writeRow<T>(dq, i, a.scale, out + (p - offset) * a.dq.row, p >= offset && p < a.M, a.dq, t);
    }
  }
#endif
}

template <typename T>
cudaError_t launchBackwardStored(const AttentionArgs<T>& args, int multiprocessors, cudaStream_t stream) {
  using DkdvSize = HopperTile<Pass::DkDv, StoredDqTile::head>;
  const auto dkdvKernel = dkdvHopperKernel<T, StoredDqTile::head, true>;
  const auto dqKernel = storedDqHopperKernel<T>;
  cudaError_t e = cudaFuncSetAttribute(dkdvKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, DkdvSize::shared);
  if (e == cudaSuccess)
    e = cudaFuncSetAttribute(dqKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, StoredDqTile::shared);
  CUtensorMap q, dO, k, v;
  const int64_t kvHeads = args.H / args.group;
  if (e == cudaSuccess) e = encodeRows(&q, args.q, args.batch, args.N, args.H);
  if (e == cudaSuccess) e = encodeRows(&dO, args.dO, args.batch, args.N, args.H);
  if (e == cudaSuccess) e = encodeRows(&k, args.k, args.batch, args.M, kvHeads);
  if (e == cudaSuccess) e = encodeRows(&v, args.v, args.batch, args.M, kvHeads);
  const auto grid = [&](int64_t items) { return static_cast<unsigned>(std::min<int64_t>(items, multiprocessors)); };
  const int64_t keyItems = divUp(args.M, DkdvSize::rows);
  const int64_t queryItems = args.group * divUp(args.M - args.queries.first, StoredDqTile::rows);
  AttentionArgs<T> a = args;
  for (int from = args.pairs.from; e == cudaSuccess && from < args.pairs.to; from = a.pairs.to) {
    a.pairs = {from, std::min(from + args.storedPairs, args.pairs.to)};
    const int count = a.pairs.to - from;
    dkdvKernel<<<grid(count * keyItems), DkdvSize::threads, DkdvSize::shared, stream>>>(a, q, dO, k, v);
    e = lastLaunch();
    if (e != cudaSuccess) return e;
    dqKernel<<<grid(count * queryItems), StoredDqTile::threads, StoredDqTile::shared, stream>>>(a, k);
    e = lastLaunch();
  }
  return e;
}

}  // namespace gatedfwa::cuda
