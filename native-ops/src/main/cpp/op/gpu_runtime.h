// How the ops run under nd4j-cuda: on the device and stream of ND4J's thread, with scratch memory of their own.
#pragma once

#include <cstdint>
#include <string>

#include "kernel/kernel_call.h"

struct CUstream_st;

namespace gatedfwa::gpu {

struct Settings {
  bool tf32 = false;          ///< FLOAT products with 10-bit mantissas instead of float32's accuracy
  int64_t scratchLimit = -1;  ///< bytes of scratch memory that may stay between calls; negative: a quarter of the
                              ///< device's memory
};

/// Settings of all devices; not to be called while ops run. Returns the name of the calling thread's device, such as
/// "cuda:0 NVIDIA A100-SXM4-40GB (sm_80)". Throws DeviceError if it cannot run the ops.
std::string open(const Settings& settings);

/// Enqueues the kernels on `stream` of the calling thread's device. Throws DeviceError if the device cannot run them,
/// has no scratch memory left or has failed.
void run(const KernelCall& call, CUstream_st* stream);

struct Report {
  int64_t calls = 0;         ///< of all ops, enqueued without an error
  std::string lastDecision;  ///< what the last call but for gates was, on which device, and which kernel took it
};
Report report();

}  // namespace gatedfwa::gpu
