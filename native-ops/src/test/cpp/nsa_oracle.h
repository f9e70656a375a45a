// The formulas of native sparse attention (arXiv 2502.11089), dense and unblocked, in any arithmetic type. With T =
// double it is the oracle; with T = float it shows what a plain implementation of that type loses.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

namespace gatedfwa::test {

struct NsaShape {
  int64_t batch, queryLength, keyLength, heads, kvHeads, headSize, valueSize;
  int64_t blockLength, stride, selectionBlock, topN;
  double scale;

  int64_t blocks() const { return keyLength < blockLength ? 0 : (keyLength - blockLength) / stride + 1; }
  int64_t selectionBlocks() const { return (keyLength + selectionBlock - 1) / selectionBlock; }
  int64_t position(int64_t t) const { return keyLength - queryLength + t; }
};

/// Whether query t of batch entry b sees key j of a key/value head.
using Sees = std::function<bool(int64_t b, int64_t kvHead, int64_t t, int64_t j)>;

/// All arrays dense in the order of kernel/nsa_params.h; k and v have `keys` tokens or blocks.
template <typename T>
struct NsaArrays {
  std::vector<T> q, k, v, dO;
  std::vector<T> o, lse, dq, dk, dv;
};

template <typename T>
void nsaDense(const NsaShape& s, int64_t keys, const Sees& sees, NsaArrays<T>& x) {
  const int64_t B = s.batch, N = s.queryLength, H = s.heads, Hkv = s.kvHeads, D = s.headSize, Dv = s.valueSize;
  const T negative = -std::numeric_limits<T>::infinity(), scale = static_cast<T>(s.scale);
  x.o.assign(static_cast<size_t>(B * N * H * Dv), 0);
  x.lse.assign(static_cast<size_t>(B * H * N), negative);
  x.dq.assign(x.q.size(), 0);
  x.dk.assign(x.k.size(), 0);
  x.dv.assign(x.v.size(), 0);
  std::vector<T> weight(static_cast<size_t>(keys)), gradient(static_cast<size_t>(keys));
  for (int64_t b = 0; b < B; b++)
    for (int64_t h = 0; h < H; h++)
      for (int64_t t = 0; t < N; t++) {
        const int64_t kvHead = h / (H / Hkv);
        const T* q = x.q.data() + ((b * N + t) * H + h) * D;
        const T* dO = x.dO.data() + ((b * N + t) * H + h) * Dv;
        T* dq = x.dq.data() + ((b * N + t) * H + h) * D;
        T* o = x.o.data() + ((b * N + t) * H + h) * Dv;
        const auto key = [&](int64_t j) { return (b * keys + j) * Hkv + kvHead; };
        const auto at = [&](int64_t j) -> T& { return weight[static_cast<size_t>(j)]; };
        T max = negative, sum = 0, delta = 0;
        for (int64_t j = 0; j < keys; j++) {
          at(j) = negative;
          if (!sees(b, kvHead, t, j)) continue;
          T dot = 0;
          for (int64_t d = 0; d < D; d++) dot += q[d] * x.k[static_cast<size_t>(key(j) * D + d)];
          at(j) = scale * dot;
          max = std::max(max, at(j));
        }
        if (max == negative) continue;
        for (int64_t j = 0; j < keys; j++) sum += at(j) = std::exp(at(j) - max);
        x.lse[static_cast<size_t>((b * H + h) * N + t)] = max + std::log(sum);
        for (int64_t j = 0; j < keys; j++) {
          const T P = at(j) /= sum;
          if (P == 0) continue;
          T dP = 0;
          for (int64_t c = 0; c < Dv; c++) {
            const size_t value = static_cast<size_t>(key(j) * Dv + c);
            o[c] += P * x.v[value];
            dP += dO[c] * x.v[value];
            x.dv[value] += P * dO[c];
          }
          gradient[static_cast<size_t>(j)] = dP;
          delta += P * dP;
        }
        for (int64_t j = 0; j < keys; j++) {
          if (at(j) == 0) continue;
          const T dS = scale * at(j) * (gradient[static_cast<size_t>(j)] - delta);
          for (int64_t d = 0; d < D; d++) {
            dq[d] += dS * x.k[static_cast<size_t>(key(j) * D + d)];
            x.dk[static_cast<size_t>(key(j) * D + d)] += dS * q[d];
          }
        }
      }
}

/// imp[b][t][kvHead][s], the paper's equations 9 and 10 as they stand; -1 for blocks that are no candidates, +infinity
/// for those that are always taken. `sees` is that of the compressed attention.
inline std::vector<double> importances(const NsaShape& s, const Sees& sees, const NsaArrays<double>& x) {
  const int64_t C = s.blocks(), S = s.selectionBlocks(), group = s.heads / s.kvHeads;
  std::vector<double> all;
  for (int64_t b = 0; b < s.batch; b++)
    for (int64_t t = 0; t < s.queryLength; t++)
      for (int64_t kvHead = 0; kvHead < s.kvHeads; kvHead++) {
        std::vector<double> own(static_cast<size_t>(S), -1);
        for (int64_t block = 0; block < S; block++)
          for (int64_t c = 0; c < C; c++)
            if (sees(b, kvHead, t, c) && c * s.stride < (block + 1) * s.selectionBlock &&
                c * s.stride + s.blockLength > block * s.selectionBlock)
              own[static_cast<size_t>(block)] = 0;
        for (int64_t h = kvHead * group; h < (kvHead + 1) * group; h++) {
          const double lse = x.lse[static_cast<size_t>((b * s.heads + h) * s.queryLength + t)];
          std::vector<double> P(static_cast<size_t>(C), 0);
          for (int64_t c = 0; c < C; c++) {
            if (!sees(b, kvHead, t, c)) continue;
            double dot = 0;
            for (int64_t d = 0; d < s.headSize; d++)
              dot += x.q[static_cast<size_t>(((b * s.queryLength + t) * s.heads + h) * s.headSize + d)] *
                     x.k[static_cast<size_t>(((b * C + c) * s.kvHeads + kvHead) * s.headSize + d)];
            P[static_cast<size_t>(c)] = std::exp(s.scale * dot - lse);
          }
          for (int64_t block = 0; block < S; block++)
            for (int64_t m = 0; m < s.selectionBlock / s.stride; m++)
              for (int64_t n = 0; n < s.blockLength / s.stride; n++) {
                const int64_t c = s.selectionBlock / s.stride * block + m - n;
                if (own[static_cast<size_t>(block)] >= 0 && c >= 0 && c < C)
                  own[static_cast<size_t>(block)] += P[static_cast<size_t>(c)];
              }
        }
        const int64_t current = s.position(t) / s.selectionBlock;
        const auto first = std::find_if(own.begin(), own.end(), [](double importance) { return importance >= 0; });
        if (first != own.end()) *first = INFINITY;
        own[static_cast<size_t>(current)] = INFINITY;
        if (current > 0 && own[static_cast<size_t>(current - 1)] >= 0) own[static_cast<size_t>(current - 1)] = INFINITY;
        all.insert(all.end(), own.begin(), own.end());
      }
  return all;
}

}  // namespace gatedfwa::test
