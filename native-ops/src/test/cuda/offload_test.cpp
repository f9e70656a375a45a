// Calls on a GPU with operands in the host's memory, against the CPU kernels on the same operands. Needs a GPU.
//   offload_test [--quick]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>

#include "attention_sample.h"
#include "cpu/cpu_kernels.h"
#include "offload/cuda_accelerator.h"
#include "thread_executor.h"

using namespace gatedfwa;
using namespace gatedfwa::test;

namespace {

int failures = 0, checks = 0;
const int kWorkers = std::max(2, static_cast<int>(std::thread::hardware_concurrency()));

void expect(bool condition, const std::string& what) {
  checks++;
  if (condition) return;
  failures++;
  std::printf("FAILED: %s\n", what.c_str());
}

Accelerator* openOrExit(const AcceleratorOptions& options) {
  std::string reason;
  Accelerator* const device = cuda::openAccelerator(options, reason);
  if (!device) {
    std::printf("no GPU: %s\n", reason.c_str());
    std::exit(77);  // skipped, to CTest
  }
  return device;
}

void onCpu(AttentionSample& sample) {
  const cpu::InstructionSet set = cpu::detectInstructionSet();
  cpu::attentionForward(sample.forward(), threads(kWorkers), set);
  cpu::attentionBackward(sample.backward(), threads(kWorkers), set);
}

/// Twice what each may be off by (gatedfwa.md); FLOAT with room for gradients that cancel.
double tolerance(ElementType type) {
  switch (type) {
    case ElementType::Float64:
      return 2e-12;
    case ElementType::Float32:
      return 8e-6;
    case ElementType::Float16:
      return 4e-3;
    default:
      return 3e-2;
  }
}

struct Named {
  const char* name;
  HostTensor AttentionSample::*tensor;
};
constexpr Named kForward[] = {{"o", &AttentionSample::o}, {"lse", &AttentionSample::lse}};
constexpr Named kBackward[] = {{"dq", &AttentionSample::dq},
                               {"dk", &AttentionSample::dk},
                               {"dv", &AttentionSample::dv},
                               {"dalpha", &AttentionSample::dalpha}};

std::string describe(const SampleShape& s) {
  char text[160];
  std::snprintf(text, sizeof text, "type %d B%d N%d M%d H%d/%d D%d/%d w%d%s%s%s%s%s", static_cast<int>(s.type),
                static_cast<int>(s.batch), static_cast<int>(s.queryLength), static_cast<int>(s.keyLength),
                static_cast<int>(s.heads), static_cast<int>(s.kvHeads), static_cast<int>(s.headSize),
                static_cast<int>(s.valueSize), static_cast<int>(s.window), s.gated ? " gated" : "",
                s.masked ? " masked" : "", s.boolMask ? " (BOOL)" : "", s.resets ? " resets" : "",
                s.strided ? " strided" : "");
  return text;
}

void expectDone(const Outcome& outcome, const std::string& what) {
  expect(outcome.status == Outcome::Done, what + ": " + outcome.message);
}

/// Untouched outputs are NaN, which no result equals.
void compare(AttentionSample& ours, AttentionSample& reference, bool backward, const std::string& what) {
  const auto check = [&](const Named& named) {
    const double error = relativeError(ours.*named.tensor, reference.*named.tensor);
    char text[64];
    std::snprintf(text, sizeof text, " off by %.2e", error);
    expect(error <= tolerance(ours.s.type), what + ": " + named.name + text);
  };
  for (const Named& named : kForward) check(named);
  if (!backward) return;
  for (const Named& named : kBackward)
    if (ours.s.gated || std::string(named.name) != "dalpha") check(named);
}

void runCase(Accelerator& device, const SampleShape& shape) {
  AttentionSample ours(shape), reference(shape);
  onCpu(reference);
  expectDone(device.run(ours.forward(), threads(kWorkers)), describe(shape));
  expectDone(device.run(ours.backward(), threads(kWorkers)), describe(shape));
  compare(ours, reference, true, describe(shape));
}

SampleShape plain(int64_t batch, int64_t queryLength, int64_t keyLength, int64_t heads, int64_t kvHeads,
                  int64_t window) {
  SampleShape s;
  s.batch = batch;
  s.queryLength = queryLength;
  s.keyLength = keyLength;
  s.heads = heads;
  s.kvHeads = kvHeads;
  s.window = window;
  return s;
}

void shapes(Accelerator& device, bool quick) {
  for (const ElementType type :
       {ElementType::Float32, ElementType::Float64, ElementType::Float16, ElementType::BFloat16}) {
    const auto run = [&](SampleShape s) {
      s.type = type;
      runCase(device, s);
    };
    run(plain(1, 1, 1, 1, 1, 1));
    run(plain(2, 300, 300, 4, 2, 100));
    run(plain(1, 3, 700, 8, 1, 64));      // decoding; most keys stay on the host
    run(plain(3, 130, 400, 6, 3, 1000));  // a window that covers all
    SampleShape s = plain(2, 257, 257, 4, 4, 65);
    s.masked = true;
    s.resets = true;
    run(s);
    s.strided = true;
    s.boolMask = true;
    run(s);
    s.gated = false;
    s.headSize = 20;
    s.valueSize = 36;
    run(s);
    if (quick) continue;
    run(plain(1, 8192, 8192, 8, 8, 256));   // a piece for each head
    run(plain(1, 8192, 8192, 8, 1, 256));   // one unit
    run(plain(24, 1024, 1024, 4, 2, 128));  // pieces of batch entries
    run(plain(3, 4096, 4096, 6, 3, 128));   // pieces of heads within batch entries
  }
}

/// The backward call finds what the forward call left, and follows what was changed in between.
void resident(Accelerator& device) {
  const SampleShape shape = plain(1, 4096, 4096, 8, 4, 128);
  AttentionSample ours(shape);
  expectDone(device.run(ours.forward(), threads(kWorkers)), "resident");
  Usage before = device.usage();
  expectDone(device.run(ours.backward(), threads(kWorkers)), "resident");
  Usage after = device.usage();
  const double dO = 4096.0 * 8 * 64 * 4;
  expect(after.uploadedBytes - before.uploadedBytes == dO, "only dO goes up");
  expect(after.residentBytes - before.residentBytes > 3 * dO, "q, k, v, alpha, o and lse are there");

  ours.clearResults();
  expectDone(device.run(ours.forward(), threads(kWorkers)), "resident");
  // One element of each: of k in its middle, of q and alpha at their ends.
  ours.k.set(ours.k.size() / 2, 3.5);
  ours.q.set(ours.q.size() - 1, -2.5);
  ours.alpha.set(0, 0.75);
  ours.alpha.set(ours.alpha.size() - 1, 0.5);
  AttentionSample reference = ours;
  cpu::attentionBackward(reference.backward(), threads(kWorkers), cpu::detectInstructionSet());
  before = device.usage();
  expectDone(device.run(ours.backward(), threads(kWorkers)), "changed operands");
  compare(ours, reference, true, "changed operands");
  after = device.usage();
  expect(after.uploadedBytes - before.uploadedBytes < 1.5 * dO, "of changed operands only the changed blocks go up");
}

void memoryLimits() {
  AcceleratorOptions options;
  options.memoryLimit = 4 << 20;
  Accelerator& small = *openOrExit(options);
  AttentionSample ours(plain(1, 8192, 8192, 4, 4, 64));
  const Outcome outcome = small.run(ours.forward(), threads(kWorkers));
  expect(outcome.status == Outcome::OutOfMemory, "over the limit: " + outcome.message);
  bool untouched = true;
  for (int64_t i = 0; i < ours.o.size(); i++) untouched = untouched && std::isnan(ours.o.get(i));
  expect(untouched, "out of memory leaves the outputs as they were");
  runCase(small, plain(1, 256, 256, 4, 4, 64));

  // What earlier calls left makes room.
  options.memoryLimit = 40 << 20;
  options.cacheLimit = 40 << 20;
  Accelerator& full = *openOrExit(options);
  for (int i = 0; i < 4; i++) runCase(full, plain(1, 2048, 2048, 8, 8, 64));
  std::vector<std::unique_ptr<AttentionSample>> kept;
  for (int i = 0; i < 4; i++) {
    kept.push_back(std::make_unique<AttentionSample>(plain(1, 2048, 2048, 8, 8, 64)));
    expectDone(full.run(kept.back()->forward(), threads(kWorkers)), "evicts");
  }

  options.memoryLimit = 0;
  options.cacheLimit = 0;
  Accelerator& forgetful = *openOrExit(options);
  runCase(forgetful, plain(1, 2048, 2048, 4, 4, 64));
  expect(forgetful.usage().residentBytes == 0, "a cache of 0 bytes keeps nothing");
}

void manyThreads(Accelerator& device) {
  constexpr int kThreads = 8, kRounds = 6;
  std::vector<std::unique_ptr<AttentionSample>> single, parallel;
  for (int t = 0; t < kThreads; t++) {
    SampleShape s = plain(1 + t % 2, 500 + 313 * t, 500 + 313 * t, 4, 2, 50 + 40 * t);
    s.type = t % 3 == 2 ? ElementType::BFloat16 : ElementType::Float32;
    single.push_back(std::make_unique<AttentionSample>(s, t));
    parallel.push_back(std::make_unique<AttentionSample>(s, t));
    expectDone(device.run(single[t]->forward(), threads(2)), "one thread");
    expectDone(device.run(single[t]->backward(), threads(2)), "one thread");
  }
  std::vector<std::thread> all;
  std::vector<int> bad(kThreads, 0);
  for (int t = 0; t < kThreads; t++)
    all.emplace_back([&, t] {
      for (int round = 0; round < kRounds; round++) {
        AttentionSample& x = *parallel[t];
        x.clearResults();
        bad[t] += device.run(x.forward(), threads(2)).status != Outcome::Done;
        bad[t] += device.run(x.backward(), threads(2)).status != Outcome::Done;
        for (const Named& named : {kForward[0], kForward[1], kBackward[0], kBackward[1], kBackward[2], kBackward[3]})
          bad[t] += (x.*named.tensor).memory != (*single[t].*named.tensor).memory;
      }
    });
  for (std::thread& thread : all) thread.join();
  for (int t = 0; t < kThreads; t++) expect(bad[t] == 0, "eight threads at once: the bits of one");
}

void gates(Accelerator& device) {
  for (const ElementType type : {ElementType::Float32, ElementType::Float64}) {
    const std::vector<int64_t> shape{2, 1000, 6};
    HostTensor h(type, shape, true), beta(type, shape, false), dalpha(type, shape, false);
    std::mt19937 random(3);
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < h.size(); i++) {
      h.set(i, 4 * normal(random));
      beta.set(i, std::abs(normal(random)));
      dalpha.set(i, normal(random));
    }
    HostTensor results[2][3];
    for (int onDevice = 0; onDevice < 2; onDevice++) {
      for (HostTensor& x : results[onDevice]) x = HostTensor(type, shape, onDevice == 1);
      GateForward forward{
          type, 2, 1000, 6, 1e-3, h.view<Input>(), beta.view<Input>(), results[onDevice][0].view<Output>()};
      GateBackward backward{type,
                            2,
                            1000,
                            6,
                            1e-3,
                            h.view<Input>(),
                            beta.view<Input>(),
                            dalpha.view<Input>(),
                            results[onDevice][1].view<Output>(),
                            results[onDevice][2].view<Output>()};
      if (onDevice) {
        expectDone(device.run(forward, threads(2)), "gate");
        expectDone(device.run(backward, threads(2)), "gate backward");
      } else {
        cpu::gateForward(forward, threads(2), cpu::detectInstructionSet());
        cpu::gateBackward(backward, threads(2), cpu::detectInstructionSet());
      }
    }
    for (int i = 0; i < 3; i++)
      expect(relativeError(results[1][i], results[0][i]) <= tolerance(type), "gate results agree");
  }
}

void throughput(Accelerator& device) {
  CopySpeed speed{};
  expectDone(device.measureCopies(threads(kWorkers), &speed), "copies");
  std::printf("copies through staging buffers, %d threads: up %.1f GB/s, down %.1f GB/s\n", kWorkers,
              speed.uploadBytesPerSecond * 1e-9, speed.downloadBytesPerSecond * 1e-9);
}

}  // namespace

int main(int count, char** arguments) {
  const bool quick = count > 1 && std::string(arguments[1]) == "--quick";
  std::string reason;
  AcceleratorOptions nowhere;
  nowhere.ordinal = 99;
  Accelerator& device = *openOrExit({});
  std::printf("%s\n", device.name().c_str());
  expect(cuda::openAccelerator(nowhere, reason) == nullptr && reason.find("cuda:99") != std::string::npos,
         "a device that is not there: " + reason);
  shapes(device, quick);
  gates(device);
  resident(device);
  memoryLimits();
  manyThreads(device);
  if (!quick) throughput(device);
  std::printf("offload: %d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
