#define GATEDFWA_INSTRUCTION_SET avx2
#define GATEDFWA_VECTOR_BYTES 32
#define GATEDFWA_REGISTER_ROWS 6
#include "cpu/instruction_set.inl"

namespace gatedfwa::cpu {
const AttentionKernels& avx2Kernels() { return avx2::kKernels; }
}  // namespace gatedfwa::cpu
