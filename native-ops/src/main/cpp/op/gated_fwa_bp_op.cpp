#include "op/plugin_op.h"

namespace gatedfwa {
namespace {

class GatedFwaBpOp final : public PluginOp {
 public:
  GatedFwaBpOp() : PluginOp("gated_fwa_bp", 3) {}

 private:
  std::vector<OutputShape> shapes(const OpArguments& arguments) const override {
    return attentionBackwardShapes(arguments);
  }

  void run(const OpArguments& arguments, const std::vector<ArrayView>& outputs, const Backend& backend) const override {
    backend.run(attentionBackwardParams(arguments, outputs));
  }
};

}  // namespace

PluginOp* gatedFwaBpOp() { return new GatedFwaBpOp(); }

}  // namespace gatedfwa
