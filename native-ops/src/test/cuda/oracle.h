// Dense GatedFWA on the CPU: the definition itself, unblocked. In float64 it is the oracle; in a narrower type it is
// the yardstick, a dense implementation that rounds where a tensor-core one must (P, dS and o to the element type).
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <thread>
#include <vector>

namespace gatedfwa::test {

struct Shape {
  int64_t B, N, M, H, Hkv, D, Dv, window;
  double scale;
};

/// Logical, contiguous operands: q [B,N,H,D], k [B,M,Hkv,D], v [B,M,Hkv,Dv], alpha [B,M,H] (may be empty), mask [B,M]
/// (may be empty), dO [B,N,H,Dv].
struct Problem {
  Shape shape;
  std::vector<double> q, k, v, alpha, mask, dO;
};

struct Gradients {
  std::vector<double> o, lse, dq, dk, dv, dalpha;
};

template <typename Body>
void parallel(int64_t count, Body body) {
  std::atomic<int64_t> next{0};
  std::vector<std::thread> threads;
  const unsigned workers = std::max(1u, std::thread::hardware_concurrency());
  for (unsigned i = 0; i < workers; ++i)
    threads.emplace_back([&] {
      for (int64_t j; (j = next++) < count;) body(j);
    });
  for (auto& t : threads) t.join();
}

/// F: the arithmetic; `round`: P and dS before a product; `operand`: q, k, v and dO before a product; `output`: o and
/// the gradients.
template <typename F, typename Round, typename Operand, typename Output>
Gradients dense(const Problem& x, Round round, Operand operand, Output output) {
  const Shape& s = x.shape;
  const int64_t G = s.H / s.Hkv, offset = s.M - s.N;
  Gradients r;
  r.o.resize(s.B * s.N * s.H * s.Dv);
  r.lse.resize(s.B * s.H * s.N);
  r.dq.resize(x.q.size());
  r.dk.assign(x.k.size(), 0);
  r.dv.assign(x.v.size(), 0);
  r.dalpha.assign(x.alpha.size(), 0);
  const F inf = std::numeric_limits<F>::infinity();
  // A group of heads shares dk and dv: one worker.
  parallel(s.B * s.Hkv, [&](int64_t index) {
    const int64_t b = index / s.Hkv, kv = index % s.Hkv;
    std::vector<F> dk(s.M * s.D, 0), dv(s.M * s.Dv, 0), dalpha(s.M), score(s.M), dP(s.M), acc(std::max(s.D, s.Dv));
    std::vector<F> q(s.D), dO(s.Dv), k(s.M * s.D), v(s.M * s.Dv);
    for (int64_t j = 0; j < s.M; ++j) {
      for (int64_t d = 0; d < s.D; ++d)
        k[j * s.D + d] = operand(static_cast<F>(x.k[((b * s.M + j) * s.Hkv + kv) * s.D + d]));
      for (int64_t d = 0; d < s.Dv; ++d)
        v[j * s.Dv + d] = operand(static_cast<F>(x.v[((b * s.M + j) * s.Hkv + kv) * s.Dv + d]));
    }
    for (int64_t h = kv * G; h < (kv + 1) * G; ++h) {
      std::fill(dalpha.begin(), dalpha.end(), F(0));
      for (int64_t t = 0; t < s.N; ++t) {
        const int64_t p = offset + t, oldest = std::max<int64_t>(0, p - s.window + 1);
        const int64_t row = (b * s.N + t) * s.H + h;
        for (int64_t d = 0; d < s.D; ++d) q[d] = operand(static_cast<F>(x.q[row * s.D + d]));
        for (int64_t d = 0; d < s.Dv; ++d) dO[d] = operand(static_cast<F>(x.dO[row * s.Dv + d]));
        F decay = 0, maximum = -inf;
        for (int64_t j = p; j >= oldest; --j) {
          F dot = 0, grad = 0;
          for (int64_t d = 0; d < s.D; ++d) dot += q[d] * k[j * s.D + d];
          for (int64_t d = 0; d < s.Dv; ++d) grad += dO[d] * v[j * s.Dv + d];
          dP[j] = grad;
          const bool real = x.mask.empty() || x.mask[b * s.M + j] != 0;
          score[j] = real && decay != inf ? static_cast<F>(s.scale) * dot - decay : -inf;
          maximum = std::max(maximum, score[j]);
          if (!x.alpha.empty()) decay += static_cast<F>(x.alpha[(b * s.M + j) * s.H + h]);
        }
        const bool any = maximum != -inf;
        F sum = 0;
        for (int64_t j = oldest; j <= p && any; ++j) sum += std::exp(score[j] - maximum);
        const F lse = any ? maximum + std::log(sum) : -inf;
        r.lse[(b * s.H + h) * s.N + t] = lse;
        std::fill(acc.begin(), acc.end(), F(0));
        for (int64_t j = oldest; j <= p && any; ++j) {
          if (score[j] == -inf) continue;
          const F P = round(std::exp(score[j] - maximum));
          for (int64_t d = 0; d < s.Dv; ++d) acc[d] += P * v[j * s.Dv + d];
        }
        F delta = 0;
        for (int64_t d = 0; d < s.Dv; ++d) {
          const F o = output(any ? acc[d] / sum : F(0));
          r.o[row * s.Dv + d] = o;
          delta += o * static_cast<F>(x.dO[row * s.Dv + d]);
        }
        std::fill(acc.begin(), acc.end(), F(0));
        F running = 0;
        for (int64_t j = oldest; j <= p; ++j) {
          if (!x.alpha.empty() && j > oldest) dalpha[j] -= running;  // pairs (p, < j)
          if (!any || score[j] == -inf) continue;
          const F P = std::exp(score[j] - lse), ds = P * (dP[j] - delta);
          running += ds;
          const F roundedP = round(P), roundedDs = round(ds);
          for (int64_t d = 0; d < s.D; ++d) {
            acc[d] += roundedDs * k[j * s.D + d];
            dk[j * s.D + d] += roundedDs * q[d];
          }
          for (int64_t d = 0; d < s.Dv; ++d) dv[j * s.Dv + d] += roundedP * dO[d];
        }
        for (int64_t d = 0; d < s.D; ++d) r.dq[row * s.D + d] = output(static_cast<F>(s.scale) * acc[d]);
      }
      if (!x.alpha.empty())
        for (int64_t j = 0; j < s.M; ++j) r.dalpha[(b * s.M + j) * s.H + h] = dalpha[j];
    }
    for (int64_t j = 0; j < s.M; ++j) {
      for (int64_t d = 0; d < s.D; ++d)
        r.dk[((b * s.M + j) * s.Hkv + kv) * s.D + d] = output(static_cast<F>(s.scale) * dk[j * s.D + d]);
      for (int64_t d = 0; d < s.Dv; ++d) r.dv[((b * s.M + j) * s.Hkv + kv) * s.Dv + d] = output(dv[j * s.Dv + d]);
    }
  });
  return r;
}

inline Gradients oracle(const Problem& x) {
  const auto same = [](double y) { return y; };
  return dense<double>(x, same, same, same);
}

}  // namespace gatedfwa::test
