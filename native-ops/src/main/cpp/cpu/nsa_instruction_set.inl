// The kernels of native sparse attention for one instruction set; the includer defines the same macros as for
// instruction_set.inl.
#include "cpu/nsa_backward.inl"
#include "cpu/nsa_forward.inl"
#include "cpu/nsa_select.inl"
#include "cpu/plan.h"

namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET {

template <typename A>
using CompressedForward = NsaAttentionForward<A, CompressedKeys>;
template <typename A>
using CompressedBackward = NsaAttentionBackward<A, CompressedKeys>;
template <typename A>
using SelectedForward = NsaAttentionForward<A, SelectedKeys>;
template <typename A>
using SelectedBackward = NsaAttentionBackward<A, SelectedKeys>;

template <template <typename> class Kernel, typename Params>
Plan nsaPlan(const Params& p) {
  return p.type == ElementType::Float64 ? Kernel<double>::plan(p) : Kernel<float>::plan(p);
}

const NsaKernels kNsaKernels = {nsaPlan<CompressedForward, NsaCompressedForward>,
                                nsaPlan<CompressedBackward, NsaCompressedBackward>, nsaPlan<NsaSelection, NsaSelect>,
                                nsaPlan<SelectedForward, NsaSelectedForward>,
                                nsaPlan<SelectedBackward, NsaSelectedBackward>};

}  // namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET
