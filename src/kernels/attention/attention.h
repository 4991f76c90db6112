// Causal attention over the pages of a cache.
//
// A page holds kPageTokens consecutive positions of one layer of one sequence. Both kinds of layer
// use the same kernel: for a global layer positions count from the start of the sequence, for a
// chunked layer from the start of the chunk, where its cache begins anew.
//
// Each page is a fixed split of the softmax: its scores, maximum and weighted sum are found alone
// and merged into the running result in page order. So a token's output depends on its query and
// its past, never on the batch, on how the prompt was cut, or on the number of threads.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/attention/attention_task.h"  // kPageTokens, kMaxHeadDim
#include "kernels/context.h"
#include "tensor/view.h"

namespace drover {

// The keys and values of one layer of one sequence, K heads of d components. Page p holds positions
// [p * kPageTokens, (p+1) * kPageTokens), in the cache's type:
//   keys   [K, d, kPageTokens]    component-major, so that neighbouring positions fill a vector and
//                                 a score needs no sum across lanes
//   values [K, kPageTokens, d']   d' = d rounded up to 16, the rest never read into a result
// The cache owns the pages; they start on a cache line.
struct KvPages {
  std::byte* const* pages = nullptr;
  DType type = DType::kF32;  // kF32 or kBF16
  int64_t kv_heads = 0;
  int64_t head_dim = 0;

  int64_t padded_dim() const { return (head_dim + 15) / 16 * 16; }
  int64_t keys_bytes() const { return kv_heads * head_dim * row_bytes(type, kPageTokens); }
  int64_t page_bytes() const {
    return keys_bytes() + kv_heads * kPageTokens * row_bytes(type, padded_dim());
  }
};

// Puts the keys and values of `keys.rows` tokens at positions first, first+1, ... of the pages.
// keys, values: [T, K * d]. bf16 rounds to nearest even. The pages must exist. Does not fail.
void store_kv(Context& context, const KvPages& pages, int64_t first, ConstMatrixView keys,
              ConstMatrixView values);

// The queries of T consecutive tokens of one sequence, the first at position `first`.
struct AttentionJob {
  ConstMatrixView q;  // [T, H * d]
  KvPages pages;      // filled up to position first + T - 1
  int64_t first = 0;
  MatrixView out;  // [T, H * d], overwritten; may not alias q
};

// out[t, j] = softmax_p( q[t, j] . k[p, g] / sqrt(d) ) v[p, g],  p <= first + t,  g = floor(j K /
// H) for every query head j; all jobs in one parallel pass. d is any size up to kMaxHeadDim, H a
// multiple of K. Scores, softmax and sums in float32. Bits are the same on every instruction set.
// Does not fail. Source: Vaswani et al. 2017; grouped heads, Ainslie et al. 2023, arXiv 2305.13245;
// running softmax, Milakov & Gimelshein 2018, arXiv 1805.02867; spec sections 2.3 and 2.4.
void attention(Context& context, std::span<const AttentionJob> jobs);

}  // namespace drover
