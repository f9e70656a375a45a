// Which kernel runs, what scratch memory it takes, and the launches in order.
#include "call.h"

namespace gatedfwa::cuda {
namespace {

constexpr int64_t kDecodeQueries = 4;        ///< up to here the keys are split
constexpr int64_t kMostStored = 16ll << 31;  ///< bytes of dS: 32-bit offsets, in 16 bytes, that step past its end
constexpr double kSmallestScale = 1e-4;      ///< decays are divided by the scale in the tensor-core kernels

int paddedHead(const AttentionProblem& p) {
  const int64_t d = std::max(p.headSize, p.valueSize);
  return d <= 64 ? 64 : d <= 128 ? 128 : 256;
}

/// Compute capability 9.0 alone has wgmma. Operands with strides that TMA does not take are packed, so they do not
/// count.
bool hopperTakes(const AttentionProblem& p, const Device& device) {
  return device.major == 9 && device.minor == 0 &&
         (p.type == ElementType::Float16 || p.type == ElementType::BFloat16) && p.headSize == p.valueSize &&
         (p.headSize == 64 || p.headSize == 128) && tensorMapsAvailable();
}

bool empty(const AttentionProblem& p) { return p.batch == 0 || p.queryLength == 0 || p.heads == 0; }

Span keySpan(const AttentionProblem& p, bool fromZero) {
  const int64_t first =
      fromZero
          ? 0
          : std::max<int64_t>(0, p.keyLength - p.queryLength - std::min(p.window, p.keyLength) + 1) / kSpan * kSpan;
  return {first, divUp(p.keyLength, kSpan) * kSpan - first};
}
Span querySpan(const AttentionProblem& p) {
  const int64_t first = (p.keyLength - p.queryLength) / kSpan * kSpan;
  return {first, divUp(p.keyLength, kSpan) * kSpan - first};
}

template <typename F>
DecaySums<F> decaySums(Call& call, const AttentionProblem& p, Span keys, const void* ready) {
  if (!p.alpha.data) return {};
  const bool withLow = p.type == ElementType::Float32;  // half types do not see what float32 prefixes lose
  if (ready) {
    Arena arena(const_cast<void*>(ready));
    DecaySumsOut<F> sums = takeSums<F>(arena, p.batch, p.heads, keys);
    if (!withLow) sums.prefixLow = nullptr;
    return sums;
  }
  const DecaySumsOut<F> out = takeSums<F>(call.arena, p.batch, p.heads, keys, withLow);
  call.launch([&] { return launchDecaySums<F>(p.alpha, p.batch, p.keyLength, p.heads, keys, out, call.stream); });
  return out;
}

const uint64_t* keyBits(Call& call, const AttentionProblem& p, Span keys) {
  if (!p.mask.data) return nullptr;
  uint64_t* const bits = call.arena.take<uint64_t>(p.batch * keys.tiles());
  call.launch([&] { return launchKeyBits(p.mask, p.maskType, p.batch, p.keyLength, keys, bits, call.stream); });
  return bits;
}

template <typename T>
AttentionArgs<T> commonArgs(Call& call, Kernel kernel, const AttentionProblem& p, const void* sums) {
  AttentionArgs<T> a{};
  a.keys = keySpan(p, sums != nullptr);
  a.queries = querySpan(p);
  a.sums = decaySums<float>(call, p, a.keys, sums);
  a.keyBits = keyBits(call, p, a.keys);
  a.q = rows<T>(call, kernel, p.q, p.batch, p.queryLength, p.heads, p.headSize);
  a.k = rows<T>(call, kernel, p.k, p.batch, p.keyLength, p.kvHeads, p.headSize);
  a.v = rows<T>(call, kernel, p.v, p.batch, p.keyLength, p.kvHeads, p.valueSize);
  a.N = static_cast<int>(p.queryLength);
  a.M = static_cast<int>(p.keyLength);
  a.H = static_cast<int>(p.heads);
  a.group = static_cast<int>(p.heads / p.kvHeads);
  a.window = static_cast<int>(std::min(p.window, p.keyLength));
  a.batch = p.batch;
  a.pairs = {0, static_cast<int>(p.batch * p.kvHeads)};
  a.scale = static_cast<float>(p.scale);
  a.scaleLog2 = static_cast<float>(p.scale * kLog2e);
  return a;
}

/// The tensor-core kernels, `launch(args)`.
template <typename T, typename Launch>
void forwardTiled(Call& call, Kernel kernel, const AttentionForward& p, const void* sums, Launch launch) {
  AttentionArgs<T> a = commonArgs<T>(call, kernel, p, sums);
  a.o = outRows<T>(p.o, p.valueSize);
  a.lse = static_cast<float*>(p.lse.data);
  a.lseBatch = p.lse.strides[0];
  a.lseHead = p.lse.strides[1];
  a.lseRow = p.lse.strides[2];
  call.launch([&] { return launch(a); });
}

/// The stored backward's dS, of as many pairs at a time as there is room for: none where the window is so long that one
/// pair's are too many.
template <typename T>
void takeStoredDs(Call& call, AttentionArgs<T>& a, int64_t mostBytes) {
  a.storedTiles = (a.window + kSumTile - 2) / kSumTile + 1;  // that a tile of queries sees at most
  const int64_t pair = a.group * a.queries.tiles() * a.storedTiles * kSumTile * kSumTile * 2;
  const int64_t room = std::min(mostBytes, kMostStored) / pair, pairs = a.pairs.to;
  if (room <= 0) return;
  a.storedPairs = static_cast<int>(divUp(pairs, divUp(pairs, room)));
  a.storedDs = call.arena.take<uint4>(a.storedPairs * pair / static_cast<int64_t>(sizeof(uint4)));
}

/// `warpRows`: the keys of a warp of the dk/dv kernel. `storedBytes`: as Device's.
template <typename T, typename Launch>
void backwardTiled(Call& call, Kernel kernel, const AttentionBackward& p, const void* sums, int warpRows,
                   int64_t storedBytes, Launch launch) {
  AttentionArgs<T> a = commonArgs<T>(call, kernel, p, sums);
  a.dO = rows<T>(call, kernel, p.dO, p.batch, p.queryLength, p.heads, p.valueSize);
  a.dq = outRows<T>(p.dq, p.headSize);
  a.dk = outRows<T>(p.dk, p.headSize);
  a.dv = outRows<T>(p.dv, p.valueSize);
  const int64_t queryRows = p.batch * p.heads * a.queries.length;
  float* const lse = call.arena.take<float>(queryRows);
  float* const decayedLse = call.arena.take<float>(queryRows);
  float* const delta = call.arena.take<float>(queryRows);
  const bool onePass = kernel == Kernel::Hopper && p.headSize == 64;
  if (onePass) {
    a.dqSums = call.arena.take<float>(queryRows * (p.headSize + 1));
    a.dqCounts = call.arena.take<int>(queryRows / kSumTile + 1);
  }
  if (kernel == Kernel::Hopper && !onePass) takeStoredDs(call, a, storedBytes);
  if (kernel == Kernel::Hopper && !onePass && a.storedPairs == 0) {  // its dq kernel computes them
    a.forwardO = rows<T>(call, kernel, p.o, p.batch, p.queryLength, p.heads, p.valueSize);
    a.lse = static_cast<float*>(const_cast<void*>(p.lse.data));
    a.lseBatch = p.lse.strides[0];
    a.lseHead = p.lse.strides[1];
    a.lseRow = p.lse.strides[2];
  } else {
    call.launch(
        [&] { return launchRowStatistics<T>(p, a.sums, a.keys, a.queries, lse, decayedLse, delta, call.stream); });
  }
  a.rowLse = lse;
  a.rowDecayedLse = decayedLse;
  a.rowDelta = delta;
  if (p.alpha.data) {
    a.boundary = dalphaBoundary(a.window);
    a.boundarySlots = dalphaSlots(a.window);
    const int64_t columns = p.batch * p.heads * a.keys.length, marks = columns / warpRows * (a.boundarySlots + 1);
    a.rowSums = call.arena.take<float>(queryRows);
    a.columnSums = call.arena.take<float>(columns);
    a.warpSums = call.arena.take<float>(marks);
    if (kernel != Kernel::Hopper || p.queryLength < p.keyLength) {  // keys that no query sees are visited by no warp
      call.launch([&] { return cudaMemsetAsync(a.columnSums, 0, columns * sizeof(float), call.stream); });
      call.launch([&] { return cudaMemsetAsync(a.warpSums, 0, marks * sizeof(float), call.stream); });
    }
  }
  call.launch([&] { return launch(a); });
  if (p.alpha.data)
    call.launch([&] {
      return launchDalpha<float>(p, a.keys, a.queries, a.rowSums, a.columnSums, a.warpSums, warpRows, a.boundary,
                                 a.boundarySlots, call.stream);
    });
}

template <MmaKind kind>
void forwardMma(Call& call, const AttentionForward& p, const void* sums) {
  forwardTiled<typename MmaElement<kind>::type>(call, Kernel::MmaSync, p, sums, [&](const auto& a) {
    return launchForwardMma<kind>(a, paddedHead(p), call.stream);
  });
}
template <MmaKind kind>
void backwardMma(Call& call, const AttentionBackward& p, const void* sums) {
  using T = typename MmaElement<kind>::type;
  const int head = paddedHead(p);
  backwardTiled<T>(call, Kernel::MmaSync, p, sums, tiling(Pass::DkDv, sizeof(T), head).warpRows(), 0,
                   [&](const auto& a) { return launchBackwardMma<kind>(a, head, call.stream); });
}

template <typename T>
void forwardHopper(Call& call, const AttentionForward& p, const void* sums, const Device& device) {
  forwardTiled<T>(call, Kernel::Hopper, p, sums, [&](const auto& a) {
    return launchForwardHopper<T>(a, paddedHead(p), device.multiprocessors, call.stream);
  });
}
template <typename T>
void backwardHopper(Call& call, const AttentionBackward& p, const void* sums, const Device& device) {
  backwardTiled<T>(call, Kernel::Hopper, p, sums, kHopperWarpRows, device.storedBytes, [&](const auto& a) {
    return launchBackwardHopper<T>(a, paddedHead(p), device.multiprocessors, call.stream);
  });
}

template <typename T, typename F>
void forwardPlain(Call& call, const AttentionForward& p, const void* ready) {
  const Span keys = keySpan(p, ready != nullptr);
  const DecaySums<F> sums = decaySums<F>(call, p, keys, ready);
  const uint64_t* const bits = keyBits(call, p, keys);
  call.launch([&] { return launchForwardPlain<T, F>(p, sums, bits, keys, call.stream); });
}

template <typename T, typename F>
void backwardPlain(Call& call, const AttentionBackward& p, const void* ready) {
  const Span keys = keySpan(p, ready != nullptr);
  const DecaySums<F> sums = decaySums<F>(call, p, keys, ready);
  const uint64_t* const bits = keyBits(call, p, keys);
  const int64_t queryRows = p.batch * p.heads * p.queryLength;
  F* const delta = call.arena.take<F>(queryRows);
  F* const rowSums = call.arena.take<F>(queryRows);
  const Span queries{p.keyLength - p.queryLength, p.queryLength};
  const int64_t window = std::min(p.window, p.keyLength);
  const int boundary = dalphaBoundary(window), slots = dalphaSlots(window);
  F *columnSums = nullptr, *warpSums = nullptr;
  if (p.alpha.data) {
    const int64_t columns = p.batch * p.heads * keys.length, marks = columns * (slots + 1);
    columnSums = call.arena.take<F>(columns);
    warpSums = call.arena.take<F>(marks);
    call.launch([&] { return cudaMemsetAsync(columnSums, 0, columns * sizeof(F), call.stream); });
    call.launch([&] { return cudaMemsetAsync(warpSums, 0, marks * sizeof(F), call.stream); });
  }
  call.launch([&] {
    return launchBackwardPlain<T, F>(p, sums, bits, keys, delta, rowSums, columnSums, warpSums, boundary, slots,
                                     call.stream);
  });
  if (p.alpha.data)
    call.launch([&] {
      return launchDalpha<F>(p, keys, queries, rowSums, columnSums, warpSums, 1, boundary, slots, call.stream);
    });
}

template <typename T>
void decode(Call& call, const AttentionForward& p, const Device& device, const void* ready) {
  const Span keys = keySpan(p, ready != nullptr);
  const DecaySums<float> sums = decaySums<float>(call, p, keys, ready);
  const uint64_t* const bits = keyBits(call, p, keys);
  const int splits = decodeSplits(p, device);
  float* const partial = call.arena.take<float>(p.batch * p.heads * p.queryLength * splits * (2 + p.valueSize));
  call.launch([&] { return launchDecode<T>(p, sums, bits, keys, splits, partial, call.stream); });
}

void forward(Call& call, Kernel kernel, const AttentionForward& p, const void* sums, const Device& device,
             FloatMode mode) {
  const ElementType type = p.type;
  if (kernel == Kernel::Hopper) {
    if (type == ElementType::Float16)
      forwardHopper<__half>(call, p, sums, device);
    else
      forwardHopper<__nv_bfloat16>(call, p, sums, device);
  } else if (kernel == Kernel::MmaSync) {
    if (type == ElementType::Float16)
      forwardMma<MmaKind::Half>(call, p, sums);
    else if (type == ElementType::BFloat16)
      forwardMma<MmaKind::BFloat16>(call, p, sums);
    else if (mode == FloatMode::Strict)
      forwardMma<MmaKind::Float32Strict>(call, p, sums);
    else
      forwardMma<MmaKind::Float32Tf32>(call, p, sums);
  } else if (kernel == Kernel::Decode) {
    if (type == ElementType::Float16)
      decode<__half>(call, p, device, sums);
    else if (type == ElementType::BFloat16)
      decode<__nv_bfloat16>(call, p, device, sums);
    else
      decode<float>(call, p, device, sums);
  } else {
    if (type == ElementType::Float64)
      forwardPlain<double, double>(call, p, sums);
    else if (type == ElementType::Float16)
      forwardPlain<__half, float>(call, p, sums);
    else if (type == ElementType::BFloat16)
      forwardPlain<__nv_bfloat16, float>(call, p, sums);
    else
      forwardPlain<float, float>(call, p, sums);
  }
}

void backward(Call& call, Kernel kernel, const AttentionBackward& p, const void* sums, const Device& device,
              FloatMode mode) {
  const ElementType type = p.type;
  if (kernel == Kernel::Hopper) {
    if (type == ElementType::Float16)
      backwardHopper<__half>(call, p, sums, device);
    else
      backwardHopper<__nv_bfloat16>(call, p, sums, device);
  } else if (kernel == Kernel::MmaSync) {
    if (type == ElementType::Float16)
      backwardMma<MmaKind::Half>(call, p, sums);
    else if (type == ElementType::BFloat16)
      backwardMma<MmaKind::BFloat16>(call, p, sums);
    else if (mode == FloatMode::Strict)
      backwardMma<MmaKind::Float32Strict>(call, p, sums);
    else
      backwardMma<MmaKind::Float32Tf32>(call, p, sums);
  } else {
    if (type == ElementType::Float64)
      backwardPlain<double, double>(call, p, sums);
    else if (type == ElementType::Float16)
      backwardPlain<__half, float>(call, p, sums);
    else if (type == ElementType::BFloat16)
      backwardPlain<__nv_bfloat16, float>(call, p, sums);
    else
      backwardPlain<float, float>(call, p, sums);
  }
}

template <typename Bits, typename DecayBits>
cudaError_t zeroKeyGradients(const AttentionBackward& p, cudaStream_t stream) {
  cudaError_t e = launchZero<Bits>(p.dk, p.batch, p.keyLength, p.kvHeads, p.headSize, stream);
  if (e == cudaSuccess) e = launchZero<Bits>(p.dv, p.batch, p.keyLength, p.kvHeads, p.valueSize, stream);
  if (e == cudaSuccess && p.dalpha.data) e = launchZero<DecayBits>(p.dalpha, p.batch, p.keyLength, p.heads, 1, stream);
  return e;
}

/// Without a query the keys have no gradient.
Result backwardOfNothing(const AttentionBackward& p, cudaStream_t stream) {
  cudaError_t e;
  if (p.type == ElementType::Float64)
    e = zeroKeyGradients<uint64_t, uint64_t>(p, stream);
  else if (p.type == ElementType::Float32)
    e = zeroKeyGradients<uint32_t, uint32_t>(p, stream);
  else
    e = zeroKeyGradients<uint16_t, uint32_t>(p, stream);
  return {e == cudaSuccess ? Status::Ok : Status::CudaError, e};
}

}  // namespace

Result queryDevice(int ordinal, Device* device) {
  int major = 0, minor = 0, multiprocessors = 0, shared = 0;
  cudaError_t e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal);
  if (e == cudaSuccess) e = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal);
  if (e == cudaSuccess) e = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, ordinal);
  if (e == cudaSuccess) e = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, ordinal);
  if (e != cudaSuccess) return {Status::CudaError, e};
  device->ordinal = ordinal;
  device->major = major;
  device->minor = minor;
  device->multiprocessors = multiprocessors;
  device->sharedMemoryPerBlock = static_cast<size_t>(shared);
  return {};
}

Selection selectKernel(const AttentionProblem& p, const Device& device, FloatMode, bool isBackward) {
  if (p.type == ElementType::Bool) return {Kernel::None, "BOOL is no element type"};
  if (p.headSize < 1 || p.valueSize < 1 || p.headSize > kMostHead || p.valueSize > kMostHead)
    return {Kernel::None, "head sizes from 1 to 256 are supported"};
  if (p.keyLength > kMaxLength) return {Kernel::None, "more than 2^30 keys"};
  if (p.batch > kMostBatch || p.batch * p.heads * divUp(p.keyLength + kSpan, 4) > kMaxGrid)
    return {Kernel::None, "batch x heads x length exceeds the grid"};
  if (device.major * 10 + device.minor < 75) return {Kernel::None, "compute capability below 7.5"};
  if (p.type == ElementType::Float64) return {Kernel::Plain, "DOUBLE has no tensor-core tile"};
  if (!(p.scale >= kSmallestScale && p.scale <= 1e30)) return {Kernel::Plain, "scale is not positive, or extreme"};
  const int64_t bytes = elementBytes(p.type);
  if (!isBackward && p.queryLength <= kDecodeQueries && rowsAligned(p.k, p.headSize, bytes) &&
      rowsAligned(p.v, p.valueSize, bytes) && p.q.strides[3] == 1)
    return {Kernel::Decode, "few queries: the keys are split"};
  if (device.major < 8) return {Kernel::Plain, "compute capability below 8.0 has no asynchronous copies"};
  if (hopperTakes(p, device)) return {Kernel::Hopper, "tensor cores, wgmma and TMA"};
  return {Kernel::MmaSync, "tensor cores, mma.sync"};
}

size_t attentionForwardWorkspace(const AttentionForward& p, const Device& device, FloatMode mode) {
  const Selection s = selectKernel(p, device, mode, false);
  if (s.kernel == Kernel::None || empty(p)) return 0;
  Call call{Arena(nullptr), false, nullptr};
  forward(call, s.kernel, p, nullptr, device, mode);
  return call.arena.used();
}

size_t attentionBackwardWorkspace(const AttentionBackward& p, const Device& device, FloatMode mode) {
  const Selection s = selectKernel(p, device, mode, true);
  if (s.kernel == Kernel::None || empty(p)) return 0;
  Call call{Arena(nullptr), false, nullptr};
  backward(call, s.kernel, p, nullptr, device, mode);
  return call.arena.used();
}

Result attentionForwardWithSums(const AttentionForward& p, const void* sums, const Device& device, FloatMode mode,
                                void* workspace, size_t bytes, cudaStream_t stream) {
  if (empty(p)) return {};
  return execute(selectKernel(p, device, mode, false), workspace, bytes, stream,
                 [&](Call& call, Kernel kernel) { forward(call, kernel, p, sums, device, mode); });
}

Result attentionBackwardWithSums(const AttentionBackward& p, const void* sums, const Device& device, FloatMode mode,
                                 void* workspace, size_t bytes, cudaStream_t stream) {
  if (empty(p)) return backwardOfNothing(p, stream);
  return execute(selectKernel(p, device, mode, true), workspace, bytes, stream,
                 [&](Call& call, Kernel kernel) { backward(call, kernel, p, sums, device, mode); });
}

Result attentionForward(const AttentionForward& p, const Device& device, FloatMode mode, void* workspace, size_t bytes,
                        cudaStream_t stream) {
  return attentionForwardWithSums(p, nullptr, device, mode, workspace, bytes, stream);
}

Result attentionBackward(const AttentionBackward& p, const Device& device, FloatMode mode, void* workspace,
                         size_t bytes, cudaStream_t stream) {
  return attentionBackwardWithSums(p, nullptr, device, mode, workspace, bytes, stream);
}

}  // namespace gatedfwa::cuda
