// The native methods of io.github.gatedfwa.nativeops.NativeRuntime that every plug-in has.
#include <algorithm>
#include <sstream>

#include "jni/jni_support.h"
#include "op/plugin_op.h"

namespace {

/// Registers the ops; of each "name:hash:inputs:outputs:inplace:tArguments:iArguments;", as libnd4j lists its own.
std::string registerOps() {
  auto& registrator = sd::ops::OpRegistrator::getInstance();
  const std::vector<gatedfwa::PluginOp*> ops = gatedfwa::pluginOps();
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

extern "C" JNIEXPORT jstring JNICALL Java_io_github_gatedfwa_nativeops_NativeRuntime_registerOps(JNIEnv* env, jclass) {
  return gatedfwa::jni::guarded(env, registerOps);
}
