// Backward of native sparse attention on tensor cores (mma.sync), two passes without atomics, 7 products:
//
//   nsaDqKernel    query-stationary, as the forward:  dq = scale dS K
//   nsaDkDvKernel  key-stationary: a block keeps a tile of keys and takes the queries that use it, 64 rows (tokens x
//                  heads of the group) at a time, from the list of its unit:  dv = P^T dO, dk = scale dS^T Q
//
// A unit with many queries is cut into segments, whose partial sums nsa_lists.cu adds in order.
#pragma once

#include "nsa_tile.cuh"

namespace gatedfwa::cuda {

constexpr int kNsaDqWarps = 11;  ///< besides the one that copies

template <typename T, int head, typename Rule>
__global__ void __launch_bounds__(32 + 32 * kNsaDqWarps, 1)
    nsaDqKernel(const __grid_constant__ NsaArgs<T, Rule> a, int slots, NsaCopies copies,
                const __grid_constant__ CUtensorMap mapK, const __grid_constant__ CUtensorMap mapV) {
#if GATEDFWA_TENSOR_CORES
  using P = Mma16<T>;
  using Block = NsaBlock<head, kNsaDqWarps, 16 * head * 2>;
  constexpr int rowBytes = head * 2, depthSteps = head / 16;
  extern __shared__ __align__(1024) unsigned char nsaShared[];
  const Block block(nsaShared, slots);
  block.initialise(copies);
  const NsaUnits<kNsaDqWarps> units(a.group, a.N);
  const int warp = warpIndex(), lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  if (warp == 0) {
    produceKeyTiles(a, units, block, copies, mapK, mapV);
    return;
  }

  uint32_t queueHead = 0;
  for (int item = blockIdx.x; item >= 0;) {
    NsaPlace x = NsaPlace::of(a, units, item);
    NsaRows rows = NsaRows::of(a, units, x, warp - 1, g);
    LaneOffset laneA = laneOfA<rowBytes>(lane), laneB = laneOfB<128>(lane);
    int columnLane = lane;
    const uint32_t rowsDo = block.warpRows(warp - 1);
    typename P::A q[depthSteps];
    loadRowOperands<T, head>(q, a.dO.data + x.b * a.dO.batch, a.dO, rows, t);
#pragma unroll
    for (int d = 0; d < depthSteps; ++d)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        asm volatile(
            "st.shared.b32 [%0], %1;\n" ::"r"(chunkAddress<rowBytes>(rowsDo, g + 8 * (i % 2), 2 * d + i / 2) + 4 * t),
            "r"(q[d].r[i])
            : "memory");
    __syncwarp();
    loadRowOperands<T, head>(q, a.q.data + x.b * a.q.batch, a.q, rows, t);
    float lse[2], delta[2], dq[head / 8][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t at =
          (static_cast<int64_t>(x.b) * a.H + rows.h[i]) * a.queries.length + a.M - a.N + rows.t[i] - a.queries.first;
      lse[i] = rows.valid[i] ? a.rowLse[at] : infinity<float>();
      delta[i] = rows.valid[i] ? a.rowDelta[at] : 0.f;
    }
#pragma unroll
    for (int n = 0; n < head / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) dq[n][e] = 0.f;

    const auto multiplyTile = [&](auto maskedTag, const auto& tile, const int(&limit)[2], uint64_t bits, int groups) {
      constexpr bool masked = decltype(maskedTag)::value;
      const uint32_t tileK = tile.wait(0), tileV = tile.wait(1);
      const int halves = masked ? (groups + 1) / 2 : 2;
#pragma unroll 1
      for (int half = 0; half < halves; ++half) {  // 32 keys
        notHeld(laneA, laneB, columnLane);
        float s[4][4], dp[4][4];
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) s[n][e] = dp[n][e] = 0.f;
#pragma unroll
        for (int d = 0; d < depthSteps; ++d) {
#pragma unroll
          for (int n = 0; n < 2; ++n)
            P::multiply(s[2 * n], s[2 * n + 1], q[d], P::loadB(panelAddress(tileK, laneB, 32 * half + 16 * n, d * 32)));
        }
#pragma unroll
        for (int d = 0; d < depthSteps; ++d) {
          const typename P::A dO = P::loadA(fragmentAddress<rowBytes>(rowsDo, laneA, 0, d * 32));
#pragma unroll
          for (int n = 0; n < 2; ++n)
            P::multiply(dp[2 * n], dp[2 * n + 1], dO, P::loadB(panelAddress(tileV, laneB, 32 * half + 16 * n, d * 32)));
        }
        if (half + 1 == halves) tile.release(1);
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float weight = exp2Approx(fmaf(s[n][e], a.scaleLog2, -lse[e / 2]));
            s[n][e] = weight * (dp[n][e] - delta[e / 2]);
            if (masked && hiddenKey(32 * half + 8 * n + 2 * t + e % 2, limit[e / 2], bits)) s[n][e] = 0.f;
          }
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const typename P::A ds = P::fromAccumulators(s, n);
#pragma unroll
          for (int d = 0; d < head / 16; ++d)
            P::multiply(dq[2 * d], dq[2 * d + 1], ds,
                        loadPanelTransposed<P>(tileK, columnLane, 32 * half + 16 * n, 16 * d));
        }
      }
      tile.release(0);
    };
    const int next = consumeKeyTiles(a, block, x.b, rows, warp - 1, queueHead, multiplyTile);

    x = NsaPlace::of(a, units, again(item));
    rows = NsaRows::of(a, units, x, warp - 1, g);
    item = next;

#pragma unroll
    for (int i = 0; i < 2; ++i)
      writeRow<T, true>(dq, i, a.scale, a.dq.data + x.b * a.dq.batch + rows.t[i] * a.dq.row + rows.h[i] * a.dq.head,
                        rows.valid[i], a.dq, t);
    __syncwarp();  // dO's rows
  }
#endif
}

template <typename T, int head, typename Rule>
cudaError_t launchNsaDqHead(const NsaArgs<T, Rule>& a, size_t sharedLimit, cudaStream_t stream) {
  using Block = NsaBlock<head, kNsaDqWarps, 16 * head * 2>;
  const auto kernel = nsaDqKernel<T, head, Rule>;
  const int slots = Block::slots(sharedLimit), bytes = static_cast<int>(Block::bytes(slots));
  const cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (e != cudaSuccess) return e;
  const NsaUnits<kNsaDqWarps> units(a.group, a.N);
  const NsaKeyMaps maps(a, head);
  const unsigned grid = static_cast<unsigned>(std::min<int64_t>(a.batch * a.kvHeads * units.items, a.multiprocessors));
  kernel<<<grid, 32 + 32 * kNsaDqWarps, bytes, stream>>>(a, slots, maps.copies, maps.k, maps.v);
  return lastLaunch();
}

/// A segment of a unit's queries and one of its key tiles.
struct NsaKeyWork {
  int unit, head;      ///< `head` counts (batch entry, key/value head)
  int subTile, first;  ///< tile of the unit, its first key
  int end;             ///< of the unit's keys
  int token0, tokens;  ///< of the unit's list
  int partial;         ///< number of the partial sums, -1 if the segment is the only one

  /// False if there is nothing for block `index`.
  __device__ __forceinline__ bool find(const NsaLists& lists, int keys, int64_t index) {
    const int64_t units = static_cast<int64_t>(lists.blocks) * lists.heads;
    const int subTiles = lists.subTiles();
    subTile = static_cast<int>(index % subTiles);
    const int64_t segment = index / subTiles;
    if (segment >= lists.segmentStart[units]) return false;
    int64_t low = 0, high = units;  // segmentStart[low] <= segment < segmentStart[high]
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (lists.segmentStart[middle] <= segment ? low : high) = middle;
    }
    unit = static_cast<int>(low / lists.heads);
    head = static_cast<int>(low % lists.heads);
    first = unit * lists.unitKeys + subTile * kNsaTile;
    end = static_cast<int>(min((static_cast<int64_t>(unit) + 1) * lists.unitKeys, static_cast<int64_t>(keys)));
    if (first >= end) return false;
    const int own = static_cast<int>(segment - lists.segmentStart[low]);
    const int count = lists.count[static_cast<int64_t>(head) * lists.blocks + unit];
    token0 = own * lists.segment;
    tokens = max(0, min(count - token0, lists.segment));
    const int partials = lists.partialStart[low + 1] - lists.partialStart[low];
    partial = partials > 0 ? lists.partialStart[low] + own : -1;
    return true;
  }
};

/// A thread's sums of keys `key` and `key` + 8 of the tile: to dk and dv, or to the segment's place among the partial
/// sums.
template <typename T, typename Rule, int blocks>
__device__ __forceinline__ void writeKeyGradients(const NsaArgs<T, Rule>& a, const NsaKeyWork& x, int b, int kvHead,
                                                  int key, int t, const float (&dk)[blocks][4],
                                                  const float (&dv)[blocks][4]) {
  constexpr int head = 8 * blocks;
  if (x.partial >= 0) {
    float* const to =
        a.partials + (static_cast<int64_t>(x.partial) * a.lists.subTiles() + x.subTile) * 2 * kNsaTile * head;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int n = 0; n < blocks; ++n) {
        float* const at = to + (key + 8 * i) * head + 8 * n + 2 * t;
        *reinterpret_cast<float2*>(at) = make_float2(dk[n][2 * i], dk[n][2 * i + 1]);
        *reinterpret_cast<float2*>(at + kNsaTile * head) = make_float2(dv[n][2 * i], dv[n][2 * i + 1]);
      }
    return;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t at = x.first + key + 8 * i;
    const bool valid = at < x.end;
    writeRow<T, true>(dk, i, a.scale, a.dk.data + b * a.dk.batch + kvHead * a.dk.head + at * a.dk.row, valid, a.dk, t);
    writeRow<T, true>(dv, i, 1.f, a.dv.data + b * a.dv.batch + kvHead * a.dv.head + at * a.dv.row, valid, a.dv, t);
  }
}

/// What a key-stationary block knows of a streamed row: a query token and head.
struct alignas(16) NsaQueryRow {
  int token;          ///< -1: there is none
  short head, limit;  ///< in the group; the row sees the tile's keys below `limit`
  float lse, delta;
};

constexpr int kNsaDkDvThreads = 128, kNsaRowStages = 3;
template <int head>
constexpr int kNsaDkDvShared = 6 * kNsaTile* head * 2 + kNsaRowStages* kNsaTile* static_cast<int>(sizeof(NsaQueryRow));

template <typename T, int head, typename Rule>
__global__ void __launch_bounds__(kNsaDkDvThreads, 2) nsaDkDvKernel(const __grid_constant__ NsaArgs<T, Rule> a) {
#if GATEDFWA_TENSOR_CORES
  using P = Mma16<T>;
  constexpr int rowBytes = head * 2, depthSteps = head / 16, tileBytes = kNsaTile * rowBytes;
  constexpr int chunks = head / 8, copyStep = kNsaDkDvThreads / chunks;
  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t tileK = sharedAddress(shared), tileV = tileK + tileBytes, ring = tileV + tileBytes;
  NsaQueryRow* const rowInfo = reinterpret_cast<NsaQueryRow*>(shared + 6 * tileBytes);

  NsaKeyWork x;
  if (!x.find(a.lists, a.keys, blockIdx.x)) return;
  const int b = x.head / a.kvHeads, kvHead = x.head % a.kvHeads, offset = a.M - a.N;
  const int warp = warpIndex(), lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const uint64_t bits = keyBitsFrom(a, b, x.first, x.end);
  const int64_t rowCount = static_cast<int64_t>(x.tokens) * a.group;
  const int tiles = static_cast<int>((rowCount + kNsaTile - 1) / kNsaTile);

  {  // K and V
    const int shift = x.first % 64;
    const uint64_t at = shift ? bits << shift | bits >> (64 - shift) : bits;
    const T* const k = a.k.data + b * a.k.batch + kvHead * a.k.head;
    const T* const v = a.v.data + b * a.v.batch + kvHead * a.v.head;
    copyTile<T, kNsaTile, head, kNsaDkDvThreads>(tileK, k, a.k.row, a.k.width, x.first, 0, x.end, at);
    copyTile<T, kNsaTile, head, kNsaDkDvThreads>(tileV, v, a.v.row, a.v.width, x.first, 0, x.end, at);
  }

  // Rows of the streamed tiles: threads 0 to 63 prepare one each, two tiles ahead.
  const int* const list = a.lists.tokens
                              ? a.lists.tokens + x.head * a.lists.listLength +
                                    a.lists.offset[static_cast<int64_t>(x.head) * a.lists.blocks + x.unit] + x.token0
                              : nullptr;
  const int firstToken =
      list ? 0 : a.N - a.lists.count[static_cast<int64_t>(x.head) * a.lists.blocks + x.unit] + x.token0;
  const auto tokenOf = [&](int tile) {  // -1: no row
    const int64_t f = static_cast<int64_t>(tile) * kNsaTile + threadIdx.x;
    if (threadIdx.x >= kNsaTile || f >= rowCount) return -1;
    const int i = static_cast<int>(f / a.group);
    return list ? __ldg(list + i) : firstToken + i;
  };
  const auto rowOf = [&](int tile, int token) {
    NsaQueryRow row{token, 0, 0, infinity<float>(), 0.f};
    if (token < 0) return row;
    const int64_t f = static_cast<int64_t>(tile) * kNsaTile + threadIdx.x;
    row.head = static_cast<short>(f % a.group);
    row.limit = static_cast<short>(max(0, min(kNsaTile, visibleEnd(a.rule, a.keys, offset + token) - x.first)));
    const int64_t at = (static_cast<int64_t>(b) * a.H + kvHead * a.group + row.head) * a.queries.length + offset +
                       token - a.queries.first;
    row.lse = __ldg(a.rowLse + at);
    row.delta = __ldg(a.rowDelta + at);
    return row;
  };
  const auto putRow = [&](int tile, const NsaQueryRow& row) {
    if (threadIdx.x < kNsaTile) rowInfo[tile % kNsaRowStages * kNsaTile + threadIdx.x] = row;
  };
  const T* const q = a.q.data + b * a.q.batch + kvHead * a.group * a.q.head;
  const T* const dO = a.dO.data + b * a.dO.batch + kvHead * a.group * a.dO.head;
  const auto copyRows = [&](int tile) {
    const uint32_t to = ring + tile % 2 * 2 * tileBytes;
    const NsaQueryRow* const rows = rowInfo + tile % kNsaRowStages * kNsaTile;
    const int chunk = threadIdx.x % chunks;
    const bool insideQ = chunk * 8 < a.q.width, insideDo = chunk * 8 < a.dO.width;
#pragma unroll
    for (int r = threadIdx.x / chunks; r < kNsaTile; r += copyStep) {
      const int token = rows[r].token, h = rows[r].head;
      const bool validQ = token >= 0 && insideQ, validDo = token >= 0 && insideDo;
      copyAsync16(chunkAddress<rowBytes>(to, r, chunk), validQ ? q + token * a.q.row + h * a.q.head + chunk * 8 : q,
                  validQ);
      copyAsync16(chunkAddress<rowBytes>(to + tileBytes, r, chunk),
                  validDo ? dO + token * a.dO.row + h * a.dO.head + chunk * 8 : dO, validDo);
    }
    copyCommit();
  };

  float dk[head / 8][4], dv[head / 8][4];
#pragma unroll
  for (int n = 0; n < head / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) dk[n][e] = dv[n][e] = 0.f;
  const LaneOffset laneA = laneOfA<rowBytes>(lane), laneB = laneOfB<rowBytes>(lane);
  const int key0 = 16 * warp + g;  // the thread's keys of the tile: this and the 8th after it

  if (tiles > 0) {
    putRow(0, rowOf(0, tokenOf(0)));
    putRow(1, rowOf(1, tokenOf(1)));
    __syncthreads();
    copyRows(0);
  }
  int token = tokenOf(2);
  for (int tile = 0; tile < tiles; ++tile) {
    copyWaitAll();
    __syncthreads();
    if (tile + 1 < tiles) copyRows(tile + 1);
    const NsaQueryRow ahead = rowOf(tile + 2, token);
    token = tokenOf(tile + 3);

    const uint32_t tileQ = ring + tile % 2 * 2 * tileBytes, tileDo = tileQ + tileBytes;
    const NsaQueryRow* const rows = rowInfo + tile % kNsaRowStages * kNsaTile;
    // Tokens are ascending: what the first row sees, all see.
    const bool masked = bits != ~0ull || rows[0].limit < kNsaTile;
    float s[8][4], dp[8][4];
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) s[n][e] = dp[n][e] = 0.f;
#pragma unroll
    for (int d = 0; d < depthSteps; ++d) {
      const typename P::A keys = P::loadA(fragmentAddress<rowBytes>(tileK + 16 * warp * rowBytes, laneA, 0, d * 32));
#pragma unroll
      for (int n = 0; n < 4; ++n)
        P::multiply(s[2 * n], s[2 * n + 1], keys, P::loadB(fragmentAddress<rowBytes>(tileQ, laneB, 16 * n, d * 32)));
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const NsaQueryRow& x0 = rows[8 * n + 2 * t];
      const NsaQueryRow& x1 = rows[8 * n + 2 * t + 1];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        s[n][e] = exp2Approx(fmaf(s[n][e], a.scaleLog2, -(e % 2 ? x1.lse : x0.lse)));
        if (masked && hiddenKey(key0 + 8 * (e / 2), e % 2 ? x1.limit : x0.limit, bits)) s[n][e] = 0.f;
      }
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const typename P::A p = P::fromAccumulators(s, n);
#pragma unroll
      for (int d = 0; d < head / 16; ++d)
        P::multiply(dv[2 * d], dv[2 * d + 1], p, P::template loadTransposed<rowBytes>(tileDo, lane, 16 * n, 16 * d));
    }
#pragma unroll
    for (int d = 0; d < depthSteps; ++d) {
      const typename P::A values = P::loadA(fragmentAddress<rowBytes>(tileV + 16 * warp * rowBytes, laneA, 0, d * 32));
#pragma unroll
      for (int n = 0; n < 4; ++n)
        P::multiply(dp[2 * n], dp[2 * n + 1], values,
                    P::loadB(fragmentAddress<rowBytes>(tileDo, laneB, 16 * n, d * 32)));
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float d0 = rows[8 * n + 2 * t].delta, d1 = rows[8 * n + 2 * t + 1].delta;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        dp[n][e] = s[n][e] * (dp[n][e] - (e % 2 ? d1 : d0));
        if (masked && s[n][e] == 0.f) dp[n][e] = 0.f;
      }
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const typename P::A ds = P::fromAccumulators(dp, n);
#pragma unroll
      for (int d = 0; d < head / 16; ++d)
        P::multiply(dk[2 * d], dk[2 * d + 1], ds, P::template loadTransposed<rowBytes>(tileQ, lane, 16 * n, 16 * d));
    }
    putRow(tile + 2, ahead);
  }

  writeKeyGradients(a, x, b, kvHead, key0, t, dk, dv);
#endif
}

template <typename T, int head, typename Rule>
cudaError_t launchNsaDkDvHead(const NsaArgs<T, Rule>& a, cudaStream_t stream) {
  const auto kernel = nsaDkDvKernel<T, head, Rule>;
  const cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kNsaDkDvShared<head>);
  if (e != cudaSuccess) return e;
  const int64_t blocks = a.lists.mostSegments * a.lists.subTiles();
  kernel<<<static_cast<unsigned>(blocks), kNsaDkDvThreads, kNsaDkDvShared<head>, stream>>>(a);
  return lastLaunch();
}

}  // namespace gatedfwa::cuda
