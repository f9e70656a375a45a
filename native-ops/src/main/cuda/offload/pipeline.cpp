#include "offload/pipeline.h"

#include <algorithm>
#include <atomic>
#include <string>

namespace gatedfwa::cuda {
namespace {

constexpr int64_t kPieceBytes = 8 << 20;
constexpr int64_t kMostPieces = 16;

Outcome failure(cudaError_t error, const char* doing) {
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // else the next launch of this thread would report it
    return {Outcome::OutOfMemory, "out of memory"};
  }
  return {Outcome::Failed, std::string(cudaGetErrorString(error)) + ", while " + doing};
}

/// A block of an operand to be moved.
struct Task {
  Operand* operand;
  int64_t block;
};

/// Rows of the dense copy up to the end of what the piece needs or makes.
int64_t endRow(const Operand& operand, const PieceRange& piece) {
  if (operand.planesPerUnit == 0) return operand.host.totalRows();
  return ((piece.batch1 - 1) * operand.host.planes + piece.unit1 * operand.planesPerUnit) * operand.host.rows;
}

/// The copies of a step, shared by the workers of the host.
class Mover {
 public:
  Mover(Lane& lane, int ordinal) : lane_(lane), ordinal_(ordinal) {}

  std::vector<Task> uploads, downloads;

  void run(const Executor& executor, int workers) {
    const int64_t count = static_cast<int64_t>(uploads.size() + downloads.size());
    if (count == 0) return;
    next_ = 0;
    const int used = static_cast<int>(std::min<int64_t>(workers, count));
    if (used == 1)
      work(0);
    else
      executor.run(used, [this](int worker) { work(worker); });
    uploads.clear();
    downloads.clear();
  }

  cudaError_t error() const { return error_; }
  double uploaded() const { return static_cast<double>(uploaded_); }
  double resident() const { return static_cast<double>(resident_); }
  double downloaded() const { return static_cast<double>(downloaded_); }

 private:
  /// Both directions by turns, as long as there are both: the link carries both at once.
  Task taskAt(int64_t i, bool* upload) const {
    const int64_t both = static_cast<int64_t>(std::min(uploads.size(), downloads.size()));
    if (i < 2 * both) {
      *upload = i % 2 == 0;
      return *upload ? uploads[i / 2] : downloads[i / 2];
    }
    *upload = uploads.size() > downloads.size();
    return *upload ? uploads[i - both] : downloads[i - both];
  }

  void fail(cudaError_t e) {
    cudaError_t none = cudaSuccess;
    error_.compare_exchange_strong(none, e);
  }
  bool ok(cudaError_t e) {
    if (e != cudaSuccess) fail(e);
    return e == cudaSuccess;
  }

  void work(int worker) {
    int previous = 0;
    cudaGetDevice(&previous);
    if (!ok(cudaSetDevice(ordinal_))) return;
    Lane::Worker& slots = lane_.workers[worker];
    const int64_t count = static_cast<int64_t>(uploads.size() + downloads.size());
    Task pending{};  // a download on its way, in slots.down[pendingSlot]
    int upSlot = 0, downSlot = 0, pendingSlot = 0;
    for (int64_t i; error_ == cudaSuccess && (i = next_.fetch_add(1, std::memory_order_relaxed)) < count;) {
      bool upload;
      const Task task = taskAt(i, &upload);
      if (upload) {
        this->upload(task, slots.up[upSlot ^= 1]);
      } else {
        downSlot ^= 1;
        startDownload(task, slots.down[downSlot]);
        if (pending.operand) finishDownload(pending, slots.down[pendingSlot]);
        pending = task;
        pendingSlot = downSlot;
      }
    }
    if (pending.operand) finishDownload(pending, slots.down[pendingSlot]);
    cudaSetDevice(previous);
  }

  struct Extent {
    int64_t first, count, offset, bytes;
  };
  static Extent extentOf(const Task& task) {
    const int64_t rows = task.operand->blockRows(), first = task.block * rows;
    const int64_t count = std::min(rows, task.operand->host.totalRows() - first);
    const int64_t rowBytes = task.operand->host.rowBytes();
    return {first, count, first * rowBytes, count * rowBytes};
  }

  void upload(const Task& task, Slot& slot) {
    const Extent x = extentOf(task);
    DeviceArray& array = *task.operand->array;
    if (!ok(cudaEventSynchronize(slot.done))) return;
    pack(task.operand->host, x.first, x.count, slot.buffer);
    const uint64_t print = fingerprint(slot.buffer, x.bytes);
    if (array.known[task.block] && array.prints[task.block] == print) {
      resident_ += x.bytes;
      return;
    }
    array.prints[task.block] = print;
    array.known[task.block] = 1;
    if (ok(cudaMemcpyAsync(array.address() + x.offset, slot.buffer, static_cast<size_t>(x.bytes),
                           cudaMemcpyHostToDevice, lane_.upload)))
      ok(cudaEventRecord(slot.done, lane_.upload));
    uploaded_ += x.bytes;
  }

  void startDownload(const Task& task, Slot& slot) {
    const Extent x = extentOf(task);
    if (ok(cudaMemcpyAsync(slot.buffer, task.operand->array->address() + x.offset, static_cast<size_t>(x.bytes),
                           cudaMemcpyDeviceToHost, lane_.download)))
      ok(cudaEventRecord(slot.done, lane_.download));
  }

  void finishDownload(const Task& task, Slot& slot) {
    const Extent x = extentOf(task);
    if (error_ != cudaSuccess || !ok(cudaEventSynchronize(slot.done))) return;
    unpack(slot.buffer, task.operand->host, x.first, x.count);
    task.operand->array->prints[task.block] = fingerprint(slot.buffer, x.bytes);
    task.operand->array->known[task.block] = 1;
    downloaded_ += x.bytes;
  }

  Lane& lane_;
  int ordinal_;
  std::atomic<int64_t> next_{0};
  std::atomic<cudaError_t> error_{cudaSuccess};
  std::atomic<int64_t> uploaded_{0}, resident_{0}, downloaded_{0};
};

/// Scratch memory of the call, freed when nothing uses it any more.
struct Workspace {
  DeviceMemory& memory;
  void* address = nullptr;
  int64_t bytes = 0;
  ~Workspace() {
    if (address) memory.free(address, bytes);
  }
};

}  // namespace

int64_t Operand::blockRows() const { return std::max<int64_t>(1, kSlotBytes / std::max<int64_t>(1, host.rowBytes())); }
int64_t Operand::blocks() const { return (host.totalRows() + blockRows() - 1) / blockRows(); }

std::vector<PieceRange> splitIntoPieces(const Job& job) {
  int64_t bytes = 0;
  for (const Operand& operand : job.operands) bytes += operand.host.bytes();
  const int64_t wanted = std::clamp<int64_t>(bytes / kPieceBytes, 1, kMostPieces);
  std::vector<PieceRange> pieces;
  if (job.batch >= wanted) {
    for (int64_t i = 0; i < wanted; i++)
      pieces.push_back({job.batch * i / wanted, job.batch * (i + 1) / wanted, 0, job.unitsPerBatch});
  } else {
    const int64_t groups = std::min(job.unitsPerBatch, (wanted + job.batch - 1) / job.batch);
    for (int64_t b = 0; b < job.batch; b++)
      for (int64_t i = 0; i < groups; i++)
        pieces.push_back({b, b + 1, job.unitsPerBatch * i / groups, job.unitsPerBatch * (i + 1) / groups});
  }
  return pieces;
}

Outcome runJob(Job& job, DeviceMemory& memory, Lane& lane, int ordinal, const Executor& executor, Usage* usage) {
  const std::vector<PieceRange> pieces = splitIntoPieces(job);
  const int count = static_cast<int>(pieces.size());
  const int workers = std::max(1, executor.workers);
  cudaError_t e = lane.reserveWorkers(workers);
  if (e == cudaSuccess) e = lane.reservePieces(count);
  if (e != cudaSuccess) return failure(e, "preparing the copies");

  Workspace workspace{memory};
  for (const PieceRange& piece : pieces) workspace.bytes = std::max(workspace.bytes, job.workspace(piece));
  if (workspace.bytes > 0) e = memory.allocate(workspace.bytes, lane.upload, &workspace.address);
  for (Operand& operand : job.operands) {
    if (operand.array || e != cudaSuccess) continue;
    void* address = nullptr;
    const int64_t bytes = operand.host.bytes();
    e = memory.allocate(bytes, lane.upload, &address);
    if (e == cudaSuccess) operand.array = std::make_unique<DeviceArray>(memory, address, bytes, operand.blocks());
  }
  if (e != cudaSuccess) {
    cudaStreamSynchronize(lane.upload);  // memory is freed on another stream
    return failure(e, "allocating");
  }

  Mover mover(lane, ordinal);
  std::vector<int64_t> moved(job.operands.size(), 0);  // blocks of each operand
  Outcome outcome;
  const auto check = [&](cudaError_t error, const char* doing) {
    if (error != cudaSuccess && outcome.status == Outcome::Done) outcome = failure(error, doing);
    return error == cudaSuccess;
  };
  // Piece i goes up while piece i - 1 is computed and piece i - 2 comes down.
  for (int step = 0; step < count + 2 && outcome.status == Outcome::Done; step++) {
    const int down = step - 2;
    for (size_t i = 0; i < job.operands.size(); i++) {
      Operand& operand = job.operands[i];
      const int at = operand.output ? down : step;
      if (at < 0 || at >= count) continue;
      const int64_t rows = operand.blockRows(), end = endRow(operand, pieces[at]);
      // An input's block is needed as soon as a row of it is; an output's is there when all of them are.
      int64_t last = operand.output ? end / rows : (end + rows - 1) / rows;
      if (operand.output && at == count - 1) last = operand.blocks();
      if (operand.output && operand.planesPerUnit == 0 && at < count - 1) last = 0;
      for (; moved[i] < last; moved[i]++)
        (operand.output ? mover.downloads : mover.uploads).push_back({&operand, moved[i]});
    }
    if (down >= 0) check(cudaStreamWaitEvent(lane.download, lane.pieces[down].end, 0), "ordering the copies");
    mover.run(executor, workers);
    if (!check(mover.error(), "copying") || step >= count) continue;
    const Lane::Piece& events = lane.pieces[step];
    check(cudaEventRecord(events.uploaded, lane.upload), "ordering the kernels");
    check(cudaStreamWaitEvent(lane.compute, events.uploaded, 0), "ordering the kernels");
    check(cudaEventRecord(events.start, lane.compute), "ordering the kernels");
    if (outcome.status != Outcome::Done) break;
    const Result result = job.launch(pieces[step], workspace.address, workspace.bytes, lane.compute);
    if (result.status == Status::CudaError)
      check(result.cuda, "launching the kernels");
    else if (!result)
      outcome = {Outcome::Failed, "the kernels refused what the selector had accepted"};
    check(cudaEventRecord(events.end, lane.compute), "ordering the kernels");
  }
  // Whatever happened, nothing may still read or write the buffers; an error of a kernel shows here at the latest.
  for (cudaStream_t stream : {lane.upload, lane.compute, lane.download})
    check(cudaStreamSynchronize(stream), "running the kernels");
  if (outcome.status == Outcome::OutOfMemory) outcome.status = Outcome::Failed;  // outputs may have been written
  if (outcome.status != Outcome::Done) return outcome;

  float milliseconds = 0;
  for (int i = 0; i < count; i++) {
    if (cudaEventElapsedTime(&milliseconds, lane.pieces[i].start, lane.pieces[i].end) == cudaSuccess)
      usage->kernelSeconds += milliseconds * 1e-3;
  }
  usage->uploadedBytes += mover.uploaded();
  usage->residentBytes += mover.resident();
  usage->downloadedBytes += mover.downloaded();
  return outcome;
}

}  // namespace gatedfwa::cuda
