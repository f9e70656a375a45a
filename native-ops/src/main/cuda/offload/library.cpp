// The only symbol that libgatedfwa_cuda.so exports: see kernel/accelerator.h.
#include "offload/cuda_accelerator.h"

extern "C" __attribute__((visibility("default"))) gatedfwa::Accelerator* gatedfwa_open_accelerator(
    int version, const gatedfwa::AcceleratorOptions& options, std::string& reason) {
  if (version != gatedfwa::kAcceleratorVersion) {
    reason = "the CUDA library is of another build than the plug-in";
    return nullptr;
  }
  return gatedfwa::cuda::openAccelerator(options, reason);
}
