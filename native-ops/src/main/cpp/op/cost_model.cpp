#include "op/cost_model.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace gatedfwa {
namespace {

/// A call's kernels run while others of its copies do: of the three streams the longest counts whole, of the others the
/// part that has nothing to run beside, the first and last of about this many pieces.
constexpr double kPieces = 8;

double seconds(double amount, double rate) {
  return amount == 0 ? 0 : rate > 0 ? amount / rate : std::numeric_limits<double>::infinity();
}

template <typename Body>
double timed(Body body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

size_t bytesOf(ElementType type) { return type == ElementType::Float64 ? 8 : type == ElementType::Float32 ? 4 : 2; }

/// A problem with memory of its own; the values are harmless bits of every type: small positive numbers.
struct Sample {
  std::vector<std::vector<char>> memory;
  AttentionForward forward{};
  AttentionBackward backward{};

  Sample(ElementType type, int64_t length, int64_t heads, int64_t size, int64_t window) {
    const auto array = [&](int64_t elements, size_t bytes) {
      memory.emplace_back(static_cast<size_t>(elements) * bytes);
      std::vector<char>& data = memory.back();
      // 0x3c.. is near 1 in HALF and BFLOAT16 alike and small in FLOAT and DOUBLE; the low byte varies.
      for (size_t i = 0; i < data.size(); i++)
        data[i] = static_cast<char>(i % bytes == bytes - 1 ? 0x3c : (i * 2654435761u) >> 24 & 0x7f);
      return data.data();
    };
    const size_t bytes = bytesOf(type), sumBytes = std::max<size_t>(bytes, 4);
    const int64_t rows = length * heads;
    const auto rowsOf = [&](void* data) { return Output{data, {rows * size, heads * size, size, 1}}; };
    const auto in = [](const Output& x) {
      Input result;
      result.data = x.data;
      std::memcpy(result.strides, x.strides, sizeof(x.strides));
      return result;
    };
    AttentionProblem problem{};
    problem.type = problem.maskType = type;
    problem.batch = 1;
    problem.queryLength = problem.keyLength = length;
    problem.heads = problem.kvHeads = heads;
    problem.headSize = problem.valueSize = size;
    problem.window = window;
    problem.scale = 0.125;
    problem.q = in(rowsOf(array(rows * size, bytes)));
    problem.k = in(rowsOf(array(rows * size, bytes)));
    problem.v = in(rowsOf(array(rows * size, bytes)));
    const Output alpha{array(rows, sumBytes), {rows, heads, 1, 0}};
    problem.alpha = in(alpha);
    static_cast<AttentionProblem&>(forward) = problem;
    static_cast<AttentionProblem&>(backward) = problem;
    forward.o = rowsOf(array(rows * size, bytes));
    forward.lse = {array(rows, sumBytes), {rows, length, 1, 0}};
    backward.o = in(forward.o);
    backward.lse = in(forward.lse);
    backward.dO = in(rowsOf(array(rows * size, bytes)));
    backward.dq = rowsOf(array(rows * size, bytes));
    backward.dk = rowsOf(array(rows * size, bytes));
    backward.dv = rowsOf(array(rows * size, bytes));
    backward.dalpha = {array(rows, sumBytes), {rows, heads, 1, 0}};
  }
};

}  // namespace

double CostModel::onCpu(const Work& work) const {
  const Rates& rates = cpu[static_cast<int>(work.type)];
  return seconds(work.flops, work.backward ? rates.backward : rates.forward);
}

double CostModel::onDevice(const Work& work, const Traffic& traffic) const {
  const Rates& rates = device[static_cast<int>(work.type)];
  const double kernel = seconds(work.flops, work.backward ? rates.backward : rates.forward);
  const double upload = seconds(traffic.upload, uploadRate) + seconds(traffic.resident, comparisonRate);
  const double download = seconds(traffic.download, downloadRate);
  const double longest = std::max({kernel, upload, download});
  if (std::isinf(longest)) return longest;
  return deviceSeconds + longest + (kernel + upload + download - longest) / kPieces;
}

Outcome measure(Accelerator& device, const Executor& executor, cpu::InstructionSet set, CostModel* model) {
  CopySpeed copies{};
  Outcome outcome = device.measureCopies(executor, &copies);
  if (outcome.status != Outcome::Done) return outcome;
  model->uploadRate = copies.uploadBytesPerSecond;
  model->downloadRate = copies.downloadBytesPerSecond;
  // A resident operand is read and hashed as an uploaded one is, but not copied.
  model->comparisonRate = 2 * copies.uploadBytesPerSecond;

  Sample least(ElementType::Float32, 8, 1, 8, 8);
  double shortest = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 5 && outcome.status == Outcome::Done; i++)
    shortest = std::min(shortest, timed([&] { outcome = device.run(least.forward, executor); }));
  if (outcome.status != Outcome::Done) return outcome;
  model->deviceSeconds = shortest;

  for (const ElementType type :
       {ElementType::Float32, ElementType::Float64, ElementType::Float16, ElementType::BFloat16}) {
    CostModel::Rates& cpuRates = model->cpu[static_cast<int>(type)];
    CostModel::Rates& deviceRates = model->device[static_cast<int>(type)];
    // Large enough to fill each: a device has many more lanes.
    Sample small(type, 1024, 8, 64, 512), large(type, 4096, 8, 64, 512);
    double forward = std::numeric_limits<double>::infinity(), backward = forward;
    for (int i = 0; i < 2; i++) {
      forward = std::min(forward, timed([&] { cpu::attentionForward(small.forward, executor, set); }));
      backward = std::min(backward, timed([&] { cpu::attentionBackward(small.backward, executor, set); }));
    }
    cpuRates = {workOf(small.forward).flops / forward, workOf(small.backward).flops / backward};
    if (device.refusal(large.forward, false) || device.refusal(large.backward, true)) continue;
    const auto kernelSeconds = [&](const auto& params) {
      double best = std::numeric_limits<double>::infinity();
      for (int i = 0; i < 2 && outcome.status == Outcome::Done; i++) {
        const double before = device.usage().kernelSeconds;
        outcome = device.run(params, executor);
        best = std::min(best, device.usage().kernelSeconds - before);
      }
      return best;
    };
    const double deviceForward = kernelSeconds(large.forward), deviceBackward = kernelSeconds(large.backward);
    if (outcome.status != Outcome::Done) return outcome;
    deviceRates = {workOf(large.forward).flops / deviceForward, workOf(large.backward).flops / deviceBackward};
  }
  return outcome;
}

}  // namespace gatedfwa
