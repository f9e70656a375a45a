// An executor of plain threads.
#pragma once

#include <thread>
#include <vector>

#include "kernel/executor.h"

namespace gatedfwa::test {

inline Executor threads(int count) {
  return {count, [](int workers, const std::function<void(int)>& body) {
            std::vector<std::thread> all;
            for (int i = 1; i < workers; i++) all.emplace_back(body, i);
            body(0);
            for (std::thread& thread : all) thread.join();
          }};
}

}  // namespace gatedfwa::test
