// dk and dv of native sparse attention on Hopper's tensor cores (wgmma), key-stationary as nsaDkDvKernel.
//
// A block has one tile of 64 keys and a segment of the queries that use it. The copy engine gathers the queries' rows:
// a token's heads lie together, so a box of the tensor map is one token's rows of Q or dO, and 64 / group of them make
// a streamed tile. Two consumer groups take the tiles in turn, each with sums of its own, which are added at the end.
#pragma once

#include "hopper.cuh"
#include "nsa_backward.cuh"

namespace gatedfwa::cuda {

/// What a streamed tile's rows are besides Q and dO.
struct NsaHopperTerms {
  float lse[kNsaTile], delta[kNsaTile];
  int limit[kNsaTile];  ///< the row sees the keys below
};

template <int head>
struct NsaHopperSize {
  static constexpr int tileBytes = kNsaTile * head * 2, stages = head == 64 ? 10 : 5, threads = 3 * 128;
  static constexpr int consumerRegisters = 240, producerRegisters = 24;
  static constexpr int terms = (2 + 2 * stages) * tileBytes;
  static constexpr int barriers = terms + stages * static_cast<int>(sizeof(NsaHopperTerms));
  static constexpr int work = barriers + 8 * (2 * stages + 1), shared = work + static_cast<int>(sizeof(NsaKeyWork));
  static_assert(shared <= 227 * 1024, "");
};

template <typename T, int head, typename Rule>
__global__ void __launch_bounds__(NsaHopperSize<head>::threads, 1)
    nsaDkDvHopperKernel(const __grid_constant__ NsaArgs<T, Rule> a, const __grid_constant__ CUtensorMap mapQ,
                        const __grid_constant__ CUtensorMap mapDo, const __grid_constant__ CUtensorMap mapK,
                        const __grid_constant__ CUtensorMap mapV) {
#if GATEDFWA_HOPPER
  using Size = NsaHopperSize<head>;
  constexpr int stages = Size::stages, tileBytes = Size::tileBytes, panels = head / 64;
  extern __shared__ __align__(1024) unsigned char nsaShared[];
  NsaKeyWork& x = *reinterpret_cast<NsaKeyWork*>(nsaShared + Size::work);  // the accumulators need the registers
  {
    NsaKeyWork found;
    if (!found.find(a.lists, a.keys, blockIdx.x)) return;
    if (threadIdx.x == 0) x = found;
  }
  const uint32_t base = sharedAddress(nsaShared), sharedK = base, sharedV = base + tileBytes;
  auto* const terms = reinterpret_cast<NsaHopperTerms*>(nsaShared + Size::terms);
  const auto streamed = [&](int slot, int i) { return base + (2 + 2 * slot + i) * tileBytes; };
  const auto landed = [&](int slot) { return base + Size::barriers + 8 * slot; };
  const auto freed = [&](int slot) { return base + Size::barriers + 8 * (stages + slot); };
  const uint32_t kept = base + Size::barriers + 16 * stages;
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) {
      // All lanes of a warp arrive, see HopperBlock.
      barrierInit(landed(i), 1 + 32);  // the copies, the terms
      barrierInit(freed(i), 128);
    }
    barrierInit(kept, 1);
    barrierInitFence();
  }
  __syncthreads();

  const int warp = warpIndex(), lane = threadIdx.x % 32;
  const int tileTokens = kNsaTile / a.group, tiles = (x.tokens + tileTokens - 1) / tileTokens;

  if (warp < 4) {
    lowerRegisters<Size::producerRegisters>();
    const int b = x.head / a.kvHeads, kvHead = x.head % a.kvHeads, offset = a.M - a.N;
    const int64_t unit = static_cast<int64_t>(x.head) * a.lists.blocks + x.unit;
    const int* const list =
        a.lists.tokens ? a.lists.tokens + x.head * a.lists.listLength + a.lists.offset[unit] + x.token0 : nullptr;
    const int firstToken = list ? 0 : a.N - a.lists.count[unit] + x.token0;
    const auto tokenAt = [&](int i) { return i < x.tokens ? list ? __ldg(list + i) : firstToken + i : a.N; };
    Ring<stages> at;
    if (warp == 0) {  // K, V; Q and dO, a box a lane
      if (lane == 0) {
        barrierExpect(kept, 2 * head * 128);
        copyTensor<head>(sharedK, mapK, x.first, kvHead, b, kept);
        copyTensor<head>(sharedV, mapV, x.first, kvHead, b, kept);
      }
      const int own = lane / (2 * panels), tensor = lane / panels % 2, panel = lane % panels;
      const bool active = own < tileTokens;
      const CUtensorMap& map = tensor == 0 ? mapQ : mapDo;
      int token = tokenAt(own);
      for (int tile = 0; tile < tiles; ++tile, at.advance()) {
        const int next = tokenAt((tile + 1) * tileTokens + own);
        barrierWait(freed(at.slot), at.phase ^ 1);
        if (lane == 0) barrierExpect(landed(at.slot), 2 * head * 128);
        __syncwarp();
        if (active)  // rows beyond the last token arrive as zeros
          copyPanel(streamed(at.slot, tensor) + panel * kPanelBytes + own * a.group * 128, map, 64 * panel, token,
                    kvHead * a.group, b, landed(at.slot));
        token = next;
      }
    } else if (warp == 1) {  // terms
      int token[2];
      float lse[2], delta[2];
      const auto tokensOf = [&](int tile) {
#pragma unroll
        for (int i = 0; i < 2; ++i) token[i] = tokenAt(tile * tileTokens + (lane + 32 * i) / a.group);
      };
      const auto statisticsOf = [&](int i, int of) {
        const int64_t row =
            (static_cast<int64_t>(b) * a.H + kvHead * a.group + (lane + 32 * i) % a.group) * a.queries.length + offset +
            of - a.queries.first;
        lse[i] = of < a.N ? __ldg(a.rowLse + row) : infinity<float>();
        delta[i] = of < a.N ? __ldg(a.rowDelta + row) : 0.f;
      };
      int current[2];
      tokensOf(0);
#pragma unroll
      for (int i = 0; i < 2; ++i) statisticsOf(i, current[i] = token[i]);
      tokensOf(1);
      for (int tile = 0; tile < tiles; ++tile, at.advance()) {
        barrierWait(freed(at.slot), at.phase ^ 1);
        NsaHopperTerms& to = terms[at.slot];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          to.lse[lane + 32 * i] = lse[i];
          to.delta[lane + 32 * i] = delta[i];
          to.limit[lane + 32 * i] =
              current[i] < a.N ? visibleEnd(a.rule, a.keys, offset + current[i]) - x.first : kNsaTile;
          statisticsOf(i, current[i] = token[i]);
        }
        tokensOf(tile + 2);
        barrierArrive(landed(at.slot));
      }
    }
    return;
  }

  raiseRegisters<Size::consumerRegisters>();
  const int group = warp / 4 - 1, warpInGroup = warp % 4, g = lane / 4, t = lane % 4;
  const int row = 16 * warpInGroup + g;  // the thread's keys: this and the 8th after it
  float s[8][4], dp[8][4], dk[head / 8][4], dv[head / 8][4];
  uint32_t weights[4][4];
#pragma unroll
  for (int n = 0; n < head / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) dk[n][e] = dv[n][e] = 0.f;

  Ring<stages> at;
  if (group == 1) at.advance();
  int previous = 0;
  const auto release = [&](int slot) { barrierArrive(freed(slot)); };
  // Products of the tile at `at`, with dk of the tile before between them: s is needed first.
  const auto multiply = [&](auto&& multiplyBetween) {
    wgmmaFence();
    multiplyTiles<T, head>(s, descriptorHere(sharedK), descriptor(streamed(at.slot, 0)));
    wgmmaCommit();
    multiplyBetween();
    wgmmaCommit();
    multiplyTiles<T, head>(dp, descriptorHere(sharedV), descriptor(streamed(at.slot, 1)));
    wgmmaCommit();
  };
  const auto addDk = [&] { multiplyWeights<T>(dk, weights, descriptor(streamed(previous, 0))); };

  int tile = group;
  barrierWait(kept, 0);
  if (tile < tiles) {
    barrierWait(landed(at.slot), at.phase);
    hold(dk);
    hold(dv);
    multiply([] {});
    while (true) {
      const NsaHopperTerms& own = terms[at.slot];
      wgmmaWait<2>();
      hold(s);
      if (own.limit[0] < kNsaTile) {  // tokens are ascending: what the first row sees, all see
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          const int2 y = *reinterpret_cast<const int2*>(own.limit + 8 * n + 2 * t);
#pragma unroll
          for (int e = 0; e < 4; ++e)
            if (row + 8 * (e / 2) >= (e % 2 ? y.y : y.x)) s[n][e] = -infinity<float>();
        }
      }
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const float2 y = *reinterpret_cast<const float2*>(own.lse + 8 * n + 2 * t);
#pragma unroll
        for (int e = 0; e < 4; ++e) s[n][e] = exp2Approx(fmaf(s[n][e], a.scaleLog2, -(e % 2 ? y.y : y.x)));
      }
      wgmmaWait<1>();  // dk of the tile before
      if (tile != group) release(previous);
      packWeights<T>(weights, s);
      wgmmaFence();
      multiplyWeights<T>(dv, weights, descriptor(streamed(at.slot, 1)));
      wgmmaCommit();
      wgmmaWait<1>();
      hold(dp);
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const float2 y = *reinterpret_cast<const float2*>(own.delta + 8 * n + 2 * t);
#pragma unroll
        for (int e = 0; e < 4; ++e) dp[n][e] = s[n][e] * (dp[n][e] - (e % 2 ? y.y : y.x));
      }
      wgmmaWait<0>();
      packWeights<T>(weights, dp);
      previous = at.slot;
      at.advance();
      at.advance();
      if ((tile += 2) >= tiles) break;
      barrierWait(landed(at.slot), at.phase);
      multiply(addDk);
    }
    wgmmaFence();
    addDk();
    wgmmaCommit();
    wgmmaWait<0>();
  }
  hold(dk);
  hold(dv);

  // The second group's sums through the ring, which nobody uses any more.
  const auto bothGroups = [] { asm volatile("bar.sync 1, 256;\n" ::: "memory"); };
  float4* const sums = reinterpret_cast<float4*>(nsaShared + 2 * tileBytes) + threadIdx.x % 128;
  bothGroups();
  if (group == 1) {
#pragma unroll
    for (int n = 0; n < head / 8; ++n) {
      sums[(2 * n) * 128] = make_float4(dk[n][0], dk[n][1], dk[n][2], dk[n][3]);
      sums[(2 * n + 1) * 128] = make_float4(dv[n][0], dv[n][1], dv[n][2], dv[n][3]);
    }
  }
  bothGroups();
  if (group == 1) return;
#pragma unroll
  for (int n = 0; n < head / 8; ++n) {
    const float4 y = sums[(2 * n) * 128], z = sums[(2 * n + 1) * 128];
    dk[n][0] += y.x, dk[n][1] += y.y, dk[n][2] += y.z, dk[n][3] += y.w;
    dv[n][0] += z.x, dv[n][1] += z.y, dv[n][2] += z.z, dv[n][3] += z.w;
  }
  const NsaKeyWork own = x;
  writeKeyGradients(a, own, own.head / a.kvHeads, own.head % a.kvHeads, row, t, dk, dv);
#endif
}

/// A token's heads of Q or dO as a box: 64 elements x 1 token x the group.
template <typename T>
cudaError_t encodeTokens(CUtensorMap* map, const Rows<T>& x, int64_t batch, int64_t length, int64_t heads, int group) {
  return encodeTensorMap(map, tensorMapType<T>(), x.data, batch, length, heads, x.width, x.batch, x.row, x.head, 1,
                         group);
}

template <typename T, int head, typename Rule>
cudaError_t launchNsaDkDvHopperHead(const NsaArgs<T, Rule>& a, cudaStream_t stream) {
  using Size = NsaHopperSize<head>;
  const auto kernel = nsaDkDvHopperKernel<T, head, Rule>;
  cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Size::shared);
  CUtensorMap q, dO, k, v;
  if (e == cudaSuccess) e = encodeTokens(&q, a.q, a.batch, a.N, a.H, a.group);
  if (e == cudaSuccess) e = encodeTokens(&dO, a.dO, a.batch, a.N, a.H, a.group);
  if (e == cudaSuccess) e = encodeRows(&k, a.k, a.batch, a.keys, a.kvHeads);
  if (e == cudaSuccess) e = encodeRows(&v, a.v, a.batch, a.keys, a.kvHeads);
  if (e != cudaSuccess) return e;
  const int64_t blocks = a.lists.mostSegments * a.lists.subTiles();
  kernel<<<static_cast<unsigned>(blocks), Size::threads, Size::shared, stream>>>(a, q, dO, k, v);
  return lastLaunch();
}

#define GATEDFWA_NSA_HOPPER_RULE(T, Rule)                                                                             \
  template <>                                                                                                         \
  cudaError_t launchNsaDkDvHopper<T, Rule>(const NsaArgs<T, Rule>& args, int head, cudaStream_t stream) {             \
    return head == 64 ? launchNsaDkDvHopperHead<T, 64>(args, stream) : launchNsaDkDvHopperHead<T, 128>(args, stream); \
  }
#define GATEDFWA_NSA_HOPPER_INSTANCES(T)      \
  GATEDFWA_NSA_HOPPER_RULE(T, CompressedRule) \
  GATEDFWA_NSA_HOPPER_RULE(T, SelectedRule)

}  // namespace gatedfwa::cuda
