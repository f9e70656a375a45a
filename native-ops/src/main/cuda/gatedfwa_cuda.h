// The CUDA kernels' door. Operands are the plain structs of kernel/params.h whose pointers address device memory.
//
// Nothing here allocates, synchronises, prints or throws: scratch memory comes from the caller (its size from
// *Workspace), every launch goes to the caller's stream, and what went wrong comes back as a Result. Arguments must
// have been validated (shapes, window >= 1, H a multiple of Hkv); what a kernel cannot do is refused by selectKernel.
//
// Same inputs, same bits: no kernel adds floats atomically or in an order that depends on scheduling.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernel/nsa_params.h"
#include "kernel/params.h"

namespace gatedfwa::cuda {

enum class Status {
  Ok,
  Unsupported,        ///< selectKernel says why
  WorkspaceTooSmall,  ///< fewer bytes than *Workspace asked for; nothing was launched
  CudaError           ///< `cuda` says which; outputs are undefined
};

struct Result {
  Status status = Status::Ok;
  cudaError_t cuda = cudaSuccess;
  explicit operator bool() const { return status == Status::Ok; }
};

/// What the selector needs to know of a device.
struct Device {
  int ordinal = 0;
  int major = 0, minor = 0;  ///< compute capability
  int multiprocessors = 0;
  size_t sharedMemoryPerBlock = 0;         ///< with opt-in, bytes
  int64_t storedBytes = int64_t(4) << 30;  ///< of a backward's workspace at most, for dS (Hopper, head size 128)

  /// For callers that may use `memory` bytes of the device: a sixteenth of them at most for dS.
  void limitMemory(int64_t memory) {
    if (storedBytes > memory / 16) storedBytes = memory / 16;
  }
};

/// Reads the properties of device `ordinal`, and leaves storedBytes as it is; CudaError if there is none.
Result queryDevice(int ordinal, Device* device);

/// How FLOAT is multiplied. Strict: three TF32 products of split operands, error as plain float32's. Tf32: one product,
/// 10-bit mantissas. Other types ignore it.
enum class FloatMode { Strict, Tf32 };

enum class Kernel {
  None,     ///< refused
  Plain,    ///< no tensor cores: DOUBLE, sm_75, scales that are not positive
  MmaSync,  ///< mma.sync tensor-core tiles, sm_80 and newer
  Hopper,   ///< wgmma and TMA, sm_90: HALF and BFLOAT16 with D = Dv = 64 or 128
  Decode    ///< few queries: splits the keys, forward only
};

/// Which kernel runs and why; `reason` is a string literal.
struct Selection {
  Kernel kernel;
  const char* reason;
};

/// The one rule; workspace sizes and launches ask it too. It believes `device`: one of a lower compute capability gets
/// the kernel of that one.
Selection selectKernel(const AttentionProblem& problem, const Device& device, FloatMode mode, bool backward);

size_t attentionForwardWorkspace(const AttentionForward& params, const Device& device, FloatMode mode);
size_t attentionBackwardWorkspace(const AttentionBackward& params, const Device& device, FloatMode mode);

Result attentionForward(const AttentionForward& params, const Device& device, FloatMode mode, void* workspace,
                        size_t workspaceBytes, cudaStream_t stream);
Result attentionBackward(const AttentionBackward& params, const Device& device, FloatMode mode, void* workspace,
                         size_t workspaceBytes, cudaStream_t stream);

/// Bytes of the decay sums of [B, M, H] decays (see gateForward).
size_t decaySumsBytes(int64_t batch, int64_t length, int64_t heads, ElementType type);

/// alpha = softplus(-beta h) / (beta + eps). If `sums` is not null the same pass also leaves the tile-relative sums of
/// alpha there (decaySumsBytes, 16-byte aligned); attentionForwardWithSums then reads them instead of alpha.
Result gateForward(const GateForward& params, void* sums, cudaStream_t stream);
Result gateBackward(const GateBackward& params, cudaStream_t stream);

/// As attentionForward / attentionBackward; `sums` were left by gateForward for this very alpha.
Result attentionForwardWithSums(const AttentionForward& params, const void* sums, const Device& device, FloatMode mode,
                                void* workspace, size_t workspaceBytes, cudaStream_t stream);
Result attentionBackwardWithSums(const AttentionBackward& params, const void* sums, const Device& device,
                                 FloatMode mode, void* workspace, size_t workspaceBytes, cudaStream_t stream);

/// Native sparse attention (kernel/nsa_params.h). FLOAT is multiplied in float32, without tensor cores. Rows of
/// indices that are not ascending numbers below S and then -1s give undefined results; the kernels end all the same and
/// stay in bounds.
Selection selectNsaKernel(const NsaCompressedProblem& problem, const Device& device, bool backward);
Selection selectNsaKernel(const NsaSelectedProblem& problem, const Device& device, bool backward);
Selection selectNsaKernel(const NsaSelect& problem, const Device& device);

size_t nsaForwardWorkspace(const NsaCompressedForward& params, const Device& device);
size_t nsaForwardWorkspace(const NsaSelectedForward& params, const Device& device);
size_t nsaBackwardWorkspace(const NsaCompressedBackward& params, const Device& device);
size_t nsaBackwardWorkspace(const NsaSelectedBackward& params, const Device& device);
size_t nsaSelectWorkspace(const NsaSelect& params, const Device& device);

Result nsaForward(const NsaCompressedForward& params, const Device& device, void* workspace, size_t workspaceBytes,
                  cudaStream_t stream);
Result nsaForward(const NsaSelectedForward& params, const Device& device, void* workspace, size_t workspaceBytes,
                  cudaStream_t stream);
Result nsaBackward(const NsaCompressedBackward& params, const Device& device, void* workspace, size_t workspaceBytes,
                   cudaStream_t stream);
Result nsaBackward(const NsaSelectedBackward& params, const Device& device, void* workspace, size_t workspaceBytes,
                   cudaStream_t stream);
Result nsaSelect(const NsaSelect& params, const Device& device, void* workspace, size_t workspaceBytes,
                 cudaStream_t stream);

}  // namespace gatedfwa::cuda
