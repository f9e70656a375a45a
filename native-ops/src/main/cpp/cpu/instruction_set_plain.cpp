#define GATEDFWA_INSTRUCTION_SET plain
#define GATEDFWA_VECTOR_BYTES 16
#define GATEDFWA_REGISTER_ROWS 4
#include "cpu/instruction_set.inl"

namespace gatedfwa::cpu {
const AttentionKernels& plainKernels() { return plain::kKernels; }
}  // namespace gatedfwa::cpu
