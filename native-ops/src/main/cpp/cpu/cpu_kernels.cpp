#include "cpu/cpu_kernels.h"

#include <cpuid.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>

#include "cpu/plan.h"

namespace gatedfwa::cpu {
namespace {

/// Below this many operations for each, waking another worker costs more than it saves.
constexpr double kFlopsPerWorker = 1e6;

const AttentionKernels& kernelsFor(InstructionSet set) {
  switch (set) {
    case InstructionSet::Avx512:
      return avx512Kernels();
    case InstructionSet::Avx2:
      return avx2Kernels();
    default:
      return plainKernels();
  }
}

const NsaKernels& nsaKernelsFor(InstructionSet set) {
  switch (set) {
    case InstructionSet::Avx512:
      return avx512NsaKernels();
    case InstructionSet::Avx2:
      return avx2NsaKernels();
    default:
      return plainNsaKernels();
  }
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

std::unique_ptr<char, Free> allocate(size_t bytes) {
  constexpr size_t kPage = 4096;
  std::unique_ptr<char, Free> memory(
      static_cast<char*>(std::aligned_alloc(kPage, std::max<size_t>(1, (bytes + kPage - 1) / kPage) * kPage)));
  if (!memory) throw std::bad_alloc();
  return memory;
}

void runPlan(const Plan& plan, const void* params, const Executor& executor) {
  const int most = static_cast<int>(std::min<double>(std::max(1, executor.workers), plan.flops / kFlopsPerWorker + 1));
  const size_t stride = (plan.scratchBytes + 4095) / 4096 * 4096;
  const std::unique_ptr<char, Free> scratch = allocate(stride * static_cast<size_t>(most));
  for (int i = 0; i < plan.phaseCount; i++) {
    const Phase& phase = plan.phases[i];
    const int workers = static_cast<int>(std::min<int64_t>(most, phase.items));
    std::atomic<int64_t> next{0};
    const auto body = [&](int worker) {
      for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < phase.items;)
        phase.run(params, item, scratch.get() + stride * static_cast<size_t>(worker));
    };
    if (workers == 1) {
      body(0);
    } else {
      executor.run(workers, body);
    }
  }
}

template <typename Params>
void runWithWorkspace(const Plan& plan, Params params, const Executor& executor) {
  const std::unique_ptr<char, Free> workspace = allocate(plan.workspaceBytes);
  params.workspace = workspace.get();
  runPlan(plan, &params, executor);
}

template <typename Params>
Params clampWindow(Params params) {
  params.window = std::min(params.window, params.keyLength);
  return params;
}

/// log(1 + exp(x)) without overflow and without losing the tail.
template <typename T>
T softplus(T x) {
  return std::max(x, T(0)) + std::log1p(std::exp(-std::abs(x)));
}
template <typename T>
T sigmoid(T x) {
  const T e = std::exp(-std::abs(x));
  return (x < 0 ? e : T(1)) / (1 + e);
}

template <typename T>
const T& element(const Input& x, int64_t b, int64_t t, int64_t h) {
  return static_cast<const T*>(x.data)[b * x.strides[0] + t * x.strides[1] + h * x.strides[2]];
}
template <typename T>
T& element(const Output& x, int64_t b, int64_t t, int64_t h) {
  return static_cast<T*>(x.data)[b * x.strides[0] + t * x.strides[1] + h * x.strides[2]];
}

constexpr int64_t kGateTokens = 256;

/// Calls apply(params, b, t, h) for the tokens of one item.
template <typename Params, typename Apply>
void forEachGate(const Params& p, int64_t item, Apply apply) {
  const int64_t blocks = (p.length + kGateTokens - 1) / kGateTokens;
  const int64_t b = item / blocks, first = item % blocks * kGateTokens;
  for (int64_t t = first; t < std::min(p.length, first + kGateTokens); t++)
    for (int64_t h = 0; h < p.heads; h++) apply(b, t, h);
}

template <typename T>
void gateForwardItem(const void* params, int64_t item, void*) {
  const auto& p = *static_cast<const GateForward*>(params);
  forEachGate(p, item, [&](int64_t b, int64_t t, int64_t h) {
    const T gate = element<T>(p.h, b, t, h), beta = element<T>(p.beta, b, t, h);
    element<T>(p.alpha, b, t, h) = softplus(-beta * gate) / (beta + static_cast<T>(p.eps));
  });
}

template <typename T>
void gateBackwardItem(const void* params, int64_t item, void*) {
  const auto& p = *static_cast<const GateBackward*>(params);
  forEachGate(p, item, [&](int64_t b, int64_t t, int64_t h) {
    const T gate = element<T>(p.h, b, t, h), beta = element<T>(p.beta, b, t, h);
    const T gradient = element<T>(p.dalpha, b, t, h), divisor = beta + static_cast<T>(p.eps);
    const T slope = sigmoid(-beta * gate) / divisor;
    element<T>(p.dh, b, t, h) = -beta * slope * gradient;
    element<T>(p.dbeta, b, t, h) = -(gate * slope + softplus(-beta * gate) / (divisor * divisor)) * gradient;
  });
}

template <typename Params>
void runGate(const Params& params, const Executor& executor, void (*single)(const void*, int64_t, void*),
             void (*wide)(const void*, int64_t, void*)) {
  Plan plan;
  plan.flops = 50.0 * static_cast<double>(params.batch * params.length * params.heads);
  plan.add(params.batch * ((params.length + kGateTokens - 1) / kGateTokens),
           params.type == ElementType::Float64 ? wide : single);
  runPlan(plan, &params, executor);
}

}  // namespace

InstructionSet detectInstructionSet() {
  __builtin_cpu_init();
  // The kernels of both sets convert HALF by F16C, which some virtual machines hide.
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_F16C)) return InstructionSet::Plain;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
    return InstructionSet::Avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return InstructionSet::Avx2;
  return InstructionSet::Plain;
}

void attentionForward(const AttentionForward& params, const Executor& executor, InstructionSet set) {
  const AttentionForward clamped = clampWindow(params);
  runPlan(kernelsFor(set).forward(clamped), &clamped, executor);
}

void attentionBackward(const AttentionBackward& params, const Executor& executor, InstructionSet set) {
  const AttentionBackward clamped = clampWindow(params);
  runPlan(kernelsFor(set).backward(clamped), &clamped, executor);
}

void gateForward(const GateForward& params, const Executor& executor, InstructionSet) {
  runGate(params, executor, gateForwardItem<float>, gateForwardItem<double>);
}

void gateBackward(const GateBackward& params, const Executor& executor, InstructionSet) {
  runGate(params, executor, gateBackwardItem<float>, gateBackwardItem<double>);
}

void nsaCompressedForward(const NsaCompressedForward& params, const Executor& executor, InstructionSet set) {
  runPlan(nsaKernelsFor(set).compressedForward(params), &params, executor);
}

void nsaCompressedBackward(const NsaCompressedBackward& params, const Executor& executor, InstructionSet set) {
  runWithWorkspace(nsaKernelsFor(set).compressedBackward(params), params, executor);
}

void nsaSelect(const NsaSelect& params, const Executor& executor, InstructionSet set) {
  runPlan(nsaKernelsFor(set).select(params), &params, executor);
}

void nsaSelectedForward(const NsaSelectedForward& params, const Executor& executor, InstructionSet set) {
  runPlan(nsaKernelsFor(set).selectedForward(params), &params, executor);
}

void nsaSelectedBackward(const NsaSelectedBackward& params, const Executor& executor, InstructionSet set) {
  runWithWorkspace(nsaKernelsFor(set).selectedBackward(params), params, executor);
}

void run(const KernelCall& call, const Executor& executor, InstructionSet set) {
  struct {
    const Executor& executor;
    InstructionSet set;
    void operator()(const AttentionForward& p) const { attentionForward(p, executor, set); }
    void operator()(const AttentionBackward& p) const { attentionBackward(p, executor, set); }
    void operator()(const GateForward& p) const { gateForward(p, executor, set); }
    void operator()(const GateBackward& p) const { gateBackward(p, executor, set); }
    void operator()(const NsaCompressedForward& p) const { nsaCompressedForward(p, executor, set); }
    void operator()(const NsaCompressedBackward& p) const { nsaCompressedBackward(p, executor, set); }
    void operator()(const NsaSelect& p) const { nsaSelect(p, executor, set); }
    void operator()(const NsaSelectedForward& p) const { nsaSelectedForward(p, executor, set); }
    void operator()(const NsaSelectedBackward& p) const { nsaSelectedBackward(p, executor, set); }
  } const kernel{executor, set};
  std::visit(kernel, call);
}

}  // namespace gatedfwa::cpu
