// The device of placement_test: computes with the CPU kernels, or fails as told.
#include <atomic>

#include "cpu/cpu_kernels.h"
#include "kernel/accelerator.h"

namespace {

using namespace gatedfwa;

std::atomic<int> failWith{Outcome::Done};

class TestAccelerator final : public Accelerator {
 public:
  const std::string& name() const override { return name_; }
  const char* refusal(const KernelCall& call) const override {
    return std::visit([](const auto& params) { return params.type; }, call) == ElementType::Float32 ? nullptr
                                                                                                    : "FLOAT only";
  }
  Traffic traffic(const KernelCall&) override { return {1e6, 0, 1e6}; }
  Outcome run(const KernelCall& call, const Executor& executor) override {
    const auto status = static_cast<Outcome::Status>(failWith.load());
    if (status != Outcome::Done) return {status, "told to fail"};
    cpu::run(call, executor, cpu::detectInstructionSet());
    usage_.calls++;
    usage_.kernelSeconds += 1e-3;
    return {};
  }
  Outcome measureCopies(const Executor&, CopySpeed* speed) override {
    *speed = {1e9, 1e9};
    return {};
  }
  Usage usage() const override { return usage_; }

 private:
  std::string name_ = "test device";
  Usage usage_;
};

}  // namespace

extern "C" __attribute__((visibility("default"))) void gatedfwa_test_fail_with(int status) { failWith = status; }

extern "C" __attribute__((visibility("default"))) gatedfwa::Accelerator* gatedfwa_open_accelerator(
    int, const gatedfwa::AcceleratorOptions& options, std::string& reason) {
  if (options.ordinal != 0) {
    reason = "no device " + std::to_string(options.ordinal);
    return nullptr;
  }
  static TestAccelerator device;
  return &device;
}
