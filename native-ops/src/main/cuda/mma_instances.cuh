// The padded head sizes of one element type.
#pragma once

#include "backward_mma.cuh"
#include "forward_mma.cuh"

#define GATEDFWA_MMA_INSTANCES(kind, Policy)                                                                        \
  template <>                                                                                                       \
  cudaError_t launchForwardMma<MmaKind::kind>(const AttentionArgs<typename MmaElement<MmaKind::kind>::type>& args,  \
                                              int head, cudaStream_t stream) {                                      \
    return head == 64    ? launchForwardMmaHead<Policy, 64>(args, stream)                                           \
           : head == 128 ? launchForwardMmaHead<Policy, 128>(args, stream)                                          \
                         : launchForwardMmaHead<Policy, 256>(args, stream);                                         \
  }                                                                                                                 \
  template <>                                                                                                       \
  cudaError_t launchBackwardMma<MmaKind::kind>(const AttentionArgs<typename MmaElement<MmaKind::kind>::type>& args, \
                                               int head, cudaStream_t stream) {                                     \
    return head == 64    ? launchBackwardMmaHead<Policy, 64>(args, stream)                                          \
           : head == 128 ? launchBackwardMmaHead<Policy, 128>(args, stream)                                         \
                         : launchBackwardMmaHead<Policy, 256>(args, stream);                                        \
  }
