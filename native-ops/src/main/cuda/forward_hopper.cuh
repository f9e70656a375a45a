// Forward on Hopper's tensor cores (wgmma), behind the skeleton of hopper.cuh.
//
// A consumer group keeps 64 queries, which are one sum tile, and takes the key tiles of their window newest first:
// Q K^T of the next tile and P V of this one are under way together, and the softmax of the next runs over P V.
// Decay terms and the two edge tiles are those of forward_mma.cuh. No maximum is taken of a tile before its weights:
// they are computed under the maximum so far, and again under a new one in the rare case that their sum is large.
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
  constexpr float kRescaleSlack = 8.f;  // rescale only when the maximum grew by more than 2^8
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
      produceQueries<head, rows>(a, block, mapQ);
    } else if (warp == 2 && masked) {
      produceKeyBits<head, rows>(a, block, at);
    }
    return;
  }

  raiseRegisters<Size::consumerRegisters>();
  const int group = warp / 4 - 1, warpInGroup = warp % 4, g = lane / 4, t = lane % 4;
  const int row = 16 * warpInGroup + g;  // the thread's rows of the group's tile: this and the 8th after it
  const uint32_t tileQ = block.stationaryTile(group, 0);
  [[maybe_unused]] uint32_t queries[Size::inRegisters ? head / 16 : 1][4];
  float s[8][4], o[head / 8][4];
  uint32_t weights[4][4], next[4][4];   // of the tile whose values are being multiplied, and of the one after it
  constexpr float kLargeSum = 16384.f;  // of weights, a quarter of HALF's largest number
  uint32_t zero;
  asm volatile("mov.b32 %0, 0;" : "=r"(zero));
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
    skipTo(tile);
    const auto releaseQueries = [&] { barrierArrive(block.released(group)); };
    barrierWait(block.kept(group), queryPhase);
    queryPhase ^= 1;
    if constexpr (Size::inRegisters) {
      loadRows<head>(queries, block.stationaryTile(group, 0), warpInGroup, lane);
      asyncProxyFence();  // ordinary reads, before the next bulk copy
      releaseQueries();
    }

    float rowMax[2], rowSum[2], decay[2] = {0.f, 0.f};  // of the row, to the end of the tile
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      rowMax[i] = -infinity<float>();
      rowSum[i] = 0.f;
    }
#pragma unroll
    for (int n = 0; n < head / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) o[n][e] = 0.f;

    const auto waitTile = [&] {
      barrierWait(block.landed(at.slot), at.phase);
      if (masked) barrierWait(block.ready(at.slot), at.phase);
    };
    const auto keyTile = [&] { return descriptor(block.streamedTile(at.slot, 0)); };
    const auto multiplyValues = [&](int slot) {
      multiplyWeights<T>(o, weights, descriptor(block.streamedTile(slot, 1)));
      wgmmaCommit();
    };
    // Online softmax, base 2; `bias` is the row's own part of the decay. First the maximum: true if what was summed so
    // far must be multiplied by `factor`.
    const auto raiseMax = [&](const float(&bias)[2], float(&factor)[2], float slack) {
      float top[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float y = fmaxf(s[0][2 * i], s[0][2 * i + 1]);
#pragma unroll
        for (int n = 1; n < 8; ++n) y = fmaxf(y, fmaxf(s[n][2 * i], s[n][2 * i + 1]));
        top[i] = fmaf(y, a.scaleLog2, -bias[i]);
      }
      const bool grew = __any_sync(~0u, top[0] > rowMax[0] + slack || top[1] > rowMax[1] + slack) != 0;
      if (grew) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float newMax = fmaxf(rowMax[i], quadMax(top[i]));
          factor[i] = exp2Approx(rowMax[i] - (newMax == -infinity<float>() ? 0.f : newMax));
          rowMax[i] = newMax;
          rowSum[i] *= factor[i];
        }
      }
      return grew;
    };
    // Then scores to weights, and the thread's sums of them. A row that has seen no key yet has no maximum:
    // exp2(-infinity - 0) = 0, not NaN.
    const auto weigh = [&](const float(&bias)[2], float(&sum)[2], auto&& put) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float x = bias[i] + (rowMax[i] == -infinity<float>() ? 0.f : rowMax[i]);
        sum[i] = 0.f;
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          const float y0 = exp2Approx(fmaf(s[n][2 * i], a.scaleLog2, -x));
          const float y1 = exp2Approx(fmaf(s[n][2 * i + 1], a.scaleLog2, -x));
          sum[i] += y0;
          sum[i] += y1;
          put(n, i, y0, y1);
        }
      }
    };
    const auto keepScores = [&](int n, int i, float y0, float y1) {
      s[n][2 * i] = y0;
      s[n][2 * i + 1] = y1;
    };

    // The tile of the rows themselves.
    waitTile();
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
    if (index > oldest) waitTile();
    {
      const HopperKeyTerms& terms = block.terms[slot];
      finishDiagonal(s, terms, decays, masked, tile, row, t, a.window, rawPerLog2);
      if (decays) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
          decay[i] = terms.resets[tile & 1] & bitsThrough(row + 8 * i) ? infinity<float>() : terms.prefix[row + 8 * i];
      }
      const float bias[2] = {0.f, 0.f};
      float factor[2] = {1.f, 1.f};
      raiseMax(bias, factor, kRescaleSlack);
      weigh(bias, rowSum, keepScores);
    }
    packWeights<T>(weights, s);
    // The decay's column terms start the accumulators: behind the softmax (see hold) where the queries are not in
    // registers, else just before the product.
    constexpr bool startEarly = !Size::inRegisters;
    const auto startScores = [&] {
      if (!decays) return;
      float term[8][2];
      loadColumns(term, block.terms[at.slot].suffix, t);
      startColumns(s, term, -rawPerLog2);
    };
    if (startEarly && index > oldest) startScores();

    for (--index; index >= oldest; --index) {
      if constexpr (!startEarly) startScores();
      wgmmaFence();
      if constexpr (Size::inRegisters)
        addTiles<T, head>(s, queries, keyTile(), decays);
      else
        addTiles<T, head>(s, descriptorHere(tileQ), keyTile(), decays);
      wgmmaCommit();
      multiplyValues(slot);
      const int done = slot;
      slot = at.slot;
      at.advance();
      wgmmaWait<1>();
      hold(s);
      if (!Size::inRegisters && index == oldest) releaseQueries();
      hideEdge(s, block.terms[slot], masked, first - a.window + 1 - index * kSumTile, row, t);
      const float total = block.terms[slot].total(index);
      float factor[2] = {1.f, 1.f}, sum[2];
      // Weights under the maximum so far; only if one of them is large (or there is no maximum yet) a new one is found.
      const auto putWeights = [&](int n, int i, float y0, float y1) {
        next[n / 2][n % 2 * 2 + i] = packPair(T(), y0, y1);
      };
      weigh(decay, sum, putWeights);
      const float lowest = fminf(rowMax[0], rowMax[1]);
      const bool grew = __any_sync(~0u, !(sum[0] + sum[1] <= kLargeSum) || lowest == -infinity<float>());
      if (grew) {
        raiseMax(decay, factor, 0.f);
        weigh(decay, sum, putWeights);
      }
      rowSum[0] += sum[0];
      rowSum[1] += sum[1];
#pragma unroll
      for (int d = 0; d < 4; ++d)
#pragma unroll
        for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(next[d][i])::"memory");
      if (index > oldest) {  // here: see hold
        waitTile();
        if constexpr (startEarly) startScores();
      }
      if (decays) {
        decay[0] += total;
        decay[1] += total;
      }
      wgmmaWait<0>();
      hold(o);
      release(done);
      if (grew) {
#pragma unroll
        for (int n = 0; n < head / 8; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) o[n][e] *= factor[e / 2];
      }
#pragma unroll
      for (int d = 0; d < 4; ++d)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          // A real instruction after the wait: ptxas serialises products whose operands are packed before it.
          asm volatile("xor.b32 %0, %1, %2;" : "=r"(weights[d][i]) : "r"(next[d][i]), "r"(zero) : "memory");
        }
    }
    wgmmaFence();
    multiplyValues(slot);
    wgmmaWait<0>();
    hold(o);
    release(slot);
    skipTo(x.oldest - 1);

    T* const out = a.o.data + x.b * a.o.batch + x.h * a.o.head;
    T* rowsO[2];
    float factor[2];
    bool valid[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float sum = quadSum(rowSum[i]);
      const int p = first + row + 8 * i;
      valid[i] = p >= offset && p < a.M;
      if (t == 0 && valid[i])
        a.lse[x.b * a.lseBatch + x.h * a.lseHead + (p - offset) * a.lseRow] =
            sum == 0.f ? -infinity<float>() : (rowMax[i] + __log2f(sum)) * static_cast<float>(kLn2);
      factor[i] = sum == 0.f ? 0.f : __fdividef(1.f, sum);
      rowsO[i] = out + (p - offset) * a.o.row;
    }
    writeRowsShared<T>(o, factor, rowsO, valid, a.o, block.rowSpace(group, warpInGroup), lane);
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
