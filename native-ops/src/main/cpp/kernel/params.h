// What a kernel is given: plain structs, no framework type.
//
// Letters: B batch, N query length, M key length (M >= N), H query heads, Hkv key/value heads (H is a
// multiple of Hkv), D head size of q and k, Dv head size of v, w window.
// Query t (0-based) has absolute position p = M - N + t and sees the keys j in [max(0, p-w+1), p].
#pragma once

#include <cstdint>

namespace gatedfwa {

enum class ElementType { Float32, Float64, Float16, BFloat16, Bool };

/// A tensor of up to four dimensions; strides count elements and may take any value, 0 and negative included.
/// `data` addresses element [0, 0, 0, 0]; it is null where an optional operand is absent.
template <typename Pointer>
struct StridedTensor {
  Pointer data = nullptr;
  int64_t strides[4] = {0, 0, 0, 0};
};
using Input = StridedTensor<const void*>;
using Output = StridedTensor<void*>;

/// The attention problem that forward and backward share (GatedFWA, arXiv 2512.07782):
///   s_pj = scale * (q_p . k_j) - sum_{tau=j+1..p} alpha_tau,  P = softmax over the visible, unmasked j,
///   o_p = sum_j P_pj v_j,  lse_p = log sum_j exp(s_pj)   (natural logarithm).
/// A row that sees no unmasked key has o = 0, lse = -infinity and no gradient; alpha = +infinity is a hard reset.
struct AttentionProblem {
  ElementType type;      ///< of q, k, v, o and their gradients
  ElementType maskType;  ///< `type` or Bool
  int64_t batch, queryLength, keyLength, heads, kvHeads, headSize, valueSize;
  int64_t window;  ///< >= 1; the query's own token counts
  double scale;    ///< of the products q.k; already resolved, never 0 for "default"
  Input q;         ///< [B, N, H, D]
  Input k;         ///< [B, M, Hkv, D]
  Input v;         ///< [B, M, Hkv, Dv]
  Input alpha;     ///< [B, M, H], decay >= 0; Float64 if type is Float64, else Float32; may be absent
  Input mask;      ///< [B, M], nonzero = real token; may be absent
};

struct AttentionForward : AttentionProblem {
  Output o;    ///< [B, N, H, Dv]
  Output lse;  ///< [B, H, N]; Float64 if type is Float64, else Float32
};

/// dS = P o (dO V^T - delta), delta_p = dO_p . o_p;  dq = scale dS K, dk = scale dS^T Q, dv = P^T dO,
/// dalpha_tau = - sum_{j < tau <= p} dS_pj.
struct AttentionBackward : AttentionProblem {
  Input o, lse, dO;   ///< the forward results and the gradient of o, [B, N, H, Dv]
  Output dq, dk, dv;  ///< as q, k, v
  Output dalpha;      ///< as alpha; absent if alpha is
};

/// alpha = softplus(-beta * h) / (beta + eps); all [B, M, H], Float32 or Float64.
struct GateForward {
  ElementType type;
  int64_t batch, length, heads;
  double eps;
  Input h, beta;
  Output alpha;
};

struct GateBackward {
  ElementType type;
  int64_t batch, length, heads;
  double eps;
  Input h, beta, dalpha;
  Output dh, dbeta;
};

}  // namespace gatedfwa
