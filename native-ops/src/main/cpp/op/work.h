// What a call costs, whoever does it: operations and a line that names it.
#pragma once

#include <string>

#include "kernel/params.h"

namespace gatedfwa {

struct Work {
  ElementType type;
  bool backward;
  double flops;             ///< of the visible pairs: 2 products forward, 5 backward
  std::string description;  ///< such as "gated_fwa FLOAT B 1, N 4096, M 4096, H 8/8, D 64/64, w 512"
};

Work workOf(const AttentionForward& params);
Work workOf(const AttentionBackward& params);

const char* nameOf(ElementType type);

}  // namespace gatedfwa
