// The searched quantisers, one block of 256 values each. Internal to quantize.cpp; the contract is
// in quantize.h. x, importance: 256 values, finite and at most kLargestKValue in magnitude.
#pragma once

#include "tensor/blocks.h"

namespace drover {

// The largest minimum that Q4_K and Q5_K can hold: an f16 times a 6-bit number.
inline constexpr float kLargestKValue = 65504.0f * 63;

void quantize_block(const float* x, const float* importance, BlockQ4_K& out);
void quantize_block(const float* x, const float* importance, BlockQ5_K& out);
void quantize_block(const float* x, const float* importance, BlockQ6_K& out);

}  // namespace drover
