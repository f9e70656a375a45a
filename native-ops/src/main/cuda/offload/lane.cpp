#include "offload/lane.h"

namespace gatedfwa::cuda {
namespace {

cudaError_t openSlot(Slot* slot) {
  cudaError_t e = cudaSuccess;
  if (!slot->done) e = cudaEventCreateWithFlags(&slot->done, cudaEventDisableTiming);
  if (e == cudaSuccess && !slot->buffer)
    e = cudaHostAlloc(reinterpret_cast<void**>(&slot->buffer), kSlotBytes, cudaHostAllocPortable);
  return e;
}

void closeSlot(const Slot& slot) {
  if (slot.done) cudaEventDestroy(slot.done);
  if (slot.buffer) cudaFreeHost(slot.buffer);
}

}  // namespace

Lane::~Lane() {
  for (const Worker& worker : workers)
    for (const Slot& slot : {worker.up[0], worker.up[1], worker.down[0], worker.down[1]}) closeSlot(slot);
  for (const Piece& piece : pieces)
    for (cudaEvent_t event : {piece.uploaded, piece.start, piece.end})
      if (event) cudaEventDestroy(event);
  for (cudaStream_t stream : {upload, compute, download})
    if (stream) cudaStreamDestroy(stream);
}

cudaError_t Lane::open() {
  for (cudaStream_t* stream : {&upload, &compute, &download}) {
    const cudaError_t e = cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking);
    if (e != cudaSuccess) return e;
  }
  return cudaSuccess;
}

cudaError_t Lane::reserveWorkers(int count) {
  if (workers.size() < static_cast<size_t>(count)) workers.resize(static_cast<size_t>(count));
  for (int i = 0; i < count; i++)
    for (Slot* slot : {&workers[i].up[0], &workers[i].up[1], &workers[i].down[0], &workers[i].down[1]}) {
      const cudaError_t e = openSlot(slot);
      if (e != cudaSuccess) return e;
    }
  return cudaSuccess;
}

cudaError_t Lane::reservePieces(int count) {
  while (pieces.size() < static_cast<size_t>(count)) {
    Piece piece;
    cudaError_t e = cudaEventCreateWithFlags(&piece.uploaded, cudaEventDisableTiming);
    if (e == cudaSuccess) e = cudaEventCreate(&piece.start);
    if (e == cudaSuccess) e = cudaEventCreate(&piece.end);
    pieces.push_back(piece);  // what there is of it is destroyed with the lane
    if (e != cudaSuccess) return e;
  }
  return cudaSuccess;
}

Lanes::Handle Lanes::acquire(cudaError_t* error) {
  *error = cudaSuccess;
  std::unique_lock<std::mutex> guard(lock_);
  released_.wait(guard, [&] { return !free_.empty() || all_.size() < kMost; });
  if (!free_.empty()) {
    Lane* const lane = free_.back();
    free_.pop_back();
    return Handle(lane, {this});
  }
  auto lane = std::make_unique<Lane>();
  *error = lane->open();
  if (*error != cudaSuccess) return Handle(nullptr, {this});
  free_.reserve(kMost);
  all_.push_back(std::move(lane));
  return Handle(all_.back().get(), {this});
}

void Lanes::Release::operator()(Lane* lane) const {
  const std::lock_guard<std::mutex> guard(lanes->lock_);
  lanes->free_.push_back(lane);
  lanes->released_.notify_one();
}

}  // namespace gatedfwa::cuda
