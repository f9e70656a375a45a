#include "offload/device_memory.h"

#include <algorithm>

namespace gatedfwa::cuda {

cudaError_t DeviceMemory::open(int ordinal, int64_t limit, int64_t keep) {
  limit_ = limit;
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = ordinal;
  cudaError_t e = cudaMemPoolCreate(&pool_, &properties);
  uint64_t threshold = static_cast<uint64_t>(keep);
  if (e == cudaSuccess) e = cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &threshold);
  if (e == cudaSuccess) e = cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking);
  return e;
}

cudaError_t DeviceMemory::allocate(int64_t bytes, cudaStream_t stream, void** address) {
  {
    const std::lock_guard<std::mutex> guard(lock_);
    if (used_ + bytes > limit_) return cudaErrorMemoryAllocation;
    used_ += bytes;
  }
  const cudaError_t e =
      cudaMallocFromPoolAsync(address, static_cast<size_t>(std::max<int64_t>(bytes, 1)), pool_, stream);
  if (e != cudaSuccess) {
    const std::lock_guard<std::mutex> guard(lock_);
    used_ -= bytes;
    if (e == cudaErrorMemoryAllocation) cudaGetLastError();  // not an error of the next launch
  }
  return e;
}

void DeviceMemory::free(void* address, int64_t bytes) {
  cudaFreeAsync(address, stream_);  // fails only after the device has: nothing is left to free then
  const std::lock_guard<std::mutex> guard(lock_);
  used_ -= bytes;
}

void DeviceMemory::trim() {
  cudaStreamSynchronize(stream_);
  cudaMemPoolTrimTo(pool_, 0);
}

std::list<ResidentArrays::Entry>::iterator ResidentArrays::find(const HostRows& host) {
  return std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) { return entry.host == host; });
}

void ResidentArrays::drop(std::list<Entry>::iterator entry) {
  bytes_ -= entry->array->bytes();
  entries_.erase(entry);
}

std::unique_ptr<DeviceArray> ResidentArrays::take(const HostRows& host) {
  const std::lock_guard<std::mutex> guard(lock_);
  const auto entry = find(host);
  if (entry == entries_.end()) return nullptr;
  std::unique_ptr<DeviceArray> array = std::move(entry->array);
  bytes_ -= array->bytes();
  entries_.erase(entry);
  return array;
}

bool ResidentArrays::has(const HostRows& host) {
  const std::lock_guard<std::mutex> guard(lock_);
  return find(host) != entries_.end();
}

void ResidentArrays::put(const HostRows& host, std::unique_ptr<DeviceArray> array) {
  const std::lock_guard<std::mutex> guard(lock_);
  const auto before = find(host);
  if (before != entries_.end()) drop(before);
  if (array->bytes() > limit_) return;
  bytes_ += array->bytes();
  entries_.push_front({host, std::move(array)});
  while (bytes_ > limit_) drop(std::prev(entries_.end()));
}

void ResidentArrays::clear() {
  const std::lock_guard<std::mutex> guard(lock_);
  entries_.clear();
  bytes_ = 0;
}

}  // namespace gatedfwa::cuda
