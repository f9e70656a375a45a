#include "nd4jcuda_stand_in.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <stdexcept>

namespace gatedfwa::stand_in {
namespace {

void check(cudaError_t e, const char* what) {
  if (e != cudaSuccess) throw std::runtime_error(std::string("stand-in: ") + what + ": " + cudaGetErrorString(e));
}

size_t sizeOf(sd::DataType type) {
  switch (type) {
    case sd::DOUBLE:
      return 8;
    case sd::FLOAT32:
    case sd::INT32:
      return 4;
    case sd::BOOL:
      return 1;
    default:
      return 2;
  }
}

sd::LongType flagOf(sd::DataType type) {
  switch (type) {
    case sd::DOUBLE:
      return sd::flags::kDouble;
    case sd::FLOAT32:
      return sd::flags::kFloat;
    case sd::HALF:
      return sd::flags::kHalf;
    case sd::BFLOAT16:
      return sd::flags::kBFloat16;
    case sd::INT32:
      return sd::flags::kInt;
    default:
      return sd::flags::kBool;
  }
}

sd::DataType typeOf(sd::LongType flags) {
  for (const sd::DataType type : {sd::DOUBLE, sd::FLOAT32, sd::HALF, sd::BFLOAT16, sd::INT32})
    if (flags & flagOf(type)) return type;
  return sd::BOOL;
}

Array::Sizes denseStrides(const Array::Sizes& shape) {
  Array::Sizes strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<sd::LongType>(shape[i], 1);
  return strides;
}

/// rank, shape.., strides.., type flags, element-wise stride, order
std::vector<sd::LongType> shapeInfo(sd::DataType type, const Array::Sizes& shape, const Array::Sizes& strides) {
  std::vector<sd::LongType> info{static_cast<sd::LongType>(shape.size())};
  info.insert(info.end(), shape.begin(), shape.end());
  info.insert(info.end(), strides.begin(), strides.end());
  const bool empty = std::find(shape.begin(), shape.end(), 0) != shape.end();
  info.insert(info.end(), {flagOf(type) | (empty ? sd::flags::kEmpty : 0), 1, 'c'});
  return info;
}

const Array& arrayOf(const sd::NDArray* array) { return *static_cast<const Array*>(array); }

struct Streams {
  std::map<int, cudaStream_t> ofDevice;  // the devices' contexts destroy them
};
thread_local Streams streams;

/// Where the calling thread's stream is, as libnd4j hands it out.
cudaStream_t* streamAddress() {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const auto found = streams.ofDevice.find(device);
  if (found != streams.ofDevice.end()) return &found->second;
  cudaStream_t created = nullptr;
  check(cudaStreamCreateWithFlags(&created, cudaStreamNonBlocking), "cudaStreamCreate");
  return &(streams.ofDevice[device] = created);
}

struct Registry {
  std::mutex lock;
  std::map<sd::LongType, sd::ops::DeclarableOp*> ops;
};
Registry& registry() {
  static Registry instance;
  return instance;
}

sd::LongType hashOf(const std::string& name) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  return static_cast<sd::LongType>(hash);
}

}  // namespace

Buffer::~Buffer() { cudaFree(device_); }

void Buffer::allocateDevice() {
  if (device_ != nullptr || bytes() == 0) return;
  check(cudaMalloc(&device_, bytes()), "cudaMalloc");
  check(cudaMemset(device_, 0xff, bytes()), "cudaMemset");
  check(cudaDeviceSynchronize(), "cudaMemset");
}

void Buffer::syncToDevice() {
  if (latest_ != OnHost) return;
  allocateDevice();
  check(cudaMemcpy(device_, host(), bytes(), cudaMemcpyHostToDevice), "upload");
  latest_ = OnBoth;
}

void Buffer::syncToHost() {
  if (latest_ != OnDevice) return;
  check(cudaStreamSynchronize(stream()), "cudaStreamSynchronize");
  check(cudaMemcpy(host(), device_, bytes(), cudaMemcpyDeviceToHost), "download");
  latest_ = OnBoth;
}

Array::Array(sd::DataType type, const Sizes& shape) : type_(type), shape_(shape), strides_(denseStrides(shape)) {
  size_t count = 1;
  for (const sd::LongType size : shape) count *= static_cast<size_t>(size);
  buffer_ = std::make_shared<Buffer>(count * sizeOf(type));
}

Array::Array(const Array& whole, const Sizes& shape, const Sizes& strides, sd::LongType offset)
    : type_(whole.type_), shape_(shape), strides_(strides), offset_(whole.offset_ + offset), buffer_(whole.buffer_) {}

bool Array::empty() const { return std::find(shape_.begin(), shape_.end(), 0) != shape_.end(); }

std::vector<std::unique_ptr<Array>> allocateOutputs(sd::ops::DeclarableOp& op, Context& context) {
  std::vector<std::vector<sd::LongType>> infos;
  for (const sd::NDArray* input : context.inputs) infos.push_back(input->getShapeInfoAsVector());
  std::vector<const sd::LongType*> addresses;
  for (const auto& info : infos) addresses.push_back(info.data());
  sd::ShapeList inputs(addresses);
  const std::unique_ptr<sd::ShapeList> shapes(op.calculateOutputShape(&inputs, context));
  std::vector<std::unique_ptr<Array>> outputs;
  for (int i = 0; i < shapes->size(); i++) {
    const sd::LongType* const info = shapes->at(i);
    outputs.push_back(std::make_unique<Array>(typeOf(info[1 + 2 * info[0]]), Array::Sizes(info + 1, info + 1 + *info)));
  }
  return outputs;
}

void exec(sd::ops::DeclarableOp& op, Context& context) {
  op.execute(&context);
  check(cudaStreamSynchronize(stream()), "customOp execution failed");
  for (const auto* arrays : {&context.inputs, &context.outputs})
    for (const sd::NDArray* array : *arrays) arrayOf(array).buffer().syncToDevice();
}

sd::ops::DeclarableOp* find(const std::string& name) {
  const std::lock_guard<std::mutex> guard(registry().lock);
  const auto op = registry().ops.find(hashOf(name));
  return op == registry().ops.end() ? nullptr : op->second;
}

cudaStream_t stream() { return *streamAddress(); }

int devices() {
  int count = 0;
  check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  return count;
}

void setDevice(int ordinal) { check(cudaSetDevice(ordinal), "cudaSetDevice"); }

}  // namespace gatedfwa::stand_in

namespace sd {

using gatedfwa::stand_in::Array;
namespace stand_in = gatedfwa::stand_in;

const LongType* ConstantShapeHelper::createShapeInfo(DataType type, char, const std::vector<LongType>& shape) {
  static std::mutex lock;
  static std::map<std::vector<LongType>, std::unique_ptr<std::vector<LongType>>> cache;
  std::vector<LongType> info = stand_in::shapeInfo(type, shape, stand_in::denseStrides(shape));
  const std::lock_guard<std::mutex> guard(lock);
  auto& kept = cache[info];
  if (!kept) kept = std::make_unique<std::vector<LongType>>(info);
  return kept->data();
}
ConstantShapeHelper& ConstantShapeHelper::getInstance() {
  static ConstantShapeHelper instance;
  return instance;
}

namespace {
using Shapes = std::vector<const LongType*>;

/// What a ShapeList's opaque bytes hold the address of.
Shapes& shapesOf(const char* opaque) {
  Shapes* shapes;
  std::memcpy(&shapes, opaque, sizeof shapes);
  return *shapes;
}
}  // namespace

ShapeList::ShapeList(const Shapes& shapes) {
  const Shapes* const kept = new Shapes(shapes);  // abi.h's ShapeList has no destructor that could delete it
  std::memcpy(opaque_, &kept, sizeof kept);
}
int ShapeList::size() const { return static_cast<int>(shapesOf(opaque_).size()); }
const LongType* ShapeList::at(int index) { return shapesOf(opaque_).at(static_cast<size_t>(index)); }

void* NDArray::bufferWithOffset(LongType offset) {
  Array& array = *static_cast<Array*>(this);
  return static_cast<char*>(array.buffer().host()) +
         static_cast<size_t>(array.offset() + offset) * stand_in::sizeOf(array.type());
}
void* NDArray::specialBufferWithOffset(LongType offset) {
  Array& array = *static_cast<Array*>(this);
  char* const device = static_cast<char*>(array.buffer().device());
  return device == nullptr ? nullptr
                           : device + static_cast<size_t>(array.offset() + offset) * stand_in::sizeOf(array.type());
}
std::vector<LongType> NDArray::getShapeInfoAsVector() const {
  const Array& array = *static_cast<const Array*>(this);
  return stand_in::shapeInfo(array.type(), array.shape(), array.strides());
}
void NDArray::prepareSpecialUse(const std::vector<const NDArray*>& written, const std::vector<const NDArray*>& read,
                                bool synchronizeWritten) {
  for (const NDArray* array : read)
    if (array != nullptr) stand_in::arrayOf(array).buffer().syncToDevice();
  for (const NDArray* array : written) {
    if (array == nullptr) continue;
    stand_in::arrayOf(array).buffer().allocateDevice();
    if (synchronizeWritten) stand_in::arrayOf(array).buffer().syncToDevice();
  }
}
void NDArray::registerSpecialUse(const std::vector<const NDArray*>& written, const std::vector<const NDArray*>&) {
  for (const NDArray* array : written)
    if (array != nullptr) stand_in::arrayOf(array).buffer().wroteDevice();
}

CUstream_st** LaunchContext::getCudaStream() const { return stand_in::streamAddress(); }

namespace graph {

std::vector<double>* ContextPrototype::getTArguments() { return &static_cast<stand_in::Context*>(this)->reals; }
std::vector<int>* ContextPrototype::getIArguments() { return &static_cast<stand_in::Context*>(this)->integers; }
std::vector<bool>* ContextPrototype::getBArguments() { return &static_cast<stand_in::Context*>(this)->booleans; }
std::vector<NDArray*>& Context::fastpath_in() { return static_cast<stand_in::Context*>(this)->inputs; }
std::vector<NDArray*>& Context::fastpath_out() { return static_cast<stand_in::Context*>(this)->outputs; }
LaunchContext* Context::launchContext() {
  static LaunchContext instance;
  return &instance;
}

}  // namespace graph

namespace ops {

DeclarableOp::DeclarableOp(int, int, const char* name, bool, int, int) { new (opaque_) const char*(name); }
DeclarableOp::~DeclarableOp() = default;
void DeclarableOp::registerTypes() {}
bool DeclarableOp::emptyHandling() { return true; }
Status DeclarableOp::validateDataTypes(graph::Context&) { return Status::OK; }
LongType DeclarableOp::getOpHash() { return stand_in::hashOf(*std::launder(reinterpret_cast<const char**>(opaque_))); }

/// libnd4j's order: types, then the shapes, which must be those of the outputs that the caller brought, then the op.
Status DeclarableOp::execute(graph::Context* context) {
  validateDataTypes(*context);
  stand_in::Context& call = *static_cast<stand_in::Context*>(context);
  const auto expected = stand_in::allocateOutputs(*this, call);
  if (expected.size() > call.outputs.size()) throw std::runtime_error("Expected more outputs than provided");
  for (size_t i = 0; i < expected.size(); i++)
    if (expected[i]->shape() != stand_in::arrayOf(call.outputs[i]).shape())
      throw std::runtime_error("Expected and provided shapes of an output differ");
  return validateAndExecute(*context);
}

OpRegistrator& OpRegistrator::getInstance() {
  static OpRegistrator instance;
  return instance;
}
bool OpRegistrator::registerOperation(DeclarableOp* op) {
  const std::lock_guard<std::mutex> guard(stand_in::registry().lock);
  stand_in::registry().ops[op->getOpHash()] = op;
  return true;
}
std::vector<LongType> OpRegistrator::getAllHashes() {
  const std::lock_guard<std::mutex> guard(stand_in::registry().lock);
  std::vector<LongType> hashes;
  for (const auto& op : stand_in::registry().ops) hashes.push_back(op.first);
  return hashes;
}

}  // namespace ops
}  // namespace sd
