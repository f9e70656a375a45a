// From the arrays and numbers that a framework hands to an op, to the structs that a kernel takes: checks every one of
// them, and says which one is wrong. Knows no framework.
//
// B batch, N query length, M key length, H query heads, Hkv key/value heads, D head size of q and k, Dv of v.
//
//   op                 inputs                                       integers  reals   booleans           outputs
//   gated_fwa          q, k, v [, alpha] [, mask]                   window    scale   hasAlpha, hasMask  o, lse
//   gated_fwa_bp       q, k, v [, alpha] [, mask], o, lse, dO       window    scale   hasAlpha, hasMask  dq, dk, dv
//                                                                                                        [, dalpha]
//   gated_fwa_gate     h, beta                                                eps                        alpha
//   gated_fwa_gate_bp  h, beta, dalpha                                        eps                        dh, dbeta
//
// A missing scale, or 0, is 1/sqrt(D); a missing eps is 1e-3; missing booleans are false.
// Every function throws std::invalid_argument with a message that names op, argument, what came and what is allowed.
#pragma once

#include <cstdint>
#include <vector>

#include "kernel/params.h"

namespace gatedfwa {

/// The types a framework may hand in; only those of ElementType are ever accepted.
enum class DataType { Float, Double, Half, BFloat16, Bool, Byte, Short, Int, Long, UByte, UShort, UInt, ULong, Other };

struct ArrayView {
  DataType type = DataType::Other;
  std::vector<int64_t> shape;    ///< its size is the rank
  std::vector<int64_t> strides;  ///< in elements
  void* data = nullptr;          ///< address of element [0, .., 0]; not looked at if the array has no elements
};

struct OpArguments {
  std::vector<ArrayView> inputs;
  std::vector<int64_t> integers;
  std::vector<double> reals;
  std::vector<bool> booleans;
};

struct OutputShape {
  const char* name;
  DataType type;
  std::vector<int64_t> shape;
};

constexpr int64_t kMaxHeadSize = 256;
constexpr double kDefaultEps = 1e-3;

/// Names, types and shapes of the outputs; looks at everything but data addresses and strides.
std::vector<OutputShape> attentionForwardShapes(const OpArguments& arguments);
std::vector<OutputShape> attentionBackwardShapes(const OpArguments& arguments);
std::vector<OutputShape> gateForwardShapes(const OpArguments& arguments);
std::vector<OutputShape> gateBackwardShapes(const OpArguments& arguments);

/// Throws unless the output has the type and shape that it should have.
void checkOutput(const char* op, const OutputShape& expected, const ArrayView& output);

/// The kernel's arguments. `outputs` must have the shapes and types above, no two elements of them at one address,
/// and none at an input's.
AttentionForward attentionForwardParams(const OpArguments& arguments, const std::vector<ArrayView>& outputs);
AttentionBackward attentionBackwardParams(const OpArguments& arguments, const std::vector<ArrayView>& outputs);
GateForward gateForwardParams(const OpArguments& arguments, const std::vector<ArrayView>& outputs);
GateBackward gateBackwardParams(const OpArguments& arguments, const std::vector<ArrayView>& outputs);

}  // namespace gatedfwa
