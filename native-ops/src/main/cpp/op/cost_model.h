// Is a call faster on the device, its copies included? Rates are measured once, on this machine.
#pragma once

#include "cpu/cpu_kernels.h"
#include "kernel/accelerator.h"
#include "op/work.h"

namespace gatedfwa {

struct CostModel {
  struct Rates {
    double forward = 0, backward = 0;  ///< FLOP/s of Work::flops; 0: cannot run it
  };
  Rates cpu[kOpKinds][4], device[kOpKinds][4];  ///< by ElementType: Float32, Float64, Float16, BFloat16
  double deviceSeconds = 0;                     ///< of a call that moves and computes next to nothing
  double uploadRate = 0;                        ///< bytes/s, through the staging buffers
  double downloadRate = 0;                      ///< likewise
  double comparisonRate = 0;                    ///< bytes/s of resident operands

  double onCpu(const Work& work) const;
  double onDevice(const Work& work, const Traffic& traffic) const;
};

/// Runs a small problem of each op but the gate and of each type on both, a second or two on 16 cores. Not Done: what
/// went wrong on the device.
Outcome measure(Accelerator& device, const Executor& executor, cpu::InstructionSet set, CostModel* model);

}  // namespace gatedfwa
