#define GATEDFWA_INSTRUCTION_SET avx512
#define GATEDFWA_VECTOR_BYTES 64
#define GATEDFWA_REGISTER_ROWS 8
#include "cpu/instruction_set.inl"

namespace gatedfwa::cpu {
const AttentionKernels& avx512Kernels() { return avx512::kKernels; }
}  // namespace gatedfwa::cpu
