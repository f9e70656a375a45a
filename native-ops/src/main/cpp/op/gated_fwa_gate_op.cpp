#include "op/plugin_op.h"

namespace gatedfwa {
namespace {

class GatedFwaGateOp final : public PluginOp {
 public:
  GatedFwaGateOp() : PluginOp("gated_fwa_gate", 1) {}

 private:
  std::vector<OutputShape> shapes(const OpArguments& arguments) const override { return gateForwardShapes(arguments); }

  void run(const OpArguments& arguments, const std::vector<ArrayView>& outputs, const Backend& backend) const override {
    backend.run(gateForwardParams(arguments, outputs));
  }
};

}  // namespace

PluginOp* gatedFwaGateOp() { return new GatedFwaGateOp(); }

}  // namespace gatedfwa
