// The native methods of io.github.gatedfwa.nativeops.NativeRuntime about where nd4j-native's ops run.
#include <atomic>

#include "jni/jni_support.h"
#include "op/cpu_runtime.h"
#include "op/placement.h"

namespace {

using gatedfwa::jni::guarded;
using gatedfwa::jni::textOf;
namespace placement = gatedfwa::placement;

JavaVM* javaVm = nullptr;
jclass nativeRuntime = nullptr;
jmethodID warnMethod = nullptr;

/// To NativeRuntime.warn. Ops run in threads of Java; in another one, the line is dropped.
void warn(const std::string& line) {
  JNIEnv* env = nullptr;
  if (javaVm->GetEnv(reinterpret_cast<void**>(&env), JNI_VERSION_1_8) != JNI_OK || env->ExceptionCheck()) return;
  if (jstring text = env->NewStringUTF(line.c_str())) {
    env->CallStaticVoidMethod(nativeRuntime, warnMethod, text);
    env->DeleteLocalRef(text);
  }
  env->ExceptionClear();
}

}  // namespace

extern "C" {

JNIEXPORT jint JNICALL JNI_OnLoad(JavaVM* vm, void*) {
  JNIEnv* env = nullptr;
  if (vm->GetEnv(reinterpret_cast<void**>(&env), JNI_VERSION_1_8) != JNI_OK) return JNI_ERR;
  const jclass type = env->FindClass("io/github/gatedfwa/nativeops/NativeRuntime");
  if (type == nullptr) return JNI_ERR;
  javaVm = vm;
  nativeRuntime = static_cast<jclass>(env->NewGlobalRef(type));
  warnMethod = env->GetStaticMethodID(type, "warn", "(Ljava/lang/String;)V");
  if (nativeRuntime == nullptr || warnMethod == nullptr) return JNI_ERR;
  placement::setWarningSink(warn);
  return JNI_VERSION_1_8;
}

JNIEXPORT jstring JNICALL Java_io_github_gatedfwa_nativeops_NativeRuntime_selectInstructionSet(JNIEnv* env, jclass,
                                                                                               jstring requested) {
  return guarded(env, [&] { return gatedfwa::selectInstructionSet(textOf(env, requested)); });
}

JNIEXPORT jint JNICALL Java_io_github_gatedfwa_nativeops_NativeRuntime_threads(JNIEnv*, jclass) {
  return gatedfwa::nd4jExecutor().workers;
}

JNIEXPORT jstring JNICALL Java_io_github_gatedfwa_nativeops_NativeRuntime_openDevice(JNIEnv* env, jclass, jstring path,
                                                                                     jboolean always, jint ordinal,
                                                                                     jboolean tf32, jlong memoryLimit,
                                                                                     jlong cacheLimit) {
  return guarded(env, [&] {
    gatedfwa::AcceleratorOptions options;
    options.ordinal = ordinal;
    options.tf32 = tf32 != JNI_FALSE;
    options.memoryLimit = memoryLimit;
    options.cacheLimit = cacheLimit;
    return placement::open(always ? placement::Mode::Device : placement::Mode::Auto, textOf(env, path), options);
  });
}

JNIEXPORT jstring JNICALL Java_io_github_gatedfwa_nativeops_NativeRuntime_deviceName(JNIEnv* env, jclass) {
  return guarded(env, placement::deviceName);
}

JNIEXPORT jstring JNICALL Java_io_github_gatedfwa_nativeops_NativeRuntime_lastDecision(JNIEnv* env, jclass) {
  return guarded(env, [] { return placement::report().lastDecision; });
}

JNIEXPORT jdoubleArray JNICALL Java_io_github_gatedfwa_nativeops_NativeRuntime_usage(JNIEnv* env, jclass) {
  const placement::Report report = placement::report();
  const gatedfwa::Usage& device = report.device;
  const jdouble values[] = {static_cast<jdouble>(report.cpuCalls),
                            static_cast<jdouble>(device.calls),
                            device.wallSeconds,
                            device.kernelSeconds,
                            device.uploadedBytes,
                            device.residentBytes,
                            device.downloadedBytes};
  constexpr jsize count = sizeof values / sizeof *values;
  const jdoubleArray result = env->NewDoubleArray(count);
  if (result != nullptr) env->SetDoubleArrayRegion(result, 0, count, values);
  return result;
}
}
