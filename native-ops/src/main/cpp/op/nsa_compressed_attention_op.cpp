#include "op/cpu_runtime.h"
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

  void run(const OpArguments& arguments, const std::vector<ArrayView>& outputs, const Backend&) const override {
    cpu::nsaCompressedForward(nsaCompressedForwardParams(arguments, outputs), nd4jExecutor(), instructionSet());
  }
};

}  // namespace

PluginOp* nsaCompressedAttentionOp() { return new NsaCompressedAttentionOp(); }

}  // namespace gatedfwa
