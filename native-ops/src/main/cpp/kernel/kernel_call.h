// A call of any op, as what its kernel is given: for whoever treats all of them alike.
#pragma once

#include <type_traits>
#include <variant>

#include "kernel/nsa_params.h"
#include "kernel/params.h"

namespace gatedfwa {

using KernelCall = std::variant<AttentionForward, AttentionBackward, GateForward, GateBackward, NsaCompressedForward,
                                NsaCompressedBackward, NsaSelect, NsaSelectedForward, NsaSelectedBackward>;

template <typename Params>
constexpr bool kIsGate = std::is_same_v<Params, GateForward> || std::is_same_v<Params, GateBackward>;
template <typename Params>
constexpr bool kIsBackward =
    std::is_same_v<Params, AttentionBackward> || std::is_same_v<Params, GateBackward> ||
    std::is_same_v<Params, NsaCompressedBackward> || std::is_same_v<Params, NsaSelectedBackward>;
template <typename Params>
constexpr bool kIsWindow = std::is_base_of_v<AttentionProblem, Params>;
template <typename Params>
constexpr bool kIsSelect = std::is_same_v<Params, NsaSelect>;
template <typename Params>
constexpr bool kIsSelected = std::is_base_of_v<NsaSelectedProblem, Params>;

inline bool isGate(const KernelCall& call) {
  return std::holds_alternative<GateForward>(call) || std::holds_alternative<GateBackward>(call);
}

}  // namespace gatedfwa
