// gatedfwa_cuda.h by the same three names for every op: which kernel takes a call, its scratch memory, its launch.
#pragma once

#include "gatedfwa_cuda.h"
#include "kernel/kernel_call.h"

namespace gatedfwa::cuda {

template <typename Params>
Selection select(const Params& p, const Device& device, FloatMode mode) {
  if constexpr (kIsGate<Params>)
    return !kIsBackward<Params> && p.batch > 65535  // the grid's third dimension
               ? Selection{Kernel::None, "the gate of more than 65535 batch entries"}
               : Selection{Kernel::Plain, "element by element"};
  else if constexpr (kIsWindow<Params>)
    return selectKernel(p, device, mode, kIsBackward<Params>);
  else if constexpr (kIsSelect<Params>)
    return selectNsaKernel(p, device);
  else
    return selectNsaKernel(p, device, kIsBackward<Params>);
}

inline size_t workspace(const AttentionForward& p, const Device& device, FloatMode mode) {
  return attentionForwardWorkspace(p, device, mode);
}
inline size_t workspace(const AttentionBackward& p, const Device& device, FloatMode mode) {
  return attentionBackwardWorkspace(p, device, mode);
}
template <typename Gate>
std::enable_if_t<kIsGate<Gate>, size_t> workspace(const Gate&, const Device&, FloatMode) {
  return 0;
}
template <typename Problem>
size_t workspace(const NsaForward<Problem>& p, const Device& device, FloatMode) {
  return nsaForwardWorkspace(p, device);
}
template <typename Problem>
size_t workspace(const NsaBackward<Problem>& p, const Device& device, FloatMode) {
  return nsaBackwardWorkspace(p, device);
}
inline size_t workspace(const NsaSelect& p, const Device& device, FloatMode) { return nsaSelectWorkspace(p, device); }

inline Result launch(const AttentionForward& p, const Device& device, FloatMode mode, void* memory, size_t bytes,
                     cudaStream_t stream) {
  return attentionForward(p, device, mode, memory, bytes, stream);
}
inline Result launch(const AttentionBackward& p, const Device& device, FloatMode mode, void* memory, size_t bytes,
                     cudaStream_t stream) {
  return attentionBackward(p, device, mode, memory, bytes, stream);
}
inline Result launch(const GateForward& p, const Device&, FloatMode, void*, size_t, cudaStream_t stream) {
  return gateForward(p, nullptr, stream);
}
inline Result launch(const GateBackward& p, const Device&, FloatMode, void*, size_t, cudaStream_t stream) {
  return gateBackward(p, stream);
}
template <typename Problem>
Result launch(const NsaForward<Problem>& p, const Device& device, FloatMode, void* memory, size_t bytes,
              cudaStream_t stream) {
  return nsaForward(p, device, memory, bytes, stream);
}
template <typename Problem>
Result launch(const NsaBackward<Problem>& p, const Device& device, FloatMode, void* memory, size_t bytes,
              cudaStream_t stream) {
  return nsaBackward(p, device, memory, bytes, stream);
}
inline Result launch(const NsaSelect& p, const Device& device, FloatMode, void* memory, size_t bytes,
                     cudaStream_t stream) {
  return nsaSelect(p, device, memory, bytes, stream);
}

}  // namespace gatedfwa::cuda
