// Instances of the Hopper kernels of native sparse attention.
#include "nsa_backward_hopper.cuh"

namespace gatedfwa::cuda {
GATEDFWA_NSA_HOPPER_INSTANCES(__nv_bfloat16)
}  // namespace gatedfwa::cuda
