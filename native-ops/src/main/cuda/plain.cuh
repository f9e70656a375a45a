// What the plain kernels share: a warp has one row; lanes take keys (queries) for the products and head elements for
// the sums over them. The walks over a row's keys and a key's queries are the callers'.
#pragma once

#include "element.cuh"

namespace gatedfwa::cuda {

constexpr int kWarps = 4;  ///< of a block
constexpr int kMaxHead = 256;
constexpr int kPerLane = kMaxHead / 32;

template <typename F>
__device__ __forceinline__ F laneSum(F x) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(~0u, x, d);
  return x;
}
template <typename F>
__device__ __forceinline__ F laneMax(F x) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x = max(x, __shfl_xor_sync(~0u, x, d));
  return x;
}

/// Four sums: a sequential one of 128 products rounds four times as coarsely.
template <typename T, typename F>
__device__ __forceinline__ F dot(const F* x, const T* y, int64_t stride, int width) {
  F sum[4] = {};
  for (int d = 0; d < width; d += 4)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (d + i < width) sum[i] = fma(x[d + i], static_cast<F>(toFloat(y[(d + i) * stride])), sum[i]);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

template <typename T>
__device__ __forceinline__ const T* at(const Input& x, int64_t b, int64_t row, int64_t head) {
  return static_cast<const T*>(x.data) + b * x.strides[0] + row * x.strides[1] + head * x.strides[2];
}
template <typename T>
__device__ __forceinline__ T* at(const Output& x, int64_t b, int64_t row, int64_t head) {
  return static_cast<T*>(x.data) + b * x.strides[0] + row * x.strides[1] + head * x.strides[2];
}

/// A row's elements to shared memory, as F; __syncwarp() before they are read.
template <typename T, typename F>
__device__ __forceinline__ void loadRow(F* to, const T* row, int64_t stride, int width) {
  for (int d = threadIdx.x % 32; d < width; d += 32) to[d] = toFloat(row[d * stride]);
}

/// The sum of weighted rows; lane l has elements l, l + 32, .. Rows are added up 32 at a time and then to the rest,
/// with what the additions before lost (Kahan): the error does not grow with the number of rows, of which a key of
/// native sparse attention may have as many as there are queries.
template <typename F>
struct RowSum {
  F sum[kPerLane] = {}, lost[kPerLane] = {};

  __device__ __forceinline__ void scale(F factor) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) sum[i] *= factor, lost[i] *= factor;
  }
  /// Adds the rows of the lanes whose `counts` is set. By all lanes.
  template <typename T>
  __device__ __forceinline__ void add(F weight, bool counts, const T* row, int64_t stride, int width) {
    const int lane = threadIdx.x % 32;
    F part[kPerLane] = {};
    for (int j = 0; j < 32; ++j) {
      const F w = __shfl_sync(~0u, weight, j);
      const T* const x = reinterpret_cast<const T*>(__shfl_sync(~0u, reinterpret_cast<unsigned long long>(row), j));
      if (!__shfl_sync(~0u, counts, j)) continue;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const int d = lane + 32 * i;
        if (d < width) part[i] = fma(w, static_cast<F>(toFloat(x[d * stride])), part[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const F more = part[i] - lost[i], next = sum[i] + more, error = (next - sum[i]) - more;
      lost[i] = error - error == 0 ? error : F(0);  // infinity stays infinity
      sum[i] = next;
    }
  }
  template <typename T>
  __device__ __forceinline__ void store(F factor, T* row, int64_t stride, int width) const {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int d = threadIdx.x % 32 + 32 * i;
      if (d < width) row[d * stride] = fromFloat<T>(factor * sum[i]);
    }
  }
};

/// The query row of a warp.
struct PlainRow {
  int64_t index, b, h, kvHead, t, position;
  bool exists;

  template <typename Problem>
  __device__ explicit PlainRow(const Problem& p)
      : index(static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32),
        b(index / p.queryLength / p.heads),
        h(index / p.queryLength % p.heads),
        kvHead(h / (p.heads / p.kvHeads)),
        t(index % p.queryLength),
        position(p.keyLength - p.queryLength + t),
        exists(index < p.batch * p.heads * p.queryLength) {}
};

template <typename F>
__device__ __forceinline__ F* lseAt(const Output& lse, int64_t b, int64_t h, int64_t t) {
  return static_cast<F*>(lse.data) + b * lse.strides[0] + h * lse.strides[1] + t * lse.strides[2];
}
/// In log2 units; +infinity where the row has no key.
template <typename F>
__device__ __forceinline__ F lseLog2(const Input& lse, int64_t b, int64_t h, int64_t t) {
  const F x = static_cast<const F*>(lse.data)[b * lse.strides[0] + h * lse.strides[1] + t * lse.strides[2]];
  return x == -infinity<F>() ? infinity<F>() : x * static_cast<F>(kLog2e);
}

/// o and lse of a row. `overKeys(body)` calls body(key, decay, visible) for 32 keys at a time, one a lane, all lanes
/// together; the decay, in log2 units, is taken off the score. query: kMaxHead numbers of the warp.
template <typename T, typename F, typename Params, typename OverKeys>
__device__ __forceinline__ void forwardRow(const Params& p, const PlainRow& r, F* query, OverKeys overKeys) {
  loadRow(query, at<T>(p.q, r.b, r.t, r.h), p.q.strides[3], p.headSize);
  __syncwarp();
  const F scale = static_cast<F>(p.scale * kLog2e);
  F maximum = -infinity<F>(), sum = 0;
  RowSum<F> out;
  overKeys([&](int64_t key, F decay, bool visible) {
    const F s = visible ? fma(scale, dot(query, at<T>(p.k, r.b, key, r.kvHead), p.k.strides[3], p.headSize), -decay)
                        : -infinity<F>();
    const F newMax = max(maximum, laneMax(s));
    const F base = newMax == -infinity<F>() ? F(0) : newMax;
    const F factor = exp2(maximum - base), weight = exp2(s - base);
    maximum = newMax;
    sum = sum * factor + laneSum(weight);
    out.scale(factor);
    out.add(weight, visible, at<T>(p.v, r.b, key, r.kvHead), p.v.strides[3], p.valueSize);
  });
  out.store(sum == 0 ? F(0) : 1 / sum, at<T>(p.o, r.b, r.t, r.h), p.o.strides[3], p.valueSize);
  if (threadIdx.x % 32 == 0)
    *lseAt<F>(p.lse, r.b, r.h, r.t) = sum == 0 ? -infinity<F>() : (maximum + log2(sum)) * static_cast<F>(kLn2);
}

/// dq of a row, and rowDelta[r.index] = dO . o; returns the sum of the row's dS. overKeys as in forwardRow; query,
/// gradient: kMaxHead numbers of the warp each.
template <typename T, typename F, typename Params, typename OverKeys>
__device__ __forceinline__ F dqRow(const Params& p, const PlainRow& r, F* query, F* gradient, F* rowDelta,
                                   OverKeys overKeys) {
  loadRow(query, at<T>(p.q, r.b, r.t, r.h), p.q.strides[3], p.headSize);
  loadRow(gradient, at<T>(p.dO, r.b, r.t, r.h), p.dO.strides[3], p.valueSize);
  __syncwarp();
  // In the order of dO . v, so that the two are equal where the row sees a single key.
  const F delta = dot(gradient, at<T>(p.o, r.b, r.t, r.h), p.o.strides[3], p.valueSize);
  if (threadIdx.x % 32 == 0) rowDelta[r.index] = delta;

  const F scale = static_cast<F>(p.scale * kLog2e), lse = lseLog2<F>(p.lse, r.b, r.h, r.t);
  F rowSum = 0;
  RowSum<F> out;
  overKeys([&](int64_t key, F decay, bool visible) {
    const T* const k = at<T>(p.k, r.b, key, r.kvHead);
    F ds = 0;
    if (visible) {
      const F s = fma(scale, dot(query, k, p.k.strides[3], p.headSize), -decay);
      const F dP = dot(gradient, at<T>(p.v, r.b, key, r.kvHead), p.v.strides[3], p.valueSize);
      ds = exp2(s - lse) * (dP - delta);
      rowSum += ds;
    }
    out.add(ds, visible, k, p.k.strides[3], p.headSize);
  });
  out.store(static_cast<F>(p.scale), at<T>(p.dq, r.b, r.t, r.h), p.dq.strides[3], p.headSize);
  return laneSum(rowSum);
}

/// The key of a warp, and its dk and dv; key, value: kMaxHead numbers of the warp each.
template <typename T, typename F, typename Params>
struct PlainKey {
  const Params& p;
  F *key, *value;
  int64_t b, j, kvHead;
  RowSum<F> dk, dv;

  __device__ __forceinline__ void load() const {
    loadRow(key, at<T>(p.k, b, j, kvHead), p.k.strides[3], p.headSize);
    loadRow(value, at<T>(p.v, b, j, kvHead), p.v.strides[3], p.valueSize);
    __syncwarp();
  }
  /// The queries (t, h) of the lanes, as far as they see the key; returns the lane's dS.
  __device__ __forceinline__ F add(int64_t t, int64_t h, F decay, bool visible, const F* rowDelta) {
    const T* const q = at<T>(p.q, b, t, h);
    const T* const dO = at<T>(p.dO, b, t, h);
    F weight = 0, ds = 0;
    if (visible) {
      const F s = fma(static_cast<F>(p.scale * kLog2e), dot(key, q, p.q.strides[3], p.headSize), -decay);
      weight = exp2(s - lseLog2<F>(p.lse, b, h, t));
      ds = weight * (dot(value, dO, p.dO.strides[3], p.valueSize) - rowDelta[(b * p.heads + h) * p.queryLength + t]);
    }
    dk.add(ds, visible, q, p.q.strides[3], p.headSize);
    dv.add(weight, visible, dO, p.dO.strides[3], p.valueSize);
    return ds;
  }
  __device__ __forceinline__ void store() const {
    dk.store(static_cast<F>(p.scale), at<T>(p.dk, b, j, kvHead), p.dk.strides[3], p.headSize);
    dv.store(F(1), at<T>(p.dv, b, j, kvHead), p.dv.strides[3], p.valueSize);
  }
};

}  // namespace gatedfwa::cuda
