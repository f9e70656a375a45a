// nd4j-native: arrays live in the host's memory.
#include "op/backend.h"
#include "op/placement.h"

namespace gatedfwa {

Backend::Backend(sd::graph::Context& context) : context_(context) {}
Backend::~Backend() = default;

const bool Backend::kArraysOnHost = true;

void* Backend::data(sd::NDArray& array) { return array.bufferWithOffset(0); }

void Backend::run(const KernelCall& call) const { placement::run(call); }

}  // namespace gatedfwa
