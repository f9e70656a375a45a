// nsa_select on the CPU (NSA, equations 8 to 11): query-stationary. The probabilities of the compressed attention are
// computed again, a tile at a time, kept transposed, [block][query], so that importances are sums down the lanes; as
// soon as all compressed blocks that share tokens with a selection block have been seen, it competes for a place.
#pragma once

#include "cpu/nsa_tiles.inl"
#include "cpu/plan.h"

namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET {

template <typename A>
struct NsaSelection {
  static constexpr int64_t kKeys = kTile<A>;
  static constexpr int64_t kWidth = kPanel<A>;

  static int64_t tokens(const NsaSelect& p) {
    const int64_t tokens = roundUp(chunkTokens<A>(p, 2 * p.headSize), kWidth);
    return least(tokens, 16 * kWidth);
  }
  static int64_t panels(const NsaSelect& p) { return tokens(p) / kWidth; }
  static int64_t perSelection(const NsaSelect& p) { return p.selectionBlock / p.stride; }
  static int64_t perBlock(const NsaSelect& p) { return p.blockLength / p.stride; }
  /// Selection blocks that share tokens with a tile of compressed blocks.
  static int64_t blocksOfTile(const NsaSelect& p) { return (kKeys + perBlock(p)) / perSelection(p) + 2; }
  /// Places for which blocks compete: a query's own block has one for certain.
  static int64_t places(const NsaSelect& p) {
    return most(1, least(p.topN - 1, ceilDivide(p.keyLength, p.selectionBlock)));
  }

  struct Buffers {
    A *q, *rows, *k, *scores;
    A* weights;           ///< [kKeys][kWidth]: probabilities, summed over the group
    A *high, *low;        ///< [G][tokens]: log2(e) * lse, rounded, and what the rounding left
    A* importance;        ///< [panels][blocksOfTile][kWidth]
    int64_t* seen;        ///< [tokens]: the token sees the compressed blocks below
    int64_t* first;       ///< [tokens]: the first candidate, or -1
    int64_t* before;      ///< [tokens]: the block before the token's own if it is a candidate, or -1
    int64_t* candidates;  ///< [tokens]: how many compete
    A* best;              ///< [tokens][places]: importances, descending
    int32_t* block;       ///< [tokens][places]: whose they are
    int32_t* chosen;      ///< [places + 3]
    uint8_t* keep;
    Buffers(const NsaSelect& p, Scratch& scratch)
        : q(scratch.take<A>(groupOf(p) * tokens(p) * p.headSize)),
          rows(scratch.take<A>(kWidth * p.headSize)),
          k(scratch.take<A>(kKeys * p.headSize)),
          scores(scratch.take<A>(kKeys * kWidth)),
          weights(scratch.take<A>(kKeys * kWidth)),
          high(scratch.take<A>(groupOf(p) * tokens(p))),
          low(scratch.take<A>(groupOf(p) * tokens(p))),
          importance(scratch.take<A>(tokens(p) * blocksOfTile(p))),
          seen(scratch.take<int64_t>(tokens(p))),
          first(scratch.take<int64_t>(tokens(p))),
          before(scratch.take<int64_t>(tokens(p))),
          candidates(scratch.take<int64_t>(tokens(p))),
          best(scratch.take<A>(tokens(p) * places(p))),
          block(scratch.take<int32_t>(tokens(p) * places(p))),
          chosen(scratch.take<int32_t>(places(p) + 3)),
          keep(scratch.take<uint8_t>(kKeys)) {}
  };

  static Plan plan(const NsaSelect& p) {
    Plan plan;
    Scratch scratch(nullptr);
    Buffers buffers(p, scratch);
    plan.scratchBytes = scratch.used();
    plan.flops = 2.0 * static_cast<double>(p.batch * p.heads * p.queryLength) * CompressedKeys::meanKeys(p) *
                 static_cast<double>(p.headSize);
    plan.add(p.batch * p.kvHeads * ceilDivide(p.queryLength, tokens(p)),
             [](const void* params, int64_t item, void* memory) {
               run(*static_cast<const NsaSelect*>(params), item, memory);
             });
    return plan;
  }

  /// Tokens [t0, t0 + count) of one batch entry and key/value head.
  struct Tokens {
    int64_t b, kvHead, t0, count;
  };

  static void run(const NsaSelect& p, int64_t item, void* memory) {
    Scratch scratch(memory);
    const Buffers buffers(p, scratch);
    const int64_t chunks = ceilDivide(p.queryLength, tokens(p));
    const int64_t t0 = (chunks - 1 - item / p.kvHeads % chunks) * tokens(p);
    const Tokens x{item / p.kvHeads / chunks, item % p.kvHeads, t0, least(tokens(p), p.queryLength - t0)};
    stage(p, x, buffers);

    const int64_t r = perSelection(p), tileBlocks = blocksOfTile(p);
    for (int64_t i = 0; i < tokens(p) * tileBlocks; i++) buffers.importance[i] = 0;
    int64_t base = 0;  // selection block of importance[..][0]
    for (int64_t c = 0; c < buffers.seen[x.count - 1]; c += kKeys) {
      const int64_t count = least(kKeys, buffers.seen[x.count - 1] - c);
      addImportances(p, x, c, count, base, buffers);
      const int64_t done = (c + count) / r - base;  // these share nothing with the blocks to come
      for (int64_t panel = 0; panel * kWidth < x.count; panel++) {
        A* importance = buffers.importance + panel * tileBlocks * kWidth;
        for (int64_t i = 0; i < done; i++) compete(p, x, panel, base + i, importance + i * kWidth, buffers);
        for (int64_t i = 0; i < tileBlocks; i++)
          for (int64_t lane = 0; lane < kWidth; lane++)
            importance[i * kWidth + lane] = i + done < tileBlocks ? importance[(i + done) * kWidth + lane] : A(0);
      }
      base += done;
    }
    // At most one block before the last query's own still shares tokens with compressed blocks that nobody saw.
    const int64_t last = positionOf(p, x.t0 + x.count - 1) / p.selectionBlock;
    for (int64_t s = base; s < last; s++)
      for (int64_t panel = 0; panel * kWidth < x.count; panel++)
        compete(p, x, panel, s, buffers.importance + (panel * tileBlocks + s - base) * kWidth, buffers);
    for (int64_t i = 0; i < x.count; i++) writeChoice(p, x, i, buffers);
  }

 private:
  static void stage(const NsaSelect& p, const Tokens& x, const Buffers& buffers) {
    const int64_t group = groupOf(p);
    for (int64_t g = 0; g < group; g++) {
      const int64_t h = x.kvHead * group + g;
      for (int64_t first = 0; first < x.count; first += kWidth) {
        const int64_t count = least(kWidth, x.count - first);
        const Rows<A> rows =
            stageRows(p.type, p.q, x.b, x.t0 + first, h, count, p.headSize, p.headSize, nullptr, buffers.rows);
        packTransposed<A>(rows, count, p.headSize, kWidth, 1, A(1), buffers.q + (g * tokens(p) + first) * p.headSize);
      }
      for (int64_t i = 0; i < tokens(p); i++) {
        const int64_t row = g * tokens(p) + i;
        const A lse = i < x.count ? *(at<A>(p.lse, x.b, h) + (x.t0 + i) * p.lse.strides[2]) : -kInfinity<A>;
        const bool empty = lse == -kInfinity<A>;
        buffers.high[row] = empty ? kInfinity<A> : static_cast<A>(kLog2E * lse);
        buffers.low[row] = empty ? A(0) : static_cast<A>(kLog2E * lse - buffers.high[row]);
      }
    }
    for (int64_t i = 0; i < tokens(p); i++) {
      buffers.seen[i] = i < x.count ? least(p.blocks, CompressedKeys::visibleEnd(p, positionOf(p, x.t0 + i))) : 0;
      buffers.first[i] = buffers.before[i] = -1;
      buffers.candidates[i] = 0;
    }
  }

  /// Adds the probabilities of compressed blocks [c, c + count) to the importances of what they share tokens with.
  static void addImportances(const NsaSelect& p, const Tokens& x, int64_t c, int64_t count, int64_t base,
                             const Buffers& buffers) {
    const int64_t r = perSelection(p), e = perBlock(p);
    const uint8_t* keep = maskOf(p, x.b, c, count, buffers.keep);
    const Rows<A> k = stageRows(p.type, p.k, x.b, c, x.kvHead, count, p.headSize, p.headSize, keep, buffers.k);
    const A scale = static_cast<A>(p.scale * kLog2E);
    for (int64_t panel = 0; panel * kWidth < x.count; panel++) {
      const int64_t lane = panel * kWidth;
      const int64_t end = least(count, buffers.seen[least(lane + kWidth, x.count) - 1] - c);
      if (end <= 0) continue;
      const bool edge = buffers.seen[lane] - c < end || lane + kWidth > x.count;
      for (int64_t key = 0; key < end * kWidth; key++) buffers.weights[key] = 0;
      for (int64_t g = 0; g < groupOf(p); g++) {
        const int64_t row = g * tokens(p) + lane;
        panelProduct(end, p.headSize, Left<A>{k.data, k.ld, 1}, buffers.q + row * p.headSize, kWidth, buffers.scores,
                     kWidth, Assign<A>{});
        for (int64_t key = 0; key < end; key++) {
          for (int v = 0; v < 2; v++) {
            const int64_t column = v * kLanes<A>;
            const Vector<A> exponent =
                (load(buffers.scores + key * kWidth + column) * scale - load(buffers.high + row + column)) -
                load(buffers.low + row + column);
            Vector<A> P = exp2<A>(exponent);
            if (edge) P = visible(buffers.seen + lane + column, c + key, P);
            A* to = buffers.weights + key * kWidth + column;
            store(to, load(to) + P);
          }
        }
      }
      // In the order of the blocks, wherever a tile ends: equal probabilities make equal importances.
      A* importance = buffers.importance + panel * blocksOfTile(p) * kWidth;
      for (int64_t key = 0; key < end; key++) {
        if (keep != nullptr && !keep[key]) continue;
        const int64_t s = (c + key) / r, own = least(e, (s + 1) * r - (c + key));
        for (int v = 0; v < 2; v++) {
          const Vector<A> P = load(buffers.weights + key * kWidth + v * kLanes<A>);
          A* to = importance + (s - base) * kWidth + v * kLanes<A>;
          store(to, load(to) + static_cast<A>(own) * P);
          if (own < e) store(to + kWidth, load(to + kWidth) + static_cast<A>(e - own) * P);
        }
      }
    }
  }

  static Vector<A> visible(const int64_t* seen, int64_t c, Vector<A> P) {
    IntegerVector<A> sees;
    for (int i = 0; i < kLanes<A>; i++) sees[i] = c < seen[i] ? -1 : 0;
    return sees ? P : Vector<A>{};
  }

  /// Selection block s has its importance: those queries of the panel that it is a candidate for, and that do not have
  /// it for certain, enter it among their best. Blocks come in ascending order, so the lower index stays first in a
  /// tie.
  static void compete(const NsaSelect& p, const Tokens& x, int64_t panel, int64_t s, const A* importance,
                      const Buffers& buffers) {
    const int64_t needed = firstUnmasked(p, x.b, s), most = places(p);
    for (int64_t lane = 0; lane < kWidth && panel * kWidth + lane < x.count; lane++) {
      const int64_t i = panel * kWidth + lane, own = positionOf(p, x.t0 + i) / p.selectionBlock;
      if (s >= own || needed >= buffers.seen[i]) continue;
      if (buffers.first[i] < 0) {
        buffers.first[i] = s;
        continue;
      }
      if (s == own - 1) {
        buffers.before[i] = s;
        continue;
      }
      const A value = importance[lane] != importance[lane] ? A(0) : importance[lane];
      A* best = buffers.best + i * most;
      int32_t* block = buffers.block + i * most;
      int64_t place = buffers.candidates[i];
      if (place == most && !(value > best[place - 1])) continue;
      if (place < most)
        buffers.candidates[i]++;
      else
        place--;
      for (; place > 0 && value > best[place - 1]; place--)
        best[place] = best[place - 1], block[place] = block[place - 1];
      best[place] = value;
      block[place] = static_cast<int32_t>(s);
    }
  }

  /// The first unmasked compressed block that shares a token with selection block s; C if there is none.
  static int64_t firstUnmasked(const NsaSelect& p, int64_t b, int64_t s) {
    const int64_t r = perSelection(p);
    uint8_t keep;
    for (int64_t c = most(0, s * r - perBlock(p) + 1); c < least(p.blocks, (s + 1) * r); c++)
      if (maskOf(p, b, c, 1, &keep) == nullptr) return c;
    return p.blocks;
  }

  static void writeChoice(const NsaSelect& p, const Tokens& x, int64_t i, const Buffers& buffers) {
    int64_t count = 0;
    if (buffers.first[i] >= 0) buffers.chosen[count++] = static_cast<int32_t>(buffers.first[i]);
    if (buffers.before[i] >= 0) buffers.chosen[count++] = static_cast<int32_t>(buffers.before[i]);
    buffers.chosen[count++] = static_cast<int32_t>(positionOf(p, x.t0 + i) / p.selectionBlock);
    const int64_t others = least(p.topN - count, buffers.candidates[i]);
    for (int64_t j = 0; j < others; j++) buffers.chosen[count++] = buffers.block[i * places(p) + j];
    constexpr int64_t kGaps[] = {701, 301, 132, 57, 23, 10, 4, 1};  // Shell sort, Ciura's gaps
    for (const int64_t gap : kGaps)
      for (int64_t j = gap; j < count; j++) {
        const int32_t value = buffers.chosen[j];
        int64_t k = j;
        for (; k >= gap && buffers.chosen[k - gap] > value; k -= gap) buffers.chosen[k] = buffers.chosen[k - gap];
        buffers.chosen[k] = value;
      }
    int32_t* to = at<int32_t>(p.indices, x.b, x.t0 + i, x.kvHead);
    for (int64_t j = 0; j < p.topN; j++) to[j * p.indices.strides[3]] = j < count ? buffers.chosen[j] : -1;
  }
};

}  // namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET
