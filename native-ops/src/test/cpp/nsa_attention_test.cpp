// The CPU kernels of native sparse attention against the dense float64 formulas: every type, every instruction set of
// this machine, the awkward sizes, and memory that the kernels must not touch.
#include <sys/mman.h>

#include <cstdio>
#include <map>
#include <random>
#include <string>

#include "cpu/cpu_kernels.h"
#include "nsa_oracle.h"
#include "test_tensors.h"

namespace {

using namespace gatedfwa;
using namespace gatedfwa::test;
using cpu::InstructionSet;

int failures = 0, checks = 0;
std::map<std::string, double> worst;

template <typename E>
constexpr double kBound = std::is_same_v<E, float>     ? 2e-6
                          : std::is_same_v<E, double>  ? 1e-12
                          : std::is_same_v<E, Float16> ? 2e-3
                                                       : 1.5e-2;
template <typename E>
constexpr const char* kName = std::is_same_v<E, float>     ? "float"
                              : std::is_same_v<E, double>  ? "double"
                              : std::is_same_v<E, Float16> ? "half"
                                                           : "bfloat16";

/// |x - reference| / |reference|; where all of the reference is 0, or smaller than `unit` per element (what is left of
/// terms of that size), relative to that.
double relativeError(const std::vector<double>& x, const std::vector<double>& reference, double unit) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < x.size(); i++) {
    if (x[i] == reference[i]) {
      norm += std::isfinite(x[i]) ? x[i] * x[i] : 0;
      continue;
    }
    difference += (x[i] - reference[i]) * (x[i] - reference[i]);
    norm += reference[i] * reference[i];
  }
  norm = std::max(norm, unit * unit * static_cast<double>(x.size()));
  return difference == 0 ? 0 : std::sqrt(difference / (norm == 0 ? static_cast<double>(x.size()) : norm));
}

struct Case {
  std::string name;
  NsaShape shape;
  double amplitude = 1;
  bool masked = false;
  int64_t paddedFrom = -1;  ///< first token of the padding, which holds NaN
  double maskedShare = 0;   ///< share of tokens masked at random, one by one
  bool strided = false;
  bool boolMask = false;
  bool randomChoice = false;  ///< any blocks, also ones that the query does not see
  bool nasty = false;         ///< compare with a dense implementation of the same type only
  uint32_t seed = 1;
};

void fail(const Case& c, const std::string& what) {
  failures++;
  std::printf("FAILED %s: %s\n", c.name.c_str(), what.c_str());
}

/// One attention, forward and backward, in memory of its own.
template <typename E, typename Problem>
struct Operands {
  using A = AccumulatorOf<E>;
  Buffer<E> q, k, v, dO, mask, o, dq, dk, dv;
  Buffer<uint8_t> boolMask;
  Buffer<A> lse;
  NsaBackward<Problem> backward{};
  NsaForward<Problem> forward{};

  Operands(const NsaShape& s, int64_t keys, bool strided)
      : q({s.batch, s.queryLength, s.heads, s.headSize}, strided),
        k({s.batch, keys, s.kvHeads, s.headSize}, strided),
        v({s.batch, keys, s.kvHeads, s.valueSize}, strided),
        dO({s.batch, s.queryLength, s.heads, s.valueSize}, strided),
        mask({s.batch, keys}, strided),
        o(dO.shape, strided),
        dq(q.shape, strided),
        dk(k.shape, strided),
        dv(v.shape, strided),
        boolMask(mask.shape, strided),
        lse({s.batch, s.heads, s.queryLength}, strided) {}

  template <typename Fill>
  void bind(const NsaShape& s, bool masked, bool maskIsBool, Fill fill) {
    Problem p{};
    p.type = kType<E>;
    p.maskType = maskIsBool ? ElementType::Bool : kType<E>;
    p.batch = s.batch, p.queryLength = s.queryLength, p.keyLength = s.keyLength;
    p.heads = s.heads, p.kvHeads = s.kvHeads, p.headSize = s.headSize, p.valueSize = s.valueSize, p.scale = s.scale;
    p.q = q.template view<Input>(), p.k = k.template view<Input>(), p.v = v.template view<Input>();
    if (masked) p.mask = maskIsBool ? boolMask.template view<Input>() : mask.template view<Input>();
    fill(p);
    static_cast<Problem&>(forward) = p;
    static_cast<Problem&>(backward) = p;
    forward.o = o.template view<Output>(), forward.lse = lse.template view<Output>();
    backward.o = o.template view<Input>(), backward.lse = lse.template view<Input>();
    backward.dO = dO.template view<Input>();
    backward.dq = dq.template view<Output>(), backward.dk = dk.template view<Output>();
    backward.dv = dv.template view<Output>();
  }

  void setMask(const std::vector<double>& keep) {
    mask.set(keep);
    for (size_t i = 0; i < keep.size(); i++) boolMask.data()[boolMask.offset(i)] = keep[i] != 0;
  }
  /// What masked keys hold must not matter.
  void poison(const std::vector<double>& keep) {
    for (auto* x : {&k, &v}) {
      const size_t row = x->length() / keep.size();
      for (size_t i = 0; i < keep.size(); i++)
        for (size_t d = 0; keep[i] == 0 && d < row; d++)
          std::memset(static_cast<void*>(&x->data()[x->offset(i * row + d)]), 0xff, sizeof(E));
    }
  }
  std::string outputs() {
    std::string bytes;
    for (const auto* m : {&o.memory, &dq.memory, &dk.memory, &dv.memory})
      bytes.append(reinterpret_cast<const char*>(m->data()), m->size() * sizeof(E));
    return bytes.append(reinterpret_cast<const char*>(lse.memory.data()), lse.memory.size() * sizeof(A));
  }
};

template <typename E>
class Run {
  using A = AccumulatorOf<E>;

 public:
  Run(const Case& theCase, InstructionSet theSet, const char* theName)
      : c(theCase),
        s(theCase.shape),
        set(theSet),
        setName(theName),
        random(theCase.seed),
        compressed(s, s.blocks(), c.strided),
        selected(s, s.keyLength, c.strided),
        indices({s.batch, s.queryLength, s.kvHeads, s.topN}, c.strided) {}

  void run() {
    for (auto* buffer : {&compressed.q, &compressed.k, &compressed.v, &selected.k, &selected.v})
      draw(*buffer, c.amplitude);
    draw(compressed.dO, 1);
    selected.q.set(compressed.q.get());
    selected.dO.set(compressed.dO.get());
    std::uniform_real_distribution<double> uniform;
    keep.assign(static_cast<size_t>(s.batch * s.keyLength), 1);
    blockKeep.assign(static_cast<size_t>(s.batch * s.blocks()), 1);
    for (size_t i = 0; i < keep.size(); i++)
      if (uniform(random) < c.maskedShare ||
          (c.paddedFrom >= 0 && static_cast<int64_t>(i) % s.keyLength >= c.paddedFrom))
        keep[i] = 0;
    for (int64_t b = 0; b < s.batch; b++)
      for (int64_t block = 0; block < s.blocks(); block++)
        for (int64_t j = 0; j < s.blockLength; j++)
          if (keep[static_cast<size_t>(b * s.keyLength + block * s.stride + j)] == 0)
            blockKeep[static_cast<size_t>(b * s.blocks() + block)] = 0;
    selected.setMask(keep);
    compressed.setMask(blockKeep);
    attendToBlocks();
    choose();
    attendToTokens();
  }

 private:
  const Case& c;
  const NsaShape& s;
  InstructionSet set;
  const char* setName;
  std::mt19937 random;
  Operands<E, NsaCompressedProblem> compressed;
  Operands<E, NsaSelectedProblem> selected;
  Buffer<int32_t> indices;
  std::vector<double> keep, blockKeep;

  template <typename T>
  void draw(Buffer<T>& buffer, double amplitude) {
    std::normal_distribution<double> normal;
    std::vector<double> x(buffer.length());
    for (double& value : x) value = amplitude * normal(random);
    buffer.set(x);
  }

  void fillCompressed(NsaCompressedProblem& p) const {
    p.blockLength = s.blockLength, p.stride = s.stride, p.blocks = s.blocks();
  }

  bool seesBlock(int64_t b, int64_t t, int64_t block) const {
    return block * s.stride + s.blockLength - 1 <= s.position(t) &&
           (!c.masked || blockKeep[static_cast<size_t>(b * s.blocks() + block)] != 0);
  }

  void attendToBlocks() {
    compressed.bind(s, c.masked, c.boolMask, [&](NsaCompressedProblem& p) { fillCompressed(p); });
    attend("compressed", compressed, s.blocks(), blockKeep, cpu::nsaCompressedForward, cpu::nsaCompressedBackward,
           [this](int64_t b, int64_t, int64_t t, int64_t j) { return seesBlock(b, t, j); });
  }

  void choose() {
    NsaSelect p{};
    static_cast<NsaCompressedProblem&>(p) = compressed.forward;
    p.v = {};
    p.selectionBlock = s.selectionBlock, p.topN = s.topN;
    p.lse = compressed.lse.template view<Input>();
    p.indices = indices.template view<Output>();
    cpu::nsaSelect(p, threads(1), set);
    const std::vector<int32_t> once = indices.memory;
    cpu::nsaSelect(p, threads(3), set);
    checks++;
    if (indices.memory != once) fail(c, std::string(setName) + " another choice with three workers");

    NsaArrays<double> exact{compressed.q.get(), compressed.k.get(), {}, {}, {}, {}, {}, {}, {}};
    if (c.masked)  // these hold NaN by now
      for (double& x : exact.k) x = std::isnan(x) ? 0 : x;
    exact.lse = compressed.lse.get();
    const Sees sees = [this](int64_t b, int64_t, int64_t t, int64_t j) { return seesBlock(b, t, j); };
    const std::vector<double> importance = importances(s, sees, exact);
    const int64_t S = s.selectionBlocks();
    const double tolerance = (std::is_same_v<E, double> ? 1e-12 : 1e-5) * static_cast<double>(s.heads / s.kvHeads);
    for (size_t row = 0; row < importance.size() / static_cast<size_t>(S); row++) {
      const double* own = importance.data() + row * static_cast<size_t>(S);
      std::vector<char> taken(static_cast<size_t>(S), 0);
      double least = INFINITY;
      int64_t count = 0, candidates = 0, before = -1;
      bool right = true;
      for (int64_t i = 0; i < s.topN; i++) {
        const int64_t block =
            indices.data()[indices.offset(row * static_cast<size_t>(s.topN) + static_cast<size_t>(i))];
        if (block == -1) break;
        right = right && block > before && block < S && own[block] >= 0;
        if (!right) break;
        before = block;
        taken[static_cast<size_t>(block)] = 1;
        least = std::min(least, own[block]);
        count++;
      }
      for (int64_t i = count; right && i < s.topN; i++)
        right = indices.data()[indices.offset(row * static_cast<size_t>(s.topN) + static_cast<size_t>(i))] == -1;
      for (int64_t block = 0; block < S; block++) {
        candidates += own[block] >= 0;
        right = right && (taken[static_cast<size_t>(block)] || own[block] <= least + tolerance);
      }
      checks++;
      if (!right || count != std::min(candidates, s.topN)) {
        fail(c, std::string(setName) + " " + kName<E> + " choice of row " + std::to_string(row));
        break;
      }
    }
  }

  void attendToTokens() {
    if (c.randomChoice) {
      std::vector<double> any;
      for (int64_t row = 0; row < s.batch * s.queryLength * s.kvHeads; row++) {
        std::vector<double> blocks;
        for (int64_t block = 0; block < s.selectionBlocks(); block++)
          if (random() % 3 == 0 && static_cast<int64_t>(blocks.size()) < s.topN)
            blocks.push_back(static_cast<double>(block));
        blocks.resize(static_cast<size_t>(s.topN), -1);
        any.insert(any.end(), blocks.begin(), blocks.end());
      }
      for (size_t i = 0; i < any.size(); i++) indices.data()[indices.offset(i)] = static_cast<int32_t>(any[i]);
    }
    selected.bind(s, c.masked, c.boolMask, [&](NsaSelectedProblem& p) {
      p.selectionBlock = s.selectionBlock, p.topN = s.topN;
      p.indices = indices.template view<Input>();
    });
    attend("selected", selected, s.keyLength, keep, cpu::nsaSelectedForward, cpu::nsaSelectedBackward,
           [this](int64_t b, int64_t kvHead, int64_t t, int64_t j) {
             const size_t row = static_cast<size_t>((b * s.queryLength + t) * s.kvHeads + kvHead);
             bool chosen = false;
             for (size_t i = 0; i < static_cast<size_t>(s.topN); i++)
               chosen |= indices.data()[indices.offset(row * static_cast<size_t>(s.topN) + i)] == j / s.selectionBlock;
             return chosen && j <= s.position(t) && (!c.masked || keep[static_cast<size_t>(b * s.keyLength + j)] != 0);
           });
  }

  template <typename Problem, typename Forward, typename Backward>
  void attend(const char* op, Operands<E, Problem>& x, int64_t keys, const std::vector<double>& kept, Forward forward,
              Backward backward, const Sees& sees) {
    NsaArrays<double> exact{x.q.get(), x.k.get(), x.v.get(), x.dO.get(), {}, {}, {}, {}, {}};
    NsaArrays<A> plain{convert(exact.q), convert(exact.k), convert(exact.v), convert(exact.dO), {}, {}, {}, {}, {}};
    nsaDense(s, keys, sees, exact);
    nsaDense(s, keys, sees, plain);
    if (c.masked) x.poison(kept);

    forward(x.forward, threads(1), set);
    backward(x.backward, threads(1), set);
    // dO.v, of whose differences dS is made, is of the order of the root of Dv.
    const double unit = 0.25 * std::sqrt(static_cast<double>(s.valueSize));
    check(op, "o", x.o, exact.o, plain.o, 0);
    check(op, "lse", x.lse, exact.lse, plain.lse, 0);
    check(op, "dq", x.dq, exact.dq, plain.dq, unit);
    check(op, "dk", x.dk, exact.dk, plain.dk, unit);
    check(op, "dv", x.dv, exact.dv, plain.dv, 0);
    const std::string once = x.outputs();
    forward(x.forward, threads(3), set);
    backward(x.backward, threads(3), set);
    checks++;
    if (x.outputs() != once) fail(c, std::string(setName) + " " + op + ": other bits with three workers");
  }

  static std::vector<A> convert(const std::vector<double>& from) { return std::vector<A>(from.begin(), from.end()); }

  template <typename T>
  void check(const char* op, const char* tensor, Buffer<T>& buffer, const std::vector<double>& reference,
             const std::vector<A>& same, double unit) {
    std::vector<double> rounded(same.size());
    for (size_t i = 0; i < same.size(); i++)
      rounded[i] = std::isfinite(same[i]) ? widen(narrow<T>(same[i])) : static_cast<double>(same[i]);
    const double error = relativeError(buffer.get(), reference, unit), dense = relativeError(rounded, reference, unit);
    const double bound = c.nasty ? std::max(kBound<E>, 2 * dense) : kBound<E>;
    checks++;
    double& most = worst[std::string(setName) + " " + kName<E> + " " + op + " " + tensor];
    most = std::max(most, error / bound);
    const bool untouched = buffer.untouchedElsewhere();
    if (!(error <= bound) || !untouched) {
      char text[200];
      std::snprintf(text, sizeof text, "%s %s %s %s: error %.3g, allowed %.3g, dense in the same type %.3g%s", setName,
                    kName<E>, op, tensor, error, bound, dense, untouched ? "" : ", wrote outside the tensor");
      fail(c, text);
    }
  }
};

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto shape = [](int64_t n, int64_t m, int64_t h, int64_t hkv, int64_t d, int64_t dv, int64_t l, int64_t stride,
                        int64_t selection, int64_t topN, int64_t batch = 1) {
    return NsaShape{batch, n, m, h, hkv, d, dv, l, stride, selection, topN, 1 / std::sqrt(static_cast<double>(d))};
  };
  for (int64_t n : {1, 2, 3, 7, 8, 31, 33, 63, 64, 65, 113, 129, 239}) {
    all.push_back({"n" + std::to_string(n), shape(n, n, 2, 1, 16, 16, 8, 4, 8, 4)});
    all.push_back({"n" + std::to_string(n) + " tiny blocks", shape(n, n, 1, 1, 8, 8, 1, 1, 1, 5)});
    all.push_back({"n" + std::to_string(n) + " paper", shape(n, n, 4, 1, 24, 16, 32, 16, 64, 3)});
  }
  all.push_back({"n1023 paper", shape(1023, 1023, 2, 1, 16, 16, 32, 16, 64, 6)});
  all.push_back({"long selection blocks", shape(700, 700, 2, 2, 8, 8, 4, 2, 200, 3)});
  all.push_back({"one block for all", shape(150, 150, 2, 1, 8, 8, 16, 16, 1600, 3)});
  all.push_back({"more places than blocks", shape(150, 150, 2, 1, 8, 8, 4, 4, 8, 100)});
  all.push_back({"stride = length = selection", shape(150, 150, 2, 1, 8, 8, 6, 6, 6, 5)});
  all.push_back({"many strides", shape(150, 150, 2, 1, 8, 8, 24, 1, 48, 3)});
  for (int64_t n : {1, 2, 5, 40, 70})
    for (int64_t m : {71, 128, 200})
      all.push_back(
          {"cache n" + std::to_string(n) + " m" + std::to_string(m), shape(n, m, 4, 2, 16, 24, 8, 4, 16, 4, 2)});
  for (int64_t d : {1, 2, 3, 5, 7, 8, 15, 17, 40, 63, 65, 100, 128, 255, 256})
    all.push_back({"d" + std::to_string(d), shape(70, 70, 1, 1, d, d % 2 ? d : 257 - d, 4, 2, 8, 5)});
  for (int64_t hkv : {1, 2, 4, 8})
    all.push_back({"gqa " + std::to_string(8 / hkv), shape(80, 90, 8, hkv, 16, 16, 8, 4, 16, 4, 2)});
  all.push_back({"more heads than rows of a batch", shape(40, 40, 80, 1, 8, 8, 4, 4, 8, 3)});
  for (bool strided : {false, true})
    for (int64_t n : {75, 2}) {
      Case c{"strided", shape(n, 90, 4, 2, 12, 20, 8, 4, 16, 3, 2)};
      c.strided = strided, c.masked = true, c.boolMask = n == 2, c.maskedShare = 0.03;
      all.push_back(c);
    }
  for (double share : {0.01, 0.1, 0.5, 1.0}) {
    Case c{"masked " + std::to_string(share), shape(200, 230, 2, 1, 16, 16, 8, 4, 16, 4, 2)};
    c.masked = true, c.maskedShare = share, c.boolMask = share > 0.3, c.nasty = true;
    all.push_back(c);
  }
  for (int64_t from : {0, 1, 64, 100}) {
    Case c{"padded from " + std::to_string(from), shape(260, 260, 2, 1, 16, 16, 8, 4, 16, 4, 2)};
    c.masked = true, c.paddedFrom = from;
    all.push_back(c);
  }
  for (int64_t selection : {8, 64, 130}) {
    Case c{"any choice, blocks of " + std::to_string(selection), shape(300, 333, 4, 2, 16, 16, 2, 2, selection, 9, 2)};
    c.randomChoice = true;
    all.push_back(c);
  }
  {
    Case c{"inputs x 6", shape(200, 200, 2, 1, 32, 32, 8, 4, 16, 5)};
    c.amplitude = 6, c.nasty = true;
    all.push_back(c);
  }
  {
    Case c{"negative scale", shape(100, 100, 1, 1, 16, 16, 8, 4, 16, 4)};
    c.shape.scale = -0.7;
    all.push_back(c);
  }
  return all;
}

template <typename E>
void run(const Case& c, InstructionSet set, const char* name) {
  Run<E>(c, set, name).run();
}

void report(const std::string& what, bool passed) {
  checks++;
  failures += !passed;
  if (!passed) std::printf("FAILED %s\n", what.c_str());
}

/// A problem without masks in contiguous memory, with a choice made by hand: block 0 and the query's own.
template <typename E>
struct Problem {
  NsaShape s;
  Operands<E, NsaCompressedProblem> compressed;
  Operands<E, NsaSelectedProblem> selected;
  Buffer<int32_t> indices, chosen;
  NsaSelect select{};

  explicit Problem(const NsaShape& shape)
      : s(shape),
        compressed(s, s.blocks(), false),
        selected(s, s.keyLength, false),
        indices({s.batch, s.queryLength, s.kvHeads, s.topN}, false),
        chosen(indices.shape, false) {
    std::mt19937 random(7);
    std::normal_distribution<double> normal;
    for (auto* x : {&compressed.q, &compressed.k, &compressed.v, &compressed.dO, &selected.q, &selected.k, &selected.v,
                    &selected.dO})
      for (size_t i = 0; i < x->length(); i++) x->data()[i] = narrow<E>(normal(random));
    for (int64_t i = 0; i < static_cast<int64_t>(indices.length()); i++) {
      const int64_t block = s.position(i / s.topN / s.kvHeads % s.queryLength) / s.selectionBlock, place = i % s.topN;
      indices.data()[i] = static_cast<int32_t>(place == 0 ? 0 : place == 1 && block > 0 ? block : -1);
    }
    compressed.bind(s, false, false, [this](NsaCompressedProblem& p) {
      p.blockLength = s.blockLength, p.stride = s.stride, p.blocks = s.blocks();
    });
    selected.bind(s, false, false, [this](NsaSelectedProblem& p) {
      p.selectionBlock = s.selectionBlock, p.topN = s.topN;
      p.indices = indices.template view<Input>();
    });
    static_cast<NsaCompressedProblem&>(select) = compressed.forward;
    select.selectionBlock = s.selectionBlock, select.topN = s.topN;
    select.lse = compressed.lse.template view<Input>(), select.indices = chosen.template view<Output>();
  }

  void run(InstructionSet set, int workers) {
    cpu::nsaCompressedForward(compressed.forward, threads(workers), set);
    cpu::nsaCompressedBackward(compressed.backward, threads(workers), set);
    cpu::nsaSelect(select, threads(workers), set);
    cpu::nsaSelectedForward(selected.forward, threads(workers), set);
    cpu::nsaSelectedBackward(selected.backward, threads(workers), set);
  }

  std::string outputs() {
    return compressed.outputs() + selected.outputs() +
           std::string(reinterpret_cast<const char*>(chosen.memory.data()), chosen.memory.size() * sizeof(int32_t));
  }

  bool seesBlock(int64_t t, int64_t j) const { return j * s.stride + s.blockLength - 1 <= s.position(t); }
  bool seesToken(int64_t t, int64_t j) const {
    const int64_t block = j / s.selectionBlock;
    return j <= s.position(t) && (block == 0 || block == s.position(t) / s.selectionBlock);
  }
};

/// A NaN reaches the rows that see it, and the gradients of keys that such a row sees, and nothing else.
template <typename E>
void confinement(InstructionSet set, const char* setName) {
  const NsaShape s{1, 200, 200, 2, 1, 16, 16, 8, 4, 16, 3, 0.25};
  const auto nan = [](const Buffer<E>& x, int64_t row) {
    for (int64_t c = 0; c < 16; c++)
      if (std::isnan(widen(x.memory[x.kGuard + static_cast<size_t>(row * 16 + c)]))) return true;
    return false;
  };
  const auto attend = [&](const std::string& what, auto& problem, auto& x, int64_t keys, auto sees) {
    // Operand 0 is v, 1 is k: of one key; 2 is q, 3 is dO: of one row.
    for (int which = 0; which < 4; which++) {
      const int64_t badKey = keys / 3, badRow = 2 * 77 + 1;
      Buffer<E>& operand = which == 0 ? x.v : which == 1 ? x.k : which == 2 ? x.q : x.dO;
      E& element = operand.data()[(which < 2 ? badKey : badRow) * 16 + 3];
      const E before = element;
      std::memset(static_cast<void*>(&element), 0xff, sizeof(E));
      problem.run(set, 1);
      bool right = true;
      for (int64_t row = 0; row < 2 * s.queryLength; row++) {
        const bool meets = which < 2 ? sees(row / 2, badKey) : row == badRow;
        right = right && nan(x.o, row) == (which < 3 && meets) && nan(x.dq, row) == meets;
      }
      for (int64_t j = 0; j < keys; j++) {
        // A NaN in k or v makes NaN rows, whose dS is NaN for all that they see.
        bool meets = false;
        for (int64_t t = 0; t < s.queryLength; t++)
          meets = meets || (sees(t, j) && (which < 2 ? sees(t, badKey) : t == badRow / 2));
        right = right && nan(x.dk, j) == meets;
      }
      element = before;
      report("confinement " + what + " " + setName + " of operand " + std::to_string(which), right);
    }
  };
  Problem<E> problem(s);
  attend("compressed", problem, problem.compressed, s.blocks(),
         [&](int64_t t, int64_t j) { return problem.seesBlock(t, j); });
  attend("selected", problem, problem.selected, s.keyLength,
         [&](int64_t t, int64_t j) { return problem.seesToken(t, j); });
}

/// A thousand runs, with changing numbers of workers, give the same bits.
void reruns(InstructionSet set) {
  Problem<float> problem({2, 150, 170, 4, 2, 24, 16, 8, 4, 16, 4, 0.2});
  problem.run(set, 1);
  const std::string once = problem.outputs();
  int same = 0;
  for (int i = 0; i < 1000; i++) {
    problem.run(set, 1 + i % 3);
    same += problem.outputs() == once;
  }
  report("1000 reruns with the same bits: " + std::to_string(same), same == 1000);
}

/// Equal importances: the lower index first.
template <typename E>
void ties(InstructionSet set, const char* setName) {
  Problem<E> problem({1, 400, 400, 6, 2, 8, 8, 8, 4, 16, 6, 0.5});
  for (size_t i = 0; i < problem.compressed.q.length(); i++) problem.compressed.q.data()[i] = narrow<E>(0);
  problem.run(set, 2);
  bool right = true;
  for (int64_t t = 0; t < 400; t++)
    for (int64_t head = 0; head < 2; head++) {
      const int64_t own = t / 16;
      for (int64_t i = 0; i < 6; i++) {
        const int64_t expected = own < 6 ? (i <= own ? i : -1) : i < 4 ? i : own - 5 + i;
        right = right && problem.chosen.data()[(t * 2 + head) * 6 + i] == expected;
      }
    }
  report(std::string("ties ") + setName, right);
}

/// Two batch entries 2^31 + 5 elements apart give what two neighbours give.
void farApart(InstructionSet set) {
  const int64_t far = (int64_t{1} << 31) + 5;
  Problem<float> near({2, 70, 80, 2, 1, 8, 8, 8, 4, 16, 4, 0.3}), distant(near.s);
  std::vector<std::pair<char*, size_t>> maps;
  bool mapped = true;
  // Moves a tensor into memory of its own, its second batch entry far behind its first.
  const auto spread = [&](auto& tensor, size_t elementSize, size_t entry) {
    const size_t bytes = (static_cast<size_t>(far) + entry) * elementSize;
    void* map = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    mapped = mapped && map != MAP_FAILED;
    if (map == MAP_FAILED) return;
    char* base = static_cast<char*>(map);
    const char* source = static_cast<const char*>(tensor.data);
    for (size_t b = 0; b < 2; b++)
      std::memcpy(base + b * static_cast<size_t>(far) * elementSize, source + b * entry * elementSize,
                  entry * elementSize);
    maps.push_back({base, bytes});
    tensor.data = base;
    tensor.strides[0] = far;
  };
  const auto share = [](auto& tensor, const auto& other) {
    tensor.data = const_cast<std::remove_const_t<std::remove_pointer_t<decltype(tensor.data)>>*>(other.data);
    tensor.strides[0] = other.strides[0];
  };
  const auto spreadAll = [&](auto& x) {
    const auto half = [](const auto& buffer) { return buffer.length() / 2; };
    spread(x.forward.q, 4, half(x.q)), spread(x.forward.k, 4, half(x.k)), spread(x.forward.v, 4, half(x.v));
    spread(x.forward.o, 4, half(x.o)), spread(x.forward.lse, 4, half(x.lse));
    share(x.backward.q, x.forward.q), share(x.backward.k, x.forward.k), share(x.backward.v, x.forward.v);
    share(x.backward.o, x.forward.o), share(x.backward.lse, x.forward.lse);
    spread(x.backward.dO, 4, half(x.dO)), spread(x.backward.dq, 4, half(x.dq)), spread(x.backward.dk, 4, half(x.dk));
    spread(x.backward.dv, 4, half(x.dv));
  };
  spreadAll(distant.compressed);
  spreadAll(distant.selected);
  spread(distant.selected.forward.indices, 4, distant.indices.length() / 2);
  share(distant.selected.backward.indices, distant.selected.forward.indices);
  share(distant.select.q, distant.compressed.forward.q), share(distant.select.k, distant.compressed.forward.k);
  share(distant.select.lse, distant.compressed.forward.lse);
  spread(distant.select.indices, 4, distant.chosen.length() / 2);
  report("memory for offsets beyond 2^31 elements", mapped);
  if (mapped) {
    near.run(set, 2);
    distant.run(set, 2);
    const auto same = [&](auto& buffer, const auto& tensor) {
      const size_t entry = buffer.length() / 2 * 4;
      const char* base = static_cast<const char*>(tensor.data);
      return std::memcmp(buffer.data(), base, entry) == 0 &&
             std::memcmp(reinterpret_cast<const char*>(buffer.data()) + entry, base + far * 4, entry) == 0;
    };
    const auto sameAll = [&](auto& x, auto& y) {
      return same(x.o, y.forward.o) && same(x.lse, y.forward.lse) && same(x.dq, y.backward.dq) &&
             same(x.dk, y.backward.dk) && same(x.dv, y.backward.dv);
    };
    report("offsets beyond 2^31 elements", sameAll(near.compressed, distant.compressed) &&
                                               sameAll(near.selected, distant.selected) &&
                                               same(near.chosen, distant.select.indices));
  }
  for (const auto& [base, bytes] : maps) munmap(base, bytes);
}

void all(InstructionSet set, const char* name) {
  reruns(set);
  farApart(set);
  confinement<float>(set, name);
  confinement<double>(set, name);
  confinement<Float16>(set, name);
  confinement<BrainFloat>(set, name);
  ties<float>(set, name);
  ties<double>(set, name);
  ties<BrainFloat>(set, name);
#ifdef __SANITIZE_ADDRESS__
  constexpr size_t kStep = 3;  // instrumented, the whole list takes minutes
#else
  constexpr size_t kStep = 1;
#endif
  const std::vector<Case> list = cases();
  for (size_t i = 0; i < list.size(); i += kStep) {
    run<float>(list[i], set, name);
    run<double>(list[i], set, name);
    run<Float16>(list[i], set, name);
    run<BrainFloat>(list[i], set, name);
  }
}

}  // namespace

int main() {
  const InstructionSet best = cpu::detectInstructionSet();
  all(InstructionSet::Plain, "plain");
  if (best >= InstructionSet::Avx2) all(InstructionSet::Avx2, "avx2");
  if (best >= InstructionSet::Avx512) all(InstructionSet::Avx512, "avx512");
  for (const auto& [name, share] : worst) std::printf("%-36s worst error %.3f of the bound\n", name.c_str(), share);
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures ? 1 : 0;
}
