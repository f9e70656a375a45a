// The head sizes and rules of one element type.
#pragma once

#include "nsa_backward.cuh"
#include "nsa_forward.cuh"
#include "nsa_select.cuh"

#define GATEDFWA_NSA_RULE(T, Rule)                                                                                    \
  template <>                                                                                                         \
  cudaError_t launchNsaForward<T, Rule>(const NsaArgs<T, Rule>& args, int head, size_t sharedLimit,                   \
                                        cudaStream_t stream) {                                                        \
    return head == 64 ? launchNsaForwardHead<T, 64>(args, sharedLimit, stream)                                        \
                      : launchNsaForwardHead<T, 128>(args, sharedLimit, stream);                                      \
  }                                                                                                                   \
  template <>                                                                                                         \
  cudaError_t launchNsaDq<T, Rule>(const NsaArgs<T, Rule>& args, int head, size_t sharedLimit, cudaStream_t stream) { \
    return head == 64 ? launchNsaDqHead<T, 64>(args, sharedLimit, stream)                                             \
                      : launchNsaDqHead<T, 128>(args, sharedLimit, stream);                                           \
  }                                                                                                                   \
  template <>                                                                                                         \
  cudaError_t launchNsaDkDv<T, Rule>(const NsaArgs<T, Rule>& args, int head, cudaStream_t stream) {                   \
    return head == 64 ? launchNsaDkDvHead<T, 64>(args, stream) : launchNsaDkDvHead<T, 128>(args, stream);             \
  }

#define GATEDFWA_NSA_INSTANCES(T)                                                                                   \
  GATEDFWA_NSA_RULE(T, CompressedRule)                                                                              \
  GATEDFWA_NSA_RULE(T, SelectedRule)                                                                                \
  template <>                                                                                                       \
  cudaError_t launchNsaSelect<T>(const NsaSelectArgs<T>& args, int head, size_t sharedLimit, cudaStream_t stream) { \
    return head == 64 ? launchNsaSelectHead<T, 64>(args, sharedLimit, stream)                                       \
                      : launchNsaSelectHead<T, 128>(args, sharedLimit, stream);                                     \
  }
