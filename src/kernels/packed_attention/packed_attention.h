// Attention among rows that are at hand, forward and backward: what a trainer needs, who keeps no
// cache. A batch is packed: documents, or their parts inside a chunk, stand one after the other as
// spans of rows, and no row sees beyond its span.
//
// Free functions on views. What comes out for a row depends on its span alone, never on the spans
// beside it or on threads.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.h"
#include "tensor/view.h"

namespace drover {

// Consecutive rows [first, first + count) of a batch that see each other.
struct RowSpan {
  int64_t first = 0;
  int64_t count = 0;
};

struct PackedAttention {
  int64_t heads = 0;     // H
  int64_t kv_heads = 0;  // K; H is a multiple of it
  int64_t head_dim = 0;  // d, a multiple of 2, at most kMaxHeadDim
  std::span<const RowSpan> spans;  // none overlaps another; they need not cover the batch
  bool causal = true;  // row t sees rows [first, t] of its span; or every row sees the whole span
  // Null, or [T]: added to every score of this row as a key. ln c stands for c copies of it.
  const float* key_bias = nullptr;
  // Whether products may round what they multiply to bf16, where that is faster; sums stay in
  // float. Elsewhere it changes nothing.
  bool rounded = false;
};

// out[t, j] = softmax_p( q[t, j] . k[p, g] / sqrt(d) + key_bias[p] ) v[p, g],  g = floor(j K / H)
//   log_sums[t, j] = ln of the sum over p of e to the score, kept for the backward pass
// q, out: [T, H*d].  k, v: [T, K*d].  log_sums: [T, H].  Rows outside of all spans get zeros.
// out may not alias. Does not fail.
// Source: Vaswani et al. 2017; tiles and log-sum, Dao 2023, arXiv 2307.08691.
void packed_attention(Context& context, const PackedAttention& how, MatrixView out,
                      MatrixView log_sums, ConstMatrixView q, ConstMatrixView k,
                      ConstMatrixView v);

// The gradients dq, dk, dv (of the shapes of q, k, v), overwritten, rows outside of all spans with
// zeros; no alias. out and log_sums are what packed_attention() made of the same q, k, v.
//   p = e^(score - log_sum),  D = dout . out,  ds = p (dout . v - D)
//   dq = sum ds k / sqrt(d),  dk = sum ds q / sqrt(d),  dv = sum p dout
// The order of each sum follows from the span alone. Does not fail.
//
// Work is cut into tasks of (span, kv head, stripe of keys): one sees all rows that see its keys, so
// that dk and dv are whole and scores are computed once, five products a pair. A span of up to 512
// rows is one stripe, a longer one at most eight, and each but the first leaves a part of dq in the
// context's shared scratch, to be added in order: 3.5 times dq at most if causal, else 7 times.
void packed_attention_backward(Context& context, const PackedAttention& how, MatrixView dq,
                               MatrixView dk, MatrixView dv, ConstMatrixView dout,
                               ConstMatrixView out, ConstMatrixView log_sums, ConstMatrixView q,
                               ConstMatrixView k, ConstMatrixView v);

}  // namespace drover
