// Tensor maps are made on the host by the driver, whose encoder is found at run time.
#include <cudaTypedefs.h>

#include "tensor_map.h"

namespace gatedfwa::cuda {
namespace {

PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  static const auto found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
    const cudaError_t e =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(
        e == cudaSuccess && result == cudaDriverEntryPointSuccess ? function : nullptr);
  }();
  return found;
}

}  // namespace

bool tensorMapsAvailable() { return encoder() != nullptr; }

bool tensorMapLegal(const Input& x, int64_t batch, int64_t length, int64_t heads, int64_t width, int64_t elementBytes) {
  const int64_t limit = (int64_t(1) << 40) / elementBytes;
  const auto legal = [&](int64_t size, int64_t stride) { return size == 1 || (stride > 0 && stride < limit); };
  return rowsAligned(x, width, elementBytes) && legal(batch, x.strides[0]) && legal(length, x.strides[1]) &&
         legal(heads, x.strides[2]);
}

cudaError_t encodeTensorMap(CUtensorMap* map, CUtensorMapDataType type, const void* data, int64_t batch, int64_t length,
                            int64_t heads, int64_t width, int64_t batchStride, int64_t rowStride, int64_t headStride,
                            int boxRows, int boxHeads) {
  const auto encode = encoder();
  if (!encode) return cudaErrorNotSupported;
  const auto bytes = [&](int64_t size, int64_t stride) {
    return static_cast<cuuint64_t>(2 * (size == 1 ? width : stride));  // the stride of a single entry is never used
  };
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(width), static_cast<cuuint64_t>(length),
                              static_cast<cuuint64_t>(heads), static_cast<cuuint64_t>(batch)};
  const cuuint64_t strides[] = {bytes(length, rowStride), bytes(heads, headStride), bytes(batch, batchStride)};
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(boxRows), static_cast<cuuint32_t>(boxHeads), 1},
                   steps[] = {1, 1, 1, 1};
  const CUresult r =
      encode(map, type, 4, const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return r == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace gatedfwa::cuda
