// Times the CUDA kernels of native sparse attention with device events and writes CSV to standard output:
//   kernel,B,H,Hkv,N,D,ms,TFLOP/s
// bf16, the paper's sizes (l = 32, d = 16, l' = 64, topN = 16, w = 512), the median over repetitions. TFLOP/s count the
// attention's useful products, 4 H D (query, key) pairs forward, 2.5 times that backward; of the choice, and of the
// compressed attention with the choice, those of the compressed attention alone.
//
//   bench_nsa [--mma] [target|lengths|once|reruns]...
// target: N = 64K; lengths: 8K to 256K, forward; once: each kernel once, for a profiler; reruns: no times, but selected
// attention 1,000 times at N = 64K, the others 200 times, their outputs compared with the first run's bits.
// --mma: the kernels of compute capability 8.0 (mma.sync), whatever the device.
#include <cstring>

#include "measure.h"

using namespace gatedfwa;
using namespace gatedfwa::measure;
using namespace gatedfwa::cuda;
using namespace gatedfwa::test;

namespace {

using Bf16 = __nv_bfloat16;
Device device;
bool comparing = false;  ///< compare the outputs of many runs, and time nothing

template <typename T>
struct Buffer {
  T* data = nullptr;
  int64_t strides[4];
  int64_t count;
  Buffer(int64_t n0, int64_t n1, int64_t n2, int64_t n3)
      : strides{n1 * n2 * n3, n2 * n3, n3, 1}, count(n0 * n1 * n2 * n3) {
    CHECK(cudaMalloc(&data, std::max<int64_t>(count, 1) * sizeof(T)));
  }
  ~Buffer() { cudaFree(data); }
  Buffer(const Buffer&) = delete;
  Input in() const { return {data, {strides[0], strides[1], strides[2], strides[3]}}; }
  Output out() const { return {data, {strides[0], strides[1], strides[2], strides[3]}}; }
  Buffer& fill(uint64_t seed, Fill kind = Fill::Normal) {
    fillKernel<<<4096, 256>>>(data, int64_t(1), int64_t(1), int64_t(1), count, count, count, count, int64_t(1), kind,
                              seed, 1.0);
    CHECK(cudaGetLastError());
    return *this;
  }
};

void bench(int64_t N, bool backward) {
  const int64_t B = 1, H = 64, Hkv = 4, D = 128, l = 32, d = 16, selection = 64, topN = 16, w = 512;
  const int64_t C = (N - l) / d + 1;
  Buffer<Bf16> q(B, N, H, D), k(B, N, Hkv, D), v(B, N, Hkv, D), kCmp(B, C, Hkv, D), vCmp(B, C, Hkv, D), o(B, N, H, D);
  Buffer<float> lse(B, H, N, 1), lseCmp(B, H, N, 1), alpha(B, N, H, 1);
  Buffer<int> indices(B, N, Hkv, topN);
  q.fill(1), k.fill(2), v.fill(3), kCmp.fill(4), vCmp.fill(5), alpha.fill(6, Fill::SmallDecay);
  const auto lseOf = [&](const Buffer<float>& x) { return Output{x.data, {H * N, N, 1, 1}}; };
  const auto lseIn = [&](const Buffer<float>& x) { return Input{x.data, {H * N, N, 1, 1}}; };
  const auto fill = [&](NsaProblem& p, const Buffer<Bf16>& keys, const Buffer<Bf16>& values) {
    p = {ElementType::BFloat16,
         ElementType::BFloat16,
         B,
         N,
         N,
         H,
         Hkv,
         D,
         D,
         1 / std::sqrt(static_cast<double>(D)),
         q.in(),
         keys.in(),
         values.in(),
         {}};
  };
  NsaCompressedForward compressed{};
  fill(compressed, kCmp, vCmp);
  compressed.blockLength = l;
  compressed.stride = d;
  compressed.blocks = C;
  compressed.o = o.out();
  compressed.lse = lseOf(lseCmp);
  NsaSelect select{};
  static_cast<NsaCompressedProblem&>(select) = compressed;
  select.v = {};
  select.valueSize = 0;
  select.selectionBlock = selection;
  select.topN = topN;
  select.lse = lseIn(lseCmp);
  select.indices = indices.out();
  NsaSelectedForward selected{};
  fill(selected, k, v);
  selected.selectionBlock = selection;
  selected.topN = topN;
  selected.indices = indices.in();
  selected.o = o.out();
  selected.lse = lseOf(lse);
  AttentionForward window{};
  static_cast<AttentionProblem&>(window) = {ElementType::BFloat16,
                                            ElementType::BFloat16,
                                            B,
                                            N,
                                            N,
                                            H,
                                            Hkv,
                                            D,
                                            D,
                                            w,
                                            selected.scale,
                                            q.in(),
                                            k.in(),
                                            v.in(),
                                            alpha.in(),
                                            {}};
  window.o = o.out();
  window.lse = lseOf(lse);

  size_t bytes =
      std::max({nsaForwardWorkspace(compressed, device), nsaSelectWorkspace(select, device),
                nsaForwardWorkspace(selected, device), attentionForwardWorkspace(window, device, FloatMode::Strict)});
  double compressedPairs = 0, selectedPairs = 0;
  for (int64_t p = 0; p < N; ++p) {
    compressedPairs += p < l - 1 ? 0 : static_cast<double>((p - l + 1) / d + 1);
    selectedPairs += static_cast<double>((std::min(topN, p / selection + 1) - 1) * selection + p % selection + 1);
  }
  const double flops = 4.0 * B * H * D;
  const auto measured = [&](const char* name, double useful, const std::function<void()>& run, int reruns,
                            const auto&... outputs) {
    if (comparing) return compareReruns(name, reruns, run, outputs...);
    const double ms = milliseconds(run);
    std::printf("%s,%lld,%lld,%lld,%lld,%lld,%.3f,%.1f\n", name, (long long)B, (long long)H, (long long)Hkv,
                (long long)N, (long long)D, ms, useful / ms * 1e-9);
    std::fflush(stdout);
  };
  {
    Buffer<char> work(1, 1, 1, static_cast<int64_t>(bytes));
    const auto runCompressed = [&] { must(nsaForward(compressed, device, work.data, bytes, nullptr), "compressed"); };
    const auto runSelect = [&] { must(nsaSelect(select, device, work.data, bytes, nullptr), "select"); };
    const auto runSelected = [&] { must(nsaForward(selected, device, work.data, bytes, nullptr), "selected"); };
    const auto runWindow = [&] {
      must(attentionForward(window, device, FloatMode::Strict, work.data, bytes, nullptr), "window");
    };
    measured("compressed forward", flops * compressedPairs, runCompressed, 200, o, lseCmp);
    measured("select", flops * compressedPairs, runSelect, 200, indices);
    measured(
        "compressed forward + select", flops * compressedPairs,
        [&] {
          runCompressed();
          runSelect();
        },
        200, lseCmp, indices);
    measured("selected forward", flops * selectedPairs, runSelected, 1000, o, lse);
    measured(
        "three branches forward", flops * (compressedPairs + selectedPairs + static_cast<double>(N) * w),
        [&] {
          runCompressed();
          runSelect();
          runSelected();
          runWindow();
        },
        200, lseCmp, indices, o);
    runCompressed();
    runSelected();
  }
  if (!backward) return;
  Buffer<Bf16> dO(B, N, H, D), dq(B, N, H, D), dk(B, N, Hkv, D), dv(B, N, Hkv, D);
  dO.fill(7);
  NsaSelectedBackward selectedBackward{};
  static_cast<NsaSelectedProblem&>(selectedBackward) = selected;
  NsaCompressedBackward compressedBackward{};
  static_cast<NsaCompressedProblem&>(compressedBackward) = compressed;
  const auto gradients = [&](auto& x, const Buffer<float>& rows) {
    x.o = o.in();
    x.lse = lseIn(rows);
    x.dO = dO.in();
    x.dq = dq.out();
    x.dk = dk.out();
    x.dv = dv.out();
  };
  gradients(selectedBackward, lse);
  gradients(compressedBackward, lseCmp);
  bytes = std::max(nsaBackwardWorkspace(selectedBackward, device), nsaBackwardWorkspace(compressedBackward, device));
  std::fprintf(stderr, "backward workspace: %zu MB\n", bytes >> 20);
  Buffer<char> work(1, 1, 1, static_cast<int64_t>(bytes));
  const size_t forwardBytes = std::max(nsaForwardWorkspace(selected, device), nsaForwardWorkspace(compressed, device));
  Buffer<char> forwardWork(1, 1, 1, static_cast<int64_t>(forwardBytes));
  must(nsaForward(selected, device, forwardWork.data, forwardBytes, nullptr), "selected");
  measured(
      "selected backward", 2.5 * flops * selectedPairs,
      [&] { must(nsaBackward(selectedBackward, device, work.data, bytes, nullptr), "selected"); }, 1000, dq, dk, dv);
  must(nsaForward(compressed, device, forwardWork.data, forwardBytes, nullptr), "compressed");
  measured(
      "compressed backward", 2.5 * flops * compressedPairs,
      [&] { must(nsaBackward(compressedBackward, device, work.data, bytes, nullptr), "compressed"); }, 200, dq, dk, dv);
}

}  // namespace

int main(int argc, char** argv) {
  if (!queryDevice(0, &device)) {
    std::fprintf(stderr, "no CUDA device\n");
    return 2;
  }
  std::printf("kernel,B,H,Hkv,N,D,ms,TFLOP/s\n");
  for (int i = 1; i < argc; ++i) {
    if (!std::strcmp(argv[i], "--mma")) {
      device.major = 8, device.minor = 0;
    } else if (!std::strcmp(argv[i], "target")) {
      bench(65536, true);
    } else if (!std::strcmp(argv[i], "lengths")) {
      for (int64_t N = 8192; N <= 262144; N *= 2) bench(N, false);
    } else if (!std::strcmp(argv[i], "reruns")) {
      comparing = true;
      bench(65536, true);
      comparing = false;
    } else if (!std::strcmp(argv[i], "once")) {
      profiling = true;
      bench(65536, true);
    } else {
      std::fprintf(stderr, "usage: bench_nsa [--mma] [target|lengths|once|reruns]...\n");
      return 2;
    }
  }
  return differing != 0;
}
