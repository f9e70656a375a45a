// Instances of the tensor-core kernels.
#include "mma_instances.cuh"

namespace gatedfwa::cuda {
GATEDFWA_MMA_INSTANCES(Float32Strict, MmaTf32<true>)
}  // namespace gatedfwa::cuda
