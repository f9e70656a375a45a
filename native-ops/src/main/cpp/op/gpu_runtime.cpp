#include "op/gpu_runtime.h"

#include <atomic>
#include <mutex>
#include <variant>
#include <vector>

#include "kernel_door.h"
#include "op/backend.h"
#include "op/work.h"

namespace gatedfwa::gpu {
namespace {

constexpr int kOldest = 75;  ///< compute capability x 10 of the oldest device that the kernels are compiled for

std::atomic<cuda::FloatMode> floatMode{cuda::FloatMode::Strict};
std::atomic<int64_t> calls{0};
std::vector<int64_t> deviceMemory;  ///< bytes, by ordinal; written by open() alone
std::mutex decisionLock;
std::string decision;

std::string architecture(const cuda::Device& device) {
  return "sm_" + std::to_string(device.major) + std::to_string(device.minor);
}

std::string nameOf(const cuda::Device& device) {
  return "cuda:" + std::to_string(device.ordinal) + " (" + architecture(device) + ')';
}

[[noreturn]] void fail(const std::string& where, cudaError_t error) {
  cudaGetLastError();  // reported here, not by the next launch
  throw DeviceError(where + ": " + cudaGetErrorString(error));
}

/// The calling thread's: libnd4j has made its context current.
cuda::Device currentDevice() {
  int ordinal = 0;
  if (const cudaError_t e = cudaGetDevice(&ordinal)) fail("the current device", e);
  cuda::Device device;
  const cuda::Result result = cuda::queryDevice(ordinal, &device);
  if (!result) fail("cuda:" + std::to_string(ordinal), result.cuda);
  if (static_cast<size_t>(ordinal) < deviceMemory.size() && deviceMemory[ordinal] > 0)
    device.limitMemory(deviceMemory[ordinal]);
  return device;
}

/// Device memory for the time of one call, in the order of the call's stream.
class Scratch {
 public:
  explicit Scratch(cudaStream_t stream) : stream_(stream) {}
  ~Scratch() {
    if (data_ != nullptr) cudaFreeAsync(data_, stream_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  /// Once, or again after an error.
  cudaError_t take(size_t bytes) {
    bytes_ = bytes;
    const cudaError_t e = bytes ? cudaMallocAsync(&data_, bytes, stream_) : cudaSuccess;
    if (e != cudaSuccess) data_ = nullptr;
    return e;
  }
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
  cudaStream_t stream_;
};

}  // namespace

std::string open(const Settings& settings) {
  int count = 0;
  if (const cudaError_t e = cudaGetDeviceCount(&count)) {
    if (e == cudaErrorInsufficientDriver) throw DeviceError("the NVIDIA driver is older than the CUDA library needs");
    fail("the CUDA devices", e);
  }
  const cuda::Device device = currentDevice();
  cudaDeviceProp properties{};
  deviceMemory.assign(count, 0);
  for (int ordinal = 0; ordinal < count; ordinal++) {
    cudaError_t e = cudaGetDeviceProperties(&properties, ordinal);
    if (e == cudaSuccess) deviceMemory[ordinal] = static_cast<int64_t>(properties.totalGlobalMem);
    cudaMemPool_t pool = nullptr;
    uint64_t kept = settings.scratchLimit >= 0 ? static_cast<uint64_t>(settings.scratchLimit)
                                               : static_cast<uint64_t>(properties.totalGlobalMem) / 4;
    if (e == cudaSuccess) e = cudaDeviceGetDefaultMemPool(&pool, ordinal);
    if (e == cudaSuccess) e = cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept);
    if (e != cudaSuccess && ordinal == device.ordinal) fail(nameOf(device) + ", memory pool", e);
    cudaGetLastError();
  }
  if (const cudaError_t e = cudaGetDeviceProperties(&properties, device.ordinal)) fail(nameOf(device), e);
  const std::string name =
      "cuda:" + std::to_string(device.ordinal) + ' ' + properties.name + " (" + architecture(device) + ')';
  if (device.major * 10 + device.minor < kOldest)
    throw DeviceError(name + ": compute capability 7.5 or newer is needed");
  floatMode = settings.tf32 ? cuda::FloatMode::Tf32 : cuda::FloatMode::Strict;
  return name;
}

void run(const KernelCall& call, cudaStream_t stream) {
  cuda::Device device = currentDevice();
  const cuda::FloatMode mode = floatMode;
  std::visit(
      [&](const auto& params) {
        const cuda::Selection selection = cuda::select(params, device, mode);
        if (selection.kernel == cuda::Kernel::None) throw DeviceError(nameOf(device) + ": " + selection.reason);
        if (!isGate(call)) {
          const std::string description = workOf(call).description;
          const std::lock_guard<std::mutex> guard(decisionLock);
          decision = description + ": " + nameOf(device) + ", " + selection.reason;
        }
        Scratch scratch(stream);
        cudaError_t e = scratch.take(cuda::workspace(params, device, mode));
        if (e == cudaErrorMemoryAllocation) {  // once more, without room for dS
          cudaGetLastError();
          device.storedBytes = 0;
          const size_t less = cuda::workspace(params, device, mode);
          if (less < scratch.bytes()) e = scratch.take(less);
        }
        if (e != cudaSuccess)
          fail(nameOf(device) + ", " + std::to_string(scratch.bytes()) + " bytes of scratch memory", e);
        const cuda::Result result = cuda::launch(params, device, mode, scratch.data(), scratch.bytes(), stream);
        if (!result) fail(nameOf(device), result.cuda);
      },
      call);
  calls.fetch_add(1, std::memory_order_relaxed);
}

Report report() {
  Report report;
  report.calls = calls;
  const std::lock_guard<std::mutex> guard(decisionLock);
  report.lastDecision = decision;
  return report;
}

}  // namespace gatedfwa::gpu
