// What each instruction set provides for transposes. All give the same bits. Plain data, since
// files with instruction-set flags include it. Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

namespace drover::internal {

// A piece of x: its rows are `stride` floats apart, those of out `out_stride` bytes. Row n of out
// gets `rows` numbers, column n < cols of x. With past_caches whole lines are written past them,
// where the set can; then out and out_stride must be multiples of a line of 64 bytes.
using TransposePiece = void(const float* x, int64_t stride, int64_t rows, int64_t cols,
                            std::byte* out, int64_t out_stride, bool past_caches);

struct TransposeKernels {
  TransposePiece* to_f32;
  TransposePiece* to_bf16;
  // At most 32 rows and 32 columns, to a block of RoundedRows; zeros for those that are not there.
  void (*to_block)(const float* x, int64_t stride, int64_t rows, int64_t cols, std::byte* out);
};

extern const TransposeKernels kTransposePlain, kTransposeAvx2, kTransposeAvx512;

}  // namespace drover::internal
