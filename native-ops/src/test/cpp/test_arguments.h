// What the tests of the argument checks share: counting, refusals, and arrays in a room of their own.
#pragma once

#include <cstdio>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "op/arguments.h"

namespace gatedfwa::test {

inline int failures = 0, checks = 0;

inline void expect(bool holds, const std::string& what) {
  checks++;
  if (holds) return;
  failures++;
  std::printf("FAILED: %s\n", what.c_str());
}

/// The message of the std::invalid_argument, or "" if there is none.
inline std::string refusal(const std::function<void()>& call) {
  try {
    call();
    return "";
  } catch (const std::invalid_argument& e) {
    return e.what();
  }
}

inline void expectRefusal(const std::string& op, const std::string& message, const std::function<void()>& call) {
  const std::string came = refusal(call);
  expect(came.rfind(op + ": ", 0) == 0 && came.find(message) != std::string::npos,
         "expected \"" + op + ": .." + message + "\", got \"" + came + "\"");
}

/// Room that arrays can pretend to lie in.
inline char memory[1 << 20];
inline size_t taken = 0;

inline ArrayView array(DataType type, std::vector<int64_t> shape) {
  ArrayView view;
  view.type = type;
  view.strides.resize(shape.size());
  int64_t count = 1;
  for (size_t i = shape.size(); i-- > 0; count *= shape[i]) view.strides[i] = count;
  view.shape = std::move(shape);
  view.data = memory + taken;
  taken += static_cast<size_t>(count) * 8;
  return view;
}

}  // namespace gatedfwa::test
