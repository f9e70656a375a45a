// The checks between a framework and the kernels of native sparse attention: what is refused and with which words.
#include "op/nsa_arguments.h"

#include <cmath>
#include <limits>

#include "test_arguments.h"

namespace {

using namespace gatedfwa;
using namespace gatedfwa::test;

struct Call {
  OpArguments arguments;
  std::vector<ArrayView> outputs;
};

// B = 2, N = 9, M = 20, H = 4, Hkv = 2, D = 16, Dv = 8; l = 8, d = 4, so C = 4; l' = 8, so S = 3; topN = 3
Call compressedCall(bool backward) {
  taken = 0;
  Call call;
  call.arguments.inputs = {array(DataType::Half, {2, 9, 4, 16}), array(DataType::Half, {2, 4, 2, 16}),
                           array(DataType::Half, {2, 4, 2, 8}), array(DataType::Bool, {2, 4})};
  call.arguments.integers = {8, 4, 20};
  call.arguments.booleans = {true};
  call.outputs = {array(DataType::Half, {2, 9, 4, 8}), array(DataType::Float, {2, 4, 9})};
  if (!backward) return call;
  call.arguments.inputs.insert(
      call.arguments.inputs.end(),
      {array(DataType::Half, {2, 9, 4, 8}), array(DataType::Float, {2, 4, 9}), array(DataType::Half, {2, 9, 4, 8})});
  call.outputs = {array(DataType::Half, {2, 9, 4, 16}), array(DataType::Half, {2, 4, 2, 16}),
                  array(DataType::Half, {2, 4, 2, 8})};
  return call;
}

Call selectCall() {
  taken = 0;
  Call call;
  call.arguments.inputs = {array(DataType::Half, {2, 9, 4, 16}), array(DataType::Half, {2, 4, 2, 16}),
                           array(DataType::Float, {2, 4, 9}), array(DataType::Bool, {2, 4})};
  call.arguments.integers = {8, 4, 8, 3, 20};
  call.arguments.booleans = {true};
  call.outputs = {array(DataType::Int, {2, 9, 2, 3})};
  return call;
}

int32_t* numbers(const ArrayView& view) { return static_cast<int32_t*>(view.data); }

Call selectedCall(bool backward) {
  taken = 0;
  Call call;
  call.arguments.inputs = {array(DataType::Half, {2, 9, 4, 16}), array(DataType::Half, {2, 20, 2, 16}),
                           array(DataType::Half, {2, 20, 2, 8}), array(DataType::Int, {2, 9, 2, 3}),
                           array(DataType::Bool, {2, 20})};
  for (int i = 0; i < 2 * 9 * 2; i++)
    for (int j = 0; j < 3; j++) numbers(call.arguments.inputs[3])[3 * i + j] = j == 2 ? -1 : j;
  call.arguments.integers = {8};
  call.arguments.booleans = {true};
  call.outputs = {array(DataType::Half, {2, 9, 4, 8}), array(DataType::Float, {2, 4, 9})};
  if (!backward) return call;
  call.arguments.inputs.insert(
      call.arguments.inputs.end(),
      {array(DataType::Half, {2, 9, 4, 8}), array(DataType::Float, {2, 4, 9}), array(DataType::Half, {2, 9, 4, 8})});
  call.outputs = {array(DataType::Half, {2, 9, 4, 16}), array(DataType::Half, {2, 20, 2, 16}),
                  array(DataType::Half, {2, 20, 2, 8})};
  return call;
}

using Spoil = std::function<void(Call&)>;

void compressedRefused(const std::string& message, const Spoil& spoil) {
  Call forward = compressedCall(false), backward = compressedCall(true);
  spoil(forward);
  expectRefusal("nsa_compressed_attention", message,
                [&] { nsaCompressedForwardParams(forward.arguments, forward.outputs); });
  spoil(backward);
  expectRefusal("nsa_compressed_attention_bp", message,
                [&] { nsaCompressedBackwardParams(backward.arguments, backward.outputs); });
}

void selectRefused(const std::string& message, const Spoil& spoil) {
  Call call = selectCall();
  spoil(call);
  expectRefusal("nsa_select", message, [&] { nsaSelectParams(call.arguments, call.outputs); });
}

void selectedRefused(const std::string& message, const Spoil& spoil) {
  for (const bool backward : {false, true}) {
    Call call = selectedCall(backward);
    spoil(call);
    expectRefusal(backward ? "nsa_selected_attention_bp" : "nsa_selected_attention", message, [&] {
      if (backward)
        nsaSelectedBackwardParams(call.arguments, call.outputs);
      else
        nsaSelectedForwardParams(call.arguments, call.outputs);
    });
  }
}

void paramsAreWhatWasGiven() {
  const Call compressed = compressedCall(true);
  const NsaCompressedBackward c = nsaCompressedBackwardParams(compressed.arguments, compressed.outputs);
  expect(c.type == ElementType::Float16 && c.maskType == ElementType::Bool && c.batch == 2 && c.queryLength == 9 &&
             c.keyLength == 20 && c.heads == 4 && c.kvHeads == 2 && c.headSize == 16 && c.valueSize == 8 &&
             c.blockLength == 8 && c.stride == 4 && c.blocks == 4 && c.scale == 0.25,
         "compressed: sizes");
  expect(c.mask.data == compressed.arguments.inputs[3].data && c.dO.data == compressed.arguments.inputs[6].data &&
             c.lse.strides[1] == 9 && c.dv.data == compressed.outputs[2].data,
         "compressed: arrays");

  const Call select = selectCall();
  const NsaSelect s = nsaSelectParams(select.arguments, select.outputs);
  expect(s.selectionBlock == 8 && s.topN == 3 && s.blocks == 4 && s.lse.data == select.arguments.inputs[2].data &&
             s.mask.data == select.arguments.inputs[3].data && s.indices.strides[1] == 6 && s.v.data == nullptr,
         "select");

  const Call selected = selectedCall(false);
  const NsaSelectedForward t = nsaSelectedForwardParams(selected.arguments, selected.outputs);
  expect(t.selectionBlock == 8 && t.topN == 3 && t.keyLength == 20 && t.valueSize == 8 &&
             t.indices.data == selected.arguments.inputs[3].data && t.mask.data == selected.arguments.inputs[4].data,
         "selected");

  // M = 0 is N: 9 tokens are one block of 8.
  Call whole = compressedCall(false);
  whole.arguments.integers[2] = 0;
  for (size_t i : {1, 2, 3}) whole.arguments.inputs[i].shape[1] = 1;
  expect(nsaCompressedForwardParams(whole.arguments, whole.outputs).keyLength == 9, "M = 0 stands for N");

  const std::vector<OutputShape> shapes = nsaSelectShapes(select.arguments);
  expect(shapes.size() == 1 && shapes[0].type == DataType::Int && shapes[0].shape == std::vector<int64_t>{2, 9, 2, 3},
         "shape of indices");
}

void wrongCallsAreRefused() {
  compressedRefused("argument 'blockLength' is 0; it must be at least 1", [](Call& c) { c.arguments.integers[0] = 0; });
  compressedRefused("argument 'stride' is 3; it must be a divisor of blockLength, 8",
                    [](Call& c) { c.arguments.integers[1] = 3; });
  compressedRefused("argument 'stride' is 0; it must be", [](Call& c) { c.arguments.integers[1] = 0; });
  compressedRefused("argument 'keyLength' is -1; it must be at least 0", [](Call& c) { c.arguments.integers[2] = -1; });
  compressedRefused("argument 'keyLength' is 8; it must be at least the query length, 9, or 0 for that",
                    [](Call& c) { c.arguments.integers[2] = 8; });
  compressedRefused("got 2 integer arguments; expected 3: blockLength, stride, keyLength",
                    [](Call& c) { c.arguments.integers.pop_back(); });
  compressedRefused("got 2 boolean arguments; expected at most 1: hasMask", [](Call& c) {
    c.arguments.booleans = {true, true};
  });
  compressedRefused("argument 'scale' is nan", [](Call& c) { c.arguments.reals = {std::nan("")}; });
  compressedRefused("q is INT; expected FLOAT, DOUBLE, HALF or BFLOAT16",
                    [](Call& c) { c.arguments.inputs[0].type = DataType::Int; });
  compressedRefused("kCmp has shape [2, 5, 2, 16]; expected [2, 4, a divisor of 4, 16]",
                    [](Call& c) { c.arguments.inputs[1].shape[1] = 5; });
  compressedRefused("vCmp has shape [2, 4, 1, 8]; expected [2, 4, 2, 1..256]",
                    [](Call& c) { c.arguments.inputs[2].shape[2] = 1; });
  compressedRefused("mask has shape [2, 20]; expected [2, 4]", [](Call& c) { c.arguments.inputs[3].shape[1] = 20; });
  compressedRefused("mask is INT; expected HALF or BOOL", [](Call& c) { c.arguments.inputs[3].type = DataType::Int; });
  compressedRefused("vCmp has no data", [](Call& c) { c.arguments.inputs[2].data = nullptr; });
  compressedRefused("overlaps the input q in memory", [](Call& c) { c.outputs[0].data = c.arguments.inputs[0].data; });
  compressedRefused("which reach beyond any memory",
                    [](Call& c) { c.arguments.inputs[1].strides[1] = std::numeric_limits<int64_t>::max(); });

  selectRefused("argument 'selectionBlock' is 12; it must be a multiple of blockLength, 8",
                [](Call& c) { c.arguments.integers[2] = 12; });
  selectRefused("argument 'selectionBlock' is 0; it must be", [](Call& c) { c.arguments.integers[2] = 0; });
  selectRefused("argument 'topN' is 2; it must be at least 3", [](Call& c) { c.arguments.integers[3] = 2; });
  selectRefused("argument 'blockLength' is -8; it must be", [](Call& c) { c.arguments.integers[0] = -8; });
  selectRefused("lse has shape [2, 9, 4]; expected [2, 4, 9]", [](Call& c) {
    c.arguments.inputs[2] = array(DataType::Float, {2, 9, 4});
  });
  selectRefused("got 3 inputs; expected 4: q, kCmp, lse, mask (hasMask is true)",
                [](Call& c) { c.arguments.inputs.pop_back(); });
  selectRefused("indices is LONG; expected INT", [](Call& c) { c.outputs[0].type = DataType::Long; });
  selectRefused("indices has shape [2, 9, 2, 4]; expected [2, 9, 2, 3]", [](Call& c) { c.outputs[0].shape[3] = 4; });

  selectedRefused("integer argument 1 of (selectionBlock) is 2147483648; it must be at most 2147483647",
                  [](Call& c) { c.arguments.integers[0] = int64_t{1} << 31; });
  selectedRefused("argument 'selectionBlock' is 0; it must be at least 1",
                  [](Call& c) { c.arguments.integers[0] = 0; });
  selectedRefused("k has shape [2, 8, 2, 16]; expected [2, >=9, a divisor of 4, 16]",
                  [](Call& c) { c.arguments.inputs[1].shape[1] = 8; });
  selectedRefused("indices is LONG; expected INT", [](Call& c) { c.arguments.inputs[3].type = DataType::Long; });
  selectedRefused("indices has shape [2, 9, 4, 3]; expected [2, 9, 2, >=1]",
                  [](Call& c) { c.arguments.inputs[3].shape[2] = 4; });
  const auto value = [](int at, int32_t block) {
    return [at, block](Call& c) { numbers(c.arguments.inputs[3])[at] = block; };
  };
  // Row [0, 1, 1] starts at (1 * 2 + 1) * 3 = 9.
  selectedRefused("indices[0, 1, 1, 1] is 3; expected ascending block numbers below 3, then -1", value(10, 3));
  selectedRefused("indices[0, 1, 1, 0] is -2; expected", value(9, -2));
  selectedRefused("indices[0, 1, 1, 1] is 0; expected", value(10, 0));
  selectedRefused("indices[0, 1, 1, 1] is 1; expected", value(9, -1));
  selectedRefused("indices[1, 0, 0, 2] is 2147483647; expected", value(56, INT32_MAX));
}

/// Indices of any layout are read where they are.
void stridedIndices() {
  Call call = selectedCall(false);
  ArrayView& indices = call.arguments.inputs[3];
  indices = array(DataType::Int, {2, 9, 2, 3});
  indices.strides = {54, 6, 3, 1};
  for (int i = 0; i < 108; i++) numbers(indices)[i] = i % 3;
  expect(refusal([&] { nsaSelectedForwardParams(call.arguments, call.outputs); }).empty(), "rows of 0, 1, 2");
  indices.strides = {54, 1, 9, 18};
  for (int i = 0; i < 108; i++) numbers(indices)[i] = i % 54 / 18;
  expect(refusal([&] { nsaSelectedForwardParams(call.arguments, call.outputs); }).empty(), "columns of 0, 1, 2");
}

}  // namespace

int main() {
  paramsAreWhatWasGiven();
  wrongCallsAreRefused();
  stridedIndices();
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
