// Backward on tensor cores (mma.sync), in two passes that recompute the scores from lse, so that every gradient is
// summed in registers in a fixed order: no atomics, no N x M array.
//
//   dqMmaKernel    a block holds queries and streams keys:     dq = scale dS K
//   dkdvMmaKernel  a block holds keys and streams queries:     dv = P^T dO, dk = scale dS^T Q, column sums of dS
//
// P = exp2(scale' q.k - decay - lse'), dS = P o (dO V^T - delta). Decays are the three-term sums of forward_mma.cuh.
// dalpha comes from the column sums (dalpha.cu).
#pragma once

#include "tile.cuh"

namespace gatedfwa::cuda {

template <typename P, int head>
__global__ void __launch_bounds__(Tile<Pass::Dq, sizeof(typename P::Element), head>::threads,
                                  Tile<Pass::Dq, sizeof(typename P::Element), head>::minBlocks)
    dqMmaKernel(const __grid_constant__ AttentionArgs<typename P::Element> a) {
#if GATEDFWA_TENSOR_CORES
  using T = typename P::Element;
  using Size = Tile<Pass::Dq, sizeof(T), head>;
  constexpr int rows = Size::rows, columns = Size::columns, threads = Size::threads, warpRows = Size::warpRows;
  constexpr int scores = Size::scores, rowBlocks = warpRows / 16, rowBytes = head * sizeof(T);
  constexpr int depthSteps = head / P::kStep, stepBytes = P::kStep * sizeof(T), keySteps = 16 / P::kStep;
  constexpr int prefixRows = rows < kSumTile ? kSumTile : rows;

  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t sharedQ = sharedAddress(shared), sharedDo = sharedQ + rows * rowBytes;
  const uint32_t sharedKv = sharedDo + rows * rowBytes;
  constexpr int stageBytes = 2 * columns * rowBytes;
  float* const prefix = reinterpret_cast<float*>(shared + 2 * rows * rowBytes + Size::stages * stageBytes);
  float* const prefixLow = prefix + prefixRows;
  auto* const keyTerms = reinterpret_cast<KeyTerms<columns>*>(prefixLow + prefixRows);

  const int warp = warpIndex(), lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int offset = a.M - a.N;
  const int tiles = static_cast<int>(a.queries.length / rows);
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
  const auto copyKeys = [&](int index, int stage) {
    const uint32_t to = sharedKv + stage * stageBytes;
    const uint64_t bits = keyBitsOf(index * columns);
    copyTile<T, columns, head, threads>(to, k, a.k.row, a.k.width, index * columns, 0, a.M, bits);
    copyTile<T, columns, head, threads>(to + columns * rowBytes, v, a.v.row, a.v.width, index * columns, 0, a.M, bits);
    copyCommit();
  };

  copyTile<T, rows, head, threads>(sharedQ, a.q.data + b * a.q.batch + h * a.q.head - offset * a.q.row, a.q.row,
                                   a.q.width, origin, offset, a.M, ~0ull);
  copyTile<T, rows, head, threads>(sharedDo, a.dO.data + b * a.dO.batch + h * a.dO.head - offset * a.dO.row, a.dO.row,
                                   a.dO.width, origin, offset, a.M, ~0ull);
  copyCommit();
  const int prefixOrigin = origin & ~(kSumTile - 1);
  for (int i = threadIdx.x; i < prefixRows; i += threads) {
    const int64_t at = bh * a.keys.length + prefixOrigin - a.keys.first + i;
    prefix[i] = a.sums.prefix ? a.sums.prefix[at] : 0.f;
    prefixLow[i] = a.sums.prefixLow ? a.sums.prefixLow[at] : 0.f;
  }
  if (Size::stages == 2) copyKeys(newest, 0);
  storeKeyTerms(keyTerms[0], loadKeyTerms<columns>(a, bh, b, newest * columns), newest * columns, 1.f);

  const int warpFirst = origin + warp * warpRows, warpLast = warpFirst + warpRows - 1;
  const int warpTile = sumTileOf(warpFirst);
  const LaneOffset laneA = laneOfA<rowBytes>(lane), laneB = laneOfB<rowBytes>(lane);
  const uint32_t warpQ = sharedQ + warp * warpRows * rowBytes, warpDo = sharedDo + warp * warpRows * rowBytes;
  const uint64_t warpResets =
      a.sums.resets ? a.sums.resets[bh * a.keys.tiles() + (warpFirst - a.keys.first) / kSumTile] : 0ull;
  const float* const rowLse = a.rowLse + bh * a.queries.length + warpFirst - a.queries.first;
  float rowDecayedLse[rowBlocks][2], rowDelta[rowBlocks][2], rowSum[rowBlocks][2];
#pragma unroll
  for (int m = 0; m < rowBlocks; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      rowSum[m][i] = 0.f;
      const int64_t at = bh * a.queries.length + warpFirst + 16 * m + g + 8 * i - a.queries.first;
      rowDecayedLse[m][i] = a.rowDecayedLse[at];
      rowDelta[m][i] = a.rowDelta[at];
    }
  float dq[rowBlocks][head / 8][4];
#pragma unroll
  for (int m = 0; m < rowBlocks; ++m)
#pragma unroll
    for (int n = 0; n < head / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) dq[m][n][e] = 0.f;
  float between = 0.f;

  // Keys first .. first + scores - 1, which lie `at` rows into the stage's tiles.
  const auto process = [&](auto maskedTag, int first, int at, int stage) {
    constexpr bool masked = decltype(maskedTag)::value;
    const bool diagonal = masked && sumTileOf(first) == warpTile;
    const KeyTerms<columns>& terms = keyTerms[stage];
    const uint32_t tileK = sharedKv + stage * stageBytes + at * rowBytes, tileV = tileK + columns * rowBytes;
    const auto live = [&](int n) {
      if (!masked) return true;
      const int key = first + 16 * n;
      return key <= warpLast && key + 15 > warpFirst - a.window;
    };
    float s[rowBlocks][scores / 8][4], ds[rowBlocks][scores / 8][4];
#pragma unroll
    for (int n = 0; n < scores / 8; ++n) {
#pragma unroll
      for (int m = 0; m < rowBlocks; ++m)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[m][n][e] = ds[m][n][e] = 0.f;
    }
    const auto products = [&](auto& sum, uint32_t rowTile, uint32_t keyTile) {
#pragma unroll
      for (int d = 0; d < depthSteps; ++d) {
        typename P::A x[rowBlocks];
#pragma unroll
        for (int m = 0; m < rowBlocks; ++m)
          x[m] = P::loadA(fragmentAddress<rowBytes>(rowTile, laneA, 16 * m, d * stepBytes));
#pragma unroll
        for (int n = 0; n < scores / 16; ++n) {
          const typename P::B y = P::loadB(fragmentAddress<rowBytes>(keyTile, laneB, 16 * n, d * stepBytes));
#pragma unroll
          for (int m = 0; m < rowBlocks; ++m) P::multiply(sum[m][2 * n], sum[m][2 * n + 1], x[m], y);
        }
      }
    };
    products(s, warpQ, tileK);
    products(ds, warpDo, tileV);
    const int sumTileFirst = warpTile * kSumTile;
    finishScores<true, masked>(s, diagonal, terms, at, prefix + (sumTileFirst - prefixOrigin),
                               prefixLow + (sumTileFirst - prefixOrigin), sumTileFirst, first, warpFirst, a.window,
                               warpResets, a.scaleLog2, 1.f);
    float bias[rowBlocks][2];
#pragma unroll
    for (int m = 0; m < rowBlocks; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        bias[m][i] = masked && diagonal ? rowLse[16 * m + g + 8 * i] : rowDecayedLse[m][i] + between;
    // dS of 16 keys while the tensor cores multiply those of the 16 before.
    const auto weigh = [&](int n) {
#pragma unroll
      for (int m = 0; m < rowBlocks; ++m)
#pragma unroll
        for (int c = 2 * n; c < 2 * n + 2; ++c)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float p = exp2Approx(s[m][c][e] - bias[m][e / 2]);
            ds[m][c][e] = p * (ds[m][c][e] - rowDelta[m][e / 2]);
            rowSum[m][e / 2] += ds[m][c][e];
          }
    };
    if (live(0)) weigh(0);
#pragma unroll
    for (int n = 0; n < scores / 16; ++n) {
      if (n + 1 < scores / 16 && live(n + 1)) weigh(n + 1);
      if (!live(n)) continue;
#pragma unroll
      for (int step = 0; step < keySteps; ++step) {
        typename P::A x[rowBlocks];
#pragma unroll
        for (int m = 0; m < rowBlocks; ++m) x[m] = P::fromAccumulators(ds[m], n * keySteps + step);
#pragma unroll
        for (int d = 0; d < head / 16; ++d) {
          const typename P::B kb = P::template loadTransposed<rowBytes>(tileK, lane, 16 * n + step * P::kStep, 16 * d);
#pragma unroll
          for (int m = 0; m < rowBlocks; ++m) P::multiply(dq[m][2 * d], dq[m][2 * d + 1], x[m], kb);
        }
      }
    }
  };

  for (int index = newest; index >= oldest; --index) {
    const int stage = Size::stages == 2 ? (newest - index) & 1 : 0, tileFirst = index * columns;
    if (Size::stages == 1) {
      __syncthreads();
      copyKeys(index, 0);
      if (index < newest) storeKeyTerms(keyTerms[0], loadKeyTerms<columns>(a, bh, b, tileFirst), tileFirst, 1.f);
    }
    copyWaitAll();
    __syncthreads();
    KeyTermsLoad next;
    if (Size::stages == 2 && index > oldest) {
      copyKeys(index - 1, stage ^ 1);
      next = loadKeyTerms<columns>(a, bh, b, tileFirst - columns);
    }
#pragma unroll 1
    for (int at = columns - scores; at >= 0; at -= scores) {
      const int first = tileFirst + at;
      const bool seen = first <= warpLast && first + scores - 1 > warpFirst - a.window;
      const bool whole = sumTileOf(first) < warpTile && first > warpLast - a.window;
      if (whole)
        process(std::false_type(), first, at, stage);
      else if (seen)
        process(std::true_type(), first, at, stage);
    }
    if ((tileFirst & (kSumTile - 1)) == 0 && sumTileOf(tileFirst) < warpTile) between += keyTerms[stage].total;
    if (Size::stages == 2 && index > oldest) storeKeyTerms(keyTerms[stage ^ 1], next, tileFirst - columns, 1.f);
  }

  float factor[rowBlocks][2];
#pragma unroll
  for (int m = 0; m < rowBlocks; ++m) {
    factor[m][0] = factor[m][1] = a.scale;
    if (a.rowSums) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float sum = quadSum(rowSum[m][i]);
        if (t == 0) a.rowSums[bh * a.queries.length + warpFirst + 16 * m + g + 8 * i - a.queries.first] = sum;
      }
    }
  }
  writeTile<T, rowBlocks, head>(dq, factor, warpQ, a.dq.data + b * a.dq.batch + h * a.dq.head, a.dq, warpFirst - offset,
                                offset - warpFirst, a.M - warpFirst);
#endif
}

/// What a key-stationary block keeps in shared memory of each streamed query tile besides Q and dO.
template <int columns>
struct alignas(16) QueryTerms {
  float lse[columns], decayedLse[columns], delta[columns];
  float total;  ///< decay of the sum tile, infinity if it has a reset
};

/// `wantDv`, `wantDk`: both in one kernel where the registers allow it.
template <typename P, int head, bool wantDv, bool wantDk>
__global__ void __launch_bounds__(Tile<Pass::DkDv, sizeof(typename P::Element), head>::threads,
                                  Tile<Pass::DkDv, sizeof(typename P::Element), head>::minBlocks)
    dkdvMmaKernel(const __grid_constant__ AttentionArgs<typename P::Element> a) {
#if GATEDFWA_TENSOR_CORES
  using T = typename P::Element;
  using Size = Tile<Pass::DkDv, sizeof(T), head>;
  constexpr int rows = Size::rows, columns = Size::columns, threads = Size::threads, warpRows = Size::warpRows;
  constexpr int scores = Size::scores, rowBlocks = warpRows / 16, rowBytes = head * sizeof(T);
  constexpr int depthSteps = head / P::kStep, stepBytes = P::kStep * sizeof(T), querySteps = 16 / P::kStep;

  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t sharedK = sharedAddress(shared), sharedV = sharedK + rows * rowBytes;
  const uint32_t sharedQ = sharedV + rows * rowBytes;  // stages of {Q tile, dO tile}
  constexpr int stageBytes = 2 * columns * rowBytes;
  auto* const queryTerms =
      reinterpret_cast<QueryTerms<columns>*>(shared + 2 * rows * rowBytes + Size::stages * stageBytes);
  static_assert(sizeof(QueryTerms<columns>) <= columns * 12 + 32, "");

  const int warp = warpIndex(), lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int offset = a.M - a.N;
  const int tiles = (a.M + rows - 1) / rows, kvHeads = a.H / a.group;
  const int block = blockIdx.x;
  const int64_t b = block / tiles / kvHeads, kvHead = block / tiles % kvHeads;
  const int origin = (block % tiles) * rows;
  const int warpFirst = origin + warp * warpRows, warpLast = warpFirst + warpRows - 1;
  const int warpTile = sumTileOf(warpFirst);

  // The query tiles that see a key of the block, for each of the group's heads in turn.
  const int firstTile = max(origin, offset) / columns;
  const int lastTile =
      static_cast<int>(min(static_cast<int64_t>(a.M) - 1, static_cast<int64_t>(origin) + rows + a.window - 2)) /
      columns;
  const int perHead = max(0, lastTile - firstTile + 1), steps = perHead * a.group;
  const uint64_t blockBits0 =
      a.keyBits && perHead ? a.keyBits[b * a.keys.tiles() + (origin - a.keys.first) / kSumTile] : ~0ull;
  const uint64_t warpBits =
      a.keyBits && perHead ? a.keyBits[b * a.keys.tiles() + (warpTile * kSumTile - a.keys.first) / kSumTile] : ~0ull;

  const auto headOf = [&](int step) { return kvHead * a.group + step / perHead; };
  const auto copyQueries = [&](int step, int stage) {
    const int64_t h = headOf(step);
    const int first = (firstTile + step % perHead) * columns;
    const uint32_t to = sharedQ + stage * stageBytes;
    copyTile<T, columns, head, threads>(to, a.q.data + b * a.q.batch + h * a.q.head - offset * a.q.row, a.q.row,
                                        a.q.width, first, offset, a.M, ~0ull);
    copyTile<T, columns, head, threads>(to + columns * rowBytes,
                                        a.dO.data + b * a.dO.batch + h * a.dO.head - offset * a.dO.row, a.dO.row,
                                        a.dO.width, first, offset, a.M, ~0ull);
    const int64_t at = (b * a.H + h) * a.queries.length + first - a.queries.first;
    QueryTerms<columns>& terms = queryTerms[stage];
    static_assert(3 * (columns / 4) <= threads, "");
    const int thread = threadIdx.x;
    copyFloats<columns>(sharedAddress(terms.lse), a.rowLse + at, thread);
    copyFloats<columns>(sharedAddress(terms.decayedLse), a.rowDecayedLse + at, thread - columns / 4);
    copyFloats<columns>(sharedAddress(terms.delta), a.rowDelta + at, thread - 2 * (columns / 4));
    if (threadIdx.x == 0) {
      float total = 0.f;
      if (a.sums.prefix) {
        const int64_t tile = (first - a.keys.first) / kSumTile, bh = b * a.H + h;
        total = a.sums.resets[bh * a.keys.tiles() + tile]
                    ? infinity<float>()
                    : a.sums.prefix[bh * a.keys.length + tile * kSumTile + kSumTile - 1];
      }
      terms.total = total;
    }
    copyCommit();
  };

  float dk[rowBlocks][wantDk ? head / 8 : 1][4], dv[rowBlocks][wantDv ? head / 8 : 1][4];
#pragma unroll
  for (int m = 0; m < rowBlocks; ++m) {
#pragma unroll
    for (int n = 0; n < (wantDk ? head / 8 : 1); ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) dk[m][n][e] = 0.f;
#pragma unroll
    for (int n = 0; n < (wantDv ? head / 8 : 1); ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) dv[m][n][e] = 0.f;
  }

  if (steps > 0) {
    const T* const k = a.k.data + b * a.k.batch + kvHead * a.k.head;
    const T* const v = a.v.data + b * a.v.batch + kvHead * a.v.head;
#pragma unroll
    for (int i = 0; i < rows; i += (rows < kSumTile ? rows : kSumTile)) {
      constexpr int part = rows < kSumTile ? rows : kSumTile;
      const uint64_t bits =
          i == 0 || !a.keyBits ? blockBits0 : a.keyBits[b * a.keys.tiles() + (origin + i - a.keys.first) / kSumTile];
      copyTile<T, part, head, threads>(sharedK + i * rowBytes, k, a.k.row, a.k.width, origin + i, 0, a.M, bits);
      if (wantDk)
        copyTile<T, part, head, threads>(sharedV + i * rowBytes, v, a.v.row, a.v.width, origin + i, 0, a.M, bits);
    }
    copyCommit();
    if (Size::stages == 2) copyQueries(0, 0);
  }

  const LaneOffset laneA = laneOfA<rowBytes>(lane), laneB = laneOfB<rowBytes>(lane);
  const uint32_t warpK = sharedK + warp * warpRows * rowBytes, warpV = sharedV + warp * warpRows * rowBytes;
  // Of the current head: decay from each key to its tile's end (infinity if the key is masked), its prefix, column
  // sums.
  float suffix[rowBlocks][2], keyPrefix[rowBlocks][2], keyPrefixLow[rowBlocks][2], columnSum[rowBlocks][2];
  uint64_t tileResets = 0;
  float between = 0.f;
  int slot = 0;
  int64_t bh = 0;

  // Queries first .. first + scores - 1, which lie `at` rows into the stage's tiles.
  const auto process = [&](auto maskedTag, int first, int at, int stage) {
    constexpr bool masked = decltype(maskedTag)::value;
    const bool diagonal = masked && sumTileOf(first) == warpTile;
    const QueryTerms<columns>& terms = queryTerms[stage];
    const uint32_t tileQ = sharedQ + stage * stageBytes + at * rowBytes, tileDo = tileQ + columns * rowBytes;
    const auto live = [&](int n) {
      if (!masked) return true;
      const int query = first + 16 * n;
      return query + 15 >= warpFirst && query - a.window < warpLast;
    };
    float s[rowBlocks][scores / 8][4];
    [[maybe_unused]] float ds[wantDk ? rowBlocks : 1][wantDk ? scores / 8 : 1][4];
#pragma unroll
    for (int m = 0; m < rowBlocks; ++m)
#pragma unroll
      for (int n = 0; n < scores / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          s[m][n][e] = 0.f;
          if constexpr (wantDk) ds[m][n][e] = 0.f;
        }
    const auto products = [&](auto& sum, uint32_t rowTile, uint32_t queryTile) {
#pragma unroll
      for (int d = 0; d < depthSteps; ++d) {
        typename P::A x[rowBlocks];
#pragma unroll
        for (int m = 0; m < rowBlocks; ++m)
          x[m] = P::loadA(fragmentAddress<rowBytes>(rowTile, laneA, 16 * m, d * stepBytes));
#pragma unroll
        for (int n = 0; n < scores / 16; ++n) {
          const typename P::B y = P::loadB(fragmentAddress<rowBytes>(queryTile, laneB, 16 * n, d * stepBytes));
#pragma unroll
          for (int m = 0; m < rowBlocks; ++m) P::multiplySwapped(sum[m][2 * n], sum[m][2 * n + 1], x[m], y);
        }
      }
    };
    products(s, warpK, tileQ);
    if constexpr (wantDk) products(ds, warpV, tileDo);

    // Visible: bottom <= column < top, the window's end or the first hard reset after the key.
    [[maybe_unused]] int bottom[rowBlocks][2], top[rowBlocks][2];
    if constexpr (masked) {
#pragma unroll
      for (int m = 0; m < rowBlocks; ++m)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int key = warpFirst + 16 * m + g + 8 * i, inTile = key & (kSumTile - 1);
          int end = key + a.window;
          if (tileResets & ~bitsThrough(inTile))
            end = min(end, (key & ~(kSumTile - 1)) + __ffsll(tileResets & ~bitsThrough(inTile)) - 1);
          if (!((warpBits >> inTile) & 1)) end = 0;
          bottom[m][i] = key - first - 2 * t;
          top[m][i] = end - first - 2 * t;
        }
    }
    // P and dS of 16 queries while the tensor cores multiply those of the 16 before. Exponents take the same operations
    // in the same order as in the dq kernel: row and column sums are of the same dS.
    const auto weigh = [&](int block) {
#pragma unroll
      for (int n = 2 * block; n < 2 * block + 2; ++n) {
        const int column = at + 8 * n + 2 * t;
        float2 bias, low = make_float2(0.f, 0.f), query = low;
        [[maybe_unused]] float2 delta;
        if constexpr (wantDk) delta = *reinterpret_cast<const float2*>(terms.delta + column);
        if (masked && diagonal) {
          bias = *reinterpret_cast<const float2*>(terms.lse + column);
          if (a.sums.prefix) {
            const int64_t i = bh * a.keys.length + first - a.keys.first + 8 * n + 2 * t;
            query = *reinterpret_cast<const float2*>(a.sums.prefix + i);
            if (!P::kTermsInAccumulator) low = *reinterpret_cast<const float2*>(a.sums.prefixLow + i);
          }
        } else {
          bias = *reinterpret_cast<const float2*>(terms.decayedLse + column);
          bias.x += between;
          bias.y += between;
        }
#pragma unroll
        for (int m = 0; m < rowBlocks; ++m)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int i = e / 2;
            float decay = -suffix[m][i];
            if (masked && diagonal) {
              decay = keyPrefix[m][i] - (e % 2 ? query.y : query.x);
              if (!P::kTermsInAccumulator) decay += keyPrefixLow[m][i] - (e % 2 ? low.y : low.x);
            }
            float x = fmaf(s[m][n][e], a.scaleLog2, decay) - (e % 2 ? bias.y : bias.x);
            if constexpr (masked) {
              if (8 * n + e % 2 < bottom[m][i] || 8 * n + e % 2 >= top[m][i]) x = -infinity<float>();
            }
            x = exp2Approx(x);
            s[m][n][e] = x;
            if constexpr (wantDk) {
              const float y = x * (ds[m][n][e] - (e % 2 ? delta.y : delta.x));
              ds[m][n][e] = y;
              columnSum[m][i] += y;
            }
          }
      }
    };
    if (live(0)) weigh(0);
#pragma unroll
    for (int n = 0; n < scores / 16; ++n) {
      if (n + 1 < scores / 16 && live(n + 1)) weigh(n + 1);
      if (!live(n)) continue;
#pragma unroll
      for (int step = 0; step < querySteps; ++step) {
        typename P::A x[rowBlocks];
        if constexpr (wantDv) {
#pragma unroll
          for (int m = 0; m < rowBlocks; ++m) x[m] = P::fromAccumulators(s[m], n * querySteps + step);
#pragma unroll
          for (int d = 0; d < head / 16; ++d) {
            const typename P::B dO =
                P::template loadTransposed<rowBytes>(tileDo, lane, 16 * n + step * P::kStep, 16 * d);
#pragma unroll
            for (int m = 0; m < rowBlocks; ++m) P::multiply(dv[m][2 * d], dv[m][2 * d + 1], x[m], dO);
          }
        }
        if constexpr (wantDk) {
#pragma unroll
          for (int m = 0; m < rowBlocks; ++m) x[m] = P::fromAccumulators(ds[m], n * querySteps + step);
#pragma unroll
          for (int d = 0; d < head / 16; ++d) {
            const typename P::B q = P::template loadTransposed<rowBytes>(tileQ, lane, 16 * n + step * P::kStep, 16 * d);
#pragma unroll
            for (int m = 0; m < rowBlocks; ++m) P::multiply(dk[m][2 * d], dk[m][2 * d + 1], x[m], q);
          }
        }
      }
    }
  };

  const bool wantSums = wantDk && a.columnSums != nullptr;
  const int warpsPerHead = static_cast<int>(a.keys.length / warpRows);
  const auto warpSumsOf = [&]() {
    return a.warpSums + (bh * warpsPerHead + (warpFirst - a.keys.first) / warpRows) * (a.boundarySlots + 1);
  };
  const auto sumSoFar = [&]() {
    float x = 0.f;
#pragma unroll
    for (int m = 0; m < rowBlocks; ++m) x += columnSum[m][0] + columnSum[m][1];
    return warpSum(x);
  };

  for (int step = 0; step < steps; ++step) {
    const int stage = Size::stages == 2 ? step & 1 : 0;
    const int tileFirst = (firstTile + step % perHead) * columns;
    if (Size::stages == 1) {
      __syncthreads();
      copyQueries(step, 0);
    }
    if (step % perHead == 0) {
      bh = b * a.H + headOf(step);
      slot = 0;
      between = 0.f;
      tileResets =
          a.sums.resets ? a.sums.resets[bh * a.keys.tiles() + (warpTile * kSumTile - a.keys.first) / kSumTile] : 0ull;
#pragma unroll
      for (int m = 0; m < rowBlocks; ++m)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int key = warpFirst + 16 * m + g + 8 * i;
          const int64_t at = bh * a.keys.length + key - a.keys.first;
          columnSum[m][i] = 0.f;
          suffix[m][i] = a.sums.suffix ? a.sums.suffix[at] : 0.f;
          keyPrefix[m][i] = a.sums.prefix ? a.sums.prefix[at] : 0.f;
          keyPrefixLow[m][i] = a.sums.prefixLow ? a.sums.prefixLow[at] : 0.f;
          if (!((warpBits >> (key & (kSumTile - 1))) & 1)) suffix[m][i] = infinity<float>();
        }
      // Chunks whose queries start beyond the keys' own sum tile: the tiles between.
      if (a.sums.prefix) {
        for (int tile = warpTile + 1 + lane; tile < sumTileOf(tileFirst); tile += 32) {
          const int64_t i = tile - a.keys.first / kSumTile;
          between += a.sums.resets[bh * a.keys.tiles() + i]
                         ? infinity<float>()
                         : a.sums.prefix[bh * a.keys.length + i * kSumTile + kSumTile - 1];
        }
        between = warpSum(between);
      }
    }
    copyWaitAll();
    __syncthreads();
    if (Size::stages == 2 && step + 1 < steps) copyQueries(step + 1, stage ^ 1);
    if (wantSums) {
      // What the warp's columns have summed before each boundary; the rest straddles it.
      while (slot < a.boundarySlots &&
             (warpFirst / a.boundary + 1 + slot) * static_cast<int64_t>(a.boundary) <= tileFirst) {
        const float x = sumSoFar();
        if (lane == 0) warpSumsOf()[slot] = x;
        ++slot;
      }
    }
#pragma unroll 1
    for (int at = 0; at < columns; at += scores) {
      const int first = tileFirst + at;
      const bool seen = first + scores > warpFirst && first - a.window < warpLast;
      const bool whole = sumTileOf(first) > warpTile && first + scores - 1 - a.window < warpFirst;
      if (whole)
        process(std::false_type(), first, at, stage);
      else if (seen)
        process(std::true_type(), first, at, stage);
    }
    if ((tileFirst + columns) % kSumTile == 0 && sumTileOf(tileFirst) > warpTile) between += queryTerms[stage].total;
    if (wantSums && (step + 1) % perHead == 0) {
      const float x = sumSoFar();
      if (lane == 0)
        for (int i = slot; i <= a.boundarySlots; ++i) warpSumsOf()[i] = x;
#pragma unroll
      for (int m = 0; m < rowBlocks; ++m)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float column = quadSum(columnSum[m][i]);
          const int key = warpFirst + 16 * m + g + 8 * i;
          if (t == 0) a.columnSums[bh * a.keys.length + key - a.keys.first] = column;
        }
    }
  }
  __syncthreads();

  float factor[rowBlocks][2];
  if constexpr (wantDk) {
#pragma unroll
    for (int m = 0; m < rowBlocks; ++m) factor[m][0] = factor[m][1] = a.scale;
    writeTile<T, rowBlocks, head>(dk, factor, warpK, a.dk.data + b * a.dk.batch + kvHead * a.dk.head, a.dk, warpFirst,
                                  0, a.M - warpFirst);
  }
  if constexpr (wantDv) {
#pragma unroll
    for (int m = 0; m < rowBlocks; ++m) factor[m][0] = factor[m][1] = 1.f;
    writeTile<T, rowBlocks, head>(dv, factor, warpV, a.dv.data + b * a.dv.batch + kvHead * a.dv.head, a.dv, warpFirst,
                                  0, a.M - warpFirst);
  }
#endif
}

template <typename P, int head, bool wantDv, bool wantDk>
cudaError_t launchDkdvMmaHead(const AttentionArgs<typename P::Element>& a, cudaStream_t stream) {
  using Size = Tile<Pass::DkDv, sizeof(typename P::Element), head>;
  const auto kernel = dkdvMmaKernel<P, head, wantDv, wantDk>;
  const cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Size::shared);
  if (e != cudaSuccess) return e;
  const int64_t blocks = a.batch * (a.H / a.group) * divUp(a.M, Size::rows);
  kernel<<<static_cast<unsigned>(blocks), Size::threads, Size::shared, stream>>>(a);
  return lastLaunch();
}

template <typename P, int head>
cudaError_t launchBackwardMmaHead(const AttentionArgs<typename P::Element>& a, cudaStream_t stream) {
  using Size = Tile<Pass::Dq, sizeof(typename P::Element), head>;
  const auto kernel = dqMmaKernel<P, head>;
  cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Size::shared);
  if (e != cudaSuccess) return e;
  const int64_t blocks = a.batch * a.H * (a.queries.length / Size::rows);
  kernel<<<static_cast<unsigned>(blocks), Size::threads, Size::shared, stream>>>(a);
  e = lastLaunch();
  if (e != cudaSuccess) return e;
  // Where the registers do not hold both, dk and dv take a pass each.
  constexpr bool together = head == 64 || (head == 128 && P::kTermsInAccumulator);
  if constexpr (together) {
    return launchDkdvMmaHead<P, head, true, true>(a, stream);
  } else {
    e = launchDkdvMmaHead<P, head, true, false>(a, stream);
    return e == cudaSuccess ? launchDkdvMmaHead<P, head, false, true>(a, stream) : e;
  }
}

}  // namespace gatedfwa::cuda
