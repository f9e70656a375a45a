// One call of the door: its workspace, its operands in the form that the tensor-core kernels take, its launches.
#pragma once

#include "internal.h"
#include "tensor_map.h"

namespace gatedfwa::cuda {

constexpr int64_t kMostHead = 256;
constexpr int64_t kMaxLength = int64_t(1) << 30;  ///< positions are 32-bit inside
constexpr int64_t kMaxGrid = (int64_t(1) << 31) - 1;
constexpr int64_t kMostBatch = 65535;  ///< where batch entries are the grid's second or third dimension

inline int64_t elementBytes(ElementType type) {
  switch (type) {
    case ElementType::Float64:
      return 8;
    case ElementType::Float32:
      return 4;
    case ElementType::Float16:
    case ElementType::BFloat16:
      return 2;
    case ElementType::Bool:
      return 1;
  }
  return 1;
}

/// One call: the pieces of its workspace are taken in order, and unless only counted, filled and used on the stream.
struct Call {
  Arena arena;
  bool run;
  cudaStream_t stream;
  cudaError_t error = cudaSuccess;

  template <typename Launch>
  void launch(Launch f) {
    if (run && error == cudaSuccess) error = f();
  }
};

/// The operand itself where the kernel can address its rows, else a packed copy.
template <typename T>
Rows<T> rows(Call& call, Kernel kernel, const Input& x, int64_t batch, int64_t length, int64_t heads, int64_t width) {
  if (kernel == Kernel::Hopper ? tensorMapLegal(x, batch, length, heads, width, sizeof(T))
                               : rowsAligned(x, width, sizeof(T)))
    return {static_cast<const T*>(x.data), x.strides[0], x.strides[1], x.strides[2], static_cast<int>(width)};
  const int64_t perChunk = 16 / sizeof(T), padded = divUp(width, perChunk) * perChunk;
  if (batch * length * heads == 0) return {nullptr, 0, 0, 0, static_cast<int>(padded)};
  T* const packed = call.arena.take<T>(batch * length * heads * padded);
  call.launch([&] { return launchPack<T>(x, batch, length, heads, width, padded, packed, call.stream); });
  return {packed, length * heads * padded, heads * padded, padded, static_cast<int>(padded)};
}

template <typename T>
OutRows<T> outRows(const Output& x, int64_t width) {
  Input in;
  in.data = x.data;
  std::copy(x.strides, x.strides + 4, in.strides);
  return {
      static_cast<T*>(x.data),          x.strides[0], x.strides[1], x.strides[2], x.strides[3], static_cast<int>(width),
      rowsAligned(in, width, sizeof(T))};
}

template <typename Body>
Result execute(Selection selection, void* workspace, size_t bytes, cudaStream_t stream, Body body) {
  if (selection.kernel == Kernel::None) return {Status::Unsupported, cudaSuccess};
  Call sizing{Arena(nullptr), false, stream};
  body(sizing, selection.kernel);
  if (sizing.arena.used() > bytes || (sizing.arena.used() > 0 && !workspace))
    return {Status::WorkspaceTooSmall, cudaSuccess};
  Call call{Arena(workspace), true, stream};
  body(call, selection.kernel);
  return {call.error == cudaSuccess ? Status::Ok : Status::CudaError, call.error};
}

}  // namespace gatedfwa::cuda
