// What the adapters share: libnd4j's arrays and arguments in, its shapes and exceptions out.
#pragma once

#include <vector>

#include "libnd4j/abi.h"
#include "op/arguments.h"
#include "op/backend.h"

namespace gatedfwa {

/// An op of any number of inputs and arguments; op/arguments.h checks them with better messages than libnd4j's.
class PluginOp : public sd::ops::DeclarableOp {
 public:
  PluginOp(const char* name, int outputs);

  const char* name() const { return name_; }
  int outputs() const { return outputs_; }

  void registerTypes() override {}
  sd::Status validateDataTypes(sd::graph::Context&) override { return sd::Status::OK; }
  sd::ShapeList* calculateOutputShape(sd::ShapeList* inputs, sd::graph::Context& context) override;

 protected:
  sd::Status validateAndExecute(sd::graph::Context& context) override;

 private:
  virtual std::vector<OutputShape> shapes(const OpArguments& arguments) const = 0;
  virtual void run(const OpArguments& arguments, const std::vector<ArrayView>& outputs,
                   const Backend& backend) const = 0;

  const char* name_;
  int outputs_;
};

PluginOp* gatedFwaOp();
PluginOp* gatedFwaBpOp();
PluginOp* gatedFwaGateOp();
PluginOp* gatedFwaGateBpOp();
PluginOp* nsaCompressedAttentionOp();
PluginOp* nsaCompressedAttentionBpOp();
PluginOp* nsaSelectOp();
PluginOp* nsaSelectedAttentionOp();
PluginOp* nsaSelectedAttentionBpOp();

/// All of them, new.
std::vector<PluginOp*> pluginOps();

}  // namespace gatedfwa
