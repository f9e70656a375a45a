#include "op/nsa_arguments.h"
#include "op/plugin_op.h"

namespace gatedfwa {
namespace {

class NsaCompressedAttentionOp final : public PluginOp {
 public:
  NsaCompressedAttentionOp() : PluginOp("nsa_compressed_attention", 2) {}

 private:
  std::vector<OutputShape> shapes(const OpArguments& arguments) const override {
    return nsaCompressedForwardShapes(arguments);
  }

  void run(const OpArguments& arguments, const std::vector<ArrayView>& outputs, const Backend& backend) const override {
    backend.run(nsaCompressedForwardParams(arguments, outputs));
  }
};

}  // namespace

PluginOp* nsaCompressedAttentionOp() { return new NsaCompressedAttentionOp(); }

}  // namespace gatedfwa
