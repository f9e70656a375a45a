// On which device a call of nd4j-native's plug-in runs: the CPU, or a GPU that the operands are copied to and from.
#pragma once

#include <string>

#include "kernel/accelerator.h"
#include "kernel/kernel_call.h"

namespace gatedfwa::placement {

enum class Mode {
  Auto,    ///< whichever a cost model, measured when the device is opened, expects to be faster
  Device,  ///< the device for all that it can run
};

/// Loads the library at `path`, opens its device and, for Auto, measures the cost model. From then on calls are placed
/// by `mode`. Returns an empty text, or why everything stays on the CPU. Not to be called while calls run.
std::string open(Mode mode, const std::string& path, const AcceleratorOptions& options);

/// Runs the kernel. Throws DeviceError or std::bad_alloc.
void run(const KernelCall& call);

/// "cpu" or the device's name.
std::string deviceName();

struct Report {
  Usage device;
  int64_t cpuCalls = 0;      ///< attention calls and choices of blocks that ran on the CPU
  std::string lastDecision;  ///< what the last of all these calls was, where it ran and why
};
Report report();

/// Where warnings go: one line each, from any thread. Unset, they are dropped.
void setWarningSink(void (*sink)(const std::string& line));

}  // namespace gatedfwa::placement
