#include "op/cpu_runtime.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <stdexcept>

#include "libnd4j/abi.h"

namespace gatedfwa {
namespace {

std::atomic<cpu::InstructionSet> selected{cpu::InstructionSet::Plain};

const char* nameOf(cpu::InstructionSet set) {
  switch (set) {
    case cpu::InstructionSet::Avx512:
      return "avx512";
    case cpu::InstructionSet::Avx2:
      return "avx2";
    default:
      return "plain";
  }
}

}  // namespace

Executor nd4jExecutor() {
  Executor executor;
  executor.workers = std::max(1, sd::Environment::getInstance().maxMasterThreads());
  executor.run = [](int workers, const std::function<void(int)>& body) {
    if (workers <= 0) return;
    // libnd4j's workers may be OpenMP threads, which an exception must not leave.
    std::exception_ptr failure;
    std::mutex lock;
    samediff::Threads::parallel_do(
        [&](uint64_t worker, uint64_t) {
          try {
            body(static_cast<int>(worker));
          } catch (...) {
            const std::lock_guard<std::mutex> guard(lock);
            failure = std::current_exception();
          }
        },
        static_cast<uint64_t>(workers));
    if (failure) std::rethrow_exception(failure);
  };
  return executor;
}

cpu::InstructionSet instructionSet() { return selected.load(std::memory_order_relaxed); }

std::string selectInstructionSet(const std::string& requested) {
  const cpu::InstructionSet best = cpu::detectInstructionSet();
  cpu::InstructionSet set = best;
  if (requested == "plain") {
    set = cpu::InstructionSet::Plain;
  } else if (requested == "avx2") {
    set = cpu::InstructionSet::Avx2;
  } else if (requested == "avx512") {
    set = cpu::InstructionSet::Avx512;
  } else if (requested != "auto") {
    throw std::invalid_argument("instruction set '" + requested + "'; expected auto, plain, avx2 or avx512");
  }
  if (set > best)
    throw std::invalid_argument("instruction set '" + requested + "', which this processor lacks; the best it has is " +
                                nameOf(best));
  selected = set;
  return nameOf(set);
}

}  // namespace gatedfwa
