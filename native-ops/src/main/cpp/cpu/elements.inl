// Element types, and moving tiles between the caller's strided tensors and the kernels' row-major scratch. The kernels
// compute in float32 or float64; only here, where tiles come and go, is an element's type known.
#pragma once

#include <cstddef>

#include "cpu/simd.inl"
#include "kernel/params.h"

namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <typename To, typename From>
GATEDFWA_INLINE To bitCast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

GATEDFWA_INLINE float widen(float x) { return x; }
GATEDFWA_INLINE double widen(double x) { return x; }
GATEDFWA_INLINE float widen(BFloat16 x) { return bitCast<float>(static_cast<uint32_t>(x.bits) << 16); }
GATEDFWA_INLINE float widen(Half x) {
#ifdef __F16C__
  return _cvtsh_ss(x.bits);
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  const uint32_t exponent = (x.bits >> 10) & 0x1f, fraction = x.bits & 0x3ff;
  if (exponent == 0) {  // zero and subnormal: an exact multiple of 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
  return bitCast<float>(sign | wide << 23 | fraction << 13);
#endif
}

// Rounding is to nearest, ties to even.
GATEDFWA_INLINE void narrow(float x, float& to) { to = x; }
GATEDFWA_INLINE void narrow(double x, double& to) { to = x; }
GATEDFWA_INLINE void narrow(float x, BFloat16& to) {
  const uint32_t bits = bitCast<uint32_t>(x);
  to.bits = x != x ? static_cast<uint16_t>(bits >> 16 | 0x40)
                   : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
GATEDFWA_INLINE void narrow(float x, Half& to) {
#ifdef __F16C__
  to.bits = static_cast<uint16_t>(_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT)));
#else
  const uint32_t bits = bitCast<uint32_t>(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00;
  } else if (magnitude >= 0x477ff000) {  // rounds to 65536 or more
    half = 0x7c00;
  } else if (magnitude < 0x38800000) {  // subnormal: let the float unit round at 2^-24
    half = bitCast<uint32_t>(bitCast<float>(magnitude) + 0.5f) - bitCast<uint32_t>(0.5f);
  } else {
    half = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  }
  to.bits = static_cast<uint16_t>(sign | half);
#endif
}

/// The elements are of the type A that the kernel computes in; A is float but for Float64.
template <typename A>
GATEDFWA_INLINE bool isAccumulator(ElementType type) {
  return sizeof(A) == 8 || type == ElementType::Float32;
}
/// visit(E()) for the elements' type.
template <typename A, typename Visit>
GATEDFWA_INLINE auto visitElement(ElementType type, Visit visit) {
  if constexpr (sizeof(A) == 8) {
    return visit(double());
  } else {
    switch (type) {
      case ElementType::Float16:
        return visit(Half());
      case ElementType::BFloat16:
        return visit(BFloat16());
      default:
        return visit(float());
    }
  }
}
template <typename E, typename A>
constexpr bool kIsAccumulator = false;
template <typename A>
constexpr bool kIsAccumulator<A, A> = true;

/// Element [i0, i1, i2, 0] of a tensor.
template <typename T>
GATEDFWA_INLINE const T* at(const Input& x, int64_t i0, int64_t i1, int64_t i2 = 0) {
  return static_cast<const T*>(x.data) + i0 * x.strides[0] + i1 * x.strides[1] + i2 * x.strides[2];
}
template <typename T>
GATEDFWA_INLINE T* at(const Output& x, int64_t i0, int64_t i1, int64_t i2 = 0) {
  return static_cast<T*>(x.data) + i0 * x.strides[0] + i1 * x.strides[1] + i2 * x.strides[2];
}

constexpr int64_t roundUp(int64_t x, int64_t step) { return (x + step - 1) / step * step; }
constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/// Hands out parts of a worker's scratch memory; with a null base it only counts.
class Scratch {
 public:
  explicit Scratch(void* base) : base_(static_cast<char*>(base)) {}
  template <typename T>
  GATEDFWA_INLINE T* take(int64_t count) {
    T* part = reinterpret_cast<T*>(base_ + used_);
    used_ += static_cast<size_t>(roundUp(count * static_cast<int64_t>(sizeof(T)), 64));
    return part;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

/// A row-major block of accumulator type: [rows][ld].
template <typename A>
struct Rows {
  const A* data;
  int64_t ld;
};

template <typename E, typename A>
Rows<A> stageElements(const E* from, int64_t rowStride, int64_t columnStride, int64_t rows, int64_t columns,
                      int64_t paddedColumns, const uint8_t* keep, A* buffer) {
  if constexpr (kIsAccumulator<E, A>) {
    if (columnStride == 1 && rowStride == columns && columns == paddedColumns && !keep) return {from, rowStride};
  }
  for (int64_t r = 0; r < rows; r++) {
    A* to = buffer + r * paddedColumns;
    const E* row = from + r * rowStride;
    int64_t c = 0;
    if (!keep || keep[r]) {
      if (columnStride == 1) {
        if constexpr (kIsAccumulator<E, A>)
          for (; c + kLanes<A> <= columns; c += kLanes<A>) store(to + c, load(row + c));
        for (; c < columns; c++) to[c] = widen(row[c]);
      } else {
        for (; c < columns; c++) to[c] = widen(row[c * columnStride]);
      }
    }
    for (; c < paddedColumns; c++) to[c] = 0;
  }
  return {buffer, paddedColumns};
}

/// Rows [b, first..first + rows, h, 0..columns] of a tensor as accumulators: in place where they already are
/// contiguous, otherwise copied into `buffer` [rows][paddedColumns], zero beyond `columns`. A copy pays: rows that lie
/// a power of two apart share a few cache sets. Callers share a staged tile among as many queries as they can. Rows
/// whose `keep` byte is 0 become zeros (keep may be null): padding may hold anything, NaN included.
template <typename A>
Rows<A> stageRows(ElementType type, const Input& x, int64_t b, int64_t first, int64_t h, int64_t rows, int64_t columns,
                  int64_t paddedColumns, const uint8_t* keep, A* buffer) {
  return visitElement<A>(type, [&](auto element) {
    return stageElements(at<decltype(element)>(x, b, first, h), x.strides[1], x.strides[3], rows, columns,
                         paddedColumns, keep, buffer);
  });
}

/// to[c][r] = factor * from[r][c], as panels of `width` rows: panel r / width holds [columns][width], zero where
/// r >= rows. `width` is a multiple of 4.
template <typename A>
void packTransposed(Rows<A> from, int64_t rows, int64_t columns, int64_t width, int64_t panels, A factor, A* to) {
  using Quad = typename VectorOf<A>::Quad;
  for (int64_t panel = 0; panel < panels; panel++, to += columns * width) {
    for (int64_t r = 0; r < width; r += 4) {
      const int64_t first = panel * width + r;
      int64_t c = 0;
      if (first + 4 <= rows) {
        const A* source = from.data + first * from.ld;
        for (; c + 4 <= columns; c += 4) {
          const Quad x0 = *reinterpret_cast<const Quad*>(source + c);
          const Quad x1 = *reinterpret_cast<const Quad*>(source + from.ld + c);
          const Quad x2 = *reinterpret_cast<const Quad*>(source + 2 * from.ld + c);
          const Quad x3 = *reinterpret_cast<const Quad*>(source + 3 * from.ld + c);
          const Quad lo01 = __builtin_shufflevector(x0, x1, 0, 4, 1, 5),
                     hi01 = __builtin_shufflevector(x0, x1, 2, 6, 3, 7);
          const Quad lo23 = __builtin_shufflevector(x2, x3, 0, 4, 1, 5),
                     hi23 = __builtin_shufflevector(x2, x3, 2, 6, 3, 7);
          A* target = to + c * width + r;
          *reinterpret_cast<Quad*>(target) = factor * __builtin_shufflevector(lo01, lo23, 0, 1, 4, 5);
          *reinterpret_cast<Quad*>(target + width) = factor * __builtin_shufflevector(lo01, lo23, 2, 3, 6, 7);
          *reinterpret_cast<Quad*>(target + 2 * width) = factor * __builtin_shufflevector(hi01, hi23, 0, 1, 4, 5);
          *reinterpret_cast<Quad*>(target + 3 * width) = factor * __builtin_shufflevector(hi01, hi23, 2, 3, 6, 7);
        }
      }
      for (; c < columns; c++)
        for (int64_t i = 0; i < 4; i++)
          to[c * width + r + i] = first + i < rows ? factor * from.data[(first + i) * from.ld + c] : A(0);
    }
  }
}

template <typename E, typename A>
void unpackElements(const A* from, int64_t width, const A* scale, int64_t rows, int64_t columns, E* to,
                    int64_t rowStride, int64_t columnStride) {
  using Quad = typename VectorOf<A>::Quad;
  for (int64_t r = 0; r < rows; r += 4) {
    int64_t c = 0;
    if constexpr (kIsAccumulator<E, A>) {
      if (columnStride == 1 && r + 4 <= rows) {
        const Quad factor = *reinterpret_cast<const Quad*>(scale + r);
        for (; c + 4 <= columns; c += 4) {
          const A* source = from + c * width + r;
          const Quad x0 = factor * *reinterpret_cast<const Quad*>(source);
          const Quad x1 = factor * *reinterpret_cast<const Quad*>(source + width);
          const Quad x2 = factor * *reinterpret_cast<const Quad*>(source + 2 * width);
          const Quad x3 = factor * *reinterpret_cast<const Quad*>(source + 3 * width);
          const Quad lo01 = __builtin_shufflevector(x0, x1, 0, 4, 1, 5),
                     hi01 = __builtin_shufflevector(x0, x1, 2, 6, 3, 7);
          const Quad lo23 = __builtin_shufflevector(x2, x3, 0, 4, 1, 5),
                     hi23 = __builtin_shufflevector(x2, x3, 2, 6, 3, 7);
          E* target = to + r * rowStride + c;
          *reinterpret_cast<Quad*>(target) = __builtin_shufflevector(lo01, lo23, 0, 1, 4, 5);
          *reinterpret_cast<Quad*>(target + rowStride) = __builtin_shufflevector(lo01, lo23, 2, 3, 6, 7);
          *reinterpret_cast<Quad*>(target + 2 * rowStride) = __builtin_shufflevector(hi01, hi23, 0, 1, 4, 5);
          *reinterpret_cast<Quad*>(target + 3 * rowStride) = __builtin_shufflevector(hi01, hi23, 2, 3, 6, 7);
        }
      }
    }
    for (; c < columns; c++)
      for (int64_t i = r; i < least(r + 4, rows); i++)
        narrow(from[c * width + i] * scale[i], to[i * rowStride + c * columnStride]);
  }
}

/// x[b, first + r, h, c] = scale[r] * from[c][r]: one panel of `width` rows back into a strided tensor.
template <typename A>
void unpackTransposed(const A* from, int64_t width, const A* scale, int64_t rows, int64_t columns, ElementType type,
                      const Output& x, int64_t b, int64_t first, int64_t h) {
  visitElement<A>(type, [&](auto element) {
    unpackElements(from, width, scale, rows, columns, at<decltype(element)>(x, b, first, h), x.strides[1],
                   x.strides[3]);
  });
}

/// x[b, first + r, h, c] = factor * from[r * ld + c], narrowed.
template <typename A>
void writeRows(const A* from, int64_t ld, A factor, int64_t rows, int64_t columns, ElementType type, const Output& x,
               int64_t b, int64_t first, int64_t h) {
  visitElement<A>(type, [&](auto element) {
    auto* to = at<decltype(element)>(x, b, first, h);
    for (int64_t r = 0; r < rows; r++)
      for (int64_t c = 0; c < columns; c++) narrow(factor * from[r * ld + c], to[r * x.strides[1] + c * x.strides[3]]);
  });
}

/// True if every element is finite. Rows are contiguous.
template <typename A>
bool allFinite(const A* x, int64_t count) {
  Vector<A> sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes<A> <= count; i += 4 * kLanes<A>)
    for (int v = 0; v < 4; v++) sums[v] += load(x + i + v * kLanes<A>) * A(0);
  A sum = sumOfLanes<A>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < count; i++) sum += x[i] * A(0);
  return sum == A(0);
}

}  // namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET
