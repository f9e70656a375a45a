// Tile sizes of the mma.sync kernels: one table, checked at compile time.
#pragma once

namespace gatedfwa::cuda {

/// Decay sums are relative to tiles of this many tokens (aligned to absolute positions).
constexpr int kSumTile = 64;

/// A block of `warps` warps holds `rows` stationary rows (queries in forward and dq, keys in dk/dv) and streams tiles
/// of `columns` rows of the other kind through `stages` shared-memory stages.
struct Tiling {
  int rows, columns, warps, stages, minBlocks;
  constexpr int warpRows() const { return rows / warps; }
  constexpr int threads() const { return warps * 32; }
};

enum class Pass { Forward, Dq, DkDv };

/// `elementBytes` 2 (HALF, BFLOAT16) or 4 (FLOAT); `head` is the padded head size: 64, 128 or 256.
constexpr Tiling tiling(Pass pass, int elementBytes, int head) {
  if (elementBytes == 2) {
    switch (pass) {
      case Pass::Forward:
        return head == 64 ? Tiling{64, 64, 2, 2, 4} : head == 128 ? Tiling{128, 64, 4, 2, 2} : Tiling{64, 32, 4, 2, 2};
      case Pass::Dq:
        return head == 64 ? Tiling{64, 64, 2, 2, 4} : head == 128 ? Tiling{128, 32, 4, 2, 2} : Tiling{64, 16, 4, 2, 2};
      case Pass::DkDv:
        return head == 64 ? Tiling{64, 64, 2, 2, 4} : head == 128 ? Tiling{64, 64, 4, 2, 2} : Tiling{64, 16, 4, 2, 1};
    }
  }
  switch (pass) {
    case Pass::Forward:
      return head == 64 ? Tiling{64, 64, 4, 2, 2} : head == 128 ? Tiling{64, 32, 4, 2, 2} : Tiling{32, 16, 2, 2, 2};
    case Pass::Dq:
      return head == 64 ? Tiling{64, 32, 4, 2, 2} : head == 128 ? Tiling{32, 32, 2, 2, 2} : Tiling{32, 16, 2, 1, 2};
    case Pass::DkDv:
      return head == 64 ? Tiling{64, 32, 4, 2, 2} : head == 128 ? Tiling{64, 16, 4, 2, 2} : Tiling{32, 16, 2, 1, 2};
  }
  return {};
}

/// Columns of a streamed tile whose scores are in registers at once.
constexpr int scoreColumns(Pass pass, int elementBytes, int head) {
  const Tiling t = tiling(pass, elementBytes, head);
  if (pass == Pass::Forward) return t.columns;
  if (elementBytes == 2 && (pass == Pass::Dq || head == 64)) return t.columns < 32 ? t.columns : 32;
  return t.columns < 64 ? t.columns : 64;
}

/// Shared memory of a block, bytes: the tiles, then the per-row and per-column floats.
constexpr int sharedBytes(Pass pass, int elementBytes, int head) {
  const Tiling t = tiling(pass, elementBytes, head);
  const int stationary = pass == Pass::Forward ? 1 : 2;
  return elementBytes * head * (stationary * t.rows + 2 * t.stages * t.columns) +
         8 * (t.rows < kSumTile ? kSumTile : t.rows) + t.stages * (t.columns * 12 + 32);
}

constexpr bool validTiling(Pass pass, int elementBytes, int head) {
  const Tiling t = tiling(pass, elementBytes, head);
  return t.rows % t.warps == 0 && (t.warpRows() == 16 || t.warpRows() == 32) && kSumTile % t.columns == 0 &&
         t.columns % 16 == 0 && (t.rows % kSumTile == 0 || kSumTile % t.rows == 0) &&
         (t.stages == 1 || t.stages == 2) && t.columns % scoreColumns(pass, elementBytes, head) == 0 &&
         t.columns / 2 <= 32 && t.columns / 2 <= t.threads() && (elementBytes * head) % 128 == 0 &&
         sharedBytes(pass, elementBytes, head) <= 99 * 1024;
}
constexpr bool validTilings(Pass pass) {
  return validTiling(pass, 2, 64) && validTiling(pass, 2, 128) && validTiling(pass, 2, 256) &&
         validTiling(pass, 4, 64) && validTiling(pass, 4, 128) && validTiling(pass, 4, 256);
}
static_assert(validTilings(Pass::Forward), "a forward tile does not fit");
static_assert(validTilings(Pass::Dq), "a dq tile does not fit");
static_assert(validTilings(Pass::DkDv), "a dk/dv tile does not fit");

/// A block of a Hopper kernel (hopper.cuh): `consumers` warp groups that each keep 64 stationary rows, one producer
/// warp group, and a ring of `stages` pairs of 64-row tiles. `inRegisters`: the consumers hold the stationary operands
/// of the score products in registers. Registers of a thread are moved from the producers to the consumers.
struct HopperTiling {
  int consumers, stages, consumerRegisters, producerRegisters;
  bool inRegisters;
};

/// A warp's 16 rows x 32 columns of an output, bytes.
constexpr int kRowSpace = 16 * 32 * 2;

/// 16-bit elements; `head` 64 (forward alone: the backward is OnePassTile) or 128.
constexpr HopperTiling hopperTiling(Pass pass, int head) {
  switch (pass) {
    case Pass::Forward:
      return head == 64 ? HopperTiling{3, 11, 144, 80, true} : HopperTiling{3, 5, 152, 56, false};
    case Pass::Dq:
      return HopperTiling{2, 4, 216, 72, false};
    case Pass::DkDv:
      return HopperTiling{2, 4, 240, 24, false};
  }
  return {};
}

template <Pass pass, int head>
struct HopperTile {
  static constexpr HopperTiling kTiling = hopperTiling(pass, head);
  static constexpr int consumers = kTiling.consumers, stages = kTiling.stages, rows = consumers * kSumTile;
  static constexpr bool inRegisters = kTiling.inRegisters;
  static constexpr int threads = 128 * (1 + consumers);
  static constexpr int consumerRegisters = kTiling.consumerRegisters, producerRegisters = kTiling.producerRegisters;
  static constexpr int stationaryTiles = pass == Pass::Forward ? 1
                                         : pass == Pass::Dq    ? 3
                                                               : 2,
                       tileBytes = kSumTile * head * 2;
  static constexpr int termBytes = pass == Pass::DkDv ? 1040 : 544;  ///< of a stage
  static constexpr int barriers = 3 * stages + 4 * consumers;
  static constexpr int warpBytes = pass == Pass::DkDv ? 64 : 0;  ///< a warp's own, where registers are short
  static constexpr int rowSpaces = pass == Pass::Dq ? 0 : 4 * consumers * kRowSpace;  ///< for outputs on their way
  static constexpr int shared = (consumers * stationaryTiles + 2 * stages) * tileBytes + stages * termBytes +
                                rowSpaces + 8 * barriers + threads / 32 * warpBytes;
  static_assert(shared <= 227 * 1024, "a Hopper tile does not fit");
  static_assert(consumers * consumerRegisters + producerRegisters <= 65536 / threads / 8 * 8 * (1 + consumers),
                "more registers than the block starts with");
};

/// The mma.sync tiles as constants, for kernels.
template <Pass pass, int elementBytes, int head>
struct Tile {
  static constexpr Tiling kTiling = tiling(pass, elementBytes, head);
  static constexpr int rows = kTiling.rows, columns = kTiling.columns, warps = kTiling.warps, stages = kTiling.stages;
  static constexpr int minBlocks = kTiling.minBlocks, threads = kTiling.threads(), warpRows = kTiling.warpRows();
  static constexpr int scores = scoreColumns(pass, elementBytes, head);
  static constexpr int shared = sharedBytes(pass, elementBytes, head);
};

}  // namespace gatedfwa::cuda
