// The native methods of io.github.gatedfwa.nativeops.NativeRuntime. C++ exceptions become Java ones here.
#include <jni.h>

#include <algorithm>
#include <exception>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>

#include "op/cpu_runtime.h"
#include "op/plugin_op.h"

namespace {

void throwJava(JNIEnv* env, const char* type, const char* message) {
  if (jclass thrown = env->FindClass(type)) env->ThrowNew(thrown, message);
}

template <typename Body>
jstring guarded(JNIEnv* env, Body body) {
  try {
    const std::string result = body();
    return env->NewStringUTF(result.c_str());
  } catch (const std::bad_alloc&) {
    throwJava(env, "java/lang/OutOfMemoryError", "out of native memory");
  } catch (const std::invalid_argument& e) {
    throwJava(env, "java/lang/IllegalArgumentException", e.what());
  } catch (const std::exception& e) {
    throwJava(env, "java/lang/IllegalStateException", e.what());
  }
  return nullptr;
}

/// Registers the ops; of each "name:hash:inputs:outputs:inplace:tArguments:iArguments;", as libnd4j lists its own.
std::string registerOps() {
  auto& registrator = sd::ops::OpRegistrator::getInstance();
  gatedfwa::PluginOp* const ops[] = {gatedfwa::gatedFwaOp(), gatedfwa::gatedFwaBpOp(), gatedfwa::gatedFwaGateOp(),
                                     gatedfwa::gatedFwaGateBpOp()};
  const std::vector<sd::LongType> taken = registrator.getAllHashes();
  for (gatedfwa::PluginOp* op : ops) {
    // libnd4j would let the newcomer replace the other without a word.
    if (std::find(taken.begin(), taken.end(), op->getOpHash()) != taken.end())
      throw std::runtime_error(std::string("libnd4j already has an op named ") + op->name());
  }
  std::ostringstream list;
  for (gatedfwa::PluginOp* op : ops) {
    if (!registrator.registerOperation(op))
      throw std::runtime_error(std::string("libnd4j refused to register the op ") + op->name());
    list << op->name() << ':' << op->getOpHash() << ":-2:" << op->outputs() << ":0:-2:-2;";
  }
  return list.str();
}

}  // namespace

extern "C" {

JNIEXPORT jstring JNICALL Java_io_github_gatedfwa_nativeops_NativeRuntime_registerOps(JNIEnv* env, jclass) {
  return guarded(env, registerOps);
}

JNIEXPORT jstring JNICALL Java_io_github_gatedfwa_nativeops_NativeRuntime_selectInstructionSet(JNIEnv* env, jclass,
                                                                                               jstring requested) {
  return guarded(env, [&] {
    const char* name = env->GetStringUTFChars(requested, nullptr);
    if (name == nullptr) throw std::bad_alloc();
    const std::string copy = name;
    env->ReleaseStringUTFChars(requested, name);
    return gatedfwa::selectInstructionSet(copy);
  });
}

JNIEXPORT jint JNICALL Java_io_github_gatedfwa_nativeops_NativeRuntime_threads(JNIEnv*, jclass) {
  return gatedfwa::nd4jExecutor().workers;
}
}
