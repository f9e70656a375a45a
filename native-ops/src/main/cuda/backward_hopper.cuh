// Backward on Hopper's tensor cores (wgmma), D = 128, in the two passes of backward_mma.cuh, behind the skeleton of
// hopper.cuh. What the query tiles of a key-stationary kernel bring is for backward_one_pass_hopper.cuh (D = 64) too.
//
//   dqHopperKernel    a consumer group keeps 64 queries (Q, dO), key tiles stream:  dq = scale dS K
//   dkdvHopperKernel  a consumer group keeps 64 keys (K, V), query tiles stream:    dv = P^T dO, dk = scale dS^T Q,
//   sums
//
// In the two passes dq runs first and also computes each row's delta = dO . o and lse in log2 units, for both.
// P and dS go from accumulators to the next product in registers; both directions of a tile are read from the one copy.
// The next tile's products are under way while a tile's P is computed. Sums run in registers in a fixed order.
#pragma once

#include <climits>

#include "hopper.cuh"
#include "tensor_map.h"

namespace gatedfwa::cuda {

#if GATEDFWA_HOPPER
/// delta = dO . o of the thread's two rows of a warp's 16: the diagonal of o dO^T.
template <typename T, int head>
__device__ __forceinline__ void deltaOfRows(float (&delta)[2], uint32_t tileO, uint32_t tileDo, int warp, int lane) {
  using Mma = Mma16<T>;
  const LaneOffset atO = laneOfA<128>(lane), atDo = laneOfB<128>(lane);
  const int g = lane / 4, holder = 4 * g + g / 2;  // the quad's lane whose columns include the row's number
  float low[4] = {0.f, 0.f, 0.f, 0.f}, high[4] = {0.f, 0.f, 0.f, 0.f};  // columns 0..7, 8..15
#pragma unroll
  for (int d = 0; d < head / 16; ++d) {
    const uint32_t rows = (d / 4) * kPanelBytes + warp * 16 * 128;
    Mma::multiply(low, high, Mma::loadA(fragmentAddress<128>(tileO + rows, atO, 0, (d % 4) * 32)),
                  Mma::loadB(fragmentAddress<128>(tileDo + rows, atDo, 0, (d % 4) * 32)));
  }
  delta[0] = __shfl_sync(~0u, g % 2 ? low[1] : low[0], holder);
  delta[1] = __shfl_sync(~0u, g % 2 ? high[3] : high[2], holder);
}
#endif

template <typename T, int head>
__global__ void __launch_bounds__(HopperTile<Pass::Dq, head>::threads, 1)
    dqHopperKernel(const __grid_constant__ AttentionArgs<T> a, const __grid_constant__ CUtensorMap mapQ,
                   const __grid_constant__ CUtensorMap mapDo, const __grid_constant__ CUtensorMap mapK,
                   const __grid_constant__ CUtensorMap mapV, const __grid_constant__ CUtensorMap mapO) {
#if GATEDFWA_HOPPER
  using Size = HopperTile<Pass::Dq, head>;
  constexpr int rows = Size::rows;
  extern __shared__ __align__(1024) unsigned char hopperShared[];
  const HopperBlock<Size, HopperKeyTerms> block(hopperShared);
  static_assert(sizeof(HopperKeyTerms) == Size::termBytes, "");
  block.initialise();

  const int warp = warpIndex(), lane = threadIdx.x % 32, offset = a.M - a.N;
  const bool decays = a.sums.suffix, masked = a.keyBits;
  const float rawPerLog2 = 1.f / a.scaleLog2;

  if (warp < 4) {
    lowerRegisters<Size::producerRegisters>();
    const Ring<Size::stages> at;
    if (warp == 0 && lane == 0) {
      produceKeys<head, rows>(a, block, at, mapK, mapV);
    } else if (warp == 1 && lane == 0) {
      produceQueries<head, rows>(a, block, mapQ, &mapDo, &mapO);
    } else if (warp == 2 && masked) {
      produceKeyBits<head, rows>(a, block, at);
    }
    return;
  }

  raiseRegisters<Size::consumerRegisters>();
  const int group = warp / 4 - 1, warpInGroup = warp % 4, g = lane / 4, t = lane % 4;
  const int row = 16 * warpInGroup + g;
  const uint32_t tileQ = block.stationaryTile(group, 0), tileDo = block.stationaryTile(group, 1);
  float s[8][4], dp[8][4], dq[head / 8][4];
  uint32_t weights[4][4];
  Ring<Size::stages> at;
  uint32_t queryPhase = 0;

  for (WorkList work = queryWorkList(a, rows); work.more(); work.advance()) {
    const QueryWork x(a, work, rows);
    const int first = x.origin + group * kSumTile, tile = first / kSumTile;
    const bool live = first < a.M && first + kSumTile > offset;
    const int oldest = max(0, max(first, offset) - a.window + 1) / kSumTile;
    int index = x.newest;
    const auto release = [&](int slot) { barrierArrive(block.freed(slot)); };
    const auto skipTo = [&](int end) {
      for (; index > end; --index, at.advance()) {
        barrierWait(block.landed(at.slot), at.phase);
        release(at.slot);
      }
    };
    if (!live) {
      skipTo(x.oldest - 1);
      continue;
    }
    float rawLse[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int p = first + row + 8 * i;
      rawLse[i] = p >= offset && p < a.M ? a.lse[x.b * a.lseBatch + x.h * a.lseHead + (p - offset) * a.lseRow]
                                         : -infinity<float>();
    }
    skipTo(tile);
    barrierWait(block.kept(group, 0), queryPhase);
#pragma unroll
    for (int n = 0; n < head / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) dq[n][e] = 0.f;

    // Products of the tile at `at`, with dq of the tile before between them: s is needed first.
    const auto multiply = [&](auto&& multiplyBetween) {
      wgmmaFence();
      multiplyTiles<T, head>(s, descriptorHere(tileQ), descriptor(block.streamedTile(at.slot, 0)));
      wgmmaCommit();
      multiplyBetween();
      wgmmaCommit();
      multiplyTiles<T, head>(dp, descriptorHere(tileDo), descriptor(block.streamedTile(at.slot, 1)));
      wgmmaCommit();
    };
    const auto waitTile = [&] {
      barrierWait(block.landed(at.slot), at.phase);
      if (masked) barrierWait(block.ready(at.slot), at.phase);
    };
    int slot = 0;
    const auto addDq = [&] { multiplyWeights<T>(dq, weights, descriptor(block.streamedTile(slot, 0))); };

    waitTile();
    hold(dq);
    multiply([] {});
    // The rows' terms, for dk/dv too, while the first products are under way: lse (infinity where the row sees no key
    // or is none: exp2(x - infinity) = 0), with the decay from the tile's start, and delta.
    const int64_t rowAt = x.bh * a.queries.length + first + row - a.queries.first;
    float lse[2], decayedLse[2], delta[2], rowSum[2] = {0.f, 0.f};
    barrierWait(block.kept(group, 1), queryPhase);
    queryPhase ^= 1;
    deltaOfRows<T, head>(delta, block.stationaryTile(group, 2), tileDo, warpInGroup, lane);
    asyncProxyFence();  // ordinary reads, before the next bulk copy
    barrierArrive(block.released(group, 1));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const HopperKeyTerms& terms = block.terms[at.slot];
      const double exact = rawLse[i] == -infinity<float>() ? infinity<double>() : rawLse[i] * kLog2e;
      lse[i] = decayedLse[i] = static_cast<float>(exact);
      if (decays)
        decayedLse[i] = terms.resets[tile & 1] & bitsThrough(row + 8 * i)
                            ? infinity<float>()
                            : static_cast<float>(exact + terms.prefix[row + 8 * i]);
      if (t == 0) {
        a.rowLse[rowAt + 8 * i] = lse[i];
        a.rowDecayedLse[rowAt + 8 * i] = decayedLse[i];
        a.rowDelta[rowAt + 8 * i] = delta[i];
      }
    }
    while (true) {
      const bool diagonal = index == tile;
      wgmmaWait<2>();
      hold(s);
      if (diagonal) {
        finishDiagonal(s, block.terms[at.slot], decays, masked, tile, row, t, a.window, rawPerLog2);
      } else {
        hideEdge(s, block.terms[at.slot], masked, first - a.window + 1 - index * kSumTile, row, t);
      }
      const float bias[2] = {diagonal ? lse[0] : decayedLse[0], diagonal ? lse[1] : decayedLse[1]};
      if (decays && !diagonal) {
        const HopperKeyTerms& terms = block.terms[at.slot];
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          const float2 y = *reinterpret_cast<const float2*>(terms.suffix + 8 * n + 2 * t);
#pragma unroll
          for (int e = 0; e < 4; ++e)
            s[n][e] = exp2Approx(fmaf(s[n][e], a.scaleLog2, -(e % 2 ? y.y : y.x)) - bias[e / 2]);
        }
        const float total = terms.total(index);
        decayedLse[0] += total;
        decayedLse[1] += total;
      } else {
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) s[n][e] = exp2Approx(fmaf(s[n][e], a.scaleLog2, -bias[e / 2]));
      }
      hold(s);
      wgmmaWait<0>();
      hold(dp);
      if (!diagonal) release(slot);
      if (index == oldest) barrierArrive(block.released(group, 0));
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          dp[n][e] = s[n][e] * (dp[n][e] - delta[e / 2]);
          rowSum[e / 2] += dp[n][e];
        }
      packWeights<T>(weights, dp);
      slot = at.slot;
      at.advance();
      if (--index < oldest) break;
      waitTile();
      multiply(addDq);
    }
    wgmmaFence();
    addDq();
    wgmmaCommit();
    wgmmaWait<0>();
    hold(dq);
    release(slot);
    skipTo(x.oldest - 1);

    T* const out = a.dq.data + x.b * a.dq.batch + x.h * a.dq.head;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (a.rowSums) {
        const float sum = quadSum(rowSum[i]);
        if (t == 0) a.rowSums[rowAt + 8 * i] = sum;
      }
      const int p = first + row + 8 * i;
      writeRow<T>(dq, i, a.scale, out + (p - offset) * a.dq.row, p >= offset && p < a.M, a.dq, t);
    }
  }
#endif
}

/// What a key-stationary block needs of a streamed query tile besides Q and dO (log2 units).
struct alignas(16) HopperQueryTerms {
  float lse[kSumTile], decayedLse[kSumTile], delta[kSumTile];
  float prefix[kSumTile];
  uint64_t resets[2];  ///< of the tile and its neighbour, the even one first
};

#if GATEDFWA_HOPPER
/// The keys of one block of the key-stationary kernel, and the query tiles, of each head of the group, that see one of
/// them.
struct KeyWork {
  int b, kvHead, origin, firstTile, lastTile;
};
/// Query tiles that see a key of [first, first + count); none if firstTile > lastTile.
template <typename T>
__device__ __forceinline__ void tilesThatSee(const AttentionArgs<T>& a, int first, int count, int& firstTile,
                                             int& lastTile) {
  const int64_t from = max(first, a.M - a.N);
  const int64_t to = min(static_cast<int64_t>(a.M), static_cast<int64_t>(first) + count + a.window - 1) - 1;
  firstTile = static_cast<int>(from / kSumTile);
  lastTile = to < from ? firstTile - 1 : static_cast<int>(to / kSumTile);
}
/// Starts the copies of a query tile.
template <int head, typename T>
__device__ __forceinline__ void copyQueries(const AttentionArgs<T>& a, HopperQueryTerms& terms, uint32_t tileQ,
                                            uint32_t tileDo, uint32_t landed, const CUtensorMap& mapQ,
                                            const CUtensorMap& mapDo, int b, int h, int64_t bh, int index) {
  const int64_t keyTile = bh * a.keys.tiles() + index - a.keys.first / kSumTile;
  const int first = index * kSumTile - (a.M - a.N);
  barrierExpect(landed, 2 * head * 128 + 3 * kSumTile * 4 + (a.sums.prefix ? kSumTile * 4 + 16 : 0));
  copyTensor<head>(tileQ, mapQ, first, h, b, landed);
  copyTensor<head>(tileDo, mapDo, first, h, b, landed);
  const int64_t row = bh * a.queries.length + index * kSumTile - a.queries.first;
  copyBulk<kSumTile>(terms.lse, a.rowLse + row, landed);
  copyBulk<kSumTile>(terms.decayedLse, a.rowDecayedLse + row, landed);
  copyBulk<kSumTile>(terms.delta, a.rowDelta + row, landed);
  if (a.sums.prefix) {
    copyBulk<kSumTile>(terms.prefix, a.sums.prefix + keyTile * kSumTile, landed);
    copyBulk<2>(terms.resets, a.sums.resets + (keyTile & ~1), landed);
  }
}
template <int rows, typename T>
__device__ __forceinline__ KeyWork keyWork(const AttentionArgs<T>& a, const WorkList& at) {
  KeyWork x;
  x.b = at.b;
  x.kvHead = at.h;
  x.origin = at.tile * rows;
  tilesThatSee(a, x.origin, rows, x.firstTile, x.lastTile);
  return x;
}
constexpr int kStoredTile = kSumTile * kSumTile * 2 / 16;  ///< a tile of dS, in units of 16 bytes
/// Where dS of a query tile and a key tile is stored, in units of 16 bytes: 64 keys x 64 queries as packed
/// accumulators, 16 bytes a lane for each of its warp's four blocks of 16 keys x 16 queries. `bh`: batch entry and
/// query head; `index`: the query tile. From one query tile to the next it is storedTiles + 1 tiles.
template <typename T>
__device__ __forceinline__ uint32_t storedTile(const AttentionArgs<T>& a, int64_t bh, int index, int tile) {
  const int64_t row =
      (bh - static_cast<int64_t>(a.pairs.from) * a.group) * a.queries.tiles() + index - a.queries.first / kSumTile;
  return static_cast<uint32_t>((row * a.storedTiles + index - tile) * kStoredTile);
}
/// Evict-first: dq reads it only after all of it is written.
__device__ __forceinline__ void storeDs(uint4* to, const uint32_t (&w)[4][4]) {
#pragma unroll
  for (int d = 0; d < 4; ++d) __stcs(to + 32 * d, make_uint4(w[d][0], w[d][1], w[d][2], w[d][3]));
}
template <typename T>
__device__ __forceinline__ WorkList keyWorkList(const AttentionArgs<T>& a, int rows) {
  return WorkList(a.pairs.from, a.pairs.to, a.H / a.group, (a.M + rows - 1) / rows);
}
#endif

/// `store`: leaves dS for backward_stored_hopper.cuh, and dalpha's column sums are those of dS as rounded there.
template <typename T, int head, bool store>
__global__ void __launch_bounds__(HopperTile<Pass::DkDv, head>::threads, 1)
    dkdvHopperKernel(const __grid_constant__ AttentionArgs<T> a, const __grid_constant__ CUtensorMap mapQ,
                     const __grid_constant__ CUtensorMap mapDo, const __grid_constant__ CUtensorMap mapK,
                     const __grid_constant__ CUtensorMap mapV) {
#if GATEDFWA_HOPPER
  using Size = HopperTile<Pass::DkDv, head>;
  constexpr int rows = Size::rows;
  extern __shared__ __align__(1024) unsigned char hopperShared[];
  const HopperBlock<Size, HopperQueryTerms> block(hopperShared);
  static_assert(sizeof(HopperQueryTerms) == Size::termBytes, "");
  block.initialise();

  const int warp = warpIndex(), lane = threadIdx.x % 32, offset = a.M - a.N;

  if (warp < 4) {
    lowerRegisters<Size::producerRegisters>();
    Ring<Size::stages> at;
    WorkList& work = *static_cast<WorkList*>(block.warpSpace(warp));  // few registers are left
    if (warp == 0 && lane == 0) {                                     // Q and dO tiles with their terms
      for (work = keyWorkList(a, rows); work.more(); work.advance()) {
        const KeyWork x = keyWork<rows>(a, work);
        for (int h = x.kvHead * a.group; h < (x.kvHead + 1) * a.group; ++h) {
          const int64_t bh = static_cast<int64_t>(x.b) * a.H + h;
          for (int index = x.firstTile; index <= x.lastTile; ++index, at.advance()) {
            barrierWait(block.freed(at.slot), at.phase ^ 1);
            copyQueries<head>(a, block.terms[at.slot], block.streamedTile(at.slot, 0), block.streamedTile(at.slot, 1),
                              block.landed(at.slot), mapQ, mapDo, x.b, h, bh, index);
          }
        }
      }
    } else if (warp == 1 && lane == 0) {  // K and V
      uint32_t phases = 0;
      for (work = keyWorkList(a, rows); work.more(); work.advance()) {
        const KeyWork x = keyWork<rows>(a, work);
        for (int group = 0; group < Size::consumers; ++group) {
          const int first = x.origin + group * kSumTile;
          int ownFirst, ownLast;
          tilesThatSee(a, first, kSumTile, ownFirst, ownLast);
          if (ownFirst > ownLast) continue;
          const uint32_t phase = (~phases >> group) & 1;
          phases ^= 1u << group;
          barrierWait(block.released(group, 0), phase);
          barrierExpect(block.kept(group, 0), head * 128);
          copyTensor<head>(block.stationaryTile(group, 0), mapK, first, x.kvHead, x.b, block.kept(group, 0));
          barrierWait(block.released(group, 1), phase);
          barrierExpect(block.kept(group, 1), head * 128);
          copyTensor<head>(block.stationaryTile(group, 1), mapV, first, x.kvHead, x.b, block.kept(group, 1));
        }
      }
    }
    return;
  }

  raiseRegisters<Size::consumerRegisters>();
  const int group = warp / 4 - 1, warpInGroup = warp % 4, g = lane / 4, t = lane % 4;
  const int row = 16 * warpInGroup + g;
  const uint32_t sharedK = block.stationaryTile(group, 0), sharedV = block.stationaryTile(group, 1);
  float s[8][4], dp[8][4], dk[head / 8][4], dv[head / 8][4];
  uint32_t weights[4][4], dS[4][4];  // P and dS as operands
  Ring<Size::stages> at;

  // In shared memory: the accumulators need the registers.
  struct Parked {
    WorkList work;
    uint32_t keyPhase;
    int boundarySlot, nextBoundary;  // of the warp's column sums, see putWarpSum
  };
  static_assert(sizeof(Parked) <= 64, "");
  Parked& parked = *static_cast<Parked*>(block.warpSpace(warp));
  WorkList& work = parked.work;
  if (lane == 0) {
    work = keyWorkList(a, rows);
    parked.keyPhase = 0;
  }
  __syncwarp();
  while (work.more()) {
    const KeyWork x = keyWork<rows>(a, work);
    const int first = x.origin + group * kSumTile, tile = first / kSumTile;
    int ownFirst, ownLast;
    tilesThatSee(a, first, kSumTile, ownFirst, ownLast);
    const bool busy = ownFirst <= ownLast;
    const auto release = [&](int slot) { barrierArrive(block.freed(slot)); };
#pragma unroll
    for (int n = 0; n < head / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) dk[n][e] = dv[n][e] = 0.f;
    const auto keyBits = [&] {
      return a.keyBits ? a.keyBits[work.b * a.keys.tiles() + tile - a.keys.first / kSumTile] : ~0ull;
    };
    // K and V, once; meanwhile the first head's terms are on their way. V is needed after K.
    const auto waitValues = [&] { barrierWait(block.kept(group, 1), parked.keyPhase ^ 1); };
    const auto waitKeys = [&] {
      barrierWait(block.kept(group, 0), parked.keyPhase);
      __syncwarp();
      if (lane == 0) parked.keyPhase ^= 1;
      __syncwarp();
      const uint64_t bits = keyBits();
      if (bits != ~0ull) {
        waitValues();
        zeroRows<head>(sharedK, bits | ~(0xffffull << (16 * warpInGroup)), lane);
        asyncProxyFence();
        groupBarrier(group);
      }
    };

    for (int member = 0; member < a.group; ++member) {
      const auto bhOf = [&] { return static_cast<int64_t>(work.b) * a.H + work.h * a.group + member; };
      const int64_t bh = bhOf();
      int index = keyWork<rows>(a, work).firstTile;
      const auto skipTo = [&](int end) {
        for (; index < end; ++index, at.advance()) {
          barrierWait(block.landed(at.slot), at.phase);
          release(at.slot);
        }
      };
      if (!busy) {
        skipTo(keyWork<rows>(a, work).lastTile + 1);
        continue;
      }
      // Of each key: the decay to the start of the query tile (infinity if it is masked), column sum.
      float decay[2], columnSum[store ? 4 : 2] = {};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        decay[i] = a.sums.suffix ? a.sums.suffix[bh * a.keys.length + first + row + 8 * i - a.keys.first] : 0.f;
      }
      __syncwarp();
      if (lane == 0) {
        parked.boundarySlot = 0;  // a tile has no boundary inside
        parked.nextBoundary = a.columnSums ? (first / a.boundary + 1) * a.boundary : INT_MAX;
      }
      __syncwarp();
      // What the warp's columns have summed before each boundary that its queries cross, and in all.
      const auto putWarpSum = [&](bool last) {
        const float sum = store ? 0.25f * warpSum(columnSum[0] + columnSum[2]) : warpSum(columnSum[0] + columnSum[1]);
        __syncwarp();
        if (lane != 0) return;
        float* const to = a.warpSums + (bhOf() * (a.keys.length / kHopperWarpRows) +
                                        (first - a.keys.first) / kHopperWarpRows + warpInGroup) *
                                           (a.boundarySlots + 1);
        int slot = parked.boundarySlot, next = parked.nextBoundary;
        for (; last ? slot <= a.boundarySlots : slot < a.boundarySlots && next <= index * kSumTile;
             ++slot, next += a.boundary)
          to[slot] = sum;
        parked.boundarySlot = slot;
        parked.nextBoundary = slot < a.boundarySlots ? next : INT_MAX;
      };

      skipTo(ownFirst);
      if (member == 0) waitKeys();
      if (a.keyBits) {
        const uint64_t bits = keyBits();
#pragma unroll
        for (int i = 0; i < 2; ++i)
          if (!((bits >> (row + 8 * i)) & 1)) decay[i] = infinity<float>();
      }
      if (a.sums.prefix && ownFirst > tile + 1) {  // chunks whose queries start beyond: the tiles between
        float between = 0.f;
        for (int i = tile + 1 + lane; i < ownFirst; i += 32) {
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
        const uint64_t tileQ = descriptor(block.streamedTile(at.slot, 0));
        const uint64_t tileDo = descriptor(block.streamedTile(at.slot, 1));
        multiplyTiles<T, head>(s, descriptorHere(sharedK), tileQ);
        wgmmaCommit();
        multiplyBetween();
        wgmmaCommit();
        multiplyTiles<T, head>(dp, descriptorHere(sharedV), tileDo);
        wgmmaCommit();
      };
      const auto addDk = [&] { multiplyWeights<T>(dk, dS, descriptor(block.streamedTile(at.previousSlot(), 0))); };

      const auto passBoundaries = [&] {  // those up to the tile `index`
        if (parked.nextBoundary > index * kSumTile) return;
        putWarpSum(false);
        __syncwarp();
      };
      // Leaves dS, and adds to the column sums, as rounded for dk.
      [[maybe_unused]] uint32_t leaveAt = store ? storedTile(a, bh, ownFirst, tile) + warpInGroup * 128 + lane : 0;
      const auto leaveDs = [&] {
        if constexpr (store) {
          storeDs(a.storedDs + leaveAt, dS);
          leaveAt += (a.storedTiles + 1) * kStoredTile;
          if (a.columnSums) {
#pragma unroll
            for (int d = 0; d < 4; ++d) addRowSums<T>(columnSum, dS[d]);
          }
        }
      };
      passBoundaries();
      waitTile();
      hold(dk);
      hold(dv);
      multiply([&] {
        if (member == 0) waitValues();
      });
      while (true) {
        const HopperQueryTerms& terms = block.terms[at.slot];
        const bool diagonal = index == tile, last = index == ownLast && member == a.group - 1;
        wgmmaWait<2>();
        hold(s);
        if (last) barrierArrive(block.released(group, 0));
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
              const uint64_t resets = terms.resets[tile & 1] & ~bitsThrough(key);
              if (resets) visible &= bitsBelow(__ffsll(resets) - 1);
            }
            hideColumns(s, i, (keyBits() >> key) & 1 ? visible : 0, t);
          }
        } else if (first <= index * kSumTile + kSumTile - 1 - a.window) {  // the window of the first key ends here
#pragma unroll
          for (int i = 0; i < 2; ++i)
            hideColumns(s, i, bitsBelow(first + row + 8 * i - index * kSumTile + a.window), t);
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
        if (index < ownLast)  // here: see hold
          barrierWait(block.landed(at.next().slot), at.next().phase);
        wgmmaWait<1>();  // dk of the tile before
        if (index != ownFirst) release(at.previousSlot());
        packWeights<T>(weights, s);
        wgmmaFence();
        multiplyWeights<T>(dv, weights, descriptor(block.streamedTile(at.slot, 1)));
        wgmmaCommit();
        wgmmaWait<1>();
        hold(dp);
        if (last) barrierArrive(block.released(group, 1));
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          const float2 y = *reinterpret_cast<const float2*>(terms.delta + 8 * n + 2 * t);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            dp[n][e] = s[n][e] * (dp[n][e] - (e % 2 ? y.y : y.x));
            if constexpr (!store) columnSum[e / 2] += dp[n][e];
          }
        }
        packWeights<T>(dS, dp);
        leaveDs();  // while dv's product is under way
        wgmmaWait<0>();
        at.advance();
        if (++index > ownLast) break;
        multiply(addDk);
        passBoundaries();
      }
      wgmmaFence();
      addDk();
      wgmmaCommit();
      if (a.columnSums) {  // while the last product is under way
        putWarpSum(true);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float column = store ? columnSum[2 * i] : quadSum(columnSum[i]);
          if (t == 0) a.columnSums[bh * a.keys.length + first + row + 8 * i - a.keys.first] = column;
        }
      }
      __syncwarp();
      wgmmaWait<0>();
      release(at.previousSlot());
      skipTo(keyWork<rows>(a, work).lastTile + 1);
    }

    hold(dk);
    hold(dv);
    T* const outK = a.dk.data + work.b * a.dk.batch + work.h * a.dk.head;
    T* const outV = a.dv.data + work.b * a.dv.batch + work.h * a.dv.head;
    const int64_t key0 = work.tile * rows + group * kSumTile + row;
    __syncwarp();
    if (lane == 0) work.advance();
    __syncwarp();
    const bool valid[2] = {key0 < a.M, key0 + 8 < a.M};
    T* const rowsK[2] = {outK + key0 * a.dk.row, outK + (key0 + 8) * a.dk.row};
    T* const rowsV[2] = {outV + key0 * a.dv.row, outV + (key0 + 8) * a.dv.row};
    const uint32_t space = block.rowSpace(group, warpInGroup);
    writeRowsShared<T>(dk, {a.scale, a.scale}, rowsK, valid, a.dk, space, lane);
    writeRowsShared<T>(dv, {1.f, 1.f}, rowsV, valid, a.dv, space, lane);
  }
#endif
}

template <typename T, int head>
cudaError_t launchBackwardTwoPasses(const AttentionArgs<T>& a, int multiprocessors, cudaStream_t stream) {
  using DqSize = HopperTile<Pass::Dq, head>;
  using DkdvSize = HopperTile<Pass::DkDv, head>;
  const auto dqKernel = dqHopperKernel<T, head>;
  const auto dkdvKernel = dkdvHopperKernel<T, head, false>;
  cudaError_t e = cudaFuncSetAttribute(dqKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, DqSize::shared);
  if (e == cudaSuccess)
    e = cudaFuncSetAttribute(dkdvKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, DkdvSize::shared);
  CUtensorMap q, dO, k, v, o;
  const int64_t kvHeads = a.H / a.group;
  if (e == cudaSuccess) e = encodeRows(&q, a.q, a.batch, a.N, a.H);
  if (e == cudaSuccess) e = encodeRows(&dO, a.dO, a.batch, a.N, a.H);
  if (e == cudaSuccess) e = encodeRows(&o, a.forwardO, a.batch, a.N, a.H);
  if (e == cudaSuccess) e = encodeRows(&k, a.k, a.batch, a.M, kvHeads);
  if (e == cudaSuccess) e = encodeRows(&v, a.v, a.batch, a.M, kvHeads);
  if (e != cudaSuccess) return e;
  const int64_t queryItems = a.batch * a.H * divUp(a.M - a.queries.first, DqSize::rows);
  const int64_t keyItems = a.batch * kvHeads * divUp(a.M, DkdvSize::rows);
  const auto grid = [&](int64_t items) { return static_cast<unsigned>(std::min<int64_t>(items, multiprocessors)); };
  dqKernel<<<grid(queryItems), DqSize::threads, DqSize::shared, stream>>>(a, q, dO, k, v, o);
  e = lastLaunch();
  if (e != cudaSuccess) return e;
  dkdvKernel<<<grid(keyItems), DkdvSize::threads, DkdvSize::shared, stream>>>(a, q, dO, k, v);
  return lastLaunch();
}

}  // namespace gatedfwa::cuda
