// Internal to packed attention: the work that is handed to an instruction set's functions, and
// those functions. Plain data, since files with instruction-set flags include it.
#pragma once

#include <cstdint>

namespace drover {

// Rows of floats, from the span's first on.
struct PackedRows {
  const float* data;
  int64_t stride;
};
struct PackedOutput {
  float* data;
  int64_t stride;
};

// One kv head of a span, with the `group` query heads that share it: they stand side by side in the
// rows of q, out and log_sums.
struct PackedSpan {
  int64_t count;  // rows
  int64_t head_dim;
  int64_t group;
  bool causal;
  const float* key_bias;  // null, or one per row
  PackedRows q, k, v;
};

// The results of rows [begin, end).
struct PackedForward {
  PackedSpan span;
  int64_t begin;
  int64_t end;
  PackedOutput out, log_sums;
  float* scratch;  // as many floats as forward_scratch() says
};

// The gradients of keys and values [begin, end), and what these give to those of all rows that see
// them: from `begin` on if causal, else all. dq starts with the first of these rows.
struct PackedBackward {
  PackedSpan span;
  int64_t begin;
  int64_t end;
  PackedRows dout, out, log_sums;
  PackedOutput dq, dk, dv;  // overwritten
  float* scratch;           // as many floats as backward_scratch() says
};

struct PackedFunctions {
  void (*forward)(const PackedForward&);
  void (*backward)(const PackedBackward&);
  // Of a task of this many rows, or keys.
  int64_t (*forward_scratch)(const PackedSpan&, int64_t rows);
  int64_t (*backward_scratch)(const PackedSpan&, int64_t keys);
};

// Rows meet keys in blocks of these sizes, which suit chunks of powers of two: the rows of a block
// fill four vectors of 16 or two tiles of the matrix unit, and its scores take 16 KiB, a third of a
// first-level cache.
inline constexpr int64_t kBlockRows = 64;
inline constexpr int64_t kBlockKeys = 64;

extern const PackedFunctions kPackedPlain, kPackedAvx2, kPackedAvx512, kPackedAmx;

}  // namespace drover
