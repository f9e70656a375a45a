// Instances of the Hopper kernels.
#include "hopper_instances.cuh"

namespace gatedfwa::cuda {
GATEDFWA_HOPPER_INSTANCES(__half)
}  // namespace gatedfwa::cuda
