// Device memory of the offloaded calls: a bounded pool, and what stays there between calls.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <vector>

#include "offload/host_rows.h"

namespace gatedfwa::cuda {

/// Stream-ordered allocations of one device, counted against a limit. From any thread.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(const DeviceMemory&) = delete;

  /// `keep` bytes stay with the process when nothing uses them; the rest goes back to the device.
  cudaError_t open(int ordinal, int64_t limit, int64_t keep);

  /// For use on `stream`, and on others that wait for it. cudaErrorMemoryAllocation: over the limit, or none left.
  cudaError_t allocate(int64_t bytes, cudaStream_t stream, void** address);
  /// Nothing may use the memory any more.
  void free(void* address, int64_t bytes);
  /// Gives back to the device what is not in use.
  void trim();

 private:
  std::mutex lock_;
  cudaMemPool_t pool_ = nullptr;
  cudaStream_t stream_ = nullptr;
  int64_t limit_ = 0, used_ = 0;
};

/// A dense copy on the device of an array of the host, with the fingerprint of each block of it that is there.
class DeviceArray {
 public:
  DeviceArray(DeviceMemory& memory, void* address, int64_t bytes, int64_t blocks)
      : memory_(memory), address_(address), bytes_(bytes), prints(static_cast<size_t>(blocks)), known(prints.size()) {}
  ~DeviceArray() { memory_.free(address_, bytes_); }
  DeviceArray(const DeviceArray&) = delete;

  char* address() const { return static_cast<char*>(address_); }
  int64_t bytes() const { return bytes_; }

 private:
  DeviceMemory& memory_;
  void* address_;
  int64_t bytes_;

 public:
  std::vector<uint64_t> prints;
  std::vector<char> known;  ///< whether the block's print is set; bytes, for threads set them side by side
};

/// Arrays of finished calls, found again by the host array that they copy: what a forward call leaves for its backward
/// call. Whoever takes one owns it, compares the fingerprints and uploads what has changed meanwhile.
class ResidentArrays {
 public:
  void open(int64_t limit) { limit_ = limit; }
  std::unique_ptr<DeviceArray> take(const HostRows& host);
  bool has(const HostRows& host);
  /// The least recently put ones make room; an array larger than the limit is dropped.
  void put(const HostRows& host, std::unique_ptr<DeviceArray> array);
  void clear();

 private:
  struct Entry {
    HostRows host;
    std::unique_ptr<DeviceArray> array;
  };
  std::list<Entry>::iterator find(const HostRows& host);
  void drop(std::list<Entry>::iterator entry);

  std::mutex lock_;
  std::list<Entry> entries_;  ///< the latest first
  int64_t limit_ = 0, bytes_ = 0;
};

}  // namespace gatedfwa::cuda
