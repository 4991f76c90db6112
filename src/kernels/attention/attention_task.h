// Internal to attention: how a page is laid out, the work that is handed to an instruction set's
// functions, and those functions. Plain data, since files with instruction-set flags include it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace drover {

inline constexpr int64_t kPageTokens = 256;  // the fixed split of the softmax
inline constexpr int64_t kSpanPages = 64;    // what pages give is merged in spans of so many
inline constexpr int64_t kMaxHeadDim = 512;

// Keys and values of a page lie in blocks of this many positions and panels of this many
// components. A block of floats with 64 components fills 16 KiB, a third to a half of an L1 cache,
// and four vectors of 16 times six rows fill the registers.
inline constexpr int64_t kBlockTokens = 64;
inline constexpr int64_t kPanelWidth = 64;

// The part of a page that belongs to one kv head. Offsets are in bytes from where it begins.
struct HeadLayout {
  int64_t padded_dim;    // head_dim rounded up to 16
  int64_t values;        // keys begin at 0
  int64_t key_scales;    // kPageTokens floats, int8 only
  int64_t value_scales;  // kPageTokens floats, int8 only
  int64_t bytes;
};

enum class KvType { kF32, kBF16, kInt8 };

// A tile: `tokens` consecutive query tokens with the `group` query heads that share one kv head.
// Its rows are (token, head), head fastest; row (t, h) of q and out is at t * stride + h *
// head_dim.
struct AttentionTask {
  const float* q;
  float* out;
  int64_t q_stride;
  int64_t out_stride;
  KvType type;
  bool rounded;  // goes to attend_rounded
  const std::byte* const* pages;
  int64_t head_offset;  // where the kv head begins in a page
  HeadLayout layout;
  int64_t head_dim;
  int64_t group;
  int64_t tokens;
  int64_t seen;  // the first token attends to positions [0, seen),
  int64_t step;  // each later one to so many more: 1 if causal, else 0
  // The pages to visit: the first_page'th of the sequence, or of those chosen, and so on.
  int64_t first_page;
  int64_t end_page;
  const int32_t* chosen;  // numbers of pages, ascending (any order to peek); null: all are visited
  float* scratch;         // attention_scratch() floats
  float* mass;            // null, or for maximum and sum of each row, beside its result
  // Null: all pages are visited and the result goes to out. Else a slice of the past is visited
  // that leaves parts, to be merged when all are there: one for each page or for each span, so many
  // pages, the one that begins with page p at parts + p / part_pages * rows * row_state().
  float* parts;
  int64_t part_pages;
};

// What a page, a span, or all so far give a row: padded_dim weighted sums, then maximum and sum.
inline constexpr int64_t row_state(int64_t padded_dim) { return padded_dim + 16; }

// Up to whole blocks.
inline constexpr int64_t whole_blocks(int64_t n) {
  return (n + kBlockTokens - 1) / kBlockTokens * kBlockTokens;
}

// A row's query in scratch.
inline constexpr int64_t query_row(int64_t padded_dim) { return whole_blocks(padded_dim) + 16; }

inline constexpr int64_t attention_scratch(int64_t rows, int64_t padded_dim) {
  return rows * (query_row(padded_dim) + kPageTokens + 3 * row_state(padded_dim)) +
         kBlockTokens * whole_blocks(padded_dim);
}

// How many rows, positions or components meet in the matrix unit; they are filled up to as many.
inline constexpr int64_t kUnitWidth = 32;
inline constexpr int64_t unit_padded(int64_t n) {
  return (n + kUnitWidth - 1) / kUnitWidth * kUnitWidth;
}

// What attend_rounded takes: bf16 of all queries, of a page's keys and values, and of the weights
// of a block of rows; their scores and sums as floats.
inline constexpr int64_t rounded_scratch(int64_t rows, int64_t padded_dim) {
  const int64_t width = unit_padded(padded_dim);
  return attention_scratch(rows, padded_dim) + unit_padded(rows) * width / 2 + kPageTokens * width +
         kUnitWidth * (kPageTokens / 2 + kPageTokens + width);
}

// Keys and values of `tokens` consecutive positions that lie in one block, for one kv head.
struct KvStoreTask {
  const float* keys;  // row t at t * stride
  const float* values;
  int64_t key_stride;
  int64_t value_stride;
  KvType type;
  std::byte* head;  // where the kv head begins in its page
  HeadLayout layout;
  int64_t head_dim;
  int64_t slot;  // of the first position, in the page
  int64_t tokens;
  float* scratch;  // kBlockTokens * padded_dim floats
};

// The bounds of the keys of a full page, for one kv head.
struct KeyBoundTask {
  KvType type;
  const std::byte* head;  // where the kv head begins in the page
  HeadLayout layout;
  int64_t head_dim;
  uint16_t* bounds;  // where it begins in the span's bounds, bf16 [head_dim][2][kSpanPages]
  int64_t slot;      // of the page, in the span
};

// What no score of a page can exceed, for all pages of some spans and the query heads of one token
// that share a kv head.
struct PageBoundTask {
  KvType type;
  const float* q;  // row h at h * head_dim
  const std::byte* const* bounds;
  int64_t head_offset;  // where the kv head begins in a span's bounds
  int64_t head_dim;
  int64_t rows;
  int64_t first_span;
  int64_t end_span;
  float* out;  // of row h and page p at h * stride + p
  int64_t stride;
};

struct AttentionFunctions {
  void (*attend)(const AttentionTask&);
  void (*attend_rounded)(const AttentionTask&);  // null: rounded jobs are as all others
  void (*merge_parts)(const AttentionTask&);
  // Only maximum and sum of weights of each row on the k'th page, to parts + k * rows * 2.
  void (*peek)(const AttentionTask&);
  void (*bound_pages)(const PageBoundTask&);
  void (*bound_keys)(const KeyBoundTask&);
  void (*store_block)(const KvStoreTask&);
};

#define DROVER_DECLARE_ATTENTION(isa)          \
  namespace isa {                              \
  void attend(const AttentionTask& task);      \
  void merge_parts(const AttentionTask& task); \
  void peek(const AttentionTask& task);        \
  void bound_pages(const PageBoundTask& task); \
  void bound_keys(const KeyBoundTask& task);   \
  void store_block(const KvStoreTask& task);   \
  }
DROVER_DECLARE_ATTENTION(attention_plain)
DROVER_DECLARE_ATTENTION(attention_avx2)
DROVER_DECLARE_ATTENTION(attention_avx512)
#undef DROVER_DECLARE_ATTENTION
namespace attention_amx {
void attend_rounded(const AttentionTask& task);
}

}  // namespace drover
