// What the attention kernels of native sparse attention share: chunks of query rows, tiles of keys, and which of them
// meet. Scores are [row][key]: any rows that use a tile of keys can be put together, so that queries which selected the
// same block share its staging, and the heads of a group share everything.
#pragma once

#include "cpu/tiles.inl"
#include "kernel/nsa_params.h"

namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET {

/// Rows whose products with one tile of keys are computed at a time.
template <typename A>
constexpr int64_t kBatch = kTile<A>;

/// No lane is NaN.
template <typename A>
GATEDFWA_INLINE A maxOfLanes(Vector<A> x) {
  alignas(64) A lanes[kLanes<A>];
  store(lanes, x);
  for (int width = kLanes<A> / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++) lanes[i] = lanes[i + width] > lanes[i] ? lanes[i + width] : lanes[i];
  return lanes[0];
}

constexpr int64_t ceilDivide(int64_t x, int64_t step) { return (x + step - 1) / step; }
inline int64_t groupOf(const NsaProblem& p) { return p.heads / p.kvHeads; }
inline int64_t positionOf(const NsaProblem& p, int64_t t) { return p.keyLength - p.queryLength + t; }

/// How many tokens a query-stationary work item has: so many that its rows of `columns` numbers stay in the second- or
/// third-level cache, and fewer where there would be too few items for many cores.
template <typename A>
int64_t chunkTokens(const NsaProblem& p, int64_t columns) {
  constexpr int64_t kLeastItems = 64, kLeastTokens = 16, kMostRows = 2048;
  constexpr int64_t kElements = (int64_t{1} << 20) / static_cast<int64_t>(sizeof(A));
  int64_t tokens = most(1, least(kMostRows, kElements / columns) / groupOf(p));
  while (tokens > kLeastTokens && p.batch * p.kvHeads * ceilDivide(p.queryLength, tokens) < kLeastItems) tokens /= 2;
  return most(1, least(tokens, p.queryLength));
}

/// Some query tokens of one batch entry and key/value head, in ascending order. Row i * G + g is head g of the group.
struct Chunk {
  int64_t b, kvHead, count;
  int64_t* tokens;  ///< [capacity]
  int64_t* ends;    ///< [capacity]: the token sees no key from here on

  Chunk(int64_t capacity, Scratch& scratch)
      : b(0), kvHead(0), count(0), tokens(scratch.take<int64_t>(capacity)), ends(scratch.take<int64_t>(capacity)) {}

  template <typename Keys>
  void add(const typename Keys::Problem& p, int64_t t) {
    tokens[count] = t;
    ends[count++] = Keys::visibleEnd(p, positionOf(p, t));
  }
};

/// Keys [first, first + count), at most kTile, and the tokens of a chunk that use them.
struct KeyRange {
  int64_t first, count;
  int64_t slot;            ///< number of the tile in the range that is walked
  const int32_t* members;  ///< places in the chunk, ascending; each sees at least the first key
  int64_t memberCount;
};

/// Compressed blocks as keys: a query sees all that are complete.
struct CompressedKeys {
  using Problem = NsaCompressedProblem;
  static int64_t count(const Problem& p) { return p.blocks; }
  /// The most keys of a tile.
  static int64_t tileKeys(const Problem&, int64_t tile) { return tile; }
  /// Key-stationary work items are a multiple of `unit` keys long, at most `units` of them.
  static int64_t unit(const Problem&, int64_t tile) { return tile; }
  static int64_t units(const Problem&, int64_t) { return 2; }
  /// The most tiles of an item.
  static int64_t slots(const Problem&, int64_t itemKeys, int64_t tile) { return itemKeys / tile; }
  static int64_t visibleEnd(const Problem& p, int64_t position) {
    return position < p.blockLength - 1 ? 0 : (position - p.blockLength + 1) / p.stride + 1;
  }
  static double meanKeys(const Problem& p) { return static_cast<double>(p.blocks) / 2; }
  /// Whether query t may use a key of [begin, end).
  static bool uses(const Problem& p, int64_t, int64_t, int64_t t, int64_t begin, int64_t) {
    return visibleEnd(p, positionOf(p, t)) > begin;
  }

  /// Calls visit(first key, count, slot) for each tile of [begin, end).
  template <typename Visit>
  static void forEachTile(const Problem&, int64_t begin, int64_t end, int64_t tile, Visit visit) {
    for (int64_t first = begin; first < end; first += tile)
      visit(first, least(tile, end - first), (first - begin) / tile);
  }

  struct Cursor {
    int32_t* members;
    Cursor(int64_t capacity, Scratch& scratch) : members(scratch.take<int32_t>(capacity)) {}
  };

  /// Calls visit(KeyRange) for the tiles of [begin, end) that tokens of the chunk use, in ascending order.
  template <int64_t kKeys, typename Visit>
  static void walk(const Problem&, const Chunk& chunk, int64_t begin, int64_t end, const Cursor& cursor, Visit visit) {
    for (int64_t i = 0; i < chunk.count; i++) cursor.members[i] = static_cast<int32_t>(i);
    int64_t skipped = 0;
    for (int64_t first = begin, slot = 0; first < end; first += kKeys, slot++) {
      while (skipped < chunk.count && chunk.ends[skipped] <= first) skipped++;
      if (skipped == chunk.count) return;
      visit(KeyRange{first, least(kKeys, end - first), slot, cursor.members + skipped, chunk.count - skipped});
    }
  }
};

/// Tokens as keys: a query sees those of its selected blocks up to its own position.
struct SelectedKeys {
  using Problem = NsaSelectedProblem;
  static constexpr int32_t kNone = INT32_MAX;

  static int64_t count(const Problem& p) { return p.keyLength; }
  static int64_t tileKeys(const Problem& p, int64_t tile) { return least(p.selectionBlock, tile); }
  /// Items are long enough that looking for the queries which use them costs little beside the products.
  static int64_t unit(const Problem& p, int64_t tile) { return least(p.selectionBlock, kMostTiles * tile); }
  static int64_t units(const Problem& p, int64_t tile) { return most(1, kMostTiles / ceilDivide(unit(p, tile), tile)); }
  static int64_t slots(const Problem& p, int64_t itemKeys, int64_t tile) {
    // A block may begin and end inside the item.
    return p.selectionBlock > itemKeys ? itemKeys / tile + 2
                                       : itemKeys / p.selectionBlock * ceilDivide(p.selectionBlock, tile);
  }
  static int64_t visibleEnd(const Problem&, int64_t position) { return position + 1; }
  static double meanKeys(const Problem& p) {
    return static_cast<double>(least(p.topN * p.selectionBlock, p.keyLength));
  }

  /// A query's choice.
  struct Row {
    const int32_t* data;
    int64_t stride, count;
    /// The first entry that is at least `block`, or -1.
    int64_t seek(int64_t block) const {
      int64_t low = 0, high = count;
      while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (static_cast<uint32_t>(data[middle * stride]) < static_cast<uint32_t>(block))
          low = middle + 1;
        else
          high = middle;
      }
      return low;
    }
    int32_t at(int64_t place, int64_t endBlock) const {
      if (place >= count) return kNone;
      const int32_t block = data[place * stride];
      return block < 0 || block >= endBlock ? kNone : block;
    }
  };
  static Row row(const Problem& p, int64_t b, int64_t kvHead, int64_t t) {
    return {at<int32_t>(p.indices, b, t, kvHead), p.indices.strides[3], p.topN};
  }

  static bool uses(const Problem& p, int64_t b, int64_t kvHead, int64_t t, int64_t begin, int64_t end) {
    if (positionOf(p, t) < begin) return false;
    const Row own = row(p, b, kvHead, t);
    return own.at(own.seek(begin / p.selectionBlock), ceilDivide(end, p.selectionBlock)) != kNone;
  }

  /// Calls visit(first key, count, slot) for each tile of [begin, end) that lies in the block.
  template <typename Visit>
  static void forEachTileOf(const Problem& p, int64_t block, int64_t begin, int64_t end, int64_t tile, Visit visit) {
    const int64_t before = block - begin / p.selectionBlock;
    const int64_t firstPart = p.selectionBlock - begin % p.selectionBlock;
    int64_t slot = before == 0 ? 0 : ceilDivide(firstPart, tile) + (before - 1) * ceilDivide(p.selectionBlock, tile);
    const int64_t stop = least((block + 1) * p.selectionBlock, end);
    for (int64_t first = most(block * p.selectionBlock, begin); first < stop; first += tile)
      visit(first, least(tile, stop - first), slot++);
  }
  template <typename Visit>
  static void forEachTile(const Problem& p, int64_t begin, int64_t end, int64_t tile, Visit visit) {
    for (int64_t block = begin / p.selectionBlock; block * p.selectionBlock < end; block++)
      forEachTileOf(p, block, begin, end, tile, visit);
  }

  struct Cursor {
    int32_t *members, *next, *place;
    Cursor(int64_t capacity, Scratch& scratch)
        : members(scratch.take<int32_t>(capacity)),
          next(scratch.take<int32_t>(capacity)),
          place(scratch.take<int32_t>(capacity)) {}
  };

  /// As above.
  template <int64_t kKeys, typename Visit>
  static void walk(const Problem& p, const Chunk& chunk, int64_t begin, int64_t end, const Cursor& cursor,
                   Visit visit) {
    const int64_t firstBlock = begin / p.selectionBlock, endBlock = ceilDivide(end, p.selectionBlock);
    for (int64_t i = 0; i < chunk.count; i++) {
      const Row own = row(p, chunk.b, chunk.kvHead, chunk.tokens[i]);
      const int64_t place = own.seek(firstBlock);
      cursor.place[i] = static_cast<int32_t>(place);
      cursor.next[i] = own.at(place, endBlock);
    }
    for (;;) {
      int32_t block = kNone;
      for (int64_t i = 0; i < chunk.count; i++) block = cursor.next[i] < block ? cursor.next[i] : block;
      if (block == kNone) return;
      int64_t members = 0;
      for (int64_t i = 0; i < chunk.count; i++) {
        if (cursor.next[i] != block) continue;
        cursor.members[members++] = static_cast<int32_t>(i);
        cursor.next[i] = row(p, chunk.b, chunk.kvHead, chunk.tokens[i]).at(++cursor.place[i], endBlock);
      }
      int64_t skipped = 0;
      forEachTileOf(p, block, begin, end, kKeys, [&](int64_t first, int64_t count, int64_t slot) {
        while (skipped < members && chunk.ends[cursor.members[skipped]] <= first) skipped++;
        if (skipped < members) visit(KeyRange{first, count, slot, cursor.members + skipped, members - skipped});
      });
    }
  }

 private:
  static constexpr int64_t kMostTiles = 32;
};

/// A tile of keys or values, staged: rows [count][ld], zero where masked, and their transpose in panels
/// [columns][kPanel].
template <typename A>
struct Staged {
  Rows<A> rows;
  A* packed;
};

template <typename A>
Staged<A> stageKeys(ElementType type, const Input& x, int64_t b, int64_t kvHead, int64_t first, int64_t count,
                    int64_t columns, const uint8_t* keep, A* rows, A* packed) {
  const Rows<A> staged = stageRows(type, x, b, first, kvHead, count, columns, roundUp(columns, kLanes<A>), keep, rows);
  if (packed != nullptr)
    packTransposed<A>(staged, count, columns, kPanel<A>, ceilDivide(count, kPanel<A>), A(1), packed);
  return {staged, packed};
}

/// Copies row (token, head) of a tensor like q into `to`, zero from `columns` to the next multiple of the lanes.
template <typename A>
void stageRow(ElementType type, const Input& x, int64_t b, int64_t t, int64_t h, int64_t columns, A* to) {
  visitElement<A>(type, [&](auto element) {
    // Row stride 0: never in place.
    stageElements(at<decltype(element)>(x, b, t, h), 0, x.strides[3], 1, columns, roundUp(columns, kLanes<A>), nullptr,
                  to);
  });
}

/// Up to kBatch rows of a chunk that use one tile of keys.
template <typename A>
struct Batch {
  int64_t count = 0;
  int64_t depth = 0;            ///< the most keys that one of them sees
  bool edge = false;            ///< one of them does not see all
  int64_t first = 0, last = 0;  ///< of `row`
  int64_t row[kBatch<A>];
  int64_t limit[kBatch<A>];  ///< how many keys of the tile the row sees

  /// Rows [from, ..) of the rows of the range's members.
  Batch(const Chunk& chunk, const KeyRange& range, int64_t group, int64_t from) {
    const int64_t rows = least(kBatch<A>, range.memberCount * group - from);
    for (int64_t i = from / group, head = from % group; count < rows; i++, head = 0) {
      const int64_t member = range.members[i], sees = least(range.count, chunk.ends[member] - range.first);
      depth = most(depth, sees);
      edge = edge || sees < range.count;
      for (; head < group && count < rows; head++, count++) {
        row[count] = last = member * group + head;
        limit[count] = sees;
        if (count == 0) first = last;
      }
    }
  }
  /// The rows lie one after the other.
  bool isContiguous() const { return last - first == count - 1; }

  /// The rows of `data` [..][ld], in place if they lie one after the other.
  const A* gather(const A* data, int64_t ld, A* buffer) const {
    if (isContiguous()) return data + first * ld;
    for (int64_t i = 0; i < count; i++)
      for (int64_t c = 0; c < ld; c += kLanes<A>) store(buffer + i * ld + c, load(data + row[i] * ld + c));
    return buffer;
  }
};

/// Lanes of vector v of a row of scores that lie beyond `limit`, or whose key is masked, become -infinity.
template <typename A>
GATEDFWA_INLINE Vector<A> restrictRow(Vector<A> x, int64_t limit, int64_t v, const A* bias) {
  const IntegerVector<A> lane = laneIndex<A>() + static_cast<int>(v * kLanes<A>);
  if (bias != nullptr) x += load(bias + v * kLanes<A>);
  return lane >= static_cast<int>(limit) ? broadcast<A>(-kInfinity<A>) : x;
}

/// bias[i] = 0, or -infinity where keep is 0, up to a whole panel; null if all are kept.
template <typename A>
const A* biasOf(const uint8_t* keep, int64_t count, A* bias) {
  if (keep == nullptr) return nullptr;
  for (int64_t i = 0; i < roundUp(count, kPanel<A>); i++) bias[i] = i < count && !keep[i] ? -kInfinity<A> : A(0);
  return bias;
}

/// c[rows][columns] <- update(c, a * b), `columns` a multiple of a vector's lanes; update must not depend on the
/// column.
template <typename A, typename Update>
void rowsProduct(int64_t rows, int64_t columns, int64_t depth, Left<A> a, const A* b, int64_t ldb, A* c, int64_t ldc,
                 Update update) {
  int64_t column = 0;
  for (; column + kPanel<A> <= columns; column += kPanel<A>)
    panelProduct(rows, depth, a, b + column, ldb, c + column, ldc, update);
  if (column < columns) panelProduct<1>(rows, depth, a, b + column, ldb, c + column, ldc, update);
}

/// scores[rows][panels * kPanel] = a * packed, of `depth` terms.
template <typename A>
void scoresProduct(int64_t rows, int64_t keys, int64_t depth, Rows<A> a, const A* packed, A* scores) {
  for (int64_t lane = 0; lane < keys; lane += kPanel<A>)
    panelProduct(rows, depth, Left<A>{a.data, a.ld, 1}, packed + lane * depth, kPanel<A>, scores + lane, kTile<A>,
                 Assign<A>{});
}

}  // namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET
