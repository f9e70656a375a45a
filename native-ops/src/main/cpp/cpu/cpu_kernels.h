// The CPU kernels' door: what an op adapter calls.
#pragma once

#include "kernel/executor.h"
#include "kernel/kernel_call.h"

namespace gatedfwa::cpu {

enum class InstructionSet { Plain, Avx2, Avx512 };

/// The best set of this processor (CPUID and operating system support).
InstructionSet detectInstructionSet();

/// Arguments must have been validated. Throws std::bad_alloc before the first output is written when scratch memory,
/// O(workers * tile), is not to be had; throws nothing else. Same inputs give the same bits.
void attentionForward(const AttentionForward& params, const Executor& executor, InstructionSet set);
void attentionBackward(const AttentionBackward& params, const Executor& executor, InstructionSet set);
void gateForward(const GateForward& params, const Executor& executor, InstructionSet set);
void gateBackward(const GateBackward& params, const Executor& executor, InstructionSet set);
void nsaCompressedForward(const NsaCompressedForward& params, const Executor& executor, InstructionSet set);
void nsaCompressedBackward(const NsaCompressedBackward& params, const Executor& executor, InstructionSet set);
void nsaSelect(const NsaSelect& params, const Executor& executor, InstructionSet set);
void nsaSelectedForward(const NsaSelectedForward& params, const Executor& executor, InstructionSet set);
void nsaSelectedBackward(const NsaSelectedBackward& params, const Executor& executor, InstructionSet set);
/// Any of them.
void run(const KernelCall& call, const Executor& executor, InstructionSet set);

}  // namespace gatedfwa::cpu
