// The arithmetic that the searched quantisers share: float in four lanes, summed in a fixed order,
// so that every machine finds the same blocks. Internal to quantize_affine.cpp and
// quantize_signed.cpp. Pure functions.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "tensor/float16.h"

namespace drover::searched {

using Float4 [[gnu::vector_size(16)]] = float;

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Half of the smallest f16: no scale can stand for less.
inline constexpr float kSmallestValue = 0x1p-25f;

inline float sum(Float4 v) { return (v[0] + v[2]) + (v[1] + v[3]); }
inline Float4 min(Float4 a, Float4 b) { return a < b ? a : b; }
inline Float4 max(Float4 a, Float4 b) { return a > b ? a : b; }

// To the nearest integer, ties to even, for |v| < 2^22: at 1.5 * 2^23 a float's last bit is 1.
inline Float4 round(Float4 v) {
  constexpr float kMagic = 0x1.8p23f;
  return (v + kMagic) - kMagic;
}

// The integer nearest to x, from low to high.
inline int nearest(float x, int low, int high) {
  return static_cast<int>(
      std::lrint(std::clamp(x, static_cast<float>(low), static_cast<float>(high))));
}

inline float inverse(float d) {
  const float inv = 1.0f / d;
  return std::isfinite(inv) ? inv : 0.0f;
}

// The smallest f16 that is not below x >= 0 (the largest f16 beyond its range). A shared float that
// came out smaller would leave the largest sub-block short of codes, by much where f16 is
// subnormal.
inline f16 f16_above(float x) {
  f16 out = to_f16(std::min(x, 65504.0f));
  if (to_float(out) < x && to_float(out) < 65504.0f) ++out.bits;
  return out;
}

// The values of a sub-block and what an error at each of them costs.
template <int kCount>
struct SubBlock {
  static constexpr int kVectors = kCount / 4;
  Float4 x[kVectors];
  Float4 w[kVectors];

  SubBlock(const float* values, const float* weights) {
    std::memcpy(x, values, sizeof(x));
    std::memcpy(w, weights, sizeof(w));
  }
};

// The sub-blocks of a block of 256 values.
template <int kCount>
using SubBlocks = std::array<SubBlock<kCount>, 256 / kCount>;

template <int kCount>
SubBlocks<kCount> split(const float* x, const float* weights) {
  return [&]<size_t... kIndex>(std::index_sequence<kIndex...>) {
    return SubBlocks<kCount>{SubBlock<kCount>(x + kCount * kIndex, weights + kCount * kIndex)...};
  }
  (std::make_index_sequence<256 / kCount>{});
}

}  // namespace drover::searched
