// The choice of blocks on tensor cores (mma.sync; NSA, equations 8 to 11). The probabilities of the compressed
// attention are computed again from its lse, 32 blocks at a time, transposed: rows are compressed blocks, columns the
// heads of a warp's tokens, so the sum over a group's heads runs along accumulator rows. Half a warp has one token at a
// time: its lanes take one selection block each, and those that beat the worst of the token's best enter the list.
//
// Compressed blocks that share tokens with the selection blocks that compete (those before the one before the query's
// own) are all complete: no score needs a mask for causality.
#pragma once

#include "nsa_tile.cuh"

namespace gatedfwa::cuda {

constexpr int kNsaSelectKeys = 32;  ///< whose probabilities are in registers at a time

/// Shared memory of a token.
struct NsaSelectToken {
  float sums[kNsaTile];  ///< probabilities, summed over the group
  float carry[2];        ///< importances so far of the first selection blocks that are not complete
  int count, first;      ///< of the list; the first candidate, -1 if there is none yet
};
constexpr size_t nsaSelectShared(int head, int tokens, int topN) {
  return 2 * static_cast<size_t>(kNsaTile) * head * 2 +
         tokens * (sizeof(NsaSelectToken) + 8 * static_cast<size_t>(topN));
}

/// The first unmasked compressed block that shares a token with selection block s; `keys` if there is none.
template <typename T>
__device__ __forceinline__ int firstUnmasked(const NsaSelectArgs<T>& a, int b, int s) {
  const int64_t from = max(int64_t(0), static_cast<int64_t>(s) * a.perSelection - a.pieces + 1);
  const int64_t to = min(static_cast<int64_t>(a.keys), (static_cast<int64_t>(s) + 1) * a.perSelection);
  for (int64_t c = from; c < to; ++c)
    if ((a.keyBits[b * a.keyWords + c / 64] >> (c % 64)) & 1) return static_cast<int>(c);
  return a.keys;
}

/// Is selection block s, before the query's own, a candidate: does the query see an unmasked compressed block of it?
template <typename T>
__device__ __forceinline__ bool isCandidate(const NsaSelectArgs<T>& a, int b, int s, int position) {
  if (!a.keyBits) return true;
  const CompressedRule rule{a.stride * a.pieces, a.stride};
  return firstUnmasked(a, b, s) < visibleEnd(rule, a.keys, position);
}

template <typename T, int head>
__global__ void __launch_bounds__(256, 2) nsaSelectKernel(const __grid_constant__ NsaSelectArgs<T> a) {
#if GATEDFWA_TENSOR_CORES
  using P = Mma16<T>;
  constexpr int rowBytes = head * 2, depthSteps = head / 16, tileBytes = kNsaTile * rowBytes, chunks = head / 8;
  extern __shared__ __align__(128) unsigned char shared[];
  const int warp = warpIndex(), warps = blockDim.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int warpTokens = 32 >> a.logGroup, tokens = warps * warpTokens;
  auto* const state = reinterpret_cast<NsaSelectToken*>(shared + 2 * tileBytes);
  float* const best = reinterpret_cast<float*>(state + tokens);           // [tokens][topN], descending
  int* const bestBlock = reinterpret_cast<int*>(best + tokens * a.topN);  // whose they are

  const int64_t blocks = (a.N + tokens - 1) / tokens, bh = blockIdx.x / blocks;
  const int b = static_cast<int>(bh / a.kvHeads), kvHead = static_cast<int>(bh % a.kvHeads), offset = a.M - a.N;
  const int token0 = static_cast<int>((blocks - 1 - blockIdx.x % blocks) * tokens);  // the longest first
  const int warpToken0 = token0 + warp * warpTokens;
  const int lastOwn = (offset + min(token0 + tokens, a.N) - 1) / a.selectionBlock;
  const int needed =
      static_cast<int>(max(int64_t(0), min(static_cast<int64_t>(a.keys), (lastOwn - int64_t(1)) * a.perSelection)));

  // The columns' queries, and log2(e) lse (infinity where there is no such column or no key).
  const auto columnToken = [&](int column) { return warpToken0 + (column >> a.logGroup); };
  const auto columnHead = [&](int column) { return column & ((1 << a.logGroup) - 1); };
  const auto validColumn = [&](int column) { return columnToken(column) < a.N && columnHead(column) < a.group; };
  typename P::B q[depthSteps][2];
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const int column = 8 * n + g;
    const bool valid = validColumn(column);
    const T* const row = a.q.data + b * a.q.batch + (valid ? columnToken(column) : 0) * a.q.row +
                         (kvHead * a.group + (valid ? columnHead(column) : 0)) * a.q.head;
#pragma unroll
    for (int d = 0; d < depthSteps; ++d)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = 16 * d + 8 * half + 2 * t;
        q[d][n / 2].r[n % 2 * 2 + half] =
            valid && at < a.q.width ? __ldg(reinterpret_cast<const unsigned int*>(row + at)) : 0u;
      }
  }
  float lse[4][2];
#pragma unroll
  for (int n = 0; n < 4; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int column = 8 * n + 2 * t + e;
      lse[n][e] = infinity<float>();
      if (validColumn(column)) {
        const float x = a.lse[b * a.lseBatch + (kvHead * a.group + columnHead(column)) * a.lseHead +
                              columnToken(column) * a.lseRow];
        if (x != -infinity<float>()) lse[n][e] = x * static_cast<float>(kLog2e);
      }
    }

  const T* const k = a.k.data + b * a.k.batch + kvHead * a.k.head;
  const auto copyKeys = [&](int tile) {
    const int first = tile * kNsaTile;
    const uint32_t to = sharedAddress(shared) + tile % 2 * tileBytes;
    const uint64_t bits = a.keyBits ? a.keyBits[b * a.keyWords + tile] : ~0ull;
    for (int i = threadIdx.x; i < kNsaTile * chunks; i += blockDim.x) {
      const int row = i / chunks, chunk = i % chunks;
      const bool valid = first + row < a.keys && ((bits >> row) & 1) && chunk * 8 < a.k.width;
      copyAsync16(chunkAddress<rowBytes>(to, row, chunk), valid ? k + (first + row) * a.k.row + chunk * 8 : k, valid);
    }
    copyCommit();
  };
  const int tiles = (needed + kNsaTile - 1) / kNsaTile;
  if (tiles > 0) copyKeys(0);
  for (int i = lane; i < warpTokens; i += 32) {
    NsaSelectToken& own = state[warp * warpTokens + i];
    own.carry[0] = own.carry[1] = 0.f;
    own.count = 0;
    own.first = -1;
  }
  __syncwarp();

  const int half = lane / 16, halfLane = lane % 16, r = a.perSelection, pieces = a.pieces;
  const auto halfOf = [&](uint32_t ballot) { return (ballot >> (16 * half)) & 0xffffu; };
  const int places = a.topN - 1;  // a query's own block has one for certain
  const LaneOffset laneA = laneOfA<rowBytes>(lane);

  for (int tile = 0; tile < tiles; ++tile) {
    copyWaitAll();
    __syncthreads();
    if (tile + 1 < tiles) copyKeys(tile + 1);
    const uint32_t tileK = sharedAddress(shared) + tile % 2 * tileBytes;
    for (int part = 0; part < kNsaTile / kNsaSelectKeys; ++part) {
      // What is beyond `needed` is nobody's: sums that are left out are never looked at.
      if (tile * kNsaTile + part * kNsaSelectKeys >= needed) break;
      float s[2][4][4];
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) s[m][n][e] = 0.f;
#pragma unroll
      for (int d = 0; d < depthSteps; ++d)
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const typename P::A keys =
              P::loadA(fragmentAddress<rowBytes>(tileK, laneA, part * kNsaSelectKeys + 16 * m, d * 32));
#pragma unroll
          for (int n = 0; n < 2; ++n) P::multiply(s[m][2 * n], s[m][2 * n + 1], keys, q[d][n]);
        }

      // Sums over the heads of each token.
      const uint32_t bits =
          a.keyBits ? static_cast<uint32_t>(a.keyBits[b * a.keyWords + tile] >> (part * kNsaSelectKeys)) : ~0u;
      NsaSelectToken* const own = state + warp * warpTokens;
      __syncwarp();
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int key = part * kNsaSelectKeys + 16 * m + g + 8 * i;
          const bool real = (bits >> (key % kNsaSelectKeys)) & 1;
          float y[4][2];
#pragma unroll
          for (int n = 0; n < 4; ++n)
#pragma unroll
            for (int e = 0; e < 2; ++e) y[n][e] = exp2Approx(fmaf(s[m][n][2 * i + e], a.scaleLog2, -lse[n][e]));
          if (bits != ~0u && !real) {
#pragma unroll
            for (int n = 0; n < 4; ++n) y[n][0] = y[n][1] = 0.f;
          }
          if (a.logGroup == 4) {
            const float first = quadSum((y[0][0] + y[0][1]) + (y[1][0] + y[1][1]));
            const float second = quadSum((y[2][0] + y[2][1]) + (y[3][0] + y[3][1]));
            if (t < 2) own[t].sums[key] = t == 0 ? first : second;
          } else if (a.logGroup == 0) {
#pragma unroll
            for (int n = 0; n < 4; ++n)
#pragma unroll
              for (int e = 0; e < 2; ++e) own[8 * n + 2 * t + e].sums[key] = y[n][e];
          } else {
#pragma unroll
            for (int n = 0; n < 4; ++n) y[n][0] += y[n][1];
            if (a.logGroup == 1) {
#pragma unroll
              for (int n = 0; n < 4; ++n) own[4 * n + t].sums[key] = y[n][0];
            } else if (a.logGroup == 2) {
#pragma unroll
              for (int n = 0; n < 4; ++n) {
                const float x = y[n][0] + __shfl_xor_sync(~0u, y[n][0], 1);
                if (t % 2 == 0) own[2 * n + t / 2].sums[key] = x;
              }
            } else if (a.logGroup == 3) {
#pragma unroll
              for (int n = 0; n < 4; ++n) {
                const float x = quadSum(y[n][0]);
                if (t == n) own[n].sums[key] = x;
              }
            } else {
              const float x = quadSum((y[0][0] + y[1][0]) + (y[2][0] + y[3][0]));
              if (t == 0) own[0].sums[key] = x;
            }
          }
        }
    }
    __syncwarp();

    const int c0 = tile * kNsaTile;
    const int firstBlock = c0 / r, complete = (c0 + kNsaTile) / r;
    for (int pair = 0; pair < warpTokens; pair += 2) {
      const int index = pair + half, token = warpToken0 + index;
      const bool live = index < warpTokens && token < a.N;
      const int at = warp * warpTokens + (live ? index : 0);
      NsaSelectToken& mine = state[at];
      const int position = offset + token, ownBlock = live ? position / a.selectionBlock : 0;
      int count = mine.count, candidateFirst = mine.first;
      const float carry[2] = {mine.carry[0], mine.carry[1]};
      // What the blocks through this tile give `block`: c counts once for each piece that they share. The sum runs in
      // the order of c, whatever the tiles.
      const auto importanceOf = [&](int block) {
        float sum = block == firstBlock ? carry[0] : block == firstBlock + 1 ? carry[1] : 0.f;
        const int begin = block * r, end = min(c0 + kNsaTile, begin + r);
        for (int c = max(c0, begin - pieces + 1); c < end; ++c) {
          const int weight = c >= begin ? min(pieces, begin + r - c) : pieces - (begin - c);
          sum = fmaf(static_cast<float>(weight), mine.sums[c - c0], sum);
        }
        return sum;
      };
      for (int from = firstBlock; from < complete; from += 16) {
        const int block = from + halfLane;
        float importance = 0.f;
        bool pending = false;
        if (live && block < complete && block < ownBlock - 1) {
          importance = importanceOf(block);
          if (!(importance == importance)) importance = 0.f;
          pending = isCandidate(a, b, block, position);
        }
        const uint32_t found = halfOf(__ballot_sync(~0u, pending));
        if (candidateFirst < 0 && found) {
          candidateFirst = from + __ffs(found) - 1;
          if (block == candidateFirst) pending = false;
        }
        float* const list = best + at * a.topN;
        int* const listBlock = bestBlock + at * a.topN;
        while (true) {
          pending = pending && (count < places || importance > list[places - 1]);
          const uint32_t ballot = __ballot_sync(~0u, pending);
          if (ballot == 0) break;
          const uint32_t mineOnly = halfOf(ballot);
          const int source = 16 * half + (mineOnly ? __ffs(mineOnly) - 1 : 0);
          const float x = __shfl_sync(~0u, importance, source);
          const int xBlock = __shfl_sync(~0u, block, source);
          // Entries halfLane and halfLane + 16 of the list, and those before them.
          float before[2];
          int beforeBlock[2];
          bool ahead[2];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int j = halfLane + 16 * i;
            ahead[i] = mineOnly && j < count && list[j] >= x;
            const bool read = mineOnly && j > 0 && j <= count && j < places;
            before[i] = read ? list[j - 1] : 0.f;
            beforeBlock[i] = read ? listBlock[j - 1] : 0;
          }
          const int place = __popc(halfOf(__ballot_sync(~0u, ahead[0]))) + __popc(halfOf(__ballot_sync(~0u, ahead[1])));
          __syncwarp();  // all have read
          if (mineOnly) {
            count = min(count + 1, places);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const int j = halfLane + 16 * i;
              if (j >= place && j < count) {
                list[j] = j == place ? x : before[i];
                listBlock[j] = j == place ? xBlock : beforeBlock[i];
              }
            }
            if (lane == source) pending = false;
          }
          __syncwarp();
        }
      }
      const float rest = live && halfLane < 2 ? importanceOf(complete + halfLane) : 0.f;
      __syncwarp();
      if (live && halfLane < 2) mine.carry[halfLane] = rest;
      if (live && halfLane == 0) {
        mine.count = count;
        mine.first = candidateFirst;
      }
      __syncwarp();
    }
  }

  for (int pair = 0; pair < warpTokens; pair += 2) {
    const int index = pair + half, token = warpToken0 + index;
    const bool live = index < warpTokens && token < a.N;
    const int at = warp * warpTokens + (live ? index : 0);
    const int position = offset + token, ownBlock = position / a.selectionBlock;
    int* const chosen = reinterpret_cast<int*>(state[at].sums);
    int count = 0;
    if (live) {
      int first = state[at].first, before = -1;
      if (ownBlock > 0 && isCandidate(a, b, ownBlock - 1, position)) {
        if (first < 0)
          first = ownBlock - 1;
        else
          before = ownBlock - 1;
      }
      const int certain = 1 + (first >= 0) + (before >= 0), others = min(a.topN - certain, state[at].count);
      count = others + certain;
      for (int j = halfLane; j < others; j += 16) chosen[j] = bestBlock[at * a.topN + j];
      if (halfLane == 0) {
        chosen[others] = ownBlock;
        if (first >= 0) chosen[others + 1] = first;
        if (before >= 0) chosen[others + 2] = before;
      }
    }
    __syncwarp();
    if (live) {
      int* const to = a.indices + b * a.indicesBatch + token * a.indicesRow + kvHead * a.indicesHead;
      for (int j = halfLane; j < a.topN; j += 16) {
        int rank = j;
        if (j < count) {
          rank = 0;
          for (int i = 0; i < count; ++i) rank += chosen[i] < chosen[j];
        }
        to[rank * a.indicesElement] = j < count ? chosen[j] : -1;
      }
    }
    __syncwarp();
  }
#endif
}

template <typename T, int head>
cudaError_t launchNsaSelectHead(const NsaSelectArgs<T>& a, size_t sharedLimit, cudaStream_t stream) {
  const int warpTokens = 32 >> a.logGroup;
  int warps = 8;
  while (warps > 1 && nsaSelectShared(head, warps * warpTokens, a.topN) > sharedLimit) warps /= 2;
  const int tokens = warps * warpTokens, bytes = static_cast<int>(nsaSelectShared(head, tokens, a.topN));
  const auto kernel = nsaSelectKernel<T, head>;
  const cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (e != cudaSuccess) return e;
  const int64_t blocks = a.batch * a.kvHeads * divUp(a.N, tokens);
  kernel<<<static_cast<unsigned>(blocks), 32 * warps, bytes, stream>>>(a);
  return lastLaunch();
}

}  // namespace gatedfwa::cuda
