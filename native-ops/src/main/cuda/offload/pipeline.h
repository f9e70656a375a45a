// One call on the device: upload, kernels, download, in pieces that overlap.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "gatedfwa_cuda.h"
#include "kernel/accelerator.h"
#include "offload/device_memory.h"
#include "offload/host_rows.h"
#include "offload/lane.h"

namespace gatedfwa::cuda {

/// An array of the call. Its planes belong to the call's units (batch entry x key/value head); an operand with
/// planesPerUnit = 0 is needed whole by every piece and, as an output, complete after the last one.
struct Operand {
  HostRows host;
  bool output = false;
  int64_t planesPerUnit = 0;
  std::unique_ptr<DeviceArray> array;

  int64_t blockRows() const;
  int64_t blocks() const;
};

/// Whole batch entries [batch0, batch1), or the units [unit0, unit1) of a single one.
struct PieceRange {
  int64_t batch0, batch1, unit0, unit1;
};

struct Job {
  std::vector<Operand> operands;
  int64_t batch = 1, unitsPerBatch = 1;
  bool leastMemory = false;  ///< memory has run out twice: `workspace` asks for no more than it must
  /// Scratch memory for a piece, in bytes; then its kernels, on the stream. Operands have their arrays by then.
  std::function<int64_t(const PieceRange&)> workspace;
  std::function<Result(const PieceRange&, void* workspace, int64_t bytes, cudaStream_t)> launch;
};

/// Batch entries or units of a call, about 8 MB of operands and results each, at most 16 pieces.
std::vector<PieceRange> splitIntoPieces(const Job& job);

/// Runs the job: packs and uploads each block that `array` does not hold, launches, downloads and unpacks, the three
/// for different pieces at once. Operands without an array get one. On return nothing of the job runs any more.
/// Adds to `usage`. OutOfMemory leaves the outputs as they were.
Outcome runJob(Job& job, DeviceMemory& memory, Lane& lane, int ordinal, const Executor& executor, Usage* usage);

}  // namespace gatedfwa::cuda
