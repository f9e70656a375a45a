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

  void run(const OpArguments& arguments, const std::vector<ArrayView>& outputs, const Backend& backend) const override {
    backend.run(nsaCompressedBackwardParams(arguments, outputs));
  }
};

}  // namespace

PluginOp* nsaCompressedAttentionBpOp() { return new NsaCompressedAttentionBpOp(); }

}  // namespace gatedfwa
