#include "offload/cuda_accelerator.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <new>

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

char* address(const Input& x) { return static_cast<char*>(const_cast<void*>(x.data)); }
char* address(const Output& x) { return static_cast<char*>(x.data); }

/// [B, length, heads, size]
template <typename Tensor>
HostRows headRows(const Tensor& x, int64_t elementBytes, int64_t batch, int64_t length, int64_t heads, int64_t size) {
  return {address(x), elementBytes, batch, heads, length, size, x.strides[0], x.strides[2], x.strides[1], x.strides[3]};
}

/// [B, length, width], all heads in a row
template <typename Tensor>
HostRows tokenRows(const Tensor& x, int64_t elementBytes, int64_t batch, int64_t length, int64_t width) {
  return {address(x), elementBytes, batch, 1, length, width, x.strides[0], 0, x.strides[1], x.strides[2]};
}

/// [B, H, N]
template <typename Tensor>
HostRows lseRows(const Tensor& x, int64_t elementBytes, int64_t batch, int64_t heads, int64_t length) {
  return {address(x), elementBytes, batch, heads, length, 1, x.strides[0], x.strides[1], x.strides[2], 1};
}

/// The part of an operand's dense copy that a piece works on, as a kernel's tensor.
template <typename Tensor>
Tensor onDevice(const Operand& operand, const PieceRange& piece) {
  const HostRows& h = operand.host;
  const int64_t plane = piece.unit0 * operand.planesPerUnit;
  Tensor x;
  x.data = operand.array->address() + (piece.batch0 * h.planes + plane) * h.rows * h.rowBytes();
  x.strides[0] = h.planes * h.rows * h.width;
  x.strides[1] = h.width;
  x.strides[2] = h.rows * h.width;
  x.strides[3] = 1;
  return x;
}

/// tokenRows hold all heads: those of the piece start inside the row.
template <typename Tensor>
Tensor tokensOnDevice(const Operand& operand, const PieceRange& piece, int64_t firstHead) {
  Tensor x = onDevice<Tensor>(operand, piece);
  x.data =
      static_cast<char*>(const_cast<void*>(static_cast<const void*>(x.data))) + firstHead * operand.host.elementBytes;
  x.strides[2] = 1;
  return x;
}

template <typename Tensor>
Tensor lseOnDevice(const Operand& operand, const PieceRange& piece) {
  Tensor x = onDevice<Tensor>(operand, piece);
  x.strides[1] = operand.host.rows;
  x.strides[2] = 1;
  return x;
}

Operand input(const HostRows& host, int64_t planesPerUnit) { return {host, false, planesPerUnit, nullptr}; }
Operand output(const HostRows& host, int64_t planesPerUnit) { return {host, true, planesPerUnit, nullptr}; }

/// Indices of an attention job's operands; an absent one is -1.
struct AttentionOperands {
  int q = -1, k = -1, v = -1, alpha = -1, mask = -1, o = -1, lse = -1, dO = -1, dq = -1, dk = -1, dv = -1, dalpha = -1;
};

/// Keys that no query sees stay on the host.
template <typename Params>
Params withoutUnseenKeys(Params p) {
  const int64_t seen = std::min(p.keyLength, p.queryLength + std::min(p.window, p.keyLength) - 1);
  const int64_t unseen = p.keyLength - seen;
  const auto advance = [&](Input& x, int64_t bytes) {
    if (x.data) x.data = address(x) + unseen * x.strides[1] * bytes;
  };
  advance(p.k, bytesOf(p.type));
  advance(p.v, bytesOf(p.type));
  advance(p.alpha, sumBytesOf(p.type));
  advance(p.mask, bytesOf(p.maskType));
  p.keyLength = seen;
  return p;
}

class AttentionJob : public Job {
 public:
  int add(Operand operand) {
    operands.push_back(std::move(operand));
    return static_cast<int>(operands.size()) - 1;
  }

  AttentionOperands at;

  void addInputs(const AttentionProblem& p) {
    const int64_t bytes = bytesOf(p.type), group = p.heads / p.kvHeads;
    batch = p.batch;
    unitsPerBatch = p.kvHeads;
    at.q = add(input(headRows(p.q, bytes, p.batch, p.queryLength, p.heads, p.headSize), group));
    at.k = add(input(headRows(p.k, bytes, p.batch, p.keyLength, p.kvHeads, p.headSize), 1));
    at.v = add(input(headRows(p.v, bytes, p.batch, p.keyLength, p.kvHeads, p.valueSize), 1));
    if (p.alpha.data) at.alpha = add(input(tokenRows(p.alpha, sumBytesOf(p.type), p.batch, p.keyLength, p.heads), 0));
    if (p.mask.data) {
      HostRows mask = tokenRows(p.mask, bytesOf(p.maskType), p.batch, p.keyLength, 1);
      mask.elementStride = 1;
      at.mask = add(input(mask, 0));
    }
  }

  template <typename Params>
  Params piece(const Params& whole, const PieceRange& range) const {
    Params p = whole;
    const int64_t group = whole.heads / whole.kvHeads;
    p.batch = range.batch1 - range.batch0;
    p.kvHeads = range.unit1 - range.unit0;
    p.heads = p.kvHeads * group;
    p.q = onDevice<Input>(operands[at.q], range);
    p.k = onDevice<Input>(operands[at.k], range);
    p.v = onDevice<Input>(operands[at.v], range);
    if (at.alpha >= 0) p.alpha = tokensOnDevice<Input>(operands[at.alpha], range, range.unit0 * group);
    if (at.mask >= 0) p.mask = tokensOnDevice<Input>(operands[at.mask], range, 0);
    return p;
  }
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
    e = memory_.open(options.ordinal, options.memoryLimit > 0 ? options.memoryLimit : whole, cache);
    if (e != cudaSuccess) return {Outcome::Failed, name_ + ": " + cudaGetErrorString(e)};
    return {};
  }

  const std::string& name() const override { return name_; }

  const char* refusal(const AttentionProblem& p, bool backward) const override {
    if (p.heads * sumBytesOf(p.type) > kSlotBytes) return "too many heads for a staging buffer";
    const Selection selection = selectKernel(p, device_, mode_, backward);
    return selection.kernel == Kernel::None ? selection.reason : nullptr;
  }

  Traffic traffic(const AttentionForward& params) override { return traffic(forwardJob(withoutUnseenKeys(params))); }
  Traffic traffic(const AttentionBackward& params) override { return traffic(backwardJob(params)); }

  Outcome run(const AttentionForward& params, const Executor& executor) override {
    const AttentionForward p = withoutUnseenKeys(params);
    AttentionJob job = forwardJob(p);
    const auto piece = [&job, &p](const PieceRange& range) {
      AttentionForward d = job.piece(p, range);
      d.o = onDevice<Output>(job.operands[job.at.o], range);
      d.lse = lseOnDevice<Output>(job.operands[job.at.lse], range);
      return d;
    };
    job.workspace = [&](const PieceRange& range) {
      return static_cast<int64_t>(attentionForwardWorkspace(sized(p, range), device_, mode_));
    };
    job.launch = [&](const PieceRange& range, void* workspace, int64_t bytes, cudaStream_t stream) {
      return attentionForward(piece(range), device_, mode_, workspace, static_cast<size_t>(bytes), stream);
    };
    const Outcome outcome = execute(job, executor);
    if (outcome.status == Outcome::Done)
      for (Operand& operand : job.operands) resident_.put(operand.host, std::move(operand.array));
    return outcome;
  }

  Outcome run(const AttentionBackward& p, const Executor& executor) override {
    AttentionJob job = backwardJob(p);
    const auto piece = [&job, &p](const PieceRange& range) {
      AttentionBackward d = job.piece(p, range);
      const AttentionOperands& at = job.at;
      d.o = onDevice<Input>(job.operands[at.o], range);
      d.lse = lseOnDevice<Input>(job.operands[at.lse], range);
      d.dO = onDevice<Input>(job.operands[at.dO], range);
      d.dq = onDevice<Output>(job.operands[at.dq], range);
      d.dk = onDevice<Output>(job.operands[at.dk], range);
      d.dv = onDevice<Output>(job.operands[at.dv], range);
      if (at.dalpha >= 0)
        d.dalpha = tokensOnDevice<Output>(job.operands[at.dalpha], range, range.unit0 * (p.heads / p.kvHeads));
      return d;
    };
    job.workspace = [&](const PieceRange& range) {
      return static_cast<int64_t>(attentionBackwardWorkspace(sized(p, range), device_, mode_));
    };
    job.launch = [&](const PieceRange& range, void* workspace, int64_t bytes, cudaStream_t stream) {
      return attentionBackward(piece(range), device_, mode_, workspace, static_cast<size_t>(bytes), stream);
    };
    return execute(job, executor);  // the forward's arrays are not needed again: they go with the job
  }

  Outcome run(const GateForward& p, const Executor& executor) override {
    const int64_t bytes = bytesOf(p.type);
    Job job;
    for (const Input* x : {&p.h, &p.beta})
      job.operands.push_back(input(tokenRows(*x, bytes, p.batch, p.length, p.heads), 0));
    job.operands.push_back(output(tokenRows(p.alpha, bytes, p.batch, p.length, p.heads), 0));
    job.workspace = [](const PieceRange&) { return int64_t{0}; };
    job.launch = [&](const PieceRange& range, void*, int64_t, cudaStream_t stream) {
      GateForward d = p;
      d.h = tokensOnDevice<Input>(job.operands[0], range, 0);
      d.beta = tokensOnDevice<Input>(job.operands[1], range, 0);
      d.alpha = tokensOnDevice<Output>(job.operands[2], range, 0);
      return gateForward(d, nullptr, stream);
    };
    return execute(job, executor);
  }

  Outcome run(const GateBackward& p, const Executor& executor) override {
    const int64_t bytes = bytesOf(p.type);
    Job job;
    for (const Input* x : {&p.h, &p.beta, &p.dalpha})
      job.operands.push_back(input(tokenRows(*x, bytes, p.batch, p.length, p.heads), 0));
    for (const Output* x : {&p.dh, &p.dbeta})
      job.operands.push_back(output(tokenRows(*x, bytes, p.batch, p.length, p.heads), 0));
    job.workspace = [](const PieceRange&) { return int64_t{0}; };
    job.launch = [&](const PieceRange& range, void*, int64_t, cudaStream_t stream) {
      GateBackward d = p;
      d.h = tokensOnDevice<Input>(job.operands[0], range, 0);
      d.beta = tokensOnDevice<Input>(job.operands[1], range, 0);
      d.dalpha = tokensOnDevice<Input>(job.operands[2], range, 0);
      d.dh = tokensOnDevice<Output>(job.operands[3], range, 0);
      d.dbeta = tokensOnDevice<Output>(job.operands[4], range, 0);
      return gateBackward(d, stream);
    };
    return execute(job, executor);
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
  AttentionJob forwardJob(const AttentionForward& p) const {
    AttentionJob job;
    job.addInputs(p);
    const int64_t group = p.heads / p.kvHeads;
    job.at.o = job.add(output(headRows(p.o, bytesOf(p.type), p.batch, p.queryLength, p.heads, p.valueSize), group));
    job.at.lse = job.add(output(lseRows(p.lse, sumBytesOf(p.type), p.batch, p.heads, p.queryLength), group));
    return job;
  }

  AttentionJob backwardJob(const AttentionBackward& p) const {
    AttentionJob job;
    job.addInputs(p);
    const int64_t bytes = bytesOf(p.type), group = p.heads / p.kvHeads;
    const auto perQuery = [&](const auto& x, int64_t size) {
      return headRows(x, bytes, p.batch, p.queryLength, p.heads, size);
    };
    const auto perKey = [&](const auto& x, int64_t size) {
      return headRows(x, bytes, p.batch, p.keyLength, p.kvHeads, size);
    };
    job.at.o = job.add(input(perQuery(p.o, p.valueSize), group));
    job.at.lse = job.add(input(lseRows(p.lse, sumBytesOf(p.type), p.batch, p.heads, p.queryLength), group));
    job.at.dO = job.add(input(perQuery(p.dO, p.valueSize), group));
    job.at.dq = job.add(output(perQuery(p.dq, p.headSize), group));
    job.at.dk = job.add(output(perKey(p.dk, p.headSize), 1));
    job.at.dv = job.add(output(perKey(p.dv, p.valueSize), 1));
    if (p.dalpha.data)
      job.at.dalpha = job.add(output(tokenRows(p.dalpha, sumBytesOf(p.type), p.batch, p.keyLength, p.heads), 0));
    return job;
  }

  /// A piece's sizes; its operands are dense, which is what the size of the scratch memory depends on.
  template <typename Params>
  static Params sized(const Params& whole, const PieceRange& range) {
    Params p = whole;
    p.batch = range.batch1 - range.batch0;
    p.kvHeads = range.unit1 - range.unit0;
    p.heads = p.kvHeads * (whole.heads / whole.kvHeads);
    const auto dense = [](auto& x, int64_t rows, int64_t planes, int64_t width) {
      x.strides[0] = rows * planes * width;
      x.strides[1] = width;
      x.strides[2] = rows * width;
      x.strides[3] = 1;
      if (x.data) x.data = reinterpret_cast<decltype(x.data)>(kAnyAlignedAddress);
    };
    dense(p.q, p.queryLength, whole.heads, p.headSize);
    dense(p.k, p.keyLength, whole.kvHeads, p.headSize);
    dense(p.v, p.keyLength, whole.kvHeads, p.valueSize);
    if constexpr (std::is_same_v<Params, AttentionBackward>) {
      dense(p.o, p.queryLength, whole.heads, p.valueSize);
      dense(p.dO, p.queryLength, whole.heads, p.valueSize);
    }
    return p;
  }
  static constexpr uintptr_t kAnyAlignedAddress = 4096;

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
        for (Operand& operand : job.operands) operand.array.reset();
        resident_.clear();
        memory_.trim();
        outcome = runJob(job, memory_, *lane, device_.ordinal, executor, used);
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
