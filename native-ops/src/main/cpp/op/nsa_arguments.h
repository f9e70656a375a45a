// arguments.h for the ops of native sparse attention. Further letters: l block length, d stride, C compressed blocks,
// l' tokens of a selection block, S = ceil(M / l').
//
//   op                           inputs                                 integers                   outputs
//   nsa_compressed_attention     q, kCmp, vCmp [, mask]                 l, d, M                    o, lse
//   nsa_compressed_attention_bp  q, kCmp, vCmp [, mask], o, lse, dO     l, d, M                    dq, dkCmp, dvCmp
//   nsa_select                   q, kCmp, lse [, mask]                  l, d, l', topN, M          indices
//   nsa_selected_attention       q, k, v, indices [, mask]              l'                         o, lse
//   nsa_selected_attention_bp    q, k, v, indices [, mask], o, lse, dO  l'                         dq, dk, dv
//
// All take the real `scale` and the boolean `hasMask`; a missing scale, or 0, is 1/sqrt(D), a missing boolean is false.
// M = 0 stands for N. The mask is [B, C], of the selected attention [B, M].
// Every function throws std::invalid_argument with a message that names op, argument, what came and what is allowed.
#pragma once

#include "kernel/nsa_params.h"
#include "op/arguments.h"

namespace gatedfwa {

/// Names, types and shapes of the outputs; looks at everything but data addresses, strides and values.
std::vector<OutputShape> nsaCompressedForwardShapes(const OpArguments& arguments);
std::vector<OutputShape> nsaCompressedBackwardShapes(const OpArguments& arguments);
std::vector<OutputShape> nsaSelectShapes(const OpArguments& arguments);
std::vector<OutputShape> nsaSelectedForwardShapes(const OpArguments& arguments);
std::vector<OutputShape> nsaSelectedBackwardShapes(const OpArguments& arguments);

/// The kernel's arguments. `outputs` must have the shapes and types above, no two elements of them at one address, and
/// none at an input's; each row of indices must be ascending numbers below S and then -1s, which is looked at if
/// `checkIndices`: they must be in the host's memory.
NsaCompressedForward nsaCompressedForwardParams(const OpArguments& arguments, const std::vector<ArrayView>& outputs);
NsaCompressedBackward nsaCompressedBackwardParams(const OpArguments& arguments, const std::vector<ArrayView>& outputs);
NsaSelect nsaSelectParams(const OpArguments& arguments, const std::vector<ArrayView>& outputs);
NsaSelectedForward nsaSelectedForwardParams(const OpArguments& arguments, const std::vector<ArrayView>& outputs,
                                            bool checkIndices = true);
NsaSelectedBackward nsaSelectedBackwardParams(const OpArguments& arguments, const std::vector<ArrayView>& outputs,
                                              bool checkIndices = true);

}  // namespace gatedfwa
