// The head sizes and rules of one element type.
#pragma once

#include "nsa_backward_hopper.cuh"
#include "nsa_forward.cuh"

#define GATEDFWA_NSA_HOPPER_RULE(T, Rule)                                                                             \
  template <>                                                                                                         \
  cudaError_t launchNsaForwardPairs<T, Rule>(const NsaArgs<T, Rule>& args, int head, size_t sharedLimit,              \
                                             cudaStream_t stream) {                                                   \
    return head == 64 ? launchNsaForwardHead<T, 64, Rule, true>(args, sharedLimit, stream)                            \
                      : launchNsaForwardHead<T, 128, Rule, true>(args, sharedLimit, stream);                          \
  }                                                                                                                   \
  template <>                                                                                                         \
  cudaError_t launchNsaDqPairs<T, Rule>(const NsaArgs<T, Rule>& args, int head, size_t sharedLimit,                   \
                                        cudaStream_t stream) {                                                        \
    return head == 64 ? launchNsaDqHead<T, 64, Rule, true>(args, sharedLimit, stream)                                 \
                      : launchNsaDqHead<T, 128, Rule, true>(args, sharedLimit, stream);                               \
  }                                                                                                                   \
  template <>                                                                                                         \
  cudaError_t launchNsaDkDvHopper<T, Rule>(const NsaArgs<T, Rule>& args, int head, cudaStream_t stream) {             \
    return head == 64 ? launchNsaDkDvHopperHead<T, 64>(args, stream) : launchNsaDkDvHopperHead<T, 128>(args, stream); \
  }
#define GATEDFWA_NSA_HOPPER_INSTANCES(T)      \
  GATEDFWA_NSA_HOPPER_RULE(T, CompressedRule) \
  GATEDFWA_NSA_HOPPER_RULE(T, SelectedRule)
