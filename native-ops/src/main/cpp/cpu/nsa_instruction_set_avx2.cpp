#define GATEDFWA_INSTRUCTION_SET avx2
#define GATEDFWA_VECTOR_BYTES 32
#define GATEDFWA_REGISTER_ROWS 6
#include "cpu/nsa_instruction_set.inl"

namespace gatedfwa::cpu {
const NsaKernels& avx2NsaKernels() { return avx2::kNsaKernels; }
}  // namespace gatedfwa::cpu
