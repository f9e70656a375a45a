// What one call at a time needs of a device besides memory: three streams, and pinned staging buffers for the workers
// that copy. Calls of several threads take a lane each.
#pragma once

#include <cuda_runtime_api.h>

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace gatedfwa::cuda {

constexpr int64_t kSlotBytes = 512 * 1024;  ///< of a staging buffer: what one copy moves

/// A pinned buffer of kSlotBytes and the event that the copy from or to it is over.
struct Slot {
  char* buffer = nullptr;
  cudaEvent_t done = nullptr;
};

class Lane {
 public:
  ~Lane();
  cudaError_t open();
  /// At least so many workers have their slots.
  cudaError_t reserveWorkers(int workers);
  /// At least so many pieces have their events.
  cudaError_t reservePieces(int pieces);

  struct Worker {
    Slot up[2], down[2];
  };
  struct Piece {
    cudaEvent_t uploaded = nullptr;
    cudaEvent_t start = nullptr, end = nullptr;  ///< of the kernels, with times
  };

  cudaStream_t upload = nullptr, compute = nullptr, download = nullptr;
  std::vector<Worker> workers;
  std::vector<Piece> pieces;
};

/// Up to kMost lanes, made when needed and kept. A thread waits while all are taken.
class Lanes {
 public:
  /// The lane is the caller's until the pointer is destroyed; null with an error if none could be made.
  struct Release {
    Lanes* lanes;
    void operator()(Lane* lane) const;
  };
  using Handle = std::unique_ptr<Lane, Release>;
  Handle acquire(cudaError_t* error);

 private:
  static constexpr size_t kMost = 4;
  std::mutex lock_;
  std::condition_variable released_;
  std::vector<std::unique_ptr<Lane>> all_;
  std::vector<Lane*> free_;
};

}  // namespace gatedfwa::cuda
