// The searched quantisers, one block each. Internal to quantize.cpp; the contract is in quantize.h.
// x, importance: the values of a block, finite and at most kLargestValue in
// magnitude.
//
// How they search. Most of these formats store a sub-block's scale (and minimum) as a small integer
// times a 16-bit float that the whole block shares, so three roundings meet: the codes, the
// integers, the shared floats. We go from the inside out and back:
//   1. each sub-block alone: try rounding grids of slightly different width, fit scale and minimum
//      to the codes that each gives by least squares, keep the best;
//   2. share: the largest scale sets the shared float;
//   3. a few rounds of: choose each sub-block's integers among their neighbours, by the error after
//      rounding its codes anew; fit the shared floats to all codes by least squares. The best
//      round's result is kept.
#pragma once

#include <limits>

#include "tensor/blocks.h"

namespace drover {

// The largest minimum that Q4_K and Q5_K can hold: an f16 times a 6-bit number. Formats without a
// minimum hold more; Q2_K, with 4 bits for it, less.
template <typename Block>
inline constexpr float kLargestValue = 65504.0f * 63;
template <>
inline constexpr float kLargestValue<BlockQ2_K> = 65504.0f * 15;
template <>
inline constexpr float kLargestValue<BlockMXFP4> = std::numeric_limits<float>::max();

// quantize_affine.cpp: scale and minimum
void quantize_block(const float* x, const float* importance, BlockQ2_K& out);
void quantize_block(const float* x, const float* importance, BlockQ4_K& out);
void quantize_block(const float* x, const float* importance, BlockQ5_K& out);

// quantize_signed.cpp: one signed scale
void quantize_block(const float* x, const float* importance, BlockQ3_K& out);
void quantize_block(const float* x, const float* importance, BlockQ6_K& out);
void quantize_block(const float* x, const float* importance, BlockIQ4_NL& out);
void quantize_block(const float* x, const float* importance, BlockIQ4_XS& out);
void quantize_block(const float* x, const float* importance, BlockMXFP4& out);

}  // namespace drover
