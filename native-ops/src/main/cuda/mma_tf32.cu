// Instances of the tensor-core kernels.
#include "mma_instances.cuh"

namespace gatedfwa::cuda {
GATEDFWA_MMA_INSTANCES(Float32Tf32, MmaTf32<false>)
}  // namespace gatedfwa::cuda
