#include "op/arguments.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <string>

namespace gatedfwa {
namespace {

using Shape = std::vector<int64_t>;

const char* nameOf(DataType type) {
  switch (type) {
    case DataType::Float:
      return "FLOAT";
    case DataType::Double:
      return "DOUBLE";
    case DataType::Half:
      return "HALF";
    case DataType::BFloat16:
      return "BFLOAT16";
    case DataType::Bool:
      return "BOOL";
    case DataType::Byte:
      return "BYTE";
    case DataType::Short:
      return "SHORT";
    case DataType::Int:
      return "INT";
    case DataType::Long:
      return "LONG";
    case DataType::UByte:
      return "UBYTE";
    case DataType::UShort:
      return "UINT16";
    case DataType::UInt:
      return "UINT32";
    case DataType::ULong:
      return "UINT64";
    default:
      return "of an unknown type";
  }
}

ElementType elementType(DataType type) {
  switch (type) {
    case DataType::Float:
      return ElementType::Float32;
    case DataType::Double:
      return ElementType::Float64;
    case DataType::Half:
      return ElementType::Float16;
    case DataType::BFloat16:
      return ElementType::BFloat16;
    case DataType::Bool:
      return ElementType::Bool;
    default:
      throw std::invalid_argument("gated_fwa: not an element type");
  }
}

int64_t sizeOf(DataType type) {
  switch (type) {
    case DataType::Double:
      return 8;
    case DataType::Float:
      return 4;
    case DataType::Bool:
      return 1;
    default:
      return 2;
  }
}

bool isFloatingPoint(DataType type) {
  return type == DataType::Float || type == DataType::Double || type == DataType::Half || type == DataType::BFloat16;
}

/// The type of alpha and lse beside a q of the given type.
DataType accumulatorType(DataType type) { return type == DataType::Double ? DataType::Double : DataType::Float; }

/// No array reaches further, in elements.
constexpr int64_t kMaxExtent = int64_t{1} << 48;

bool isEmpty(const Shape& shape) { return std::find(shape.begin(), shape.end(), 0) != shape.end(); }

std::string toString(const Shape& shape) {
  std::ostringstream text;
  text << '[';
  for (size_t i = 0; i < shape.size(); i++) text << (i ? ", " : "") << shape[i];
  text << ']';
  return text.str();
}

/// What a dimension may be.
struct Dimension {
  enum Rule { Exactly, AtLeast, UpTo, DivisorOf } rule;
  int64_t value;

  bool allows(int64_t size) const {
    switch (rule) {
      case Exactly:
        return size == value;
      case AtLeast:
        return size >= value;
      case UpTo:
        return size >= 1 && size <= value;
      default:
        return size >= 1 && value % size == 0;
    }
  }
  std::string toString() const {
    const std::string number = std::to_string(value);
    switch (rule) {
      case Exactly:
        return number;
      case AtLeast:
        return ">=" + number;
      case UpTo:
        return "1.." + number;
      default:
        return "a divisor of " + number;
    }
  }
};

Dimension exactly(int64_t size) { return {Dimension::Exactly, size}; }
Dimension atLeast(int64_t size) { return {Dimension::AtLeast, size}; }
Dimension upTo(int64_t size) { return {Dimension::UpTo, size}; }
Dimension divisorOf(int64_t size) { return {Dimension::DivisorOf, size}; }

/// The checks, with the op's name at the head of each message.
class Checker {
 public:
  explicit Checker(const char* op) : op_(op) {}

  template <typename... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    std::ostringstream message;
    message << op_ << ": ";
    (message << ... << parts);
    throw std::invalid_argument(message.str());
  }

  void count(const char* what, size_t came, size_t least, size_t most, const std::string& expected) const {
    if (came >= least && came <= most) return;
    fail("got ", came, " ", what, "; expected ", most == 0 ? "none" : expected);
  }

  void type(const char* name, const ArrayView& array, DataType expected) const {
    if (array.type != expected) fail(name, " is ", nameOf(array.type), "; expected ", nameOf(expected));
  }

  void output(const OutputShape& expected, const ArrayView& array) const {
    type(expected.name, array, expected.type);
    if (array.shape != expected.shape)
      fail(expected.name, " has shape ", toString(array.shape), "; expected ", toString(expected.shape));
    if (array.strides.size() != array.shape.size())
      fail(expected.name, " has ", array.strides.size(), " strides; expected ", array.shape.size());
  }

  void shape(const char* name, const ArrayView& array, std::initializer_list<Dimension> expected) const {
    bool right = array.shape.size() == expected.size() && array.strides.size() == expected.size();
    const Dimension* dimension = expected.begin();
    for (size_t i = 0; right && i < expected.size(); i++) right = dimension[i].allows(array.shape[i]);
    if (right) return;
    std::string text;
    for (const Dimension& d : expected) text += (text.empty() ? "" : ", ") + d.toString();
    fail(name, " has shape ", toString(array.shape), "; expected [", text, "]");
  }

  /// Data there is, and its addresses can be computed.
  void data(const char* name, const ArrayView& array) const {
    if (isEmpty(array.shape)) return;
    if (array.data == nullptr) fail(name, " has no data");
    int64_t extent = 0;
    for (size_t i = 0; i < array.shape.size(); i++) {
      int64_t reach;
      if (array.strides[i] == INT64_MIN || __builtin_mul_overflow(std::abs(array.strides[i]), array.shape[i], &reach) ||
          __builtin_add_overflow(extent, reach, &extent) || extent > kMaxExtent)
        fail(name, " has shape ", toString(array.shape), " and strides ", toString(array.strides),
             ", which reach beyond any memory");
    }
  }

 private:
  const char* op_;
};

/// The bytes that a view covers, as a lattice: for a question that shapes alone do not answer.
struct Footprint {
  struct Step {
    int64_t bytes, count;
  };
  int64_t first = 0, length = 0;  ///< [first, first + length) encloses every byte
  std::vector<Step> steps;        ///< strides without sign, ascending; dimensions of one element are left out
  int64_t elementBytes;
  bool empty;

  explicit Footprint(const ArrayView& view) : elementBytes(sizeOf(view.type)), empty(isEmpty(view.shape)) {
    first = reinterpret_cast<int64_t>(view.data);
    length = elementBytes;
    if (empty) return;
    for (size_t i = 0; i < view.shape.size(); i++) {
      const int64_t bytes = view.strides[i] * elementBytes, count = view.shape[i];
      if (count == 1) continue;
      if (bytes < 0) first += bytes * (count - 1);
      length += std::abs(bytes) * (count - 1);
      steps.push_back({std::abs(bytes), count});
    }
    std::sort(steps.begin(), steps.end(), [](const Step& a, const Step& b) { return a.bytes < b.bytes; });
  }

  /// True only if no two elements share an address: each stride steps over all that lies below it.
  bool isInjective() const {
    int64_t extent = elementBytes;
    for (const Step& step : steps) {
      if (step.bytes < extent) return false;
      extent += step.bytes * (step.count - 1);
    }
    return true;
  }

  /// The extent of the steps below `period`, or -1 if a step from there on is no multiple of it.
  int64_t extentBelow(int64_t period) const {
    int64_t extent = elementBytes;
    for (const Step& step : steps) {
      if (step.bytes < period) {
        extent += step.bytes * (step.count - 1);
      } else if (step.bytes % period != 0) {
        return -1;
      }
    }
    return extent;
  }
};

/// True only if the two never meet: apart, or, like q, k and v packed token by token into one array, in different
/// parts of a common period.
bool areDisjoint(const Footprint& a, const Footprint& b) {
  if (a.empty || b.empty) return true;
  if (a.first + a.length <= b.first || b.first + b.length <= a.first) return true;
  for (const Footprint* source : {&a, &b}) {
    for (const Footprint::Step& step : source->steps) {
      const int64_t period = step.bytes;
      if (period == 0) continue;
      const int64_t extentA = a.extentBelow(period), extentB = b.extentBelow(period);
      if (extentA < 0 || extentB < 0) continue;
      const int64_t gap = ((b.first - a.first) % period + period) % period;
      if (gap >= extentA && gap + extentB <= period) return true;
    }
  }
  return false;
}

struct Named {
  const char* name;
  const ArrayView* view;
};

/// Inputs with data; outputs of the right number, type and shape, with data, that overlap nothing.
void checkMemory(const Checker& check, const std::vector<Named>& inputs, const std::vector<OutputShape>& expected,
                 const std::vector<ArrayView>& outputs) {
  for (const Named& input : inputs) check.data(input.name, *input.view);
  check.count("outputs", outputs.size(), expected.size(), expected.size(), std::to_string(expected.size()));
  std::vector<Footprint> written;
  for (size_t i = 0; i < expected.size(); i++) {
    const char* name = expected[i].name;
    check.output(expected[i], outputs[i]);
    check.data(name, outputs[i]);
    written.emplace_back(outputs[i]);
    if (!written[i].empty && !written[i].isInjective())
      check.fail(name, " has shape ", toString(outputs[i].shape), " and strides ", toString(outputs[i].strides),
                 "; expected an array whose elements do not overlap");
    for (size_t j = 0; j < i; j++)
      if (!areDisjoint(written[i], written[j]))
        check.fail("the outputs ", expected[j].name, " and ", name, " overlap in memory; expected separate arrays");
  }
  for (const Named& input : inputs) {
    const Footprint read(*input.view);
    for (size_t i = 0; i < expected.size(); i++)
      if (!areDisjoint(read, written[i]))
        check.fail("the output ", expected[i].name, " overlaps the input ", input.name,
                   " in memory; expected separate arrays");
  }
}

template <typename Tensor>
Tensor tensor(const ArrayView& view) {
  Tensor result;
  result.data = view.data;
  std::copy(view.strides.begin(), view.strides.end(), result.strides);
  // An axis of one element may come with any stride; 1 is what the kernels look for.
  if (view.shape.back() == 1) result.strides[view.shape.size() - 1] = 1;
  return result;
}
Input input(const ArrayView& view) { return tensor<Input>(view); }
Output output(const ArrayView& view) { return tensor<Output>(view); }

/// The checked inputs of gated_fwa and gated_fwa_bp.
struct Attention {
  Checker check;
  bool hasAlpha, hasMask;
  std::vector<Named> inputs;
  const ArrayView *q, *k, *v, *alpha = nullptr, *mask = nullptr, *o = nullptr, *lse = nullptr, *dO = nullptr;
  int64_t batch, queryLength, keyLength, heads, kvHeads, headSize, valueSize;
  int64_t window;
  double scale;

  Attention(const char* op, const OpArguments& arguments, bool backward) : check(op) {
    check.count("integer arguments", arguments.integers.size(), 1, 1, "1: window");
    check.count("floating-point arguments", arguments.reals.size(), 0, 1, "at most 1: scale");
    check.count("boolean arguments", arguments.booleans.size(), 0, 2, "at most 2: hasAlpha, hasMask");
    hasAlpha = !arguments.booleans.empty() && arguments.booleans[0];
    hasMask = arguments.booleans.size() > 1 && arguments.booleans[1];

    std::vector<const char*> names = {"q", "k", "v"};
    if (hasAlpha) names.push_back("alpha");
    if (hasMask) names.push_back("mask");
    if (backward) names.insert(names.end(), {"o", "lse", "dO"});
    if (arguments.inputs.size() != names.size()) {
      std::string list;
      for (const char* name : names) list += (list.empty() ? "" : ", ") + std::string(name);
      check.fail("got ", arguments.inputs.size(), " inputs; expected ", names.size(), ": ", list, " (hasAlpha is ",
                 hasAlpha ? "true" : "false", ", hasMask is ", hasMask ? "true" : "false", ")");
    }
    size_t next = 0;
    const auto take = [&] {
      inputs.push_back({names[next], &arguments.inputs[next]});
      return &arguments.inputs[next++];
    };
    q = take();
    k = take();
    v = take();
    if (hasAlpha) alpha = take();
    if (hasMask) mask = take();
    if (backward) {
      o = take();
      lse = take();
      dO = take();
    }

    window = arguments.integers[0];
    if (window < 1) check.fail("argument 'window' is ", window, "; it must be at least 1");
    const double asked = arguments.reals.empty() ? 0 : arguments.reals[0];
    if (!std::isfinite(asked)) check.fail("argument 'scale' is ", asked, "; it must be finite (0 means 1/sqrt(D))");

    if (!isFloatingPoint(q->type)) check.fail("q is ", nameOf(q->type), "; expected FLOAT, DOUBLE, HALF or BFLOAT16");
    check.shape("q", *q, {atLeast(0), atLeast(0), atLeast(1), upTo(kMaxHeadSize)});
    batch = q->shape[0];
    queryLength = q->shape[1];
    heads = q->shape[2];
    headSize = q->shape[3];
    scale = asked != 0 ? asked : 1 / std::sqrt(static_cast<double>(headSize));

    check.type("k", *k, q->type);
    check.shape("k", *k, {exactly(batch), atLeast(queryLength), divisorOf(heads), exactly(headSize)});
    keyLength = k->shape[1];
    kvHeads = k->shape[2];
    check.type("v", *v, q->type);
    check.shape("v", *v, {exactly(batch), exactly(keyLength), exactly(kvHeads), upTo(kMaxHeadSize)});
    valueSize = v->shape[3];
    if (hasAlpha) {
      check.type("alpha", *alpha, accumulatorType(q->type));
      check.shape("alpha", *alpha, {exactly(batch), exactly(keyLength), exactly(heads)});
    }
    if (hasMask) {
      if (mask->type != q->type && mask->type != DataType::Bool)
        check.fail("mask is ", nameOf(mask->type), "; expected ", nameOf(q->type), " or BOOL");
      check.shape("mask", *mask, {exactly(batch), exactly(keyLength)});
    }
    if (backward) {
      check.type("o", *o, q->type);
      check.shape("o", *o, {exactly(batch), exactly(queryLength), exactly(heads), exactly(valueSize)});
      check.type("lse", *lse, accumulatorType(q->type));
      check.shape("lse", *lse, {exactly(batch), exactly(heads), exactly(queryLength)});
      check.type("dO", *dO, q->type);
      check.shape("dO", *dO, {exactly(batch), exactly(queryLength), exactly(heads), exactly(valueSize)});
    }
  }

  void fill(AttentionProblem& problem) const {
    problem.type = elementType(q->type);
    problem.maskType = hasMask ? elementType(mask->type) : problem.type;
    problem.batch = batch;
    problem.queryLength = queryLength;
    problem.keyLength = keyLength;
    problem.heads = heads;
    problem.kvHeads = kvHeads;
    problem.headSize = headSize;
    problem.valueSize = valueSize;
    problem.window = window;
    problem.scale = scale;
    problem.q = input(*q);
    problem.k = input(*k);
    problem.v = input(*v);
    if (hasAlpha) problem.alpha = input(*alpha);
    if (hasMask) problem.mask = input(*mask);
  }

  std::vector<OutputShape> forwardShapes() const {
    return {{"o", q->type, {batch, queryLength, heads, valueSize}},
            {"lse", accumulatorType(q->type), {batch, heads, queryLength}}};
  }

  std::vector<OutputShape> backwardShapes() const {
    std::vector<OutputShape> shapes = {{"dq", q->type, q->shape}, {"dk", q->type, k->shape}, {"dv", q->type, v->shape}};
    if (hasAlpha) shapes.push_back({"dalpha", alpha->type, alpha->shape});
    return shapes;
  }
};

/// The checked inputs of gated_fwa_gate and gated_fwa_gate_bp.
struct Gate {
  Checker check;
  std::vector<Named> inputs;
  const ArrayView* h;
  double eps;

  Gate(const char* op, const OpArguments& arguments, std::initializer_list<const char*> names) : check(op) {
    check.count("integer arguments", arguments.integers.size(), 0, 0, "none");
    check.count("floating-point arguments", arguments.reals.size(), 0, 1, "at most 1: eps");
    check.count("boolean arguments", arguments.booleans.size(), 0, 0, "none");
    if (arguments.inputs.size() != names.size()) {
      std::string list;
      for (const char* name : names) list += (list.empty() ? "" : ", ") + std::string(name);
      check.fail("got ", arguments.inputs.size(), " inputs; expected ", names.size(), ": ", list);
    }
    eps = arguments.reals.empty() ? kDefaultEps : arguments.reals[0];
    if (!std::isfinite(eps) || eps < 0) check.fail("argument 'eps' is ", eps, "; it must be finite and at least 0");

    h = &arguments.inputs[0];
    if (h->type != DataType::Float && h->type != DataType::Double)
      check.fail("h is ", nameOf(h->type), "; expected FLOAT or DOUBLE");
    check.shape("h", *h, {atLeast(0), atLeast(0), atLeast(1)});
    const char* const* name = names.begin();
    for (const ArrayView& array : arguments.inputs) {
      check.type(*name, array, h->type);
      check.shape(*name, array, {exactly(h->shape[0]), exactly(h->shape[1]), exactly(h->shape[2])});
      inputs.push_back({*name++, &array});
    }
  }

  OutputShape output(const char* name) const { return {name, h->type, h->shape}; }

  template <typename Params>
  Params params() const {
    Params result;
    result.type = elementType(h->type);
    result.batch = h->shape[0];
    result.length = h->shape[1];
    result.heads = h->shape[2];
    result.eps = eps;
    result.h = input(*inputs[0].view);
    result.beta = input(*inputs[1].view);
    return result;
  }
};

Attention forwardOf(const OpArguments& arguments) { return Attention("gated_fwa", arguments, false); }
Attention backwardOf(const OpArguments& arguments) { return Attention("gated_fwa_bp", arguments, true); }
Gate gateOf(const OpArguments& arguments) { return Gate("gated_fwa_gate", arguments, {"h", "beta"}); }
Gate gateGradientOf(const OpArguments& arguments) {
  return Gate("gated_fwa_gate_bp", arguments, {"h", "beta", "dalpha"});
}

std::vector<OutputShape> shapesOf(const Gate& gate) { return {gate.output("alpha")}; }
std::vector<OutputShape> gradientShapesOf(const Gate& gate) { return {gate.output("dh"), gate.output("dbeta")}; }

}  // namespace

std::vector<OutputShape> attentionForwardShapes(const OpArguments& arguments) {
  return forwardOf(arguments).forwardShapes();
}

std::vector<OutputShape> attentionBackwardShapes(const OpArguments& arguments) {
  return backwardOf(arguments).backwardShapes();
}

std::vector<OutputShape> gateForwardShapes(const OpArguments& arguments) { return shapesOf(gateOf(arguments)); }

std::vector<OutputShape> gateBackwardShapes(const OpArguments& arguments) {
  return gradientShapesOf(gateGradientOf(arguments));
}

void checkOutput(const char* op, const OutputShape& expected, const ArrayView& output) {
  Checker(op).output(expected, output);
}

AttentionForward attentionForwardParams(const OpArguments& arguments, const std::vector<ArrayView>& outputs) {
  const Attention attention = forwardOf(arguments);
  checkMemory(attention.check, attention.inputs, attention.forwardShapes(), outputs);
  AttentionForward params;
  attention.fill(params);
  params.o = output(outputs[0]);
  params.lse = output(outputs[1]);
  return params;
}

AttentionBackward attentionBackwardParams(const OpArguments& arguments, const std::vector<ArrayView>& outputs) {
  const Attention attention = backwardOf(arguments);
  checkMemory(attention.check, attention.inputs, attention.backwardShapes(), outputs);
  AttentionBackward params;
  attention.fill(params);
  params.o = input(*attention.o);
  params.lse = input(*attention.lse);
  params.dO = input(*attention.dO);
  params.dq = output(outputs[0]);
  params.dk = output(outputs[1]);
  params.dv = output(outputs[2]);
  if (attention.hasAlpha) params.dalpha = output(outputs[3]);
  return params;
}

GateForward gateForwardParams(const OpArguments& arguments, const std::vector<ArrayView>& outputs) {
  const Gate gate = gateOf(arguments);
  checkMemory(gate.check, gate.inputs, shapesOf(gate), outputs);
  GateForward params = gate.params<GateForward>();
  params.alpha = output(outputs[0]);
  return params;
}

GateBackward gateBackwardParams(const OpArguments& arguments, const std::vector<ArrayView>& outputs) {
  const Gate gate = gateGradientOf(arguments);
  checkMemory(gate.check, gate.inputs, gradientShapesOf(gate), outputs);
  GateBackward params = gate.params<GateBackward>();
  params.dalpha = input(*gate.inputs[2].view);
  params.dh = output(outputs[0]);
  params.dbeta = output(outputs[1]);
  return params;
}

}  // namespace gatedfwa
