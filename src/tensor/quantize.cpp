#include "tensor/quantize.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "base/error.h"
#include "tensor/blocks.h"
#include "tensor/float16.h"
#include "tensor/quantize_searched.h"

namespace drover {
namespace {

constexpr f16 kNanScale{0x7e00};

bool all_finite(const float* x, int n) {
  return std::all_of(x, x + n, [](float v) { return std::isfinite(v); });
}

// 1 / d, and 0 where that is no number: then d is too small for an f16 anyway.
float inverse(float d) {
  const float inv = 1.0f / d;
  return std::isfinite(inv) ? inv : 0.0f;
}

// The value of largest magnitude with its sign, the first of equals.
float extreme(const float* x) {
  return *std::max_element(x, x + 32, [](float a, float b) { return std::fabs(a) < std::fabs(b); });
}

void pack_nibbles(const uint8_t code[32], uint8_t out[16]) {
  for (int j = 0; j < 16; ++j) {
    out[j] = static_cast<uint8_t>((code[j] & 15) | (code[j + 16] & 15) << 4);
  }
}

void pack_fifth_bits(const uint8_t code[32], uint8_t out[4]) {
  std::fill(out, out + 4, uint8_t{0});
  for (int j = 0; j < 32; ++j) {
    out[j / 8] = static_cast<uint8_t>(out[j / 8] | (code[j] >> 4) << (j % 8));
  }
}

// Codes 0 ... 2 * half - 1 for x = d * (code - half); the extreme value gets code 0.
f16 symmetric_codes(const float* x, int half, uint8_t code[32]) {
  const float d = extreme(x) / static_cast<float>(-half);
  const float inv = inverse(d);
  for (int j = 0; j < 32; ++j) {
    const float c = x[j] * inv + (static_cast<float>(half) + 0.5f);
    code[j] = static_cast<uint8_t>(std::min(2 * half - 1, static_cast<int>(c)));
  }
  return to_f16(d);
}

// Codes 0 ... top for x = d * code + m, m the smallest value.
f16 affine_codes(const float* x, int top, uint8_t code[32], f16& m) {
  const auto [lo, hi] = std::minmax_element(x, x + 32);
  const float d = (*hi - *lo) / static_cast<float>(top);
  const float inv = inverse(d);
  for (int j = 0; j < 32; ++j) {
    const float c = (x[j] - *lo) * inv + 0.5f;
    code[j] = static_cast<uint8_t>(std::min(top, static_cast<int>(c)));
  }
  m = to_f16(*lo);
  return to_f16(d);
}

void quantize_block(const float* x, BlockQ8_0& out) {
  const float d = std::fabs(extreme(x)) / 127;
  const float inv = inverse(d);
  for (int j = 0; j < 32; ++j) out.q[j] = static_cast<int8_t>(std::round(x[j] * inv));
  out.d = to_f16(d);
}

void quantize_block(const float* x, BlockQ4_0& out) {
  uint8_t code[32];
  out.d = symmetric_codes(x, /*half=*/8, code);
  pack_nibbles(code, out.q);
}

void quantize_block(const float* x, BlockQ5_0& out) {
  uint8_t code[32];
  out.d = symmetric_codes(x, /*half=*/16, code);
  pack_nibbles(code, out.q);
  pack_fifth_bits(code, out.high);
}

void quantize_block(const float* x, BlockQ4_1& out) {
  uint8_t code[32];
  f16 m;
  out.d = affine_codes(x, /*top=*/15, code, m);
  out.m = m;
  pack_nibbles(code, out.q);
}

void quantize_block(const float* x, BlockQ5_1& out) {
  uint8_t code[32];
  f16 m;
  out.d = affine_codes(x, /*top=*/31, code, m);
  out.m = m;
  pack_nibbles(code, out.q);
  pack_fifth_bits(code, out.high);
}

// A block that shows that a value was lost.
template <typename Block>
Block damaged_block() {
  Block out{};
  if constexpr (std::is_same_v<Block, BlockMXFP4>) {
    // The scale that OCP calls NaN, and for readers to whom it is 2^128, the codes of 6.
    out.exponent = 255;
    std::fill(std::begin(out.q), std::end(out.q), uint8_t{0x77});
  } else {
    out.d = kNanScale;
  }
  return out;
}

template <typename Block>
void quantize_legacy(std::span<const float> x, std::byte* out) {
  for (size_t i = 0; i < x.size() / 32; ++i) {
    const float* values = x.data() + 32 * i;
    // A range that overflows float is as lost as an infinity.
    Block block = damaged_block<Block>();
    const auto [lo, hi] = std::minmax_element(values, values + 32);
    if (all_finite(values, 32) && std::isfinite(*hi - *lo)) quantize_block(values, block);
    std::memcpy(out + i * sizeof(Block), &block, sizeof(Block));
  }
}

// The importance of a block's values in the form that the searches like: 1 on average, so that no
// sum leaves float's range, and nowhere nothing: a column that no activation has met yet keeps its
// weights. Where `given` says nothing of use, all are alike.
template <size_t kValues>
std::array<float, kValues> search_weights(const float* given) {
  std::array<float, kValues> out;
  double sum = 0;
  for (size_t j = 0; j < kValues && given; ++j) sum += double{given[j]};
  const double factor = kValues / sum;
  if (!std::isfinite(sum) || !std::isfinite(factor) || sum <= 0) {
    out.fill(1.0f);
    return out;
  }
  for (size_t j = 0; j < kValues; ++j) {
    out[j] = static_cast<float>(double{given[j]} * factor) + 0x1p-10f;
  }
  return out;
}

template <typename Block>
void quantize_searched(std::span<const float> x, std::byte* out,
                       std::span<const float> importance) {
  constexpr size_t kValues =
      std::is_same_v<Block, BlockIQ4_NL> || std::is_same_v<Block, BlockMXFP4> ? 32 : 256;
  for (size_t i = 0; i < x.size() / kValues; ++i) {
    const float* values = x.data() + kValues * i;
    Block block = damaged_block<Block>();
    // NaN fails the comparison too.
    const bool fits = std::all_of(values, values + kValues,
                                  [](float v) { return std::fabs(v) <= kLargestValue<Block>; });
    if (fits) {
      const auto weights =
          search_weights<kValues>(importance.empty() ? nullptr : importance.data() + kValues * i);
      quantize_block(values, weights.data(), block);
    }
    std::memcpy(out + i * sizeof(Block), &block, sizeof(Block));
  }
}

template <typename Half, Half (*kRound)(float)>
void round_row(std::span<const float> x, std::byte* out) {
  for (size_t i = 0; i < x.size(); ++i) {
    const Half half = kRound(x[i]);
    std::memcpy(out + i * sizeof(Half), &half, sizeof(Half));
  }
}

}  // namespace

void quantize_row(DType type, std::span<const float> x, std::byte* out,
                  std::span<const float> importance) {
  const DTypeInfo& info = dtype_info(type);
  DROVER_CHECK(static_cast<int64_t>(x.size()) % info.block_values == 0);
  DROVER_CHECK(importance.empty() || importance.size() == x.size());
  switch (type) {
    case DType::kF32:
      if (!x.empty()) std::memcpy(out, x.data(), x.size_bytes());
      return;
    case DType::kF16:
      return round_row<f16, to_f16>(x, out);
    case DType::kBF16:
      return round_row<bf16, to_bf16>(x, out);
    case DType::kQ8_0:
      return quantize_legacy<BlockQ8_0>(x, out);
    case DType::kQ4_0:
      return quantize_legacy<BlockQ4_0>(x, out);
    case DType::kQ4_1:
      return quantize_legacy<BlockQ4_1>(x, out);
    case DType::kQ5_0:
      return quantize_legacy<BlockQ5_0>(x, out);
    case DType::kQ5_1:
      return quantize_legacy<BlockQ5_1>(x, out);
    case DType::kQ4_K:
      return quantize_searched<BlockQ4_K>(x, out, importance);
    case DType::kQ5_K:
      return quantize_searched<BlockQ5_K>(x, out, importance);
    case DType::kQ6_K:
      return quantize_searched<BlockQ6_K>(x, out, importance);
    case DType::kQ2_K:
      return quantize_searched<BlockQ2_K>(x, out, importance);
    case DType::kQ3_K:
      return quantize_searched<BlockQ3_K>(x, out, importance);
    case DType::kIQ4_NL:
      return quantize_searched<BlockIQ4_NL>(x, out, importance);
    case DType::kIQ4_XS:
      return quantize_searched<BlockIQ4_XS>(x, out, importance);
    case DType::kMXFP4:
      return quantize_searched<BlockMXFP4>(x, out, importance);
    default:
      throw_error(ErrorKind::kUnsupported, "writing weights: expected a weight type, got {}",
                  info.name);
  }
}

}  // namespace drover
