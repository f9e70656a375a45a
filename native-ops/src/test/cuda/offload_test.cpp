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
#include "nsa_sample.h"
#include "offload/cuda_accelerator.h"
#include "op/work.h"
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

/// Twice what each may be off by (docs/cuda.md); FLOAT with room for gradients that cancel.
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

std::string describe(const NsaSampleShape& s) {
  char text[200];
  std::snprintf(text, sizeof text, "nsa type %d B%d N%d M%d H%d/%d D%d/%d l%d d%d l'%d top%d%s%s%s",
                static_cast<int>(s.type), static_cast<int>(s.batch), static_cast<int>(s.queryLength),
                static_cast<int>(s.keyLength), static_cast<int>(s.heads), static_cast<int>(s.kvHeads),
                static_cast<int>(s.headSize), static_cast<int>(s.valueSize), static_cast<int>(s.blockLength),
                static_cast<int>(s.stride), static_cast<int>(s.selectionBlock), static_cast<int>(s.topN),
                s.masked ? " masked" : "", s.boolMask ? " (BOOL)" : "", s.strided ? " strided" : "");
  return text;
}

/// All five ops; the GPU's selected attention takes the CPU's choice.
void runNsaCase(Accelerator& device, const NsaSampleShape& shape) {
  const std::string what = describe(shape);
  const cpu::InstructionSet set = cpu::detectInstructionSet();
  NsaSample ours(shape), reference(shape);
  const auto onBoth = [&](const KernelCall& call, const KernelCall& same) {
    expectDone(device.run(call, threads(kWorkers)), what);
    cpu::run(same, threads(kWorkers), set);
  };
  const auto compareResults = [&](const char* branch, NsaResults& x, NsaResults& exact) {
    const auto check = [&](const char* name, HostTensor NsaResults::*tensor) {
      const double error = relativeError(x.*tensor, exact.*tensor);
      char text[64];
      std::snprintf(text, sizeof text, " off by %.2e", error);
      expect(error <= tolerance(shape.type), what + ": " + branch + ' ' + name + text);
    };
    check("o", &NsaResults::o);
    check("lse", &NsaResults::lse);
    check("dq", &NsaResults::dq);
    check("dk", &NsaResults::dk);
    check("dv", &NsaResults::dv);
  };
  onBoth(ours.compressedForward(), reference.compressedForward());
  onBoth(ours.compressedBackward(), reference.compressedBackward());
  compareResults("compressed", ours.compressed, reference.compressed);
  ours.compressed.lse = reference.compressed.lse;
  onBoth(ours.select(), reference.select());
  int64_t other = 0;
  for (int64_t i = 0; i < ours.indices.size(); i++)
    other += std::memcmp(ours.indices.at(i), reference.indices.at(i), 4) != 0;
  expect(other <= 2, what + ": " + std::to_string(other) + " blocks chosen otherwise, more than ties would be");
  ours.indices = reference.indices;
  onBoth(ours.selectedForward(), reference.selectedForward());
  onBoth(ours.selectedBackward(), reference.selectedBackward());
  compareResults("selected", ours.selected, reference.selected);
}

void nsaShapes(Accelerator& device, bool quick) {
  for (const ElementType type :
       {ElementType::Float32, ElementType::Float64, ElementType::Float16, ElementType::BFloat16}) {
    NsaSampleShape s;
    s.type = type;
    const auto run = [&](int64_t batch, int64_t queryLength, int64_t keyLength, int64_t heads, int64_t kvHeads) {
      s.batch = batch;
      s.queryLength = queryLength;
      s.keyLength = keyLength;
      s.heads = heads;
      s.kvHeads = kvHeads;
      runNsaCase(device, s);
    };
    run(1, 20, 20, 1, 1);
    run(2, 150, 150, 4, 2);
    run(1, 3, 700, 16, 1);  // decoding
    s.masked = true;
    run(2, 130, 260, 6, 3);
    s.strided = s.boolMask = true;
    s.headSize = 20;
    s.valueSize = 36;
    run(2, 130, 260, 6, 3);
    if (quick) continue;
    s = {};
    s.type = type;
    s.blockLength = 32;
    s.stride = 16;
    s.selectionBlock = 64;
    s.topN = 8;
    run(1, 3000, 3000, 16, 4);  // pieces of heads
    run(12, 500, 500, 8, 2);    // pieces of batch entries
  }
}

/// What the ops of a layer have in common goes up once: q, the compressed keys, lse, the choice.
void nsaResident(Accelerator& device) {
  NsaSampleShape shape;
  shape.queryLength = shape.keyLength = 1024;
  shape.heads = 8;
  shape.kvHeads = 2;
  NsaSample x(shape);
  const double row = 64 * 4, q = 1024 * 8 * row, kv = 1024 * 2 * row;
  const auto uploaded = [&](const KernelCall& call) {
    const double before = device.usage().uploadedBytes;
    expectDone(device.run(call, threads(kWorkers)), "resident");
    return device.usage().uploadedBytes - before;
  };
  const double blocks = static_cast<double>(shape.blocks()) * 2 * row;
  expect(uploaded(x.compressedForward()) == q + 2 * blocks, "q, kCmp and vCmp go up");
  expect(uploaded(x.select()) == 0, "the choice finds q, kCmp and lse");
  expect(uploaded(x.selectedForward()) == 2 * kv, "only k and v go up");
  expect(uploaded(x.selectedBackward()) == q, "only dO goes up");
  expect(uploaded(x.compressedBackward()) == q, "only dO goes up; q is there after the other branch's gradient");
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

  NsaSampleShape shape;
  shape.queryLength = shape.keyLength = 8192;
  shape.heads = shape.kvHeads = 4;
  NsaSample nsa(shape);
  expect(small.run(nsa.compressedForward(), threads(kWorkers)).status == Outcome::OutOfMemory, "nsa over the limit");
  for (int64_t i = 0; i < nsa.compressed.o.size(); i++) untouched = untouched && std::isnan(nsa.compressed.o.get(i));
  expect(untouched, "out of memory leaves the outputs of nsa as they were");
  shape.queryLength = shape.keyLength = 256;
  runNsaCase(small, shape);

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

  // Where nothing else makes room, a backward on Hopper does without dS: here there is half of what it would take for a
  // piece of two heads, 2 x 32 query tiles x 2 key tiles of 8 KB, and the rest of the workspace takes 0.1 MB. (On other
  // devices no more than a tight limit.)
  SampleShape stored = plain(1, 2048, 2048, 4, 4, 64);
  stored.type = ElementType::BFloat16;
  stored.headSize = stored.valueSize = 128;
  const AttentionSample sized(stored);
  options.memoryLimit = 512 << 10;
  for (const HostTensor* x : {&sized.q, &sized.k, &sized.v, &sized.alpha, &sized.o, &sized.lse, &sized.dO, &sized.dq,
                              &sized.dk, &sized.dv, &sized.dalpha})
    options.memoryLimit += static_cast<int64_t>(x->memory.size());
  options.cacheLimit = 0;
  runCase(*openOrExit(options), stored);

  options.memoryLimit = 0;
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

/// Batch entries beyond the grid of the mask's and of the gate's kernels.
void refusals(Accelerator& device) {
  NsaSampleShape shape;
  shape.headSize = shape.valueSize = 1;
  shape.queryLength = shape.keyLength = 8;
  for (const int64_t batch : {65535, 65536}) {
    shape.batch = batch;
    shape.masked = false;
    expect(!device.refusal(NsaSample(shape).selectedForward()), "batch entries without a mask");
    shape.masked = true;
    NsaSample masked(shape);
    for (const KernelCall& call :
         {KernelCall(masked.compressedForward()), KernelCall(masked.select()), KernelCall(masked.selectedBackward())})
      expect((device.refusal(call) != nullptr) == (batch > 65535), "a mask of many batch entries");
    GateForward gate{};
    gate.batch = batch;
    gate.length = gate.heads = 1;
    expect((device.refusal(gate) != nullptr) == (batch > 65535), "a gate of many batch entries");
  }
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

  NsaSampleShape shape;
  shape.queryLength = shape.keyLength = 8192;
  shape.heads = 16;
  shape.kvHeads = 4;
  shape.blockLength = 32;
  shape.stride = 16;
  shape.selectionBlock = 64;
  shape.topN = 16;
  NsaSample x(shape);
  const auto milliseconds = [](const auto& body) {
    double best = HUGE_VAL;
    for (int i = 0; i < 2; i++) {
      const auto start = std::chrono::steady_clock::now();
      body();
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return 1e3 * best;
  };
  for (const KernelCall& call :
       {KernelCall(x.compressedForward()), KernelCall(x.select()), KernelCall(x.selectedForward()),
        KernelCall(x.selectedBackward()), KernelCall(x.compressedBackward())}) {
    const double cpu = milliseconds([&] { cpu::run(call, threads(kWorkers), cpu::detectInstructionSet()); });
    const double gpu = milliseconds([&] { expectDone(device.run(call, threads(kWorkers)), "throughput"); });
    std::printf("%s: %.1f ms, CPU %.1f ms\n", workOf(call).description.c_str(), gpu, cpu);
  }
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
  nsaShapes(device, quick);
  refusals(device);
  gates(device);
  resident(device);
  nsaResident(device);
  memoryLimits();
  manyThreads(device);
  if (!quick) throughput(device);
  std::printf("offload: %d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
