// The attention kernels of one instruction set. The includer defines
//   GATEDFWA_INSTRUCTION_SET  the namespace
//   GATEDFWA_VECTOR_BYTES     the width of a vector register
//   GATEDFWA_REGISTER_ROWS    rows of a register block that is two vectors wide
#include "cpu/attention_backward.inl"
#include "cpu/attention_decode.inl"
#include "cpu/attention_forward.inl"
#include "cpu/plan.h"

namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET {

inline Plan forwardPlan(const AttentionForward& p) {
  // A tile is as wide as a register block; below that, most of its lanes would be idle.
  const bool decode = p.queryLength <= kDecodeQueries;
  switch (p.type) {
    case ElementType::Float64:
      return decode ? Decode<double>::plan(p) : Forward<double>::plan(p);
    case ElementType::Float16:
      return decode ? Decode<Half>::plan(p) : Forward<Half>::plan(p);
    case ElementType::BFloat16:
      return decode ? Decode<BFloat16>::plan(p) : Forward<BFloat16>::plan(p);
    default:
      return decode ? Decode<float>::plan(p) : Forward<float>::plan(p);
  }
}

inline Plan backwardPlan(const AttentionBackward& p) {
  switch (p.type) {
    case ElementType::Float64:
      return Backward<double>::plan(p);
    case ElementType::Float16:
      return Backward<Half>::plan(p);
    case ElementType::BFloat16:
      return Backward<BFloat16>::plan(p);
    default:
      return Backward<float>::plan(p);
  }
}

const AttentionKernels kKernels = {forwardPlan, backwardPlan};

}  // namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET
