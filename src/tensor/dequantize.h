// From weights as a file holds them to numbers: the readable definition of every weight type, which
// the kernels and their tests are measured by. Pure functions; safe on any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "tensor/dtype.h"

namespace drover {

// 32 consecutive values of a quantised row in the form that all formats share:
//   value[j] = scale[j / 16] * q[j] + minimum      (a product and a sum, each rounded to float)
// Only Q6_K has two different scales; only the formats with a minimum have one (has_minimum), the
// others leave the sum out.
struct Block32 {
  int8_t q[32];
  float scale[2];
  float minimum;
  bool has_minimum;
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
