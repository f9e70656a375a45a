#include "op/plugin_op.h"

#include <algorithm>
#include <new>
#include <stdexcept>
#include <string>

namespace gatedfwa {
namespace {

constexpr int kAnyNumber = -2;

DataType dataType(sd::LongType word) {
  const auto has = [word](sd::LongType flag) { return (word & flag) == flag; };
  if (has(sd::flags::kHalf)) return DataType::Half;
  if (has(sd::flags::kBFloat16)) return DataType::BFloat16;
  if (has(sd::flags::kFloat)) return DataType::Float;
  if (has(sd::flags::kDouble)) return DataType::Double;
  const bool isUnsigned = has(sd::flags::kUnsigned);
  if (has(sd::flags::kInt)) return isUnsigned ? DataType::UInt : DataType::Int;
  if (has(sd::flags::kLong)) return isUnsigned ? DataType::ULong : DataType::Long;
  if (has(sd::flags::kBool)) return DataType::Bool;
  if (has(sd::flags::kByte)) return isUnsigned ? DataType::UByte : DataType::Byte;
  if (has(sd::flags::kShort)) return isUnsigned ? DataType::UShort : DataType::Short;
  return DataType::Other;
}

sd::DataType dataType(DataType type) {
  switch (type) {
    case DataType::Double:
      return sd::DataType::DOUBLE;
    case DataType::Half:
      return sd::DataType::HALF;
    case DataType::BFloat16:
      return sd::DataType::BFLOAT16;
    case DataType::Int:
      return sd::DataType::INT32;
    default:
      return sd::DataType::FLOAT32;
  }
}

/// Of rank, shape.., strides.., type flags, ..
ArrayView viewOf(const sd::LongType* shapeInfo) {
  ArrayView view;
  const size_t rank = static_cast<size_t>(shapeInfo[0]);
  view.shape.assign(shapeInfo + 1, shapeInfo + 1 + rank);
  view.strides.assign(shapeInfo + 1 + rank, shapeInfo + 1 + 2 * rank);
  view.type = dataType(shapeInfo[1 + 2 * rank]);
  return view;
}

ArrayView viewOf(const char* op, const char* kind, size_t index, sd::NDArray* array) {
  if (array == nullptr)
    throw std::invalid_argument(std::string(op) + ": " + kind + " " + std::to_string(index) + " is missing");
  const std::vector<sd::LongType> shapeInfo = array->getShapeInfoAsVector();
  ArrayView view = viewOf(shapeInfo.data());
  bool empty = (shapeInfo[shapeInfo.size() - 3] & sd::flags::kEmpty) != 0;
  for (const int64_t size : view.shape) empty = empty || size == 0;
  if (!empty) view.data = Backend::data(*array);
  return view;
}

std::vector<ArrayView> viewsOf(const char* op, const char* kind, const std::vector<sd::NDArray*>& arrays) {
  std::vector<ArrayView> views;
  views.reserve(arrays.size());
  for (size_t i = 0; i < arrays.size(); i++) views.push_back(viewOf(op, kind, i, arrays[i]));
  return views;
}

OpArguments argumentsOf(sd::graph::Context& context) {
  OpArguments arguments;
  const std::vector<int>& integers = *context.getIArguments();
  arguments.integers.assign(integers.begin(), integers.end());
  arguments.reals = *context.getTArguments();
  arguments.booleans = *context.getBArguments();
  return arguments;
}

}  // namespace

PluginOp::PluginOp(const char* name, int outputs)
    : DeclarableOp(kAnyNumber, outputs, name, false, kAnyNumber, kAnyNumber), name_(name), outputs_(outputs) {}

sd::ShapeList* PluginOp::calculateOutputShape(sd::ShapeList* inputs, sd::graph::Context& context) {
  OpArguments arguments = argumentsOf(context);
  for (int i = 0; i < inputs->size(); i++) {
    if (inputs->at(i) == nullptr)
      throw std::invalid_argument(std::string(name_) + ": input " + std::to_string(i) + " is missing");
    arguments.inputs.push_back(viewOf(inputs->at(i)));
  }
  const std::vector<OutputShape> outputs = shapes(arguments);
  // Outputs that the caller brought: libnd4j would only say that one of them does not match.
  const std::vector<ArrayView> given = viewsOf(name_, "output", context.fastpath_out());
  for (size_t i = 0; i < std::min(given.size(), outputs.size()); i++) checkOutput(name_, outputs[i], given[i]);
  std::vector<const sd::LongType*> shapeInfos;
  for (const OutputShape& output : outputs) {
    const std::vector<sd::LongType> shape(output.shape.begin(), output.shape.end());
    shapeInfos.push_back(sd::ConstantShapeHelper::getInstance().createShapeInfo(dataType(output.type), 'c', shape));
  }
  return new sd::ShapeList(shapeInfos);
}

sd::Status PluginOp::validateAndExecute(sd::graph::Context& context) {
  try {
    OpArguments arguments = argumentsOf(context);
    const Backend backend(context);
    arguments.inputs = viewsOf(name_, "input", context.fastpath_in());
    run(arguments, viewsOf(name_, "output", context.fastpath_out()), backend);
    return sd::Status::OK;
  } catch (const std::bad_alloc&) {
    throw std::runtime_error(std::string(name_) + ": out of memory for the scratch space of its threads");
  } catch (const DeviceError& e) {
    throw std::runtime_error(std::string(name_) + ": " + e.what());
  }
}

std::vector<PluginOp*> pluginOps() {
  return {gatedFwaOp(),
          gatedFwaBpOp(),
          gatedFwaGateOp(),
          gatedFwaGateBpOp(),
          nsaCompressedAttentionOp(),
          nsaCompressedAttentionBpOp(),
          nsaSelectOp(),
          nsaSelectedAttentionOp(),
          nsaSelectedAttentionBpOp()};
}

}  // namespace gatedfwa
