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

/// A measurement on the CPU that takes longer, in seconds, is not repeated.
constexpr double kShort = 0.02;
/// As many workers as a call of 1024 tokens and 8 heads has work for.
constexpr int kFewWorkers = 4;

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

template <typename Rates>
auto& rateOf(Rates& rates, const Work& work) {
  auto& own = rates[static_cast<int>(work.kind)][static_cast<int>(work.type)];
  return work.backward ? own.backward : own.forward;
}

/// A call of each op, forward and backward, with memory of its own; the values are harmless bits of every type: small
/// positive numbers.
struct Sample {
  std::vector<std::vector<char>> memory;
  std::vector<KernelCall> calls;

  Sample(ElementType type, int64_t length, int64_t heads, int64_t size, int64_t window) {
    const auto array = [&](int64_t elements, size_t bytes) {
      memory.emplace_back(static_cast<size_t>(elements) * bytes);
      std::vector<char>& data = memory.back();
      // 0x3c.. is near 1 in HALF and BFLOAT16 alike and small in FLOAT and DOUBLE; the low byte varies.
      constexpr size_t kPattern = 4096;
      for (size_t i = 0; i < std::min(data.size(), kPattern); i++)
        data[i] = static_cast<char>(i % bytes == bytes - 1 ? 0x3c : (i * 2654435761u) >> 24 & 0x7f);
      for (size_t i = kPattern; i < data.size(); i++) data[i] = data[i - kPattern];
      return data.data();
    };
    const size_t bytes = bytesOf(type), sumBytes = std::max<size_t>(bytes, 4);
    const int64_t rows = length * heads;
    const auto rowsOf = [&] { return Output{array(rows * size, bytes), {rows * size, heads * size, size, 1}}; };
    const auto in = [](const Output& x) {
      Input result;
      result.data = x.data;
      std::memcpy(result.strides, x.strides, sizeof(x.strides));
      return result;
    };
    const Input q = in(rowsOf()), k = in(rowsOf()), v = in(rowsOf()), dO = in(rowsOf());
    const Output o = rowsOf(), dq = rowsOf(), dk = rowsOf(), dv = rowsOf();
    const Output lse{array(rows, sumBytes), {rows, length, 1, 0}};
    const auto fill = [&](auto& p, int64_t kvHeads) {
      p.type = p.maskType = type;
      p.batch = 1;
      p.queryLength = p.keyLength = length;
      p.heads = heads;
      p.kvHeads = kvHeads;
      p.headSize = p.valueSize = size;
      p.scale = 0.125;
      p.q = q;
      p.k = k;
      p.v = v;
    };
    const auto add = [&](const auto& problem, auto forward, auto backward) {
      static_cast<std::decay_t<decltype(problem)>&>(forward) = problem;
      forward.o = o;
      forward.lse = lse;
      static_cast<std::decay_t<decltype(problem)>&>(backward) = problem;
      backward.o = in(o);
      backward.lse = in(lse);
      backward.dO = dO;
      backward.dq = dq;
      backward.dk = dk;
      backward.dv = dv;
      if constexpr (kIsWindow<decltype(backward)>) backward.dalpha = {array(rows, sumBytes), {rows, heads, 1, 0}};
      calls.push_back(forward);
      calls.push_back(backward);
    };
    AttentionProblem windowed{};
    fill(windowed, heads);
    windowed.window = window;
    windowed.alpha = in({array(rows, sumBytes), {rows, heads, 1, 0}});
    add(windowed, AttentionForward{}, AttentionBackward{});

    // Native sparse attention of groups of 4 heads: the first rows of k and v are its compressed blocks.
    const int64_t kvHeads = heads / 4, topN = window / kSelectionBlock;
    NsaCompressedProblem compressed{};
    fill(compressed, kvHeads);
    compressed.blockLength = kBlockLength;
    compressed.stride = kStride;
    compressed.blocks = (length - kBlockLength) / kStride + 1;
    add(compressed, NsaCompressedForward{}, NsaCompressedBackward{});
    const Output indices{array(length * kvHeads * topN, 4), {length * kvHeads * topN, kvHeads * topN, topN, 1}};
    for (int64_t row = 0; row < length * kvHeads; row++) {  // blocks from all of the past
      const int64_t blocks = row / kvHeads / kSelectionBlock + 1;
      for (int64_t i = 0; i < topN; i++)
        static_cast<int32_t*>(indices.data)[row * topN + i] =
            static_cast<int32_t>(blocks < topN ? (i < blocks ? i : -1) : i * blocks / topN);
    }
    NsaSelect select{};
    static_cast<NsaCompressedProblem&>(select) = compressed;
    select.v = {};
    select.valueSize = 0;
    select.selectionBlock = kSelectionBlock;
    select.topN = topN;
    select.lse = in(lse);
    select.indices = indices;
    calls.push_back(select);
    NsaSelectedProblem selected{};
    fill(selected, kvHeads);
    selected.selectionBlock = kSelectionBlock;
    selected.topN = topN;
    selected.indices = in(indices);
    add(selected, NsaSelectedForward{}, NsaSelectedBackward{});
  }

 private:
  static constexpr int64_t kBlockLength = 32, kStride = 16, kSelectionBlock = 64;  // the paper's
};

}  // namespace

double CostModel::onCpu(const Work& work) const { return seconds(work.flops, rateOf(cpu, work)); }

double CostModel::onDevice(const Work& work, const Traffic& traffic) const {
  const double kernel = seconds(work.flops, rateOf(device, work));
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

  const Sample least(ElementType::Float32, 32, 4, 8, 64);
  double shortest = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 5 && outcome.status == Outcome::Done; i++)
    shortest = std::min(shortest, timed([&] { outcome = device.run(least.calls.front(), executor); }));
  if (outcome.status != Outcome::Done) return outcome;
  model->deviceSeconds = shortest;

  for (const ElementType type :
       {ElementType::Float32, ElementType::Float64, ElementType::Float16, ElementType::BFloat16}) {
    // Large enough to fill each: a device has many more lanes than most processors, and compressed keys are few.
    const Sample small(type, 1024, 8, 64, 512), large(type, 4096, 8, 64, 512);
    for (size_t i = 0; i < large.calls.size(); i++) {
      const OpKind kind = workOf(large.calls[i]).kind;
      const bool fewKeys = kind == OpKind::Compressed || kind == OpKind::Select;
      const KernelCall& onCpu = (fewKeys || executor.workers > kFewWorkers ? large : small).calls[i];
      const KernelCall& onDevice = large.calls[i];
      double best = timed([&] { cpu::run(onCpu, executor, set); });
      if (best < kShort) best = std::min(best, timed([&] { cpu::run(onCpu, executor, set); }));
      rateOf(model->cpu, workOf(onCpu)) = workOf(onCpu).flops / best;

      if (device.refusal(onDevice)) continue;
      best = std::numeric_limits<double>::infinity();
      for (int run = 0; run < 2 && outcome.status == Outcome::Done; run++) {
        const double before = device.usage().kernelSeconds;
        outcome = device.run(onDevice, executor);
        best = std::min(best, device.usage().kernelSeconds - before);
      }
      if (outcome.status != Outcome::Done) return outcome;
      rateOf(model->device, workOf(onDevice)) = workOf(onDevice).flops / best;
    }
  }
  return outcome;
}

}  // namespace gatedfwa
