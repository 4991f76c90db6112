// What each instruction set provides for transposes. All give the same bits. Plain data, since
// files with instruction-set flags include it. Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

namespace drover::internal {

struct TransposeKernels {
  // The rows of x are `stride` floats apart, those of out `out_stride` bytes: row n of out gets
  // `rows` numbers, column n < cols of x.
  void (*to_f32)(const float* x, int64_t stride, int64_t rows, int64_t cols, std::byte* out,
                 int64_t out_stride);
  void (*to_bf16)(const float* x, int64_t stride, int64_t rows, int64_t cols, std::byte* out,
                  int64_t out_stride);
  // At most 32 rows and 32 columns, to a block of RoundedRows; zeros for those that are not there.
  void (*to_block)(const float* x, int64_t stride, int64_t rows, int64_t cols, std::byte* out);
};

extern const TransposeKernels kTransposePlain, kTransposeAvx2, kTransposeAvx512;

}  // namespace drover::internal
