// Host arrays as seen by the copies: rows of elements with any strides, packed without gaps for the device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernel/params.h"

namespace gatedfwa::cuda {

/// An array [outer, rows, planes, width] of the host, of which the device holds the dense copy [outer, plane, row,
/// width]: head-major, so that some heads are a contiguous piece. Strides count elements.
struct HostRows {
  char* data = nullptr;
  int64_t elementBytes = 0;
  int64_t outer = 0, planes = 0, rows = 0, width = 0;
  int64_t outerStride = 0, planeStride = 0, rowStride = 0, elementStride = 0;

  int64_t rowBytes() const { return width * elementBytes; }
  int64_t totalRows() const { return outer * planes * rows; }
  int64_t bytes() const { return totalRows() * rowBytes(); }
  /// Whether the rows of a plane follow each other without gaps.
  bool adjoining() const { return rowStride == width && (elementStride == 1 || width == 1); }
  bool operator==(const HostRows& other) const;
};

/// Rows [first, first + count) in the order of the dense copy.
void pack(const HostRows& source, int64_t first, int64_t count, char* target);
void unpack(const char* source, const HostRows& target, int64_t first, int64_t count);

/// 64 bits that two different contents of one length share by chance only, about once in 2^60 pairs. Not a defence
/// against contents made to collide.
uint64_t fingerprint(const char* data, int64_t bytes);

}  // namespace gatedfwa::cuda
