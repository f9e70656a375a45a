// Native sparse attention: which kernel runs, what scratch memory it takes, and the launches in order.
#include "call.h"
#include "nsa_internal.h"

namespace gatedfwa::cuda {
namespace {

constexpr int64_t kMostMmaHead = 128;
constexpr int64_t kSegmentRows = 4096;  ///< (query, head) rows that a key-stationary block takes at least

int64_t keysOf(const NsaCompressedProblem& p) { return p.blocks; }
int64_t keysOf(const NsaSelectedProblem& p) { return p.keyLength; }
bool empty(const NsaProblem& p) { return p.batch == 0 || p.queryLength == 0 || p.heads == 0; }
int paddedHead(const NsaProblem& p) { return std::max(p.headSize, p.valueSize) <= 64 ? 64 : 128; }
int64_t groupOf(const NsaProblem& p) { return p.heads / p.kvHeads; }

CompressedRule ruleOf(const NsaCompressedProblem& p) {
  return {static_cast<int>(p.blockLength), static_cast<int>(p.stride)};
}
SelectedRule ruleOf(const NsaSelectedProblem& p) {
  return {static_cast<const int*>(p.indices.data),
          p.indices.strides[0],
          p.indices.strides[1],
          p.indices.strides[2],
          p.indices.strides[3],
          static_cast<int>(p.topN),
          static_cast<int>(p.selectionBlock)};
}

/// What every NSA kernel asks for.
Selection selectKernelFor(const NsaProblem& p, int64_t widest, const Device& device) {
  if (p.type == ElementType::Bool) return {Kernel::None, "BOOL is no element type"};
  if (p.headSize < 1 || p.headSize > kMostHead || p.valueSize > kMostHead)
    return {Kernel::None, "head sizes from 1 to 256 are supported"};
  if (p.keyLength > kMaxLength || widest > kMaxLength) return {Kernel::None, "more than 2^30 keys, or larger blocks"};
  if (p.batch * p.heads * divUp(p.keyLength + kSpan, 4) > kMaxGrid)
    return {Kernel::None, "batch x heads x length exceeds the grid"};
  if (p.mask.data && p.batch > kMostBatch) return {Kernel::None, "a mask of more than 65535 batch entries"};
  if (device.major * 10 + device.minor < 75) return {Kernel::None, "compute capability below 7.5"};
  if (p.type == ElementType::Float64) return {Kernel::Plain, "DOUBLE has no tensor-core tile"};
  if (p.type == ElementType::Float32) return {Kernel::Plain, "FLOAT is multiplied in float32"};
  if (!(p.scale > 0 && p.scale <= 1e30)) return {Kernel::Plain, "scale is not positive, or extreme"};
  if (device.major < 8) return {Kernel::Plain, "compute capability below 8.0 has no asynchronous copies"};
  if (std::max(p.headSize, p.valueSize) > kMostMmaHead) return {Kernel::Plain, "head sizes above 128"};
  if (groupOf(p) > 32767) return {Kernel::Plain, "more than 32767 heads in a group"};
  return {Kernel::MmaSync, "tensor cores, mma.sync"};
}

/// dk and dv by wgmma: the copy engine gathers whole tokens, and knows of no mask.
Selection selectBackward(const NsaProblem& p, int64_t unitKeys, Selection s, const Device& device) {
  const int64_t group = groupOf(p);
  const bool tiles = group == 8 || group == 16 || group == 32 || group == 64;
  if (s.kernel == Kernel::MmaSync && device.major == 9 && device.minor == 0 && tiles && unitKeys % kNsaTile == 0 &&
      !p.mask.data && tensorMapsAvailable())
    return {Kernel::Hopper, "tensor cores; dk and dv by wgmma and TMA"};
  return s;
}

struct KeyBits {
  const uint64_t* bits = nullptr;
  int64_t words = 0;
};
KeyBits keyBits(Call& call, const NsaProblem& p, int64_t keys) {
  if (!p.mask.data || keys == 0) return {};
  const Span span{0, divUp(keys, kSpan) * kSpan};
  uint64_t* const bits = call.arena.take<uint64_t>(p.batch * span.tiles());
  call.launch([&] { return launchKeyBits(p.mask, p.maskType, p.batch, keys, span, bits, call.stream); });
  return {bits, span.tiles()};
}

/// Keys of a unit of the lists, and (query, unit) pairs in all lists, at most.
int64_t unitKeys(const NsaCompressedProblem&) { return kNsaTile; }
int64_t unitKeys(const NsaSelectedProblem& p) { return p.selectionBlock; }
int64_t mostPairs(const NsaCompressedProblem& p) {
  int64_t pairs = 0;
  for (int64_t first = 0; first < p.blocks; first += kNsaTile)
    pairs += std::min(p.queryLength, p.keyLength - (first * p.stride + p.blockLength - 1));
  return p.batch * p.kvHeads * pairs;
}
int64_t mostPairs(const NsaSelectedProblem& p) { return p.batch * p.kvHeads * p.queryLength * p.topN; }
int64_t listLength(const NsaCompressedProblem&) { return 0; }
int64_t listLength(const NsaSelectedProblem& p) { return p.queryLength * p.topN; }
cudaError_t fillLists(const NsaCompressedProblem& p, const NsaLists& lists, cudaStream_t stream) {
  return launchNsaCompressedLists(ruleOf(p), static_cast<int>(p.queryLength), static_cast<int>(p.keyLength), lists,
                                  stream);
}
cudaError_t fillLists(const NsaSelectedProblem& p, const NsaLists& lists, cudaStream_t stream) {
  return launchNsaSelectedLists(ruleOf(p), p.kvHeads, static_cast<int>(p.queryLength), static_cast<int>(p.keyLength),
                                lists, stream);
}

/// `split`: long lists are cut into segments.
template <typename Problem>
NsaLists lists(Call& call, const Problem& p, const Device& device, bool split) {
  NsaLists x{};
  x.heads = static_cast<int>(p.batch * p.kvHeads);
  x.unitKeys = static_cast<int>(unitKeys(p));
  x.blocks = static_cast<int>(divUp(keysOf(p), x.unitKeys));
  if (x.blocks == 0) return x;
  const int64_t units = static_cast<int64_t>(x.heads) * x.blocks, pairs = mostPairs(p);
  const int64_t tasks = 8 * std::max(1, device.multiprocessors);  // wanted: enough to even out
  x.segment = static_cast<int>(p.queryLength);
  if (split)
    x.segment = static_cast<int>(std::min<int64_t>(
        p.queryLength, std::max(divUp(kSegmentRows, groupOf(p)), divUp(pairs * x.subTiles(), tasks))));
  x.mostSegments = units + (split ? pairs / x.segment : 0);
  x.mostPartials = split ? 2 * pairs / x.segment : 0;
  x.listLength = listLength(p);
  x.tokens = x.listLength > 0 ? call.arena.take<int>(x.heads * x.listLength) : nullptr;
  x.count = call.arena.take<int>(units);
  x.offset = x.listLength > 0 ? call.arena.take<int>(units * kNsaListParts) : nullptr;
  x.segmentStart = call.arena.take<int>(units + 1);
  x.partialStart = call.arena.take<int>(units + 1);
  call.launch([&] { return fillLists(p, x, call.stream); });
  return x;
}

template <typename T, typename Rule, typename Problem>
NsaArgs<T, Rule> commonArgs(Call& call, Kernel kernel, const Problem& p, const Device& device) {
  NsaArgs<T, Rule> a{};
  const int64_t keys = keysOf(p);
  const KeyBits bits = keyBits(call, p, keys);
  a.keyBits = bits.bits;
  a.keyWords = bits.words;
  a.q = rows<T>(call, kernel, p.q, p.batch, p.queryLength, p.heads, p.headSize);
  a.k = rows<T>(call, kernel, p.k, p.batch, keys, p.kvHeads, p.headSize);
  a.v = rows<T>(call, kernel, p.v, p.batch, keys, p.kvHeads, p.valueSize);
  const auto legal = [&](const Rows<T>& x) {
    return tensorMapLegal({x.data, {x.batch, x.row, x.head, 1}}, p.batch, keys, p.kvHeads, x.width, sizeof(T));
  };
  a.bulk = device.major >= 9 && tensorMapsAvailable() && legal(a.k) && legal(a.v);
  a.N = static_cast<int>(p.queryLength);
  a.M = static_cast<int>(p.keyLength);
  a.H = static_cast<int>(p.heads);
  a.kvHeads = static_cast<int>(p.kvHeads);
  a.group = static_cast<int>(groupOf(p));
  a.keys = static_cast<int>(keys);
  a.batch = p.batch;
  a.scale = static_cast<float>(p.scale);
  a.scaleLog2 = static_cast<float>(p.scale * kLog2e);
  a.rule = ruleOf(p);
  a.multiprocessors = std::max(1, device.multiprocessors);
  a.itemsTaken = call.arena.take<unsigned int>(1);
  call.launch([&] { return cudaMemsetAsync(a.itemsTaken, 0, sizeof(unsigned int), call.stream); });
  return a;
}

template <typename T, typename Problem>
void forwardMma(Call& call, Kernel kernel, const NsaForward<Problem>& p, const Device& device) {
  using Rule = decltype(ruleOf(p));
  NsaArgs<T, Rule> a = commonArgs<T, Rule>(call, kernel, p, device);
  a.o = outRows<T>(p.o, p.valueSize);
  a.lse = static_cast<float*>(p.lse.data);
  a.lseBatch = p.lse.strides[0];
  a.lseHead = p.lse.strides[1];
  a.lseRow = p.lse.strides[2];
  call.launch([&] { return launchNsaForward<T, Rule>(a, paddedHead(p), device.sharedMemoryPerBlock, call.stream); });
}

/// delta and lse by the kernel that the windowed attention has for it.
template <typename T, typename Problem>
cudaError_t rowStatistics(const NsaBackward<Problem>& p, Span queries, float* lse, float* delta, cudaStream_t stream) {
  AttentionBackward x{};
  x.batch = p.batch;
  x.queryLength = p.queryLength;
  x.keyLength = p.keyLength;
  x.heads = p.heads;
  x.valueSize = p.valueSize;
  x.o = p.o;
  x.lse = p.lse;
  x.dO = p.dO;
  return launchRowStatistics<T>(x, {}, queries, queries, lse, lse, delta, stream);
}

template <typename T, typename Problem>
void backwardMma(Call& call, Kernel kernel, const NsaBackward<Problem>& p, const Device& device) {
  using Rule = decltype(ruleOf(p));
  NsaArgs<T, Rule> a = commonArgs<T, Rule>(call, kernel, p, device);
  const int head = paddedHead(p);
  a.dO = rows<T>(call, kernel, p.dO, p.batch, p.queryLength, p.heads, p.valueSize);
  a.dq = outRows<T>(p.dq, p.headSize);
  a.dk = outRows<T>(p.dk, p.headSize);
  a.dv = outRows<T>(p.dv, p.valueSize);
  const int64_t first = (p.keyLength - p.queryLength) / kSpan * kSpan;
  a.queries = {first, divUp(p.keyLength, kSpan) * kSpan - first};
  const int64_t queryRows = p.batch * p.heads * a.queries.length;
  float* const lse = call.arena.take<float>(queryRows);
  float* const delta = call.arena.take<float>(queryRows);
  call.launch([&] { return rowStatistics<T>(p, a.queries, lse, delta, call.stream); });
  a.rowLse = lse;
  a.rowDelta = delta;
  call.launch([&] { return launchNsaDq<T, Rule>(a, head, device.sharedMemoryPerBlock, call.stream); });
  a.lists = lists(call, p, device, true);
  if (a.lists.blocks == 0) return;
  a.partials = call.arena.take<float>(a.lists.mostPartials * a.lists.subTiles() * 2 * kNsaTile * head);
  call.launch([&] {
    return kernel == Kernel::Hopper ? launchNsaDkDvHopper<T, Rule>(a, head, call.stream)
                                    : launchNsaDkDv<T, Rule>(a, head, call.stream);
  });
  if (a.lists.mostPartials > 0) call.launch([&] { return launchNsaReduce<T, Rule>(a, head, call.stream); });
}

template <typename T, typename F, typename Problem>
void forwardPlain(Call& call, const NsaForward<Problem>& p) {
  const KeyBits bits = keyBits(call, p, keysOf(p));
  call.launch([&] { return launchNsaForwardPlain<T, F, Problem>(p, bits.bits, bits.words, call.stream); });
}

template <typename T, typename F, typename Problem>
void backwardPlain(Call& call, const NsaBackward<Problem>& p, const Device& device) {
  const KeyBits bits = keyBits(call, p, keysOf(p));
  F* const delta = call.arena.take<F>(p.batch * p.heads * p.queryLength);
  const NsaLists x = lists(call, p, device, false);
  call.launch([&] { return launchNsaBackwardPlain<T, F, Problem>(p, bits.bits, bits.words, x, delta, call.stream); });
}

template <typename Problem>
void forward(Call& call, Kernel kernel, const NsaForward<Problem>& p, const Device& device) {
  if (kernel != Kernel::Plain)
    return p.type == ElementType::Float16 ? forwardMma<__half>(call, kernel, p, device)
                                          : forwardMma<__nv_bfloat16>(call, kernel, p, device);
  if (p.type == ElementType::Float64)
    forwardPlain<double, double>(call, p);
  else if (p.type == ElementType::Float16)
    forwardPlain<__half, float>(call, p);
  else if (p.type == ElementType::BFloat16)
    forwardPlain<__nv_bfloat16, float>(call, p);
  else
    forwardPlain<float, float>(call, p);
}

template <typename Problem>
void backward(Call& call, Kernel kernel, const NsaBackward<Problem>& p, const Device& device) {
  if (kernel != Kernel::Plain)
    return p.type == ElementType::Float16 ? backwardMma<__half>(call, kernel, p, device)
                                          : backwardMma<__nv_bfloat16>(call, kernel, p, device);
  if (p.type == ElementType::Float64)
    backwardPlain<double, double>(call, p, device);
  else if (p.type == ElementType::Float16)
    backwardPlain<__half, float>(call, p, device);
  else if (p.type == ElementType::BFloat16)
    backwardPlain<__nv_bfloat16, float>(call, p, device);
  else
    backwardPlain<float, float>(call, p, device);
}

template <typename T>
void selectMma(Call& call, Kernel kernel, const NsaSelect& p, const Device& device) {
  NsaSelectArgs<T> a{};
  const KeyBits bits = keyBits(call, p, p.blocks);
  a.keyBits = bits.bits;
  a.keyWords = bits.words;
  a.q = rows<T>(call, kernel, p.q, p.batch, p.queryLength, p.heads, p.headSize);
  a.k = rows<T>(call, kernel, p.k, p.batch, p.blocks, p.kvHeads, p.headSize);
  a.lse = static_cast<const float*>(p.lse.data);
  a.lseBatch = p.lse.strides[0];
  a.lseHead = p.lse.strides[1];
  a.lseRow = p.lse.strides[2];
  a.indices = static_cast<int*>(p.indices.data);
  a.indicesBatch = p.indices.strides[0];
  a.indicesRow = p.indices.strides[1];
  a.indicesHead = p.indices.strides[2];
  a.indicesElement = p.indices.strides[3];
  a.N = static_cast<int>(p.queryLength);
  a.M = static_cast<int>(p.keyLength);
  a.H = static_cast<int>(p.heads);
  a.kvHeads = static_cast<int>(p.kvHeads);
  a.group = static_cast<int>(groupOf(p));
  a.keys = static_cast<int>(p.blocks);
  a.batch = p.batch;
  a.scaleLog2 = static_cast<float>(p.scale * kLog2e);
  a.stride = static_cast<int>(p.stride);
  a.pieces = static_cast<int>(p.blockLength / p.stride);
  a.perSelection = static_cast<int>(p.selectionBlock / p.stride);
  a.selectionBlock = static_cast<int>(p.selectionBlock);
  a.topN = static_cast<int>(p.topN);
  while ((1 << a.logGroup) < a.group) ++a.logGroup;
  const int head = p.headSize <= 64 ? 64 : 128;
  call.launch([&] { return launchNsaSelect<T>(a, head, device.sharedMemoryPerBlock, call.stream); });
}

template <typename T, typename F>
void selectPlain(Call& call, const NsaSelect& p) {
  const KeyBits bits = keyBits(call, p, p.blocks);
  const int64_t places = p.batch * p.queryLength * p.kvHeads * p.topN;
  F* const best = call.arena.take<F>(places);
  int* const chosen = call.arena.take<int>(places);
  call.launch([&] { return launchNsaSelectPlain<T, F>(p, bits.bits, bits.words, best, chosen, call.stream); });
}

void select(Call& call, Kernel kernel, const NsaSelect& p, const Device& device) {
  if (kernel != Kernel::Plain)
    return p.type == ElementType::Float16 ? selectMma<__half>(call, kernel, p, device)
                                          : selectMma<__nv_bfloat16>(call, kernel, p, device);
  if (p.type == ElementType::Float64)
    selectPlain<double, double>(call, p);
  else if (p.type == ElementType::Float16)
    selectPlain<__half, float>(call, p);
  else if (p.type == ElementType::BFloat16)
    selectPlain<__nv_bfloat16, float>(call, p);
  else
    selectPlain<float, float>(call, p);
}

/// Without a query the keys have no gradient.
Result backwardOfNothing(const NsaProblem& p, int64_t keys, const Output& dk, const Output& dv, cudaStream_t stream) {
  const auto zero = [&](const Output& x, int64_t width) {
    return p.type == ElementType::Float64   ? launchZero<uint64_t>(x, p.batch, keys, p.kvHeads, width, stream)
           : p.type == ElementType::Float32 ? launchZero<uint32_t>(x, p.batch, keys, p.kvHeads, width, stream)
                                            : launchZero<uint16_t>(x, p.batch, keys, p.kvHeads, width, stream);
  };
  cudaError_t e = zero(dk, p.headSize);
  if (e == cudaSuccess) e = zero(dv, p.valueSize);
  return {e == cudaSuccess ? Status::Ok : Status::CudaError, e};
}

template <typename Params, typename Body>
size_t workspace(const Params& p, Selection selection, Body body) {
  if (selection.kernel == Kernel::None || empty(p)) return 0;
  Call call{Arena(nullptr), false, nullptr};
  body(call, selection.kernel);
  return call.arena.used();
}

template <typename Params>
size_t forwardWorkspace(const Params& p, const Device& device) {
  return workspace(p, selectNsaKernel(p, device, false),
                   [&](Call& call, Kernel kernel) { forward(call, kernel, p, device); });
}
template <typename Params>
size_t backwardWorkspace(const Params& p, const Device& device) {
  return workspace(p, selectNsaKernel(p, device, true),
                   [&](Call& call, Kernel kernel) { backward(call, kernel, p, device); });
}
template <typename Params>
Result runForward(const Params& p, const Device& device, void* memory, size_t bytes, cudaStream_t stream) {
  if (empty(p)) return {};
  return execute(selectNsaKernel(p, device, false), memory, bytes, stream,
                 [&](Call& call, Kernel kernel) { forward(call, kernel, p, device); });
}
template <typename Params>
Result runBackward(const Params& p, const Device& device, void* memory, size_t bytes, cudaStream_t stream) {
  if (empty(p)) return backwardOfNothing(p, keysOf(p), p.dk, p.dv, stream);
  return execute(selectNsaKernel(p, device, true), memory, bytes, stream,
                 [&](Call& call, Kernel kernel) { backward(call, kernel, p, device); });
}

}  // namespace

Selection selectNsaKernel(const NsaCompressedProblem& p, const Device& device, bool isBackward) {
  const Selection s = selectKernelFor(p, std::max(p.blockLength, p.stride), device);
  return isBackward ? selectBackward(p, unitKeys(p), s, device) : s;
}

Selection selectNsaKernel(const NsaSelectedProblem& p, const Device& device, bool isBackward) {
  if (p.queryLength * p.topN > kMaxGrid) return {Kernel::None, "more than 2^31 chosen blocks"};
  const Selection s = selectKernelFor(p, p.selectionBlock, device);
  return isBackward ? selectBackward(p, unitKeys(p), s, device) : s;
}

Selection selectNsaKernel(const NsaSelect& p, const Device& device) {
  const Selection s = selectKernelFor(p, p.selectionBlock, device);
  if (s.kernel != Kernel::MmaSync) return s;
  if (groupOf(p) > kNsaSelectMostGroup) return {Kernel::Plain, "more than 32 heads in a group"};
  if (p.topN > kNsaSelectMostN) return {Kernel::Plain, "topN above 32"};
  return s;
}

size_t nsaForwardWorkspace(const NsaCompressedForward& p, const Device& device) { return forwardWorkspace(p, device); }
size_t nsaForwardWorkspace(const NsaSelectedForward& p, const Device& device) { return forwardWorkspace(p, device); }
size_t nsaBackwardWorkspace(const NsaCompressedBackward& p, const Device& device) {
  return backwardWorkspace(p, device);
}
size_t nsaBackwardWorkspace(const NsaSelectedBackward& p, const Device& device) { return backwardWorkspace(p, device); }
size_t nsaSelectWorkspace(const NsaSelect& p, const Device& device) {
  return workspace(p, selectNsaKernel(p, device), [&](Call& call, Kernel kernel) { select(call, kernel, p, device); });
}

Result nsaForward(const NsaCompressedForward& p, const Device& device, void* memory, size_t bytes,
                  cudaStream_t stream) {
  return runForward(p, device, memory, bytes, stream);
}
Result nsaForward(const NsaSelectedForward& p, const Device& device, void* memory, size_t bytes, cudaStream_t stream) {
  return runForward(p, device, memory, bytes, stream);
}
Result nsaBackward(const NsaCompressedBackward& p, const Device& device, void* memory, size_t bytes,
                   cudaStream_t stream) {
  return runBackward(p, device, memory, bytes, stream);
}
Result nsaBackward(const NsaSelectedBackward& p, const Device& device, void* memory, size_t bytes,
                   cudaStream_t stream) {
  return runBackward(p, device, memory, bytes, stream);
}
Result nsaSelect(const NsaSelect& p, const Device& device, void* memory, size_t bytes, cudaStream_t stream) {
  if (empty(p)) return {};
  return execute(selectNsaKernel(p, device), memory, bytes, stream,
                 [&](Call& call, Kernel kernel) { select(call, kernel, p, device); });
}

}  // namespace gatedfwa::cuda
