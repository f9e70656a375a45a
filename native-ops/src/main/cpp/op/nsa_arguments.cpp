#include "op/nsa_arguments.h"

#include <cstdint>
#include <string>

#include "op/checks.h"

namespace gatedfwa {
namespace {

/// What the checked inputs of all NSA ops have in common.
struct Nsa {
  Checker check;
  bool hasMask;
  std::vector<Named> inputs;
  const ArrayView *q, *mask = nullptr, *o = nullptr, *lse = nullptr, *dO = nullptr;

  /// `first` are the inputs before the mask, `last` those after it.
  Nsa(const char* op, const OpArguments& arguments, std::vector<const char*> first,
      const std::vector<const char*>& last, size_t integers, const char* names)
      : check(op) {
    check.count("integer arguments", arguments.integers.size(), integers, integers,
                std::to_string(integers) + ": " + names);
    for (size_t i = 0; i < arguments.integers.size(); i++)  // so that products of two of them stay in 64 bits
      if (arguments.integers[i] > INT32_MAX)
        check.fail("integer argument ", i + 1, " of (", names, ") is ", arguments.integers[i], "; it must be at most ",
                   INT32_MAX);
    check.count("floating-point arguments", arguments.reals.size(), 0, 1, "at most 1: scale");
    check.count("boolean arguments", arguments.booleans.size(), 0, 1, "at most 1: hasMask");
    hasMask = !arguments.booleans.empty() && arguments.booleans[0];
    const size_t beforeMask = first.size();
    if (hasMask) first.push_back("mask");
    first.insert(first.end(), last.begin(), last.end());
    inputs = check.inputs(arguments, first, std::string(" (hasMask is ") + (hasMask ? "true" : "false") + ")");
    q = inputs[0].view;
    if (hasMask) mask = inputs[beforeMask].view;
    if (!last.empty()) {
      o = inputs[inputs.size() - 3].view;
      lse = inputs[inputs.size() - 2].view;
      dO = inputs[inputs.size() - 1].view;
    }
  }

  void compression(int64_t blockLength, int64_t stride) const {
    if (blockLength < 1) check.fail("argument 'blockLength' is ", blockLength, "; it must be at least 1");
    if (stride < 1 || blockLength % stride != 0)
      check.fail("argument 'stride' is ", stride, "; it must be a divisor of blockLength, ", blockLength);
  }

  /// M; 0 stands for N.
  int64_t keyLength(int64_t asked) const {
    const int64_t queryLength = q->shape[1];
    if (asked < 0) check.fail("argument 'keyLength' is ", asked, "; it must be at least 0 (0: the query length)");
    if (asked != 0 && asked < queryLength)
      check.fail("argument 'keyLength' is ", asked, "; it must be at least the query length, ", queryLength,
                 ", or 0 for that");
    return asked == 0 ? queryLength : asked;
  }

  void fill(NsaProblem& problem, const OpArguments& arguments) const {
    problem.type = elementType(q->type);
    problem.maskType = problem.type;
    problem.batch = q->shape[0];
    problem.queryLength = q->shape[1];
    problem.heads = q->shape[2];
    problem.headSize = q->shape[3];
    problem.scale = check.scale(arguments, problem.headSize);
    problem.q = input(*q);
  }

  void fillMask(NsaProblem& problem, int64_t keys) const {
    if (!hasMask) return;
    check.mask(*mask, q->type, problem.batch, keys);
    problem.maskType = elementType(mask->type);
    problem.mask = input(*mask);
  }

  std::vector<OutputShape> forwardShapes(int64_t valueSize) const {
    return {{"o", q->type, {q->shape[0], q->shape[1], q->shape[2], valueSize}},
            {"lse", accumulatorType(q->type), {q->shape[0], q->shape[2], q->shape[1]}}};
  }
};

const std::vector<const char*> kNothing, kResults = {"o", "lse", "dO"};

/// The checked inputs of nsa_compressed_attention, its gradient and nsa_select.
struct Compressed : Nsa {
  const ArrayView *k, *v = nullptr;
  NsaCompressedProblem problem;

  Compressed(const char* op, const OpArguments& arguments, const std::vector<const char*>& last)
      : Nsa(op, arguments, {"q", "kCmp", "vCmp"}, last, 3, "blockLength, stride, keyLength") {
    compression(arguments.integers[0], arguments.integers[1]);
    keys(arguments, arguments.integers[2]);
    v = inputs[2].view;
    check.type("vCmp", *v, q->type);
    check.shape("vCmp", *v,
                {exactly(problem.batch), exactly(problem.blocks), exactly(problem.kvHeads), upTo(kMaxHeadSize)});
    problem.valueSize = v->shape[3];
    problem.v = input(*v);
    fillMask(problem, problem.blocks);
    if (o) check.results(*o, *lse, *dO, *q, problem.valueSize);
  }

 protected:
  /// nsa_select
  Compressed(const char* op, const OpArguments& arguments)
      : Nsa(op, arguments, {"q", "kCmp", "lse"}, kNothing, 5, "blockLength, stride, selectionBlock, topN, keyLength") {}

  void keys(const OpArguments& arguments, int64_t askedKeyLength) {
    check.scale(arguments, 1);
    check.queries(*q);
    fill(problem, arguments);
    problem.blockLength = arguments.integers[0];
    problem.stride = arguments.integers[1];
    problem.keyLength = keyLength(askedKeyLength);
    problem.blocks =
        problem.keyLength < problem.blockLength ? 0 : (problem.keyLength - problem.blockLength) / problem.stride + 1;
    k = inputs[1].view;
    check.type("kCmp", *k, q->type);
    check.shape("kCmp", *k,
                {exactly(problem.batch), exactly(problem.blocks), divisorOf(problem.heads), exactly(problem.headSize)});
    problem.kvHeads = k->shape[2];
    problem.k = input(*k);
  }
};

struct Select : Compressed {
  int64_t selectionBlock, topN;

  explicit Select(const OpArguments& arguments) : Compressed("nsa_select", arguments) {
    compression(arguments.integers[0], arguments.integers[1]);
    selectionBlock = arguments.integers[2];
    topN = arguments.integers[3];
    if (selectionBlock < 1 || selectionBlock % arguments.integers[0] != 0)
      check.fail("argument 'selectionBlock' is ", selectionBlock, "; it must be a multiple of blockLength, ",
                 arguments.integers[0]);
    if (topN < 3) check.fail("argument 'topN' is ", topN, "; it must be at least 3");
    keys(arguments, arguments.integers[4]);
    problem.valueSize = 0;
    lse = inputs[2].view;
    check.lse(*lse, *q);
    fillMask(problem, problem.blocks);
  }

  std::vector<OutputShape> shapes() const {
    return {{"indices", DataType::Int, {problem.batch, problem.queryLength, problem.kvHeads, topN}}};
  }
};

/// The checked inputs of nsa_selected_attention and its gradient.
struct Selected : Nsa {
  const ArrayView *k, *v, *indices;
  NsaSelectedProblem problem;

  Selected(const char* op, const OpArguments& arguments, const std::vector<const char*>& last)
      : Nsa(op, arguments, {"q", "k", "v", "indices"}, last, 1, "selectionBlock") {
    problem.selectionBlock = arguments.integers[0];
    if (problem.selectionBlock < 1)
      check.fail("argument 'selectionBlock' is ", problem.selectionBlock, "; it must be at least 1");
    check.scale(arguments, 1);
    check.queries(*q);
    fill(problem, arguments);
    k = inputs[1].view;
    v = inputs[2].view;
    indices = inputs[3].view;
    check.type("k", *k, q->type);
    check.shape(
        "k", *k,
        {exactly(problem.batch), atLeast(problem.queryLength), divisorOf(problem.heads), exactly(problem.headSize)});
    problem.keyLength = k->shape[1];
    problem.kvHeads = k->shape[2];
    check.type("v", *v, q->type);
    check.shape("v", *v,
                {exactly(problem.batch), exactly(problem.keyLength), exactly(problem.kvHeads), upTo(kMaxHeadSize)});
    problem.valueSize = v->shape[3];
    check.type("indices", *indices, DataType::Int);
    check.shape("indices", *indices,
                {exactly(problem.batch), exactly(problem.queryLength), exactly(problem.kvHeads), atLeast(1)});
    problem.topN = indices->shape[3];
    problem.k = input(*k);
    problem.v = input(*v);
    problem.indices = input(*indices);
    fillMask(problem, problem.keyLength);
    if (o) check.results(*o, *lse, *dO, *q, problem.valueSize);
  }

  /// The kernels walk over blocks by these numbers.
  void values() const {
    const int64_t blocks = (problem.keyLength + problem.selectionBlock - 1) / problem.selectionBlock;
    const int64_t* strides = problem.indices.strides;
    for (int64_t b = 0; b < problem.batch; b++)
      for (int64_t t = 0; t < problem.queryLength; t++)
        for (int64_t h = 0; h < problem.kvHeads; h++) {
          const int32_t* row =
              static_cast<const int32_t*>(problem.indices.data) + b * strides[0] + t * strides[1] + h * strides[2];
          int64_t before = -2;  // -2: none yet; -1: the rest must be -1
          for (int64_t i = 0; i < problem.topN; i++) {
            const int64_t block = row[i * strides[3]];
            if (block < -1 || block >= blocks || (block >= 0 && (before == -1 || block <= before)))
              check.fail("indices[", b, ", ", t, ", ", h, ", ", i, "] is ", block,
                         "; expected ascending block numbers below ", blocks, ", then -1");
            before = block;
          }
        }
  }
};

Compressed compressedOf(const OpArguments& arguments) {
  return Compressed("nsa_compressed_attention", arguments, kNothing);
}
Compressed compressedGradientOf(const OpArguments& arguments) {
  return Compressed("nsa_compressed_attention_bp", arguments, kResults);
}
Selected selectedOf(const OpArguments& arguments) { return Selected("nsa_selected_attention", arguments, kNothing); }
Selected selectedGradientOf(const OpArguments& arguments) {
  return Selected("nsa_selected_attention_bp", arguments, kResults);
}

std::vector<OutputShape> gradientShapes(const Compressed& x) {
  return {{"dq", x.q->type, x.q->shape}, {"dkCmp", x.q->type, x.k->shape}, {"dvCmp", x.q->type, x.v->shape}};
}
std::vector<OutputShape> gradientShapes(const Selected& x) {
  return {{"dq", x.q->type, x.q->shape}, {"dk", x.q->type, x.k->shape}, {"dv", x.q->type, x.v->shape}};
}

template <typename Params, typename Op>
Params forwardParams(const Op& op, const std::vector<ArrayView>& outputs) {
  op.check.memory(op.inputs, op.forwardShapes(op.problem.valueSize), outputs);
  Params params;
  static_cast<decltype(op.problem)&>(params) = op.problem;
  params.o = output(outputs[0]);
  params.lse = output(outputs[1]);
  return params;
}

template <typename Params, typename Op>
Params backwardParams(const Op& op, const std::vector<ArrayView>& outputs) {
  op.check.memory(op.inputs, gradientShapes(op), outputs);
  Params params;
  static_cast<decltype(op.problem)&>(params) = op.problem;
  params.o = input(*op.o);
  params.lse = input(*op.lse);
  params.dO = input(*op.dO);
  params.dq = output(outputs[0]);
  params.dk = output(outputs[1]);
  params.dv = output(outputs[2]);
  return params;
}

}  // namespace

std::vector<OutputShape> nsaCompressedForwardShapes(const OpArguments& arguments) {
  const Compressed x = compressedOf(arguments);
  return x.forwardShapes(x.problem.valueSize);
}

std::vector<OutputShape> nsaCompressedBackwardShapes(const OpArguments& arguments) {
  return gradientShapes(compressedGradientOf(arguments));
}

std::vector<OutputShape> nsaSelectShapes(const OpArguments& arguments) { return Select(arguments).shapes(); }

std::vector<OutputShape> nsaSelectedForwardShapes(const OpArguments& arguments) {
  const Selected x = selectedOf(arguments);
  return x.forwardShapes(x.problem.valueSize);
}

std::vector<OutputShape> nsaSelectedBackwardShapes(const OpArguments& arguments) {
  return gradientShapes(selectedGradientOf(arguments));
}

NsaCompressedForward nsaCompressedForwardParams(const OpArguments& arguments, const std::vector<ArrayView>& outputs) {
  return forwardParams<NsaCompressedForward>(compressedOf(arguments), outputs);
}

NsaCompressedBackward nsaCompressedBackwardParams(const OpArguments& arguments, const std::vector<ArrayView>& outputs) {
  return backwardParams<NsaCompressedBackward>(compressedGradientOf(arguments), outputs);
}

NsaSelect nsaSelectParams(const OpArguments& arguments, const std::vector<ArrayView>& outputs) {
  const Select x(arguments);
  x.check.memory(x.inputs, x.shapes(), outputs);
  NsaSelect params;
  static_cast<NsaCompressedProblem&>(params) = x.problem;
  params.selectionBlock = x.selectionBlock;
  params.topN = x.topN;
  params.lse = input(*x.lse);
  params.indices = output(outputs[0]);
  return params;
}

NsaSelectedForward nsaSelectedForwardParams(const OpArguments& arguments, const std::vector<ArrayView>& outputs,
                                            bool checkIndices) {
  const Selected x = selectedOf(arguments);
  const NsaSelectedForward params = forwardParams<NsaSelectedForward>(x, outputs);
  if (checkIndices) x.values();
  return params;
}

NsaSelectedBackward nsaSelectedBackwardParams(const OpArguments& arguments, const std::vector<ArrayView>& outputs,
                                              bool checkIndices) {
  const Selected x = selectedGradientOf(arguments);
  const NsaSelectedBackward params = backwardParams<NsaSelectedBackward>(x, outputs);
  if (checkIndices) x.values();
  return params;
}

}  // namespace gatedfwa
