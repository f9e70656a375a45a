#include "offload/cuda_accelerator.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <new>
#include <type_traits>

#include "kernel_door.h"
#include "offload/pipeline.h"

namespace gatedfwa::cuda {
namespace {

int64_t bytesOf(ElementType type) {
  switch (type) {
    case ElementType::Float64:
      return 8;
    case ElementType::Float32:
      return 4;
    case ElementType::Bool:
      return 1;
    default:
      return 2;
  }
}

/// Of decays and log-sum-exp.
int64_t sumBytesOf(ElementType type) { return type == ElementType::Float64 ? 8 : 4; }

/// How an operand lies in memory, and what of it belongs to a key/value head.
enum class Layout {
  Heads,   ///< [B, length, heads, size]: some of its heads
  Tokens,  ///< [B, length, size]: some elements of each row; all rows go to the device whole
  Lse      ///< [B, heads, length]: some of its heads
};

/// Keys that no query sees stay on the host.
AttentionForward withoutUnseenKeys(AttentionForward p) {
  const int64_t seen = std::min(p.keyLength, p.queryLength + std::min(p.window, p.keyLength) - 1);
  const int64_t unseen = p.keyLength - seen;
  const auto advance = [&](Input& x, int64_t bytes) {
    if (x.data) x.data = static_cast<const char*>(x.data) + unseen * x.strides[1] * bytes;
  };
  advance(p.k, bytesOf(p.type));
  advance(p.v, bytesOf(p.type));
  advance(p.alpha, sumBytesOf(p.type));
  advance(p.mask, bytesOf(p.maskType));
  p.keyLength = seen;
  return p;
}
template <typename Params>
const Params& withoutUnseenKeys(const Params& p) {
  return p;
}

int64_t keysOf(const AttentionProblem& p) { return p.keyLength; }
int64_t keysOf(const NsaCompressedProblem& p) { return p.blocks; }
int64_t keysOf(const NsaSelectedProblem& p) { return p.keyLength; }

/// A call's operands as rows of the host and, for its pieces, as tensors on the device.
template <typename Params>
class KernelJob : public Job {
 public:
  explicit KernelJob(const Params& params) : whole_(withoutUnseenKeys(params)) {
    const Params& p = whole_;
    const int64_t bytes = bytesOf(p.type), sumBytes = sumBytesOf(p.type);
    if constexpr (kIsGate<Params>) {
      const auto add = [&](auto tensor) { this->add(tensor, Layout::Tokens, bytes, p.length, 1, p.heads, 0); };
      add(&Params::h);
      add(&Params::beta);
      if constexpr (kIsBackward<Params>) {
        add(&Params::dalpha);
        add(&Params::dh);
        add(&Params::dbeta);
      } else {
        add(&Params::alpha);
      }
    } else {
      batch = p.batch;
      unitsPerBatch = p.kvHeads;
      const int64_t keys = keysOf(p), group = p.heads / p.kvHeads;
      const auto addQueries = [&](auto tensor, int64_t size) {
        add(tensor, Layout::Heads, bytes, p.queryLength, p.heads, size, group);
      };
      const auto addKeys = [&](auto tensor, int64_t size) {
        add(tensor, Layout::Heads, bytes, keys, p.kvHeads, size, 1);
      };
      addQueries(&Params::q, p.headSize);
      addKeys(&Params::k, p.headSize);
      addKeys(&Params::v, p.valueSize);
      add(&Params::mask, Layout::Tokens, bytesOf(p.maskType), keys, 1, 1, 0);
      if constexpr (kIsWindow<Params>) add(&Params::alpha, Layout::Tokens, sumBytes, keys, 1, p.heads, group);
      if constexpr (kIsSelect<Params> || kIsSelected<Params>)
        add(&Params::indices, Layout::Heads, 4, p.queryLength, p.kvHeads, p.topN, 1);
      add(&Params::lse, Layout::Lse, sumBytes, p.queryLength, p.heads, 1, group);
      if constexpr (!kIsSelect<Params>) addQueries(&Params::o, p.valueSize);
      if constexpr (kIsBackward<Params>) {
        addQueries(&Params::dO, p.valueSize);
        addQueries(&Params::dq, p.headSize);
        addKeys(&Params::dk, p.headSize);
        addKeys(&Params::dv, p.valueSize);
        if constexpr (kIsWindow<Params>) add(&Params::dalpha, Layout::Tokens, sumBytes, keys, 1, p.heads, group);
      }
    }
  }

  /// The problem that a piece works on. Operands that have no array yet lie at an address that is as aligned.
  Params piece(const PieceRange& range) const {
    Params p = whole_;
    if constexpr (!kIsGate<Params>) {
      p.batch = range.batch1 - range.batch0;
      p.kvHeads = range.unit1 - range.unit0;
      p.heads = p.kvHeads * (whole_.heads / whole_.kvHeads);
    }
    for (const Binding& bind : bindings_) bind(*this, range, p);
    return p;
  }

 private:
  using Binding = std::function<void(const KernelJob&, const PieceRange&, Params&)>;

  /// `perUnit`: heads, or elements of a row, that belong to a key/value head. An absent operand is left out.
  template <typename Tensor, typename Owner>
  void add(Tensor Owner::*tensor, Layout layout, int64_t elementBytes, int64_t length, int64_t heads, int64_t size,
           int64_t perUnit) {
    const Tensor& x = whole_.*tensor;
    if (x.data == nullptr) return;
    char* const data = static_cast<char*>(const_cast<void*>(static_cast<const void*>(x.data)));
    HostRows host{data, elementBytes, whole_.batch, heads, length, size, x.strides[0], 0, x.strides[1], 1};
    switch (layout) {
      case Layout::Heads:
        host.planeStride = x.strides[2];
        host.elementStride = x.strides[3];
        break;
      case Layout::Tokens:
        if (size > 1) host.elementStride = x.strides[2];
        break;
      case Layout::Lse:
        host.planeStride = x.strides[1];
        host.rowStride = x.strides[2];
    }
    const size_t index = operands.size();
    operands.push_back({host, std::is_same_v<Tensor, Output>, layout == Layout::Tokens ? 0 : perUnit, nullptr});
    bindings_.push_back([=](const KernelJob& job, const PieceRange& range, Params& p) {
      const Operand& operand = job.operands[index];
      const HostRows& h = operand.host;
      char* const array = operand.array ? operand.array->address() : reinterpret_cast<char*>(kAlignedAddress);
      const int64_t row = (range.batch0 * h.planes + range.unit0 * operand.planesPerUnit) * h.rows;
      const int64_t within = layout == Layout::Tokens ? range.unit0 * perUnit * h.elementBytes : 0;
      const int64_t batchStride = h.planes * h.rows * h.width, planeStride = h.rows * h.width;
      Tensor& on = p.*tensor;
      on.data = array + row * h.rowBytes() + within;
      if (layout == Layout::Heads)
        on = {on.data, {batchStride, h.width, planeStride, 1}};
      else if (layout == Layout::Tokens)
        on = {on.data, {batchStride, h.width, 1, 0}};
      else
        on = {on.data, {batchStride, planeStride, 1, 0}};
    });
  }

  static constexpr uintptr_t kAlignedAddress = 4096;
  const Params whole_;
  std::vector<Binding> bindings_;
};

class CudaAccelerator final : public Accelerator {
 public:
  Outcome open(const AcceleratorOptions& options) {
    cudaDeviceProp properties{};
    cudaError_t e = cudaSetDevice(options.ordinal);
    if (e == cudaSuccess) e = cudaGetDeviceProperties(&properties, options.ordinal);
    if (e == cudaSuccess && !queryDevice(options.ordinal, &device_)) e = cudaErrorInvalidDevice;
    if (e != cudaSuccess) return {Outcome::Failed, cudaGetErrorString(e)};
    name_ = "cuda:" + std::to_string(options.ordinal) + ' ' + properties.name + " (sm_" +
            std::to_string(device_.major) + std::to_string(device_.minor) + ')';
    if (device_.major * 10 + device_.minor < 75)
      return {Outcome::Failed, name_ + ": compute capability 7.5 or newer is needed"};
    int pools = 0;
    cudaDeviceGetAttribute(&pools, cudaDevAttrMemoryPoolsSupported, options.ordinal);
    if (!pools) return {Outcome::Failed, name_ + ": the driver has no memory pools; CUDA 11.2 or newer is needed"};
    mode_ = options.tf32 ? FloatMode::Tf32 : FloatMode::Strict;
    const int64_t whole = static_cast<int64_t>(properties.totalGlobalMem);
    const int64_t cache = options.cacheLimit >= 0 ? options.cacheLimit : whole / 4;
    resident_.open(cache);
    const int64_t limit = options.memoryLimit > 0 ? options.memoryLimit : whole;
    device_.limitMemory(limit);
    e = memory_.open(options.ordinal, limit, cache);
    if (e != cudaSuccess) return {Outcome::Failed, name_ + ": " + cudaGetErrorString(e)};
    return {};
  }

  const std::string& name() const override { return name_; }

  const char* refusal(const KernelCall& call) const override {
    return std::visit(
        [this](const auto& params) -> const char* {
          const KernelJob job(params);
          for (const Operand& operand : job.operands)
            if (operand.host.rowBytes() > kSlotBytes) return "a row of an operand is larger than a staging buffer";
          const Selection selection = select(params, device_, mode_);
          return selection.kernel == Kernel::None ? selection.reason : nullptr;
        },
        call);
  }

  Traffic traffic(const KernelCall& call) override {
    return std::visit([this](const auto& params) { return traffic(KernelJob(params)); }, call);
  }

  Outcome run(const KernelCall& call, const Executor& executor) override {
    return std::visit([&](const auto& params) { return runKernels(params, executor); }, call);
  }

  Outcome measureCopies(const Executor& executor, CopySpeed* speed) override {
    constexpr int64_t kRows = 65536, kWidth = 256;  // 64 MB of float32
    std::vector<char> host;
    try {
      host.assign(static_cast<size_t>(kRows * kWidth * 4), 1);
    } catch (const std::bad_alloc&) {
      return {Outcome::OutOfMemory, "out of memory on the host"};
    }
    for (const bool isOutput : {false, true}) {
      double best = 0;
      for (int i = 0; i < 3; i++) {
        Job job;
        // Heads of 64 elements, four of them to a token, as a call's operands are.
        job.operands.push_back(
            {{host.data(), 4, 1, 4, kRows, kWidth / 4, 0, kWidth / 4, kWidth, 1}, isOutput, 0, nullptr});
        job.workspace = [](const PieceRange&) { return int64_t{0}; };
        job.launch = [](const PieceRange&, void*, int64_t, cudaStream_t) { return Result{}; };
        const double before = usage().wallSeconds;
        const Outcome outcome = execute(job, executor, false);
        if (outcome.status != Outcome::Done) return outcome;
        best = std::max(best, static_cast<double>(host.size()) / (usage().wallSeconds - before));
      }
      (isOutput ? speed->downloadBytesPerSecond : speed->uploadBytesPerSecond) = best;
    }
    return {};
  }

  Usage usage() const override {
    const std::lock_guard<std::mutex> guard(usageLock_);
    return usage_;
  }

 private:
  template <typename Params>
  Outcome runKernels(const Params& params, const Executor& executor) {
    KernelJob job(params);
    const auto device = [&] {
      Device x = device_;
      if (job.leastMemory) x.storedBytes = 0;
      return x;
    };
    job.workspace = [&](const PieceRange& range) {
      return static_cast<int64_t>(workspace(job.piece(range), device(), mode_));
    };
    job.launch = [&](const PieceRange& range, void* memory, int64_t bytes, cudaStream_t stream) {
      return launch(job.piece(range), device(), mode_, memory, static_cast<size_t>(bytes), stream);
    };
    const Outcome outcome = execute(job, executor);
    if (kIsGate<Params> || outcome.status != Outcome::Done) return outcome;
    // A forward call's arrays stay for its backward call; after that only q, the first, which other branches may share.
    const size_t kept = kIsBackward<Params> ? 1 : job.operands.size();
    for (size_t i = 0; i < kept; i++) resident_.put(job.operands[i].host, std::move(job.operands[i].array));
    return outcome;
  }

  Traffic traffic(const Job& job) {
    Traffic traffic;
    for (const Operand& operand : job.operands) {
      const double bytes = static_cast<double>(operand.host.bytes());
      (operand.output ? traffic.download : resident_.has(operand.host) ? traffic.resident : traffic.upload) += bytes;
    }
    return traffic;
  }

  Outcome execute(Job& job, const Executor& executor, bool counted = true) {
    if (lost_) return {Outcome::Lost, "an earlier call failed"};
    const auto start = std::chrono::steady_clock::now();
    int previous = 0;
    cudaGetDevice(&previous);
    Usage used;
    Outcome outcome = attempt(job, executor, &used);
    cudaSetDevice(previous);
    if (outcome.status != Outcome::Done) return outcome;
    used.calls = counted ? 1 : 0;
    used.wallSeconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const std::lock_guard<std::mutex> guard(usageLock_);
    usage_.calls += used.calls;
    usage_.wallSeconds += used.wallSeconds;
    usage_.kernelSeconds += used.kernelSeconds;
    usage_.uploadedBytes += used.uploadedBytes;
    usage_.residentBytes += used.residentBytes;
    usage_.downloadedBytes += used.downloadedBytes;
    return outcome;
  }

  Outcome attempt(Job& job, const Executor& executor, Usage* used) {
    cudaError_t e = cudaSetDevice(device_.ordinal);
    if (e != cudaSuccess) return failed({Outcome::Failed, cudaGetErrorString(e)});
    const Lanes::Handle lane = lanes_.acquire(&e);
    if (!lane) return failed({Outcome::Failed, std::string(cudaGetErrorString(e)) + ", while opening streams"});
    try {
      for (Operand& operand : job.operands)
        if (!operand.output) operand.array = resident_.take(operand.host);
      Outcome outcome = runJob(job, memory_, *lane, device_.ordinal, executor, used);
      if (outcome.status == Outcome::OutOfMemory) {
        // What earlier calls left is worth less than this call.
        resident_.clear();
        for (const bool least : {false, true}) {
          if (outcome.status != Outcome::OutOfMemory) break;
          for (Operand& operand : job.operands) operand.array.reset();
          memory_.trim();
          job.leastMemory = least;
          outcome = runJob(job, memory_, *lane, device_.ordinal, executor, used);
        }
      }
      return failed(std::move(outcome));
    } catch (const std::bad_alloc&) {
      cudaDeviceSynchronize();
      return {Outcome::Failed, "out of memory on the host"};
    }
  }

  /// Finds out whether an error is the end of the device for this process.
  Outcome failed(Outcome outcome) {
    if (outcome.status != Outcome::Failed) return outcome;
    cudaGetLastError();
    if (cudaDeviceSynchronize() != cudaSuccess || cudaGetLastError() != cudaSuccess) {
      lost_ = true;
      outcome.status = Outcome::Lost;
    }
    return outcome;
  }

  Device device_;
  std::string name_;
  FloatMode mode_ = FloatMode::Strict;
  DeviceMemory memory_;  // outlives the arrays in resident_
  ResidentArrays resident_;
  Lanes lanes_;
  std::atomic<bool> lost_{false};
  mutable std::mutex usageLock_;
  Usage usage_;
};

}  // namespace

Accelerator* openAccelerator(const AcceleratorOptions& options, std::string& reason) {
  int count = 0;
  const cudaError_t e = cudaGetDeviceCount(&count);
  if (e != cudaSuccess) {
    reason = e == cudaErrorInsufficientDriver ? "no NVIDIA driver, or one older than the CUDA library needs"
                                              : cudaGetErrorString(e);
    return nullptr;
  }
  if (options.ordinal < 0 || options.ordinal >= count) {
    reason = "there is no device cuda:" + std::to_string(options.ordinal) + "; devices: " + std::to_string(count);
    return nullptr;
  }
  auto accelerator = std::unique_ptr<CudaAccelerator>(new (std::nothrow) CudaAccelerator());
  const Outcome outcome =
      accelerator ? accelerator->open(options) : Outcome{Outcome::OutOfMemory, "out of memory on the host"};
  if (outcome.status != Outcome::Done) {
    reason = outcome.message;
    return nullptr;
  }
  return accelerator.release();
}

}  // namespace gatedfwa::cuda
