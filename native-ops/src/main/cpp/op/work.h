// What a call costs, whoever does it: operations and a line that names it.
#pragma once

#include <string>

#include "kernel/kernel_call.h"

namespace gatedfwa {

enum class OpKind { Window, Compressed, Select, Selected };
constexpr int kOpKinds = 4;

struct Work {
  OpKind kind;
  ElementType type;
  bool backward;
  double flops;             ///< of the pairs that are seen: 2 products forward, 5 backward, 1 in the choice
  std::string description;  ///< such as "gated_fwa FLOAT B 1, N 4096, M 4096, H 8/8, D 64/64, w 512"
};

/// Not of a gate: where it runs does not depend on its cost. A query of selected attention counts with all topN blocks:
/// the indices may lie anywhere and are not looked at.
Work workOf(const KernelCall& call);

const char* nameOf(ElementType type);

}  // namespace gatedfwa
