// What the benchmarks share: the time of device work, and whether its results are the same bits each time.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

#include "device_array.h"
#include "gatedfwa_cuda.h"

namespace gatedfwa::measure {

inline bool profiling = false;  ///< each body once, without a warm-up
inline int pauseMs = 0;         ///< of rest after each timed run, so that the card stays below its power limit
inline int differing = 0;       ///< bodies whose reruns differed

/// Milliseconds on the device: the median of as many runs as fill 0.2 s, 7 to 100.
inline double milliseconds(const std::function<void()>& body) {
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
    std::this_thread::sleep_for(std::chrono::milliseconds(pauseMs));
    return static_cast<double>(ms);
  };
  std::vector<double> times(1);
  if (!profiling) {
    once();
    times.resize(std::max(7, std::min(100, static_cast<int>(200 / std::max(once(), 0.01)))));
  }
  for (double& t : times) t = once();
  CHECK(cudaEventDestroy(start));
  CHECK(cudaEventDestroy(stop));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

/// Ends the program unless the call succeeded.
inline void must(const cuda::Result& r, const char* what) {
  if (r) return;
  std::fprintf(stderr, "%s: status %d, %s\n", what, static_cast<int>(r.status), cudaGetErrorString(r.cuda));
  std::exit(2);
}

static __global__ void compareKernel(const uint16_t* x, const uint16_t* y, int64_t count, unsigned int* different) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x)
    if (x[i] != y[i]) *different = 1;
}

/// Runs the body and then `runs` times more, and compares the outputs (`data` and `count` of elements; they hold NaN
/// before each run) with those of the first run, bit for bit. Rare races between copies and reads show only where a
/// block has many tiles, so at full length.
template <typename... Outputs>
void compareReruns(const char* name, int runs, const std::function<void()>& body, const Outputs&... outputs) {
  struct Kept {
    void *output, *first;
    int64_t bytes;
  };
  std::vector<Kept> kept;
  const auto keep = [&](const auto& x) {
    kept.push_back({x.data, nullptr, x.count * static_cast<int64_t>(sizeof(*x.data))});
    CHECK(cudaMalloc(&kept.back().first, kept.back().bytes));
  };
  (keep(outputs), ...);
  const auto run = [&] {
    for (const Kept& k : kept) CHECK(cudaMemsetAsync(k.output, 0xff, k.bytes));
    body();
  };
  run();
  for (const Kept& k : kept) CHECK(cudaMemcpyAsync(k.first, k.output, k.bytes, cudaMemcpyDeviceToDevice));
  unsigned int* different;
  CHECK(cudaMalloc(&different, runs * sizeof(unsigned int)));
  CHECK(cudaMemset(different, 0, runs * sizeof(unsigned int)));
  for (int i = 0; i < runs; ++i) {
    run();
    for (const Kept& k : kept)
      compareKernel<<<1024, 256>>>(static_cast<const uint16_t*>(k.output), static_cast<const uint16_t*>(k.first),
                                   k.bytes / 2, different + i);
  }
  std::vector<unsigned int> found(runs);
  CHECK(cudaMemcpy(found.data(), different, runs * sizeof(unsigned int), cudaMemcpyDeviceToHost));
  const auto count = std::count(found.begin(), found.end(), 1u);
  std::printf("%s: %d reruns, %lld differ\n", name, runs, static_cast<long long>(count));
  std::fflush(stdout);
  differing += count != 0;
  for (const Kept& k : kept) CHECK(cudaFree(k.first));
  CHECK(cudaFree(different));
}

}  // namespace gatedfwa::measure
