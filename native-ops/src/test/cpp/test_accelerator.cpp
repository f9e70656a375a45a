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
  const char* refusal(const AttentionProblem& p, bool) const override {
    return p.type == ElementType::Float32 ? nullptr : "FLOAT only";
  }
  Traffic traffic(const AttentionForward&) override { return {1e6, 0, 1e6}; }
  Traffic traffic(const AttentionBackward&) override { return {1e6, 0, 1e6}; }
  Outcome run(const AttentionForward& p, const Executor& executor) override {
    return attempt([&] { cpu::attentionForward(p, executor, cpu::detectInstructionSet()); });
  }
  Outcome run(const AttentionBackward& p, const Executor& executor) override {
    return attempt([&] { cpu::attentionBackward(p, executor, cpu::detectInstructionSet()); });
  }
  Outcome run(const GateForward& p, const Executor& executor) override {
    return attempt([&] { cpu::gateForward(p, executor, cpu::detectInstructionSet()); });
  }
  Outcome run(const GateBackward& p, const Executor& executor) override {
    return attempt([&] { cpu::gateBackward(p, executor, cpu::detectInstructionSet()); });
  }
  Outcome measureCopies(const Executor&, CopySpeed* speed) override {
    *speed = {1e9, 1e9};
    return {};
  }
  Usage usage() const override { return usage_; }

 private:
  template <typename Body>
  Outcome attempt(Body body) {
    const auto status = static_cast<Outcome::Status>(failWith.load());
    if (status != Outcome::Done) return {status, "told to fail"};
    body();
    usage_.calls++;
    usage_.kernelSeconds += 1e-3;
    return {};
  }

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
