// nd4j-native: arrays live in the host's memory.
#include "op/backend.h"
#include "op/placement.h"
#include "op/plugin_op.h"

namespace gatedfwa {

Backend::Backend(sd::graph::Context& context) : context_(context) {}
Backend::~Backend() = default;

void* Backend::data(sd::NDArray& array) { return array.bufferWithOffset(0); }

void Backend::run(const AttentionForward& params) const { placement::run(params); }
void Backend::run(const AttentionBackward& params) const { placement::run(params); }
void Backend::run(const GateForward& params) const { placement::run(params); }
void Backend::run(const GateBackward& params) const { placement::run(params); }

std::vector<PluginOp*> pluginOps() {
  return {gatedFwaOp(),
          gatedFwaBpOp(),
          gatedFwaGateOp(),
          gatedFwaGateBpOp(),
          nsaCompressedAttentionOp(),
          nsaCompressedAttentionBpOp(),
          nsaSelectOp(),
          nsaSelectedAttentionOp(),
          nsaSelectedAttentionBpOp()};
}

}  // namespace gatedfwa
