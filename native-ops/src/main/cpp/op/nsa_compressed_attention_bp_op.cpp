#include "op/cpu_runtime.h"
#include "op/nsa_arguments.h"
#include "op/plugin_op.h"

namespace gatedfwa {
namespace {

class NsaCompressedAttentionBpOp final : public PluginOp {
 public:
  NsaCompressedAttentionBpOp() : PluginOp("nsa_compressed_attention_bp", 3) {}

 private:
  std::vector<OutputShape> shapes(const OpArguments& arguments) const override {
    return nsaCompressedBackwardShapes(arguments);
  }

  void run(const OpArguments& arguments, const std::vector<ArrayView>& outputs, const Backend&) const override {
    cpu::nsaCompressedBackward(nsaCompressedBackwardParams(arguments, outputs), nd4jExecutor(), instructionSet());
  }
};

}  // namespace

PluginOp* nsaCompressedAttentionBpOp() { return new NsaCompressedAttentionBpOp(); }

}  // namespace gatedfwa
