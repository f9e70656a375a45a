#define GATEDFWA_INSTRUCTION_SET plain
#define GATEDFWA_VECTOR_BYTES 16
#define GATEDFWA_REGISTER_ROWS 4
#include "cpu/nsa_instruction_set.inl"

namespace gatedfwa::cpu {
const NsaKernels& plainNsaKernels() { return plain::kNsaKernels; }
}  // namespace gatedfwa::cpu
