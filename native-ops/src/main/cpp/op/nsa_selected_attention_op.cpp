#include "op/cpu_runtime.h"
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

  void run(const OpArguments& arguments, const std::vector<ArrayView>& outputs, const Backend&) const override {
    cpu::nsaSelectedForward(nsaSelectedForwardParams(arguments, outputs), nd4jExecutor(), instructionSet());
  }
};

}  // namespace

PluginOp* nsaSelectedAttentionOp() { return new NsaSelectedAttentionOp(); }

}  // namespace gatedfwa
