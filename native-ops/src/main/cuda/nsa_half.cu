// Instances of the kernels of native sparse attention.
#include "nsa_instances.cuh"

namespace gatedfwa::cuda {
GATEDFWA_NSA_INSTANCES(__half)
}  // namespace gatedfwa::cuda
