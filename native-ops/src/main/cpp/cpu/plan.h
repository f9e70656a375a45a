// How an instruction set's kernels hand their work to the dispatcher. Plain data and function pointers only: the
// translation units that are compiled for one instruction set must not emit inline library code, for the linker could
// then pick that copy for every processor.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernel/nsa_params.h"
#include "kernel/params.h"

namespace gatedfwa::cpu {

/// Items of one phase are independent of each other; phases run one after the other.
struct Phase {
  int64_t items;
  void (*run)(const void* params, int64_t item, void* scratch);
};

struct Plan {
  static constexpr int kMaxPhases = 6;
  size_t scratchBytes = 0;    ///< of one worker, 64-byte aligned
  size_t workspaceBytes = 0;  ///< of the whole call, for what one phase leaves to the next; 64-byte aligned
  double flops = 0;           ///< of the whole plan, to choose how many workers pay
  int phaseCount = 0;
  Phase phases[kMaxPhases] = {};

  void add(int64_t items, void (*run)(const void*, int64_t, void*)) {
    if (items > 0) phases[phaseCount++] = {items, run};
  }
};

/// One per instruction set; see instruction_set_*.cpp.
struct AttentionKernels {
  Plan (*forward)(const AttentionForward&);
  Plan (*backward)(const AttentionBackward&);
};

const AttentionKernels& plainKernels();
const AttentionKernels& avx2Kernels();
const AttentionKernels& avx512Kernels();

/// One per instruction set; see nsa_instruction_set_*.cpp.
struct NsaKernels {
  Plan (*compressedForward)(const NsaCompressedForward&);
  Plan (*compressedBackward)(const NsaCompressedBackward&);
  Plan (*select)(const NsaSelect&);
  Plan (*selectedForward)(const NsaSelectedForward&);
  Plan (*selectedBackward)(const NsaSelectedBackward&);
};

const NsaKernels& plainNsaKernels();
const NsaKernels& avx2NsaKernels();
const NsaKernels& avx512NsaKernels();

}  // namespace gatedfwa::cpu
