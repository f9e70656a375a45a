// The native methods of io.github.gatedfwa.nativeops.NativeRuntime about nd4j-cuda's device.
#include "jni/jni_support.h"
#include "op/gpu_runtime.h"

namespace gpu = gatedfwa::gpu;
using gatedfwa::jni::guarded;

extern "C" {

JNIEXPORT jstring JNICALL Java_io_github_gatedfwa_nativeops_NativeRuntime_useNd4jDevice(JNIEnv* env, jclass,
                                                                                        jboolean tf32,
                                                                                        jlong scratchLimit) {
  return guarded(env, [&] { return gpu::open({tf32 != JNI_FALSE, scratchLimit}); });
}

JNIEXPORT jstring JNICALL Java_io_github_gatedfwa_nativeops_NativeRuntime_lastDecision(JNIEnv* env, jclass) {
  return guarded(env, [] { return gpu::report().lastDecision; });
}

JNIEXPORT jdoubleArray JNICALL Java_io_github_gatedfwa_nativeops_NativeRuntime_usage(JNIEnv* env, jclass) {
  // Calls on the CPU and on the device; times and copies are ND4J's.
  const jdouble values[] = {0, static_cast<jdouble>(gpu::report().calls), 0, 0, 0, 0, 0};
  constexpr jsize count = sizeof values / sizeof *values;
  const jdoubleArray result = env->NewDoubleArray(count);
  if (result != nullptr) env->SetDoubleArrayRegion(result, 0, count, values);
  return result;
}
}
