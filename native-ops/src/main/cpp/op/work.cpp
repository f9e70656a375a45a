#include "op/work.h"

#include <algorithm>

namespace gatedfwa {
namespace {

Work workOf(const AttentionProblem& p, bool backward) {
  // Query t sees min(window, M - N + t + 1) keys: an arithmetic series until the window is full, then a constant.
  const int64_t first = p.keyLength - p.queryLength + 1;
  const int64_t window = std::min(p.window, p.keyLength);
  const double growing = static_cast<double>(std::clamp<int64_t>(window - first, 0, p.queryLength));
  const double pairs = growing * (static_cast<double>(first) + (growing - 1) / 2) +
                       (static_cast<double>(p.queryLength) - growing) * static_cast<double>(window);
  const double products = static_cast<double>(backward ? 3 * p.headSize + 2 * p.valueSize : p.headSize + p.valueSize);
  Work work;
  work.type = p.type;
  work.backward = backward;
  work.flops = 2 * pairs * products * static_cast<double>(p.batch * p.heads);
  work.description = std::string(backward ? "gated_fwa_bp " : "gated_fwa ") + nameOf(p.type) + " B " +
                     std::to_string(p.batch) + ", N " + std::to_string(p.queryLength) + ", M " +
                     std::to_string(p.keyLength) + ", H " + std::to_string(p.heads) + '/' + std::to_string(p.kvHeads) +
                     ", D " + std::to_string(p.headSize) + '/' + std::to_string(p.valueSize) + ", w " +
                     std::to_string(p.window);
  return work;
}

}  // namespace

Work workOf(const AttentionForward& params) { return workOf(params, false); }
Work workOf(const AttentionBackward& params) { return workOf(params, true); }

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
