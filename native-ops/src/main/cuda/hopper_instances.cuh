// The head sizes of one element type.
#pragma once

#include "backward_hopper.cuh"
#include "backward_one_pass_hopper.cuh"
#include "backward_stored_hopper.cuh"
#include "forward_hopper.cuh"

#define GATEDFWA_HOPPER_INSTANCES(T)                                                               \
  template <>                                                                                      \
  cudaError_t launchForwardHopper<T>(const AttentionArgs<T>& args, int head, int multiprocessors,  \
                                     cudaStream_t stream) {                                        \
    return head == 64 ? launchForwardHopperHead<T, 64>(args, multiprocessors, stream)              \
                      : launchForwardHopperHead<T, 128>(args, multiprocessors, stream);            \
  }                                                                                                \
  template <>                                                                                      \
  cudaError_t launchBackwardHopper<T>(const AttentionArgs<T>& args, int head, int multiprocessors, \
                                      cudaStream_t stream) {                                       \
    return head == 64         ? launchBackwardOnePass<T>(args, multiprocessors, stream)            \
           : args.storedPairs ? launchBackwardStored<T>(args, multiprocessors, stream)             \
                              : launchBackwardTwoPasses<T, 128>(args, multiprocessors, stream);    \
  }
