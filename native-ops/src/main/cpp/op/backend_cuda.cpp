// nd4j-cuda: arrays live on the device of ND4J's thread.
#include "op/backend.h"
#include "op/gpu_runtime.h"

namespace gatedfwa {
namespace {

std::vector<const sd::NDArray*> constant(const std::vector<sd::NDArray*>& arrays) {
  return {arrays.begin(), arrays.end()};
}

}  // namespace

Backend::Backend(sd::graph::Context& context) : context_(context) {
  // Outputs may be views into arrays whose other elements only the host has: these go to the device too, because a
  // whole array is newer on one side or on the other.
  sd::NDArray::prepareSpecialUse(constant(context.fastpath_out()), constant(context.fastpath_in()), true);
}
Backend::~Backend() = default;

const bool Backend::kArraysOnHost = false;

void* Backend::data(sd::NDArray& array) { return array.specialBufferWithOffset(0); }

void Backend::run(const KernelCall& call) const {
  gpu::run(call, *context_.launchContext()->getCudaStream());
  // As libnd4j's own ops leave them: ready in the order of the stream, and newer on the device than on the host.
  sd::NDArray::registerSpecialUse(constant(context_.fastpath_out()), constant(context_.fastpath_in()));
}

}  // namespace gatedfwa
