#include "op/nsa_arguments.h"
#include "op/plugin_op.h"

namespace gatedfwa {
namespace {

class NsaSelectedAttentionOp final : public PluginOp {
 public:
  NsaSelectedAttentionOp() : PluginOp("nsa_selected_attention", 2) {}

 private:
  std::vector<OutputShape> shapes(const OpArguments& arguments) const override {
    return nsaSelectedForwardShapes(arguments);
  }

  void run(const OpArguments& arguments, const std::vector<ArrayView>& outputs, const Backend& backend) const override {
    backend.run(nsaSelectedForwardParams(arguments, outputs, Backend::kArraysOnHost));
  }
};

}  // namespace

PluginOp* nsaSelectedAttentionOp() { return new NsaSelectedAttentionOp(); }

}  // namespace gatedfwa
