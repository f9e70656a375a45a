// Backward on Hopper's tensor cores (wgmma), in the two passes of backward_mma.cuh, behind the skeleton of hopper.cuh.
//
//   dqHopperKernel    a consumer group keeps 64 queries (Q, dO), key tiles stream:  dq = scale dS K
//   dkdvHopperKernel  a consumer group keeps 64 keys (K, V), query tiles stream:    dv = P^T dO, dk = scale dS^T Q, sums
//
// P and dS go from accumulators to the next product in registers; both directions of a tile are read from the one copy.
// The next tile's products are under way while a tile's P is computed. Sums run in registers in a fixed order.
#pragma once

#include "hopper.cuh"
#include "tensor_map.h"

namespace gatedfwa::cuda {

template <typename T, int head>
__global__ void __launch_bounds__(HopperTile<Pass::Dq, head>::threads, 1)
    dqHopperKernel(const __grid_constant__ AttentionArgs<T> a, const __grid_constant__ CUtensorMap mapQ,
                   const __grid_constant__ CUtensorMap mapDo, const __grid_constant__ CUtensorMap mapK,
                   const __grid_constant__ CUtensorMap mapV, int items) {
#if GATEDFWA_HOPPER
  using Size = HopperTile<Pass::Dq, head>;
  constexpr int rows = Size::rows;
  extern __shared__ __align__(1024) unsigned char hopperShared[];
  const HopperBlock<Size, HopperKeyTerms> block(hopperShared);
  static_assert(sizeof(HopperKeyTerms) == Size::termBytes, "");
  block.initialise();

  const int warp = warpIndex(), lane = threadIdx.x % 32, tiles = queryTiles<rows>(a), offset = a.M - a.N;
  const bool hasTerms = a.sums.suffix || a.keyBits;
  const float rawPerLog2 = 1.f / a.scaleLog2;

  if (warp < 4) {
    lowerRegisters<Size::producerRegisters>();
    const Ring<Size::stages> at;
    if (warp == 0 && lane == 0) {
      produceKeys<head, rows>(a, block, at, items, mapK, mapV);
    } else if (warp == 1 && hasTerms) {
      produceKeyTerms<head, rows>(a, block, at, items, rawPerLog2);
    } else if (warp == 2 && lane == 0) {
      produceQueries<head, rows>(a, block, items, mapQ, &mapDo);
    }
    return;
  }

  raiseRegisters<Size::consumerRegisters>();
  const int group = warp / 4 - 1, warpInGroup = warp % 4, g = lane / 4, t = lane % 4;
  const int row = 16 * warpInGroup + g;
  const uint64_t tileQ = descriptor(block.stationaryTile(group, 0));
  const uint64_t tileDo = descriptor(block.stationaryTile(group, 1));
  float s[8][4], dp[8][4], dq[head / 8][4];
  uint32_t weights[4][4];
  Ring<Size::stages> at;
  uint32_t queryPhase = 0;

  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const QueryWork x = queryWork<rows>(a, item, tiles);
    const int first = x.origin + group * kSumTile, tile = first / kSumTile;
    const bool live = first < a.M && first + kSumTile > offset;
    const int oldest = max(0, max(first, offset) - a.window + 1) / kSumTile;
    int index = x.newest;
    const auto release = [&](int slot) {
      if (lane == 0) barrierArrive(block.freed(slot));
    };
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
    const int64_t rowAt = x.bh * a.queries.length + first + row - a.queries.first;
    float lse[2], decayedLse[2], delta[2], rowSum[2] = {0.f, 0.f}, between = 0.f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      lse[i] = a.rowLse[rowAt + 8 * i];
      decayedLse[i] = a.rowDecayedLse[rowAt + 8 * i];
      delta[i] = a.rowDelta[rowAt + 8 * i];
    }
    skipTo(tile);
    barrierWait(block.kept(group), queryPhase);
    queryPhase ^= 1;
#pragma unroll
    for (int n = 0; n < head / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) dq[n][e] = 0.f;

    // Products of the tile at `at`, with dq of the tile before between them: s is needed first.
    const auto multiply = [&](bool terms, auto&& between2) {
      wgmmaFence();
      multiplyTiles<T, head>(s, tileQ, descriptor(block.streamedTile(at.slot, 0)), terms);
      wgmmaCommit();
      between2();
      wgmmaCommit();
      multiplyTiles<T, head>(dp, tileDo, descriptor(block.streamedTile(at.slot, 1)), 0);
      wgmmaCommit();
    };
    const auto waitTile = [&] {
      barrierWait(block.landed(at.slot), at.phase);
      if (hasTerms) barrierWait(block.ready(at.slot), at.phase);
    };
    int slot = 0;
    const auto addDq = [&] { multiplyWeights<T>(dq, weights, descriptor(block.streamedTile(slot, 0))); };

    waitTile();
    hold(dq);
    multiply(false, [] {});
    while (true) {
      const bool diagonal = index == tile;
      wgmmaWait<2>();
      hold(s);
      if (diagonal) {
        finishDiagonal(s, hasTerms ? &block.terms[at.slot] : nullptr, row, t, a.window, rawPerLog2);
      } else if (index * kSumTile <= first + kSumTile - 1 - a.window) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
          hideColumns(s, i, bitsFrom(first + row + 8 * i - a.window + 1 - index * kSumTile), t);
      }
      const float bias[2] = {diagonal ? lse[0] : decayedLse[0] + between, diagonal ? lse[1] : decayedLse[1] + between};
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[n][e] = exp2Approx(fmaf(s[n][e], a.scaleLog2, -bias[e / 2]));
      if (hasTerms && !diagonal) between += block.terms[at.slot].total;
      wgmmaWait<0>();
      hold(dp);
      if (!diagonal) release(slot);
      if (index == oldest) {
        __syncwarp();
        if (lane == 0) barrierArrive(block.released(group));
      }
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
      if (hasTerms) startColumns(s, block.terms[at.slot].term, t);
      multiply(hasTerms, addDq);
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

/// What a key-stationary block needs of a streamed query tile besides Q and dO. Negated, the first two in raw score
/// units: score accumulators start with them.
struct alignas(16) HopperQueryTerms {
  float lse[kSumTile], decayedLse[kSumTile], delta[kSumTile];
  float prefix[kSumTile];
  uint64_t resets;
  float total;  ///< decay of the sum tile, infinity if it has a reset
};

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
template <int rows, typename T>
__device__ __forceinline__ KeyWork keyWork(const AttentionArgs<T>& a, int item, int tiles) {
  KeyWork x;
  const int kvHeads = a.H / a.group, head = item / tiles;
  x.b = head / kvHeads;
  x.kvHead = head % kvHeads;
  x.origin = (item - head * tiles) * rows;
  tilesThatSee(a, x.origin, rows, x.firstTile, x.lastTile);
  return x;
}

template <typename T, int head>
__global__ void __launch_bounds__(HopperTile<Pass::DkDv, head>::threads, 1)
    dkdvHopperKernel(const __grid_constant__ AttentionArgs<T> a, const __grid_constant__ CUtensorMap mapQ,
                     const __grid_constant__ CUtensorMap mapDo, const __grid_constant__ CUtensorMap mapK,
                     const __grid_constant__ CUtensorMap mapV, int items) {
#if GATEDFWA_HOPPER
  using Size = HopperTile<Pass::DkDv, head>;
  constexpr int rows = Size::rows;
  extern __shared__ __align__(1024) unsigned char hopperShared[];
  const HopperBlock<Size, HopperQueryTerms> block(hopperShared);
  static_assert(sizeof(HopperQueryTerms) == Size::termBytes, "");
  block.initialise();

  const int warp = warpIndex(), lane = threadIdx.x % 32, tiles = (a.M + rows - 1) / rows, offset = a.M - a.N;
  const float rawPerLog2 = 1.f / a.scaleLog2;

  if (warp < 4) {
    lowerRegisters<Size::producerRegisters>();
    Ring<Size::stages> at;
    if (warp == 0 && lane == 0) {  // Q and dO tiles
      for (int item = blockIdx.x; item < items; item += gridDim.x) {
        const KeyWork x = keyWork<rows>(a, item, tiles);
        for (int h = x.kvHead * a.group; h < (x.kvHead + 1) * a.group; ++h)
          for (int index = x.firstTile; index <= x.lastTile; ++index, at.advance()) {
            const int first = index * kSumTile - offset;
            barrierWait(block.freed(at.slot), at.phase ^ 1);
            barrierExpect(block.landed(at.slot), 2 * head * 128);
            copyTensor<head>(block.streamedTile(at.slot, 0), mapQ, first, h, x.b, block.landed(at.slot));
            copyTensor<head>(block.streamedTile(at.slot, 1), mapDo, first, h, x.b, block.landed(at.slot));
          }
      }
    } else if (warp == 1) {  // their terms
      for (int item = blockIdx.x; item < items; item += gridDim.x) {
        const KeyWork x = keyWork<rows>(a, item, tiles);
        for (int h = x.kvHead * a.group; h < (x.kvHead + 1) * a.group; ++h)
          for (int index = x.firstTile; index <= x.lastTile; ++index, at.advance()) {
            const int64_t bh = static_cast<int64_t>(x.b) * a.H + h;
            const int64_t from = bh * a.queries.length + index * kSumTile - a.queries.first + 2 * lane;
            const float2 lse = *reinterpret_cast<const float2*>(a.rowLse + from);
            const float2 decayedLse = *reinterpret_cast<const float2*>(a.rowDecayedLse + from);
            const float2 delta = *reinterpret_cast<const float2*>(a.rowDelta + from);
            float2 prefix = make_float2(0.f, 0.f);
            uint64_t resets = 0;
            if (a.sums.prefix) {
              const int64_t tile = index - a.keys.first / kSumTile;
              prefix = *reinterpret_cast<const float2*>(a.sums.prefix + bh * a.keys.length + tile * kSumTile + 2 * lane);
              resets = a.sums.resets[bh * a.keys.tiles() + tile];
            }
            barrierWait(block.freed(at.slot), at.phase ^ 1);
            HopperQueryTerms& to = block.terms[at.slot];
            *reinterpret_cast<float2*>(to.lse + 2 * lane) = make_float2(-lse.x * rawPerLog2, -lse.y * rawPerLog2);
            *reinterpret_cast<float2*>(to.decayedLse + 2 * lane) =
                make_float2(-decayedLse.x * rawPerLog2, -decayedLse.y * rawPerLog2);
            *reinterpret_cast<float2*>(to.delta + 2 * lane) = make_float2(-delta.x, -delta.y);
            *reinterpret_cast<float2*>(to.prefix + 2 * lane) = prefix;
            if (lane == 31) {
              to.resets = resets;
              to.total = resets ? infinity<float>() : prefix.y;
            }
            __syncwarp();
            if (lane == 0) barrierArrive(block.ready(at.slot));
          }
      }
    } else if (warp == 2 && lane == 0) {  // K and V
      uint32_t phases = 0;
      for (int item = blockIdx.x; item < items; item += gridDim.x) {
        const KeyWork x = keyWork<rows>(a, item, tiles);
        for (int group = 0; group < Size::consumers; ++group) {
          const int first = x.origin + group * kSumTile;
          int ownFirst, ownLast;
          tilesThatSee(a, first, kSumTile, ownFirst, ownLast);
          if (ownFirst > ownLast) continue;
          barrierWait(block.released(group), (~phases >> group) & 1);
          phases ^= 1u << group;
          barrierExpect(block.kept(group), 2 * head * 128);
          copyTensor<head>(block.stationaryTile(group, 0), mapK, first, x.kvHead, x.b, block.kept(group));
          copyTensor<head>(block.stationaryTile(group, 1), mapV, first, x.kvHead, x.b, block.kept(group));
        }
      }
    }
    return;
  }

  raiseRegisters<Size::consumerRegisters>();
  const int group = warp / 4 - 1, warpInGroup = warp % 4, g = lane / 4, t = lane % 4;
  const int row = 16 * warpInGroup + g;
  const uint32_t sharedK = block.stationaryTile(group, 0), sharedV = block.stationaryTile(group, 1);
  [[maybe_unused]] uint32_t keys[Size::inRegisters ? head / 16 : 1][4], values[Size::inRegisters ? head / 16 : 1][4];
  float s[8][4], dp[8][4], dk[head / 8][4], dv[head / 8][4];
  uint32_t weights[4][4];
  Ring<Size::stages> at;
  uint32_t keyPhase = 0;

  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const KeyWork x = keyWork<rows>(a, item, tiles);
    const int first = x.origin + group * kSumTile, tile = first / kSumTile;
    int ownFirst, ownLast;
    tilesThatSee(a, first, kSumTile, ownFirst, ownLast);
    const bool busy = ownFirst <= ownLast;
    const auto release = [&](int slot) {
      if (lane == 0) barrierArrive(block.freed(slot));
    };
    const auto releaseKeys = [&] {
      __syncwarp();
      if (lane == 0) barrierArrive(block.released(group));
    };
#pragma unroll
    for (int n = 0; n < head / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) dk[n][e] = dv[n][e] = 0.f;
    uint64_t bits = ~0ull;
    if (busy) {
      if (a.keyBits) bits = a.keyBits[x.b * a.keys.tiles() + tile - a.keys.first / kSumTile];
      barrierWait(block.kept(group), keyPhase);
      keyPhase ^= 1;
      if (bits != ~0ull) {
        zeroRows<head>(sharedK, bits | ~(0xffffull << (16 * warpInGroup)), lane);
        asyncProxyFence();
        groupBarrier(group);
      }
      if constexpr (Size::inRegisters) {
        loadRows<head>(keys, sharedK, warpInGroup, lane);
        loadRows<head>(values, sharedV, warpInGroup, lane);
        releaseKeys();
      }
    }

    for (int h = x.kvHead * a.group; h < (x.kvHead + 1) * a.group; ++h) {
      const int64_t bh = static_cast<int64_t>(x.b) * a.H + h;
      int index = x.firstTile;
      const auto skipTo = [&](int end) {
        for (; index < end; ++index, at.advance()) {
          barrierWait(block.landed(at.slot), at.phase);
          release(at.slot);
        }
      };
      if (!busy) {
        skipTo(x.lastTile + 1);
        continue;
      }
      // Of each key: the decay to its tile's end (infinity if it is masked), column sum; of the warp: sums at boundaries.
      float suffix[2], columnSum[2] = {0.f, 0.f}, between = 0.f;
      const int64_t keyAt = bh * a.keys.length + first + row - a.keys.first;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        suffix[i] = a.sums.suffix ? a.sums.suffix[keyAt + 8 * i] : 0.f;
        if (!((bits >> (row + 8 * i)) & 1)) suffix[i] = infinity<float>();
      }
      if (a.sums.prefix && ownFirst > tile + 1) {  // chunks whose queries start beyond: the tiles between
        for (int i = tile + 1 + lane; i < ownFirst; i += 32) {
          const int64_t at64 = bh * a.keys.tiles() + i - a.keys.first / kSumTile;
          between += a.sums.resets[at64] ? infinity<float>() : a.sums.prefix[at64 * kSumTile + kSumTile - 1];
        }
        between = warpSum(between);
      }
      int boundarySlot = 0, nextBoundary = 0;
      float* warpSums = nullptr;
      if (a.columnSums) {
        const int warpFirst = first + 16 * warpInGroup;
        nextBoundary = (warpFirst / a.boundary + 1) * a.boundary;
        warpSums = a.warpSums + (bh * (a.keys.length / 16) + (warpFirst - a.keys.first) / 16) * (a.boundarySlots + 1);
      }

      skipTo(ownFirst);
      const auto waitTile = [&] {
        barrierWait(block.landed(at.slot), at.phase);
        barrierWait(block.ready(at.slot), at.phase);
      };
      // Products of the tile at `at`, with dk of the tile before between them: s is needed first.
      const auto multiply = [&](auto&& between2) {
        const HopperQueryTerms& terms = block.terms[at.slot];
        startColumns(s, index == tile ? terms.lse : terms.decayedLse, t);
        startColumns(dp, terms.delta, t);
        wgmmaFence();
        const uint64_t tileQ = descriptor(block.streamedTile(at.slot, 0));
        const uint64_t tileDo = descriptor(block.streamedTile(at.slot, 1));
        if constexpr (Size::inRegisters)
          multiplyTiles<T, head>(s, keys, tileQ, 1);
        else
          multiplyTiles<T, head>(s, descriptor(sharedK), tileQ, 1);
        wgmmaCommit();
        between2();
        wgmmaCommit();
        if constexpr (Size::inRegisters)
          multiplyTiles<T, head>(dp, values, tileDo, 1);
        else
          multiplyTiles<T, head>(dp, descriptor(sharedV), tileDo, 1);
        wgmmaCommit();
      };
      int slot = 0;
      const auto addDk = [&] { multiplyWeights<T>(dk, weights, descriptor(block.streamedTile(slot, 0))); };

      waitTile();
      hold(dk);
      hold(dv);
      multiply([] {});
      while (true) {
        const HopperQueryTerms& terms = block.terms[at.slot];
        const bool diagonal = index == tile;
        wgmmaWait<2>();
        hold(s);
        if (diagonal) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int key = row + 8 * i;
            uint64_t visible = bitsFrom(key) & bitsBelow(key + a.window);
            if (a.sums.prefix) {
              const float own = terms.prefix[key];
#pragma unroll
              for (int n = 0; n < 8; ++n) {
                const float2 y = *reinterpret_cast<const float2*>(terms.prefix + 8 * n + 2 * t);
                s[n][2 * i] = fmaf(own - y.x, rawPerLog2, s[n][2 * i]);
                s[n][2 * i + 1] = fmaf(own - y.y, rawPerLog2, s[n][2 * i + 1]);
              }
              const uint64_t resets = terms.resets & ~bitsThrough(key);
              if (resets) visible &= bitsBelow(__ffsll(resets) - 1);
            }
            hideColumns(s, i, (bits >> key) & 1 ? visible : 0, t);
          }
        } else if (first <= index * kSumTile + kSumTile - 1 - a.window) {  // the window of the first key ends here
#pragma unroll
          for (int i = 0; i < 2; ++i)
            hideColumns(s, i, bitsBelow(first + row + 8 * i - index * kSumTile + a.window), t);
        }
        const float bias[2] = {diagonal ? 0.f : suffix[0] + between, diagonal ? 0.f : suffix[1] + between};
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) s[n][e] = exp2Approx(fmaf(s[n][e], a.scaleLog2, -bias[e / 2]));
        if (!diagonal) between += terms.total;
        wgmmaWait<1>();  // dk of the tile before
        if (index != ownFirst) release(slot);
        packWeights<T>(weights, s);
        wgmmaFence();
        multiplyWeights<T>(dv, weights, descriptor(block.streamedTile(at.slot, 1)));
        wgmmaCommit();
        if (warpSums && nextBoundary <= index * kSumTile) {
          // What the warp's columns have summed before each boundary; the rest straddles it.
          const float sum = warpSum(columnSum[0] + columnSum[1]);
          for (; boundarySlot < a.boundarySlots && nextBoundary <= index * kSumTile; ++boundarySlot) {
            if (lane == 0) warpSums[boundarySlot] = sum;
            nextBoundary += a.boundary;
          }
        }
        wgmmaWait<1>();
        hold(dp);
        if (!Size::inRegisters && index == ownLast && h == (x.kvHead + 1) * a.group - 1) releaseKeys();
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            dp[n][e] *= s[n][e];
            columnSum[e / 2] += dp[n][e];
          }
        wgmmaWait<0>();
        packWeights<T>(weights, dp);
        slot = at.slot;
        at.advance();
        if (++index > ownLast) break;
        waitTile();
        multiply(addDk);
      }
      wgmmaFence();
      addDk();
      wgmmaCommit();
      wgmmaWait<0>();
      release(slot);
      if (warpSums) {
        const float sum = warpSum(columnSum[0] + columnSum[1]);
        if (lane == 0)
          for (; boundarySlot <= a.boundarySlots; ++boundarySlot) warpSums[boundarySlot] = sum;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float column = quadSum(columnSum[i]);
          if (t == 0) a.columnSums[keyAt + 8 * i] = column;
        }
      }
      skipTo(x.lastTile + 1);
    }

    hold(dk);
    hold(dv);
    T* const outK = a.dk.data + x.b * a.dk.batch + x.kvHead * a.dk.head;
    T* const outV = a.dv.data + x.b * a.dv.batch + x.kvHead * a.dv.head;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t key = first + row + 8 * i;
      writeRow<T>(dk, i, a.scale, outK + key * a.dk.row, key < a.M, a.dk, t);
      writeRow<T>(dv, i, 1.f, outV + key * a.dv.row, key < a.M, a.dv, t);
    }
  }
#endif
}

template <typename T, int head>
cudaError_t launchBackwardHopperHead(const AttentionArgs<T>& a, int multiprocessors, cudaStream_t stream) {
  using DqSize = HopperTile<Pass::Dq, head>;
  using DkdvSize = HopperTile<Pass::DkDv, head>;
  const auto dqKernel = dqHopperKernel<T, head>;
  const auto dkdvKernel = dkdvHopperKernel<T, head>;
  cudaError_t e = cudaFuncSetAttribute(dqKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, DqSize::shared);
  if (e == cudaSuccess)
    e = cudaFuncSetAttribute(dkdvKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, DkdvSize::shared);
  CUtensorMap q, dO, k, v;
  const int64_t kvHeads = a.H / a.group;
  if (e == cudaSuccess) e = encodeRows(&q, a.q, a.batch, a.N, a.H);
  if (e == cudaSuccess) e = encodeRows(&dO, a.dO, a.batch, a.N, a.H);
  if (e == cudaSuccess) e = encodeRows(&k, a.k, a.batch, a.M, kvHeads);
  if (e == cudaSuccess) e = encodeRows(&v, a.v, a.batch, a.M, kvHeads);
  if (e != cudaSuccess) return e;
  const int64_t queryItems = a.batch * a.H * divUp(a.M - a.queries.first, DqSize::rows);
  const int64_t keyItems = a.batch * kvHeads * divUp(a.M, DkdvSize::rows);
  const auto grid = [&](int64_t items) { return static_cast<unsigned>(std::min<int64_t>(items, multiprocessors)); };
  dqKernel<<<grid(queryItems), DqSize::threads, DqSize::shared, stream>>>(a, q, dO, k, v,
                                                                           static_cast<int>(queryItems));
  e = lastLaunch();
  if (e != cudaSuccess) return e;
  dkdvKernel<<<grid(keyItems), DkdvSize::threads, DkdvSize::shared, stream>>>(a, q, dO, k, v,
                                                                               static_cast<int>(keyItems));
  return lastLaunch();
}

}  // namespace gatedfwa::cuda
