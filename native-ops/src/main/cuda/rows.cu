// Row preparation: operands whose rows the tensor-core kernels cannot load 16 bytes at a time are packed; delta and lse
// are laid out by head for the backward.
#include "element.cuh"

namespace gatedfwa::cuda {
namespace {

template <typename T>
__global__ void packKernel(const T* source, int64_t s0, int64_t s1, int64_t s2, int64_t s3, int64_t rows, int64_t heads,
                           int width, int paddedWidth, int64_t count, T* packed) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    const int64_t d = i % paddedWidth, head = i / paddedWidth % heads, row = i / paddedWidth / heads % rows;
    const int64_t b = i / paddedWidth / heads / rows;
    packed[i] = d < width ? source[b * s0 + row * s1 + head * s2 + d * s3] : fromFloat<T>(0.f);
  }
}

/// Bits is an unsigned type of the element's size.
template <typename Bits>
__global__ void zeroKernel(Bits* to, int64_t s0, int64_t s1, int64_t s2, int64_t s3, int64_t rows, int64_t heads,
                           int64_t width, int64_t count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride)
    to[i / width / heads / rows * s0 + i / width / heads % rows * s1 + i / width % heads * s2 + i % width * s3] = 0;
}

struct RowArgs {
  Input o, dO, lse;
  int64_t offset, keyLength, keyFirst, keySpan, queryFirst, querySpan;
  int heads, width;
  bool vector;
  DecaySums<float> sums;
  float *rowLse, *rowDecayedLse, *rowDelta;
};

constexpr int kLanes = 8;  ///< threads of a row
constexpr int kThreads = 128;

template <typename T>
__global__ void __launch_bounds__(kThreads) rowStatisticsKernel(const __grid_constant__ RowArgs a) {
  constexpr int perChunk = 16 / sizeof(T);
  // Heads first: in [B, N, H, D] their rows lie side by side, and blocks that run together read whole pages of memory.
  const int64_t tiles = a.querySpan / kSumTile, h = blockIdx.x % a.heads, b = blockIdx.x / a.heads / tiles;
  const int64_t bh = b * a.heads + h, first = a.queryFirst + blockIdx.x / a.heads % tiles * kSumTile;
  const T* const o = static_cast<const T*>(a.o.data) + b * a.o.strides[0] + h * a.o.strides[2];
  const T* const dO = static_cast<const T*>(a.dO.data) + b * a.dO.strides[0] + h * a.dO.strides[2];
  constexpr int step = kThreads / kLanes, count = kSumTile / step;
  __shared__ float deltas[kSumTile];
  const int row = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const int64_t length = a.keyLength - a.offset;
  float delta[count] = {};
  if (a.vector) {
    for (int c = lane * perChunk; c < a.width; c += kLanes * perChunk) {
      union Chunk {
        uint4 bits;
        T element[perChunk];
      } u[count], v[count];
#pragma unroll
      for (int i = 0; i < count; ++i) {  // all under way together
        const int64_t t = first + row + i * step - a.offset;
        const bool valid = t >= 0 && t < length;
        u[i].bits = valid ? *reinterpret_cast<const uint4*>(o + t * a.o.strides[1] + c) : make_uint4(0, 0, 0, 0);
        v[i].bits = valid ? *reinterpret_cast<const uint4*>(dO + t * a.dO.strides[1] + c) : make_uint4(0, 0, 0, 0);
      }
#pragma unroll
      for (int i = 0; i < count; ++i)
#pragma unroll
        for (int e = 0; e < perChunk; ++e)
          delta[i] = fmaf(toFloat(u[i].element[e]), toFloat(v[i].element[e]), delta[i]);
    }
  } else {
    for (int i = 0; i < count; ++i) {
      const int64_t t = first + row + i * step - a.offset;
      if (t < 0 || t >= length) continue;
      const T* const x = o + t * a.o.strides[1];
      const T* const y = dO + t * a.dO.strides[1];
      for (int d = lane; d < a.width; d += kLanes)
        delta[i] = fmaf(toFloat(x[d * a.o.strides[3]]), toFloat(y[d * a.dO.strides[3]]), delta[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < count; ++i) {
#pragma unroll
    for (int d = kLanes / 2; d > 0; d /= 2) delta[i] += __shfl_xor_sync(~0u, delta[i], d);
    if (lane == 0) deltas[row + i * step] = delta[i];
  }
  __syncthreads();
  if (threadIdx.x >= kSumTile) return;
  const int64_t p = first + threadIdx.x, t = p - a.offset;
  const float inf = infinity<float>();
  double lse = inf, decay = 0;  // exp2(x - infinity) = 0: a row that sees no key, or is none
  if (t >= 0 && t < length) {
    const float x =
        static_cast<const float*>(a.lse.data)[b * a.lse.strides[0] + h * a.lse.strides[1] + t * a.lse.strides[2]];
    if (x != -inf) lse = x * kLog2e;
    if (a.sums.prefix) {
      const int64_t key = p - a.keyFirst;
      const uint64_t resets = a.sums.resets[(bh * a.keySpan + key) / kSumTile];
      decay = a.sums.prefix[bh * a.keySpan + key];
      if (a.sums.prefixLow) decay += a.sums.prefixLow[bh * a.keySpan + key];
      if (resets & bitsThrough(threadIdx.x)) decay = inf;
    }
  }
  const int64_t at = bh * a.querySpan + p - a.queryFirst;
  a.rowLse[at] = static_cast<float>(lse);
  a.rowDecayedLse[at] = static_cast<float>(lse + decay);
  a.rowDelta[at] = deltas[threadIdx.x];
}

}  // namespace

template <typename T>
cudaError_t launchPack(Input source, int64_t batch, int64_t rows, int64_t heads, int64_t width, int64_t paddedWidth,
                       T* packed, cudaStream_t stream) {
  const int64_t count = batch * rows * heads * paddedWidth;
  const int64_t blocks = std::min<int64_t>(divUp(count, 256), 1 << 20);
  packKernel<T><<<static_cast<unsigned>(blocks), 256, 0, stream>>>(
      static_cast<const T*>(source.data), source.strides[0], source.strides[1], source.strides[2], source.strides[3],
      rows, heads, static_cast<int>(width), static_cast<int>(paddedWidth), count, packed);
  return lastLaunch();
}

template <typename Bits>
cudaError_t launchZero(Output x, int64_t batch, int64_t rows, int64_t heads, int64_t width, cudaStream_t stream) {
  const int64_t count = batch * rows * heads * width;
  if (count == 0) return cudaSuccess;
  const int64_t blocks = std::min<int64_t>(divUp(count, 256), 1 << 20);
  zeroKernel<Bits><<<static_cast<unsigned>(blocks), 256, 0, stream>>>(
      static_cast<Bits*>(x.data), x.strides[0], x.strides[1], x.strides[2], x.strides[3], rows, heads, width, count);
  return lastLaunch();
}
template cudaError_t launchZero<uint16_t>(Output, int64_t, int64_t, int64_t, int64_t, cudaStream_t);
template cudaError_t launchZero<uint32_t>(Output, int64_t, int64_t, int64_t, int64_t, cudaStream_t);
template cudaError_t launchZero<uint64_t>(Output, int64_t, int64_t, int64_t, int64_t, cudaStream_t);

bool rowsAligned(const Input& x, int64_t width, int64_t elementBytes) {
  return x.strides[3] == 1 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && width * elementBytes % 16 == 0 &&
         x.strides[0] * elementBytes % 16 == 0 && x.strides[1] * elementBytes % 16 == 0 &&
         x.strides[2] * elementBytes % 16 == 0;
}

template <typename T>
cudaError_t launchRowStatistics(const AttentionBackward& p, const DecaySums<float>& sums, Span keys, Span queries,
                                float* rowLse, float* rowDecayedLse, float* rowDelta, cudaStream_t stream) {
  RowArgs a{};
  a.o = p.o;
  a.dO = p.dO;
  a.lse = p.lse;
  a.offset = p.keyLength - p.queryLength;
  a.keyLength = p.keyLength;
  a.keyFirst = keys.first;
  a.keySpan = keys.length;
  a.queryFirst = queries.first;
  a.querySpan = queries.length;
  a.heads = static_cast<int>(p.heads);
  a.width = static_cast<int>(p.valueSize);
  a.vector = rowsAligned(p.o, p.valueSize, sizeof(T)) && rowsAligned(p.dO, p.valueSize, sizeof(T));
  a.sums = sums;
  a.rowLse = rowLse;
  a.rowDecayedLse = rowDecayedLse;
  a.rowDelta = rowDelta;
  rowStatisticsKernel<T><<<static_cast<unsigned>(p.batch * p.heads * queries.tiles()), kThreads, 0, stream>>>(a);
  return lastLaunch();
}

#define GATEDFWA_ROWS(T)                                                                                             \
  template cudaError_t launchPack<T>(Input, int64_t, int64_t, int64_t, int64_t, int64_t, T*, cudaStream_t);          \
  template cudaError_t launchRowStatistics<T>(const AttentionBackward&, const DecaySums<float>&, Span, Span, float*, \
                                              float*, float*, cudaStream_t);
GATEDFWA_ROWS(float)
GATEDFWA_ROWS(__half)
GATEDFWA_ROWS(__nv_bfloat16)

}  // namespace gatedfwa::cuda
