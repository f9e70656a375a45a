// C++ results and exceptions as Java's.
#pragma once

#include <jni.h>

#include <exception>
#include <new>
#include <stdexcept>
#include <string>

namespace gatedfwa::jni {

inline void throwJava(JNIEnv* env, const char* type, const char* message) {
  if (jclass thrown = env->FindClass(type)) env->ThrowNew(thrown, message);
}

/// A body's text; its exception as OutOfMemoryError, IllegalArgumentException or IllegalStateException.
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

inline std::string textOf(JNIEnv* env, jstring text) {
  const char* const characters = env->GetStringUTFChars(text, nullptr);
  if (characters == nullptr) throw std::bad_alloc();
  const std::string copy = characters;
  env->ReleaseStringUTFChars(text, characters);
  return copy;
}

}  // namespace gatedfwa::jni
