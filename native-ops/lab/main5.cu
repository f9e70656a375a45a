#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>
#include <algorithm>
#include <random>
#include <chrono>
#include <cuda_bf16.h>
#include "lab.h"
#include "variants.h"
#define CHECK(x) do { cudaError_t e_ = (x); if (e_ != cudaSuccess) { std::printf("%s: %s\n", #x, cudaGetErrorString(e_)); std::fflush(stdout); std::exit(3); } } while (0)
__device__ uint32_t mix(uint64_t x) { x ^= x >> 33; x *= 0xff51afd7ed558ccdull; x ^= x >> 33; x *= 0xc4ceb9fe1a85ec53ull; x ^= x >> 33; return x; }
__global__ void fillK(__nv_bfloat16* p, int64_t n, uint64_t seed) {
  for (int64_t i = blockIdx.x * 256ll + threadIdx.x; i < n; i += gridDim.x * 256ll) {
    const uint32_t u = mix(2 * i + seed * 0x9E3779B97F4A7C15ull), w = mix(2 * i + 1 + seed * 0x9E3779B97F4A7C15ull);
    const float r = sqrtf(-2.f * logf((u + 1.f) / 4294967808.f));
    p[i] = __float2bfloat16(r * cosf(6.2831853f * (w / 4294967296.f)));
  }
}
__global__ void scaleK(float* p, const float* x, int64_t n, float f) { for (int64_t i = blockIdx.x * 256ll + threadIdx.x; i < n; i += gridDim.x * 256ll) p[i] = x[i] * f; }
__global__ void diffK(const uint32_t* a, const uint32_t* b, int64_t n, unsigned long long* count) {
  unsigned long long c = 0, low = ~0ull, high = 0;
  for (int64_t i = blockIdx.x * 256ll + threadIdx.x; i < n; i += gridDim.x * 256ll) if (a[i] != b[i]) { c++; low = min(low, (unsigned long long)i); high = max(high, (unsigned long long)i); }
  if (c) atomicAdd(count, c), atomicMin(count + 1, low), atomicMax(count + 2, high);
}
int main(int argc, char** argv) {
  const int reps = argc > 1 ? atoi(argv[1]) : 5;
  const int64_t N = 65536, H = 64, Hkv = 4, D = 128; const int topN = 16;
  std::vector<int> idx(N * Hkv * topN, -1);
  std::mt19937 rng(5);
  for (int64_t t = 0; t < N; ++t) for (int h = 0; h < Hkv; ++h) {
    int* o = &idx[(t * Hkv + h) * topN]; const int nb = t / 64 + 1;
    if (nb <= topN) { for (int i = 0; i < nb; ++i) o[i] = i; continue; }
    o[0] = 0; o[1] = nb - 1; o[2] = nb - 2; int c = 3;
    while (c < topN) { const int x = 1 + rng() % (nb - 3); bool dup = false; for (int i = 0; i < c; ++i) dup |= o[i] == x; if (!dup) o[c++] = x; }
    std::sort(o, o + topN);
  }
  cudaDeviceProp prop; CHECK(cudaGetDeviceProperties(&prop, 0));
  __nv_bfloat16 *q, *k, *v, *dO, *o, *ref, *refDq; float *lse, *lse2, *delta; int* indices; unsigned long long* count;
  const int64_t big = N * H * D, small = N * Hkv * D;
  CHECK(cudaMalloc(&q, 2 * big)); CHECK(cudaMalloc(&dO, 2 * big)); CHECK(cudaMalloc(&o, 2 * big)); CHECK(cudaMalloc(&ref, 2 * big)); CHECK(cudaMalloc(&refDq, 2 * big));
  CHECK(cudaMalloc(&k, 2 * small)); CHECK(cudaMalloc(&v, 2 * small)); CHECK(cudaMalloc(&lse, 4 * N * H)); CHECK(cudaMalloc(&lse2, 4 * N * H)); CHECK(cudaMalloc(&delta, 4 * N * H));
  CHECK(cudaMalloc(&indices, 4 * idx.size())); CHECK(cudaMalloc(&count, 24));
  CHECK(cudaMemcpy(indices, idx.data(), 4 * idx.size(), cudaMemcpyHostToDevice));
  fillK<<<2048, 256>>>(q, big, 1); fillK<<<2048, 256>>>(k, small, 2); fillK<<<2048, 256>>>(v, small, 3); fillK<<<2048, 256>>>(dO, big, 4); CHECK(cudaMemset(delta, 0, 4 * N * H));
  LabArgs l{q, k, v, dO, ref, refDq, lse, lse2, delta, indices, (int)N, 0, prop.multiProcessorCount, false};
  CHECK(gatedfwa::V0::run(l)); CHECK(cudaDeviceSynchronize());
  scaleK<<<2048, 256>>>(lse2, lse, N * H, 1.44269504f);
  l.dqPass = true; CHECK(gatedfwa::V0::run(l)); CHECK(cudaDeviceSynchronize());
  l.o = o; l.dq = o;
  cudaEvent_t e0, e1; cudaEventCreate(&e0); cudaEventCreate(&e1);
  struct Test { const char* name; cudaError_t (*run)(const LabArgs&); void (*stats)(unsigned long long*); int slots; bool dq, check; };
  const std::vector<Test> tests = { TESTS };
  std::vector<std::vector<float>> ms(tests.size()); std::vector<long long> diff(tests.size(), -1); std::vector<unsigned long long> st(32 * tests.size());
  for (int r = 0; r <= reps; ++r)
    for (size_t i = 0; i < tests.size(); ++i) {
      const Test& t = tests[i]; l.slots = t.slots; l.dqPass = t.dq;
      CHECK(cudaMemset(o, 0xff, 2 * big));
      cudaEventRecord(e0); CHECK(t.run(l)); cudaEventRecord(e1);
      cudaError_t e = cudaDeviceSynchronize();
      if (e != cudaSuccess) { std::printf("%s: %s\n", t.name, cudaGetErrorString(e)); std::fflush(stdout); return 4; }
      float x; cudaEventElapsedTime(&x, e0, e1);
      if (r > 0) ms[i].push_back(x);
      {
        unsigned long long c[3] = {0, ~0ull, 0};
        CHECK(cudaMemcpy(count, c, 24, cudaMemcpyHostToDevice)); diffK<<<2048, 256>>>((uint32_t*)o, (uint32_t*)(t.dq ? refDq : ref), big / 2, count);
        CHECK(cudaMemcpy(c, count, 24, cudaMemcpyDeviceToHost)); diff[i] = std::max(diff[i], 0ll) + (c[0] != 0);
        if (c[0]) std::printf("  %s %s rep %d: %llu words, first token %llu head %llu dim %llu, last token %llu head %llu\n", t.name, t.dq ? "dq" : "fwd", r, c[0], c[1] / 4096, c[1] % 4096 / 64, c[1] % 64 * 2, c[2] / 4096, c[2] % 4096 / 64);
      }
      if (t.stats) t.stats(&st[32 * i]);
    }
  for (size_t i = 0; i < tests.size(); ++i) {
    auto& m = ms[i]; std::sort(m.begin(), m.end());
    std::printf("%-6s %s slots %2d: %.3f ms (min %.3f) bad runs %lld\n", tests[i].name, tests[i].dq ? "dq " : "fwd", tests[i].slots, m[m.size() / 2], m[0], diff[i]);
    if (tests[i].stats) {
      const unsigned long long* s = &st[32 * i]; const double us = 1e-3 / (1.0); (void)us;
      const double tiles = s[1], blocks = s[3], uses = s[16];
      std::printf("  cycles: blocks %.0f tiles/block %.1f producer/block %.0f slotwait/tile %.0f | uses/block %.1f; a use: queue wait %.0f, K wait %.0f, V wait %.0f, flight when waited %.0f (%.2f of uses), issue to K use %.0f, to K release %.0f, to V release %.0f\n",
        blocks, tiles / blocks, s[2] / blocks, s[0] / tiles, uses / blocks, s[8] / uses, s[9] / uses, s[10] / uses, (double)s[11] / s[12], s[12] / uses, s[13] / uses, s[14] / uses, s[15] / uses);
    }
  }
  return 0;
}
