// Instances of the kernels of native sparse attention.
#include "nsa_instances.cuh"

namespace gatedfwa::cuda {
GATEDFWA_NSA_INSTANCES(__nv_bfloat16)
}  // namespace gatedfwa::cuda
