#include "op/nsa_arguments.h"
#include "op/plugin_op.h"

namespace gatedfwa {
namespace {

class NsaSelectOp final : public PluginOp {
 public:
  NsaSelectOp() : PluginOp("nsa_select", 1) {}

 private:
  std::vector<OutputShape> shapes(const OpArguments& arguments) const override { return nsaSelectShapes(arguments); }

  void run(const OpArguments& arguments, const std::vector<ArrayView>& outputs, const Backend& backend) const override {
    backend.run(nsaSelectParams(arguments, outputs));
  }
};

}  // namespace

PluginOp* nsaSelectOp() { return new NsaSelectOp(); }

}  // namespace gatedfwa
