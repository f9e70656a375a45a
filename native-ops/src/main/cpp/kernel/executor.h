// Where work of the host runs: the CPU kernels, and the copies to and from a device.
#pragma once

#include <functional>

namespace gatedfwa {

/// `run(n, body)` calls body(0) .. body(n-1), concurrently as far as it can, and returns when all have returned.
/// Workers share work dynamically; results do not depend on their number.
struct Executor {
  int workers;
  std::function<void(int workers, const std::function<void(int worker)>& body)> run;
};

}  // namespace gatedfwa
