// The CPU attention kernels against the dense float64 formulas: every type, every instruction set of this machine,
// the awkward sizes, and memory that the kernels must not touch.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/cpu_kernels.h"
#include "dense_oracle.h"
#include "test_tensors.h"
#include "thread_executor.h"

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
/// Weights below the smallest normal number may be 0.
template <typename E>
constexpr double kUnderflow = std::is_same_v<E, double> ? 1e-305 : 1e-35;

/// |x - reference| / |reference|, 0 if the two differ by no more than `unit` per element.
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
  return std::sqrt(difference) <= unit * std::sqrt(static_cast<double>(x.size())) ? 0 : std::sqrt(difference / norm);
}

struct Case {
  std::string name;
  Shape shape;
  double amplitude = 1, decay = 0.5, gradient = 1;  ///< of q, k and v; largest alpha; of dO
  double resets = 0, reset = INFINITY;              ///< share of tokens whose alpha is `reset`
  int64_t paddedFrom = -1;                          ///< first token of the padding, which holds NaN
  double maskedShare = 0;                           ///< share of tokens masked at random
  bool strided = false;
  bool nasty = false;  ///< compare with a dense implementation of the same type only
  uint32_t seed = 1;
};

template <typename E>
void run(const Case& c, InstructionSet set, const char* setName) {
  using A = AccumulatorOf<E>;
  const Shape& s = c.shape;
  std::mt19937 random(c.seed);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  const std::vector<int64_t> qShape{s.batch, s.queryLength, s.heads, s.headSize},
      kShape{s.batch, s.keyLength, s.kvHeads, s.headSize}, vShape{s.batch, s.keyLength, s.kvHeads, s.valueSize},
      oShape{s.batch, s.queryLength, s.heads, s.valueSize}, gateShape{s.batch, s.keyLength, s.heads},
      lseShape{s.batch, s.heads, s.queryLength}, maskShape{s.batch, s.keyLength};
  Buffer<E> q(qShape, c.strided), k(kShape, c.strided), v(vShape, c.strided), dO(oShape, c.strided),
      mask(maskShape, c.strided), o(oShape, c.strided), dq(qShape, c.strided), dk(kShape, c.strided),
      dv(vShape, c.strided);
  Buffer<A> alpha(gateShape, c.strided), lse(lseShape, c.strided), dalpha(gateShape, c.strided);

  const auto draw = [&](auto& buffer, double amplitude) {
    std::vector<double> x(buffer.length());
    for (double& value : x) value = amplitude * normal(random);
    buffer.set(x);
  };
  draw(q, c.amplitude);
  draw(k, c.amplitude);
  draw(v, c.amplitude);
  draw(dO, std::is_same_v<E, Float16> ? 1 : c.gradient);
  std::vector<double> decays(alpha.length()), keep(mask.length(), 1.0);
  for (double& a : decays) a = uniform(random) < c.resets ? c.reset : c.decay * uniform(random);
  alpha.set(decays);
  for (size_t i = 0; i < keep.size(); i++)
    if (uniform(random) < c.maskedShare || (c.paddedFrom >= 0 && static_cast<int64_t>(i) % s.keyLength >= c.paddedFrom))
      keep[i] = 0;
  mask.set(keep);

  Arrays<double> exact{q.get(),    k.get(),  v.get(), s.gated ? alpha.get() : std::vector<double>{},
                       mask.get(), dO.get(), {},      {},
                       {},         {},       {},      {}};
  test::exact(s, exact);
  Arrays<A> plain{convert<A>(exact.q),
                  convert<A>(exact.k),
                  convert<A>(exact.v),
                  convert<A>(exact.alpha),
                  convert<A>(exact.mask),
                  convert<A>(exact.dO),
                  {},
                  {},
                  {},
                  {},
                  {},
                  {}};
  dense(s, plain);

  if (s.masked)  // what padding holds must not matter
    for (size_t i = 0; i < keep.size(); i++)
      if (keep[i] == 0) {
        const size_t row = static_cast<size_t>(s.kvHeads * s.headSize),
                     valueRow = static_cast<size_t>(s.kvHeads * s.valueSize);
        for (size_t d = 0; d < row; d++)
          std::memset(static_cast<void*>(&k.data()[k.offset(i * row + d)]), 0xff, sizeof(E));
        for (size_t d = 0; d < valueRow; d++)
          std::memset(static_cast<void*>(&v.data()[v.offset(i * valueRow + d)]), 0xff, sizeof(E));
      }

  AttentionBackward p{};
  p.type = p.maskType = kType<E>;
  p.batch = s.batch, p.queryLength = s.queryLength, p.keyLength = s.keyLength, p.heads = s.heads, p.kvHeads = s.kvHeads;
  p.headSize = s.headSize, p.valueSize = s.valueSize, p.window = s.window, p.scale = s.scale;
  p.q = q.template view<Input>(), p.k = k.template view<Input>(), p.v = v.template view<Input>();
  if (s.gated) p.alpha = alpha.template view<Input>();
  if (s.masked) p.mask = mask.template view<Input>();
  AttentionForward f{};
  static_cast<AttentionProblem&>(f) = p;
  f.o = o.template view<Output>(), f.lse = lse.template view<Output>();
  p.o = o.template view<Input>(), p.lse = lse.template view<Input>(), p.dO = dO.template view<Input>();
  p.dq = dq.template view<Output>(), p.dk = dk.template view<Output>(), p.dv = dv.template view<Output>();
  if (s.gated) p.dalpha = dalpha.template view<Output>();

  cpu::attentionForward(f, threads(1), set);
  cpu::attentionBackward(p, threads(1), set);

  const auto check = [&](const char* tensor, auto& buffer, const std::vector<double>& reference, const auto& same) {
    using T = std::decay_t<decltype(buffer.data()[0])>;
    std::vector<double> rounded(same.size());
    for (size_t i = 0; i < same.size(); i++)
      rounded[i] = std::isfinite(same[i]) ? widen(narrow<T>(same[i])) : static_cast<double>(same[i]);
    const double unit = kUnderflow<E> * std::max(1.0, c.gradient);
    const double error = relativeError(buffer.get(), reference, unit), dense = relativeError(rounded, reference, unit);
    const double bound = c.nasty ? std::max(kBound<E>, 2 * dense) : kBound<E>;
    checks++;
    double& most = worst[std::string(setName) +
                         (std::is_same_v<E, float>     ? " float "
                          : std::is_same_v<E, double>  ? " double "
                          : std::is_same_v<E, Float16> ? " half "
                                                       : " bfloat16 ") +
                         tensor];
    most = std::max(most, error / kBound<E>);
    if (!(error <= bound) || !buffer.untouchedElsewhere()) {
      failures++;
      std::printf("FAILED %s %s %s type %d: error %.3g, allowed %.3g, dense in the same type %.3g%s\n", c.name.c_str(),
                  setName, tensor, static_cast<int>(kType<E>), error, bound, dense,
                  buffer.untouchedElsewhere() ? "" : ", wrote outside the tensor");
    }
  };
  check("o", o, exact.o, plain.o);
  check("lse", lse, exact.lse, plain.lse);
  check("dq", dq, exact.dq, plain.dq);
  check("dk", dk, exact.dk, plain.dk);
  check("dv", dv, exact.dv, plain.dv);
  if (s.gated) check("dalpha", dalpha, exact.dalpha, plain.dalpha);

  // The same bits from any number of workers.
  const auto outputs = [&] {
    std::string bytes;
    for (const auto* m : {&o.memory, &dq.memory, &dk.memory, &dv.memory})
      bytes.append(reinterpret_cast<const char*>(m->data()), m->size() * sizeof(E));
    for (const auto* m : {&lse.memory, &dalpha.memory})
      bytes.append(reinterpret_cast<const char*>(m->data()), m->size() * sizeof(A));
    return bytes;
  };
  const std::string once = outputs();
  cpu::attentionForward(f, threads(3), set);
  cpu::attentionBackward(p, threads(3), set);
  checks++;
  if (outputs() != once) {
    failures++;
    std::printf("FAILED %s %s type %d: other bits with three workers\n", c.name.c_str(), setName,
                static_cast<int>(kType<E>));
  }
}

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto shape = [](int64_t b, int64_t n, int64_t m, int64_t h, int64_t hkv, int64_t d, int64_t dv, int64_t w,
                        bool gated = true, bool masked = false) {
    return Shape{b, n, m, h, hkv, d, dv, w, 1 / std::sqrt(static_cast<double>(d)), gated, masked};
  };
  for (int64_t n : {1, 2, 3, 31, 32, 33, 63, 64, 65, 113, 127, 128, 129, 239})
    for (int64_t w : {1, 2, 31, 32, 33, 63, 64, 65, 1000})
      all.push_back({"n" + std::to_string(n) + " w" + std::to_string(w), shape(1, n, n, 2, 1, 16, 16, w)});
  all.push_back({"n1023", shape(1, 1023, 1023, 1, 1, 32, 32, 200)});
  for (int64_t n : {1, 2, 3, 4, 5, 7, 40, 64, 70})
    for (int64_t m : {71, 128, 200})
      all.push_back({"cache n" + std::to_string(n) + " m" + std::to_string(m), shape(2, n, m, 4, 2, 16, 24, 50)});
  for (int64_t d : {1, 2, 3, 5, 7, 8, 15, 17, 24, 40, 63, 64, 65, 100, 128, 200, 255, 256})
    all.push_back({"d" + std::to_string(d), shape(1, 70, 70, 1, 1, d, d % 2 ? d : 257 - d, 40)});
  for (int64_t hkv : {1, 2, 4, 8})
    all.push_back({"gqa " + std::to_string(8 / hkv), shape(2, 80, 90, 8, hkv, 16, 16, 33)});
  all.push_back({"no gate", shape(2, 150, 150, 2, 2, 16, 16, 70, false)});
  for (bool strided : {false, true}) {
    Case c{"strided", shape(2, 75, 90, 4, 2, 12, 20, 40, true, true)};
    c.strided = strided, c.maskedShare = 0.3;
    all.push_back(c);
    c.shape.queryLength = 2;
    all.push_back(c);
  }
  for (double decay : {0.0, 0.01, 5.0, 50.0}) {
    Case c{"decay " + std::to_string(decay), shape(1, 200, 230, 2, 1, 16, 16, 100)};
    c.decay = decay, c.nasty = decay > 1;
    all.push_back(c);
    c.name += " resets", c.resets = 0.05;
    all.push_back(c);
    c.name += " masked", c.shape.masked = true, c.maskedShare = 0.4, c.nasty = true;
    all.push_back(c);
  }
  for (double reset : {1e5, 1e9, 1e13, 3e38, 1e308}) {
    Case c{"resets by " + std::to_string(reset), shape(1, 200, 230, 2, 1, 16, 16, 100)};
    c.resets = 0.05, c.reset = reset;
    all.push_back(c);
  }
  {
    Case c{"inputs x 6", shape(1, 200, 200, 2, 1, 32, 32, 90)};
    c.amplitude = 6, c.nasty = true;
    all.push_back(c);
    c.name += " padded", c.shape.masked = true, c.paddedFrom = 150;
    all.push_back(c);
  }
  for (int64_t from : {0, 1, 64, 100}) {
    Case c{"padded from " + std::to_string(from), shape(2, 260, 260, 2, 1, 16, 16, 50, true, true)};
    c.paddedFrom = from;
    all.push_back(c);
  }
  {
    Case c{"negative scale", shape(1, 100, 100, 1, 1, 16, 16, 30)};
    c.shape.scale = -0.7;
    all.push_back(c);
  }
  return all;
}

/// Problems of all kinds; most keys of many of them are masked, or their decays leave one key nearly all of the weight.
Case randomCase(uint32_t seed) {
  std::mt19937 random(seed);
  const auto one = [&](std::initializer_list<double> of) { return of.begin()[random() % of.size()]; };
  const auto between = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % static_cast<uint32_t>(high - low + 1));
  };
  const auto size = [&](std::initializer_list<double> large) {
    return random() % 2 ? between(1, 40) : static_cast<int64_t>(one(large));
  };
  Case c{"random " + std::to_string(seed), {}};
  Shape& s = c.shape;
  s.batch = between(1, 2), s.queryLength = size({63, 64, 65, 113, 129});
  s.keyLength = s.queryLength + (random() % 2 ? between(1, 70) : 0);
  s.kvHeads = between(1, 2), s.heads = s.kvHeads * static_cast<int64_t>(one({1, 2, 4}));
  s.headSize = static_cast<int64_t>(one({1, 3, 8, 16, 20})), s.valueSize = static_cast<int64_t>(one({1, 5, 8, 24}));
  s.window = size({63, 64, 65, 128, 1000}), s.scale = 1 / std::sqrt(static_cast<double>(s.headSize));
  s.gated = random() % 4 != 0, s.masked = random() % 4 != 0;
  c.resets = random() % 3 ? 0 : 0.1, c.decay = one({0, 0.01, 1, 10, 50});
  c.maskedShare = one({0.2, 0.5, 0.95}), c.gradient = one({1, 1, 1e-6, 1e-20, 1e20});
  c.strided = random() % 8 == 0, c.nasty = true, c.seed = seed;
  return c;
}

/// A NaN in v, k, q or alpha reaches the rows that see it and no others, nor any through a hard reset.
template <typename E>
void confinement(InstructionSet set, const char* setName, int which, int64_t queries, int64_t w, int64_t bad,
                 int64_t reset) {
  const int64_t M = 200, D = 16;
  using A = AccumulatorOf<E>;
  Buffer<E> q({1, queries, 1, D}, false), k({1, M, 1, D}, false), v({1, M, 1, D}, false), o({1, queries, 1, D}, false);
  Buffer<A> alpha({1, M, 1}, false), lse({1, 1, queries}, false);
  std::mt19937 random(5);
  std::normal_distribution<double> normal;
  for (auto* x : {&q, &k, &v})
    for (size_t i = 0; i < x->length(); i++) x->data()[i] = narrow<E>(normal(random));
  for (int64_t i = 0; i < M; i++) alpha.data()[i] = static_cast<A>(0.01);
  alpha.data()[reset] = INFINITY;
  const auto spoil = [](auto& x) { std::memset(static_cast<void*>(&x), 0xff, sizeof x); };
  const int64_t past = M - queries;
  if (which == 2 && bad < past) return;
  if (which == 3)
    spoil(alpha.data()[bad]);
  else
    spoil((which == 0 ? v.data() + bad * D : which == 1 ? k.data() + bad * D : q.data() + (bad - past) * D)[3]);
  AttentionForward p{};
  p.type = kType<E>;
  p.batch = p.heads = p.kvHeads = 1;
  p.queryLength = queries, p.keyLength = M, p.headSize = p.valueSize = D, p.window = w, p.scale = 0.25;
  p.q = q.template view<Input>(), p.k = k.template view<Input>(), p.v = v.template view<Input>();
  p.alpha = alpha.template view<Input>();
  p.o = o.template view<Output>(), p.lse = lse.template view<Output>();
  cpu::attentionForward(p, threads(1), set);
  for (int64_t t = past; t < M; t++) {
    const int64_t oldest = std::max(t - w + 1, t >= reset ? reset : 0);  // key that row t sees
    const bool sees = which == 2 ? t == bad : bad <= t && (which == 3 ? oldest < bad : oldest <= bad);
    checks++;
    if (std::isnan(widen(o.data()[(t - past) * D + 3])) != sees ||
        std::isnan(lse.data()[t - past]) != (sees && which)) {
      failures++;
      std::printf("FAILED confinement %s type %d: operand %d, %d queries, w %d, NaN at %d, reset at %d, row %d\n",
                  setName, static_cast<int>(kType<E>), which, static_cast<int>(queries), static_cast<int>(w),
                  static_cast<int>(bad), static_cast<int>(reset), static_cast<int>(t));
      break;
    }
  }
}

template <typename E>
void confinement(InstructionSet set, const char* setName) {
  for (int which = 0; which < 4; which++)
    for (int64_t queries : {2, 200})
      for (int64_t w : {2, 20, 150})
        for (int64_t bad : {3, 77, 130, 198})
          for (int64_t reset : {0, 5, 60, 82, 135, 199})
            if (which < 3 || bad != reset) confinement<E>(set, setName, which, queries, w, bad, reset);
}

/// A FLOAT problem in memory of its own, for what the cases above do not reach.
struct FloatProblem {
  AttentionForward forward{};
  AttentionBackward backward{};

  FloatProblem(int64_t batch, int64_t length, int64_t headSize, int64_t window) {
    AttentionProblem& p = forward;
    p.type = p.maskType = ElementType::Float32;
    p.batch = batch, p.heads = p.kvHeads = 1;
    p.queryLength = p.keyLength = length, p.headSize = p.valueSize = headSize;
    p.window = window, p.scale = 0.5;
    static_cast<AttentionProblem&>(backward) = p;
  }
  /// Tensors from `take`, which gives [batch, length, 1, columns] as base and batch stride.
  template <typename Take>
  void place(Take take) {
    const int64_t columns = forward.headSize;
    const auto rows = [&](auto& tensor, int64_t width, uint32_t seed) {
      int64_t batchStride = 0;
      tensor.data = take(width, seed, batchStride);
      tensor.strides[0] = batchStride, tensor.strides[1] = width, tensor.strides[2] = width, tensor.strides[3] = 1;
    };
    rows(forward.q, columns, 1), rows(forward.k, columns, 2), rows(forward.v, columns, 3), rows(forward.alpha, 1, 4);
    static_cast<AttentionProblem&>(backward) = forward;
    rows(forward.o, columns, 0), rows(forward.lse, 1, 0);
    std::swap(forward.lse.strides[1], forward.lse.strides[2]);
    backward.o.data = forward.o.data, backward.lse.data = forward.lse.data;
    std::copy(forward.o.strides, forward.o.strides + 4, backward.o.strides);
    std::copy(forward.lse.strides, forward.lse.strides + 4, backward.lse.strides);
    backward.lse.strides[2] = forward.lse.strides[2] = 1;
    rows(backward.dO, columns, 5), rows(backward.dq, columns, 0), rows(backward.dk, columns, 0);
    rows(backward.dv, columns, 0), rows(backward.dalpha, 1, 0);
  }
  void run(InstructionSet set, int workers) const {
    cpu::attentionForward(forward, threads(workers), set);
    cpu::attentionBackward(backward, threads(workers), set);
  }
};

void fill(float* x, int64_t count, uint32_t seed, bool decay) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < count; i++) x[i] = decay ? std::abs(normal(random)) * 0.05f : normal(random);
}

void report(const char* what, bool passed, double figure = 0) {
  checks++;
  failures += !passed;
  if (!passed) std::printf("FAILED %s (%.3g)\n", what, figure);
}

/// A thousand runs, with changing numbers of workers, give the same bits.
void reruns(InstructionSet set) {
  const int64_t batch = 2, length = 150, columns = 24;
  std::vector<std::vector<float>> memory;
  FloatProblem problem(batch, length, columns, 70);
  problem.place([&](int64_t width, uint32_t seed, int64_t& batchStride) {
    batchStride = length * width;
    memory.emplace_back(static_cast<size_t>(batch * batchStride), std::nanf(""));
    if (seed) fill(memory.back().data(), batch * batchStride, seed, seed == 4);
    return memory.back().data();
  });
  problem.run(set, 1);
  const std::vector<std::vector<float>> once = memory;
  int same = 0;
  for (int i = 0; i < 1000; i++) {
    problem.run(set, 1 + i % 3);
    same += std::equal(memory.begin(), memory.end(), once.begin(), [](const auto& a, const auto& b) {
      return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
    });
  }
  report("1000 reruns with the same bits", same == 1000, same);
}

/// Two batch entries 2^31 + 5 elements apart give what two neighbours give.
void farApart(InstructionSet set) {
  const int64_t length = 70, columns = 8, far = (int64_t{1} << 31) + 5;
  std::vector<std::pair<float*, size_t>> near, wide;
  FloatProblem nearby(2, length, columns, 20), distant(2, length, columns, 20);
  std::vector<std::vector<float>> memory;
  nearby.place([&](int64_t width, uint32_t seed, int64_t& batchStride) {
    batchStride = length * width;
    memory.emplace_back(static_cast<size_t>(2 * batchStride));
    if (seed) fill(memory.back().data(), 2 * batchStride, seed, seed == 4);
    near.push_back({memory.back().data(), static_cast<size_t>(batchStride)});
    return memory.back().data();
  });
  size_t next = 0;
  bool mapped = true;
  distant.place([&](int64_t width, uint32_t, int64_t& batchStride) {
    batchStride = far;
    const size_t bytes = static_cast<size_t>(far + length * width) * sizeof(float);
    void* map = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    mapped = mapped && map != MAP_FAILED;
    float* base = map == MAP_FAILED ? nullptr : static_cast<float*>(map);
    if (base != nullptr)
      for (int64_t b = 0; b < 2; b++)
        std::memcpy(base + b * far, near[next].first + b * static_cast<int64_t>(near[next].second),
                    near[next].second * sizeof(float));
    wide.push_back({base, bytes});
    next++;
    return base;
  });
  report("memory for offsets beyond 2^31 elements", mapped);
  if (mapped) {
    nearby.run(set, 2);
    distant.run(set, 2);
    bool same = true;
    for (size_t i = 0; i < near.size(); i++)
      for (int64_t b = 0; b < 2; b++)
        same = same && std::memcmp(wide[i].first + b * far, near[i].first + b * static_cast<int64_t>(near[i].second),
                                   near[i].second * sizeof(float)) == 0;
    report("offsets beyond 2^31 elements", same);
  }
  for (const auto& [base, bytes] : wide)
    if (base != nullptr) munmap(base, bytes);
}

/// The error of o and of every gradient is no larger at 2^18 tokens than at 2^10.
void longSequence(InstructionSet set) {
  double errors[2][6];
  for (int i = 0; i < 2; i++) {
    const int64_t length = i == 0 ? 1 << 10 : 1 << 18, columns = 4, window = 48;
    std::vector<std::vector<float>> memory;
    FloatProblem problem(1, length, columns, window);
    problem.place([&](int64_t width, uint32_t seed, int64_t& batchStride) {
      batchStride = length * width;
      memory.emplace_back(static_cast<size_t>(batchStride));
      if (seed) fill(memory.back().data(), batchStride, seed, seed == 4);
      return memory.back().data();
    });
    problem.run(set, 2);
    // In the order in which they were placed: q, k, v, alpha, o, lse, dO, dq, dk, dv, dalpha.
    Arrays<double> exact;
    exact.q = convert<double>(memory[0]), exact.k = convert<double>(memory[1]), exact.v = convert<double>(memory[2]);
    exact.alpha = convert<double>(memory[3]), exact.dO = convert<double>(memory[6]);
    test::exact({1, length, length, 1, 1, columns, columns, window, 0.5, true, false}, exact);
    const std::vector<double>* expected[] = {&exact.o, &exact.lse, &exact.dq, &exact.dk, &exact.dv, &exact.dalpha};
    const size_t index[] = {4, 5, 7, 8, 9, 10};
    for (int t = 0; t < 6; t++) errors[i][t] = relativeError(convert<double>(memory[index[t]]), *expected[t], 0);
  }
  for (int t = 0; t < 6; t++) {
    report("error at 2^18 tokens", errors[1][t] <= 2e-6, errors[1][t]);
    report("error that grows with the sequence", errors[1][t] <= 1.5 * errors[0][t], errors[1][t] / errors[0][t]);
  }
}

void all(InstructionSet set, const char* name, uint32_t randomCases) {
  reruns(set);
  farApart(set);
  longSequence(set);
#ifdef __SANITIZE_ADDRESS__
  constexpr size_t kStep = 3;  // instrumented, the whole list takes minutes
#else
  constexpr size_t kStep = 1;
#endif
  std::vector<Case> list = cases();
  for (uint32_t seed = 1; seed <= randomCases; seed++) list.push_back(randomCase(seed));
  for (size_t i = 0; i < list.size(); i += kStep) {
    const Case& c = list[i];
    run<float>(c, set, name);
    run<double>(c, set, name);
    run<Float16>(c, set, name);
    run<BrainFloat>(c, set, name);
  }
  confinement<float>(set, name);
  confinement<double>(set, name);
  confinement<Float16>(set, name);
  confinement<BrainFloat>(set, name);
}

}  // namespace

/// Argument: the number of random cases.
int main(int count, char** arguments) {
  const uint32_t randomCases = count > 1 ? static_cast<uint32_t>(std::atoi(arguments[1])) : 200;
  const InstructionSet best = cpu::detectInstructionSet();
  all(InstructionSet::Plain, "plain", randomCases);
  if (best >= InstructionSet::Avx2) all(InstructionSet::Avx2, "avx2", randomCases);
  if (best >= InstructionSet::Avx512) all(InstructionSet::Avx512, "avx512", randomCases);
  for (const auto& [name, share] : worst) std::printf("%-28s worst error %.3f of the bound\n", name.c_str(), share);
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures ? 1 : 0;
}
