// The attention kernels of one instruction set. The includer defines
//   GATEDFWA_INSTRUCTION_SET  the namespace
//   GATEDFWA_VECTOR_BYTES     the width of a vector register
//   GATEDFWA_REGISTER_ROWS    rows of a register block that is two vectors wide
#include "cpu/attention_backward.inl"
#include "cpu/attention_decode.inl"
#include "cpu/attention_forward.inl"
#include "cpu/plan.h"

namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET {

template <typename A>
Plan forwardPlan(const AttentionForward& p) {
  // A tile is as wide as a register block; below that, most of its lanes would be idle.
  return p.queryLength <= kDecodeQueries ? Decode<A>::plan(p) : Forward<A>::plan(p);
}
inline Plan forwardPlan(const AttentionForward& p) {
  return p.type == ElementType::Float64 ? forwardPlan<double>(p) : forwardPlan<float>(p);
}
inline Plan backwardPlan(const AttentionBackward& p) {
  return p.type == ElementType::Float64 ? Backward<double>::plan(p) : Backward<float>::plan(p);
}

const AttentionKernels kKernels = {forwardPlan, backwardPlan};

}  // namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET
