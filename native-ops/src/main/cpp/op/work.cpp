#include "op/work.h"

#include <algorithm>

namespace gatedfwa {
namespace {

/// Of an arithmetic series first, first + 1, .. that stays at `limit` once it is there.
double sumOf(int64_t first, int64_t limit, int64_t count) {
  const double growing = static_cast<double>(std::clamp<int64_t>(limit - first, 0, count));
  return growing * (static_cast<double>(first) + (growing - 1) / 2) +
         (static_cast<double>(count) - growing) * static_cast<double>(limit);
}

std::string text(const char* name, int64_t x) { return std::string(", ") + name + ' ' + std::to_string(x); }

struct Describe {
  Work work{};

  template <typename Problem>
  void attention(OpKind kind, const char* name, const Problem& p, bool backward, double pairs) {
    const int64_t products = kind == OpKind::Select ? p.headSize
                             : backward             ? 3 * p.headSize + 2 * p.valueSize
                                                    : p.headSize + p.valueSize;
    const std::string sizes =
        std::to_string(p.headSize) + (kind == OpKind::Select ? "" : '/' + std::to_string(p.valueSize));
    work = {kind, p.type, backward, 2 * pairs * static_cast<double>(products) * static_cast<double>(p.batch * p.heads),
            std::string(name) + (backward ? "_bp " : " ") + nameOf(p.type) + " B " + std::to_string(p.batch) +
                text("N", p.queryLength) + text("M", p.keyLength) + text("H", p.heads) + '/' +
                std::to_string(p.kvHeads) + ", D " + sizes};
  }

  /// Of a query and a block that is complete, per head: the first blocks are seen by all queries, each of the others by
  /// `stride` fewer than the one before.
  static double pairsOf(const NsaCompressedProblem& p) {
    const int64_t seeFirst = p.keyLength - p.blockLength + 1;  // tokens from which block 0 is seen
    const int64_t all = seeFirst < p.queryLength ? 0 : std::min(p.blocks, (seeFirst - p.queryLength) / p.stride + 1);
    const double others = static_cast<double>(p.blocks - all);
    return static_cast<double>(all) * static_cast<double>(p.queryLength) +
           others * (static_cast<double>(seeFirst) -
                     static_cast<double>(p.stride) * static_cast<double>(all + p.blocks - 1) / 2);
  }

  void operator()(const GateForward&) {}
  void operator()(const GateBackward&) {}
  template <typename Params>
  void operator()(const Params& p) {
    constexpr bool backward = kIsBackward<Params>;
    if constexpr (kIsWindow<Params>) {
      const double pairs = sumOf(p.keyLength - p.queryLength + 1, std::min(p.window, p.keyLength), p.queryLength);
      attention(OpKind::Window, "gated_fwa", p, backward, pairs);
      work.description += text("w", p.window);
    } else if constexpr (kIsSelected<Params>) {
      const double pairs =
          sumOf(p.keyLength - p.queryLength + 1,
                std::min(p.keyLength, p.topN * std::min(p.selectionBlock, p.keyLength)), p.queryLength);
      attention(OpKind::Selected, "nsa_selected_attention", p, backward, pairs);
      work.description += text("l'", p.selectionBlock) + text("topN", p.topN);
    } else {
      attention(kIsSelect<Params> ? OpKind::Select : OpKind::Compressed,
                kIsSelect<Params> ? "nsa_select" : "nsa_compressed_attention", p, backward, pairsOf(p));
      work.description += text("l", p.blockLength) + text("d", p.stride);
      if constexpr (kIsSelect<Params>) work.description += text("l'", p.selectionBlock) + text("topN", p.topN);
    }
  }
};

}  // namespace

Work workOf(const KernelCall& call) {
  Describe describe;
  std::visit(describe, call);
  return describe.work;
}

const char* nameOf(ElementType type) {
  switch (type) {
    case ElementType::Float32:
      return "FLOAT";
    case ElementType::Float64:
      return "DOUBLE";
    case ElementType::Float16:
      return "HALF";
    case ElementType::BFloat16:
      return "BFLOAT16";
    default:
      return "BOOL";
  }
}

}  // namespace gatedfwa
