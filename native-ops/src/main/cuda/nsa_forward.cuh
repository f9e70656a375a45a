// Forward of native sparse attention on tensor cores (mma.sync): online softmax over the key tiles of nsa_tile.cuh.
#pragma once

#include "nsa_tile.cuh"

namespace gatedfwa::cuda {

constexpr int kNsaForwardWarps = 11;  ///< besides the one that copies: 3 warps share the registers of a quarter

template <typename T, int head, typename Rule>
__global__ void __launch_bounds__(32 + 32 * kNsaForwardWarps, 1)
    nsaForwardKernel(const __grid_constant__ NsaArgs<T, Rule> a, int slots, NsaCopies copies,
                     const __grid_constant__ CUtensorMap mapK, const __grid_constant__ CUtensorMap mapV) {
#if GATEDFWA_TENSOR_CORES
  using P = Mma16<T>;
  using Block = NsaBlock<head, kNsaForwardWarps>;
  constexpr int depthSteps = head / 16;
  constexpr float kRescaleSlack = 8.f;  // rescale only when the maximum grew by more than 2^8
  extern __shared__ __align__(1024) unsigned char nsaShared[];
  const Block block(nsaShared, slots);
  block.initialise(copies);
  const NsaUnits<kNsaForwardWarps> units(a.group, a.N);
  const int warp = warpIndex(), lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  if (warp == 0) {
    produceKeyTiles(a, units, block, copies, mapK, mapV);
    return;
  }

  uint32_t queueHead = 0;
  for (int item = blockIdx.x; item >= 0;) {
    NsaPlace x = NsaPlace::of(a, units, item);
    NsaRows rows = NsaRows::of(a, units, x, warp - 1, g);
    const LaneOffset laneB = laneOfB<128>(lane);
    typename P::A q[depthSteps];
    loadRowOperands<T, head>(q, a.q.data + x.b * a.q.batch, a.q, rows, t);
    float rowMax[2] = {-infinity<float>(), -infinity<float>()}, rowSum[2] = {0.f, 0.f}, o[head / 8][4];
#pragma unroll
    for (int n = 0; n < head / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) o[n][e] = 0.f;

    const auto multiplyTile = [&](auto maskedTag, const auto& tile, const int(&limit)[2], uint64_t bits, int groups) {
      constexpr bool masked = decltype(maskedTag)::value;
      const uint32_t tileK = tile.wait(0);
      float s[8][4];
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[n][e] = 0.f;
#pragma unroll
      for (int d = 0; d < depthSteps; ++d)
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          if (masked && n >= groups) continue;
          const typename P::B kb = P::loadB(panelAddress(tileK, laneB, 16 * n, d * 32));
          P::multiply(s[2 * n], s[2 * n + 1], q[d], kb);
        }
      tile.release(0);
      if constexpr (masked) {
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            if (hiddenKey(8 * n + 2 * t + e % 2, limit[e / 2], bits)) s[n][e] = -infinity<float>();
      }

      float top[2], bias[2];
      bool grew = false;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float y = fmaxf(s[0][2 * i], s[0][2 * i + 1]);
#pragma unroll
        for (int n = 1; n < 8; ++n) y = fmaxf(y, fmaxf(s[n][2 * i], s[n][2 * i + 1]));
        top[i] = y * a.scaleLog2;
        grew = grew || top[i] > rowMax[i] + kRescaleSlack;
      }
      if (__any_sync(~0u, grew)) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float newMax = fmaxf(rowMax[i], quadMax(top[i]));
          const float factor = exp2Approx(rowMax[i] - (newMax == -infinity<float>() ? 0.f : newMax));
          rowMax[i] = newMax;
          rowSum[i] *= factor;
#pragma unroll
          for (int n = 0; n < head / 8; ++n) {
            o[n][2 * i] *= factor;
            o[n][2 * i + 1] *= factor;
          }
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        // A row that has seen no key yet has no maximum: exp2(-infinity - 0) = 0, not NaN.
        bias[i] = rowMax[i] == -infinity<float>() ? 0.f : rowMax[i];
      }

      // The weights of 16 keys while the tensor cores multiply those of the 16 before.
      const auto weigh = [&](int n) {
#pragma unroll
        for (int c = 2 * n; c < 2 * n + 2; ++c)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            s[c][e] = exp2Approx(fmaf(s[c][e], a.scaleLog2, -bias[e / 2]));
            rowSum[e / 2] += s[c][e];
          }
      };
      weigh(0);
      const uint32_t tileV = tile.wait(1);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        if (n + 1 < 4 && !(masked && n + 1 >= groups)) weigh(n + 1);
        if (masked && n >= groups) continue;
        const typename P::A p = P::fromAccumulators(s, n);
#pragma unroll
        for (int d = 0; d < head / 16; ++d)
          P::multiply(o[2 * d], o[2 * d + 1], p, loadPanelTransposed<P>(tileV, lane, 16 * n, 16 * d));
      }
      tile.release(1);
    };
    const int next = consumeKeyTiles(a, block, x.b, rows, warp - 1, queueHead, multiplyTile);

    x = NsaPlace::of(a, units, again(item));
    rows = NsaRows::of(a, units, x, warp - 1, g);
    item = next;

#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float sum = quadSum(rowSum[i]);
      if (t == 0 && rows.valid[i])
        a.lse[x.b * a.lseBatch + rows.h[i] * a.lseHead + rows.t[i] * a.lseRow] =
            sum == 0.f ? -infinity<float>() : (rowMax[i] + log2f(sum)) * static_cast<float>(kLn2);
      writeRow<T, true>(o, i, sum == 0.f ? 0.f : 1.f / sum,
                        a.o.data + x.b * a.o.batch + rows.t[i] * a.o.row + rows.h[i] * a.o.head, rows.valid[i], a.o, t);
    }
  }
#endif
}

template <typename T, int head, typename Rule>
cudaError_t launchNsaForwardHead(const NsaArgs<T, Rule>& a, size_t sharedLimit, cudaStream_t stream) {
  using Block = NsaBlock<head, kNsaForwardWarps>;
  const auto kernel = nsaForwardKernel<T, head, Rule>;
  const int slots = Block::slots(sharedLimit), bytes = static_cast<int>(Block::bytes(slots));
  const cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (e != cudaSuccess) return e;
  const NsaKeyMaps maps(a, head);
  const NsaUnits<kNsaForwardWarps> units(a.group, a.N);
  const unsigned grid = static_cast<unsigned>(std::min<int64_t>(a.batch * a.kvHeads * units.items, a.multiprocessors));
  kernel<<<grid, 32 + 32 * kNsaForwardWarps, bytes, stream>>>(a, slots, maps.copies, maps.k, maps.v);
  return lastLaunch();
}

}  // namespace gatedfwa::cuda
