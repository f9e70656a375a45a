// Matrix products of one tile, in register blocks of kRegisterRows x 2 vectors.
#pragma once

#include "cpu/elements.inl"

namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET {

constexpr int kRegisterRows = GATEDFWA_REGISTER_ROWS;
/// Columns of a register block.
template <typename A>
constexpr int kPanel = 2 * kLanes<A>;

template <int kValue>
struct Count {
  static constexpr int value = kValue;
};

/// Element (i, k) of the left operand is data[i * row + k * depth]: either dimension may be the contiguous one.
template <typename A>
struct Left {
  const A* data;
  int64_t row, depth;
};

// What becomes of a product x at c (vector v of a row).
template <typename A>
struct Assign {
  GATEDFWA_INLINE Vector<A> operator()(Vector<A>, Vector<A> x, int64_t, int) const { return x; }
  static constexpr bool kReadsTarget = false;
};
template <typename A>
struct Add {
  GATEDFWA_INLINE Vector<A> operator()(Vector<A> c, Vector<A> x, int64_t, int) const { return c + x; }
  static constexpr bool kReadsTarget = true;
};
/// The target's columns are first rescaled, each by its own factor (online softmax).
template <typename A>
struct RescaleAndAdd {
  const A* factors;
  GATEDFWA_INLINE Vector<A> operator()(Vector<A> c, Vector<A> x, int64_t, int v) const {
    return c * load(factors + v * kLanes<A>) + x;
  }
  static constexpr bool kReadsTarget = true;
};

template <int kRows, int kVectors, typename A, typename Update>
GATEDFWA_INLINE void registerBlock(int64_t row, int64_t depth, Left<A> a, const A* b, int64_t ldb, A* c, int64_t ldc,
                                   Update& update) {
  Vector<A> sums[kRows][kVectors] = {};
  const A* left = a.data;
  for (int64_t k = 0; k < depth; k++, left += a.depth, b += ldb) {
    Vector<A> right[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) right[v] = load(b + v * kLanes<A>);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++) {
      const A x = left[r * a.row];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) sums[r][v] += x * right[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) {
      A* target = c + r * ldc + v * kLanes<A>;
      Vector<A> old{};
      if constexpr (Update::kReadsTarget) old = load(target);
      store(target, update(old, sums[r][v], row + r, v));
    }
}

/// c[rows][kVectors vectors] <- update(c, a * b); `ldb`, `ldc` are row lengths.
template <int kVectors = 2, typename A, typename Update>
GATEDFWA_INLINE void panelProduct(int64_t rows, int64_t depth, Left<A> a, const A* b, int64_t ldb, A* c, int64_t ldc,
                                  Update&& update) {
  int64_t row = 0;
  const auto step = [&](auto count) GATEDFWA_INLINE_LAMBDA {
    constexpr int kCount = decltype(count)::value;
    registerBlock<kCount, kVectors>(row, depth, a, b, ldb, c, ldc, update);
    a.data += kCount * a.row;
    c += kCount * ldc;
    row += kCount;
  };
  while (rows - row >= kRegisterRows) step(Count<kRegisterRows>{});
  if (rows - row >= 4) step(Count<4>{});
  if (rows - row >= 2) step(Count<2>{});
  if (rows - row >= 1) step(Count<1>{});
}

/// c[rows][kPanel] = a * b. A function of its own: among much other code the compiler runs out of registers in the
/// loop.
template <typename A>
__attribute__((noinline)) void assignProduct(int64_t rows, int64_t depth, Left<A> a, const A* b, int64_t ldb, A* c,
                                             int64_t ldc) {
  panelProduct(rows, depth, a, b, ldb, c, ldc, Assign<A>{});
}

/// c[rows][columns] += a * b, `columns` a multiple of a vector's lanes.
template <typename A>
__attribute__((noinline)) void addProduct(int64_t rows, int64_t columns, int64_t depth, Left<A> a, const A* b,
                                          int64_t ldb, A* c, int64_t ldc) {
  int64_t column = 0;
  for (; column + kPanel<A> <= columns; column += kPanel<A>)
    panelProduct(rows, depth, a, b + column, ldb, c + column, ldc, Add<A>{});
  if (column < columns) panelProduct<1>(rows, depth, a, b + column, ldb, c + column, ldc, Add<A>{});
}

/// The same, leaving out terms whose left element is 0: an invisible pair must not turn a NaN or infinity on its other
/// side into NaN. Only for tiles that hold such values and are not wholly visible.
template <typename A>
void addProductOfVisible(int64_t rows, int64_t columns, int64_t depth, Left<A> a, const A* b, int64_t ldb, A* c,
                         int64_t ldc) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t k = 0; k < depth; k++) {
      const A x = a.data[r * a.row + k * a.depth];
      if (x == A(0)) continue;
      for (int64_t j = 0; j < columns; j++) c[r * ldc + j] += x * b[k * ldb + j];
    }
}

/// The same, the slow way only where it is needed: `finite` says that b is finite or that all pairs are visible.
template <typename A>
void addGuarded(bool finite, int64_t rows, int64_t columns, int64_t depth, Left<A> a, const A* b, int64_t ldb, A* c,
                int64_t ldc) {
  if (finite)
    addProduct(rows, columns, depth, a, b, ldb, c, ldc);
  else
    addProductOfVisible(rows, columns, depth, a, b, ldb, c, ldc);
}

}  // namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET
