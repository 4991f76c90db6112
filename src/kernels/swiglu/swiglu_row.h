// Internal to swiglu: one row, one function per instruction set. Plain data, since files with
// instruction-set flags include it.
#pragma once

#include <cstdint>

namespace drover::internal {

// gate[i] = silu(gate[i]) * up[i] for i < n.
void swiglu_row_plain(float* gate, const float* up, int64_t n);
void swiglu_row_avx2(float* gate, const float* up, int64_t n);
void swiglu_row_avx512(float* gate, const float* up, int64_t n);

}  // namespace drover::internal
