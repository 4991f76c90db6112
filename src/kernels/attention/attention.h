// Attention over the pages of a cache, causal or of every token to all.
//
// A page holds kPageTokens consecutive positions of one layer of one sequence. Both kinds of layer
// use the same kernel: for a global layer positions count from the start of the sequence, for a
// chunked layer from the start of the chunk, where its cache begins anew.
//
// What an output is, to the bit. It depends on its query and on the positions that it attends to,
// never on the batch, on how the prompt or the past was cut into tasks, or on threads; nor on the
// instruction set, but for what Isa::kAmx does with `rounded` jobs. Only the bits of a NaN are left
// open. What the cache holds at later positions is never read into it. All products and sums are
// rounded to float where they stand, fma with one rounding.
//
//   q'[i] = q[i] * c,  c = 1 / sqrt(d)
//
// Each page is a fixed split of the softmax. For its positions p, up to the row's last, in order:
//   s[p] = fma over i in order from +0: fma(q'[i], k[p, i], s)
//          int8: (Σ_i n[i] k[p, i]) unit, times the position's key scale; n, unit: q' in 16 bits
//   m    = the largest s[p] that is a number, -infinity if none is
//   w[p] = e(s[p] - m)
//   l    = lane p mod 16 of 16 sums w[p] in order from +0; then lanes j and j + 8 are added, then j
//          and j + 4, j and j + 2, 0 and 1
//   o[i] = fma over p in order from +0: fma(w[p], v[p, i], o)
//          int8: (Σ_p n[p] v[p, i]) unit; n, unit: in 16 bits w[p] times the position's value scale
//   In `rounded` jobs on Isa::kAmx s[p] and o[i] are what matmul.h says that its rounded jobs make
//   of bf16 weights: s[p] of x = q' and w = k[p], o[i] of x = w and w = v[.., i].
// The pages of a span, kSpanPages in a row, are merged in order, the first being the start, and the
// spans are merged likewise; (M, L, O) is what there is and (m, l, o) what a page or a span gives:
//   M' = max(m, M),  a = e(m - M'),  b = e(M - M')
//   L' = fma(l, a, L * b),  O'[i] = fma(o[i], a, O[i] * b)
//   out[i] = O[i] / L
//
// The 16-bit form of a vector x, for int8 pages, whose sums are then exact in 32 bits and so have
// no order:
//   most = max |x|,  unit = most / 32639,  n[i] = x[i] * (32639 / most) to nearest, ties to even
// Below 2^-110 for `most`: unit 0, n 0. With a NaN or an infinity in x: unit NaN, n 0. A product is
// off by half a unit, 2^-16 of the largest: a 257th of what the int8 form of its key or value is
// off by. A page's o[i] is off by 256 of them at the very most.
//
// e(x) for x <= 0, x clamped to -87 from below (weights never get smaller than 1.6e-38), in fused
// steps: n = round(x log2 e) by way of fma(x, log2 e, 1.5 * 2^23 + 127), r = x - n ln 2 in two fma,
// p(r) of degree 6 by Horner in fma with the coefficients of math/exp.h, result p * 2^n.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/attention/attention_task.h"  // kPageTokens, kSpanPages, kMaxHeadDim
#include "kernels/context.h"
#include "tensor/view.h"

namespace drover {

// The keys and values of one layer of one sequence, K heads of d components. Page p holds positions
// [p * kPageTokens, (p+1) * kPageTokens), head after head, and of a head, in the cache's type:
//   keys    [kPageTokens / 64][d][64]   blocks of 64 positions, component-major, so that
//                                       neighbouring positions fill a vector and a score needs no
//                                       sum across lanes
//   values  [d' / 64][kPageTokens][64]  panels of 64 components, the last one narrower; d' = d
//                                       rounded up to 16, the rest never read into a result
//   int8 only: key scales [kPageTokens] f32, value scales [kPageTokens] f32
// So whatever a kernel reads together lies together. The cache owns the pages; they start on a
// cache line.
//
// The int8 form of a vector x of d components, in float and the same on every instruction set:
//   most = max |x|,  scale = most / 127,  q[i] = x[i] * (127 / most) to nearest, ties to even
// Below 2^-120 for `most`: scale 0, q 0. With a NaN or an infinity in x: scale NaN, q 0, so that
// what looks at this position gets a NaN.
struct KvPages {
  std::byte* const* pages = nullptr;
  DType type = DType::kF32;  // kF32, kBF16 or kI8
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  // Null, or what the keys of a full page lie between, span after span; each span's starts on a
  // cache line. See bound_keys().
  std::byte* const* bounds = nullptr;

  HeadLayout head() const {
    const int64_t padded = (head_dim + 15) / 16 * 16;
    const int64_t values = row_bytes(type, head_dim * kPageTokens);
    const int64_t scales = values + row_bytes(type, padded * kPageTokens);
    const int64_t scale_bytes = type == DType::kI8 ? kPageTokens * sizeof(float) : 0;
    return {padded, values, scales, scales + scale_bytes, scales + 2 * scale_bytes};
  }
  int64_t page_bytes() const { return kv_heads * head().bytes; }
  int64_t bounds_bytes() const {  // of a span
    return kv_heads * row_bytes(DType::kBF16, 2 * head_dim * kSpanPages);
  }
};

// True for the types that a cache can have: f32, bf16 and i8.
bool is_cache_type(DType type);

// Keys and values of T consecutive tokens of one sequence, to be put at positions first, first+1,
// ... of its pages, which must exist.
struct KvStoreJob {
  KvPages pages;
  int64_t first = 0;
  ConstMatrixView keys, values;  // [T, K * d]
};

// Stores all jobs in one parallel pass; no two may write the same position. bf16 rounds to nearest
// even, int8 as above. Does not fail.
void store_kv(Context& context, std::span<const KvStoreJob> jobs);

// Pages [first_page, end_page) of a sequence, all full. `pages.bounds` must reach as far.
struct BoundKeysJob {
  KvPages pages;
  int64_t first_page = 0;
  int64_t end_page = 0;
};

// Makes the bounds of these pages, once their keys are stored: of span s, at bounds[s],
//   bf16 [K][d][2][kSpanPages]   smallest and largest key of each component
// as they are read back, rounded outwards; those of int8 by one step of bf16 more, for what
// rounding does to a score. A key that is not finite makes the bounds of its component infinite.
// They are 0.2 % (f32) to 0.8 % (int8) of a page. Pages of one span may be bounded one by one. Does
// not fail.
void bound_keys(Context& context, std::span<const BoundKeysJob> jobs);

// How many pages of its past a token visits, where exactly all is not wanted. The choice is made
// for each token and kv head alone and is a function of the token's queries and of the pages that
// it sees: no other token, thread or cut changes it, nor any bit of the result, which is what it
// would be if the pages chosen, in their order, were all there are.
//
// With bounds of a page's keys no score of query row h on it exceeds
//   u[h] = chain over i in order from +0: fma(q'[i], q'[i] < 0 ? smallest[i] : largest[i], u)
//          int8: q'[i] as its 16-bit form is read back, n[i] unit
// and 256 e^(u[h] - M[h]) bounds what the page can add to the row's sum of weights L[h], M[h] being
// its largest score so far. The first page and the newest are always visited; they give M and L.
// The others are ranked by the largest u[h] - M[h] of all rows, in steps of 1/32, then by number.
//   kBounded  Pages are visited by rank until what the rest may add, R, is at most `epsilon` of the
//             whole, R / (L + R), in each row. L and M grow with each page visited; after a quarter
//             of all pages they are taken to stay, and R alone decides how many more there are.
//   kBudget   The `pages` of highest rank, at least 2.
// What is not visited: with o the mean of the values visited and r the mean of the others, weighed
// by the softmax, the exact result is (L o + R' r) / (L + R') for an R' <= R, so that each
// component of o differs from it by R' / (L + R') |r - o| <= 2 epsilon max |v|.
//
// Source: bounds of pages, Tang et al. 2024, arXiv 2406.10774.
struct PageChoice {
  enum class Mode { kBounded, kBudget };
  Mode mode = Mode::kBounded;
  float epsilon = 0.001f;  // in [0, 1)
  int64_t pages = 64;
};

// What attention visited: all tokens and kv heads of a job together.
struct PageVisits {
  int64_t visited = 0;  // pages,
  int64_t seen = 0;     // of so many
  // L / (L + R), a certain lower bound of the part of the softmax that was visited: the smallest of
  // all tokens and query heads.
  float kept = 1.0f;
};

// The queries of T consecutive tokens of one sequence, the first at position `first`.
struct AttentionJob {
  ConstMatrixView q;  // [T, H * d]
  KvPages pages;      // filled up to position first + T - 1
  int64_t first = 0;
  MatrixView out;  // [T, H * d], overwritten; may not alias q
  // Token t attends to positions [0, first + t]; or every token to [0, first + T), as the patches
  // of a tile do.
  bool causal = true;
  // Null: all pages are visited. Else the pages need bounds, all but the last one a token sees, and
  // tokens must be causal.
  const PageChoice* choice = nullptr;
  PageVisits* visits = nullptr;  // null, or overwritten
  // Queries and weights may be rounded to bf16, where that is faster: for vision, whose reference
  // runs in bf16. Elsewhere it changes nothing. Pages must be in bf16 and tokens not causal.
  bool rounded = false;
};

// out[t, j] = softmax_p( q[t, j] . k[p, g] / sqrt(d) ) v[p, g] over the positions p that token t
// attends to, g = floor(j K / H), for every query head j; all jobs in one parallel pass. d is any
// size up to kMaxHeadDim, H a multiple of K. Does not fail, whatever numbers it meets.
//
// Work is cut into tiles of (job, kv head, consecutive tokens). Where few tokens have a long past
// and threads would idle, a tile's past is cut too: into runs of spans where it has enough of them,
// else of pages. What each span or page gives a row then waits in the context's shared scratch,
// (d' + 16) floats per row: 1.6 MB for 8 rows of 64 after ten million positions.
//
// A token with a choice is a tile of its own. Choosing takes 44 bytes per page for 4 rows.
//
// Source: Vaswani et al. 2017; grouped heads, Ainslie et al. 2023, arXiv 2305.13245; running
// softmax, Milakov & Gimelshein 2018, arXiv 1805.02867; tiles, Dao et al. 2022, arXiv 2205.14135;
// spec sections 2.3 and 2.4.
void attention(Context& context, std::span<const AttentionJob> jobs);

}  // namespace drover
