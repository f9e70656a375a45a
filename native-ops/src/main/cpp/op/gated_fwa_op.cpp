#include "op/plugin_op.h"

namespace gatedfwa {
namespace {

class GatedFwaOp final : public PluginOp {
 public:
  GatedFwaOp() : PluginOp("gated_fwa", 2) {}

 private:
  std::vector<OutputShape> shapes(const OpArguments& arguments) const override {
    return attentionForwardShapes(arguments);
  }

  void run(const OpArguments& arguments, const std::vector<ArrayView>& outputs, const Backend& backend) const override {
    backend.run(attentionForwardParams(arguments, outputs));
  }
};

}  // namespace

PluginOp* gatedFwaOp() { return new GatedFwaOp(); }

}  // namespace gatedfwa
