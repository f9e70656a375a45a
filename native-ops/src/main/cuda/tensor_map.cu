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

/// sizes and box: `rank` of them; strides: of all dimensions but the first, in bytes.
cudaError_t encode(CUtensorMap* map, CUtensorMapDataType type, int rank, const void* data, const cuuint64_t* sizes,
                   const cuuint64_t* strides, const cuuint32_t* box) {
  const auto encodeTiled = encoder();
  if (!encodeTiled) return cudaErrorNotSupported;
  const cuuint32_t steps[] = {1, 1, 1, 1, 1};
  const CUresult r =
      encodeTiled(map, type, rank, const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                  CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return r == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}
/// The stride of a single entry is never used.
cuuint64_t strideBytes(int64_t size, int64_t stride, int64_t width) {
  return static_cast<cuuint64_t>(2 * (size == 1 ? width : stride));
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
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(width), static_cast<cuuint64_t>(length),
                              static_cast<cuuint64_t>(heads), static_cast<cuuint64_t>(batch)};
  const cuuint64_t strides[] = {strideBytes(length, rowStride, width), strideBytes(heads, headStride, width),
                                strideBytes(batch, batchStride, width)};
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(boxRows), static_cast<cuuint32_t>(boxHeads), 1};
  return encode(map, type, 4, data, sizes, strides, box);
}

cudaError_t encodeWholeRowsMap(CUtensorMap* map, CUtensorMapDataType type, const void* data, int64_t batch,
                               int64_t length, int64_t heads, int64_t width, int64_t batchStride, int64_t rowStride,
                               int64_t headStride) {
  const cuuint64_t sizes[] = {64, static_cast<cuuint64_t>(length), static_cast<cuuint64_t>(width / 64),
                              static_cast<cuuint64_t>(heads), static_cast<cuuint64_t>(batch)};
  const cuuint64_t strides[] = {strideBytes(length, rowStride, width), 128, strideBytes(heads, headStride, width),
                                strideBytes(batch, batchStride, width)};
  const cuuint32_t box[] = {64, kSumTile, static_cast<cuuint32_t>(width / 64), 1, 1};
  return encode(map, type, 5, data, sizes, strides, box);
}

}  // namespace gatedfwa::cuda
