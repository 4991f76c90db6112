// Q2_K, Q4_K and Q5_K: x is modelled as scale * code - minus, both scale and minus small integers
// times shared floats.
#include <algorithm>
#include <array>
#include <cmath>

#include "tensor/quantize_lanes.h"
#include "tensor/quantize_searched.h"

namespace drover {
namespace {

using namespace searched;

// What tells the formats apart. The trial grids of a sub-block are kNarrow less to kWide more codes
// wide than the range of its values, in steps of kStep: narrower ones waste no codes on one
// outlier, wider ones move the points. Beyond these spans and below these steps next to nothing was
// won on Gaussian, Laplace and Student-t rows.
template <int kCountOf, int kTopCodeOf, int kTopIntegerOf>
struct Format {
  static constexpr int kCount = kCountOf;  // values of a sub-block
  static constexpr size_t kParts = 256 / kCountOf;
  static constexpr float kTopCode = kTopCodeOf;      // codes from 0
  static constexpr int kTopInteger = kTopIntegerOf;  // integers of scale and minus, from 0
  static constexpr float kNarrow = 1.2f;
  static constexpr float kWide = 3.0f;
  static constexpr float kStep = 0.2f;
};
using FormatQ2_K = Format</*kCount=*/16, /*kTopCode=*/3, /*kTopInteger=*/15>;
using FormatQ4_K = Format</*kCount=*/32, /*kTopCode=*/15, /*kTopInteger=*/63>;
using FormatQ5_K = Format</*kCount=*/32, /*kTopCode=*/31, /*kTopInteger=*/63>;

// A block is chosen in so many rounds at most.
constexpr int kRounds = 3;

template <class F>
using Part = SubBlock<F::kCount>;
template <class F>
using Parts = SubBlocks<F::kCount>;

template <class F>
Float4 code_of(const Part<F>& v, int i, float inverse_scale, float minus) {
  // Clamped before rounding too: the rounding trick needs a small argument.
  const Float4 c = (v.x[i] + minus) * inverse_scale;
  return round(min(max(c, Float4{}), Float4{} + F::kTopCode));
}

// The weighted squared error that is left when every value takes its nearest code.
template <class F>
float error_of(const Part<F>& v, float scale, float minus) {
  const float inv = inverse(scale);
  Float4 error{};
  for (int i = 0; i < v.kVectors; ++i) {
    const Float4 r = code_of<F>(v, i, inv, minus) * scale - minus - v.x[i];
    error += v.w[i] * r * r;
  }
  return sum(error);
}

struct Affine {
  float scale;
  float minus;  // >= 0; the format cannot lift the lowest code above zero
};

// The least-squares scale and minimum for the codes that this trial grid gives.
template <class F>
Affine fit_codes(const Part<F>& v, float inverse_scale, float minus) {
  Float4 w{}, q{}, qq{}, x{}, xq{};
  for (int i = 0; i < v.kVectors; ++i) {
    const Float4 c = code_of<F>(v, i, inverse_scale, minus);
    const Float4 wc = v.w[i] * c;
    w += v.w[i];
    q += wc;
    qq += wc * c;
    x += v.w[i] * v.x[i];
    xq += wc * v.x[i];
  }
  const float sw = sum(w), sq = sum(q), sqq = sum(qq), sx = sum(x), sxq = sum(xq);
  const float determinant = sw * sqq - sq * sq;
  if (determinant > 0) {
    const float scale = (sw * sxq - sx * sq) / determinant;
    const float low = (sqq * sx - sq * sxq) / determinant;
    if (low <= 0) return {std::max(scale, 0.0f), -low};
  }
  return {sqq > 0 ? std::max(sxq / sqq, 0.0f) : 0.0f, 0.0f};
}

template <class F>
Affine fit_sub_block(const Part<F>& v) {
  Float4 lows{}, highs = v.x[0];  // lows from zero, for the minimum is never above it
  for (const Float4& x : v.x) {
    lows = min(lows, x);
    highs = max(highs, x);
  }
  const float lo = std::min({lows[0], lows[1], lows[2], lows[3]});
  const float hi = std::max({highs[0], highs[1], highs[2], highs[3]});
  if (hi - lo < kSmallestValue) return {0, -lo};
  Affine best{(hi - lo) / F::kTopCode, -lo};
  float best_error = error_of<F>(v, best.scale, best.minus);
  for (float width = F::kTopCode - F::kNarrow; width < F::kTopCode + F::kWide; width += F::kStep) {
    Affine trial = fit_codes<F>(v, width / (hi - lo), -lo);
    trial = fit_codes<F>(v, inverse(trial.scale), trial.minus);
    const float error = error_of<F>(v, trial.scale, trial.minus);
    if (error < best_error) {
      best_error = error;
      best = trial;
    }
  }
  return best;
}

// A block in the making: what is stored, but for the packing.
template <class F>
struct AffineBlock {
  f16 d;
  f16 dmin;
  std::array<int, F::kParts> scale;
  std::array<int, F::kParts> min;
  float error = kInfinity;
};

// Gives every sub-block the integers that serve it best under the shared floats.
template <class F>
void choose_integers(const Parts<F>& v, const std::array<Affine, F::kParts>& ideal,
                     AffineBlock<F>& block) {
  const float d = to_float(block.d), dmin = to_float(block.dmin);
  constexpr int kTop = F::kTopInteger;
  block.error = 0;
  for (size_t s = 0; s < v.size(); ++s) {
    const int scale = nearest(ideal[s].scale * inverse(d), 0, kTop);
    const int minus = nearest(ideal[s].minus * inverse(dmin), 0, kTop);
    float best = kInfinity;
    for (int a = std::max(scale - 1, 0); a <= std::min(scale + 1, kTop); ++a) {
      for (int b = std::max(minus - 1, 0); b <= std::min(minus + 1, kTop); ++b) {
        const float error =
            error_of<F>(v[s], d * static_cast<float>(a), dmin * static_cast<float>(b));
        if (error < best) {
          best = error;
          block.scale[s] = a;
          block.min[s] = b;
        }
      }
    }
    block.error += best;
  }
}

// The shared floats that fit all codes best, the integers given:
//   x = d * (scale * code) - dmin * min, two unknowns.
template <class F>
void fit_shared(const Parts<F>& v, AffineBlock<F>& block) {
  const float d = to_float(block.d), dmin = to_float(block.dmin);
  float aa = 0, ab = 0, bb = 0, xa = 0, xb = 0;
  for (size_t s = 0; s < v.size(); ++s) {
    const auto scale = static_cast<float>(block.scale[s]);
    const auto minus = static_cast<float>(block.min[s]);
    const float inv = inverse(d * scale);
    Float4 saa{}, sa{}, sw{}, sxa{}, sx{};
    for (int i = 0; i < v[s].kVectors; ++i) {
      const Float4 a = code_of<F>(v[s], i, inv, dmin * minus) * scale;
      const Float4 wa = v[s].w[i] * a;
      saa += wa * a;
      sa += wa;
      sw += v[s].w[i];
      sxa += wa * v[s].x[i];
      sx += v[s].w[i] * v[s].x[i];
    }
    aa += sum(saa);
    ab += sum(sa) * minus;
    bb += sum(sw) * minus * minus;
    xa += sum(sxa);
    xb += sum(sx) * minus;
  }
  const float determinant = aa * bb - ab * ab;
  if (determinant > 0) {
    const float new_d = (bb * xa - ab * xb) / determinant;
    const float new_dmin = (ab * xa - aa * xb) / determinant;
    if (new_d >= 0 && new_dmin >= 0) {
      block.d = to_f16(std::min(new_d, 65504.0f));
      block.dmin = to_f16(std::min(new_dmin, 65504.0f));
    }
  } else if (aa > 0 && xa >= 0) {
    block.d = to_f16(std::min(xa / aa, 65504.0f));
  }
}

template <class F>
AffineBlock<F> search(const Parts<F>& v) {
  std::array<Affine, F::kParts> ideal;
  float largest_scale = 0, largest_minus = 0;
  for (size_t s = 0; s < v.size(); ++s) {
    ideal[s] = fit_sub_block<F>(v[s]);
    largest_scale = std::max(largest_scale, ideal[s].scale);
    largest_minus = std::max(largest_minus, ideal[s].minus);
  }
  AffineBlock<F> block{};
  block.d = f16_above(largest_scale / F::kTopInteger);
  block.dmin = f16_above(largest_minus / F::kTopInteger);
  AffineBlock<F> best{};
  for (int round = 0; round < kRounds; ++round) {
    choose_integers<F>(v, ideal, block);
    if (block.error >= best.error) break;
    best = block;
    fit_shared<F>(v, block);
  }
  return best;
}

// The codes of all values in a block that has been chosen.
template <class F>
std::array<uint8_t, 256> codes_of(const Parts<F>& v, const AffineBlock<F>& block) {
  std::array<uint8_t, 256> out;
  for (size_t s = 0; s < v.size(); ++s) {
    const float inv = inverse(to_float(block.d) * static_cast<float>(block.scale[s]));
    const float minus = to_float(block.dmin) * static_cast<float>(block.min[s]);
    for (int i = 0; i < v[s].kVectors; ++i) {
      const Float4 c = code_of<F>(v[s], i, inv, minus);
      for (int l = 0; l < 4; ++l) {
        out[F::kCount * s + static_cast<size_t>(4 * i + l)] = static_cast<uint8_t>(c[l]);
      }
    }
  }
  return out;
}

// What Q4_K and Q5_K have in common: scales, minima and the lower four bits of the codes.
template <class F, class Block>
void pack(const AffineBlock<F>& block, const std::array<uint8_t, 256>& code, Block& out) {
  out = Block{};
  out.d = block.d;
  out.dmin = block.dmin;
  for (size_t s = 0; s < F::kParts; ++s) {
    const auto scale = static_cast<uint8_t>(block.scale[s]);
    const auto minus = static_cast<uint8_t>(block.min[s]);
    if (s < 4) {
      out.scales[s] = scale;
      out.scales[s + 4] = minus;
    } else {
      out.scales[s + 4] = static_cast<uint8_t>((scale & 15) | (minus & 15) << 4);
      out.scales[s - 4] = static_cast<uint8_t>(out.scales[s - 4] | scale >> 4 << 6);
      out.scales[s] = static_cast<uint8_t>(out.scales[s] | minus >> 4 << 6);
    }
  }
  for (int g = 0; g < 4; ++g) {
    for (int l = 0; l < 32; ++l) {
      const int low = code[static_cast<size_t>(64 * g + l)];
      const int high = code[static_cast<size_t>(64 * g + 32 + l)];
      out.q[32 * g + l] = static_cast<uint8_t>((low & 15) | (high & 15) << 4);
    }
  }
}

}  // namespace

void quantize_block(const float* x, const float* importance, BlockQ2_K& out) {
  const auto v = split<FormatQ2_K::kCount>(x, importance);
  const auto block = search<FormatQ2_K>(v);
  const auto code = codes_of<FormatQ2_K>(v, block);
  out = BlockQ2_K{};
  out.d = block.d;
  out.dmin = block.dmin;
  for (size_t s = 0; s < FormatQ2_K::kParts; ++s) {
    out.scales[s] = static_cast<uint8_t>(block.scale[s] | block.min[s] << 4);
  }
  for (size_t j = 0; j < 256; ++j) {
    uint8_t& q = out.q[32 * (j / 128) + j % 32];
    q = static_cast<uint8_t>(q | code[j] << (2 * (j % 128 / 32)));
  }
}

void quantize_block(const float* x, const float* importance, BlockQ4_K& out) {
  const auto v = split<FormatQ4_K::kCount>(x, importance);
  const auto block = search<FormatQ4_K>(v);
  pack(block, codes_of<FormatQ4_K>(v, block), out);
}

void quantize_block(const float* x, const float* importance, BlockQ5_K& out) {
  const auto v = split<FormatQ5_K::kCount>(x, importance);
  const auto block = search<FormatQ5_K>(v);
  const auto code = codes_of<FormatQ5_K>(v, block);
  pack(block, code, out);
  for (size_t j = 0; j < 256; ++j) {
    out.high[j % 32] = static_cast<uint8_t>(out.high[j % 32] | (code[j] >> 4) << (j / 32));
  }
}

}  // namespace drover
