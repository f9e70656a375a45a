#define GATEDFWA_INSTRUCTION_SET avx512
#define GATEDFWA_VECTOR_BYTES 64
#define GATEDFWA_REGISTER_ROWS 8
#include "cpu/nsa_instruction_set.inl"

namespace gatedfwa::cpu {
const NsaKernels& avx512NsaKernels() { return avx512::kNsaKernels; }
}  // namespace gatedfwa::cpu
