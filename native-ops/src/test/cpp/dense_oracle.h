// The formulas of GatedFWA (arXiv 2512.07782), dense and unblocked, forward and backward: as they stand, in any
// arithmetic type, to show what a plain implementation of that type loses; and the oracle.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace gatedfwa::test {

struct Shape {
  int64_t batch, queryLength, keyLength, heads, kvHeads, headSize, valueSize, window;
  double scale;
  bool gated, masked;
};

/// All arrays dense in the order of kernel/params.h.
template <typename T>
struct Arrays {
  std::vector<T> q, k, v, alpha, mask, dO;
  std::vector<T> o, lse, dq, dk, dv, dalpha;
};

template <typename T, typename From>
std::vector<T> convert(const std::vector<From>& from) {
  std::vector<T> to(from.size());
  for (size_t i = 0; i < from.size(); i++) to[i] = static_cast<T>(from[i]);
  return to;
}

/// The formulas as they stand, or (kStable) rearranged so that nothing cancels: decays count from the row's newest real
/// token on, and with c the dP of the row's heaviest key, dS = P ((dP - c) - sum of P (dP - c)).
template <bool kStable, typename T>
void attention(const Shape& s, Arrays<T>& x) {
  const auto [B, N, M, H, Hkv, D, Dv, w, scale, gated, masked] = s;
  const T negative = -std::numeric_limits<T>::infinity();
  x.o.assign(static_cast<size_t>(B * N * H * Dv), 0);
  x.lse.assign(static_cast<size_t>(B * H * N), negative);
  x.dq.assign(x.q.size(), 0);
  x.dk.assign(x.k.size(), 0);
  x.dv.assign(x.v.size(), 0);
  x.dalpha.assign(x.alpha.size(), 0);
  std::vector<T> score(static_cast<size_t>(M)), gradient(static_cast<size_t>(M));
  for (int64_t b = 0; b < B; b++)
    for (int64_t h = 0; h < H; h++)
      for (int64_t t = 0; t < N; t++) {
        const int64_t p = M - N + t, lo = std::max<int64_t>(0, p - w + 1), kv = h / (H / Hkv);
        const T* q = &x.q[static_cast<size_t>(((b * N + t) * H + h) * D)];
        const T* dO = &x.dO[static_cast<size_t>(((b * N + t) * H + h) * Dv)];
        const auto key = [&](int64_t j) { return static_cast<size_t>(((b * M + j) * Hkv + kv) * D); };
        const auto value = [&](int64_t j) { return static_cast<size_t>(((b * M + j) * Hkv + kv) * Dv); };
        T max = negative, decay = 0, ofAll = 0;
        for (int64_t j = p; j >= lo; j--) {
          T dot = 0;
          for (int64_t d = 0; d < D; d++) dot += q[d] * x.k[key(j) + static_cast<size_t>(d)];
          const bool visible = !masked || x.mask[static_cast<size_t>(b * M + j)] != 0;
          if (kStable && visible && max == negative && std::isfinite(decay)) ofAll = decay, decay = 0;
          score[static_cast<size_t>(j)] = visible ? static_cast<T>(scale) * dot - decay : negative;
          max = std::max(max, score[static_cast<size_t>(j)]);
          if (gated) decay += x.alpha[static_cast<size_t>((b * M + j) * H + h)];
        }
        if (max == negative) continue;
        T sum = 0;
        for (int64_t j = lo; j <= p; j++)
          sum += score[static_cast<size_t>(j)] = std::exp(score[static_cast<size_t>(j)] - max);
        x.lse[static_cast<size_t>((b * H + h) * N + t)] = max + std::log(sum) - ofAll;
        T* o = &x.o[static_cast<size_t>(((b * N + t) * H + h) * Dv)];
        T delta = 0, heaviest = 0, center = 0;
        for (int64_t j = lo; j <= p; j++) {
          const T weight = score[static_cast<size_t>(j)] /= sum;
          if (weight == 0) continue;
          T dP = 0;
          for (int64_t c = 0; c < Dv; c++) {
            o[c] += weight * x.v[value(j) + static_cast<size_t>(c)];
            dP += dO[c] * x.v[value(j) + static_cast<size_t>(c)];
            x.dv[value(j) + static_cast<size_t>(c)] += weight * dO[c];
          }
          gradient[static_cast<size_t>(j)] = dP;
          if (kStable && weight > heaviest) heaviest = weight, center = dP;
        }
        for (int64_t j = lo; j <= p; j++)
          if (score[static_cast<size_t>(j)] != 0)
            delta += score[static_cast<size_t>(j)] * (gradient[static_cast<size_t>(j)] - center);
        T before = 0;  // sum of dS over the keys before tau
        for (int64_t j = lo; j <= p; j++) {
          if (gated && j > lo) x.dalpha[static_cast<size_t>((b * M + j) * H + h)] -= before;
          const T weight = score[static_cast<size_t>(j)];
          if (weight == 0) continue;
          const T dS = weight * ((gradient[static_cast<size_t>(j)] - center) - delta);
          before += dS;
          for (int64_t d = 0; d < D; d++) {
            x.dq[static_cast<size_t>(((b * N + t) * H + h) * D + d)] +=
                static_cast<T>(scale) * dS * x.k[key(j) + static_cast<size_t>(d)];
            x.dk[key(j) + static_cast<size_t>(d)] += static_cast<T>(scale) * dS * q[d];
          }
        }
      }
}

template <typename T>
void dense(const Shape& s, Arrays<T>& x) {
  attention<false>(s, x);
}
inline void exact(const Shape& s, Arrays<double>& x) { attention<true>(s, x); }

}  // namespace gatedfwa::test
