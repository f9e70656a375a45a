// Forward on Hopper's tensor cores (wgmma), behind the skeleton of hopper.cuh.
//
// A consumer group keeps 64 queries, which are one sum tile, and takes the key tiles of their window newest first:
// Q K^T of the next tile and P V of this one are under way together, and the softmax of the next runs over P V.
// Decay terms, the two edge tiles and the rescaling rule are those of forward_mma.cuh.
#pragma once

#include "hopper.cuh"
#include "tensor_map.h"

namespace gatedfwa::cuda {

template <typename T, int head>
__global__ void __launch_bounds__(HopperTile<Pass::Forward, head>::threads, 1)
    forwardHopperKernel(const __grid_constant__ AttentionArgs<T> a, const __grid_constant__ CUtensorMap mapQ,
                        const __grid_constant__ CUtensorMap mapK, const __grid_constant__ CUtensorMap mapV) {
#if GATEDFWA_HOPPER
  using Size = HopperTile<Pass::Forward, head>;
  constexpr int rows = Size::rows;
  constexpr bool prefetchTerms = head == 64;  // a tile ahead, where registers are left
  constexpr float kRescaleSlack = 8.f;        // rescale only when the maximum grew by more than 2^8
  extern __shared__ __align__(1024) unsigned char hopperShared[];
  const HopperBlock<Size, HopperKeyTerms> block(hopperShared);
  static_assert(sizeof(HopperKeyTerms) == Size::termBytes, "");
  block.initialise(keyTileArrivals(a));

  const int warp = warpIndex(), lane = threadIdx.x % 32, offset = a.M - a.N;
  const bool hasTerms = hasKeyTerms(a);
  const float rawPerLog2 = 1.f / a.scaleLog2;

  if (warp < 4) {
    lowerRegisters<Size::producerRegisters>();
    const Ring<Size::stages> at;
    if (warp == 0 && lane == 0) {
      produceKeys<head, rows>(a, block, at, mapK, mapV);
    } else if (warp == 1 && lane == 0) {
      produceQueries<head, rows>(a, block, mapQ, nullptr);
    } else if (warp == 2 && hasTerms) {
      produceKeyTerms<head, rows>(a, block, at, rawPerLog2);
    }
    return;
  }

  raiseRegisters<Size::consumerRegisters>();
  const int group = warp / 4 - 1, warpInGroup = warp % 4, g = lane / 4, t = lane % 4;
  const int row = 16 * warpInGroup + g;  // the thread's rows of the group's tile: this and the 8th after it
  const uint32_t tileQ = block.stationaryTile(group, 0);
  [[maybe_unused]] uint32_t queries[Size::inRegisters ? head / 16 : 1][4];
  float s[8][4], o[head / 8][4];
  uint32_t weights[4][4];
  Ring<Size::stages> at;
  uint32_t queryPhase = 0;

  for (WorkList work = queryWorkList(a, rows); work.more(); work.advance()) {
    const QueryWork x(a, work, rows);
    const int first = x.origin + group * kSumTile, tile = first / kSumTile;
    const bool live = first < a.M && first + kSumTile > offset;
    const int oldest = max(0, max(first, offset) - a.window + 1) / kSumTile;
    int index = x.newest;
    const auto release = [&](int slot) {
      __syncwarp();
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
    skipTo(tile);
    const auto releaseQueries = [&] {
      __syncwarp();
      if (lane == 0) barrierArrive(block.released(group));
    };
    barrierWait(block.kept(group), queryPhase);
    queryPhase ^= 1;
    if constexpr (Size::inRegisters) {
      loadRows<head>(queries, block.stationaryTile(group, 0), warpInGroup, lane);
      releaseQueries();
    }

    float rowMax[2], rowSum[2], rowPrefix[2] = {0.f, 0.f}, between = 0.f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      rowMax[i] = -infinity<float>();
      rowSum[i] = 0.f;
    }
#pragma unroll
    for (int n = 0; n < head / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) o[n][e] = 0.f;

    // The next tile; asked for early, so that its latency is hidden.
    float term[8][2], total = 0.f;
    const auto fetch = [&] {
      barrierWait(block.landed(at.slot), at.phase);
      if (a.keyBits) barrierWait(block.ready(at.slot), at.phase);
      if (!hasTerms) return;
      if (prefetchTerms) loadColumns(term, block.terms[at.slot].term, t);
      total = block.terms[at.slot].total;
    };
    const auto keyTile = [&] { return descriptor(block.streamedTile(at.slot, 0)); };
    const auto multiplyValues = [&](int slot) {
      multiplyWeights<T>(o, weights, descriptor(block.streamedTile(slot, 1)));
      wgmmaCommit();
    };
    // Online softmax, base 2: scores to weights; `bias` is the row's own part of the decay. True if what was summed so
    // far must be multiplied by `factor`.
    const auto exponentiate = [&](float(&bias)[2], float(&factor)[2]) {
      float top[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float y = fmaxf(s[0][2 * i], s[0][2 * i + 1]);
#pragma unroll
        for (int n = 1; n < 8; ++n) y = fmaxf(y, fmaxf(s[n][2 * i], s[n][2 * i + 1]));
        top[i] = fmaf(y, a.scaleLog2, -bias[i]);
      }
      const bool grew = __any_sync(~0u, top[0] > rowMax[0] + kRescaleSlack || top[1] > rowMax[1] + kRescaleSlack) != 0;
      if (grew) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float newMax = fmaxf(rowMax[i], quadMax(top[i]));
          factor[i] = exp2Approx(rowMax[i] - (newMax == -infinity<float>() ? 0.f : newMax));
          rowMax[i] = newMax;
          rowSum[i] *= factor[i];
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        // A row that has seen no key yet has no maximum: exp2(-infinity - 0) = 0, not NaN.
        bias[i] += rowMax[i] == -infinity<float>() ? 0.f : rowMax[i];
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float y = exp2Approx(fmaf(s[n][2 * i + e], a.scaleLog2, -bias[i]));
            s[n][2 * i + e] = y;
            rowSum[i] += y;
          }
      }
      return grew;
    };

    // The tile of the rows themselves.
    fetch();
    wgmmaFence();
    if constexpr (Size::inRegisters)
      multiplyTiles<T, head>(s, queries, keyTile());
    else
      multiplyTiles<T, head>(s, descriptorHere(tileQ), keyTile());
    wgmmaCommit();
    wgmmaWait<0>();
    hold(s);
    if (!Size::inRegisters && index == oldest) releaseQueries();
    int slot = at.slot;
    at.advance();
    if (index > oldest) fetch();
    {
      const HopperKeyTerms* const terms = hasTerms ? &block.terms[slot] : nullptr;
      finishDiagonal(s, terms, row, t, a.window, rawPerLog2);
      if (terms) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
          rowPrefix[i] = terms->resets & bitsThrough(row + 8 * i) ? infinity<float>() : terms->prefix[row + 8 * i];
      }
      float bias[2] = {0.f, 0.f}, factor[2] = {1.f, 1.f};
      exponentiate(bias, factor);
    }
    packWeights<T>(weights, s);

    for (--index; index >= oldest; --index) {
      if (hasTerms) {
        if (!prefetchTerms) loadColumns(term, block.terms[at.slot].term, t);
        startColumns(s, term);
      }
      const float tileTotal = total;
      wgmmaFence();
      if constexpr (Size::inRegisters)
        addTiles<T, head>(s, queries, keyTile(), hasTerms);
      else
        addTiles<T, head>(s, descriptorHere(tileQ), keyTile(), hasTerms);
      wgmmaCommit();
      multiplyValues(slot);
      const int done = slot;
      slot = at.slot;
      at.advance();
      wgmmaWait<1>();
      hold(s);
      if (!Size::inRegisters && index == oldest) releaseQueries();
      if (index > oldest) fetch();
      if (index * kSumTile <= first + kSumTile - 1 - a.window) {  // the window's left edge runs through the tile
#pragma unroll
        for (int i = 0; i < 2; ++i)
          hideColumns(s, i, bitsFrom(first + row + 8 * i - a.window + 1 - index * kSumTile), t);
      }
      float bias[2] = {rowPrefix[0] + between, rowPrefix[1] + between}, factor[2] = {1.f, 1.f};
      const bool grew = exponentiate(bias, factor);
      between += tileTotal;
      wgmmaWait<0>();
      hold(o);
      release(done);
      if (grew) {
#pragma unroll
        for (int n = 0; n < head / 8; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) o[n][e] *= factor[e / 2];
      }
      packWeights<T>(weights, s);
    }
    wgmmaFence();
    multiplyValues(slot);
    wgmmaWait<0>();
    hold(o);
    release(slot);
    skipTo(x.oldest - 1);

    T* const out = a.o.data + x.b * a.o.batch + x.h * a.o.head;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float sum = quadSum(rowSum[i]);
      const int p = first + row + 8 * i;
      const bool valid = p >= offset && p < a.M;
      if (t == 0 && valid)
        a.lse[x.b * a.lseBatch + x.h * a.lseHead + (p - offset) * a.lseRow] =
            sum == 0.f ? -infinity<float>() : (rowMax[i] + __log2f(sum)) * static_cast<float>(kLn2);
      writeRow<T>(o, i, sum == 0.f ? 0.f : __fdividef(1.f, sum), out + (p - offset) * a.o.row, valid, a.o, t);
    }
  }
#endif
}

template <typename T, int head>
cudaError_t launchForwardHopperHead(const AttentionArgs<T>& a, int multiprocessors, cudaStream_t stream) {
  using Size = HopperTile<Pass::Forward, head>;
  const auto kernel = forwardHopperKernel<T, head>;
  cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Size::shared);
  if (e != cudaSuccess) return e;
  CUtensorMap q, k, v;
  e = encodeRows(&q, a.q, a.batch, a.N, a.H);
  if (e == cudaSuccess) e = encodeRows(&k, a.k, a.batch, a.M, a.H / a.group);
  if (e == cudaSuccess) e = encodeRows(&v, a.v, a.batch, a.M, a.H / a.group);
  if (e != cudaSuccess) return e;
  const int64_t items = a.batch * a.H * divUp(a.M - a.queries.first, Size::rows);
  kernel<<<static_cast<unsigned>(std::min<int64_t>(items, multiprocessors)), Size::threads, Size::shared, stream>>>(
      a, q, k, v);
  return lastLaunch();
}

}  // namespace gatedfwa::cuda
