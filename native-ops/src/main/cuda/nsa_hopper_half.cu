// Instances of the Hopper kernels of native sparse attention.
#include "nsa_backward_hopper.cuh"

namespace gatedfwa::cuda {
GATEDFWA_NSA_HOPPER_INSTANCES(__half)
}  // namespace gatedfwa::cuda
