// A problem of native sparse attention with random contents in host memory of its own, for tests that compare two ways
// to run it.
#pragma once

#include "attention_sample.h"
#include "kernel/kernel_call.h"

namespace gatedfwa::test {

struct NsaSampleShape {
  ElementType type = ElementType::Float32;
  int64_t batch = 1, queryLength = 1, keyLength = 1, heads = 1, kvHeads = 1, headSize = 64, valueSize = 64;
  int64_t blockLength = 8, stride = 4, selectionBlock = 16, topN = 4;
  bool masked = false, boolMask = false, strided = false;

  int64_t blocks() const { return keyLength < blockLength ? 0 : (keyLength - blockLength) / stride + 1; }
};

/// The results of one kind of attention.
struct NsaResults {
  HostTensor o, lse, dq, dk, dv;
};

struct NsaSample {
  NsaSampleShape s;
  HostTensor q, dO, kCmp, vCmp, k, v, blockMask, tokenMask;
  HostTensor indices;  ///< INT, which has the size of FLOAT
  NsaResults compressed, selected;

  explicit NsaSample(const NsaSampleShape& shape, uint32_t seed = 1) : s(shape) {
    const ElementType maskType = s.boolMask ? ElementType::Bool : s.type;
    q = {s.type, {s.batch, s.queryLength, s.heads, s.headSize}, s.strided};
    dO = {s.type, {s.batch, s.queryLength, s.heads, s.valueSize}, s.strided};
    kCmp = {s.type, {s.batch, s.blocks(), s.kvHeads, s.headSize}, s.strided};
    vCmp = {s.type, {s.batch, s.blocks(), s.kvHeads, s.valueSize}, s.strided};
    k = {s.type, {s.batch, s.keyLength, s.kvHeads, s.headSize}, s.strided};
    v = {s.type, {s.batch, s.keyLength, s.kvHeads, s.valueSize}, s.strided};
    blockMask = {maskType, {s.batch, s.blocks()}, s.strided};
    tokenMask = {maskType, {s.batch, s.keyLength}, s.strided};
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform;
    for (HostTensor* x : {&q, &dO, &kCmp, &vCmp, &k, &v})
      for (int64_t i = 0; i < x->size(); i++) x->set(i, normal(random));
    for (HostTensor* x : {&blockMask, &tokenMask})
      for (int64_t i = 0; i < x->size(); i++) x->set(i, uniform(random) < 0.8);
    clearResults();
  }

  void clearResults() {
    indices = {ElementType::Float32, {s.batch, s.queryLength, s.kvHeads, s.topN}, s.strided};
    compressed = results(s.blocks());
    selected = results(s.keyLength);
  }

  NsaCompressedForward compressedForward() { return forward<NsaCompressedForward>(compressedProblem(), compressed); }
  NsaCompressedBackward compressedBackward() {
    return backward<NsaCompressedBackward>(compressedProblem(), compressed);
  }
  /// After the compressed attention, whose lse it reads; before the selected one.
  NsaSelect select() {
    NsaSelect p{};
    static_cast<NsaCompressedProblem&>(p) = compressedProblem();
    p.v = {};
    p.valueSize = 0;
    p.selectionBlock = s.selectionBlock;
    p.topN = s.topN;
    p.lse = compressed.lse.view<Input>();
    p.indices = indices.view<Output>();
    return p;
  }
  NsaSelectedForward selectedForward() { return forward<NsaSelectedForward>(selectedProblem(), selected); }
  NsaSelectedBackward selectedBackward() { return backward<NsaSelectedBackward>(selectedProblem(), selected); }

 private:
  NsaResults results(int64_t keys) const {
    const ElementType sums = s.type == ElementType::Float64 ? ElementType::Float64 : ElementType::Float32;
    return {{s.type, dO.shape, s.strided},
            {sums, {s.batch, s.heads, s.queryLength}, s.strided},
            {s.type, q.shape, s.strided},
            {s.type, {s.batch, keys, s.kvHeads, s.headSize}, s.strided},
            {s.type, {s.batch, keys, s.kvHeads, s.valueSize}, s.strided}};
  }

  void fill(NsaProblem& p, HostTensor& keys, HostTensor& values, HostTensor& mask) {
    setSizes(p, s, mask.type);
    p.q = q.view<Input>();
    p.k = keys.view<Input>();
    p.v = values.view<Input>();
    if (s.masked) p.mask = mask.view<Input>();
  }
  NsaCompressedProblem compressedProblem() {
    NsaCompressedProblem p{};
    fill(p, kCmp, vCmp, blockMask);
    p.blockLength = s.blockLength;
    p.stride = s.stride;
    p.blocks = s.blocks();
    return p;
  }
  NsaSelectedProblem selectedProblem() {
    NsaSelectedProblem p{};
    fill(p, k, v, tokenMask);
    p.selectionBlock = s.selectionBlock;
    p.topN = s.topN;
    p.indices = indices.view<Input>();
    return p;
  }
  template <typename Params, typename Problem>
  static Params forward(const Problem& problem, NsaResults& results) {
    Params p{};
    static_cast<Problem&>(p) = problem;
    p.o = results.o.view<Output>();
    p.lse = results.lse.view<Output>();
    return p;
  }
  template <typename Params, typename Problem>
  Params backward(const Problem& problem, NsaResults& results) {
    Params p{};
    static_cast<Problem&>(p) = problem;
    p.o = results.o.view<Input>();
    p.lse = results.lse.view<Input>();
    p.dO = dO.view<Input>();
    p.dq = results.dq.view<Output>();
    p.dk = results.dk.view<Output>();
    p.dv = results.dv.view<Output>();
    return p;
  }
};

}  // namespace gatedfwa::test
