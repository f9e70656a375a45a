#include "op/placement.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdio>
#include <mutex>

#include "op/backend.h"
#include "op/cost_model.h"
#include "op/cpu_runtime.h"

namespace gatedfwa::placement {
namespace {

struct State {
  Mode mode = Mode::Auto;
  Accelerator* device = nullptr;  ///< lives as long as the process
  CostModel model;
};
State state;  // written by open() only

std::atomic<bool> lost{false};
std::atomic<bool> warnedOfMemory{false};
std::atomic<int64_t> cpuCalls{0};
std::atomic<void (*)(const std::string&)> warningSink{nullptr};
std::mutex decisionLock;
std::string decision;

void warn(const std::string& line) {
  if (const auto sink = warningSink.load()) sink(line);
}

std::string milliseconds(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g ms", 1e3 * seconds);
  return text;
}

void decide(const Work& work, const std::string& text) {
  const std::lock_guard<std::mutex> guard(decisionLock);
  decision = work.description + ": " + text;
}

/// Whether to try the device; says why in `decision`.
bool onDevice(const KernelCall& call, const Work& work) {
  if (lost) {
    decide(work, "cpu: the device is lost");
    return false;
  }
  if (work.flops == 0) {  // empty arrays; what they leave to be done are zeros
    decide(work, "cpu: nothing to compute");
    return false;
  }
  if (const char* refusal = state.device->refusal(call)) {
    decide(work, std::string("cpu: ") + refusal);
    return false;
  }
  if (state.mode == Mode::Device) {
    decide(work, state.device->name() + ", as asked for");
    return true;
  }
  const double cpu = state.model.onCpu(work), device = state.model.onDevice(work, state.device->traffic(call));
  const bool pays = device < cpu;
  decide(work, (pays ? state.device->name() : "cpu") + ", expected to take " + milliseconds(device) +
                   " on the device, " + milliseconds(cpu) + " on the CPU");
  return pays;
}

/// True if the device did it.
bool runOnDevice(const KernelCall& call) {
  const Outcome outcome = state.device->run(call, nd4jExecutor());
  switch (outcome.status) {
    case Outcome::Done:
      return true;
    case Outcome::OutOfMemory:
      if (!warnedOfMemory.exchange(true))
        warn("out of memory on " + state.device->name() + " (" + outcome.message +
             "); calls that do not fit run on the CPU");
      return false;
    case Outcome::Lost:
      if (!lost.exchange(true)) warn(state.device->name() + " is lost (" + outcome.message + "); calls run on the CPU");
      throw DeviceError(state.device->name() + " is lost: " + outcome.message);
    default:
      throw DeviceError(state.device->name() + ": " + outcome.message);
  }
}

bool attentionOnDevice(const KernelCall& call) {
  const Work work = workOf(call);
  if (!onDevice(call, work)) return false;
  if (runOnDevice(call)) return true;
  decide(work, "cpu: out of device memory");
  return false;
}

/// The gate computes about as little as a copy does: only when it was asked for.
bool gateOnDevice(const KernelCall& call) {
  return state.mode == Mode::Device && !lost && !state.device->refusal(call) && runOnDevice(call);
}

}  // namespace

std::string open(Mode mode, const std::string& path, const AcceleratorOptions& options) {
  state = {};
  lost = false;
  warnedOfMemory = false;
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return dlerror();
  const auto openAccelerator = reinterpret_cast<OpenAccelerator>(dlsym(library, kOpenAcceleratorName));
  if (openAccelerator == nullptr) return path + " has no function " + kOpenAcceleratorName;
  std::string reason;
  Accelerator* const device = openAccelerator(kAcceleratorVersion, options, reason);
  if (device == nullptr) return reason;
  CostModel model;
  if (mode == Mode::Auto) {
    const Outcome outcome = measure(*device, nd4jExecutor(), instructionSet(), &model);
    if (outcome.status != Outcome::Done) return device->name() + ": " + outcome.message;
  }
  state.mode = mode;
  state.device = device;
  state.model = model;
  return {};
}

void run(const KernelCall& call) {
  const bool gate = isGate(call);
  if (state.device != nullptr && (gate ? gateOnDevice(call) : attentionOnDevice(call))) return;
  if (!gate) cpuCalls.fetch_add(1, std::memory_order_relaxed);
  cpu::run(call, nd4jExecutor(), instructionSet());
}

std::string deviceName() { return state.device != nullptr ? state.device->name() : "cpu"; }

Report report() {
  Report report;
  if (state.device != nullptr) report.device = state.device->usage();
  report.cpuCalls = cpuCalls;
  const std::lock_guard<std::mutex> guard(decisionLock);
  report.lastDecision = decision;
  return report;
}

void setWarningSink(void (*sink)(const std::string& line)) { warningSink = sink; }

}  // namespace gatedfwa::placement
