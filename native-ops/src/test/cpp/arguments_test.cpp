// The checks between a framework and the kernels: what is refused and with which words, and, by brute force, that no
// accepted call has two operands meet in memory.
#include <cmath>
#include <limits>
#include <random>
#include <set>

#include "test_arguments.h"

namespace {

using namespace gatedfwa;
using namespace gatedfwa::test;

struct Call {
  OpArguments arguments;
  std::vector<ArrayView> outputs;

  void forward() const { attentionForwardParams(arguments, outputs); }
  void backward() const { attentionBackwardParams(arguments, outputs); }
};

Call forwardCall() {
  taken = 0;
  Call call;
  call.arguments.inputs = {array(DataType::Half, {2, 3, 4, 16}), array(DataType::Half, {2, 5, 2, 16}),
                           array(DataType::Half, {2, 5, 2, 8}), array(DataType::Float, {2, 5, 4}),
                           array(DataType::Bool, {2, 5})};
  call.arguments.integers = {7};
  call.arguments.booleans = {true, true};
  call.outputs = {array(DataType::Half, {2, 3, 4, 8}), array(DataType::Float, {2, 4, 3})};
  return call;
}

Call backwardCall() {
  Call call = forwardCall();
  call.arguments.inputs.insert(
      call.arguments.inputs.end(),
      {array(DataType::Half, {2, 3, 4, 8}), array(DataType::Float, {2, 4, 3}), array(DataType::Half, {2, 3, 4, 8})});
  call.outputs = {array(DataType::Half, {2, 3, 4, 16}), array(DataType::Half, {2, 5, 2, 16}),
                  array(DataType::Half, {2, 5, 2, 8}), array(DataType::Float, {2, 5, 4})};
  return call;
}

void paramsAreWhatWasGiven() {
  Call call = forwardCall();
  const AttentionForward params = attentionForwardParams(call.arguments, call.outputs);
  expect(params.type == ElementType::Float16 && params.maskType == ElementType::Bool, "types");
  expect(params.batch == 2 && params.queryLength == 3 && params.keyLength == 5 && params.heads == 4 &&
             params.kvHeads == 2 && params.headSize == 16 && params.valueSize == 8 && params.window == 7,
         "sizes");
  expect(params.scale == 0.25, "default scale is 1/sqrt(D)");
  expect(params.alpha.data == call.arguments.inputs[3].data && params.alpha.strides[0] == 20, "alpha");
  expect(params.lse.data == call.outputs[1].data && params.lse.strides[1] == 3, "lse");

  call.arguments.reals = {-0.5};
  expect(attentionForwardParams(call.arguments, call.outputs).scale == -0.5, "scale is the caller's");

  const AttentionBackward gradient = attentionBackwardParams(backwardCall().arguments, backwardCall().outputs);
  expect(gradient.dalpha.data != nullptr && gradient.dq.strides[1] == 64, "gradients");

  OpArguments gate;
  gate.inputs = {array(DataType::Double, {2, 5, 4}), array(DataType::Double, {2, 5, 4})};
  expect(gateForwardParams(gate, {array(DataType::Double, {2, 5, 4})}).eps == 1e-3, "default eps");
}

void outputShapesFollowTheInputs() {
  const std::vector<OutputShape> forward = attentionForwardShapes(forwardCall().arguments);
  expect(forward.size() == 2 && forward[0].shape == std::vector<int64_t>{2, 3, 4, 8} &&
             forward[1].type == DataType::Float && forward[1].shape == std::vector<int64_t>{2, 4, 3},
         "shapes of o and lse");
  expect(attentionBackwardShapes(backwardCall().arguments).size() == 4, "dalpha where there is an alpha");
}

void wrongCallsAreRefused() {
  const auto refused = [](const std::string& message, const std::function<void(Call&)>& spoil) {
    Call forward = forwardCall(), backward = backwardCall();
    spoil(forward);
    spoil(backward);
    expectRefusal("gated_fwa", message, [&] { forward.forward(); });
    expectRefusal("gated_fwa_bp", message, [&] { backward.backward(); });
  };
  refused("argument 'window' is -3; it must be at least 1", [](Call& c) { c.arguments.integers = {-3}; });
  refused("got 2 integer arguments; expected 1: window", [](Call& c) { c.arguments.integers = {1, 2}; });
  refused("got 2 floating-point arguments; expected at most 1: scale", [](Call& c) { c.arguments.reals = {1, 2}; });
  refused("got 3 boolean arguments", [](Call& c) { c.arguments.booleans = {true, true, true}; });
  refused("argument 'scale' is nan", [](Call& c) { c.arguments.reals = {std::nan("")}; });
  refused("q is LONG; expected FLOAT, DOUBLE, HALF or BFLOAT16",
          [](Call& c) { c.arguments.inputs[0].type = DataType::Long; });
  refused("k has shape [2, 5, 3, 16]; expected [2, >=3, a divisor of 4, 16]",
          [](Call& c) { c.arguments.inputs[1].shape[2] = 3; });
  refused("v has no data", [](Call& c) { c.arguments.inputs[2].data = nullptr; });
  refused("mask is UBYTE; expected HALF or BOOL", [](Call& c) { c.arguments.inputs[4].type = DataType::UByte; });
  refused("which reach beyond any memory",
          [](Call& c) { c.arguments.inputs[0].strides[1] = std::numeric_limits<int64_t>::max(); });
  refused("which reach beyond any memory",
          [](Call& c) { c.arguments.inputs[0].strides[1] = std::numeric_limits<int64_t>::min(); });
  refused("got 0 outputs", [](Call& c) { c.outputs.clear(); });
  refused("which reach beyond any memory", [](Call& c) { c.outputs[0].strides[3] = int64_t{1} << 60; });
  refused("expected an array whose elements do not overlap", [](Call& c) { c.outputs[0].strides[1] = 0; });
  refused("overlap in memory", [](Call& c) { c.outputs[0].data = c.outputs[1].data; });
  refused("overlaps the input q in memory", [](Call& c) { c.outputs[0].data = c.arguments.inputs[0].data; });
}

/// The addresses of a view's elements.
std::multiset<const char*> addresses(const ArrayView& view, int64_t elementSize) {
  std::multiset<const char*> result;
  const char* base = static_cast<const char*>(view.data);
  for (int64_t a = 0; a < view.shape[0]; a++)
    for (int64_t b = 0; b < view.shape[1]; b++)
      for (int64_t c = 0; c < view.shape[2]; c++)
        result.insert(base + elementSize * (a * view.strides[0] + b * view.strides[1] + c * view.strides[2]));
  return result;
}

bool meet(const std::multiset<const char*>& a, const std::multiset<const char*>& b) {
  for (const char* address : a)
    if (b.count(address)) return true;
  return false;
}

/// Random views into a small array: none that is accepted may overlap, and most that do not overlap are accepted.
void acceptedOperandsNeverMeet() {
  std::mt19937 random(1);
  const auto uniform = [&](int64_t least, int64_t most) {
    return std::uniform_int_distribution<int64_t>(least, most)(random);
  };
  int accepted = 0, apart = 0;
  for (int i = 0; i < 50000; i++) {
    const std::vector<int64_t> shape = {uniform(1, 3), uniform(1, 3), uniform(1, 3)};
    const auto view = [&] {
      ArrayView result;
      result.type = DataType::Float;
      result.shape = shape;
      const int64_t inner = uniform(1, 2), middle = uniform(0, 1) ? uniform(0, 8) : 3 * inner;
      result.strides = {uniform(0, 1) ? uniform(-12, 24) : 3 * middle, middle, inner};
      result.data = memory + 1024 + 4 * uniform(0, 30);
      return result;
    };
    OpArguments arguments;
    arguments.inputs = {view(), view()};
    const ArrayView output = view();
    const auto written = addresses(output, 4);
    const bool injective = std::set<const char*>(written.begin(), written.end()).size() == written.size();
    const bool overlaps =
        meet(written, addresses(arguments.inputs[0], 4)) || meet(written, addresses(arguments.inputs[1], 4));
    const bool accepts = refusal([&] { gateForwardParams(arguments, {output}); }).empty();
    apart += injective && !overlaps;
    accepted += accepts;
    if (accepts && (overlaps || !injective)) expect(false, "accepted operands that meet in memory");
  }
  expect(accepted > apart / 2, "accepted " + std::to_string(accepted) + " of " + std::to_string(apart) + " good calls");
  std::printf("accepted %d of %d calls whose operands are apart\n", accepted, apart);
}

void everyAxisHasItsStride() {
  for (const size_t strides : {3u, 5u}) {
    Call call = forwardCall();
    call.outputs[0].strides.resize(strides, 1);
    expectRefusal("gated_fwa", "o has " + std::to_string(strides) + " strides; expected 4", [&] { call.forward(); });
    call = forwardCall();
    call.arguments.inputs[1].strides.resize(strides, 1);
    expectRefusal("gated_fwa", "k has shape", [&] { call.forward(); });
  }
}

void emptyArraysNeedNoData() {
  OpArguments gate;
  gate.inputs = {array(DataType::Float, {0, 5, 4}), array(DataType::Float, {0, 5, 4})};
  ArrayView alpha = array(DataType::Float, {0, 5, 4});
  gate.inputs[0].data = gate.inputs[1].data = alpha.data = nullptr;
  expect(refusal([&] { gateForwardParams(gate, {alpha}); }).empty(), "empty arrays without data");
}

}  // namespace

int main() {
  paramsAreWhatWasGiven();
  outputShapesFollowTheInputs();
  wrongCallsAreRefused();
  acceptedOperandsNeverMeet();
  everyAxisHasItsStride();
  emptyArraysNeedNoData();
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
