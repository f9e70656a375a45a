// Times the CUDA kernels with device events and writes CSV to standard output:
//   kernel,type,B,H,N,D,w,gate,pass,ms,TFLOP/s
// One line per pass: forward, backward, forward+backward; of `hopper` with a gate also the forward whose decay sums the
// gate's own kernel has left (attentionForwardWithSums). ms is the median over repetitions; TFLOP/s counts the band's
// useful operations only, 4 B H D pairs forward and 3.5 times that forward+backward.
//
//   bench_kernels [--mma] [--stored BYTES] [--pause MS] [--zeros] [hopper|rows|lengths|gate|decode|once|reruns]...
// once: each Hopper row once, for a profiler; reruns: no times, but each of these rows 1,000 times forward and
// backward, their outputs compared with the first run's bits.
// For what follows them: --mma: the kernels of compute capability 8.0 (mma.sync), whatever the device; --stored: bytes
// of workspace at most for dS (Device::storedBytes), 0 for the two passes. Two that tell what the card's power limit
// costs, which lowers the clock under lasting load: --pause: milliseconds of rest after each timed run; --zeros: Q, K,
// V and dO are 0 or -0, so that the same instructions take little power.
#include <cstring>

#include "measure.h"

using namespace gatedfwa;
using namespace gatedfwa::cuda;
using namespace gatedfwa::measure;
using namespace gatedfwa::test;

namespace {

Device device;
bool comparing = false;  ///< compare the outputs of many runs, and time nothing
bool zeros = false;      ///< q, k, v and dO are 0

template <typename T>
struct Buffer {
  T* data = nullptr;
  const int64_t count;
  explicit Buffer(int64_t n) : count(n) { CHECK(cudaMalloc(&data, std::max<int64_t>(n, 1) * sizeof(T))); }
  ~Buffer() { cudaFree(data); }
  Buffer(const Buffer&) = delete;
  Input in(int64_t n1, int64_t n2, int64_t n3) const { return {data, {n1 * n2 * n3, n2 * n3, n3, 1}}; }
  Output out(int64_t n1, int64_t n2, int64_t n3) const { return {data, {n1 * n2 * n3, n2 * n3, n3, 1}}; }
  void fill(int64_t n0, int64_t n1, int64_t n2, int64_t n3, Fill f, uint64_t seed, double factor = 1) {
    fillKernel<<<4096, 256>>>(data, n0, n1, n2, n3, n1 * n2 * n3, n2 * n3, n3, int64_t(1), f, seed, factor);
    CHECK(cudaGetLastError());
  }
};

double pairs(int64_t N, int64_t M, int64_t w) {
  double sum = 0;
  for (int64_t t = 0; t < N; ++t) sum += static_cast<double>(std::min(w, M - N + t + 1));
  return sum;
}

template <typename T>
void bench(const char* name, const char* typeName, ElementType type, FloatMode mode, int64_t B, int64_t H, int64_t Hkv,
           int64_t N, int64_t M, int64_t D, int64_t w, bool gate, bool backward, bool readySums = false) {
  Buffer<T> q(B * N * H * D), k(B * M * Hkv * D), v(B * M * Hkv * D), o(B * N * H * D);
  Buffer<float> alpha(B * M * H), lse(B * H * N), dalpha(B * M * H);
  const double factor = zeros ? 0 : 1;
  q.fill(B, N, H, D, Fill::Normal, 1, factor);
  k.fill(B, M, Hkv, D, Fill::Normal, 2, factor);
  v.fill(B, M, Hkv, D, Fill::Normal, 3, factor);
  alpha.fill(B, M, H, 1, Fill::SmallDecay, 4);
  AttentionForward f;
  static_cast<AttentionProblem&>(f) = {type,
                                       type,
                                       B,
                                       N,
                                       M,
                                       H,
                                       Hkv,
                                       D,
                                       D,
                                       w,
                                       1 / std::sqrt(static_cast<double>(D)),
                                       q.in(N, H, D),
                                       k.in(M, Hkv, D),
                                       v.in(M, Hkv, D),
                                       {},
                                       {}};
  if (gate) f.alpha = alpha.in(M, H, 1);
  f.o = o.out(N, H, D);
  f.lse = {lse.data, {H * N, N, 1, 1}};
  const size_t forwardBytes = attentionForwardWorkspace(f, device, mode);
  Buffer<char> forwardWork(forwardBytes);
  const auto runForward = [&] {
    must(attentionForward(f, device, mode, forwardWork.data, forwardBytes, nullptr), "forward");
  };
  const double useful = 4.0 * B * H * D * pairs(N, M, w);
  const auto measured = [&](const char* pass, double factor, const std::function<void()>& run, const auto&... outputs) {
    if (comparing) {
      char what[100];
      std::snprintf(what, sizeof what, "%s %s D%lld w%lld%s", pass, typeName, (long long)D, (long long)w,
                    gate ? " gate" : "");
      return compareReruns(what, 1000, run, outputs...);
    }
    const double ms = milliseconds(run);
    std::printf("%s,%s,%lld,%lld,%lld,%lld,%lld,%d,%s,%.4f,%.1f\n", name, typeName, (long long)B, (long long)H,
                (long long)N, (long long)D, (long long)w, gate, pass, ms, factor * useful / ms * 1e-9);
    std::fflush(stdout);
  };
  measured("forward", 1, runForward, o, lse);
  if (gate && readySums) {
    Buffer<float> h(B * M * H), beta(B * M * H), gated(B * M * H);
    h.fill(B, M, H, 1, Fill::Normal, 6);
    beta.fill(B, M, H, 1, Fill::SmallDecay, 7);
    Buffer<char> sums(decaySumsBytes(B, M, H, ElementType::Float32));
    must(gateForward({ElementType::Float32, B, M, H, 1e-3, h.in(M, H, 1), beta.in(M, H, 1), gated.out(M, H, 1)},
                     sums.data, nullptr),
         "gate");
    AttentionForward given = f;
    given.alpha = gated.in(M, H, 1);
    measured(
        "forward with ready sums", 1,
        [&] {
          must(attentionForwardWithSums(given, sums.data, device, mode, forwardWork.data, forwardBytes, nullptr),
               "forward with sums");
        },
        o, lse);
  }
  if (!backward) return;
  Buffer<T> dO(B * N * H * D), dq(B * N * H * D), dk(B * M * Hkv * D), dv(B * M * Hkv * D);
  dO.fill(B, N, H, D, Fill::Normal, 5, factor);
  AttentionBackward g;
  static_cast<AttentionProblem&>(g) = f;
  g.o = o.in(N, H, D);
  g.lse = {lse.data, {H * N, N, 1, 1}};
  g.dO = dO.in(N, H, D);
  g.dq = dq.out(N, H, D);
  g.dk = dk.out(M, Hkv, D);
  g.dv = dv.out(M, Hkv, D);
  if (gate) g.dalpha = dalpha.out(M, H, 1);
  const size_t backwardBytes = attentionBackwardWorkspace(g, device, mode);
  Buffer<char> backwardWork(backwardBytes);
  const auto runBackward = [&] {
    must(attentionBackward(g, device, mode, backwardWork.data, backwardBytes, nullptr), "backward");
  };
  runForward();
  measured("backward", 2.5, runBackward, dq, dk, dv, dalpha);  // without a gate dalpha stays as it is
  measured(
      "forward+backward", 3.5,
      [&] {
        runForward();
        runBackward();
      },
      o, lse, dq, dk, dv, dalpha);
}

void bf16(const char* name, int64_t B, int64_t H, int64_t Hkv, int64_t N, int64_t D, int64_t w, bool gate,
          bool readySums = false) {
  bench<__nv_bfloat16>(name, "bf16", ElementType::BFloat16, FloatMode::Strict, B, H, Hkv, N, N, D, w, gate, true,
                       readySums);
}

/// The rows that the Hopper kernels are measured by.
void hopper() {
  for (bool gate : {true, false})
    for (int64_t D : {64, 128})
      for (int64_t w : {512, 1024}) bf16("gatedfwa", 1, 16, 16, 65536, D, w, gate, true);
}

void rows() {
  for (bool gate : {true, false}) {
    bf16("gatedfwa", 1, 16, 16, 65536, 64, 512, gate);
    bf16("gatedfwa", 1, 16, 16, 65536, 64, 1024, gate);
    bf16("gatedfwa", 1, 16, 16, 65536, 128, 512, gate);
    bf16("gatedfwa", 1, 16, 16, 65536, 128, 1024, gate);
    bf16("gatedfwa", 4, 16, 16, 4096, 64, 512, gate);
  }
  bf16("gatedfwa", 1, 16, 16, 65536, 256, 512, true);
  bf16("gatedfwa G=8", 1, 16, 2, 65536, 64, 512, true);
  bench<__half>("gatedfwa", "fp16", ElementType::Float16, FloatMode::Strict, 1, 16, 16, 65536, 65536, 64, 512, true,
                true);
  for (FloatMode mode : {FloatMode::Strict, FloatMode::Tf32}) {
    const char* type = mode == FloatMode::Strict ? "fp32 strict" : "fp32 tf32";
    bench<float>("gatedfwa", type, ElementType::Float32, mode, 1, 16, 16, 16384, 16384, 64, 512, true, true);
    bench<float>("gatedfwa", type, ElementType::Float32, mode, 1, 16, 16, 16384, 16384, 128, 512, true, true);
  }
}

void lengths() {
  for (int64_t N = 1024; N <= (1 << 20); N *= 4) bf16("gatedfwa", 1, 16, 16, N, 64, 512, true);
}

/// The gate by itself, with and without the decay sums of the same pass. B H N D w columns hold 1 16 N 0 0.
void gate() {
  for (int64_t N : {65536, 1 << 20}) {
    const int64_t H = 16;
    Buffer<float> h(N * H), beta(N * H), alpha(N * H), dalpha(N * H), dh(N * H), dbeta(N * H);
    h.fill(1, N, H, 1, Fill::Normal, 1);
    beta.fill(1, N, H, 1, Fill::SmallDecay, 2);
    dalpha.fill(1, N, H, 1, Fill::Normal, 3);
    Buffer<char> sums(decaySumsBytes(1, N, H, ElementType::Float32));
    const GateForward f{ElementType::Float32, 1, N, H, 1e-3, h.in(N, H, 1), beta.in(N, H, 1), alpha.out(N, H, 1)};
    const GateBackward g{
        ElementType::Float32, 1, N, H, 1e-3, h.in(N, H, 1), beta.in(N, H, 1), dalpha.in(N, H, 1), dh.out(N, H, 1),
        dbeta.out(N, H, 1)};
    const auto print = [&](const char* pass, double ms) {
      std::printf("gate,fp32,1,%lld,%lld,0,0,1,%s,%.4f,0\n", (long long)H, (long long)N, pass, ms);
    };
    print("alpha", milliseconds([&] { must(gateForward(f, nullptr, nullptr), "gate"); }));
    print("alpha and sums", milliseconds([&] { must(gateForward(f, sums.data, nullptr), "gate"); }));
    print("backward", milliseconds([&] { must(gateBackward(g, nullptr), "gate"); }));
  }
}

void decode() {
  for (int64_t w : {512, 4096, 65536})
    for (int64_t B : {1, 16})
      bench<__nv_bfloat16>("decode M=65536", "bf16", ElementType::BFloat16, FloatMode::Strict, B, 16, 16, 1, 65536, 64,
                           w, true, false);
}

void once() {
  profiling = true;
  for (int64_t D : {64, 128})
    for (int64_t w : {512, 1024}) bf16("gatedfwa", 1, 16, 16, 65536, D, w, true);
}

void reruns() {
  comparing = true;
  hopper();
  for (int64_t D : {64, 128})
    bench<__half>("gatedfwa", "fp16", ElementType::Float16, FloatMode::Strict, 1, 16, 16, 65536, 65536, D, 512, true,
                  true);
}

}  // namespace

int main(int argc, char** argv) {
  if (!queryDevice(0, &device)) {
    std::fprintf(stderr, "no CUDA device\n");
    return 2;
  }
  std::printf("kernel,type,B,H,N,D,w,gate,pass,ms,TFLOP/s\n");
  for (int i = 1; i < argc; ++i) {
    if (!std::strcmp(argv[i], "--mma"))
      device.major = 8, device.minor = 0;
    else if (!std::strcmp(argv[i], "--stored") && i + 1 < argc)
      device.storedBytes = std::atoll(argv[++i]);
    else if (!std::strcmp(argv[i], "--pause") && i + 1 < argc)
      pauseMs = std::atoi(argv[++i]);
    else if (!std::strcmp(argv[i], "--zeros"))
      zeros = true;
    else if (!std::strcmp(argv[i], "hopper"))
      hopper();
    else if (!std::strcmp(argv[i], "rows"))
      rows();
    else if (!std::strcmp(argv[i], "lengths"))
      lengths();
    else if (!std::strcmp(argv[i], "gate"))
      gate();
    else if (!std::strcmp(argv[i], "decode"))
      decode();
    else if (!std::strcmp(argv[i], "once"))
      once();
    else if (!std::strcmp(argv[i], "reruns"))
      reruns();
    else {
      std::fprintf(stderr,
                   "usage: bench_kernels [--mma] [--stored BYTES] [--pause MS] [--zeros] "
                   "[hopper|rows|lengths|gate|decode|once|reruns]...\n");
      return 2;
    }
  }
  return differing != 0;
}
