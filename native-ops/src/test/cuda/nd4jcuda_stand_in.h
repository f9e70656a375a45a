// Stands in for libnd4jcuda.so where a plug-in for it is tested without ND4J: the classes of libnd4j/abi.h that the
// plug-in calls, over plain CUDA. It has a CUDA runtime of its own, as libnd4jcuda.so has; streams and addresses cross
// between the two.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "libnd4j/abi.h"

namespace gatedfwa::stand_in {

/// The elements of arrays on host and device, and where the latest are.
class Buffer {
 public:
  enum Latest { Nowhere, OnHost, OnDevice, OnBoth };

  explicit Buffer(size_t bytes) : host_(bytes, '\xff') {}
  ~Buffer();
  Buffer(const Buffer&) = delete;

  Latest latest() const { return latest_; }
  size_t bytes() const { return host_.size(); }
  void* host() { return host_.data(); }
  /// Null until it is allocated; new memory holds 0xff.
  void* device() const { return device_; }
  void allocateDevice();
  void wroteHost() { latest_ = OnHost; }
  void wroteDevice() { latest_ = OnDevice; }
  /// Upload and download what is newer there; the latter waits for the thread's stream.
  void syncToDevice();
  void syncToHost();

 private:
  std::vector<char> host_;
  void* device_ = nullptr;
  Latest latest_ = Nowhere;
};

/// An array or a view; strides and offset count elements.
class Array : public sd::NDArray {
 public:
  using Sizes = std::vector<sd::LongType>;

  /// Dense, in c order, with elements of its own.
  Array(sd::DataType type, const Sizes& shape);
  Array(const Array& whole, const Sizes& shape, const Sizes& strides, sd::LongType offset);

  sd::DataType type() const { return type_; }
  const Sizes& shape() const { return shape_; }
  const Sizes& strides() const { return strides_; }
  sd::LongType offset() const { return offset_; }
  Buffer& buffer() const { return *buffer_; }
  bool empty() const;

 private:
  friend class sd::NDArray;
  sd::DataType type_;
  Sizes shape_, strides_;
  sd::LongType offset_ = 0;
  std::shared_ptr<Buffer> buffer_;
};

/// A call of an op.
class Context : public sd::graph::Context {
 public:
  std::vector<sd::NDArray*> inputs, outputs;
  std::vector<double> reals;
  std::vector<int> integers;
  std::vector<bool> booleans;
};

/// The shapes and types of what the op returns for these inputs.
std::vector<std::unique_ptr<Array>> allocateOutputs(sd::ops::DeclarableOp& op, Context& context);

/// As ND4J calls an op: execute, wait for the thread's stream, bring all arrays up to date on the device.
void exec(sd::ops::DeclarableOp& op, Context& context);

/// The op of that name; null if none is registered.
sd::ops::DeclarableOp* find(const std::string& name);

/// The calling thread's, made at its first call on a device; does not wait for the default stream.
cudaStream_t stream();

int devices();
/// For the calling thread.
void setDevice(int ordinal);

}  // namespace gatedfwa::stand_in
