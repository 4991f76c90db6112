// From floats to weights of any type. Pure functions; safe on any thread, and the same bits on
// every machine. Many rows at once are the caller's business.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "tensor/dtype.h"

namespace drover {

// Writes row_bytes(type, x.size()) bytes to `out`, at any address.
//
// f32 is copied; f16 and bf16 round to nearest, ties to even. Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1 are
// the reference quantisers of these formats, bit for bit. The other formats are searched: scales,
// minima and codes that make sum_j importance[j] * (x[j] - read back)^2 small.
//
// importance: one weight >= 0 per value, for instance the mean square of the activations that meet
// the column; empty, or nothing but zeros in a block, means all alike. Only their ratios within a
// block count, and even a value of weight 0 counts a little. The searched formats alone use it.
//
// A quantised block that holds NaN or infinity is written with a NaN scale and reads back as NaN
// throughout: damage stays visible. MXFP4 has no NaN that all readers know; there it is read back
// as infinity. A searched block is lost in the same way by a value beyond 65504 * 63 in magnitude
// (65504 * 15 in Q2_K; none in MXFP4); a legacy block whose scale exceeds what f16 holds reads back
// as infinity or NaN. Values too small for a scale (f16; 2^-122 in MXFP4) become zero.
//
// kInternal when x.size() is not a whole number of blocks or `importance` has another size than x;
// kUnsupported for a type that is not a weight type.
void quantize_row(DType type, std::span<const float> x, std::byte* out,
                  std::span<const float> importance = {});

}  // namespace drover
