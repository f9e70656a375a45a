// nd4j-cuda: arrays live on the device of ND4J's thread.
#include "op/backend.h"
#include "op/gpu_runtime.h"

namespace gatedfwa {
namespace {

std::vector<const sd::NDArray*> constant(const std::vector<sd::NDArray*>& arrays) {
  return {arrays.begin(), arrays.end()};
}

/// As libnd4j's own ops leave them: ready in the order of the stream, and newer on the device than on the host.
template <typename Params>
void runOnStream(sd::graph::Context& context, const Params& params) {
  gpu::run(params, *context.launchContext()->getCudaStream());
  sd::NDArray::registerSpecialUse(constant(context.fastpath_out()), constant(context.fastpath_in()));
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

void Backend::run(const AttentionForward& params) const { runOnStream(context_, params); }
void Backend::run(const AttentionBackward& params) const { runOnStream(context_, params); }
void Backend::run(const GateForward& params) const { runOnStream(context_, params); }
void Backend::run(const GateBackward& params) const { runOnStream(context_, params); }
void Backend::run(const NsaCompressedForward& params) const { runOnStream(context_, params); }
void Backend::run(const NsaCompressedBackward& params) const { runOnStream(context_, params); }
void Backend::run(const NsaSelect& params) const { runOnStream(context_, params); }
void Backend::run(const NsaSelectedForward& params) const { runOnStream(context_, params); }
void Backend::run(const NsaSelectedBackward& params) const { runOnStream(context_, params); }

}  // namespace gatedfwa
