// Fuzz target of the checks between a framework and the kernels (op/arguments.h, op/nsa_arguments.h). The input's bytes
// are a right call of an op and changes to it. A call is refused with a std::invalid_argument that begins with the op's
// name, or it is safe: its outputs overlap nothing, and a kernel that runs it on the arrays changes no byte outside of
// its outputs.
//
// libFuzzer calls LLVMFuzzerTestOneInput; with GATEDFWA_FUZZ_REPLAY a main of our own runs the files of a folder.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "op/nsa_arguments.h"
#ifdef GATEDFWA_FUZZ_REPLAY
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>

#include "cpu/cpu_kernels.h"
#endif

namespace {

using namespace gatedfwa;

/// All arrays of right calls lie in the middle part: what a few changed strides reach is still inside.
constexpr size_t kArena = 1 << 16;
alignas(64) char arena[kArena];
#ifdef GATEDFWA_FUZZ_REPLAY
char before[kArena];
#endif

/// More elements than this are not looked at one by one.
constexpr int64_t kMaxElements = 2048;

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "arguments_fuzz: %s\n", what.c_str());
  std::abort();
}

/// The input as numbers; zeros once it is used up.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  bool empty() const { return at_ >= size_; }
  uint8_t byte() { return empty() ? 0 : data_[at_++]; }
  size_t below(size_t limit) { return byte() % limit; }

  int64_t wide() {
    uint64_t value = 0;
    for (int i = 0; i < 8; i++) value = value << 8 | byte();
    return static_cast<int64_t>(value);
  }

  /// Mostly small, sometimes at an edge, sometimes anything.
  int64_t number() {
    static const int64_t edges[] = {256,       257,       INT32_MAX,          int64_t{1} << 31, int64_t{1} << 47,
                                    INT64_MAX, INT64_MIN, -(int64_t{1} << 48)};
    const uint8_t kind = byte();
    if (kind < 192) return kind - 64;
    return kind < 224 ? edges[kind % 8] : wide();
  }

  double real() {
    const int64_t bits = wide();
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }

 private:
  const uint8_t* data_;
  size_t size_, at_ = 0;
};

struct Call {
  const char* op;
  OpArguments arguments;
  std::vector<ArrayView> outputs;
};

/// Arrays one behind the other.
class Layout {
 public:
  ArrayView array(DataType type, std::vector<int64_t> shape) {
    ArrayView view;
    view.type = type;
    view.strides.resize(shape.size());
    int64_t count = 1;
    for (size_t i = shape.size(); i-- > 0; count *= shape[i]) view.strides[i] = count;
    view.shape = std::move(shape);
    view.data = arena + at_;
    at_ = std::min(at_ + static_cast<size_t>(count) * 8, kArena - 8);
    return view;
  }

 private:
  size_t at_ = kArena / 4;
};

constexpr const char* kNsaOps[] = {"nsa_compressed_attention", "nsa_compressed_attention_bp", "nsa_selected_attention",
                                   "nsa_selected_attention_bp", "nsa_select"};

/// A right call of kNsaOps[op].
Call rightNsaCall(Bytes& bytes, size_t op, DataType type, DataType accumulator) {
  const bool compressed = op < 2, select = op == 4, gradient = op % 2 == 1;
  const int64_t batch = bytes.below(3), queries = bytes.below(6), length = queries + bytes.below(12);
  const int64_t kvHeads = 1 + bytes.below(2), heads = kvHeads * (1 + bytes.below(3));
  const int64_t size = 1 + bytes.below(9), valueSize = 1 + bytes.below(9);
  const int64_t stride = 1 + bytes.below(3), block = stride * (1 + bytes.below(2));
  const int64_t selectionBlock = block * (1 + bytes.below(2)), topN = 3 + bytes.below(3);
  const uint8_t flags = bytes.byte();
  const int64_t keys = compressed || select ? (length < block ? 0 : (length - block) / stride + 1) : length;
  Layout layout;
  Call call;
  call.op = kNsaOps[op];
  std::vector<ArrayView>& inputs = call.arguments.inputs;
  inputs = {layout.array(type, {batch, queries, heads, size}), layout.array(type, {batch, keys, kvHeads, size})};
  const ArrayView lse = layout.array(accumulator, {batch, heads, queries});
  const ArrayView indices = layout.array(DataType::Int, {batch, queries, kvHeads, topN});
  inputs.push_back(select ? lse : layout.array(type, {batch, keys, kvHeads, valueSize}));
  if (!compressed && !select) inputs.push_back(indices);
  if (flags & 1) inputs.push_back(layout.array(flags & 2 ? DataType::Bool : type, {batch, keys}));
  call.arguments.booleans = {(flags & 1) != 0};
  call.arguments.integers = compressed ? std::vector<int64_t>{block, stride, length}
                            : select   ? std::vector<int64_t>{block, stride, selectionBlock, topN, length}
                                       : std::vector<int64_t>{selectionBlock};
  const ArrayView o = layout.array(type, {batch, queries, heads, valueSize});
  if (select) {
    call.outputs = {indices};
  } else if (!gradient) {
    call.outputs = {o, lse};
  } else {
    inputs.insert(inputs.end(), {o, lse, layout.array(type, {batch, queries, heads, valueSize})});
    for (size_t i = 0; i < 3; i++) call.outputs.push_back(layout.array(inputs[i].type, inputs[i].shape));
  }
  return call;
}

Call rightCall(Bytes& bytes) {
  static const DataType types[] = {DataType::Float, DataType::Double, DataType::Half, DataType::BFloat16};
  const size_t op = bytes.below(9);
  const DataType type = types[bytes.below(4)];
  const DataType accumulator = type == DataType::Double ? DataType::Double : DataType::Float;
  if (op >= 4) return rightNsaCall(bytes, op - 4, type, accumulator);
  const int64_t batch = bytes.below(3), queries = bytes.below(6), keys = queries + bytes.below(4);
  const int64_t kvHeads = 1 + bytes.below(2), heads = kvHeads * (1 + bytes.below(3));
  Layout layout;
  Call call;
  if (op >= 2) {
    call.op = op == 2 ? "gated_fwa_gate" : "gated_fwa_gate_bp";
    for (size_t i = 0; i < op; i++) call.arguments.inputs.push_back(layout.array(accumulator, {batch, queries, heads}));
    for (size_t i = 1; i < op; i++) call.outputs.push_back(layout.array(accumulator, {batch, queries, heads}));
    return call;
  }
  call.op = op == 0 ? "gated_fwa" : "gated_fwa_bp";
  const int64_t size = 1 + bytes.below(9), valueSize = 1 + bytes.below(9);
  const uint8_t flags = bytes.byte();
  std::vector<ArrayView>& inputs = call.arguments.inputs;
  inputs = {layout.array(type, {batch, queries, heads, size}), layout.array(type, {batch, keys, kvHeads, size}),
            layout.array(type, {batch, keys, kvHeads, valueSize})};
  if (flags & 1) inputs.push_back(layout.array(accumulator, {batch, keys, heads}));
  if (flags & 2) inputs.push_back(layout.array(flags & 4 ? DataType::Bool : type, {batch, keys}));
  call.arguments.integers = {1 + static_cast<int64_t>(bytes.below(8))};
  call.arguments.booleans = {(flags & 1) != 0, (flags & 2) != 0};
  const ArrayView o = layout.array(type, {batch, queries, heads, valueSize});
  const ArrayView lse = layout.array(accumulator, {batch, heads, queries});
  if (op == 0) {
    call.outputs = {o, lse};
  } else {
    inputs.insert(inputs.end(), {o, lse, layout.array(type, {batch, queries, heads, valueSize})});
    for (size_t i = 0; i < (flags & 1 ? 4u : 3u); i++)
      call.outputs.push_back(layout.array(inputs[i].type, inputs[i].shape));
  }
  return call;
}

void changeArray(Bytes& bytes, ArrayView& view) {
  const size_t axis = view.shape.empty() ? 0 : bytes.below(view.shape.size());
  switch (bytes.below(7)) {
    case 0:
      view.type = static_cast<DataType>(bytes.below(14));
      break;
    case 1:
      if (!view.shape.empty()) view.shape[axis] = bytes.number();
      break;
    case 2:
      if (!view.strides.empty()) view.strides[axis % view.strides.size()] = bytes.number();
      break;
    case 3:
      view.shape.push_back(bytes.number());
      view.strides.push_back(bytes.number());
      break;
    case 4:
      if (!view.shape.empty()) view.shape.pop_back();
      if (!view.strides.empty() && bytes.below(8) > 0) view.strides.pop_back();
      break;
    case 5:
      view.data = arena + 8 * (bytes.byte() * 32 + bytes.below(32));
      break;
    default:
      view.data = bytes.below(2) ? nullptr : reinterpret_cast<void*>(bytes.wide() & ~int64_t{7});
  }
}

void change(Bytes& bytes, Call& call) {
  OpArguments& arguments = call.arguments;
  std::vector<ArrayView>& arrays = bytes.below(2) ? arguments.inputs : call.outputs;
  switch (bytes.below(12)) {
    case 0:
      arguments.integers.push_back(bytes.number());
      break;
    case 1:
      if (!arguments.integers.empty()) arguments.integers.back() = bytes.number();
      break;
    case 2:
      arguments.reals.push_back(bytes.real());
      break;
    case 3:
      arguments.booleans.assign(bytes.below(4), bytes.below(2) != 0);
      break;
    case 4:
      if (!arrays.empty()) arrays.pop_back();
      break;
    case 5:
      if (!arguments.inputs.empty()) arrays.push_back(arguments.inputs[bytes.below(arguments.inputs.size())]);
      break;
    case 6:
      if (!arguments.integers.empty()) arguments.integers.pop_back();
      break;
    default:
      if (!arrays.empty()) changeArray(bytes, arrays[bytes.below(arrays.size())]);
  }
}

size_t sizeOf(DataType type) {
  switch (type) {
    case DataType::Double:
      return 8;
    case DataType::Float:
    case DataType::Int:
      return 4;
    case DataType::Bool:
      return 1;
    default:
      return 2;
  }
}

/// Addresses of all elements; more than kMaxElements give false.
bool addresses(const ArrayView& view, std::vector<intptr_t>& out) {
  int64_t count = 1;
  for (const int64_t size : view.shape) {
    if (size == 0) count = 0;
    if (__builtin_mul_overflow(count, size, &count) || count > kMaxElements) return false;
  }
  for (int64_t i = 0; i < count; i++) {
    int64_t rest = i, offset = 0;
    for (size_t axis = view.shape.size(); axis-- > 0; rest /= view.shape[axis])
      offset += rest % view.shape[axis] * view.strides[axis];
    out.push_back(reinterpret_cast<intptr_t>(view.data) + offset * static_cast<int64_t>(sizeOf(view.type)));
  }
  return true;
}

bool inArena(const std::vector<intptr_t>& elements, size_t size) {
  const intptr_t first = reinterpret_cast<intptr_t>(arena);
  return std::all_of(elements.begin(), elements.end(), [&](intptr_t at) {
    return at >= first && at + static_cast<intptr_t>(size) <= first + static_cast<intptr_t>(kArena);
  });
}

/// Looks at an accepted call element by element; answers whether a kernel may run on it here.
bool checkAccepted(const Call& call, std::vector<std::vector<intptr_t>>& written) {
  bool runnable = true, small = true;
  std::set<intptr_t> bytesWritten;
  for (const ArrayView& output : call.outputs) {
    written.emplace_back();
    if (!addresses(output, written.back())) {
      small = false;
      continue;
    }
    runnable = runnable && inArena(written.back(), sizeOf(output.type));
    for (const intptr_t at : written.back())
      for (size_t i = 0; i < sizeOf(output.type); i++)
        if (!bytesWritten.insert(at + static_cast<intptr_t>(i)).second)
          fail(std::string(call.op) + ": accepted outputs with two elements at one address");
  }
  for (const ArrayView& input : call.arguments.inputs) {
    std::vector<intptr_t> read;
    if (!addresses(input, read)) {
      small = false;
      continue;
    }
    runnable = runnable && inArena(read, sizeOf(input.type));
    for (const intptr_t at : read)
      for (size_t i = 0; i < sizeOf(input.type); i++)
        if (bytesWritten.count(at + static_cast<intptr_t>(i)))
          fail(std::string(call.op) + ": accepted an output that overlaps an input");
  }
  return runnable && small;
}

/// Numbers of all sizes; in an array of indices, where that is in the arena, blocks 0, 1, .. and, from the query's own
/// on, -1. Answers whether that is so.
bool fillArena(const ArrayView* indices, int64_t selectionBlock) {
  for (size_t i = 0; i < kArena; i++) arena[i] = static_cast<char>(i % 61 + (i % 2) * 30);
  if (!indices) return true;
  std::vector<intptr_t> elements;
  if (indices->type != DataType::Int || indices->shape.size() != 4 || indices->strides.size() != 4 ||
      !addresses(*indices, elements) || !inArena(elements, 4))
    return false;
  const int64_t topN = indices->shape[3];
  for (size_t i = 0; i < elements.size(); i++) {
    const int64_t row = static_cast<int64_t>(i) / (topN * std::max<int64_t>(1, indices->shape[2]));
    const int64_t place = static_cast<int64_t>(i) % topN, query = row % std::max<int64_t>(1, indices->shape[1]);
    const int32_t block = selectionBlock > 0 && place <= query / selectionBlock ? static_cast<int32_t>(place) : -1;
    std::memcpy(reinterpret_cast<void*>(elements[i]), &block, sizeof block);
  }
  return true;
}

#ifdef GATEDFWA_FUZZ_REPLAY
template <typename Params>
void runKernel(const Call& call, const std::vector<std::vector<intptr_t>>& written, const Params& params,
               void (*kernel)(const Params&, const gatedfwa::Executor&, cpu::InstructionSet)) {
  std::memcpy(before, arena, kArena);
  const gatedfwa::Executor executor{1, [](int workers, const std::function<void(int)>& body) {
                                      for (int i = 0; i < workers; i++) body(i);
                                    }};
  kernel(params, executor, cpu::detectInstructionSet());
  for (size_t i = 0; i < written.size(); i++)
    for (const intptr_t at : written[i]) {
      const size_t offset = static_cast<size_t>(at - reinterpret_cast<intptr_t>(arena));
      std::memcpy(before + offset, arena + offset, sizeOf(call.outputs[i].type));
    }
  if (std::memcmp(before, arena, kArena) != 0) fail(std::string(call.op) + ": wrote outside of its outputs");
}
void runKernel(const Call& call, const std::vector<std::vector<intptr_t>>& written, const AttentionForward& params) {
  runKernel(call, written, params, cpu::attentionForward);
}
void runKernel(const Call& call, const std::vector<std::vector<intptr_t>>& written, const AttentionBackward& params) {
  runKernel(call, written, params, cpu::attentionBackward);
}
void runKernel(const Call& call, const std::vector<std::vector<intptr_t>>& written, const GateForward& params) {
  runKernel(call, written, params, cpu::gateForward);
}
void runKernel(const Call& call, const std::vector<std::vector<intptr_t>>& written, const GateBackward& params) {
  runKernel(call, written, params, cpu::gateBackward);
}
void runKernel(const Call& call, const std::vector<std::vector<intptr_t>>& written,
               const NsaCompressedForward& params) {
  runKernel(call, written, params, cpu::nsaCompressedForward);
}
void runKernel(const Call& call, const std::vector<std::vector<intptr_t>>& written,
               const NsaCompressedBackward& params) {
  runKernel(call, written, params, cpu::nsaCompressedBackward);
}
void runKernel(const Call& call, const std::vector<std::vector<intptr_t>>& written, const NsaSelect& params) {
  runKernel(call, written, params, cpu::nsaSelect);
}
void runKernel(const Call& call, const std::vector<std::vector<intptr_t>>& written, const NsaSelectedForward& params) {
  runKernel(call, written, params, cpu::nsaSelectedForward);
}
void runKernel(const Call& call, const std::vector<std::vector<intptr_t>>& written, const NsaSelectedBackward& params) {
  runKernel(call, written, params, cpu::nsaSelectedBackward);
}
#else
template <typename Params>
void runKernel(const Call&, const std::vector<std::vector<intptr_t>>&, const Params&) {}
#endif

template <typename Params>
void run(const Call& call, const Params& params) {
  std::vector<std::vector<intptr_t>> written;
  if (checkAccepted(call, written)) runKernel(call, written, params);
}

void check(const Call& call) {
  const std::string op = call.op;
  const OpArguments& arguments = call.arguments;
  std::vector<OutputShape> shapes;
  const bool selected = op == "nsa_selected_attention" || op == "nsa_selected_attention_bp";
  // Where the indices are nowhere, they are not looked at, as those on a GPU, and no kernel runs.
  const bool filled = fillArena(selected && arguments.inputs.size() > 3 ? &arguments.inputs[3] : nullptr,
                                arguments.integers.empty() ? 0 : arguments.integers[0]);
  try {
    if (op == "gated_fwa") {
      shapes = attentionForwardShapes(arguments);
      run(call, attentionForwardParams(arguments, call.outputs));
    } else if (op == "gated_fwa_bp") {
      shapes = attentionBackwardShapes(arguments);
      run(call, attentionBackwardParams(arguments, call.outputs));
    } else if (op == "gated_fwa_gate") {
      shapes = gateForwardShapes(arguments);
      run(call, gateForwardParams(arguments, call.outputs));
    } else if (op == "gated_fwa_gate_bp") {
      shapes = gateBackwardShapes(arguments);
      run(call, gateBackwardParams(arguments, call.outputs));
    } else if (op == "nsa_compressed_attention") {
      shapes = nsaCompressedForwardShapes(arguments);
      run(call, nsaCompressedForwardParams(arguments, call.outputs));
    } else if (op == "nsa_compressed_attention_bp") {
      shapes = nsaCompressedBackwardShapes(arguments);
      run(call, nsaCompressedBackwardParams(arguments, call.outputs));
    } else if (op == "nsa_select") {
      shapes = nsaSelectShapes(arguments);
      run(call, nsaSelectParams(arguments, call.outputs));
    } else if (op == "nsa_selected_attention") {
      shapes = nsaSelectedForwardShapes(arguments);
      const NsaSelectedForward params = nsaSelectedForwardParams(arguments, call.outputs, filled);
      if (filled) run(call, params);
    } else {
      shapes = nsaSelectedBackwardShapes(arguments);
      const NsaSelectedBackward params = nsaSelectedBackwardParams(arguments, call.outputs, filled);
      if (filled) run(call, params);
    }
    for (size_t i = 0; i < shapes.size(); i++)
      if (call.outputs[i].shape != shapes[i].shape) fail(op + ": accepted an output of another shape");
  } catch (const std::invalid_argument& refusal) {
    const std::string message = refusal.what();
    if (message.rfind(op + ": ", 0) != 0) fail(op + ": refused with the message '" + message + "'");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  Call call = rightCall(bytes);
  while (!bytes.empty()) change(bytes, call);
  check(call);
  return 0;
}

#ifdef GATEDFWA_FUZZ_REPLAY
/// Runs every file of the folder given as the only argument.
int main(int, char** arguments) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(arguments[1])) {
    std::ifstream file(entry.path(), std::ios::binary);
    const std::vector<char> content((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(content.data()), content.size());
    files++;
  }
  std::printf("%d inputs\n", files);
  return files > 0 ? 0 : 1;
}
#endif
