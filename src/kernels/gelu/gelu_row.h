// Internal to gelu: one row, one function per instruction set. Plain data, since files with
// instruction-set flags include it.
#pragma once

#include <cstdint>

namespace drover::internal {

// x[i] = gelu(x[i] + bias[i]) for i < n; a null bias adds nothing.
void gelu_row_plain(float* x, const float* bias, int64_t n);
void gelu_row_avx2(float* x, const float* bias, int64_t n);
void gelu_row_avx512(float* x, const float* bias, int64_t n);

}  // namespace drover::internal
