// nd4j-native: arrays live in the host's memory.
#include "op/backend.h"
#include "op/cpu_runtime.h"
#include "op/placement.h"

namespace gatedfwa {

Backend::Backend(sd::graph::Context& context) : context_(context) {}
Backend::~Backend() = default;

const bool Backend::kArraysOnHost = true;

void* Backend::data(sd::NDArray& array) { return array.bufferWithOffset(0); }

void Backend::run(const AttentionForward& params) const { placement::run(params); }
void Backend::run(const AttentionBackward& params) const { placement::run(params); }
void Backend::run(const GateForward& params) const { placement::run(params); }
void Backend::run(const GateBackward& params) const { placement::run(params); }
void Backend::run(const NsaCompressedForward& params) const {
  cpu::nsaCompressedForward(params, nd4jExecutor(), instructionSet());
}
void Backend::run(const NsaCompressedBackward& params) const {
  cpu::nsaCompressedBackward(params, nd4jExecutor(), instructionSet());
}
void Backend::run(const NsaSelect& params) const { cpu::nsaSelect(params, nd4jExecutor(), instructionSet()); }
void Backend::run(const NsaSelectedForward& params) const {
  cpu::nsaSelectedForward(params, nd4jExecutor(), instructionSet());
}
void Backend::run(const NsaSelectedBackward& params) const {
  cpu::nsaSelectedBackward(params, nd4jExecutor(), instructionSet());
}

}  // namespace gatedfwa
