// Tensor maps: how the Hopper kernels' bulk copies (TMA) see an operand.
#pragma once

#include <cuda.h>

#include <type_traits>

#include "internal.h"

namespace gatedfwa::cuda {

/// Is the driver's encoder there? It is looked up at run time, so that nothing links to libcuda.
bool tensorMapsAvailable();

/// Can a tensor map address [batch, length, heads, width] rows with these strides? Beyond rowsAligned: strides of
/// dimensions longer than 1 are positive and below 2^40 bytes.
bool tensorMapLegal(const Input& x, int64_t batch, int64_t length, int64_t heads, int64_t width, int64_t elementBytes);

/// Boxes of boxHeads x boxRows x 64 elements of the 16-bit operand [batch, length, heads, width] (any strides that
/// tensorMapLegal takes), 128-byte swizzled; coordinates are {element, row, head, batch}. Rows out of range arrive as
/// zeros.
cudaError_t encodeTensorMap(CUtensorMap* map, CUtensorMapDataType type, const void* data, int64_t batch, int64_t length,
                            int64_t heads, int64_t width, int64_t batchStride, int64_t rowStride, int64_t headStride,
                            int boxRows = kSumTile, int boxHeads = 1);

/// Boxes of 64 rows of one head, whole (a multiple of 64 elements), panel after panel of 64 elements; coordinates are
/// {element of a panel, row, panel, head, batch}.
cudaError_t encodeWholeRowsMap(CUtensorMap* map, CUtensorMapDataType type, const void* data, int64_t batch,
                               int64_t length, int64_t heads, int64_t width, int64_t batchStride, int64_t rowStride,
                               int64_t headStride);

template <typename T>
constexpr CUtensorMapDataType tensorMapType() {
  return std::is_same<T, __half>::value ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
}

template <typename T>
cudaError_t encodeRows(CUtensorMap* map, const Rows<T>& x, int64_t batch, int64_t length, int64_t heads) {
  return encodeTensorMap(map, tensorMapType<T>(), x.data, batch, length, heads, x.width, x.batch, x.row, x.head);
}

template <typename T>
cudaError_t encodeWholeRows(CUtensorMap* map, const Rows<T>& x, int64_t batch, int64_t length, int64_t heads) {
  return encodeWholeRowsMap(map, tensorMapType<T>(), x.data, batch, length, heads, x.width, x.batch, x.row, x.head);
}

}  // namespace gatedfwa::cuda
