// The CUDA kernels of native sparse attention against the float64 oracle (src/test/cpp/nsa_oracle.h): every op over
// many shapes and types. Outputs and workspaces hold NaN (and then something else) before each run; reruns must be
// bit-identical.
//
//   test_nsa [--only TEXT] [--reruns N] [--multiprocessors N]   N: persistent blocks, to have several items in each
#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <random>
#include <string>

#include "accuracy.h"
#include "device_array.h"
#include "gatedfwa_cuda.h"
#include "nsa_oracle.h"
#include "oracle.h"

using namespace gatedfwa;
using namespace gatedfwa::cuda;
using namespace gatedfwa::test;

namespace {

Device device;
std::string only;
int reruns = 3, passed = 0, failed = 0;
std::map<std::string, double> worst;  ///< error / allowed, by type

enum class Layout { Dense, HeadsFirst, Padded };  ///< of operands and outputs; Padded: rows that are not aligned

struct Case {
  NsaShape s;
  const char* mask = "";  ///< "", "random", "left", "right", "bool"
  Layout layout = Layout::Dense;
  double factor = 1;  ///< of q
};

void check(bool ok, const std::string& name, const std::string& what) {
  ++(ok ? passed : failed);
  if (!ok) std::printf("FAILED %s: %s\n", name.c_str(), what.c_str());
}

/// A [n0, n1, n2, n3] tensor on the device.
template <typename T>
struct Tensor {
  int64_t n[4], strides[4], length;
  T* data = nullptr;

  Tensor(int64_t n0, int64_t n1, int64_t n2, int64_t n3, Layout layout) : n{n0, n1, n2, n3} {
    const int64_t row = layout == Layout::Padded ? n3 + 3 : n3;
    strides[3] = 1;
    strides[2] = layout == Layout::HeadsFirst ? n1 * row : row;
    strides[1] = layout == Layout::HeadsFirst ? row : n2 * row;
    strides[0] = n1 * n2 * row;
    length = n0 * n1 * n2 * row;
    CHECK(cudaMalloc(&data, std::max<int64_t>(length, 1) * sizeof(T)));
    poison(0xff);
  }
  ~Tensor() { cudaFree(data); }
  Tensor(const Tensor&) = delete;
  void poison(int byte) { CHECK(cudaMemset(data, byte, std::max<int64_t>(length, 1) * sizeof(T))); }
  template <typename Body>
  void each(Body body) const {
    int64_t i = 0;
    for (int64_t a = 0; a < n[0]; ++a)
      for (int64_t b = 0; b < n[1]; ++b)
        for (int64_t c = 0; c < n[2]; ++c)
          for (int64_t d = 0; d < n[3]; ++d)
            body(i++, a * strides[0] + b * strides[1] + c * strides[2] + d * strides[3]);
  }
  template <typename X>
  void upload(const std::vector<X>& x) {
    std::vector<T> host(length);
    std::memset(static_cast<void*>(host.data()), 0xff, length * sizeof(T));
    each([&](int64_t i, int64_t at) { host[at] = convert<T>(static_cast<double>(x[i])); });
    if (length > 0) CHECK(cudaMemcpy(data, host.data(), length * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> raw() const {
    std::vector<T> host(length);
    if (length > 0) CHECK(cudaMemcpy(host.data(), data, length * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }
  std::vector<double> download() const {
    const std::vector<T> host = raw();
    std::vector<double> x(n[0] * n[1] * n[2] * n[3]);
    each([&](int64_t i, int64_t at) { x[i] = widen(host[at]); });
    return x;
  }
  Input in() const { return {data, {strides[0], strides[1], strides[2], strides[3]}}; }
  Output out() const { return {data, {strides[0], strides[1], strides[2], strides[3]}}; }
};

struct Workspace {
  void* data = nullptr;
  size_t bytes;
  explicit Workspace(size_t size) : bytes(size) { CHECK(cudaMalloc(&data, std::max<size_t>(size, 1))); }
  ~Workspace() { cudaFree(data); }
  Workspace(const Workspace&) = delete;
};

/// The oracle, a thread per batch entry and query head.
void oracle(const NsaShape& s, int64_t keys, const Sees& sees, NsaArrays<double>& x) {
  const int64_t G = s.heads / s.kvHeads, N = s.queryLength, H = s.heads, Hkv = s.kvHeads;
  x.o.assign(s.batch * N * H * s.valueSize, 0);
  x.lse.assign(s.batch * H * N, 0);
  x.dq.assign(x.q.size(), 0);
  x.dk.assign(x.k.size(), 0);
  x.dv.assign(x.v.size(), 0);
  std::mutex mutex;  // dk and dv are sums over heads
  parallel(s.batch * H, [&](int64_t index) {
    const int64_t b = index / H, h = index % H, kvHead = h / G;
    NsaShape own = s;
    own.batch = own.kvHeads = own.heads = 1;
    NsaArrays<double> y;
    const auto take = [&](const std::vector<double>& all, std::vector<double>& part, int64_t rows, int64_t heads,
                          int64_t head, int64_t width) {
      part.resize(rows * width);
      for (int64_t i = 0; i < rows * width; ++i)
        part[i] = all[((b * rows + i / width) * heads + head) * width + i % width];
    };
    const auto add = [&](std::vector<double>& all, const std::vector<double>& part, int64_t rows, int64_t heads,
                         int64_t head, int64_t width) {
      for (int64_t i = 0; i < rows * width; ++i)
        all[((b * rows + i / width) * heads + head) * width + i % width] += part[i];
    };
    take(x.q, y.q, N, H, h, s.headSize);
    take(x.dO, y.dO, N, H, h, s.valueSize);
    take(x.k, y.k, keys, Hkv, kvHead, s.headSize);
    take(x.v, y.v, keys, Hkv, kvHead, s.valueSize);
    nsaDense<double>(
        own, keys, [&](int64_t, int64_t, int64_t t, int64_t j) { return sees(b, kvHead, t, j); }, y);
    const std::lock_guard<std::mutex> lock(mutex);
    add(x.o, y.o, N, H, h, s.valueSize);
    add(x.dq, y.dq, N, H, h, s.headSize);
    add(x.dk, y.dk, keys, Hkv, kvHead, s.headSize);
    add(x.dv, y.dv, keys, Hkv, kvHead, s.valueSize);
    for (int64_t t = 0; t < N; ++t) x.lse[(b * H + h) * N + t] = y.lse[t];
  });
}

template <typename T>
std::vector<double> random(int64_t count, uint64_t seed, double factor = 1) {
  std::vector<double> x(count);
  for (int64_t i = 0; i < count; ++i) x[i] = roundTo<T>(value(Fill::Normal, seed, i, 0) * factor);
  return x;
}

void compare(const std::string& name, const char* tensor, const std::vector<double>& x, const std::vector<double>& ref,
             double bound, double floor) {
  // Where nothing is left but rounding (one visible key: dq = dk = 0) the operands' size counts.
  const double allowed = bound * (norm(ref) + floor * std::sqrt(static_cast<double>(ref.size())));
  const double error = distance(x, ref);
  if (!ref.empty()) {
    double& most = worst[name.substr(0, name.find(' '))];
    most = std::max(most, error / allowed);
  }
  char text[160];
  std::snprintf(text, sizeof text, "%s: error %.3g, allowed %.3g", tensor, error, allowed);
  check(error <= allowed, name, text);
}

/// Runs with NaN and then other bytes in outputs and workspace; all outputs must agree bit for bit.
template <typename Run, typename... Outputs>
void repeat(const std::string& name, const char* what, Workspace& workspace, Run run, Outputs&... outputs) {
  std::vector<std::vector<unsigned char>> first;
  for (int i = 0; i < reruns; ++i) {
    const int byte = i == 0 ? 0xff : i % 2 ? 0x00 : 0x7f;
    if (workspace.bytes) CHECK(cudaMemset(workspace.data, byte, workspace.bytes));
    (outputs.poison(i == 0 ? 0xff : 0xfe), ...);
    const Result r = run();
    CHECK(cudaDeviceSynchronize());
    if (!r) {
      check(false, name,
            std::string(what) + ": status " + std::to_string(static_cast<int>(r.status)) + " " +
                cudaGetErrorString(r.cuda));
      return;
    }
    std::vector<std::vector<unsigned char>> now;
    const auto keep = [&](const auto& tensor) {
      const auto raw = tensor.raw();
      std::vector<unsigned char> dense;
      tensor.each([&](int64_t, int64_t at) {
        const auto* bytes = reinterpret_cast<const unsigned char*>(&raw[at]);
        dense.insert(dense.end(), bytes, bytes + sizeof(raw[at]));
      });
      now.push_back(dense);
    };
    (keep(outputs), ...);
    if (i == 0)
      first = now;
    else if (now != first)
      return check(false, name, std::string(what) + ": reruns differ");
  }
  check(true, name, what);
}

template <typename T>
void testCase(const Case& x, const Device& on, const char* suffix) {
  using F = typename Wide<T>::type;
  const NsaShape& s = x.s;
  const ElementType type = TypeOf<T>::type;
  char text[240];
  std::snprintf(text, sizeof text,
                "%s%s B%lld N%lld M%lld H%lld/%lld D%lld/%lld l%lld d%lld l'%lld top%lld%s%s layout%d x%g",
                TypeOf<T>::name, suffix, (long long)s.batch, (long long)s.queryLength, (long long)s.keyLength,
                (long long)s.heads, (long long)s.kvHeads, (long long)s.headSize, (long long)s.valueSize,
                (long long)s.blockLength, (long long)s.stride, (long long)s.selectionBlock, (long long)s.topN,
                *x.mask ? " mask " : "", x.mask, static_cast<int>(x.layout), x.factor);
  const std::string name = text;
  if (name.find(only) == std::string::npos) return;
  const double limit = bound(type, FloatMode::Strict);
  const double floor = type == ElementType::Float32 ? 0.3 : 0.1;
  const int64_t B = s.batch, N = s.queryLength, M = s.keyLength, H = s.heads, Hkv = s.kvHeads, C = s.blocks();
  const int64_t S = s.selectionBlocks();

  NsaArrays<double> cmp, slc;
  cmp.q = slc.q = random<T>(B * N * H * s.headSize, 1, x.factor);
  cmp.dO = slc.dO = random<T>(B * N * H * s.valueSize, 2);
  cmp.k = random<T>(B * C * Hkv * s.headSize, 3);
  cmp.v = random<T>(B * C * Hkv * s.valueSize, 4);
  slc.k = random<T>(B * M * Hkv * s.headSize, 5);
  slc.v = random<T>(B * M * Hkv * s.valueSize, 6);

  // Masks, over tokens and compressed blocks.
  std::vector<double> tokenMask(B * M, 1), blockMask(B * C, 1);
  const std::string kind = x.mask;
  const bool hasMask = !kind.empty(), isBool = kind == "bool";
  if (kind == "random" || isBool) {
    for (int64_t i = 0; i < B * M; ++i) tokenMask[i] = value(Fill::RandomMask, 7, i, 0);
    for (int64_t i = 0; i < B * C; ++i) blockMask[i] = value(Fill::RandomMask, 8, i, 0);
  } else if (hasMask) {  // padding
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t j = 0; j < M; ++j) tokenMask[b * M + j] = kind == "left" ? j >= 70 + 5 * b : j < M - 70 - 5 * b;
      for (int64_t c = 0; c < C; ++c)
        blockMask[b * C + c] = tokenMask[b * M + c * s.stride] && tokenMask[b * M + c * s.stride + s.blockLength - 1];
    }
  }
  // What is masked must not matter, NaN included.
  std::vector<double> kCmp = cmp.k, vCmp = cmp.v, k = slc.k, v = slc.v;
  if (hasMask) {
    const auto hide = [&](std::vector<double>& y, const std::vector<double>& mask, int64_t width) {
      for (size_t i = 0; i < y.size(); ++i)
        if (mask[i / (Hkv * width)] == 0) y[i] = std::numeric_limits<double>::quiet_NaN();
    };
    hide(kCmp, blockMask, s.headSize);
    hide(vCmp, blockMask, s.valueSize);
    hide(k, tokenMask, s.headSize);
    hide(v, tokenMask, s.valueSize);
  }

  Tensor<T> q(B, N, H, s.headSize, x.layout), dO(B, N, H, s.valueSize, x.layout), o(B, N, H, s.valueSize, x.layout);
  Tensor<T> dq(B, N, H, s.headSize, x.layout);
  Tensor<F> lse(B, H, N, 1, Layout::Dense);
  q.upload(cmp.q);
  dO.upload(cmp.dO);
  Tensor<T> deviceMaskTokens(B, M, 1, 1, Layout::Dense), deviceMaskBlocks(B, C, 1, 1, Layout::Dense);
  Tensor<uint8_t> boolTokens(B, M, 1, 1, Layout::Dense), boolBlocks(B, C, 1, 1, Layout::Dense);
  deviceMaskTokens.upload(tokenMask);
  deviceMaskBlocks.upload(blockMask);
  boolTokens.upload(tokenMask);
  boolBlocks.upload(blockMask);
  const auto fill = [&](NsaProblem& p, const Input& keys, const Input& values, bool tokens) {
    p.type = type;
    p.maskType = isBool ? ElementType::Bool : type;
    p.batch = B;
    p.queryLength = N;
    p.keyLength = M;
    p.heads = H;
    p.kvHeads = Hkv;
    p.headSize = s.headSize;
    p.valueSize = s.valueSize;
    p.scale = s.scale;
    p.q = q.in();
    p.k = keys;
    p.v = values;
    if (!hasMask) return;
    if (isBool)
      p.mask = tokens ? boolTokens.in() : boolBlocks.in();
    else
      p.mask = tokens ? deviceMaskTokens.in() : deviceMaskBlocks.in();
  };
  const auto lseOut = Output{lse.data, {H * N, N, 1, 1}};
  const auto lseIn = Input{lse.data, {H * N, N, 1, 1}};
  const auto attend = [&](auto forward, auto backward, const char* what, Tensor<T>& keys, Tensor<T>& values,
                          const NsaArrays<double>& ref) {
    forward.o = o.out();
    forward.lse = lseOut;
    {
      Workspace w(nsaForwardWorkspace(forward, on));
      repeat(
          name, what, w, [&] { return nsaForward(forward, on, w.data, w.bytes, nullptr); }, o, lse);
    }
    compare(name, (std::string(what) + " o").c_str(), o.download(), ref.o, limit, floor);
    compare(name, (std::string(what) + " lse").c_str(), lse.download(), ref.lse,
            type == ElementType::Float64 ? 1e-12 : 2e-5, floor);
    Tensor<T> dk(B, keys.n[1], Hkv, s.headSize, x.layout), dv(B, keys.n[1], Hkv, s.valueSize, x.layout);
    backward.o = o.in();
    backward.lse = lseIn;
    backward.dO = dO.in();
    backward.dq = dq.out();
    backward.dk = dk.out();
    backward.dv = dv.out();
    {
      Workspace w(nsaBackwardWorkspace(backward, on));
      repeat(
          name, (std::string(what) + "_bp").c_str(), w,
          [&] { return nsaBackward(backward, on, w.data, w.bytes, nullptr); }, dq, dk, dv);
    }
    compare(name, (std::string(what) + " dq").c_str(), dq.download(), ref.dq, limit, floor);
    compare(name, (std::string(what) + " dk").c_str(), dk.download(), ref.dk, limit, floor);
    compare(name, (std::string(what) + " dv").c_str(), dv.download(), ref.dv, limit, floor);
  };

  // Selected attention, with a random choice: own block almost always, some rows with fewer than topN, some with none.
  {
    std::vector<int> indices(B * N * Hkv * s.topN, -1);
    std::mt19937 generator(9);
    for (int64_t b = 0; b < B; ++b)
      for (int64_t t = 0; t < N; ++t)
        for (int64_t h = 0; h < Hkv; ++h) {
          const int64_t own = s.position(t) / s.selectionBlock;
          std::vector<int> all;
          for (int64_t i = 0; i <= std::min(own + (generator() % 8 == 0), S - 1); ++i)
            all.push_back(static_cast<int>(i));
          std::shuffle(all.begin(), all.end(), generator);
          size_t count = std::min<size_t>(all.size(), s.topN);
          if (generator() % 4 == 0) count = generator() % (count + 1);
          if (generator() % 2) {  // as the choice does
            all.insert(all.begin(), static_cast<int>(own));
            all.erase(std::find(all.begin() + 1, all.end(), static_cast<int>(own)));
          }
          std::sort(all.begin(), all.begin() + count);
          std::copy(all.begin(), all.begin() + count, indices.begin() + ((b * N + t) * Hkv + h) * s.topN);
        }
    Tensor<T> dk(B, M, Hkv, s.headSize, x.layout), dv(B, M, Hkv, s.valueSize, x.layout);
    dk.upload(k);
    dv.upload(v);
    Tensor<int> deviceIndices(B, N, Hkv, s.topN, x.layout == Layout::Padded ? Layout::HeadsFirst : Layout::Dense);
    deviceIndices.upload(indices);
    oracle(
        s, M,
        [&](int64_t b, int64_t kvHead, int64_t t, int64_t j) {
          const int* row = indices.data() + ((b * N + t) * Hkv + kvHead) * s.topN;
          return j <= s.position(t) && tokenMask[b * M + j] != 0 &&
                 std::find(row, row + s.topN, static_cast<int>(j / s.selectionBlock)) != row + s.topN;
        },
        slc);
    NsaSelectedForward f{};
    fill(f, dk.in(), dv.in(), true);
    f.selectionBlock = s.selectionBlock;
    f.topN = s.topN;
    f.indices = deviceIndices.in();
    NsaSelectedBackward g{};
    static_cast<NsaSelectedProblem&>(g) = f;
    attend(f, g, "selected", dk, dv, slc);
  }

  // Compressed attention and the choice.
  const Sees complete = [&](int64_t b, int64_t, int64_t t, int64_t c) {
    return c * s.stride + s.blockLength - 1 <= s.position(t) && blockMask[b * C + c] != 0;
  };
  oracle(s, C, complete, cmp);
  Tensor<T> dk(B, C, Hkv, s.headSize, x.layout), dv(B, C, Hkv, s.valueSize, x.layout);
  dk.upload(kCmp);
  dv.upload(vCmp);
  NsaCompressedForward f{};
  fill(f, dk.in(), dv.in(), false);
  f.blockLength = s.blockLength;
  f.stride = s.stride;
  f.blocks = C;
  NsaCompressedBackward g{};
  static_cast<NsaCompressedProblem&>(g) = f;
  attend(f, g, "compressed", dk, dv, cmp);

  for (const bool ties : {false, true}) {
    if (ties) {  // all keys alike: equal probabilities
      std::vector<double> same = kCmp;
      for (int64_t i = 0; i < static_cast<int64_t>(same.size()); ++i)
        if (same[i] == same[i]) same[i] = cmp.k[i % s.headSize];
      dk.upload(same);
      for (size_t i = 0; i < cmp.k.size(); ++i) cmp.k[i] = cmp.k[i % s.headSize];
      oracle(s, C, complete, cmp);
    }
    lse.upload(cmp.lse);
    NsaSelect p{};
    static_cast<NsaCompressedProblem&>(p) = f;
    p.v = {};
    p.valueSize = 0;
    p.selectionBlock = s.selectionBlock;
    p.topN = s.topN;
    p.lse = lseIn;
    Tensor<int> indices(B, N, Hkv, s.topN, x.layout == Layout::Padded ? Layout::HeadsFirst : Layout::Dense);
    p.indices = indices.out();
    {
      Workspace w(nsaSelectWorkspace(p, on));
      repeat(
          name, ties ? "select (ties)" : "select", w, [&] { return nsaSelect(p, on, w.data, w.bytes, nullptr); },
          indices);
    }
    const std::vector<double> chosen = indices.download(), importance = importances(s, complete, cmp);
    const double slack = (type == ElementType::Float64 ? 1e-11 : 2e-5) * static_cast<double>(H / Hkv) * x.factor;
    int64_t wrong = 0;
    std::string what;
    for (int64_t row = 0; row < B * N * Hkv; ++row) {
      const double* imp = importance.data() + row * S;
      const int64_t own = s.position(row / Hkv % N) / s.selectionBlock;
      std::vector<char> taken(S, 0);
      int64_t count = 0, candidates = 0;
      bool ok = true;
      double least = INFINITY, most = -1;
      int64_t lastTied = -1;
      for (int64_t i = 0; i < s.topN; ++i) {
        const int64_t block = static_cast<int64_t>(chosen[row * s.topN + i]);
        if (block == -1) continue;
        ok = ok && block >= 0 && block <= own && i == count && !taken[block] &&
             (i == 0 || block > static_cast<int64_t>(chosen[row * s.topN + i - 1])) && imp[block] >= 0;
        if (!ok) break;
        taken[block] = 1;
        ++count;
        if (!std::isinf(imp[block])) least = std::min(least, imp[block]), lastTied = block;
      }
      for (int64_t block = 0; block <= own && ok; ++block) {
        if (imp[block] < 0) continue;
        ++candidates;
        if (taken[block]) continue;
        ok = ok && !std::isinf(imp[block]);
        most = std::max(most, imp[block]);
        // Without a mask all that compete are equally important but for their order.
        if (ties && !hasMask && C > 0) ok = ok && block > lastTied;
      }
      ok = ok && count == std::min(candidates, s.topN) && most <= least + slack;
      if (!ok && ++wrong == 1) {
        std::snprintf(text, sizeof text, "row %lld: %lld chosen of %lld, least %.9g, left %.9g:", (long long)row,
                      (long long)count, (long long)candidates, least, most);
        what = text;
        for (int64_t i = 0; i < std::min<int64_t>(s.topN, 20); ++i)
          what += " " + std::to_string(static_cast<int64_t>(chosen[row * s.topN + i]));
      }
    }
    check(wrong == 0, name,
          std::string(ties ? "select (ties), " : "select, ") + std::to_string(wrong) + " rows, " + what);
  }
}

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto add = [&](int64_t B, int64_t N, int64_t M, int64_t Hkv, int64_t G, int64_t D, int64_t Dv, int64_t l,
                       int64_t d, int64_t selection, int64_t topN, const char* mask = "", Layout layout = Layout::Dense,
                       double factor = 1) {
    all.push_back({{B, N, M, Hkv * G, Hkv, D, Dv, l, d, selection, topN, 1 / std::sqrt(static_cast<double>(D))},
                   mask,
                   layout,
                   factor});
  };
  // The paper's sizes; lengths around the tiles.
  for (int64_t N : {1, 3, 31, 32, 33, 63, 64, 65, 113, 127, 128, 129, 239})
    add(1, N, N, 1, 16, 128, 128, 32, 16, 64, 16);
  add(1, 1100, 1100, 1, 16, 64, 64, 32, 16, 64, 5);  // lists in several segments
  add(1, 700, 700, 2, 16, 128, 128, 32, 16, 64, 4);
  // Groups.
  for (int64_t G : {1, 2, 3, 4, 8, 16, 20, 32, 40}) add(1, 150, 150, 2, G, 64, 64, 8, 4, 16, 4);
  for (int64_t G : {1, 8, 16}) add(2, 200, 333, 1, G, 128, 128, 16, 8, 32, 5);
  add(1, 600, 600, 1, 2, 64, 64, 8, 8, 8, 9);
  add(1, 400, 400, 2, 4, 128, 64, 4, 4, 4, 32);
  add(1, 400, 400, 1, 4, 64, 64, 4, 2, 4, 40);  // topN above what the tensor-core choice keeps
  // Fewer queries than keys.
  for (int64_t N : {1, 2, 17, 64}) add(1, N, 500, 2, 16, 128, 128, 32, 16, 64, 4);
  add(2, 5, 1000, 1, 4, 64, 64, 32, 16, 64, 8);
  // Head sizes that are padded, packed, or too wide for tensor cores.
  add(1, 130, 130, 2, 4, 40, 24, 8, 4, 16, 4);
  add(1, 130, 130, 2, 16, 100, 128, 8, 4, 16, 4);
  add(1, 130, 130, 2, 16, 64, 128, 8, 4, 16, 4);
  add(1, 90, 90, 1, 4, 192, 256, 8, 4, 16, 4);
  add(1, 130, 130, 2, 8, 17, 33, 8, 4, 16, 4);
  // Block sizes.
  add(1, 500, 500, 1, 16, 64, 64, 24, 8, 72, 3);
  add(1, 500, 500, 1, 16, 64, 64, 24, 24, 120, 3);
  add(1, 500, 500, 1, 16, 64, 64, 1, 1, 1, 20);
  add(1, 700, 700, 1, 8, 64, 64, 2, 1, 100, 4);
  add(1, 500, 500, 1, 16, 64, 64, 32, 16, 128, 3);
  add(1, 300, 300, 1, 16, 64, 64, 48, 16, 192, 3);
  add(1, 20, 20, 2, 16, 64, 64, 32, 16, 64, 16);  // no compressed block
  // Masks, layouts, large scores.
  for (const char* mask : {"random", "left", "right", "bool"}) {
    add(2, 220, 220, 2, 16, 128, 128, 16, 8, 32, 4, mask);
    add(2, 150, 300, 1, 4, 64, 64, 16, 8, 16, 5, mask, Layout::HeadsFirst);
  }
  add(2, 180, 180, 2, 16, 128, 128, 16, 8, 32, 4, "", Layout::HeadsFirst);
  add(2, 180, 180, 2, 16, 128, 128, 16, 8, 32, 4, "", Layout::Padded);
  add(2, 180, 180, 2, 4, 64, 48, 16, 8, 16, 4, "random", Layout::Padded);
  add(1, 200, 200, 2, 16, 128, 128, 16, 8, 32, 4, "", Layout::Dense, 6);
  add(3, 0, 0, 2, 4, 64, 64, 16, 8, 32, 4);
  add(2, 0, 100, 2, 4, 64, 64, 16, 8, 32, 4);
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i + 1 < argc; i += 2) {
    if (!std::strcmp(argv[i], "--only")) only = argv[i + 1];
    if (!std::strcmp(argv[i], "--reruns")) reruns = std::atoi(argv[i + 1]);
  }
  if (!queryDevice(0, &device)) {
    std::fprintf(stderr, "no CUDA device\n");
    return 2;
  }
  for (int i = 1; i + 1 < argc; i += 2)
    if (!std::strcmp(argv[i], "--multiprocessors")) device.multiprocessors = std::atoi(argv[i + 1]);
  Device older = device;  // what an older GPU of the same memory would run
  older.major = 8;
  older.minor = 0;
  older.sharedMemoryPerBlock = std::min<size_t>(device.sharedMemoryPerBlock, 99 * 1024);
  for (const Case& x : cases()) {
    testCase<__nv_bfloat16>(x, device, "");
    testCase<__half>(x, device, "");
    testCase<__nv_bfloat16>(x, older, "/sm_80");
    testCase<float>(x, device, "");
    testCase<double>(x, device, "");
  }
  for (const auto& [type, ratio] : worst) std::printf("%s: largest error / allowed %.2f\n", type.c_str(), ratio);
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
