// From weights as a file holds them to numbers: the readable definition of every weight type, which
// the kernels and their tests are measured by. Pure functions; safe on any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "tensor/dtype.h"

namespace drover {

// How the floats of a block of 32 values go with its integers q[0 ... 31].
enum class BlockForm {
  // x[j] = scale[0] * q[j]                         (Q8_0 Q4_0 Q5_0 IQ4_NL IQ4_XS MXFP4)
  kOneScale,
  // x[j] = scale[j / 16] * q[j]                    (Q6_K Q3_K)
  kTwoScales,
  // x[j] = scale[0] * q[j] + minimum               (Q4_1 Q5_1 Q4_K Q5_K), each step rounded to
  // float
  kWithMinimum,
  // x[j] = scale[0] * q[j] + minimum * m[j / 16]   (Q2_K), where both products are exact in float
  kTwoMinima,
};

// 32 consecutive values of a quantised row in the terms that all formats share.
struct Block32 {
  BlockForm form;
  int8_t q[32];
  float scale[2];  // equal but for kTwoScales
  float minimum;   // 0 but for kWithMinimum and kTwoMinima
  int8_t m[2];     // 0 but for kTwoMinima
};

// Values 32 * index ... 32 * index + 31 of a row of a quantised type. The row may lie at any
// address; `index` must lie in the row.
Block32 unpack_block(DType type, const std::byte* row, int64_t index);

// A row of any weight type to floats, bit for bit as the spec says (section 9.5).
// row: row_bytes(type, out.size()) bytes at any address.  out.size(): a whole number of blocks.
// Every f16, bf16 and f32 comes through exactly, NaN and infinities too. kInternal when out.size()
// is not a whole number of blocks; kUnsupported for a type that is not a weight type.
void dequantize_row(DType type, const std::byte* row, std::span<float> out);

}  // namespace drover
