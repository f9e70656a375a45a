// Instances of the tensor-core kernels.
#include "mma_instances.cuh"

namespace gatedfwa::cuda {
GATEDFWA_MMA_INSTANCES(BFloat16, Mma16<__nv_bfloat16>)
}  // namespace gatedfwa::cuda
