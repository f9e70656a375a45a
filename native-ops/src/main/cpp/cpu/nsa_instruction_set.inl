// The kernels of native sparse attention for one instruction set; the includer defines the same macros as for
// instruction_set.inl.
#include "cpu/nsa_backward.inl"
#include "cpu/nsa_forward.inl"
#include "cpu/nsa_select.inl"
#include "cpu/plan.h"

namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET {

template <typename E>
using CompressedForward = NsaAttentionForward<E, CompressedKeys>;
template <typename E>
using CompressedBackward = NsaAttentionBackward<E, CompressedKeys>;
template <typename E>
using SelectedForward = NsaAttentionForward<E, SelectedKeys>;
template <typename E>
using SelectedBackward = NsaAttentionBackward<E, SelectedKeys>;

template <template <typename> class Kernel, typename Params>
Plan nsaPlan(const Params& p) {
  switch (p.type) {
    case ElementType::Float64:
      return Kernel<double>::plan(p);
    case ElementType::Float16:
      return Kernel<Half>::plan(p);
    case ElementType::BFloat16:
      return Kernel<BFloat16>::plan(p);
    default:
      return Kernel<float>::plan(p);
  }
}

const NsaKernels kNsaKernels = {nsaPlan<CompressedForward, NsaCompressedForward>,
                                nsaPlan<CompressedBackward, NsaCompressedBackward>, nsaPlan<NsaSelection, NsaSelect>,
                                nsaPlan<SelectedForward, NsaSelectedForward>,
                                nsaPlan<SelectedBackward, NsaSelectedBackward>};

}  // namespace gatedfwa::cpu::GATEDFWA_INSTRUCTION_SET
