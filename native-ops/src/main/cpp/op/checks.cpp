#include "op/checks.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace gatedfwa {
namespace {

using Shape = std::vector<int64_t>;

int64_t sizeOf(DataType type) {
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

/// No array reaches further, in elements.
constexpr int64_t kMaxExtent = int64_t{1} << 48;

bool isEmpty(const Shape& shape) { return std::find(shape.begin(), shape.end(), 0) != shape.end(); }

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

template <typename Tensor>
Tensor tensor(const ArrayView& view) {
  Tensor result;
  result.data = view.data;
  std::copy(view.strides.begin(), view.strides.end(), result.strides);
  // An axis of one element may come with any stride; 1 is what the kernels look for.
  if (view.shape.back() == 1) result.strides[view.shape.size() - 1] = 1;
  return result;
}

}  // namespace

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

bool isFloatingPoint(DataType type) {
  return type == DataType::Float || type == DataType::Double || type == DataType::Half || type == DataType::BFloat16;
}

DataType accumulatorType(DataType type) { return type == DataType::Double ? DataType::Double : DataType::Float; }

std::string toString(const Shape& shape) {
  std::ostringstream text;
  text << '[';
  for (size_t i = 0; i < shape.size(); i++) text << (i ? ", " : "") << shape[i];
  text << ']';
  return text.str();
}

bool Dimension::allows(int64_t size) const {
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

std::string Dimension::toString() const {
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

void Checker::count(const char* what, size_t came, size_t least, size_t most, const std::string& expected) const {
  if (came >= least && came <= most) return;
  fail("got ", came, " ", what, "; expected ", most == 0 ? "none" : expected);
}

std::vector<Named> Checker::inputs(const OpArguments& arguments, const std::vector<const char*>& names,
                                   const std::string& note) const {
  if (arguments.inputs.size() != names.size()) {
    std::string list;
    for (const char* name : names) list += (list.empty() ? "" : ", ") + std::string(name);
    fail("got ", arguments.inputs.size(), " inputs; expected ", names.size(), ": ", list, note);
  }
  std::vector<Named> named;
  for (size_t i = 0; i < names.size(); i++) named.push_back({names[i], &arguments.inputs[i]});
  return named;
}

void Checker::type(const char* name, const ArrayView& array, DataType expected) const {
  if (array.type != expected) fail(name, " is ", nameOf(array.type), "; expected ", nameOf(expected));
}

void Checker::shape(const char* name, const ArrayView& array, std::initializer_list<Dimension> expected) const {
  bool right = array.shape.size() == expected.size() && array.strides.size() == expected.size();
  const Dimension* dimension = expected.begin();
  for (size_t i = 0; right && i < expected.size(); i++) right = dimension[i].allows(array.shape[i]);
  if (right) return;
  std::string text;
  for (const Dimension& d : expected) text += (text.empty() ? "" : ", ") + d.toString();
  fail(name, " has shape ", toString(array.shape), "; expected [", text, "]");
}

void Checker::output(const OutputShape& expected, const ArrayView& array) const {
  type(expected.name, array, expected.type);
  if (array.shape != expected.shape)
    fail(expected.name, " has shape ", toString(array.shape), "; expected ", toString(expected.shape));
  if (array.strides.size() != array.shape.size())
    fail(expected.name, " has ", array.strides.size(), " strides; expected ", array.shape.size());
}

void Checker::queries(const ArrayView& q) const {
  if (!isFloatingPoint(q.type)) fail("q is ", nameOf(q.type), "; expected FLOAT, DOUBLE, HALF or BFLOAT16");
  shape("q", q, {atLeast(0), atLeast(0), atLeast(1), upTo(kMaxHeadSize)});
}

void Checker::mask(const ArrayView& mask, DataType expected, int64_t batch, int64_t keys) const {
  if (mask.type != expected && mask.type != DataType::Bool)
    fail("mask is ", nameOf(mask.type), "; expected ", nameOf(expected), " or BOOL");
  shape("mask", mask, {exactly(batch), exactly(keys)});
}

void Checker::lse(const ArrayView& lse, const ArrayView& q) const {
  type("lse", lse, accumulatorType(q.type));
  shape("lse", lse, {exactly(q.shape[0]), exactly(q.shape[2]), exactly(q.shape[1])});
}

void Checker::results(const ArrayView& o, const ArrayView& ownLse, const ArrayView& dO, const ArrayView& q,
                      int64_t valueSize) const {
  const auto like = {exactly(q.shape[0]), exactly(q.shape[1]), exactly(q.shape[2]), exactly(valueSize)};
  type("o", o, q.type);
  shape("o", o, like);
  lse(ownLse, q);
  type("dO", dO, q.type);
  shape("dO", dO, like);
}

double Checker::scale(const OpArguments& arguments, int64_t headSize) const {
  const double asked = arguments.reals.empty() ? 0 : arguments.reals[0];
  if (!std::isfinite(asked)) fail("argument 'scale' is ", asked, "; it must be finite (0 means 1/sqrt(D))");
  return asked != 0 ? asked : 1 / std::sqrt(static_cast<double>(headSize));
}

void Checker::data(const char* name, const ArrayView& array) const {
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

void Checker::memory(const std::vector<Named>& inputs, const std::vector<OutputShape>& expected,
                     const std::vector<ArrayView>& outputs) const {
  for (const Named& input : inputs) data(input.name, *input.view);
  count("outputs", outputs.size(), expected.size(), expected.size(), std::to_string(expected.size()));
  std::vector<Footprint> written;
  for (size_t i = 0; i < expected.size(); i++) {
    const char* name = expected[i].name;
    output(expected[i], outputs[i]);
    data(name, outputs[i]);
    written.emplace_back(outputs[i]);
    if (!written[i].empty && !written[i].isInjective())
      fail(name, " has shape ", toString(outputs[i].shape), " and strides ", toString(outputs[i].strides),
           "; expected an array whose elements do not overlap");
    for (size_t j = 0; j < i; j++)
      if (!areDisjoint(written[i], written[j]))
        fail("the outputs ", expected[j].name, " and ", name, " overlap in memory; expected separate arrays");
  }
  for (const Named& input : inputs) {
    const Footprint read(*input.view);
    for (size_t i = 0; i < expected.size(); i++)
      if (!areDisjoint(read, written[i]))
        fail("the output ", expected[i].name, " overlaps the input ", input.name,
             " in memory; expected separate arrays");
  }
}

Input input(const ArrayView& view) { return tensor<Input>(view); }
Output output(const ArrayView& view) { return tensor<Output>(view); }

}  // namespace gatedfwa
