// How the ops run on the CPU: on ND4J's threads, with an instruction set chosen once.
#pragma once

#include <string>

#include "cpu/cpu_kernels.h"

namespace gatedfwa {

/// As many workers as ND4J is set to use, from its own pool.
Executor nd4jExecutor();

cpu::InstructionSet instructionSet();

/// "auto" is the best that the processor has; else "plain", "avx2" or "avx512". Returns the name of what is then in
/// use. Throws std::invalid_argument for another name and for a set that the processor lacks.
std::string selectInstructionSet(const std::string& requested);

}  // namespace gatedfwa
