// Forward on tensor cores (mma.sync): online softmax over the key tiles of the window, newest first.
//
// A block holds `rows` queries of one head, aligned to absolute positions, and streams key tiles from the diagonal down
// to the left edge of the window; each warp owns warpRows of the queries and skips what its own rows do not see, 16
// keys at a time. Tiles that a warp's rows see whole (all but the two at the ends) are handled without any mask.
//
// Decay: let the warp's rows lie in the sum tile W. For a key j of an earlier sum tile J
//     sum_{tau=j+1..p} alpha_tau = suffix_j + (totals of the tiles between J and W) + prefix_p,
// three non-negative terms, so nothing cancels and nothing grows with the sequence. suffix_j starts the score's
// accumulator; the other two are one subtraction per row and tile. In W itself the difference prefix_p - prefix_j is
// used, where hard resets count 0 and are applied as masks.
#pragma once

#include "tile.cuh"

namespace gatedfwa::cuda {

template <typename P, int head>
__global__ void __launch_bounds__(Tile<Pass::Forward, sizeof(typename P::Element), head>::threads,
                                  Tile<Pass::Forward, sizeof(typename P::Element), head>::minBlocks)
    forwardMmaKernel(const __grid_constant__ AttentionArgs<typename P::Element> a) {
#if GATEDFWA_TENSOR_CORES
  using T = typename P::Element;
  using Size = Tile<Pass::Forward, sizeof(T), head>;
  constexpr int rows = Size::rows, columns = Size::columns, threads = Size::threads, warpRows = Size::warpRows;
  constexpr int rowBlocks = warpRows / 16, rowBytes = head * sizeof(T);
  constexpr int depthSteps = head / P::kStep, stepBytes = P::kStep * sizeof(T);
  constexpr int blocks16 = columns / 16, keySteps = 16 / P::kStep;
  constexpr bool queriesInRegisters = sizeof(T) == 2 && head == 64;
  constexpr int prefixRows = rows < kSumTile ? kSumTile : rows;  // whole sum tiles
  constexpr float kRescaleSlack = 8.f;                           // rescale only when the maximum grew by more than 2^8

  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t sharedQ = sharedAddress(shared);
  const uint32_t sharedKv = sharedQ + rows * rowBytes;  // stages of {K tile, V tile}
  constexpr int stageBytes = 2 * columns * rowBytes;
  float* const prefix = reinterpret_cast<float*>(shared + rows * rowBytes + Size::stages * stageBytes);
  float* const prefixLow = prefix + prefixRows;
  auto* const keyTerms = reinterpret_cast<KeyTerms<columns>*>(prefixLow + prefixRows);

  const int warp = warpIndex(), lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int offset = a.M - a.N;  // absolute position of query 0
  const int tiles = static_cast<int>(a.queries.length / rows);
  // Neighbours in the grid share keys.
  const int block = blockIdx.x, head0 = block / tiles;
  const int64_t bh = head0, b = head0 / a.H, h = head0 % a.H;
  const int origin = static_cast<int>(a.queries.first) + (block % tiles) * rows;
  if (origin + rows <= offset || origin >= a.M) return;
  const T* const k = a.k.data + b * a.k.batch + h / a.group * a.k.head;
  const T* const v = a.v.data + b * a.v.batch + h / a.group * a.v.head;

  const int firstPosition = max(origin, offset), lastPosition = min(origin + rows, a.M) - 1;
  const int newest = lastPosition / columns, oldest = max(0, firstPosition - a.window + 1) / columns;

  const auto keyBitsOf = [&](int key) {
    return a.keyBits ? a.keyBits[b * a.keys.tiles() + (key - a.keys.first) / kSumTile] : ~0ull;
  };
  const auto copyKeys = [&](int index, int stage, uint64_t bits) {
    const uint32_t to = sharedKv + stage * stageBytes;
    copyTile<T, columns, head, threads>(to, k, a.k.row, a.k.width, index * columns, 0, a.M, bits);
    copyTile<T, columns, head, threads>(to + columns * rowBytes, v, a.v.row, a.v.width, index * columns, 0, a.M, bits);
    copyCommit();
  };
  // Key terms are added to raw scores, or to scores in log2 units (see finishScores).
  const float rawPerLog2 = P::kTermsInAccumulator ? 1.f / a.scaleLog2 : 1.f;
  const float unitScale = P::kTermsInAccumulator ? a.scaleLog2 : 1.f;

  copyTile<T, rows, head, threads>(sharedQ, a.q.data + b * a.q.batch + h * a.q.head - offset * a.q.row, a.q.row,
                                   a.q.width, origin, offset, a.M, ~0ull);
  const int prefixOrigin = origin & ~(kSumTile - 1);
  for (int i = threadIdx.x; i < prefixRows; i += threads) {
    const int64_t at = bh * a.keys.length + prefixOrigin - a.keys.first + i;
    prefix[i] = a.sums.prefix ? a.sums.prefix[at] : 0.f;
    prefixLow[i] = a.sums.prefixLow ? a.sums.prefixLow[at] : 0.f;
  }
  copyKeys(newest, 0, keyBitsOf(newest * columns));
  storeKeyTerms(keyTerms[0], loadKeyTerms<columns>(a, bh, b, newest * columns), newest * columns, rawPerLog2);
  uint64_t nextBits = keyBitsOf(max(newest - 1, oldest) * columns);

  // The warp's rows: positions, the sum tile they lie in, their decay from its start.
  const int warpFirst = origin + warp * warpRows, warpLast = warpFirst + warpRows - 1;
  const int warpTile = sumTileOf(warpFirst);
  const LaneOffset laneA = laneOfA<rowBytes>(lane), laneB = laneOfB<rowBytes>(lane);
  const uint32_t warpQ = sharedQ + warp * warpRows * rowBytes;
  const uint64_t warpResets =
      a.sums.resets ? a.sums.resets[bh * a.keys.tiles() + (warpFirst - a.keys.first) / kSumTile] : 0ull;
  float rowPrefix[rowBlocks][2], rowMax[rowBlocks][2], rowSum[rowBlocks][2];
  float out[rowBlocks][head / 8][4];
#pragma unroll
  for (int m = 0; m < rowBlocks; ++m) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      rowMax[m][i] = -infinity<float>();
      rowSum[m][i] = 0.f;
    }
#pragma unroll
    for (int n = 0; n < head / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) out[m][n][e] = 0.f;
  }
  typename P::A queries[queriesInRegisters ? rowBlocks : 1][queriesInRegisters ? depthSteps : 1];

  float between = 0.f;  // decay of the sum tiles between the key tile's and the warp's

  // One key tile. `masked`: the diagonal (same sum tile) or the window's left edge runs through it.
  const auto process = [&](auto maskedTag, int first, int stage) {
    constexpr bool masked = decltype(maskedTag)::value;
    const bool diagonal = masked && sumTileOf(first) == warpTile;
    const KeyTerms<columns>& terms = keyTerms[stage];
    const uint32_t tileK = sharedKv + stage * stageBytes, tileV = tileK + columns * rowBytes;
    const auto live = [&](int n) {
      if (!masked) return true;
      const int key = first + 16 * n;
      return key <= warpLast && key + 15 > warpFirst - a.window;
    };

    float s[rowBlocks][columns / 8][4];
#pragma unroll
    for (int n = 0; n < columns / 8; ++n) {
      float4 start = make_float4(0.f, 0.f, 0.f, 0.f);
      if constexpr (P::kTermsInAccumulator) {
        if (!masked || !diagonal) start = terms.terms[4 * n + t];
      }
#pragma unroll
      for (int m = 0; m < rowBlocks; ++m) {
        s[m][n][0] = start.x;
        s[m][n][1] = start.y;
        s[m][n][2] = start.z;
        s[m][n][3] = start.w;
      }
    }
    const auto query = [&](int m, int d) {
      if constexpr (queriesInRegisters)
        return queries[m][d];
      else
        return P::loadA(fragmentAddress<rowBytes>(warpQ, laneA, 16 * m, d * stepBytes));
    };
    if constexpr (masked && queriesInRegisters) {
#pragma unroll
      for (int n = 0; n < blocks16; ++n) {
        if (!live(n)) continue;
#pragma unroll
        for (int d = 0; d < depthSteps; ++d) {
          const typename P::B kb = P::loadB(fragmentAddress<rowBytes>(tileK, laneB, 16 * n, d * stepBytes));
#pragma unroll
          for (int m = 0; m < rowBlocks; ++m) P::multiply(s[m][2 * n], s[m][2 * n + 1], query(m, d), kb);
        }
      }
    } else {
#pragma unroll
      for (int d = 0; d < depthSteps; ++d) {
        typename P::A q[rowBlocks];
#pragma unroll
        for (int m = 0; m < rowBlocks; ++m) q[m] = query(m, d);
#pragma unroll
        for (int n = 0; n < blocks16; ++n) {
          const typename P::B kb = P::loadB(fragmentAddress<rowBytes>(tileK, laneB, 16 * n, d * stepBytes));
#pragma unroll
          for (int m = 0; m < rowBlocks; ++m) P::multiply(s[m][2 * n], s[m][2 * n + 1], q[m], kb);
        }
      }
    }
    const int sumTileFirst = warpTile * kSumTile;
    finishScores<!P::kTermsInAccumulator, masked>(s, diagonal, terms, 0, prefix + (sumTileFirst - prefixOrigin),
                                                  prefixLow + (sumTileFirst - prefixOrigin), sumTileFirst, first,
                                                  warpFirst, a.window, warpResets, a.scaleLog2, rawPerLog2);

    // Online softmax, base 2. The row's own part of the decay enters here, once per row and tile.
    float top[rowBlocks][2], bias[rowBlocks][2];
    bool grew = false;
#pragma unroll
    for (int m = 0; m < rowBlocks; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float x = fmaxf(s[m][0][2 * i], s[m][0][2 * i + 1]);
#pragma unroll
        for (int n = 1; n < columns / 8; ++n) x = fmaxf(x, fmaxf(s[m][n][2 * i], s[m][n][2 * i + 1]));
        bias[m][i] = masked && diagonal ? 0.f : rowPrefix[m][i] + between;
        top[m][i] = quadMax(x) * unitScale - bias[m][i];
        grew = grew || top[m][i] > rowMax[m][i] + kRescaleSlack;
      }
    if (__any_sync(~0u, grew)) {
#pragma unroll
      for (int m = 0; m < rowBlocks; ++m)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float newMax = fmaxf(rowMax[m][i], top[m][i]);
          const float factor = exp2Approx(rowMax[m][i] - (newMax == -infinity<float>() ? 0.f : newMax));
          rowMax[m][i] = newMax;
          rowSum[m][i] *= factor;
#pragma unroll
          for (int n = 0; n < head / 8; ++n) {
            out[m][n][2 * i] *= factor;
            out[m][n][2 * i + 1] *= factor;
          }
        }
    }
#pragma unroll
    for (int m = 0; m < rowBlocks; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        // A row that has seen no key yet has no maximum: exp2(-infinity - 0) = 0, not NaN.
        bias[m][i] += rowMax[m][i] == -infinity<float>() ? 0.f : rowMax[m][i];
      }

    // The weights of 16 keys while the tensor cores multiply those of the 16 before.
    const auto weigh = [&](int n) {
#pragma unroll
      for (int m = 0; m < rowBlocks; ++m)
#pragma unroll
        for (int c = 2 * n; c < 2 * n + 2; ++c)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            s[m][c][e] = exp2Approx(fmaf(s[m][c][e], unitScale, -bias[m][e / 2]));
            rowSum[m][e / 2] += s[m][c][e];
          }
    };
    if (live(0)) weigh(0);
#pragma unroll
    for (int n = 0; n < blocks16; ++n) {
      if (n + 1 < blocks16 && live(n + 1)) weigh(n + 1);
      if (!live(n)) continue;
#pragma unroll
      for (int step = 0; step < keySteps; ++step) {
        typename P::A p[rowBlocks];
#pragma unroll
        for (int m = 0; m < rowBlocks; ++m) p[m] = P::fromAccumulators(s[m], n * keySteps + step);
#pragma unroll
        for (int d = 0; d < head / 16; ++d) {
          const typename P::B vb = P::template loadTransposed<rowBytes>(tileV, lane, 16 * n + step * P::kStep, 16 * d);
#pragma unroll
          for (int m = 0; m < rowBlocks; ++m) P::multiply(out[m][2 * d], out[m][2 * d + 1], p[m], vb);
        }
      }
    }
  };

  for (int index = newest; index >= oldest; --index) {
    const int stage = (newest - index) & 1, first = index * columns;
    copyWaitAll();
    __syncthreads();
    if (index == newest) {
#pragma unroll
      for (int m = 0; m < rowBlocks; ++m)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int p = warpFirst + 16 * m + g + 8 * i;
          rowPrefix[m][i] = warpResets & bitsThrough(p & (kSumTile - 1)) ? infinity<float>() : prefix[p - prefixOrigin];
        }
      if constexpr (queriesInRegisters) {
#pragma unroll
        for (int m = 0; m < rowBlocks; ++m)
#pragma unroll
          for (int d = 0; d < depthSteps; ++d)
            queries[m][d] = P::loadA(fragmentAddress<rowBytes>(warpQ, laneA, 16 * m, d * stepBytes));
      }
    }
    KeyTermsLoad next;
    if (index > oldest) {
      copyKeys(index - 1, stage ^ 1, nextBits);
      next = loadKeyTerms<columns>(a, bh, b, first - columns);
      nextBits = keyBitsOf(max(index - 2, oldest) * columns);
    }
    const bool seen = first <= warpLast && first + columns - 1 > warpFirst - a.window;
    const bool whole = sumTileOf(first) < warpTile && first > warpLast - a.window;
    if (whole)
      process(std::false_type(), first, stage);
    else if (seen)
      process(std::true_type(), first, stage);
    if ((first & (kSumTile - 1)) == 0 && sumTileOf(first) < warpTile) between += keyTerms[stage].total;
    if (index > oldest) storeKeyTerms(keyTerms[stage ^ 1], next, first - columns, rawPerLog2);
  }

  float factor[rowBlocks][2];
#pragma unroll
  for (int m = 0; m < rowBlocks; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float sum = quadSum(rowSum[m][i]);
      factor[m][i] = sum == 0.f ? 0.f : 1.f / sum;
      const int p = warpFirst + 16 * m + g + 8 * i;
      if (t == 0 && p >= offset && p < a.M) {
        a.lse[b * a.lseBatch + h * a.lseHead + (p - offset) * a.lseRow] =
            sum == 0.f ? -infinity<float>() : (rowMax[m][i] + log2f(sum)) * static_cast<float>(kLn2);
      }
    }
  writeTile<T, rowBlocks, head>(out, factor, warpQ, a.o.data + b * a.o.batch + h * a.o.head, a.o, warpFirst - offset,
                                offset - warpFirst, a.M - warpFirst);
#endif
}

template <typename P, int head>
cudaError_t launchForwardMmaHead(const AttentionArgs<typename P::Element>& a, cudaStream_t stream) {
  using Size = Tile<Pass::Forward, sizeof(typename P::Element), head>;
  const auto kernel = forwardMmaKernel<P, head>;
  const cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Size::shared);
  if (e != cudaSuccess) return e;
  const int64_t blocks = a.batch * a.H * (a.queries.length / Size::rows);
  kernel<<<static_cast<unsigned>(blocks), Size::threads, Size::shared, stream>>>(a);
  return lastLaunch();
}

}  // namespace gatedfwa::cuda
