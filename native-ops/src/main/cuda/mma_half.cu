// Instances of the tensor-core kernels.
#include "mma_instances.cuh"

namespace gatedfwa::cuda {
GATEDFWA_MMA_INSTANCES(Half, Mma16<__half>)
}  // namespace gatedfwa::cuda
