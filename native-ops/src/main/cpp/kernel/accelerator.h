// The border between the plug-in and a library that runs the kernels on a device with memory of its own. Operands are
// those of the host; the library copies them. Nothing here throws: what went wrong is a status with a message.
#pragma once

#include <cstdint>
#include <string>

#include "kernel/executor.h"
#include "kernel/kernel_call.h"

namespace gatedfwa {

struct Outcome {
  enum Status {
    Done,
    OutOfMemory,  ///< on the device; nothing was written, the CPU can do it
    Failed,       ///< outputs are undefined; the next call may work
    Lost          ///< as Failed, and no further call can work in this process
  };
  Status status = Done;
  std::string message;
};

/// Bytes that a call would move.
struct Traffic {
  double upload = 0;    ///< host to device
  double resident = 0;  ///< on the device already: only compared with what the host holds now
  double download = 0;  ///< device to host
};

/// What an accelerator has done since it was opened; times are sums over calls, in seconds.
struct Usage {
  int64_t calls = 0;
  double wallSeconds = 0;    ///< from a call's start to its end
  double kernelSeconds = 0;  ///< of it, the device's kernels ran
  double uploadedBytes = 0, residentBytes = 0, downloadedBytes = 0;
};

struct CopySpeed {
  double uploadBytesPerSecond, downloadBytesPerSecond;
};

struct AcceleratorOptions {
  int ordinal = 0;
  bool tf32 = false;        ///< FLOAT products with 10-bit mantissas instead of float32's accuracy
  int64_t memoryLimit = 0;  ///< bytes of device memory that may be in use at once; 0: what the device has
  int64_t cacheLimit = -1;  ///< of them, bytes that may stay between calls; negative: a quarter of the device's memory
};

/// May be called from many threads at once.
class Accelerator {
 public:
  virtual ~Accelerator() = default;

  /// Such as "cuda:0 NVIDIA H200 (sm_90)".
  virtual const std::string& name() const = 0;

  /// Null if it can run the call, else why not.
  virtual const char* refusal(const KernelCall& call) const = 0;

  virtual Traffic traffic(const KernelCall& call) = 0;

  /// Arguments must have been validated; only calls that are not refused.
  virtual Outcome run(const KernelCall& call, const Executor& executor) = 0;

  /// Of operands that are not resident, through the same path as a call's.
  virtual Outcome measureCopies(const Executor& executor, CopySpeed* speed) = 0;

  virtual Usage usage() const = 0;
};

/// The library's only exported function, found by this name. Returns null and sets `reason` if the device cannot be
/// used. `version` must be kAcceleratorVersion of the caller, which guards against a library of another build.
constexpr int kAcceleratorVersion = 2;
constexpr const char* kOpenAcceleratorName = "gatedfwa_open_accelerator";
using OpenAccelerator = Accelerator* (*)(int version, const AcceleratorOptions& options, std::string& reason);

}  // namespace gatedfwa
