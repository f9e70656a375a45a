// The plug-in for nd4j-cuda on a GPU, called as libnd4j calls an op, over a stand-in for libnd4jcuda.so: the golden
// cases in every type, views, the order of streams, many threads, bad arguments, errors of the device.
//
//   nd4jcuda_test --golden DIR
#include <thread>

#include "accuracy.h"
#include "golden.h"
#include "nd4jcuda_stand_in.h"
#include "nsa_oracle.h"
#include "op/backend.h"
#include "op/gpu_runtime.h"
#include "op/plugin_op.h"

using namespace gatedfwa;
using namespace gatedfwa::test;
using cuda::FloatMode;
using stand_in::Array;
using stand_in::Buffer;
using stand_in::Context;

namespace {

int passed = 0, failed = 0;

void check(bool ok, const std::string& what) {
  ++(ok ? passed : failed);
  if (!ok) std::printf("FAILED %s\n", what.c_str());
}

template <typename T>
constexpr sd::DataType typeOf() {
  switch (TypeOf<T>::type) {
    case ElementType::Float64:
      return sd::DOUBLE;
    case ElementType::Float16:
      return sd::HALF;
    case ElementType::BFloat16:
      return sd::BFLOAT16;
    default:
      return sd::FLOAT32;
  }
}

/// Visits the offsets of a view's elements in logical order.
template <typename Visit>
void visit(const Array& array, Visit f) {
  std::vector<int64_t> at(array.shape().size(), 0);
  if (array.empty()) return;
  for (int64_t i = 0;; i++) {
    int64_t offset = array.offset();
    for (size_t d = 0; d < at.size(); d++) offset += at[d] * array.strides()[d];
    f(i, offset);
    size_t d = at.size();
    while (d > 0 && ++at[d - 1] == array.shape()[d - 1]) at[--d] = 0;
    if (d == 0) return;
  }
}

/// As Java writes an array: on the host, which then has the latest elements.
template <typename T>
void set(Array& array, const std::vector<double>& x) {
  array.buffer().syncToHost();
  T* const host = static_cast<T*>(array.buffer().host());
  visit(array, [&](int64_t i, int64_t at) { host[at] = convert<T>(x[static_cast<size_t>(i)]); });
  array.buffer().wroteHost();
}

/// As Java reads one: whatever is newer on the device is downloaded.
template <typename T>
std::vector<double> values(const Array& array) {
  array.buffer().syncToHost();
  const T* const host = static_cast<const T*>(array.buffer().host());
  std::vector<double> x;
  visit(array, [&](int64_t, int64_t at) { x.push_back(widen(host[at])); });
  return x;
}

template <typename T>
std::unique_ptr<Array> arrayOf(const Array::Sizes& shape, const std::vector<double>& x) {
  auto array = std::make_unique<Array>(typeOf<T>(), shape);
  set<T>(*array, x);
  return array;
}

std::vector<double> random(Fill fill, uint64_t seed, int64_t count) {
  std::vector<double> x(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; i++) x[static_cast<size_t>(i)] = value(fill, seed, i, i);
  return x;
}

std::unique_ptr<Context> contextOf(std::initializer_list<Array*> inputs) {
  auto context = std::make_unique<Context>();
  for (Array* input : inputs)
    if (input != nullptr) context->inputs.push_back(input);
  return context;
}

std::vector<std::unique_ptr<Array>> run(const char* name, Context& context) {
  sd::ops::DeclarableOp& op = *stand_in::find(name);
  std::vector<std::unique_ptr<Array>> outputs = stand_in::allocateOutputs(op, context);
  for (const auto& output : outputs) context.outputs.push_back(output.get());
  stand_in::exec(op, context);
  for (const auto& output : outputs)
    check(output->empty() || output->buffer().latest() == Buffer::OnDevice,
          std::string(name) + ": an output is not registered as written on the device");
  return outputs;
}

/// The message of what the op throws.
std::string messageOf(const char* name, Context& context) {
  try {
    stand_in::exec(*stand_in::find(name), context);
  } catch (const std::exception& e) {
    return e.what();
  }
  return "no exception";
}

void checkMessage(const std::string& message, std::initializer_list<const char*> parts) {
  for (const char* part : parts)
    check(message.find(part) != std::string::npos, "'" + message + "' does not say '" + part + "'");
}

/// The arrays and arguments of one attention problem.
template <typename T>
struct Operands {
  using F = typename Wide<T>::type;
  Shape shape;
  std::unique_ptr<Array> q, k, v, alpha, mask, dO;

  explicit Operands(const Problem& x) : shape(x.shape) {
    const Shape& s = x.shape;
    q = arrayOf<T>({s.B, s.N, s.H, s.D}, x.q);
    k = arrayOf<T>({s.B, s.M, s.Hkv, s.D}, x.k);
    v = arrayOf<T>({s.B, s.M, s.Hkv, s.Dv}, x.v);
    dO = arrayOf<T>({s.B, s.N, s.H, s.Dv}, x.dO);
    if (!x.alpha.empty()) alpha = arrayOf<F>({s.B, s.M, s.H}, x.alpha);
    if (!x.mask.empty()) mask = arrayOf<T>({s.B, s.M}, x.mask);
  }

  /// With what rounding to the type left.
  Problem problem() const {
    Problem x{shape, values<T>(*q), values<T>(*k), values<T>(*v), {}, {}, values<T>(*dO)};
    if (alpha) x.alpha = values<F>(*alpha);
    if (mask) x.mask = values<T>(*mask);
    return x;
  }

  std::unique_ptr<Context> forward() const {
    auto context = contextOf({q.get(), k.get(), v.get(), alpha.get(), mask.get()});
    arguments(*context);
    return context;
  }
  std::unique_ptr<Context> backward(Array& o, Array& lse) const {
    auto context = contextOf({q.get(), k.get(), v.get(), alpha.get(), mask.get(), &o, &lse, dO.get()});
    arguments(*context);
    return context;
  }

  void arguments(Context& context) const {
    context.integers = {static_cast<int>(shape.window)};
    context.reals = {shape.scale};
    context.booleans = {alpha != nullptr, mask != nullptr};
  }
};

Problem problemOf(const Shape& s, bool hasAlpha = true) {
  Problem x{s,
            random(Fill::Normal, 1, s.B * s.N * s.H * s.D),
            random(Fill::Normal, 2, s.B * s.M * s.Hkv * s.D),
            random(Fill::Normal, 3, s.B * s.M * s.Hkv * s.Dv),
            {},
            {},
            random(Fill::Normal, 4, s.B * s.N * s.H * s.Dv)};
  if (hasAlpha) x.alpha = random(Fill::SmallDecay, 5, s.B * s.M * s.H);
  return x;
}

void compare(const std::string& what, const std::vector<double>& x, const std::vector<double>& ref,
             const std::vector<double>& yardstick, double limit, double floor) {
  const double allowed = std::max(limit * norm(ref) + floor, 2 * distance(yardstick, ref));
  const double error = x.size() == ref.size() ? distance(x, ref) : HUGE_VAL;
  check(error <= allowed, what + ": error " + std::to_string(error) + ", allowed " + std::to_string(allowed));
}

/// Forward and backward through the ops, against float64.
template <typename T>
void runAttention(const std::string& what, const Problem& problem, FloatMode mode, const Gradients* reference) {
  using F = typename Wide<T>::type;
  const Operands<T> operands(problem);
  const Problem x = operands.problem();
  const auto forward = operands.forward();
  const auto results = run("gated_fwa", *forward);
  const auto backward = operands.backward(*results[0], *results[1]);
  const auto gradients = run("gated_fwa_bp", *backward);

  const Gradients exact = reference != nullptr ? *reference : oracle(x), dense = yardstick<T>(x, mode);
  const double limit = bound(TypeOf<T>::type, mode), floor = 0.1 * limit * norm(exact.dv);
  check(results.size() == 2 && gradients.size() == (operands.alpha ? 4u : 3u), what + ": number of outputs");
  compare(what + " o", values<T>(*results[0]), exact.o, dense.o, limit, 0);
  compare(what + " lse", values<F>(*results[1]), exact.lse, dense.lse, limit, 1e-9);
  compare(what + " dq", values<T>(*gradients[0]), exact.dq, dense.dq, limit, floor);
  compare(what + " dk", values<T>(*gradients[1]), exact.dk, dense.dk, limit, floor);
  compare(what + " dv", values<T>(*gradients[2]), exact.dv, dense.dv, limit, 0);
  if (operands.alpha) compare(what + " dalpha", values<F>(*gradients[3]), exact.dalpha, dense.dalpha, limit, floor);
}

template <typename F>
void runGate(const std::string& what, const std::string& at, double eps) {
  std::vector<int64_t> s, other;
  const auto h = readNpy(at + "h.npy", &s), beta = readNpy(at + "beta.npy", &other),
             dalpha = readNpy(at + "dalpha.npy", &other);
  if (h.empty()) return;
  const Array::Sizes shape(s.begin(), s.end());
  const auto hArray = arrayOf<F>(shape, h), betaArray = arrayOf<F>(shape, beta), dArray = arrayOf<F>(shape, dalpha);
  const auto forward = contextOf({hArray.get(), betaArray.get()});
  const auto backward = contextOf({hArray.get(), betaArray.get(), dArray.get()});
  forward->reals = backward->reals = {eps};
  const auto alpha = run("gated_fwa_gate", *forward), gradients = run("gated_fwa_gate_bp", *backward);
  const double limit = bound(TypeOf<F>::type, FloatMode::Strict);
  const auto near = [&](const char* name, const Array& array) {
    const auto ref = readNpy(at + name + ".npy", &other);
    compare(what + ' ' + name, values<F>(array), ref, ref, limit, 0);
  };
  near("alpha", *alpha[0]);
  near("dh", *gradients[0]);
  near("dbeta", *gradients[1]);
}

template <typename T>
void runGolden(const std::string& folder, FloatMode mode) {
  for (const char* name : kGoldenCases) {
    const std::string at = folder + "/" + name + "/";
    const std::string what =
        std::string("golden ") + name + " " + TypeOf<T>::name + (mode == FloatMode::Tf32 ? "/tf32" : "");
    std::ifstream file(at + "case.json");
    check(static_cast<bool>(file), what + ": no file " + at + "case.json");
    if (!file) continue;
    std::stringstream text;
    text << file.rdbuf();
    std::vector<int64_t> qs, ks, vs, other;
    Problem x;
    x.q = readNpy(at + "q.npy", &qs);
    x.k = readNpy(at + "k.npy", &ks);
    x.v = readNpy(at + "v.npy", &vs);
    x.alpha = readNpy(at + "alpha.npy", &other);
    x.mask = readNpy(at + "mask.npy", &other);
    x.dO = readNpy(at + "dO.npy", &other);
    x.shape = {qs[0],
               qs[1],
               ks[1],
               qs[2],
               ks[2],
               qs[3],
               vs[3],
               static_cast<int64_t>(jsonNumber(text.str(), "window")),
               jsonNumber(text.str(), "scale")};
    const Gradients ref{readNpy(at + "o.npy", &other),  readNpy(at + "lse.npy", &other),
                        readNpy(at + "dq.npy", &other), readNpy(at + "dk.npy", &other),
                        readNpy(at + "dv.npy", &other), readNpy(at + "dalpha.npy", &other)};
    runAttention<T>(what, x, mode, &ref);
    if (sizeof(T) >= 4 && mode == FloatMode::Strict)
      runGate<typename Wide<T>::type>(what, at, jsonNumber(text.str(), "eps"));
  }
}

/// The operands and arguments of native sparse attention; masks may be null.
template <typename T>
struct NsaOperands {
  using F = typename Wide<T>::type;
  NsaShape s;
  std::unique_ptr<Array> q, dO, kCmp, vCmp, k, v, blockMask, tokenMask;

  NsaOperands(const NsaShape& shape, bool masked) : s(shape) {
    const int64_t B = s.batch, N = s.queryLength, M = s.keyLength, C = s.blocks();
    const auto normal = [&](uint64_t seed, const Array::Sizes& sizes) {
      return arrayOf<T>(sizes, random(Fill::Normal, seed, sizes[0] * sizes[1] * sizes[2] * sizes[3]));
    };
    q = normal(1, {B, N, s.heads, s.headSize});
    dO = normal(2, {B, N, s.heads, s.valueSize});
    kCmp = normal(3, {B, C, s.kvHeads, s.headSize});
    vCmp = normal(4, {B, C, s.kvHeads, s.valueSize});
    k = normal(5, {B, M, s.kvHeads, s.headSize});
    v = normal(6, {B, M, s.kvHeads, s.valueSize});
    if (!masked) return;
    blockMask = arrayOf<T>({B, C}, random(Fill::RandomMask, 7, B * C));
    tokenMask = arrayOf<T>({B, M}, random(Fill::RandomMask, 8, B * M));
  }

  int integer(int64_t x) const { return static_cast<int>(x); }
  std::unique_ptr<Context> call(std::initializer_list<Array*> inputs, const std::vector<int>& integers) const {
    auto context = contextOf(inputs);
    context->integers = integers;
    context->reals = {s.scale};
    context->booleans = {blockMask != nullptr};
    return context;
  }
  std::unique_ptr<Context> compressed() const {
    return call({q.get(), kCmp.get(), vCmp.get(), blockMask.get()}, compression());
  }
  std::unique_ptr<Context> compressedGradient(Array& o, Array& lse) const {
    return call({q.get(), kCmp.get(), vCmp.get(), blockMask.get(), &o, &lse, dO.get()}, compression());
  }
  std::unique_ptr<Context> select(Array& lse) const {
    return call(
        {q.get(), kCmp.get(), &lse, blockMask.get()},
        {integer(s.blockLength), integer(s.stride), integer(s.selectionBlock), integer(s.topN), integer(s.keyLength)});
  }
  std::unique_ptr<Context> selected(Array& indices) const {
    return call({q.get(), k.get(), v.get(), &indices, tokenMask.get()}, {integer(s.selectionBlock)});
  }
  std::unique_ptr<Context> selectedGradient(Array& indices, Array& o, Array& lse) const {
    return call({q.get(), k.get(), v.get(), &indices, tokenMask.get(), &o, &lse, dO.get()},
                {integer(s.selectionBlock)});
  }

 private:
  std::vector<int> compression() const { return {integer(s.blockLength), integer(s.stride), integer(s.keyLength)}; }
};

bool contains(const int* row, int64_t count, int64_t x) { return std::find(row, row + count, x) != row + count; }

/// The ops of native sparse attention one after the other, against float64.
template <typename T>
void runNsa(const NsaShape& s, bool masked) {
  using F = typename Wide<T>::type;
  const std::string what =
      std::string("nsa ") + TypeOf<T>::name + " H " + std::to_string(s.heads) + (masked ? " masked" : "");
  const NsaOperands<T> x(s, masked);
  const std::vector<double> blockMask = masked ? values<T>(*x.blockMask) : std::vector<double>(),
                            tokenMask = masked ? values<T>(*x.tokenMask) : std::vector<double>();
  const auto compareBranch = [&](const char* name, const auto& results, const auto& gradients, const Array& k,
                                 const Array& v, const Sees& sees) {
    NsaArrays<double> exact;
    exact.q = values<T>(*x.q);
    exact.k = values<T>(k);
    exact.v = values<T>(v);
    exact.dO = values<T>(*x.dO);
    nsaDense<double>(s, k.shape()[1], sees, exact);
    const auto near = [&](const char* tensor, const std::vector<double>& result, const std::vector<double>& ref,
                          double limit) {
      // Where nothing is left but rounding the operands' size counts.
      const double floor = (sizeof(T) == 4 ? 0.3 : 0.1) * limit * std::sqrt(static_cast<double>(ref.size()));
      compare(what + ' ' + name + ' ' + tensor, result, ref, ref, limit, floor);
    };
    const double limit = bound(TypeOf<T>::type, FloatMode::Strict);
    near("o", values<T>(*results[0]), exact.o, limit);
    near("lse", values<F>(*results[1]), exact.lse, sizeof(T) == 8 ? 1e-12 : 2e-5);
    near("dq", values<T>(*gradients[0]), exact.dq, limit);
    near("dk", values<T>(*gradients[1]), exact.dk, limit);
    near("dv", values<T>(*gradients[2]), exact.dv, limit);
    return exact;
  };

  const int64_t B = s.batch, N = s.queryLength, Hkv = s.kvHeads, C = s.blocks(), S = s.selectionBlocks();
  const Sees complete = [&](int64_t b, int64_t, int64_t t, int64_t c) {
    return c * s.stride + s.blockLength - 1 <= s.position(t) &&
           (!masked || blockMask[static_cast<size_t>(b * C + c)] != 0);
  };
  const auto compressed = run("nsa_compressed_attention", *x.compressed());
  const auto compressedGradients =
      run("nsa_compressed_attention_bp", *x.compressedGradient(*compressed[0], *compressed[1]));
  const NsaArrays<double> exact =
      compareBranch("compressed", compressed, compressedGradients, *x.kCmp, *x.vCmp, complete);

  const auto chosen = run("nsa_select", *x.select(*compressed[1]));
  checkMessage(gpu::report().lastDecision, {"nsa_select ", "topN", "cuda:0"});
  chosen[0]->buffer().syncToHost();
  const int* const indices = static_cast<const int*>(chosen[0]->buffer().host());
  const std::vector<double> importance = importances(s, complete, exact);
  int64_t wrong = 0;
  for (int64_t row = 0; row < B * N * Hkv; row++) {
    const double* const own = importance.data() + row * S;
    double least = HUGE_VAL, most = -1;
    int64_t count = 0, candidates = 0;
    for (int64_t block = 0; block < S; block++) {
      const bool taken = contains(indices + row * s.topN, s.topN, block);
      count += taken;
      candidates += own[block] >= 0;
      if (taken) least = std::min(least, own[block]);
      if (!taken) most = std::max(most, own[block]);
    }
    wrong += count != std::min(s.topN, candidates) || most > least + 1e-3;
  }
  check(wrong == 0, what + " choice: " + std::to_string(wrong) + " rows");

  const auto selected = run("nsa_selected_attention", *x.selected(*chosen[0]));
  const auto selectedGradients =
      run("nsa_selected_attention_bp", *x.selectedGradient(*chosen[0], *selected[0], *selected[1]));
  compareBranch("selected", selected, selectedGradients, *x.k, *x.v, [&](int64_t b, int64_t h, int64_t t, int64_t j) {
    return j <= s.position(t) && (!masked || tokenMask[static_cast<size_t>(b * s.keyLength + j)] != 0) &&
           contains(indices + ((b * N + t) * Hkv + h) * s.topN, s.topN, j / s.selectionBlock);
  });

  // The choice written into a part of a larger array, and read there: the same bits.
  Array wide(sd::INT32, {B, N, Hkv, s.topN + 3});
  wide.buffer().wroteHost();
  Array part(wide, chosen[0]->shape(), wide.strides(), 2);
  const auto again = x.select(*compressed[1]);
  again->outputs = {&part};
  stand_in::exec(*stand_in::find("nsa_select"), *again);
  check(values<int>(part) == values<int>(*chosen[0]), what + ": another choice in a view");
  check(static_cast<const int*>(wide.buffer().host())[0] == -1, what + ": an element beside the view changed");
  check(values<T>(*run("nsa_selected_attention", *x.selected(part))[0]) == values<T>(*selected[0]),
        what + ": other results from a view of the indices");
}

/// The case nsa_small; its compressed keys and values are means.
template <typename T>
void runNsaGolden(const std::string& folder) {
  const std::string at = folder + "/nsa_small/", what = std::string("golden nsa_small ") + TypeOf<T>::name;
  std::ifstream file(at + "case.json");
  check(static_cast<bool>(file), what + ": no file " + at + "case.json");
  if (!file) return;
  std::stringstream text;
  text << file.rdbuf();
  const auto number = [&](const char* key) { return static_cast<int64_t>(jsonNumber(text.str(), key)); };
  std::vector<int64_t> qs, ks, vs, other;
  const std::vector<double> q = readNpy(at + "q.npy", &qs), k = readNpy(at + "k.npy", &ks),
                            v = readNpy(at + "v.npy", &vs);
  NsaOperands<T> x({qs[0], qs[1], ks[1], qs[2], ks[2], qs[3], vs[3], number("blockLength"), number("stride"),
                    number("selectionBlock"), number("topN"), jsonNumber(text.str(), "scale")},
                   false);
  const NsaShape& s = x.s;
  const auto means = [&](const std::vector<double>& tokens) {
    const int64_t row = static_cast<int64_t>(tokens.size()) / s.batch / s.keyLength;
    std::vector<double> result(static_cast<size_t>(s.batch * s.blocks() * row), 0);
    for (size_t i = 0; i < result.size(); i++) {
      const int64_t at = static_cast<int64_t>(i), b = at / row / s.blocks(), c = at / row % s.blocks();
      for (int64_t j = 0; j < s.blockLength; j++)
        result[i] += tokens[static_cast<size_t>((b * s.keyLength + c * s.stride + j) * row + at % row)] /
                     static_cast<double>(s.blockLength);
    }
    return result;
  };
  set<T>(*x.q, q);
  set<T>(*x.k, k);
  set<T>(*x.v, v);
  set<T>(*x.kCmp, means(k));
  set<T>(*x.vCmp, means(v));
  const auto compressed = run("nsa_compressed_attention", *x.compressed());
  const auto chosen = run("nsa_select", *x.select(*compressed[1]));
  const auto selected = run("nsa_selected_attention", *x.selected(*chosen[0]));
  const double limit = bound(TypeOf<T>::type, FloatMode::Strict);
  const auto near = [&](const char* name, const Array& array) {
    const auto ref = readNpy(at + name + ".npy", &other);
    compare(what + ' ' + name, values<T>(array), ref, ref, limit, 0);
  };
  near("o_cmp", *compressed[0]);
  check(values<int>(*chosen[0]) == readNpy(at + "selected.npy", &other), what + " selected");
  near("o_slc", *selected[0]);
}

/// q, k and v packed token by token into one array, o written into a transposed part of a larger one that only the host
/// knows: same bits as from dense arrays, and nothing beside o changes.
template <typename T>
void runViews() {
  const std::string what = std::string("views ") + TypeOf<T>::name;
  const Shape s{2, 70, 70, 2, 2, 32, 32, 33, 0.25};
  const Operands<T> dense(problemOf(s));
  const auto expected = run("gated_fwa", *dense.forward());

  const int64_t head = s.D, part = s.H * head, token = 3 * part;
  Array packed(typeOf<T>(), {s.B, s.N, token});
  const Array::Sizes shape = {s.B, s.N, s.H, head}, strides = {s.N * token, token, head, 1};
  Array q(packed, shape, strides, 0), k(packed, shape, strides, part), v(packed, shape, strides, 2 * part);
  set<T>(q, values<T>(*dense.q));
  set<T>(k, values<T>(*dense.k));
  set<T>(v, values<T>(*dense.v));

  const int64_t margin = 5, plane = (s.N + margin) * head;
  Array larger(typeOf<T>(), {s.B, s.H, s.N + margin, head});
  set<T>(larger, std::vector<double>(static_cast<size_t>(s.B * s.H * plane), 7));
  Array o(larger, shape, {s.H * plane, head, plane, 1}, 0);
  const auto lse = std::make_unique<Array>(expected[1]->type(), expected[1]->shape());
  const auto context = contextOf({&q, &k, &v, dense.alpha.get()});
  dense.arguments(*context);
  context->outputs = {&o, lse.get()};
  stand_in::exec(*stand_in::find("gated_fwa"), *context);

  check(values<T>(o) == values<T>(*expected[0]), what + ": o is not that of dense arrays");
  check(values<typename Wide<T>::type>(*lse) == values<typename Wide<T>::type>(*expected[1]), what + ": lse");
  const std::vector<double> all = values<T>(larger);
  bool intact = true;
  for (int64_t i = 0; i < s.B * s.H; i++)
    for (int64_t j = s.N * head; j < plane; j++) intact = intact && all[static_cast<size_t>(i * plane + j)] == 7;
  check(intact, what + ": elements beside o changed");
}

/// Holds a stream until the host opens the gate; some twenty seconds at most.
__global__ void waitFor(const volatile int* gate) {
  const long long start = clock64();
  while (*gate == 0 && clock64() - start < 40'000'000'000) {
  }
}

/// Operands that are still being produced on ND4J's stream when the op is called, and a consumer on that stream that is
/// enqueued right behind it: nothing else orders the three.
void runStreamOrder() {
  const Operands<float> operands(problemOf({1, 300, 300, 2, 1, 64, 64, 100, 0.125}));
  const auto expected = run("gated_fwa", *operands.forward());
  const std::vector<double> o = values<float>(*expected[0]);
  const auto context = operands.forward();
  const auto outputs = stand_in::allocateOutputs(*stand_in::find("gated_fwa"), *context);
  for (const auto& output : outputs) {
    output->buffer().allocateDevice();
    context->outputs.push_back(output.get());
  }

  // The real operands wait in other memory until the op has been called.
  std::vector<void*> kept;
  for (const auto* array : {operands.q.get(), operands.k.get(), operands.v.get(), operands.alpha.get()}) {
    Buffer& buffer = array->buffer();
    void* copy = nullptr;
    CHECK(cudaMalloc(&copy, buffer.bytes()));
    CHECK(cudaMemcpy(copy, buffer.device(), buffer.bytes(), cudaMemcpyDeviceToDevice));
    CHECK(cudaMemset(buffer.device(), 0xff, buffer.bytes()));
    kept.push_back(copy);
  }
  float* consumed = nullptr;
  CHECK(cudaMalloc(&consumed, o.size() * sizeof(float)));
  int* gate = nullptr;
  CHECK(cudaMallocHost(&gate, sizeof *gate));
  *gate = 0;
  CHECK(cudaDeviceSynchronize());
  const cudaStream_t stream = stand_in::stream();
  waitFor<<<1, 1, 0, stream>>>(gate);
  size_t next = 0;
  for (const auto* array : {operands.q.get(), operands.k.get(), operands.v.get(), operands.alpha.get()}) {
    Buffer& buffer = array->buffer();
    CHECK(cudaMemcpyAsync(buffer.device(), kept[next++], buffer.bytes(), cudaMemcpyDeviceToDevice, stream));
    buffer.wroteDevice();
  }
  stand_in::find("gated_fwa")->execute(context.get());
  CHECK(cudaMemcpyAsync(consumed, outputs[0]->buffer().device(), o.size() * sizeof(float), cudaMemcpyDeviceToDevice,
                        stream));
  const bool pending = cudaStreamQuery(stream) == cudaErrorNotReady;
  cudaGetLastError();
  *static_cast<volatile int*>(gate) = 1;
  CHECK(cudaStreamSynchronize(stream));
  std::vector<float> seen(o.size());
  CHECK(cudaMemcpy(seen.data(), consumed, o.size() * sizeof(float), cudaMemcpyDeviceToHost));
  check(pending, "stream order: the call waited for the device");
  check(std::equal(seen.begin(), seen.end(), o.begin(), o.end()), "stream order: other results");
  for (void* copy : kept) CHECK(cudaFree(copy));
  CHECK(cudaFree(consumed));
  CHECK(cudaFreeHost(gate));
}

/// Threads with a stream each: same bits as one thread's.
void runThreads() {
  const Problem problem = problemOf({2, 200, 300, 4, 2, 64, 64, 100, 0.125});
  const auto gradientsOf = [&problem] {
    const Operands<float> operands(problem);
    std::vector<std::vector<double>> bits;
    for (int i = 0; i < 20; i++) {
      const auto forward = operands.forward();
      const auto results = stand_in::allocateOutputs(*stand_in::find("gated_fwa"), *forward);
      for (const auto& result : results) forward->outputs.push_back(result.get());
      stand_in::exec(*stand_in::find("gated_fwa"), *forward);
      const auto backward = operands.backward(*results[0], *results[1]);
      const auto gradients = stand_in::allocateOutputs(*stand_in::find("gated_fwa_bp"), *backward);
      for (const auto& gradient : gradients) backward->outputs.push_back(gradient.get());
      stand_in::exec(*stand_in::find("gated_fwa_bp"), *backward);
      for (const auto& gradient : gradients) bits.push_back(values<float>(*gradient));
    }
    return bits;
  };
  const auto expected = gradientsOf();
  constexpr int kThreads = 4;
  std::vector<std::vector<std::vector<double>>> results(kThreads);
  std::vector<std::thread> threads;
  for (auto& result : results)
    threads.emplace_back([&result, &gradientsOf] {
      try {
        result = gradientsOf();
      } catch (const std::exception& e) {
        std::printf("thread: %s\n", e.what());
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const auto& result : results) check(result == expected, "threads: other results");
}

void runEmpty() {
  const Operands<float> none(problemOf({0, 5, 5, 2, 1, 16, 16, 3, 0.25}));
  const auto nothing = run("gated_fwa", *none.forward());
  check(nothing[0]->shape() == Array::Sizes({0, 5, 2, 16}), "empty batch: shape of o");

  const Operands<float> keysOnly(problemOf({1, 0, 5, 2, 1, 16, 16, 3, 0.25}));
  const auto results = run("gated_fwa", *keysOnly.forward());
  const auto gradients = run("gated_fwa_bp", *keysOnly.backward(*results[0], *results[1]));
  for (const size_t i : {1, 2, 3})
    for (const double y : values<float>(*gradients[i])) check(y == 0, "no query: a key has a gradient");
}

void runBadArguments() {
  const Operands<float> operands(problemOf({1, 20, 20, 2, 1, 16, 16, 3, 0.25}));
  Array o(sd::FLOAT32, {1, 20, 2, 16}), lse(sd::FLOAT32, {1, 2, 20}), doubles(sd::DOUBLE, {1, 20, 1, 16});
  const auto call = [&] {
    auto context = operands.forward();
    context->outputs = {&o, &lse};
    return context;
  };
  auto context = call();
  context->integers = {0};
  checkMessage(messageOf("gated_fwa", *context), {"gated_fwa: ", "'window' is 0", "at least 1"});

  context = call();
  context->inputs[1] = &doubles;
  checkMessage(messageOf("gated_fwa", *context), {"gated_fwa: k is DOUBLE", "expected FLOAT"});

  context = call();
  context->outputs[0] = operands.q.get();
  const std::vector<double> q = values<float>(*operands.q);
  checkMessage(messageOf("gated_fwa", *context), {"gated_fwa: the output o overlaps the input q"});
  check(values<float>(*operands.q) == q, "overlap: q changed");

  context = call();
  stand_in::exec(*stand_in::find("gated_fwa"), *context);
  check(distance(values<float>(o), oracle(operands.problem()).o) < 1e-4, "after bad arguments: other results");
}

/// Indices lie on the device, where nobody looks at them first: whatever they are, the call ends and the next one
/// works.
template <typename T>
void runHostileIndices() {
  const std::string what = std::string("hostile indices ") + TypeOf<T>::name;
  const NsaOperands<T> x({1, 150, 200, 16, 1, 64, 64, 8, 4, 64, 4, 0.1}, false);
  Array indices(sd::INT32, {1, 150, 1, 4}), honest(sd::INT32, {1, 150, 1, 4});
  const auto fill = [](Array& array, const std::vector<int>& pattern) {
    array.buffer().syncToHost();
    int* const host = static_cast<int*>(array.buffer().host());
    for (size_t i = 0; i < 150 * 4; i++) host[i] = pattern[i % pattern.size()];
    array.buffer().wroteHost();
  };
  const auto call = [&](Array& choice) {
    const auto forward = run("nsa_selected_attention", *x.selected(choice));
    const auto backward = run("nsa_selected_attention_bp", *x.selectedGradient(choice, *forward[0], *forward[1]));
    std::vector<std::vector<double>> results;
    for (const auto* arrays : {&forward, &backward})
      for (size_t i = arrays == &forward ? 2 : 0; i < arrays->size(); i++) results.push_back(values<T>(*(*arrays)[i]));
    return results;
  };
  fill(honest, {0, 1, -1, -1});
  const auto expected = call(honest);
  for (const std::vector<int>& pattern : {std::vector<int>{INT32_MAX, INT32_MIN, 2, 1},
                                          {3, 2, 1, 0},
                                          {1, 1, 1, 1},
                                          {-1, 0, 1, 2},
                                          {1 << 25, -7, 4, 1000},
                                          {0x7fffffff / 64 + 1, 0, 0x7ffffffe, 3}}) {
    fill(indices, pattern);
    call(indices);
    check(call(honest) == expected, what + ": the call after it has other results");
  }
}

void runBadNsaArguments() {
  const NsaOperands<float> x({1, 20, 20, 2, 1, 16, 16, 8, 4, 8, 3, 0.25}, false);
  const auto compressed = run("nsa_compressed_attention", *x.compressed());
  const auto chosen = run("nsa_select", *x.select(*compressed[1]));
  const auto refused = [&](const char* op, std::unique_ptr<Context> context, std::initializer_list<Array*> outputs,
                           std::initializer_list<const char*> parts) {
    for (Array* output : outputs) context->outputs.push_back(output);
    checkMessage(messageOf(op, *context), parts);
  };
  Array o(sd::FLOAT32, {1, 20, 2, 16}), lse(sd::FLOAT32, {1, 2, 20}), longer(sd::FLOAT32, {1, 5, 1, 16});
  auto context = x.compressed();
  context->integers[1] = 3;
  refused("nsa_compressed_attention", std::move(context), {&o, &lse},
          {"nsa_compressed_attention: argument 'stride' is 3", "a divisor of blockLength, 8"});
  context = x.compressed();
  context->inputs[1] = &longer;
  refused("nsa_compressed_attention", std::move(context), {&o, &lse},
          {"nsa_compressed_attention: kCmp has shape [1, 5, 1, 16]", "[1, 4,"});
  context = x.select(*compressed[1]);
  context->integers[3] = 2;
  refused("nsa_select", std::move(context), {chosen[0].get()}, {"nsa_select: argument 'topN' is 2", "at least 3"});
  context = x.selected(*compressed[0]);
  refused("nsa_selected_attention", std::move(context), {&o, &lse},
          {"nsa_selected_attention: indices is FLOAT; expected INT"});
  context = x.selected(*chosen[0]);
  refused("nsa_selected_attention", std::move(context), {x.q.get(), &lse},
          {"nsa_selected_attention: the output o overlaps the input q"});
}

/// What this device cannot do is an exception, and the next call works.
void runDeviceErrors() {
  const Operands<float> operands(problemOf({1, 20, 20, 2, 1, 16, 16, 3, 0.25}));
  {
    Array one(sd::HALF, {1, 1, 1, 8});
    set<__half>(one, std::vector<double>(8, 1));
    const int64_t B = 70000;
    Array q(one, {B, 1, 1, 8}, {0, 8, 8, 1}, 0);
    const auto context = contextOf({&q, &q, &q});
    context->integers = {1};
    const auto outputs = stand_in::allocateOutputs(*stand_in::find("gated_fwa"), *context);
    for (const auto& output : outputs) context->outputs.push_back(output.get());
    checkMessage(messageOf("gated_fwa", *context), {"gated_fwa: cuda:", "batch x heads x length exceeds the grid"});
  }
  {
    // 2^30 keys that share one row, off a 16-byte boundary: packed copies of them would take 256 GiB.
    const int64_t M = int64_t{1} << 30, D = 64, N = 5;
    Array some(sd::HALF, {1, N, 1, D + 1});
    set<__half>(some, std::vector<double>(static_cast<size_t>(N * (D + 1)), 1));
    Array q(some, {1, N, 1, D}, {0, D, D, 1}, 0), k(some, {1, M, 1, D}, {0, 0, 0, 1}, 1);
    const auto context = contextOf({&q, &k, &k});
    context->integers = {100};
    const auto outputs = stand_in::allocateOutputs(*stand_in::find("gated_fwa"), *context);
    for (const auto& output : outputs) context->outputs.push_back(output.get());
    checkMessage(messageOf("gated_fwa", *context), {"gated_fwa: cuda:", "bytes of scratch memory", "out of memory"});
  }
  const auto after = run("gated_fwa", *operands.forward());
  check(distance(values<float>(*after[0]), oracle(operands.problem()).o) < 1e-4, "after errors: other results");
}

void registerOps() {
  const std::vector<PluginOp*> ops = pluginOps();
  for (PluginOp* op : ops)
    check(sd::ops::OpRegistrator::getInstance().registerOperation(op) && stand_in::find(op->name()) == op,
          std::string("registration of ") + op->name());
  check(sd::ops::OpRegistrator::getInstance().getAllHashes().size() == ops.size(), "number of ops");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 || std::string(argv[1]) != "--golden") {
    std::fprintf(stderr, "usage: nd4jcuda_test --golden DIR\n");
    return 2;
  }
  const std::string golden = argv[2];
  try {
    std::printf("%s\n", gpu::open({}).c_str());
    registerOps();
    runGolden<double>(golden, FloatMode::Strict);
    runGolden<float>(golden, FloatMode::Strict);
    runGolden<__half>(golden, FloatMode::Strict);
    runGolden<__nv_bfloat16>(golden, FloatMode::Strict);
    const Problem tiled = problemOf({2, 300, 400, 4, 2, 128, 64, 150, 0.125});
    runAttention<float>("tiles FLOAT", tiled, FloatMode::Strict, nullptr);
    runAttention<__nv_bfloat16>("tiles BFLOAT16", tiled, FloatMode::Strict, nullptr);
    gpu::open({true, 0});
    runGolden<float>(golden, FloatMode::Tf32);
    runAttention<float>("tiles FLOAT/tf32", tiled, FloatMode::Tf32, nullptr);
    gpu::open({});
    runNsaGolden<double>(golden);
    runNsaGolden<float>(golden);
    runNsaGolden<__half>(golden);
    runNsaGolden<__nv_bfloat16>(golden);
    const NsaShape small{2, 60, 100, 8, 2, 32, 48, 8, 4, 16, 4, 0.2},
        large{1, 120, 200, 16, 1, 128, 128, 32, 16, 64, 3, 0.1};
    for (const bool masked : {false, true}) {
      runNsa<double>(small, masked);
      runNsa<float>(small, masked);
      runNsa<__nv_bfloat16>(small, masked);
      runNsa<__half>(large, masked);
      runNsa<__nv_bfloat16>(large, masked);
    }
    runHostileIndices<float>();
    runHostileIndices<__nv_bfloat16>();
    runBadNsaArguments();
    runViews<double>();
    runViews<float>();
    runViews<__half>();
    runStreamOrder();
    runThreads();
    runEmpty();
    runBadArguments();
    runDeviceErrors();
    checkMessage(gpu::report().lastDecision, {"gated_fwa FLOAT B 1, N 20", "cuda:0"});
    check(gpu::report().calls > 0, "calls are counted");
    if (stand_in::devices() > 1) {
      stand_in::setDevice(1);
      runAttention<float>("second device", tiled, FloatMode::Strict, nullptr);
      checkMessage(gpu::report().lastDecision, {"cuda:1"});
    } else {
      std::printf("one device: not run on a second one\n");
    }
  } catch (const std::exception& e) {
    check(false, e.what());
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}
