// Where the arrays of a call live and its kernels run: all that differs between ND4J's back ends. One implementation is
// linked into each plug-in: backend_cpu.cpp (nd4j-native), backend_cuda.cpp (nd4j-cuda).
#pragma once

#include <stdexcept>

#include "kernel/kernel_call.h"
#include "libnd4j/abi.h"

namespace gatedfwa {

/// A device could not do what was asked of it; the outputs are undefined.
class DeviceError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// For the time of one call of an op. `run` throws DeviceError or std::bad_alloc.
class Backend {
 public:
  explicit Backend(sd::graph::Context& context);
  ~Backend();
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  /// May an op read its arrays' elements?
  static const bool kArraysOnHost;

  /// Address of the array's first element where the kernels can use it.
  static void* data(sd::NDArray& array);

  void run(const KernelCall& call) const;

 private:
  [[maybe_unused]] sd::graph::Context& context_;  // the CPU needs none
};

}  // namespace gatedfwa
