// Which calls go to a device, and what happens when it cannot. The device is a library of the test that computes on the
// CPU and fails when told to.
#include "op/placement.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "attention_sample.h"
#include "nsa_sample.h"
#include "op/backend.h"
#include "op/cost_model.h"
#include "op/cpu_runtime.h"
#include "thread_executor.h"

namespace gatedfwa {

// In the place of ND4J's threads.
Executor nd4jExecutor() { return test::threads(2); }
cpu::InstructionSet instructionSet() { return cpu::detectInstructionSet(); }

}  // namespace gatedfwa

using namespace gatedfwa;
using namespace gatedfwa::test;

namespace {

int failures = 0, checks = 0;
std::vector<std::string> warnings;

void expect(bool condition, const std::string& what) {
  checks++;
  if (condition) return;
  failures++;
  std::printf("FAILED: %s\n", what.c_str());
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

SampleShape shape() {
  SampleShape s;
  s.queryLength = s.keyLength = 100;
  s.heads = s.kvHeads = 2;
  s.headSize = s.valueSize = 16;
  s.window = 30;
  return s;
}

bool rightResult(AttentionSample& sample) {
  AttentionSample reference(sample.s);
  cpu::attentionForward(reference.forward(), nd4jExecutor(), instructionSet());
  return relativeError(sample.o, reference.o) == 0;
}

template <typename Body>
std::string errorOf(Body body) {
  try {
    body();
  } catch (const DeviceError& e) {
    return e.what();
  }
  return "";
}

void costs() {
  CostModel model;
  const int window = static_cast<int>(OpKind::Window);
  for (int i = 0; i < 4; i++) {
    model.cpu[window][i] = {1e11, 1e11};
    model.device[window][i] = {1e13, 5e12};
  }
  model.deviceSeconds = 1e-4;
  model.uploadRate = model.downloadRate = 1e10;
  model.comparisonRate = 2e10;
  Work work{OpKind::Window, ElementType::Float32, false, 1e9, ""};
  expect(std::abs(model.onCpu(work) - 1e-2) < 1e-9, "FLOPs over the rate");
  const double computeBound = model.onDevice(work, {0, 0, 0});
  expect(std::abs(computeBound - 2e-4) < 1e-9, "start and kernel of a call without copies");
  expect(model.onDevice(work, {1e9, 0, 0}) > 0.1, "copies count");
  expect(model.onDevice(work, {0, 1e9, 0}) < 0.6 * model.onDevice(work, {1e9, 0, 0}), "resident operands cost less");
  model.device[window][0].forward = 0;
  expect(std::isinf(model.onDevice(work, {0, 0, 0})), "what the device cannot run never pays");

  SampleShape s = shape();
  s.queryLength = 3;
  s.keyLength = 10;
  s.window = 9;
  AttentionSample sample(s);
  // Query positions 7, 8, 9 see 8, 9 and 9 keys.
  expect(workOf(sample.forward()).flops == 2.0 * (8 + 9 + 9) * (16 + 16) * 2, "FLOPs of the visible pairs");
  expect(workOf(sample.backward()).flops == 2.0 * (8 + 9 + 9) * (3 * 16 + 2 * 16) * 2, "five products backward");
  expect(workOf(sample.backward()).description == "gated_fwa_bp FLOAT B 1, N 3, M 10, H 2/2, D 16/16, w 9",
         "description: " + workOf(sample.backward()).description);

  NsaSampleShape n;
  n.queryLength = 30;
  n.keyLength = 50;
  n.heads = 4;
  n.kvHeads = 2;
  n.headSize = 16;
  n.valueSize = 8;
  n.topN = 3;
  NsaSample nsa(n);
  // Block c of 11 is seen from position 4 c + 7 on, by the queries at 20 to 49.
  double pairs = 0;
  for (int c = 0; c < 11; c++) pairs += std::min(30, 50 - (4 * c + 7));
  expect(workOf(nsa.compressedForward()).flops == 2 * pairs * (16 + 8) * 4, "FLOPs of complete blocks");
  expect(workOf(nsa.compressedBackward()).flops == 2 * pairs * (3 * 16 + 2 * 8) * 4, "and backward");
  expect(workOf(nsa.select()).flops == 2 * pairs * 16 * 4, "one product for the choice");
  // Positions 20 to 46 see p + 1 tokens, the last three 3 blocks of 16.
  pairs = 27 * (21 + 47) / 2.0 + 3 * 48;
  expect(workOf(nsa.selectedForward()).flops == 2 * pairs * (16 + 8) * 4, "FLOPs of topN blocks");
  expect(workOf(nsa.selectedBackward()).description ==
             "nsa_selected_attention_bp FLOAT B 1, N 30, M 50, H 4/2, D 16/8, l' 16, topN 3",
         "description: " + workOf(nsa.selectedBackward()).description);
  expect(workOf(nsa.select()).description == "nsa_select FLOAT B 1, N 30, M 50, H 4/2, D 16, l 8, d 4, l' 16, topN 3",
         "description: " + workOf(nsa.select()).description);
}

}  // namespace

int main(int, char** arguments) {
  const std::string library = arguments[1];
  placement::setWarningSink([](const std::string& line) { warnings.push_back(line); });
  costs();

  expect(contains(placement::open(placement::Mode::Auto, "/nowhere/lib.so", {}), "/nowhere/lib.so"),
         "a library that is not there is named");
  AcceleratorOptions options;
  options.ordinal = 7;
  expect(placement::open(placement::Mode::Device, library, options) == "no device 7",
         "the library's reason is passed on");
  expect(placement::deviceName() == "cpu", "no device is open after that");

  AttentionSample sample(shape());
  placement::run(sample.forward());
  expect(rightResult(sample), "without a device the CPU does it");
  expect(placement::report().cpuCalls == 1, "and is counted");

  expect(placement::open(placement::Mode::Device, library, {}).empty(), "opened");
  void* const handle = dlopen(library.c_str(), RTLD_NOW);
  const auto tell = reinterpret_cast<void (*)(int)>(dlsym(handle, "gatedfwa_test_fail_with"));
  sample.clearResults();
  placement::run(sample.forward());
  expect(rightResult(sample), "the device does it");
  expect(placement::report().device.calls == 1, "and counts it");
  expect(
      contains(placement::report().lastDecision, "N 100") && contains(placement::report().lastDecision, "as asked for"),
      "decision: " + placement::report().lastDecision);

  NsaSampleShape nsaShape;
  nsaShape.queryLength = nsaShape.keyLength = 100;
  nsaShape.heads = nsaShape.kvHeads = 2;
  NsaSample nsa(nsaShape), exact(nsaShape);
  const auto choose = [&](const KernelCall& attention, const KernelCall& select) {
    placement::run(attention);
    placement::run(select);
    cpu::run(exact.compressedForward(), nd4jExecutor(), instructionSet());
    cpu::run(exact.select(), nd4jExecutor(), instructionSet());
    return nsa.indices.memory == exact.indices.memory;
  };
  expect(choose(nsa.compressedForward(), nsa.select()), "native sparse attention on the device");
  expect(placement::report().device.calls == 3 && contains(placement::report().lastDecision, "nsa_select FLOAT") &&
             contains(placement::report().lastDecision, "as asked for"),
         "decision: " + placement::report().lastDecision);

  tell(Outcome::OutOfMemory);
  nsa.clearResults();
  exact.clearResults();
  expect(choose(nsa.compressedForward(), nsa.select()), "out of device memory: the CPU chooses");
  for (int i = 0; i < 2; i++) {
    sample.clearResults();
    placement::run(sample.forward());
    expect(rightResult(sample), "out of device memory: the CPU does it");
  }
  expect(warnings.size() == 1 && contains(warnings[0], "out of memory"), "one warning");

  tell(Outcome::Failed);
  expect(contains(errorOf([&] { placement::run(sample.forward()); }), "told to fail"), "a failure is an exception");
  tell(Outcome::Done);
  sample.clearResults();
  placement::run(sample.forward());
  expect(rightResult(sample), "the call after it works");

  tell(Outcome::Lost);
  expect(contains(errorOf([&] { placement::run(sample.backward()); }), "is lost"), "a lost device is an exception");
  sample.clearResults();
  placement::run(sample.forward());
  expect(rightResult(sample), "then the CPU does it");
  expect(warnings.size() == 2 && contains(warnings[1], "is lost"), "with one warning");
  expect(contains(placement::report().lastDecision, "the device is lost"), "and the decision says so");
  tell(Outcome::Done);

  expect(placement::open(placement::Mode::Auto, library, {}).empty(), "opened for auto");
  SampleShape doubles = shape();
  doubles.type = ElementType::Float64;
  AttentionSample refused(doubles);
  placement::run(refused.forward());
  expect(rightResult(refused) && contains(placement::report().lastDecision, "cpu: FLOAT only"),
         "what the device refuses runs on the CPU: " + placement::report().lastDecision);
  placement::run(sample.forward());
  expect(contains(placement::report().lastDecision, "expected to take"),
         "the expected times can be read: " + placement::report().lastDecision);
  placement::run(nsa.compressedForward());
  expect(contains(placement::report().lastDecision, "nsa_compressed_attention FLOAT") &&
             contains(placement::report().lastDecision, "expected to take"),
         "of native sparse attention too: " + placement::report().lastDecision);
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
