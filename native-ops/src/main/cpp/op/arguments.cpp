#include "op/arguments.h"

#include <cmath>
#include <string>

#include "op/checks.h"

namespace gatedfwa {
namespace {

/// The checked inputs of gated_fwa and gated_fwa_bp.
struct Attention {
  Checker check;
  bool hasAlpha, hasMask;
  std::vector<Named> inputs;
  const ArrayView *q, *k, *v, *alpha = nullptr, *mask = nullptr, *o = nullptr, *lse = nullptr, *dO = nullptr;
  int64_t batch, queryLength, keyLength, heads, kvHeads, headSize, valueSize;
  int64_t window;
  double scale;

  Attention(const char* op, const OpArguments& arguments, bool backward) : check(op) {
    check.count("integer arguments", arguments.integers.size(), 1, 1, "1: window");
    check.count("floating-point arguments", arguments.reals.size(), 0, 1, "at most 1: scale");
    check.count("boolean arguments", arguments.booleans.size(), 0, 2, "at most 2: hasAlpha, hasMask");
    hasAlpha = !arguments.booleans.empty() && arguments.booleans[0];
    hasMask = arguments.booleans.size() > 1 && arguments.booleans[1];

    std::vector<const char*> names = {"q", "k", "v"};
    if (hasAlpha) names.push_back("alpha");
    if (hasMask) names.push_back("mask");
    if (backward) names.insert(names.end(), {"o", "lse", "dO"});
    inputs = check.inputs(arguments, names,
                          std::string(" (hasAlpha is ") + (hasAlpha ? "true" : "false") + ", hasMask is " +
                              (hasMask ? "true" : "false") + ")");
    size_t next = 0;
    const auto take = [&] { return inputs[next++].view; };
    q = take();
    k = take();
    v = take();
    if (hasAlpha) alpha = take();
    if (hasMask) mask = take();
    if (backward) {
      o = take();
      lse = take();
      dO = take();
    }

    window = arguments.integers[0];
    if (window < 1) check.fail("argument 'window' is ", window, "; it must be at least 1");
    check.scale(arguments, 1);
    check.queries(*q);
    batch = q->shape[0];
    queryLength = q->shape[1];
    heads = q->shape[2];
    headSize = q->shape[3];
    scale = check.scale(arguments, headSize);

    check.type("k", *k, q->type);
    check.shape("k", *k, {exactly(batch), atLeast(queryLength), divisorOf(heads), exactly(headSize)});
    keyLength = k->shape[1];
    kvHeads = k->shape[2];
    check.type("v", *v, q->type);
    check.shape("v", *v, {exactly(batch), exactly(keyLength), exactly(kvHeads), upTo(kMaxHeadSize)});
    valueSize = v->shape[3];
    if (hasAlpha) {
      check.type("alpha", *alpha, accumulatorType(q->type));
      check.shape("alpha", *alpha, {exactly(batch), exactly(keyLength), exactly(heads)});
    }
    if (hasMask) check.mask(*mask, q->type, batch, keyLength);
    if (backward) check.results(*o, *lse, *dO, *q, valueSize);
  }

  void fill(AttentionProblem& problem) const {
    problem.type = elementType(q->type);
    problem.maskType = hasMask ? elementType(mask->type) : problem.type;
    problem.batch = batch;
    problem.queryLength = queryLength;
    problem.keyLength = keyLength;
    problem.heads = heads;
    problem.kvHeads = kvHeads;
    problem.headSize = headSize;
    problem.valueSize = valueSize;
    problem.window = window;
    problem.scale = scale;
    problem.q = input(*q);
    problem.k = input(*k);
    problem.v = input(*v);
    if (hasAlpha) problem.alpha = input(*alpha);
    if (hasMask) problem.mask = input(*mask);
  }

  std::vector<OutputShape> forwardShapes() const {
    return {{"o", q->type, {batch, queryLength, heads, valueSize}},
            {"lse", accumulatorType(q->type), {batch, heads, queryLength}}};
  }

  std::vector<OutputShape> backwardShapes() const {
    std::vector<OutputShape> shapes = {{"dq", q->type, q->shape}, {"dk", q->type, k->shape}, {"dv", q->type, v->shape}};
    if (hasAlpha) shapes.push_back({"dalpha", alpha->type, alpha->shape});
    return shapes;
  }
};

/// The checked inputs of gated_fwa_gate and gated_fwa_gate_bp.
struct Gate {
  Checker check;
  std::vector<Named> inputs;
  const ArrayView* h;
  double eps;

  Gate(const char* op, const OpArguments& arguments, const std::vector<const char*>& names) : check(op) {
    check.count("integer arguments", arguments.integers.size(), 0, 0, "none");
    check.count("floating-point arguments", arguments.reals.size(), 0, 1, "at most 1: eps");
    check.count("boolean arguments", arguments.booleans.size(), 0, 0, "none");
    inputs = check.inputs(arguments, names, "");
    eps = arguments.reals.empty() ? kDefaultEps : arguments.reals[0];
    if (!std::isfinite(eps) || eps < 0) check.fail("argument 'eps' is ", eps, "; it must be finite and at least 0");

    h = &arguments.inputs[0];
    if (h->type != DataType::Float && h->type != DataType::Double)
      check.fail("h is ", nameOf(h->type), "; expected FLOAT or DOUBLE");
    check.shape("h", *h, {atLeast(0), atLeast(0), atLeast(1)});
    for (const Named& array : inputs) {
      check.type(array.name, *array.view, h->type);
      check.shape(array.name, *array.view, {exactly(h->shape[0]), exactly(h->shape[1]), exactly(h->shape[2])});
    }
  }

  OutputShape output(const char* name) const { return {name, h->type, h->shape}; }

  template <typename Params>
  Params params() const {
    Params result;
    result.type = elementType(h->type);
    result.batch = h->shape[0];
    result.length = h->shape[1];
    result.heads = h->shape[2];
    result.eps = eps;
    result.h = input(*inputs[0].view);
    result.beta = input(*inputs[1].view);
    return result;
  }
};

Attention forwardOf(const OpArguments& arguments) { return Attention("gated_fwa", arguments, false); }
Attention backwardOf(const OpArguments& arguments) { return Attention("gated_fwa_bp", arguments, true); }
Gate gateOf(const OpArguments& arguments) { return Gate("gated_fwa_gate", arguments, {"h", "beta"}); }
Gate gateGradientOf(const OpArguments& arguments) {
  return Gate("gated_fwa_gate_bp", arguments, {"h", "beta", "dalpha"});
}

std::vector<OutputShape> shapesOf(const Gate& gate) { return {gate.output("alpha")}; }
std::vector<OutputShape> gradientShapesOf(const Gate& gate) { return {gate.output("dh"), gate.output("dbeta")}; }

}  // namespace

std::vector<OutputShape> attentionForwardShapes(const OpArguments& arguments) {
  return forwardOf(arguments).forwardShapes();
}

std::vector<OutputShape> attentionBackwardShapes(const OpArguments& arguments) {
  return backwardOf(arguments).backwardShapes();
}

std::vector<OutputShape> gateForwardShapes(const OpArguments& arguments) { return shapesOf(gateOf(arguments)); }

std::vector<OutputShape> gateBackwardShapes(const OpArguments& arguments) {
  return gradientShapesOf(gateGradientOf(arguments));
}

void checkOutput(const char* op, const OutputShape& expected, const ArrayView& output) {
  Checker(op).output(expected, output);
}

AttentionForward attentionForwardParams(const OpArguments& arguments, const std::vector<ArrayView>& outputs) {
  const Attention attention = forwardOf(arguments);
  attention.check.memory(attention.inputs, attention.forwardShapes(), outputs);
  AttentionForward params;
  attention.fill(params);
  params.o = output(outputs[0]);
  params.lse = output(outputs[1]);
  return params;
}

AttentionBackward attentionBackwardParams(const OpArguments& arguments, const std::vector<ArrayView>& outputs) {
  const Attention attention = backwardOf(arguments);
  attention.check.memory(attention.inputs, attention.backwardShapes(), outputs);
  AttentionBackward params;
  attention.fill(params);
  params.o = input(*attention.o);
  params.lse = input(*attention.lse);
  params.dO = input(*attention.dO);
  params.dq = output(outputs[0]);
  params.dk = output(outputs[1]);
  params.dv = output(outputs[2]);
  if (attention.hasAlpha) params.dalpha = output(outputs[3]);
  return params;
}

GateForward gateForwardParams(const OpArguments& arguments, const std::vector<ArrayView>& outputs) {
  const Gate gate = gateOf(arguments);
  gate.check.memory(gate.inputs, shapesOf(gate), outputs);
  GateForward params = gate.params<GateForward>();
  params.alpha = output(outputs[0]);
  return params;
}

GateBackward gateBackwardParams(const OpArguments& arguments, const std::vector<ArrayView>& outputs) {
  const Gate gate = gateGradientOf(arguments);
  gate.check.memory(gate.inputs, gradientShapesOf(gate), outputs);
  GateBackward params = gate.params<GateBackward>();
  params.dalpha = input(*gate.inputs[2].view);
  params.dh = output(outputs[0]);
  params.dbeta = output(outputs[1]);
  return params;
}

}  // namespace gatedfwa
