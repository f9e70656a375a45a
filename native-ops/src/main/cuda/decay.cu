// The gate alpha = softplus(-beta h) / (beta + eps) and the tile-relative sums of alpha, in one pass; the gate's
// gradient; the mask as bits. GatedFWA (arXiv 2512.07782), section on the fused gate preprocessing.
#include "element.cuh"

namespace gatedfwa::cuda {
namespace {

constexpr int kHeads = 16;  ///< heads per block: neighbours in memory, so that loads are coalesced
constexpr int kThreads = 256;

/// Operands [B, M, H]; only alpha is read unless `gate`.
template <typename F>
struct GateArgs {
  const F *h, *beta, *alphaIn;
  F* alphaOut;
  int64_t hStrides[3], betaStrides[3], alphaStrides[3];
  int64_t length;
  int heads;
  F eps;
  int64_t first, span;  ///< positions that the sums cover
  DecaySumsOut<F> sums;
};

template <typename F>
__device__ __forceinline__ F softplus(F x) {
  return fmax(x, F(0)) + log1p(exp(-fabs(x)));
}

/// 32 bits to the even bits of 64.
__device__ __forceinline__ uint64_t spread(uint32_t bits) {
  uint64_t x = bits;
  x = (x | (x << 16)) & 0x0000ffff0000ffffull;
  x = (x | (x << 8)) & 0x00ff00ff00ff00ffull;
  x = (x | (x << 4)) & 0x0f0f0f0f0f0f0f0full;
  x = (x | (x << 2)) & 0x3333333333333333ull;
  return (x | (x << 1)) & 0x5555555555555555ull;
}

template <typename F, bool gate>
__global__ void __launch_bounds__(kThreads) decayKernel(const __grid_constant__ GateArgs<F> a) {
  __shared__ F tile[kHeads][kSumTile + 1];
  const int64_t tileStart = a.first + static_cast<int64_t>(blockIdx.x) * kSumTile;
  const int head0 = blockIdx.y * kHeads;
  const int64_t b = blockIdx.z;
  constexpr int perThread = kSumTile * kHeads / kThreads;
  const int head = head0 + threadIdx.x % kHeads;
  F alpha[perThread], beta[perThread];  // alpha, or the gate's operands; all loads are under way before the first use
#pragma unroll
  for (int r = 0; r < perThread; ++r) {
    const int64_t j = tileStart + threadIdx.x / kHeads + r * (kThreads / kHeads);
    const bool inside = j < a.length && head < a.heads;
    alpha[r] = beta[r] = 0;
    if constexpr (gate) {
      if (inside) alpha[r] = a.h[b * a.hStrides[0] + j * a.hStrides[1] + head * a.hStrides[2]];
      if (inside) beta[r] = a.beta[b * a.betaStrides[0] + j * a.betaStrides[1] + head * a.betaStrides[2]];
    } else {
      if (inside) alpha[r] = a.alphaIn[b * a.alphaStrides[0] + j * a.alphaStrides[1] + head * a.alphaStrides[2]];
    }
  }
#pragma unroll
  for (int r = 0; r < perThread; ++r) {
    const int token = threadIdx.x / kHeads + r * (kThreads / kHeads);
    const int64_t j = tileStart + token;
    if constexpr (gate) {
      if (j < a.length && head < a.heads) {
        alpha[r] = softplus(-beta[r] * alpha[r]) / (beta[r] + a.eps);
        a.alphaOut[b * a.alphaStrides[0] + j * a.alphaStrides[1] + head * a.alphaStrides[2]] = alpha[r];
      }
    }
    tile[threadIdx.x % kHeads][token] = alpha[r];
  }
  if (a.sums.suffix == nullptr) return;
  __syncthreads();

  // Lane l holds tokens 2l and 2l+1 of a warp's heads. The sums run in float64: 64 terms, and differences stay exact to
  // float32.
  constexpr int warps = kThreads / 32, perWarp = kHeads / warps;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint64_t resets[perWarp];
  double y0[perWarp], y1[perWarp], up[perWarp];
#pragma unroll
  for (int i = 0; i < perWarp; ++i) {
    const F x0 = tile[warp + i * warps][2 * lane], x1 = tile[warp + i * warps][2 * lane + 1];
    const bool reset0 = x0 == infinity<F>(), reset1 = x1 == infinity<F>();
    resets[i] = spread(__ballot_sync(~0u, reset0)) | spread(__ballot_sync(~0u, reset1)) << 1;
    y0[i] = reset0 ? 0.0 : kLog2e * x0;
    y1[i] = reset1 ? 0.0 : kLog2e * x1;
    up[i] = y0[i] + y1[i];
  }
#pragma unroll
  for (int d = 1; d < 32; d *= 2)
#pragma unroll
    for (int i = 0; i < perWarp; ++i) {
      const double u = __shfl_up_sync(~0u, up[i], d);
      if (lane >= d) up[i] += u;
    }
#pragma unroll
  for (int i = 0; i < perWarp; ++i) {
    double before = __shfl_up_sync(~0u, up[i], 1);
    if (lane == 0) before = 0;
    const double total = __shfl_sync(~0u, up[i], 31), prefix0 = before + y0[i], prefix1 = up[i];
    const int own = head0 + warp + i * warps;
    if (own >= a.heads) continue;
    const int64_t row = (b * a.heads + own) * a.span;
    const int64_t at = row + static_cast<int64_t>(blockIdx.x) * kSumTile + 2 * lane;
    const auto store = [&](F* to, double x, double y) {
      struct alignas(2 * sizeof(F)) Pair {
        F x, y;
      };
      *reinterpret_cast<Pair*>(to + at) = {static_cast<F>(x), static_cast<F>(y)};
    };
    store(a.sums.prefix, prefix0, prefix1);
    if (a.sums.prefixLow) store(a.sums.prefixLow, prefix0 - static_cast<F>(prefix0), prefix1 - static_cast<F>(prefix1));
    const double inf = infinity<double>();
    store(a.sums.suffix, resetBetween(resets[i], 2 * lane, 63) ? inf : fmax(total - prefix0, 0.0),
          resetBetween(resets[i], 2 * lane + 1, 63) ? inf : fmax(total - prefix1, 0.0));
    if (lane == 0) a.sums.resets[row / kSumTile + blockIdx.x] = resets[i];
  }
}

template <typename F>
struct GateBackwardArgs {
  const F *h, *beta, *dalpha;
  F *dh, *dbeta;
  int64_t hs[3], bs[3], as[3], dhs[3], dbs[3];
  int64_t count, length;
  int heads;
  F eps;
};

template <typename F>
__global__ void gateBackwardKernel(const __grid_constant__ GateBackwardArgs<F> a) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < a.count; i += stride) {
    const int64_t head = i % a.heads, j = i / a.heads % a.length, b = i / a.heads / a.length;
    const F h = a.h[b * a.hs[0] + j * a.hs[1] + head * a.hs[2]];
    const F beta = a.beta[b * a.bs[0] + j * a.bs[1] + head * a.bs[2]];
    const F g = a.dalpha[b * a.as[0] + j * a.as[1] + head * a.as[2]];
    const F z = -beta * h, e = exp(-fabs(z));
    const F sigmoid = (z >= 0 ? F(1) : e) / (1 + e), inverse = 1 / (beta + a.eps);
    a.dh[b * a.dhs[0] + j * a.dhs[1] + head * a.dhs[2]] = -g * beta * sigmoid * inverse;
    a.dbeta[b * a.dbs[0] + j * a.dbs[1] + head * a.dbs[2]] = -g * inverse * (h * sigmoid + softplus(z) * inverse);
  }
}

template <typename T>
__global__ void keyBitsKernel(const T* mask, int64_t batchStride, int64_t rowStride, int64_t length, int64_t first,
                              int64_t tiles, uint64_t* bits) {
  const int64_t b = blockIdx.y, tile = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (tile >= tiles) return;
  const int lane = threadIdx.x % 32;
  const int64_t j = first + tile * kSumTile + lane;
  const auto real = [&](int64_t i) {
    if (i >= length) return false;
    const T value = mask[b * batchStride + i * rowStride];
    if constexpr (std::is_same<T, uint8_t>::value)
      return value != 0;
    else
      return toFloat(value) != 0;
  };
  const uint64_t low = __ballot_sync(~0u, real(j)), high = __ballot_sync(~0u, real(j + 32));
  if (lane == 0) bits[b * tiles + tile] = low | high << 32;
}

template <typename F>
F* pointer(const Input& t) {
  return static_cast<F*>(const_cast<void*>(t.data));
}
template <typename F>
F* pointer(const Output& t) {
  return static_cast<F*>(t.data);
}
template <typename Tensor>
void strides(int64_t (&to)[3], const Tensor& from) {
  for (int i = 0; i < 3; ++i) to[i] = from.strides[i];
}

dim3 decayGrid(int64_t tiles, int64_t heads, int64_t batch) {
  return dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(divUp(heads, kHeads)), static_cast<unsigned>(batch));
}

template <typename F>
Result gateForwardTyped(const GateForward& p, void* sums, cudaStream_t stream) {
  GateArgs<F> a{};
  a.h = pointer<F>(p.h);
  a.beta = pointer<F>(p.beta);
  a.alphaOut = pointer<F>(p.alpha);
  strides(a.hStrides, p.h);
  strides(a.betaStrides, p.beta);
  strides(a.alphaStrides, p.alpha);
  a.length = p.length;
  a.heads = static_cast<int>(p.heads);
  a.eps = static_cast<F>(p.eps);
  const Span keys{0, divUp(p.length, kSpan) * kSpan};
  a.span = keys.length;
  if (sums) {
    Arena arena(sums);
    a.sums = takeSums<F>(arena, p.batch, p.heads, keys);
  }
  decayKernel<F, true><<<decayGrid(keys.tiles(), p.heads, p.batch), kThreads, 0, stream>>>(a);
  const cudaError_t e = lastLaunch();
  return {e == cudaSuccess ? Status::Ok : Status::CudaError, e};
}

template <typename F>
Result gateBackwardTyped(const GateBackward& p, cudaStream_t stream) {
  GateBackwardArgs<F> a{};
  a.h = pointer<F>(p.h);
  a.beta = pointer<F>(p.beta);
  a.dalpha = pointer<F>(p.dalpha);
  a.dh = pointer<F>(p.dh);
  a.dbeta = pointer<F>(p.dbeta);
  strides(a.hs, p.h);
  strides(a.bs, p.beta);
  strides(a.as, p.dalpha);
  strides(a.dhs, p.dh);
  strides(a.dbs, p.dbeta);
  a.count = p.batch * p.length * p.heads;
  a.length = p.length;
  a.heads = static_cast<int>(p.heads);
  a.eps = static_cast<F>(p.eps);
  const int64_t blocks = std::min<int64_t>(divUp(a.count, 256), 1 << 16);
  gateBackwardKernel<F><<<static_cast<unsigned>(blocks), 256, 0, stream>>>(a);
  const cudaError_t e = lastLaunch();
  return {e == cudaSuccess ? Status::Ok : Status::CudaError, e};
}

template <typename T>
cudaError_t keyBits(Input mask, int64_t batch, int64_t length, Span keys, uint64_t* bits, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(divUp(keys.tiles(), 8)), static_cast<unsigned>(batch));
  keyBitsKernel<T><<<grid, 256, 0, stream>>>(static_cast<const T*>(mask.data), mask.strides[0], mask.strides[1], length,
                                             keys.first, keys.tiles(), bits);
  return lastLaunch();
}

}  // namespace

size_t decaySumsBytes(int64_t batch, int64_t length, int64_t heads, ElementType type) {
  const Span keys{0, divUp(length, kSpan) * kSpan};
  Arena arena(nullptr);
  if (type == ElementType::Float64)
    takeSums<double>(arena, batch, heads, keys);
  else
    takeSums<float>(arena, batch, heads, keys);
  return arena.used();
}

Result gateForward(const GateForward& p, void* sums, cudaStream_t stream) {
  if (p.batch == 0 || p.length == 0 || p.heads == 0) return {};
  return p.type == ElementType::Float64 ? gateForwardTyped<double>(p, sums, stream)
                                        : gateForwardTyped<float>(p, sums, stream);
}

Result gateBackward(const GateBackward& p, cudaStream_t stream) {
  if (p.batch == 0 || p.length == 0 || p.heads == 0) return {};
  return p.type == ElementType::Float64 ? gateBackwardTyped<double>(p, stream) : gateBackwardTyped<float>(p, stream);
}

template <typename F>
cudaError_t launchDecaySums(Input alpha, int64_t batch, int64_t length, int64_t heads, Span keys, DecaySumsOut<F> out,
                            cudaStream_t stream) {
  GateArgs<F> a{};
  a.alphaIn = pointer<F>(alpha);
  strides(a.alphaStrides, alpha);
  a.length = length;
  a.heads = static_cast<int>(heads);
  a.first = keys.first;
  a.span = keys.length;
  a.sums = out;
  decayKernel<F, false><<<decayGrid(keys.tiles(), heads, batch), kThreads, 0, stream>>>(a);
  return lastLaunch();
}
template cudaError_t launchDecaySums<float>(Input, int64_t, int64_t, int64_t, Span, DecaySumsOut<float>, cudaStream_t);
template cudaError_t launchDecaySums<double>(Input, int64_t, int64_t, int64_t, Span, DecaySumsOut<double>,
                                             cudaStream_t);

cudaError_t launchKeyBits(Input mask, ElementType type, int64_t batch, int64_t length, Span keys, uint64_t* bits,
                          cudaStream_t stream) {
  switch (type) {
    case ElementType::Float32:
      return keyBits<float>(mask, batch, length, keys, bits, stream);
    case ElementType::Float64:
      return keyBits<double>(mask, batch, length, keys, bits, stream);
    case ElementType::Float16:
      return keyBits<__half>(mask, batch, length, keys, bits, stream);
    case ElementType::BFloat16:
      return keyBits<__nv_bfloat16>(mask, batch, length, keys, bits, stream);
    case ElementType::Bool:
      return keyBits<uint8_t>(mask, batch, length, keys, bits, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace gatedfwa::cuda
