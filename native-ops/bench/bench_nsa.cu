// Times the CUDA kernels of native sparse attention with device events and writes CSV to standard output:
//   kernel,B,H,Hkv,N,D,ms,TFLOP/s
// bf16, the paper's sizes (l = 32, d = 16, l' = 64, topN = 16, w = 512), the median over repetitions. TFLOP/s count the
// attention's useful products, 4 H D (query, key) pairs forward, 2.5 times that backward; of the choice, and of the
// compressed attention with the choice, those of the compressed attention alone.
//
//   bench_nsa [target|lengths|once|reruns]...     target: N = 64K; lengths: 8K to 256K, forward; once: each kernel
//   once;
//     reruns: selected attention 1,000 times at N = 64K, the others 200 times, outputs compared with the first run's
//     bits
#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "device_array.h"
#include "gatedfwa_cuda.h"

using namespace gatedfwa;
using namespace gatedfwa::cuda;
using namespace gatedfwa::test;

namespace {

using Bf16 = __nv_bfloat16;
Device device;
bool profiling = false, comparing = false;
int differing = 0;  ///< kernels whose reruns differ

double milliseconds(const std::function<void()>& body) {
  cudaEvent_t start, stop;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&stop));
  const auto once = [&] {
    CHECK(cudaEventRecord(start));
    body();
    CHECK(cudaEventRecord(stop));
    CHECK(cudaEventSynchronize(stop));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, start, stop));
    return static_cast<double>(ms);
  };
  if (profiling) return once();
  once();
  const double guess = once();
  std::vector<double> times(std::max(5, std::min(50, static_cast<int>(300 / std::max(guess, 0.01)))));
  for (double& t : times) t = once();
  std::sort(times.begin(), times.end());
  CHECK(cudaEventDestroy(start));
  CHECK(cudaEventDestroy(stop));
  return times[times.size() / 2];
}

void must(Result r, const char* what) {
  if (r) return;
  std::fprintf(stderr, "%s: status %d, %s\n", what, static_cast<int>(r.status), cudaGetErrorString(r.cuda));
  std::exit(2);
}

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

__global__ void compareKernel(const uint32_t* x, const uint32_t* y, int64_t count, unsigned int* different) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x)
    if (x[i] != y[i]) *different = 1;
}

/// Rare races between copies and reads show only where a block has many tiles, so at full length.
template <typename... Outputs>
void compareReruns(const char* name, int runs, const std::function<void()>& run, const Outputs&... outputs) {
  run();
  std::vector<std::pair<void*, void*>> firsts;
  std::vector<int64_t> words;
  const auto keep = [&](const auto& x) {
    const int64_t bytes = x.count * static_cast<int64_t>(sizeof(*x.data));
    void* copy;
    CHECK(cudaMalloc(&copy, bytes));
    CHECK(cudaMemcpy(copy, x.data, bytes, cudaMemcpyDeviceToDevice));
    firsts.emplace_back(x.data, copy);
    words.push_back(bytes / 4);
  };
  (keep(outputs), ...);
  unsigned int* different;
  CHECK(cudaMalloc(&different, runs * sizeof(unsigned int)));
  CHECK(cudaMemset(different, 0, runs * sizeof(unsigned int)));
  for (int i = 0; i < runs; ++i) {
    for (size_t n = 0; n < words.size(); ++n) CHECK(cudaMemsetAsync(firsts[n].first, 0xff, words[n] * 4));
    run();
    for (size_t n = 0; n < words.size(); ++n)
      compareKernel<<<1024, 256>>>(static_cast<const uint32_t*>(firsts[n].first),
                                   static_cast<const uint32_t*>(firsts[n].second), words[n], different + i);
  }
  std::vector<unsigned int> found(runs);
  CHECK(cudaMemcpy(found.data(), different, runs * sizeof(unsigned int), cudaMemcpyDeviceToHost));
  const int count = static_cast<int>(std::count(found.begin(), found.end(), 1u));
  std::printf("%s: %d runs, %d differ\n", name, runs, count);
  std::fflush(stdout);
  differing += count != 0;
  for (const auto& x : firsts) CHECK(cudaFree(x.second));
  CHECK(cudaFree(different));
}

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
  const auto print = [&](const char* name, double ms, double useful) {
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
    if (comparing) {
      compareReruns("compressed forward", 200, runCompressed, o, lseCmp);
      compareReruns("select", 200, runSelect, indices);
      compareReruns("selected forward", 1000, runSelected, o, lse);
    }
    print("compressed forward", milliseconds(runCompressed), flops * compressedPairs);
    print("select", milliseconds(runSelect), flops * compressedPairs);
    print("compressed forward + select", milliseconds([&] {
            runCompressed();
            runSelect();
          }),
          flops * compressedPairs);
    print("selected forward", milliseconds(runSelected), flops * selectedPairs);
    print("three branches forward", milliseconds([&] {
            runCompressed();
            runSelect();
            runSelected();
            runWindow();
          }),
          flops * (compressedPairs + selectedPairs + static_cast<double>(N) * w));
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
  const auto runSelected = [&] { must(nsaBackward(selectedBackward, device, work.data, bytes, nullptr), "selected"); };
  if (comparing) compareReruns("selected backward", 1000, runSelected, dq, dk, dv);
  print("selected backward", milliseconds(runSelected), 2.5 * flops * selectedPairs);
  must(nsaForward(compressed, device, forwardWork.data, forwardBytes, nullptr), "compressed");
  const auto runCompressed = [&] {
    must(nsaBackward(compressedBackward, device, work.data, bytes, nullptr), "compressed");
  };
  if (comparing) compareReruns("compressed backward", 200, runCompressed, dq, dk, dv);
  print("compressed backward", milliseconds(runCompressed), 2.5 * flops * compressedPairs);
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
