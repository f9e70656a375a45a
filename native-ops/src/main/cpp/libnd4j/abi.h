// What these ops need of libnd4j 1.0.0-M2.1, whose headers are not published: the only file that knows its classes.
// Names and signatures are those of the symbols that libnd4jcpu.so and libnd4jcuda.so export (a test compares them);
// layouts are opaque. LongType is `long long`, which matters to the mangled names.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

struct CUstream_st;  // a cudaStream_t points to one

#pragma GCC visibility push(default)

namespace sd {

using LongType = long long;

enum class Status : int { OK = 0 };

/// As org.nd4j.linalg.api.buffer.DataType numbers them.
enum DataType : int { BOOL = 1, HALF = 3, FLOAT32 = 5, DOUBLE = 6, INT32 = 9, BFLOAT16 = 17 };

/// Bits of the type word of a shapeInfo: see org.nd4j.linalg.api.shape.options.ArrayOptionsHelper.
namespace flags {
constexpr LongType kEmpty = 1 << 3;
constexpr LongType kBFloat16 = 1 << 11;
constexpr LongType kHalf = 1 << 12;
constexpr LongType kFloat = 1 << 13;
constexpr LongType kDouble = 1 << 14;
constexpr LongType kByte = 1 << 15;
constexpr LongType kShort = 1 << 16;
constexpr LongType kInt = 1 << 17;
constexpr LongType kLong = 1 << 18;
constexpr LongType kBool = 1 << 19;
constexpr LongType kUtf8 = 1 << 20;
constexpr LongType kUnsigned = 1 << 23;
}  // namespace flags

class Environment {
 public:
  static Environment& getInstance();
  int maxMasterThreads();
};

class ConstantShapeHelper {
 public:
  static ConstantShapeHelper& getInstance();
  /// Cached for the life of the process; nobody frees it.
  const LongType* createShapeInfo(DataType type, char order, const std::vector<LongType>& shape);
};

class ShapeList {
 public:
  explicit ShapeList(const std::vector<const LongType*>& shapes);
  int size() const;
  const LongType* at(int index);

 private:
  char opaque_[256];  // libnd4j's is smaller; it is libnd4j that deletes it
};

class NDArray {
 public:
  /// The host address of element [0, ..] plus `offset` elements, views included.
  void* bufferWithOffset(LongType offset);
  /// rank, shape.., strides.., type flags, element-wise stride, order
  std::vector<LongType> getShapeInfoAsVector() const;

  // Of libnd4jcuda.so only. An array may have its elements on the host, on a device, or on both; libnd4j counts who
  // wrote last.
  /// As bufferWithOffset, on the device.
  void* specialBufferWithOffset(LongType offset);
  /// Brings what is read up to date on the calling thread's device, and allocates what is written there; with
  /// `synchronizeWritten` that is brought up to date too. Null arrays are skipped. Throws std::runtime_error.
  static void prepareSpecialUse(const std::vector<const NDArray*>& written, const std::vector<const NDArray*>& read,
                                bool synchronizeWritten);
  /// From now on the device has the latest elements of what was written.
  static void registerSpecialUse(const std::vector<const NDArray*>& written, const std::vector<const NDArray*>& read);
};

/// Of libnd4jcuda.so only.
class LaunchContext {
 public:
  /// Of the calling thread, on its device; created at the thread's first call. Throws std::runtime_error.
  CUstream_st** getCudaStream() const;
};

namespace graph {

class ContextPrototype {
 public:
  std::vector<double>* getTArguments();
  std::vector<int>* getIArguments();  // 32 bits, whatever Java passed
  std::vector<bool>* getBArguments();
};

/// ContextPrototype is its first base (both have a vtable), so the address serves for both.
class Context : public ContextPrototype {
 public:
  std::vector<NDArray*>& fastpath_in();
  std::vector<NDArray*>& fastpath_out();
  LaunchContext* launchContext();
};

}  // namespace graph

namespace ops {

/// The order of the virtual functions is libnd4j's. Instances are never destroyed.
class DeclarableOp {
 public:
  /// A count of -2 means any number.
  DeclarableOp(int inputs, int outputs, const char* name, bool allowsInplace, int tArguments, int iArguments);
  virtual void registerTypes();

 protected:
  virtual Status validateAndExecute(graph::Context& context) = 0;

 public:
  virtual bool emptyHandling();
  virtual ~DeclarableOp();
  virtual Status validateDataTypes(graph::Context& context);
  virtual ShapeList* calculateOutputShape(ShapeList* inputs, graph::Context& context) = 0;
  virtual Status execute(graph::Context* context);
  LongType getOpHash();

 private:
  char opaque_[0x100];  // libnd4j's is under 0x70
};

class OpRegistrator {
 public:
  static OpRegistrator& getInstance();
  bool registerOperation(DeclarableOp* op);
  std::vector<LongType> getAllHashes();
};

}  // namespace ops
}  // namespace sd

namespace samediff {

class Threads {
 public:
  /// Calls body(thread, threads) for each thread, on as many threads as are free.
  static int parallel_do(std::function<void(uint64_t, uint64_t)> body, uint64_t threads);
};

}  // namespace samediff

#pragma GCC visibility pop
