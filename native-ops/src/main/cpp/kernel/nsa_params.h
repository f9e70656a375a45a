// What a kernel of native sparse attention (NSA, arXiv 2502.11089) is given. Letters as in params.h; further
// l block length and d stride of the compression (d divides l), C = max(0, (M - l) / d + 1) compressed blocks,
// l' tokens of a selection block (l divides l'), S = ceil(M / l') selection blocks.
//
// Query t (0-based) has absolute position p = M - N + t.
#pragma once

#include "kernel/params.h"

namespace gatedfwa {

/// Attention of p over a set of keys that the derived structs define:
///   s_pj = scale * (q_p . k_j),  P = softmax over the visible, unmasked j,  o_p = sum_j P_pj v_j,
///   lse_p = log sum_j exp(s_pj)   (natural logarithm).
/// A row that sees no unmasked key has o = 0, lse = -infinity and no gradient.
struct NsaProblem {
  ElementType type;      ///< of q, k, v, o and their gradients
  ElementType maskType;  ///< `type` or Bool
  int64_t batch, queryLength, keyLength, heads, kvHeads, headSize, valueSize;
  double scale;  ///< of the products q.k; already resolved, never 0 for "default"
  Input q;       ///< [B, N, H, D]
  Input k;       ///< [B, keys, Hkv, D]; `keys` is C or M
  Input v;       ///< [B, keys, Hkv, Dv]
  Input mask;    ///< [B, keys], nonzero = may be seen; may be absent
};

/// Keys are compressed blocks: p sees block c once it is complete, c d + l - 1 <= p.
struct NsaCompressedProblem : NsaProblem {
  int64_t blockLength, stride, blocks;  ///< l, d, C
};

/// Keys are tokens: p sees the tokens j <= p of its selected blocks.
struct NsaSelectedProblem : NsaProblem {
  int64_t selectionBlock, topN;  ///< l', row length of indices
  Input indices;                 ///< INT [B, N, Hkv, topN]: ascending block numbers below S, then -1
};

template <typename Problem>
struct NsaForward : Problem {
  Output o;    ///< [B, N, H, Dv]
  Output lse;  ///< [B, H, N]; Float64 if type is Float64, else Float32
};

/// dS = P o (dO V^T - delta), delta_p = dO_p . o_p;  dq = scale dS K, dk = scale dS^T Q, dv = P^T dO.
template <typename Problem>
struct NsaBackward : Problem {
  Input o, lse, dO;           ///< the forward results and the gradient of o, [B, N, H, Dv]
  Output dq, dk, dv;          ///< as q, k, v
  void* workspace = nullptr;  ///< of the size that the kernel asks for
};

using NsaCompressedForward = NsaForward<NsaCompressedProblem>;
using NsaCompressedBackward = NsaBackward<NsaCompressedProblem>;
using NsaSelectedForward = NsaForward<NsaSelectedProblem>;
using NsaSelectedBackward = NsaBackward<NsaSelectedProblem>;

/// The choice of blocks (paper, equations 8 to 11), of each query and key/value head. With P that of the compressed
/// attention, selection block s has the importance
///   imp_s = sum over the heads of the group and over c of P_pc * (pieces of d tokens that c and s share).
/// s is a candidate if p sees an unmasked compressed block that shares a token with it: without a mask, if it starts
/// at or before p. Always taken: the first candidate, the block of p, and the candidate before that; the others by
/// importance (NaN counts as 0), ties to the lower index. Ascending; -1 where there are fewer than topN.
struct NsaSelect : NsaCompressedProblem {  // v is absent
  int64_t selectionBlock, topN;            ///< l', >= 3
  Input lse;                               ///< [B, H, N], from the compressed attention
  Output indices;                          ///< INT [B, N, Hkv, topN]
};

}  // namespace gatedfwa
