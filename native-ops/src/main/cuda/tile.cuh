// Moving tiles between global memory, shared memory and accumulators.
#pragma once

#include "element.cuh"
#include "mma.cuh"

namespace gatedfwa::cuda {

__device__ __forceinline__ int sumTileOf(int position) { return position >> 6; }
static_assert(kSumTile == 64, "sumTileOf");

/// The warp's number, the same register for all its lanes.
__device__ __forceinline__ int warpIndex() { return __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0); }

/// Starts the copy of `rows` rows from `first` on into a shared tile of row size head * sizeof(T). Rows outside
/// [begin, end) and, of a masked tile, rows whose bit is not set arrive as zeros (their contents, NaN included, never
/// enter a product).
template <typename T, int rows, int head, int threads>
__device__ __forceinline__ void copyTile(uint32_t tile, const T* base, int64_t rowStride, int width, int first,
                                         int begin, int end, uint64_t bits) {
  constexpr int perChunk = 16 / sizeof(T), chunks = head / perChunk, rowBytes = head * sizeof(T);
  static_assert(threads % chunks == 0 && rows % (threads / chunks) == 0, "");
  constexpr int step = threads / chunks;
  const int chunk = threadIdx.x % chunks, row0 = threadIdx.x / chunks;
  const bool inside = chunk * perChunk < width;
  const T* source = base + static_cast<int64_t>(first + row0) * rowStride + chunk * perChunk;
  if (first >= begin && first + rows <= end && bits == ~0ull) {
    if (!inside) source = base;
#pragma unroll
    for (int i = 0; i < rows; i += step) {
      copyAsync16(chunkAddress<rowBytes>(tile, row0 + i, chunk), source, inside);
      source += inside ? step * rowStride : 0;
    }
  } else {
#pragma unroll 1
    for (int i = 0; i < rows; i += step) {
      const int position = first + row0 + i;
      const bool valid = inside && position >= begin && position < end && ((bits >> (position & (kSumTile - 1))) & 1);
      copyAsync16(chunkAddress<rowBytes>(tile, row0 + i, chunk), valid ? source : base, valid);
      source += step * rowStride;
    }
  }
}

/// Floats [first, first + count) of a padded scratch row (16-byte aligned).
template <int count>
__device__ __forceinline__ void copyFloats(uint32_t shared, const float* source, int thread) {
  if (thread >= 0 && thread < count / 4) copyAsync16(shared + thread * 16, source + thread * 4, true);
}

/// Writes a warp's accumulators (rows x head, times `factor` per row) as rows of `out`, by way of the warp's own rows
/// of a shared tile, `tile` addressing the warp's first row. Rows outside [begin, end) of positions are skipped.
template <typename T, int rowBlocks, int head>
__device__ __forceinline__ void writeTile(const float (&c)[rowBlocks][head / 8][4], const float (&factor)[rowBlocks][2],
                                          uint32_t tile, T* base, const OutRows<T>& out, int64_t firstRow, int begin,
                                          int end) {
  constexpr int perChunk = 16 / sizeof(T), chunks = head / perChunk, rowBytes = head * sizeof(T);
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  __syncwarp();
#pragma unroll
  for (int m = 0; m < rowBlocks; ++m)
#pragma unroll
    for (int n = 0; n < head / 8; ++n)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = m * 16 + g + 8 * h, column = n * 8 + 2 * t;
        const float x = c[m][n][2 * h] * factor[m][h], y = c[m][n][2 * h + 1] * factor[m][h];
        const uint32_t address = chunkAddress<rowBytes>(tile, row, column / perChunk) + (column % perChunk) * sizeof(T);
        if constexpr (sizeof(T) == 2) {
          asm volatile("st.shared.b32 [%0], %1;\n" ::"r"(address), "r"(packPair(T(), x, y)) : "memory");
        } else {
          asm volatile("st.shared.v2.f32 [%0], {%1, %2};\n" ::"r"(address), "f"(x), "f"(y) : "memory");
        }
      }
  __syncwarp();
  // rows `begin`..`end` are relative to firstRow
  for (int i = lane; i < rowBlocks * 16 * chunks; i += 32) {
    const int row = i / chunks, chunk = i % chunks;
    if (row < begin || row >= end || chunk * perChunk >= out.width) continue;
    union {
      uint4 bits;
      T element[perChunk];
    } value;
    asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(value.bits.x), "=r"(value.bits.y), "=r"(value.bits.z), "=r"(value.bits.w)
                 : "r"(chunkAddress<rowBytes>(tile, row, chunk))
                 : "memory");
    T* to = base + (firstRow + row) * out.row;
    if (out.vector) {
      *reinterpret_cast<uint4*>(to + chunk * perChunk) = value.bits;
    } else {
#pragma unroll
      for (int e = 0; e < perChunk; ++e)
        if (chunk * perChunk + e < out.width) to[(chunk * perChunk + e) * out.element] = value.element[e];
    }
  }
}

/// Writes 16-byte chunks t, 4 + t, 8 + t, .. of a row of an output. `padded`: the output may be narrower.
template <typename T, bool padded = false, int count>
__device__ __forceinline__ void writeChunks(const uint32_t (&v)[count][4], T* row, bool valid, const OutRows<T>& out,
                                            int t) {
  if (!valid) return;
  if (out.vector) {
#pragma unroll
    for (int m = 0; m < count; ++m)
      if (!padded || (4 * m + t) * 8 < out.width)
        *reinterpret_cast<uint4*>(row + (4 * m + t) * 8) = make_uint4(v[m][0], v[m][1], v[m][2], v[m][3]);
  } else {
#pragma unroll
    for (int m = 0; m < count; ++m)
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        if (padded && (4 * m + t) * 8 + e >= out.width) continue;
        const unsigned short bits = static_cast<unsigned short>(v[m][e / 2] >> (16 * (e % 2)));
        row[((4 * m + t) * 8 + e) * out.element] = *reinterpret_cast<const T*>(&bits);
      }
  }
}
/// Writes row half `i` of a warp's accumulators, times `factor`, to a row of an output. The lanes of a quad exchange
/// their columns, so that each writes 16 bytes.
template <typename T, bool padded = false, int blocks>
__device__ __forceinline__ void writeRow(const float (&c)[blocks][4], int i, float factor, T* row, bool valid,
                                         const OutRows<T>& out, int t) {
  uint32_t v[blocks / 4][4];
#pragma unroll
  for (int m = 0; m < blocks / 4; ++m) {
#pragma unroll
    for (int j = 0; j < 4; ++j) v[m][j] = packPair(T(), c[4 * m + j][2 * i] * factor, c[4 * m + j][2 * i + 1] * factor);
      // Lane t holds word t of 16-byte chunks 4m .. 4m+3; then chunk 4m + t.
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const uint32_t got = __shfl_xor_sync(~0u, t & 2 ? v[m][j] : v[m][j + 2], 2);
      (t & 2 ? v[m][j] : v[m][j + 2]) = got;
    }
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      const uint32_t got = __shfl_xor_sync(~0u, t & 1 ? v[m][j] : v[m][j + 1], 1);
      (t & 1 ? v[m][j] : v[m][j + 1]) = got;
    }
  }
  writeChunks<T, padded>(v, row, valid, out, t);
}

/// The larger / the sum over the four lanes that share an accumulator row.
__device__ __forceinline__ float quadMax(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float quadSum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}
__device__ __forceinline__ float warpSum(float x) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(~0u, x, d);
  return x;
}

/// What a query-stationary block keeps in shared memory of each streamed key tile besides K and V. The terms come
/// twice, {x_0, x_1, x_0, x_1} per column pair: the shape of an accumulator block.
template <int columns>
struct KeyTerms {
  float4 terms[columns / 2];  ///< -suffix / scale (raw score units), -infinity where the key is masked
  uint64_t bits, resets;      ///< real keys and hard resets of the sum tile
  float total;                ///< of the sum tile, infinity if it has a reset
};

/// The key terms of one tile on their way from global memory: one column pair a lane of warp 0.
struct KeyTermsLoad {
  float2 suffix;
  uint64_t bits, resets;
  float total;
};

template <int columns, typename Args>
__device__ __forceinline__ KeyTermsLoad loadKeyTerms(const Args& a, int64_t bh, int64_t b, int first) {
  KeyTermsLoad r{{0.f, 0.f}, ~0ull, 0ull, 0.f};
  if (threadIdx.x >= columns / 2) return r;
  const int64_t at = first - a.keys.first, tile = at / kSumTile;
  if (a.keyBits) r.bits = a.keyBits[b * a.keys.tiles() + tile];
  if (a.sums.suffix) {
    const int64_t row = bh * a.keys.length;
    r.suffix = *reinterpret_cast<const float2*>(a.sums.suffix + row + at + 2 * threadIdx.x);
    r.resets = a.sums.resets[bh * a.keys.tiles() + tile];
    r.total = a.sums.prefix[row + tile * kSumTile + kSumTile - 1];
  }
  return r;
}

template <int columns>
__device__ __forceinline__ void storeKeyTerms(KeyTerms<columns>& to, const KeyTermsLoad& from, int first,
                                              float rawPerLog2) {
  const int i = threadIdx.x;
  if (i >= columns / 2) return;
  const float inf = infinity<float>();
  const int bit = first % kSumTile + 2 * i;
  const float x = (from.bits >> bit) & 1 ? -from.suffix.x * rawPerLog2 : -inf;
  const float y = (from.bits >> (bit + 1)) & 1 ? -from.suffix.y * rawPerLog2 : -inf;
  to.terms[i] = make_float4(x, y, x, y);
  if (i == 0) {
    to.bits = from.bits;
    to.resets = from.resets;
    to.total = from.resets ? inf : from.total;
  }
}

/// What a query-stationary warp adds to its scores after the products: decay terms and masks. Leaves scores in raw
/// units (before scale * log2(e)), their accumulators having started with the terms, or in log2 units; in both without
/// the row's own part, which is the caller's. `prefix` addresses the sum tile's first token (`tileFirst`).
template <bool log2Units, bool masked, int columns, int rowBlocks, int blocks>
__device__ __forceinline__ void finishScores(float (&s)[rowBlocks][blocks][4], bool diagonal,
                                             const KeyTerms<columns>& terms, int at, const float* prefix,
                                             const float* prefixLow, int tileFirst, int first, int warpFirst,
                                             int window, uint64_t warpResets, float scaleLog2, float rawPerLog2) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const float inf = infinity<float>();
  if (log2Units && !(masked && diagonal)) {
#pragma unroll
    for (int n = 0; n < blocks; ++n) {
      const float4 x = terms.terms[at / 2 + 4 * n + t];
#pragma unroll
      for (int m = 0; m < rowBlocks; ++m) {
        s[m][n][0] = fmaf(s[m][n][0], scaleLog2, x.x);
        s[m][n][1] = fmaf(s[m][n][1], scaleLog2, x.y);
        s[m][n][2] = fmaf(s[m][n][2], scaleLog2, x.z);
        s[m][n][3] = fmaf(s[m][n][3], scaleLog2, x.w);
      }
    }
  }
  if constexpr (masked) {
    if (diagonal) {
      float row[rowBlocks][2], rowLow[rowBlocks][2];
#pragma unroll
      for (int m = 0; m < rowBlocks; ++m)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int p = warpFirst + 16 * m + g + 8 * i - tileFirst;
          row[m][i] = prefix[p];
          rowLow[m][i] = log2Units ? prefixLow[p] : 0.f;
        }
      const uint64_t bits = terms.bits >> ((first - tileFirst) + 2 * t);
#pragma unroll
      for (int n = 0; n < blocks; ++n) {
        const int key = first - tileFirst + 8 * n + 2 * t;
        const float2 x = *reinterpret_cast<const float2*>(prefix + key);
        float2 low = make_float2(0.f, 0.f);
        if (log2Units) low = *reinterpret_cast<const float2*>(prefixLow + key);
        const float x0 = (bits >> (8 * n)) & 1 ? x.x : -inf, x1 = (bits >> (8 * n + 1)) & 1 ? x.y : -inf;
#pragma unroll
        for (int m = 0; m < rowBlocks; ++m)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& y0 = s[m][n][2 * i];
            float& y1 = s[m][n][2 * i + 1];
            if constexpr (log2Units) {
              y0 = fmaf(y0, scaleLog2, (x0 - row[m][i]) + (low.x - rowLow[m][i]));
              y1 = fmaf(y1, scaleLog2, (x1 - row[m][i]) + (low.y - rowLow[m][i]));
            } else {
              y0 = fmaf(x0 - row[m][i], rawPerLog2, y0);
              y1 = fmaf(x1 - row[m][i], rawPerLog2, y1);
            }
          }
      }
    }
    // Visible: bottom < column <= top, and no hard reset between (it lies in the warp's own tile, or its decay is
    // infinite).
#pragma unroll
    for (int m = 0; m < rowBlocks; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int p = warpFirst + 16 * m + g + 8 * i;
        int bottom = p - window;
        if (warpResets) {
          const uint64_t resets = warpResets & bitsThrough(p & (kSumTile - 1));
          if (resets) bottom = max(bottom, (p & ~(kSumTile - 1)) + 62 - __clzll(resets));
        }
        const int top = p - first - 2 * t;
        bottom -= first + 2 * t;
#pragma unroll
        for (int n = 0; n < blocks; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e)
            if (8 * n + e > top || 8 * n + e <= bottom) s[m][n][2 * i + e] = -inf;
      }
  }
}

}  // namespace gatedfwa::cuda
