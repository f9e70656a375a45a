// gated_fwa on the CPU for a few queries against a cache: one row at a time, vectors along the head, so that no lane
// idles. Bound by reading K and V once, in place where they are of the type that is computed in.
#pragma once

#include "cpu/plan.h"
#include "cpu/tiles.inl"

namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET {

constexpr int64_t kDecodeQueries = 4;

template <typename A>
struct Decode {
  static constexpr int64_t kBlock = kTile<A>;

  struct Buffers {
    A *q, *o, *k, *v, *weight;
    uint8_t* keep;
    Buffers(const AttentionProblem& p, Scratch& scratch)
        : q(scratch.take<A>(roundUp(p.headSize, kLanes<A>))),
          o(scratch.take<A>(roundUp(p.valueSize, kLanes<A>))),
          k(scratch.take<A>(kBlock * roundUp(p.headSize, kLanes<A>))),
          v(scratch.take<A>(kBlock * roundUp(p.valueSize, kLanes<A>))),
          weight(scratch.take<A>(kBlock)),
          keep(scratch.take<uint8_t>(kBlock)) {}
  };

  static Plan plan(const AttentionForward& p) {
    Plan plan;
    Scratch scratch(nullptr);
    Buffers buffers(p, scratch);
    plan.scratchBytes = scratch.used();
    plan.flops = 2.0 * static_cast<double>(p.batch * p.heads * p.queryLength) *
                 static_cast<double>(least(p.window, p.keyLength) * (p.headSize + p.valueSize));
    plan.add(p.batch * p.heads * p.queryLength, [](const void* params, int64_t item, void* memory) {
      run(*static_cast<const AttentionForward*>(params), item, memory);
    });
    return plan;
  }

  /// Rows of one head. Each is read once, so that a copy would cost more than the jumps from row to row.
  static Rows<A> rowsOf(const AttentionProblem& p, const Input& x, int64_t b, int64_t first, int64_t head,
                        int64_t count, int64_t columns, const uint8_t* keep, A* buffer) {
    const int64_t paddedColumns = roundUp(columns, kLanes<A>);
    if (isAccumulator<A>(p.type) && x.strides[3] == 1 && columns == paddedColumns && !keep)
      return {at<A>(x, b, first, head), x.strides[1]};
    return stageRows(p.type, x, b, first, head, count, columns, paddedColumns, keep, buffer);
  }

  static void run(const AttentionForward& p, int64_t item, void* memory) {
    Scratch scratch(memory);
    const Buffers buffers(p, scratch);
    const int64_t h = item % p.heads, t = item / p.heads % p.queryLength, b = item / p.heads / p.queryLength;
    const int64_t kvHead = h / (p.heads / p.kvHeads), position = p.keyLength - p.queryLength + t;
    const int64_t lowest = most(0, position - p.window + 1);
    const int64_t headColumns = roundUp(p.headSize, kLanes<A>), valueColumns = roundUp(p.valueSize, kLanes<A>);
    const Decays<A> alpha = Decays<A>::of(p, b, h);

    const A* q = stageRows(p.type, p.q, b, t, h, 1, p.headSize, headColumns, nullptr, buffers.q).data;
    for (int64_t c = 0; c < headColumns; c++) buffers.q[c] = static_cast<A>(p.scale * kLog2E) * q[c];
    for (int64_t c = 0; c < valueColumns; c++) buffers.o[c] = 0;

    A max = -kInfinity<A>, sum = 0;
    // What lies after the newest real token is the same for all keys; masked tokens' decays may be large.
    int64_t newest = position;
    double common = 0, decay = 0;
    while (newest >= lowest && !isReal(p, b, newest)) common += alpha[newest--];
    if (common == kInfinity<double>) newest = lowest - 1;
    for (int64_t end = newest + 1, first; end > lowest && decay != kInfinity<double>; end = first) {
      first = most(lowest, end - kBlock);
      const int64_t count = end - first;
      const uint8_t* keep = maskOf(p, b, first, count, buffers.keep);
      decay = alpha.columns(first, end, decay, keep,
                            [&](int64_t i, double bias) { buffers.weight[i] = static_cast<A>(bias); });
      const Rows<A> k = rowsOf(p, p.k, b, first, kvHead, count, p.headSize, keep, buffers.k);
      const Rows<A> v = rowsOf(p, p.v, b, first, kvHead, count, p.valueSize, keep, buffers.v);
      A blockMax = max;
      for (int64_t j = 0; j < count; j++) {
        if (buffers.weight[j] == -kInfinity<A>) continue;
        Vector<A> dot{};
        for (int64_t c = 0; c < headColumns; c += kLanes<A>) dot += load(k.data + j * k.ld + c) * load(buffers.q + c);
        buffers.weight[j] += sumOfLanes<A>(dot);
        if (buffers.weight[j] > blockMax) blockMax = buffers.weight[j];
      }
      const A reference = blockMax == -kInfinity<A> ? A(0) : blockMax;
      const A factor = exp2<A>(broadcast<A>(max - reference))[0];
      max = blockMax;
      for (int64_t j = 0; j < kBlock; j += kLanes<A>)
        if (j < count) store(buffers.weight + j, exp2<A>(load(buffers.weight + j) - reference));
      sum *= factor;
      for (int64_t j = 0; j < count; j++) sum += buffers.weight[j];
      for (int64_t c = 0; c < valueColumns; c += kLanes<A>) store(buffers.o + c, load(buffers.o + c) * factor);
      for (int64_t j = 0; j < count; j++) {
        if (buffers.weight[j] == 0) continue;
        for (int64_t c = 0; c < valueColumns; c += kLanes<A>)
          store(buffers.o + c, load(buffers.o + c) + buffers.weight[j] * load(v.data + j * v.ld + c));
      }
    }
    *(at<A>(p.lse, b, h) + t * p.lse.strides[2]) =
        sum == 0 ? -kInfinity<A> : static_cast<A>((kLn2 * max + __builtin_log(static_cast<double>(sum))) - common);
    writeRows(buffers.o, valueColumns, sum == 0 ? A(0) : 1 / sum, 1, p.valueSize, p.type, p.o, b, t, h);
  }
};

}  // namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET
