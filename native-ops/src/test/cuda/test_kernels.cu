// The CUDA kernels against the float64 oracle: shapes around every tile edge, decays up to hard resets, masks, grouped
// heads, views, long sequences, reruns. Outputs and workspace hold NaN before each run, and bytes that are not part of
// an output must still hold it afterwards.
//
// --raw-workspace leaves the workspace as it was allocated, for compute-sanitizer's initcheck.
//
//   test_kernels [--golden DIR] [--quick] [--raw-workspace] [--only TEXT]
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <string>

#include "accuracy.h"
#include "device_array.h"
#include "gatedfwa_cuda.h"
#include "golden.h"
#include "oracle.h"

using namespace gatedfwa;
using namespace gatedfwa::cuda;
using namespace gatedfwa::test;

namespace {

int passed = 0, failed = 0;
Device device;
std::map<std::string, double> worst;  ///< "type tensor" -> largest error / bound

void check(bool ok, const std::string& what) {
  ++(ok ? passed : failed);
  if (!ok) std::printf("FAILED %s\n", what.c_str());
}

enum class Layout { Dense, HeadsFirst, Padded, Unaligned, LastStride2 };

/// Up to four dimensions on the device in some layout; NaN bytes wherever nothing was written.
template <typename T>
struct Array {
  int64_t n[4];
  int64_t s[4];
  int64_t size = 0, start = 0;
  T* base = nullptr;

  Array(int64_t a, int64_t b, int64_t c, int64_t d, Layout layout = Layout::Dense) : n{a, b, c, d} {
    const int64_t inner = layout == Layout::LastStride2 ? 2 : 1;
    const int64_t pad = layout == Layout::Padded ? 16 : layout == Layout::Unaligned ? 3 : 0;
    s[3] = inner;
    const int64_t row = d * inner + pad;
    if (layout == Layout::HeadsFirst) {  // [B, H, N, D] seen as [B, N, H, D]
      s[1] = row;
      s[2] = b * row;
      s[0] = c * s[2];
    } else {
      s[2] = row;
      s[1] = c * row;
      s[0] = b * s[1];
    }
    start = layout == Layout::Unaligned ? 1 : 0;
    size = start + a * b * c * row + 64;
    CHECK(cudaMalloc(&base, size * sizeof(T)));
    poison();
  }
  ~Array() { cudaFree(base); }
  Array(const Array&) = delete;
  void poison() { CHECK(cudaMemset(base, 0xff, size * sizeof(T))); }
  int64_t count() const { return n[0] * n[1] * n[2] * n[3]; }
  void fill(Fill f, uint64_t seed, double factor = 1) {
    fillKernel<<<2048, 256>>>(base + start, n[0], n[1], n[2], n[3], s[0], s[1], s[2], s[3], f, seed, factor);
    CHECK(cudaGetLastError());
  }
  template <typename Visit>
  void visit(Visit f) const {
    for (int64_t a = 0, i = 0; a < n[0]; ++a)
      for (int64_t b = 0; b < n[1]; ++b)
        for (int64_t c = 0; c < n[2]; ++c)
          for (int64_t d = 0; d < n[3]; ++d) f(i++, start + a * s[0] + b * s[1] + c * s[2] + d * s[3]);
  }
  std::vector<T> download() const {
    std::vector<T> raw(size);
    CHECK(cudaMemcpy(raw.data(), base, size * sizeof(T), cudaMemcpyDeviceToHost));
    return raw;
  }
  std::vector<double> values() const {
    const std::vector<T> raw = download();
    std::vector<double> x(count());
    visit([&](int64_t i, int64_t at) { x[i] = widen(raw[at]); });
    return x;
  }
  void set(const std::vector<double>& x) {
    std::vector<T> raw = download();
    visit([&](int64_t i, int64_t at) { raw[at] = convert<T>(x[i]); });
    CHECK(cudaMemcpy(base, raw.data(), size * sizeof(T), cudaMemcpyHostToDevice));
  }
  /// Bytes outside the view as they were poisoned?
  bool surroundingsIntact() const {
    const std::vector<T> raw = download();
    std::vector<bool> inside(size);
    visit([&](int64_t, int64_t at) { inside[at] = true; });
    for (int64_t i = 0; i < size; ++i)
      if (!inside[i])
        for (size_t b = 0; b < sizeof(T); ++b)
          if (reinterpret_cast<const unsigned char*>(&raw[i])[b] != 0xff) return false;
    return true;
  }
  template <typename Tensor>
  Tensor tensor() const {
    Tensor t;
    t.data = base + start;
    std::copy(s, s + 4, t.strides);
    return t;
  }
  /// For [B, M, H] and the like, kept in four dimensions with a last one of 1.
  Input in() const { return tensor<Input>(); }
  Output out() const { return tensor<Output>(); }
};

bool poisonWorkspace = true;

struct Workspace {
  void* data = nullptr;
  size_t bytes;
  explicit Workspace(size_t size) : bytes(size) {
    if (bytes) {
      CHECK(cudaMalloc(&data, bytes));
      if (poisonWorkspace) CHECK(cudaMemset(data, 0xff, bytes));
    }
  }
  ~Workspace() { cudaFree(data); }
  Workspace(const Workspace&) = delete;
};

struct Case {
  Shape shape;
  Fill decay = Fill::SmallDecay;
  bool hasAlpha = true;
  int mask = 0;  ///< 0 none, else 1 + Fill::RandomMask..
  double inputs = 1;
  Layout layout = Layout::Dense;
  FloatMode mode = FloatMode::Strict;
  int capability = 0;  ///< 75, 80: the kernels of that compute capability; 0: the device's
  bool boolMask = false;
  int64_t storedBytes = -1;  ///< as Device's; -1: the device's
};

std::string typeName(const Case& c, const char* type) {
  return std::string(type) + (c.mode == FloatMode::Tf32 ? "/tf32" : "") +
         (c.capability ? "/sm_" + std::to_string(c.capability) : "");
}

std::string describe(const Case& c, const char* type) {
  std::ostringstream s;
  s << typeName(c, type) << " B" << c.shape.B << " N" << c.shape.N << " M" << c.shape.M << " H" << c.shape.H << "/"
    << c.shape.Hkv << " D" << c.shape.D << "/" << c.shape.Dv << " w" << c.shape.window << " decay"
    << (c.hasAlpha ? static_cast<int>(c.decay) : -1) << " mask" << c.mask << " x" << c.inputs << " layout"
    << static_cast<int>(c.layout);
  if (c.storedBytes >= 0) s << " stored" << c.storedBytes;
  return s.str();
}

void compare(const std::string& what, const std::string& key, const char* tensor, const std::vector<double>& x,
             const std::vector<double>& ref, const std::vector<double>* yardstick, double limit, double floor,
             double yardsticks = 2) {
  const double error = distance(x, ref), size = norm(ref);
  double allowed = limit * size + floor;
  if (yardstick) allowed = std::max(allowed, yardsticks * distance(*yardstick, ref));
  const double relative = size > 0 ? error / size : error;
  double& w = worst[key + " " + tensor];
  w = std::max(w, allowed > 0 ? error / allowed : (error > 0 ? 1e9 : 0));
  check(error <= allowed, what + " " + tensor + ": error " + std::to_string(relative * 1e6) + "e-6, allowed " +
                              std::to_string(allowed / (size > 0 ? size : 1) * 1e6) + "e-6");
}

/// The operands of one problem on the device, and both calls.
template <typename T>
struct Call {
  using F = typename Wide<T>::type;
  const Case& c;
  const Shape& s;
  Array<T> q, k, v, dO, o, dq, dk, dv;
  Array<F> alpha, dalpha, lse;
  Array<T> mask;
  Array<uint8_t> boolMask;
  Device target;
  AttentionForward forward;
  AttentionBackward backward;

  explicit Call(const Case& problem)
      : c(problem),
        s(problem.shape),
        q(s.B, s.N, s.H, s.D, c.layout),
        k(s.B, s.M, s.Hkv, s.D, c.layout),
        v(s.B, s.M, s.Hkv, s.Dv, c.layout),
        dO(s.B, s.N, s.H, s.Dv, c.layout),
        o(s.B, s.N, s.H, s.Dv, c.layout),
        dq(s.B, s.N, s.H, s.D, c.layout),
        dk(s.B, s.M, s.Hkv, s.D, c.layout),
        dv(s.B, s.M, s.Hkv, s.Dv, c.layout),
        alpha(s.B, s.M, s.H, 1, c.layout),
        dalpha(s.B, s.M, s.H, 1, c.layout),
        lse(s.B, s.H, s.N, 1, c.layout),
        mask(s.B, s.M, 1, 1, c.layout),
        boolMask(s.B, s.M, 1, 1, c.layout),
        target(device) {
    if (c.capability) {
      target.major = c.capability / 10;
      target.minor = c.capability % 10;
    }
    if (c.storedBytes >= 0) target.storedBytes = c.storedBytes;
    AttentionProblem& p = forward;
    p.type = TypeOf<T>::type;
    p.maskType = c.boolMask ? ElementType::Bool : TypeOf<T>::type;
    p.batch = s.B;
    p.queryLength = s.N;
    p.keyLength = s.M;
    p.heads = s.H;
    p.kvHeads = s.Hkv;
    p.headSize = s.D;
    p.valueSize = s.Dv;
    p.window = s.window;
    p.scale = s.scale;
    p.q = q.in();
    p.k = k.in();
    p.v = v.in();
    if (c.hasAlpha) p.alpha = alpha.in();
    if (c.mask) p.mask = c.boolMask ? boolMask.in() : mask.in();
    static_cast<AttentionProblem&>(backward) = p;
    forward.o = o.out();
    forward.lse = lse.out();
    backward.o = o.in();
    backward.lse = lse.in();
    backward.dO = dO.in();
    backward.dq = dq.out();
    backward.dk = dk.out();
    backward.dv = dv.out();
    if (c.hasAlpha) backward.dalpha = dalpha.out();
  }

  void fill() {
    q.fill(Fill::Normal, 1, c.inputs);
    k.fill(Fill::Normal, 2, c.inputs);
    v.fill(Fill::Normal, 3, c.inputs);
    dO.fill(Fill::Normal, 4, c.inputs);
    alpha.fill(c.decay, 5);
    if (c.mask) {
      mask.fill(static_cast<Fill>(static_cast<int>(Fill::RandomMask) + c.mask - 1), 6);
      boolMask.fill(static_cast<Fill>(static_cast<int>(Fill::RandomMask) + c.mask - 1), 6);
    }
  }
  Problem problem() const {
    Problem x{s, q.values(), k.values(), v.values(), {}, {}, dO.values()};
    if (c.hasAlpha) x.alpha = alpha.values();
    if (c.mask) x.mask = mask.values();
    return x;
  }
  void poison() {
    o.poison();
    lse.poison();
    dq.poison();
    dk.poison();
    dv.poison();
    dalpha.poison();
  }
  void run(const std::string& what) {
    poison();
    {
      Workspace w(attentionForwardWorkspace(forward, target, c.mode));
      const Result r = attentionForward(forward, target, c.mode, w.data, w.bytes, nullptr);
      CHECK(cudaDeviceSynchronize());
      check(static_cast<bool>(r), what + " forward launch: " + cudaGetErrorString(r.cuda));
    }
    Workspace w(attentionBackwardWorkspace(backward, target, c.mode));
    const Result r = attentionBackward(backward, target, c.mode, w.data, w.bytes, nullptr);
    CHECK(cudaDeviceSynchronize());
    check(static_cast<bool>(r), what + " backward launch: " + cudaGetErrorString(r.cuda));
  }
};

template <typename T>
void compareAll(Call<T>& call, const std::string& what, const Problem& x, const Gradients& ref) {
  const Case& c = call.c;
  const Gradients yard = yardstick<T>(x, c.mode);
  const double limit = bound(TypeOf<T>::type, c.mode);
  const std::string key = typeName(c, TypeOf<T>::name);
  // Where a gradient cancels to nothing (w = 1: dS = 0) what remains is rounding of terms the size of dv's.
  const double floor =
      0.1 * limit * norm(ref.dv) * std::sqrt(std::max<double>(64, std::max(c.shape.D, c.shape.Dv)) / 64);
  // Known miss: rows whose near keys are all masked while the decay is tens per token have lse in the thousands, where
  // a float32 lse alone costs 1e-4; the blocked sums round it more often than the dense one does.
  const double yardsticks = c.mask && c.decay == Fill::LargeDecay ? 4 : 2;
  compare(what, key, "o", call.o.values(), ref.o, &yard.o, limit, 0);
  compare(what, key, "lse", call.lse.values(), ref.lse, &yard.lse, limit, 1e-9);
  compare(what, key, "dq", call.dq.values(), ref.dq, &yard.dq, limit, floor, yardsticks);
  compare(what, key, "dk", call.dk.values(), ref.dk, &yard.dk, limit, floor, yardsticks);
  compare(what, key, "dv", call.dv.values(), ref.dv, &yard.dv, limit, 0, yardsticks);
  if (c.hasAlpha)
    compare(what, key, "dalpha", call.dalpha.values(), ref.dalpha, &yard.dalpha, limit, floor, yardsticks);
  check(call.o.surroundingsIntact() && call.dq.surroundingsIntact() && call.dk.surroundingsIntact() &&
            call.dv.surroundingsIntact() && call.lse.surroundingsIntact() &&
            (!c.hasAlpha || call.dalpha.surroundingsIntact()),
        what + ": wrote outside an output");
}

std::string only;

template <typename T>
void runCase(const Case& c) {
  const std::string what = describe(c, TypeOf<T>::name);
  if (what.find(only) == std::string::npos) return;
  Call<T> call(c);
  call.fill();
  call.run(what);
  const Problem x = call.problem();
  compareAll(call, what, x, oracle(x));
}

template <typename T>
void runShapes(FloatMode mode, int capability, bool quick) {
  const auto shape = [](int64_t B, int64_t N, int64_t M, int64_t H, int64_t Hkv, int64_t D, int64_t Dv, int64_t w) {
    return Shape{B, N, M, H, Hkv, D, Dv, w, 1 / std::sqrt(static_cast<double>(D))};
  };
  std::vector<Case> cases;
  const auto add = [&](Shape s) -> Case& {
    cases.push_back({s});
    cases.back().mode = mode;
    cases.back().capability = capability;
    return cases.back();
  };
  // Lengths and windows around tile edges.
  for (int64_t N : {1, 3, 63, 64, 65, 113, 127, 128, 129, 239, 1023})
    for (int64_t w : {1, 17, 64, 65, 128, 5000}) {
      if ((quick || capability) && (N + w) % 3 != 0) continue;
      add(shape(1, N, N, 2, 1, 64, 64, w));
    }
  for (int64_t w : {2, 31, 32, 33, 63, 127, 129, 191, 512}) add(shape(1, 300, 300, 1, 1, 64, 64, w));
  // The same around the Hopper kernels' blocks of two and three tiles, and more work than multiprocessors.
  if (sizeof(T) == 2)
    for (int64_t D : {64, 128}) {
      for (int64_t N : {1, 5, 63, 65, 128, 191, 192, 193, 257, 383, 385, 1025})
        for (int64_t w : {1, 63, 64, 65, 129, 600})
          if (!quick || (N + w) % 3 == 0) add(shape(1, N, N, 2, 1, D, D, w));
      for (int64_t N : {6, 63, 64, 65, 130, 200}) add(shape(1, N, 531, 2, 2, D, D, 97));
      for (int64_t G : {1, 2, 4, 8}) add(shape(2, 150, 200, 8, 8 / G, D, D, 70));
      add(shape(3, 700, 700, 32, 16, D, D, 130));
    }
  // No room for dS, and room for a part of it: of one batch entry, of parts of one, and of parts that straddle two.
  if (sizeof(T) == 2 && !capability)
    for (int64_t bytes : {0, 600 << 10, 1 << 20}) {
      add(shape(3, 700, 700, 32, 16, 128, 128, 130)).storedBytes = bytes;
      for (int64_t G : {1, 2, 8}) add(shape(2, 150, 200, 8, 8 / G, 128, 128, 70)).storedBytes = bytes;
      for (Fill f : {Fill::LargeDecay, Fill::Resets}) {
        Case& c = add(shape(2, 333, 450, 4, 2, 128, 128, 150));
        c.decay = f;
        c.mask = 1;
        c.storedBytes = bytes;
      }
    }
  // Head sizes, equal and not, multiples of 8 and not.
  for (int64_t D : {1, 8, 20, 32, 64, 72, 96, 128, 136, 200, 256}) add(shape(1, 150, 150, 2, 2, D, D, 70));
  add(shape(1, 150, 150, 2, 1, 64, 128, 70));
  add(shape(1, 150, 150, 2, 1, 128, 40, 70));
  add(shape(1, 150, 150, 2, 1, 33, 256, 70));
  add(shape(1, 300, 300, 2, 1, 128, 128, 200));
  add(shape(1, 300, 300, 2, 1, 256, 256, 200));
  // Grouped heads, batches.
  for (int64_t G : {1, 2, 4, 8}) add(shape(2, 200, 200, 8, 8 / G, 64, 64, 100));
  // Fewer queries than keys.
  for (int64_t N : {1, 2, 4, 5, 64, 130})
    for (int64_t w : {50, 300, 4000}) add(shape(2, N, 1000, 4, 2, 64, 64, w));
  add(shape(1, 100, 777, 2, 1, 128, 128, 333));
  add(shape(1, 3, 777, 2, 1, 256, 128, 333));
  // Decays.
  for (Fill f : {Fill::LargeDecay, Fill::Resets, Fill::HugeDecay})
    for (int64_t D : {64, 128, 256}) {
      add(shape(1, 333, 333, 2, 1, D, D, 150)).decay = f;
      add(shape(1, 100, 333, 2, 1, D, D, 300)).decay = f;
    }
  add(shape(1, 333, 333, 2, 1, 64, 64, 150)).hasAlpha = false;
  add(shape(1, 3, 333, 2, 1, 64, 64, 150)).hasAlpha = false;
  for (Fill f : {Fill::LargeDecay, Fill::Resets}) add(shape(2, 3, 1000, 2, 1, 64, 64, 700)).decay = f;
  add(shape(2, 200, 500, 2, 1, 128, 128, 150)).hasAlpha = false;
  // Masks: random, whole tiles, left padding (lse far below 0 with decays).
  for (int mask : {1, 2, 3})
    for (Fill f : {Fill::SmallDecay, Fill::LargeDecay, Fill::Resets})
      for (int64_t N : {2, 400}) {
        Case& c = add(shape(2, N, 400, 2, 1, 64, 64, 120));
        c.mask = mask;
        c.decay = f;
        c.boolMask = mask == 2;
      }
  add(shape(1, 400, 400, 2, 1, 128, 128, 64)).mask = 2;
  for (int mask : {1, 2, 3})
    for (bool gated : {true, false})
      for (int64_t D : {64, 128}) {
        Case& c = add(shape(2, 250, 450, 4, 2, D, D, 200));
        c.mask = mask;
        c.hasAlpha = gated;
        c.decay = Fill::Resets;
      }
  add(shape(1, 400, 400, 2, 1, 256, 256, 64)).mask = 2;
  // Large inputs.
  for (int64_t D : {64, 128, 256}) add(shape(1, 333, 333, 2, 1, D, D, 150)).inputs = 6;
  {
    Case& c = add(shape(1, 333, 333, 2, 1, 64, 64, 150));
    c.inputs = 6;
    c.decay = Fill::LargeDecay;
  }
  // Views.
  for (Layout l : {Layout::HeadsFirst, Layout::Padded, Layout::Unaligned, Layout::LastStride2}) {
    add(shape(2, 130, 200, 4, 2, 64, 64, 90)).layout = l;
    add(shape(2, 2, 200, 4, 2, 64, 64, 90)).layout = l;
    add(shape(1, 130, 130, 2, 1, 40, 24, 90)).layout = l;
    add(shape(2, 130, 200, 4, 2, 128, 128, 90)).layout = l;
  }
  // A scale of the caller's.
  add(shape(1, 200, 200, 2, 1, 64, 64, 90)).shape.scale = 0.7;
  add(shape(1, 200, 200, 2, 1, 64, 64, 90)).shape.scale = -0.1;
  for (const Case& c : cases) runCase<T>(c);
}

/// The last rows of a long sequence against the oracle on that slice: the error must not grow with the length, and
/// element offsets beyond 2^31 must be right.
template <typename T>
double runLong(int64_t M, int64_t H, int64_t D, int64_t w, FloatMode mode, Fill decay) {
  Case c{{1, M, M, H, H, D, D, w, 1 / std::sqrt(static_cast<double>(D))}};
  c.decay = decay;
  c.mode = mode;
  const std::string what = describe(c, TypeOf<T>::name);
  if (what.find(only) == std::string::npos) return 0;
  Call<T> call(c);
  call.fill();
  call.run(what);
  // Queries of the last `rows` tokens, keys of the last rows + w; gradients of the keys among the queries only.
  const int64_t rows = std::min<int64_t>(M, 300), keys = std::min(M, rows + w - 1), h = H - 1;
  Problem x{{1, rows, keys, 1, 1, D, D, w, c.shape.scale}, {}, {}, {}, {}, {}, {}};
  const auto tail = [&](const auto& array, int64_t length, int64_t width) {
    using E = std::remove_reference_t<decltype(array.base[0])>;
    std::vector<E> raw(length * width);
    CHECK(cudaMemcpy2D(raw.data(), width * sizeof(E), array.base + (M - length) * array.s[1] + h * array.s[2],
                       array.s[1] * sizeof(E), width * sizeof(E), length, cudaMemcpyDeviceToHost));
    std::vector<double> y(raw.size());
    std::transform(raw.begin(), raw.end(), y.begin(), [](E e) { return widen(e); });
    return y;
  };
  x.q = tail(call.q, rows, D);
  x.k = tail(call.k, keys, D);
  x.v = tail(call.v, keys, D);
  x.dO = tail(call.dO, rows, D);
  x.alpha = tail(call.alpha, keys, 1);
  const Gradients ref = oracle(x);
  const auto last = [&](const std::vector<double>& y, int64_t width) {
    return std::vector<double>(y.end() - rows * width, y.end());
  };
  const double limit = bound(TypeOf<T>::type, mode);
  const std::string key = typeName(c, TypeOf<T>::name) + " long";
  const auto o = tail(call.o, rows, D), dalpha = tail(call.dalpha, rows, 1);
  compare(what, key, "o", o, ref.o, nullptr, limit, 0);
  compare(what, key, "dq", tail(call.dq, rows, D), ref.dq, nullptr, limit, 0);
  compare(what, key, "dk", tail(call.dk, rows, D), last(ref.dk, D), nullptr, limit, 0);
  compare(what, key, "dv", tail(call.dv, rows, D), last(ref.dv, D), nullptr, limit, 0);
  compare(what, key, "dalpha", dalpha, last(ref.dalpha, 1), nullptr, limit, 0);
  std::printf("long %-60s error o %.2e dalpha %.2e\n", what.c_str(), distance(o, ref.o) / norm(ref.o),
              distance(dalpha, last(ref.dalpha, 1)) / norm(last(ref.dalpha, 1)));
  return distance(o, ref.o) / norm(ref.o);
}

template <typename T>
void runReruns(const Case& c, int reruns) {
  const std::string what = describe(c, TypeOf<T>::name) + " reruns";
  if (what.find(only) == std::string::npos) return;
  Call<T> call(c);
  call.fill();
  Workspace w(std::max(attentionForwardWorkspace(call.forward, call.target, c.mode),
                       attentionBackwardWorkspace(call.backward, call.target, c.mode)));
  std::vector<std::vector<unsigned char>> first;
  bool same = true;
  for (int i = 0; i < reruns && same; ++i) {
    call.poison();
    CHECK(cudaMemset(w.data, i % 2 ? 0xff : 0x3c, w.bytes));
    check(attentionForward(call.forward, call.target, c.mode, w.data, w.bytes, nullptr) &&
              attentionBackward(call.backward, call.target, c.mode, w.data, w.bytes, nullptr),
          what);
    std::vector<std::vector<unsigned char>> now;
    const auto bytes = [&](const auto& array) {
      const auto raw = array.download();
      const auto* p = reinterpret_cast<const unsigned char*>(raw.data());
      now.emplace_back(p, p + raw.size() * sizeof(raw[0]));
    };
    bytes(call.o);
    bytes(call.lse);
    bytes(call.dq);
    bytes(call.dk);
    bytes(call.dv);
    bytes(call.dalpha);
    if (i == 0)
      first = std::move(now);
    else
      same = now == first;
  }
  check(same, what + ": bits differ");
  std::printf("%s: %d, %s\n", what.c_str(), reruns, same ? "identical" : "DIFFERENT");
}

/// Two backward calls at a time, on two streams, each with more blocks than fit beside the other's: both end, with the
/// bits of a call alone.
template <typename T>
void runStreams() {
  Case c{{1, 3000, 3000, 16, 8, 64, 64, 500, 0.125}};
  const std::string what = describe(c, TypeOf<T>::name) + " streams";
  if (what.find(only) == std::string::npos) return;
  Call<T> x(c), y(c);
  x.fill();
  y.fill();
  x.run(what);
  y.run(what);
  const auto dq = x.dq.values(), dk = x.dk.values(), dv = x.dv.values(), dalpha = x.dalpha.values();
  const size_t bytes = attentionBackwardWorkspace(x.backward, x.target, c.mode);
  Workspace a(bytes), b(bytes);
  cudaStream_t streams[2];
  for (cudaStream_t& s : streams) CHECK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
  bool launched = true;
  for (int i = 0; i < 20; ++i)
    launched = launched && attentionBackward(x.backward, x.target, c.mode, a.data, bytes, streams[0]) &&
               attentionBackward(y.backward, y.target, c.mode, b.data, bytes, streams[1]);
  CHECK(cudaDeviceSynchronize());
  check(launched, what + ": launches");
  for (const Call<T>* call : {&x, &y})
    check(call->dq.values() == dq && call->dk.values() == dk && call->dv.values() == dv &&
              call->dalpha.values() == dalpha,
          what + ": bits differ");
  for (cudaStream_t s : streams) CHECK(cudaStreamDestroy(s));
}

/// A NaN in a key shows in the rows that see it, and in no row of another tile. A NaN under the mask shows nowhere.
template <typename T>
void runNan(FloatMode mode, int capability = 0) {
  Case c{{1, 400, 400, 1, 1, 64, 64, 64, 0.125}};
  if (std::string("NaN " + typeName(c, TypeOf<T>::name)).find(only) == std::string::npos) return;
  c.mode = mode;
  c.capability = capability;
  c.mask = 1;
  Call<T> call(c);
  call.fill();
  std::vector<double> mask(400, 1.0);
  for (int j = 0; j < 400; j += 7) mask[j] = 0;
  call.mask.set(mask);
  std::vector<double> k = call.k.values(), v = call.v.values();
  for (int j = 0; j < 400; j += 7)
    for (int d = 0; d < 64; ++d) k[j * 64 + d] = v[j * 64 + d] = std::nan("");
  call.k.set(k);
  call.v.set(v);
  call.run("NaN under the mask");
  Problem x = call.problem();
  for (double& y : x.k) y = std::isnan(y) ? 0 : y;
  for (double& y : x.v) y = std::isnan(y) ? 0 : y;
  compareAll(call, std::string("NaN under the mask ") + TypeOf<T>::name, x, oracle(x));

  k[200 * 64 + 5] = std::nan("");
  call.k.set(k);
  call.run("NaN in a key");
  const std::vector<double> o = call.o.values();
  bool right = true;
  for (int p = 0; p < 400; ++p) {
    const bool sees = p >= 200 && p < 264, isNan = std::isnan(o[p * 64]);
    right = right && (sees ? isNan : !isNan);
  }
  check(right, std::string("NaN in a key ") + TypeOf<T>::name);
}

template <typename F>
void runGate() {
  const int64_t B = 2, M = 333, H = 19;
  for (Layout layout : {Layout::Dense, Layout::HeadsFirst, Layout::Unaligned}) {
    Array<F> h(B, M, H, 1, layout), beta(B, M, H, 1, layout), alpha(B, M, H, 1, layout), dalpha(B, M, H, 1, layout),
        dh(B, M, H, 1, layout), dbeta(B, M, H, 1, layout);
    h.fill(Fill::Normal, 11, 20);
    beta.fill(Fill::SmallDecay, 12, 16);
    dalpha.fill(Fill::Normal, 13);
    const GateForward f{TypeOf<F>::type, B, M, H, 1e-3, h.in(), beta.in(), alpha.out()};
    const GateBackward g{TypeOf<F>::type, B, M, H, 1e-3, h.in(), beta.in(), dalpha.in(), dh.out(), dbeta.out()};
    Workspace sums(decaySumsBytes(B, M, H, TypeOf<F>::type));
    check(gateForward(f, sums.data, nullptr) && gateBackward(g, nullptr), "gate launches");
    CHECK(cudaDeviceSynchronize());
    const auto x = h.values(), b = beta.values(), d = dalpha.values();
    std::vector<double> alphaRef(x.size()), dhRef(x.size()), dbetaRef(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      const double z = -b[i] * x[i], soft = std::max(z, 0.0) + std::log1p(std::exp(-std::fabs(z)));
      const double sigmoid = 1 / (1 + std::exp(-z)), inverse = 1 / (b[i] + 1e-3);
      alphaRef[i] = soft * inverse;
      dhRef[i] = -d[i] * b[i] * sigmoid * inverse;
      dbetaRef[i] = -d[i] * inverse * (x[i] * sigmoid + soft * inverse);
    }
    const double limit = bound(TypeOf<F>::type, FloatMode::Strict);
    const std::string what = std::string("gate ") + TypeOf<F>::name;
    compare(what, what, "alpha", alpha.values(), alphaRef, nullptr, limit, 0);
    compare(what, what, "dh", dh.values(), dhRef, nullptr, limit, 0);
    compare(what, what, "dbeta", dbeta.values(), dbetaRef, nullptr, limit, 0);
    check(alpha.surroundingsIntact() && dh.surroundingsIntact() && dbeta.surroundingsIntact(),
          what + ": wrote outside");
  }
}

/// The sums that the gate leaves are those that attention makes of alpha: same bits out.
void runFusedSums() {
  using T = __nv_bfloat16;
  Case c{{2, 300, 500, 4, 2, 64, 64, 200, 0.125}};
  Call<T> call(c);
  call.fill();
  Array<float> h(2, 500, 4, 1), beta(2, 500, 4, 1);
  h.fill(Fill::Normal, 11, 2);
  beta.fill(Fill::SmallDecay, 12, 16);
  Workspace sums(decaySumsBytes(2, 500, 4, ElementType::Float32));
  check(static_cast<bool>(gateForward({ElementType::Float32, 2, 500, 4, 1e-3, h.in(), beta.in(), call.alpha.out()},
                                      sums.data, nullptr)),
        "fused sums: gate");
  call.run("fused sums");
  const auto o = call.o.values(), dk = call.dk.values(), dalpha = call.dalpha.values();
  call.poison();
  Workspace w(std::max(attentionForwardWorkspace(call.forward, device, c.mode),
                       attentionBackwardWorkspace(call.backward, device, c.mode)) +
              (1 << 20));
  check(attentionForwardWithSums(call.forward, sums.data, device, c.mode, w.data, w.bytes, nullptr) &&
            attentionBackwardWithSums(call.backward, sums.data, device, c.mode, w.data, w.bytes, nullptr),
        "fused sums: launch");
  check(o == call.o.values() && dk == call.dk.values() && dalpha == call.dalpha.values(), "fused sums: other bits");
}

/// Which kernel takes which problem on this device.
void runSelection() {
  const auto kernel = [&](ElementType type, int64_t N, int64_t D, int64_t Dv, bool backward, int capability) {
    Device target = device;
    if (capability) target.major = capability / 10, target.minor = capability % 10;
    AttentionProblem p{};
    p.type = p.maskType = type;
    p.batch = p.heads = p.kvHeads = 1;
    p.queryLength = p.keyLength = N;
    p.headSize = D;
    p.valueSize = Dv;
    p.window = 8;
    p.scale = 0.1;
    p.q.strides[3] = p.k.strides[3] = p.v.strides[3] = 1;
    return selectKernel(p, target, FloatMode::Strict, backward).kernel;
  };
  const Kernel fast = device.major == 9 && device.minor == 0 ? Kernel::Hopper : Kernel::MmaSync;
  for (ElementType type : {ElementType::Float16, ElementType::BFloat16})
    for (int64_t D : {64, 128})
      for (bool backward : {false, true}) {
        check(kernel(type, 100, D, D, backward, 0) == fast, "selection: 16-bit types, D = Dv = 64 or 128");
        check(kernel(type, 100, D, D, backward, 80) == Kernel::MmaSync, "selection: sm_80");
        check(kernel(type, 100, D, D, backward, 75) == Kernel::Plain, "selection: sm_75");
      }
  check(kernel(ElementType::BFloat16, 100, 64, 128, false, 0) == Kernel::MmaSync, "selection: D != Dv");
  check(kernel(ElementType::BFloat16, 100, 96, 96, false, 0) == Kernel::MmaSync, "selection: D = 96");
  check(kernel(ElementType::BFloat16, 3, 64, 64, false, 0) == Kernel::Decode, "selection: three queries");
  check(kernel(ElementType::Float32, 100, 64, 64, false, 0) == Kernel::MmaSync, "selection: FLOAT");
  check(kernel(ElementType::Float64, 100, 64, 64, false, 0) == Kernel::Plain, "selection: DOUBLE");
}

void runRefusals() {
  Case c{{1, 10, 10, 1, 1, 64, 64, 5, 0.125}};
  Call<float> call(c);
  call.fill();
  const size_t bytes = attentionBackwardWorkspace(call.backward, device, c.mode);
  Workspace w(bytes);
  check(
      attentionBackward(call.backward, device, c.mode, w.data, bytes - 1, nullptr).status == Status::WorkspaceTooSmall,
      "short workspace");
  AttentionForward wide = call.forward;
  wide.headSize = 257;
  check(attentionForward(wide, device, c.mode, w.data, bytes, nullptr).status == Status::Unsupported, "D = 257");
  Device none;
  check(queryDevice(999, &none).status == Status::CudaError, "device 999");
  cudaGetLastError();
  AttentionForward empty = call.forward;
  empty.batch = 0;
  check(attentionForward(empty, device, c.mode, nullptr, 0, nullptr).status == Status::Ok, "empty batch");
  call.poison();
  AttentionBackward noQuery = call.backward;
  noQuery.queryLength = 0;
  check(attentionBackward(noQuery, device, c.mode, nullptr, 0, nullptr).status == Status::Ok, "no query");
  CHECK(cudaDeviceSynchronize());
  const auto isZero = [](const std::vector<double>& x) {
    return std::all_of(x.begin(), x.end(), [](double y) { return y == 0; });
  };
  check(isZero(call.dk.values()) && isZero(call.dv.values()) && isZero(call.dalpha.values()),
        "no query: gradients of the keys");
  check(call.dk.surroundingsIntact() && call.dv.surroundingsIntact() && call.dalpha.surroundingsIntact(),
        "no query: wrote outside");
}

// ---- golden cases
// -----------------------------------------------------------------------------------------------------

template <typename T>
void runGolden(const std::string& folder, FloatMode mode) {
  for (const char* name : kGoldenCases) {
    const std::string at = folder + "/" + name + "/";
    std::ifstream file(at + "case.json");
    check(static_cast<bool>(file), "golden case " + at);
    if (!file) continue;
    std::stringstream text;
    text << file.rdbuf();
    std::vector<int64_t> qs, ks, vs, other;
    const auto q = readNpy(at + "q.npy", &qs), k = readNpy(at + "k.npy", &ks), v = readNpy(at + "v.npy", &vs);
    const auto alpha = readNpy(at + "alpha.npy", &other), mask = readNpy(at + "mask.npy", &other),
               dO = readNpy(at + "dO.npy", &other);
    Case c{{qs[0], qs[1], ks[1], qs[2], ks[2], qs[3], vs[3], static_cast<int64_t>(jsonNumber(text.str(), "window")),
            jsonNumber(text.str(), "scale")}};
    c.hasAlpha = !alpha.empty();
    c.mask = mask.empty() ? 0 : 1;
    c.mode = mode;
    Call<T> call(c);
    call.q.set(q);
    call.k.set(k);
    call.v.set(v);
    call.dO.set(dO);
    if (c.hasAlpha) call.alpha.set(alpha);
    if (c.mask) call.mask.set(mask);
    call.run(name);
    // Narrow types see rounded operands; the dense yardstick in compareAll starts from the same.
    const Gradients ref{readNpy(at + "o.npy", &other),  readNpy(at + "lse.npy", &other),
                        readNpy(at + "dq.npy", &other), readNpy(at + "dk.npy", &other),
                        readNpy(at + "dv.npy", &other), readNpy(at + "dalpha.npy", &other)};
    compareAll(call, std::string("golden ") + name + " " + TypeOf<T>::name + (mode == FloatMode::Tf32 ? "/tf32" : ""),
               call.problem(), ref);
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::string golden;
  bool quick = false;
  for (int i = 1; i < argc; ++i) {
    if (!std::strcmp(argv[i], "--golden") && i + 1 < argc)
      golden = argv[++i];
    else if (!std::strcmp(argv[i], "--quick"))
      quick = true;
    else if (!std::strcmp(argv[i], "--raw-workspace"))
      poisonWorkspace = false;
    else if (!std::strcmp(argv[i], "--only") && i + 1 < argc)
      only = argv[++i];
    else {
      std::fprintf(stderr, "usage: test_kernels [--golden DIR] [--quick] [--raw-workspace] [--only TEXT]\n");
      return 2;
    }
  }
  if (!queryDevice(0, &device)) {
    std::fprintf(stderr, "no CUDA device\n");
    return 2;
  }
  runSelection();
  runShapes<__nv_bfloat16>(FloatMode::Strict, 0, quick);
  runShapes<__half>(FloatMode::Strict, 0, true);
  runShapes<__nv_bfloat16>(FloatMode::Strict, 80, true);
  runShapes<float>(FloatMode::Strict, 0, quick);
  runShapes<float>(FloatMode::Tf32, 0, true);
  if (!quick) {
    runShapes<__half>(FloatMode::Strict, 80, true);
    runShapes<float>(FloatMode::Strict, 75, true);
    runShapes<__nv_bfloat16>(FloatMode::Strict, 75, true);
  }
  runShapes<double>(FloatMode::Strict, 0, true);
  runGate<float>();
  runGate<double>();
  runFusedSums();
  runRefusals();
  runStreams<__nv_bfloat16>();
  runNan<__nv_bfloat16>(FloatMode::Strict);
  runNan<__nv_bfloat16>(FloatMode::Strict, 80);
  runNan<__half>(FloatMode::Strict);
  runNan<float>(FloatMode::Strict);
  if (!golden.empty()) {
    runGolden<double>(golden, FloatMode::Strict);
    runGolden<float>(golden, FloatMode::Strict);
    runGolden<float>(golden, FloatMode::Tf32);
    runGolden<__half>(golden, FloatMode::Strict);
    runGolden<__nv_bfloat16>(golden, FloatMode::Strict);
  }
  if (!quick) {
    for (int64_t M : {int64_t(1) << 10, int64_t(1) << 15, int64_t(1) << 20}) {
      runLong<float>(M, 1, 64, 512, FloatMode::Strict, Fill::SmallDecay);
      runLong<__half>(M, 1, 64, 512, FloatMode::Strict, Fill::SmallDecay);
      runLong<__nv_bfloat16>(M, 1, 64, 512, FloatMode::Strict, Fill::SmallDecay);
    }
    runLong<__nv_bfloat16>(1100000, 16, 128, 256, FloatMode::Strict, Fill::SmallDecay);  // beyond 2^31 elements
    Case c{{2, 700, 900, 4, 2, 64, 64, 300, 0.125}};
    c.mask = 1;
    runReruns<__nv_bfloat16>(c, 1000);
    runReruns<float>(c, 100);
    c.shape.D = c.shape.Dv = 128;
    runReruns<__nv_bfloat16>(c, 100);
    c.shape.N = 3;
    runReruns<__half>(c, 100);
  }
  std::printf("largest error / allowed:\n");
  for (const auto& w : worst) std::printf("  %-24s %.3f\n", w.first.c_str(), w.second);
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}
