#include "op/nsa_arguments.h"
#include "op/plugin_op.h"

namespace gatedfwa {
namespace {

class NsaSelectedAttentionBpOp final : public PluginOp {
 public:
  NsaSelectedAttentionBpOp() : PluginOp("nsa_selected_attention_bp", 3) {}

 private:
  std::vector<OutputShape> shapes(const OpArguments& arguments) const override {
    return nsaSelectedBackwardShapes(arguments);
  }

  void run(const OpArguments& arguments, const std::vector<ArrayView>& outputs, const Backend& backend) const override {
    backend.run(nsaSelectedBackwardParams(arguments, outputs, Backend::kArraysOnHost));
  }
};

}  // namespace

PluginOp* nsaSelectedAttentionBpOp() { return new NsaSelectedAttentionBpOp(); }

}  // namespace gatedfwa
