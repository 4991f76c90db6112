// How a matrix product ends: what becomes of its sums on their way to the output. Plain data, since
// files with instruction-set flags include it.
#pragma once

#include <cstdint>

#include "kernels/isa.h"

namespace drover {

// Step by step, each rounded to float; with no step, out = sum.
struct MatmulEnd {
  const float* bias = nullptr;  // [N]  y = sum + bias[n]
  bool gelu = false;            //      y = gelu(y), math/gelu.h
  bool add = false;             //      out[t,n] + y in place of y

  explicit operator bool() const { return bias != nullptr || gelu || add; }
};

namespace internal {

// n sums of one token, whose first output is out[0] and whose first bias is bias[0], or null.
using MatmulEndRow = void(const float* sums, const float* bias, const MatmulEnd& end, float* out,
                          int64_t n);
MatmulEndRow matmul_end_plain;
MatmulEndRow matmul_end_avx2;
MatmulEndRow matmul_end_avx512;

// The one of this instruction set; the plain one where the set does not exist.
MatmulEndRow* matmul_end_kernel(Isa isa);

}  // namespace internal
}  // namespace drover
