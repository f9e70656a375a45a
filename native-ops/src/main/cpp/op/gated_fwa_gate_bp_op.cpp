#include "op/plugin_op.h"

namespace gatedfwa {
namespace {

class GatedFwaGateBpOp final : public PluginOp {
 public:
  GatedFwaGateBpOp() : PluginOp("gated_fwa_gate_bp", 2) {}

 private:
  std::vector<OutputShape> shapes(const OpArguments& arguments) const override { return gateBackwardShapes(arguments); }

  void run(const OpArguments& arguments, const std::vector<ArrayView>& outputs, const Backend& backend) const override {
    backend.run(gateBackwardParams(arguments, outputs));
  }
};

}  // namespace

PluginOp* gatedFwaGateBpOp() { return new GatedFwaGateBpOp(); }

}  // namespace gatedfwa
