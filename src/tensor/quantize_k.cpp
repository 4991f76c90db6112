// How the K-quants are searched. The formats store a sub-block's scale (and minimum) as a small
// integer times a 16-bit float that the whole block shares, so three roundings meet: the codes, the
// integers, the shared floats. We go from the inside out and back:
//   1. each sub-block alone: try rounding grids of slightly different width, fit scale and minimum
//      to the codes that each gives by least squares, keep the best;
//   2. share: the largest scale sets the shared float;
//   3. a few rounds of: choose each sub-block's integers among their neighbours, by the error after
//      rounding its codes anew; fit the shared floats to all codes by least squares. The best
//      round's result is kept.
// All arithmetic is float in four lanes, summed in a fixed order, so every machine finds the same.
#include "tensor/quantize_k.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

namespace drover {
namespace {

using Float4 [[gnu::vector_size(16)]] = float;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Half of the smallest f16: no scale can stand for less.
constexpr float kSmallestValue = 0x1p-25f;

constexpr int kRounds = 3;

float sum(Float4 v) { return (v[0] + v[2]) + (v[1] + v[3]); }
Float4 min(Float4 a, Float4 b) { return a < b ? a : b; }
Float4 max(Float4 a, Float4 b) { return a > b ? a : b; }

// To the nearest integer, ties to even, for |v| < 2^22: at 1.5 * 2^23 a float's last bit is 1.
Float4 round(Float4 v) {
  constexpr float kMagic = 0x1.8p23f;
  return (v + kMagic) - kMagic;
}

float inverse(float d) {
  const float inv = 1.0f / d;
  return std::isfinite(inv) ? inv : 0.0f;
}

// The smallest f16 that is not below x >= 0 (the largest f16 beyond its range). A shared float that
// came out smaller would leave the largest sub-block short of codes, by much where f16 is
// subnormal.
f16 f16_above(float x) {
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

template <int kCount, size_t... kIndex>
std::array<SubBlock<kCount>, sizeof...(kIndex)> split(const float* x, const float* weights,
                                                      std::index_sequence<kIndex...>) {
  return {SubBlock<kCount>(x + kCount * kIndex, weights + kCount * kIndex)...};
}

// The 256 / kCount sub-blocks of a block.
template <int kCount>
std::array<SubBlock<kCount>, 256 / kCount> split(const float* x, const float* weights) {
  return split<kCount>(x, weights, std::make_index_sequence<256 / kCount>{});
}

// x is modelled as scale * code - minus, code an integer from `low` to `high`.
struct Grid {
  float low;
  float high;
};

template <int kCount>
Float4 code_of(const SubBlock<kCount>& v, int i, float inverse_scale, float minus, Grid grid) {
  // Clamped before rounding too: the rounding trick needs a small argument.
  const Float4 c = (v.x[i] + minus) * inverse_scale;
  return round(min(max(c, Float4{} + grid.low), Float4{} + grid.high));
}

// The weighted squared error that is left when every value takes its nearest code.
template <int kCount>
float error_of(const SubBlock<kCount>& v, float scale, float minus, Grid grid) {
  const float inv = inverse(scale);
  Float4 error{};
  for (int i = 0; i < SubBlock<kCount>::kVectors; ++i) {
    const Float4 r = code_of(v, i, inv, minus, grid) * scale - minus - v.x[i];
    error += v.w[i] * r * r;
  }
  return sum(error);
}

// ---- Q4_K and Q5_K: scale and minimum ----

struct Affine {
  float scale;
  float minus;  // >= 0; the format cannot lift the lowest code above zero
};

// The least-squares scale and minimum for the codes that this trial grid gives.
Affine fit_codes(const SubBlock<32>& v, float inverse_scale, float minus, Grid grid) {
  Float4 w{}, q{}, qq{}, x{}, xq{};
  for (int i = 0; i < 8; ++i) {
    const Float4 c = code_of(v, i, inverse_scale, minus, grid);
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

Affine fit_sub_block(const SubBlock<32>& v, Grid grid) {
  Float4 lows{}, highs = v.x[0];  // lows from zero, for the minimum is never above it
  for (int i = 0; i < 8; ++i) {
    lows = min(lows, v.x[i]);
    highs = max(highs, v.x[i]);
  }
  const float lo = std::min({lows[0], lows[1], lows[2], lows[3]});
  const float hi = std::max({highs[0], highs[1], highs[2], highs[3]});
  if (hi - lo < kSmallestValue) return {0, -lo};
  Affine best{(hi - lo) / grid.high, -lo};
  float best_error = error_of(v, best.scale, best.minus, grid);
  // Narrower grids than the range of the values waste no codes on one outlier; wider ones move the
  // points. Beyond this span nothing was won on Gaussian, Laplace and Student-t rows.
  for (float width = grid.high - 1.2f; width < grid.high + 3.0f; width += 0.2f) {
    Affine trial = fit_codes(v, width / (hi - lo), -lo, grid);
    trial = fit_codes(v, inverse(trial.scale), trial.minus, grid);
    const float error = error_of(v, trial.scale, trial.minus, grid);
    if (error < best_error) {
      best_error = error;
      best = trial;
    }
  }
  return best;
}

// A block in the making: what is stored, but for the packing.
struct AffineBlock {
  f16 d;
  f16 dmin;
  std::array<int, 8> scale;
  std::array<int, 8> min;
  float error = kInfinity;
};

int nearest(float x, int low, int high) {
  return static_cast<int>(
      std::lrint(std::clamp(x, static_cast<float>(low), static_cast<float>(high))));
}

// Gives every sub-block the integers that serve it best under the shared floats.
void choose_integers(const std::array<SubBlock<32>, 8>& v, const std::array<Affine, 8>& ideal,
                     Grid grid, AffineBlock& block) {
  const float d = to_float(block.d), dmin = to_float(block.dmin);
  block.error = 0;
  for (size_t s = 0; s < 8; ++s) {
    const int scale = nearest(ideal[s].scale * inverse(d), 0, 63);
    const int minus = nearest(ideal[s].minus * inverse(dmin), 0, 63);
    float best = kInfinity;
    for (int a = std::max(scale - 1, 0); a <= std::min(scale + 1, 63); ++a) {
      for (int b = std::max(minus - 1, 0); b <= std::min(minus + 1, 63); ++b) {
        const float error =
            error_of(v[s], d * static_cast<float>(a), dmin * static_cast<float>(b), grid);
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
void fit_shared(const std::array<SubBlock<32>, 8>& v, Grid grid, AffineBlock& block) {
  const float d = to_float(block.d), dmin = to_float(block.dmin);
  float aa = 0, ab = 0, bb = 0, xa = 0, xb = 0;
  for (size_t s = 0; s < 8; ++s) {
    const auto scale = static_cast<float>(block.scale[s]);
    const auto minus = static_cast<float>(block.min[s]);
    const float inv = inverse(d * scale);
    Float4 saa{}, sa{}, sw{}, sxa{}, sx{};
    for (int i = 0; i < 8; ++i) {
      const Float4 a = code_of(v[s], i, inv, dmin * minus, grid) * scale;
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

template <typename Block>
void quantize_affine(const float* x, const float* importance, Grid grid, Block& out,
                     std::array<uint8_t, 256>& code) {
  const auto v = split<32>(x, importance);
  std::array<Affine, 8> ideal;
  float largest_scale = 0, largest_minus = 0;
  for (size_t s = 0; s < 8; ++s) {
    ideal[s] = fit_sub_block(v[s], grid);
    largest_scale = std::max(largest_scale, ideal[s].scale);
    largest_minus = std::max(largest_minus, ideal[s].minus);
  }
  AffineBlock block{};
  block.d = f16_above(largest_scale / 63);
  block.dmin = f16_above(largest_minus / 63);
  AffineBlock best{};
  for (int round = 0; round < kRounds; ++round) {
    choose_integers(v, ideal, grid, block);
    if (block.error >= best.error) break;
    best = block;
    fit_shared(v, grid, block);
  }

  out = Block{};
  out.d = best.d;
  out.dmin = best.dmin;
  for (size_t s = 0; s < 8; ++s) {
    const auto scale = static_cast<uint8_t>(best.scale[s]);
    const auto minus = static_cast<uint8_t>(best.min[s]);
    if (s < 4) {
      out.scales[s] = scale;
      out.scales[s + 4] = minus;
    } else {
      out.scales[s + 4] = static_cast<uint8_t>((scale & 15) | (minus & 15) << 4);
      out.scales[s - 4] = static_cast<uint8_t>(out.scales[s - 4] | scale >> 4 << 6);
      out.scales[s] = static_cast<uint8_t>(out.scales[s] | minus >> 4 << 6);
    }
    const float inv = inverse(to_float(best.d) * static_cast<float>(scale));
    const float lift = to_float(best.dmin) * static_cast<float>(minus);
    for (int i = 0; i < 8; ++i) {
      const Float4 c = code_of(v[s], i, inv, lift, grid);
      for (int l = 0; l < 4; ++l) {
        code[32 * s + static_cast<size_t>(4 * i + l)] = static_cast<uint8_t>(c[l]);
      }
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

// ---- Q6_K: a signed scale, no minimum ----

constexpr Grid kGrid6{-32, 31};

// The least-squares scale for the codes that this trial scale gives.
float fit_codes(const SubBlock<16>& v, float inverse_scale) {
  Float4 qq{}, xq{};
  for (int i = 0; i < 4; ++i) {
    const Float4 c = code_of(v, i, inverse_scale, 0, kGrid6);
    qq += v.w[i] * c * c;
    xq += v.w[i] * c * v.x[i];
  }
  return sum(qq) > 0 ? sum(xq) / sum(qq) : 0.0f;
}

float fit_sub_block(const SubBlock<16>& v) {
  // The extreme value gets code -32 or near it: there is one more code on that side.
  float extreme = 0;
  for (const Float4& values : v.x) {
    for (int l = 0; l < 4; ++l) {
      if (std::fabs(values[l]) > std::fabs(extreme)) extreme = values[l];
    }
  }
  if (std::fabs(extreme) < kSmallestValue) return 0;
  float best = 0, best_error = kInfinity;
  for (float width = 29.5f; width < 34.0f; width += 0.5f) {
    for (float sign : {-1.0f, 1.0f}) {
      float trial = fit_codes(v, sign * width / extreme);
      trial = fit_codes(v, inverse(trial));
      const float error = error_of(v, trial, 0, kGrid6);
      if (error < best_error) {
        best_error = error;
        best = trial;
      }
    }
  }
  return best;
}

struct SignedBlock {
  f16 d;
  std::array<int, 16> scale;
  float error = kInfinity;
};

void choose_integers(const std::array<SubBlock<16>, 16>& v, const std::array<float, 16>& ideal,
                     SignedBlock& block) {
  const float d = to_float(block.d);
  block.error = 0;
  for (size_t s = 0; s < 16; ++s) {
    const int scale = nearest(ideal[s] * inverse(d), -128, 127);
    float best = kInfinity;
    for (int a = std::max(scale - 1, -128); a <= std::min(scale + 1, 127); ++a) {
      const float error = error_of(v[s], d * static_cast<float>(a), 0, kGrid6);
      if (error < best) {
        best = error;
        block.scale[s] = a;
      }
    }
    block.error += best;
  }
}

void fit_shared(const std::array<SubBlock<16>, 16>& v, SignedBlock& block) {
  const float d = to_float(block.d);
  float aa = 0, xa = 0;
  for (size_t s = 0; s < 16; ++s) {
    const auto scale = static_cast<float>(block.scale[s]);
    Float4 saa{}, sxa{};
    for (int i = 0; i < 4; ++i) {
      const Float4 a = code_of(v[s], i, inverse(d * scale), 0, kGrid6) * scale;
      saa += v[s].w[i] * a * a;
      sxa += v[s].w[i] * a * v[s].x[i];
    }
    aa += sum(saa);
    xa += sum(sxa);
  }
  if (aa > 0) block.d = to_f16(std::clamp(xa / aa, -65504.0f, 65504.0f));
}

}  // namespace

void quantize_block(const float* x, const float* importance, BlockQ4_K& out) {
  std::array<uint8_t, 256> code;
  quantize_affine(x, importance, {0, 15}, out, code);
}

void quantize_block(const float* x, const float* importance, BlockQ5_K& out) {
  std::array<uint8_t, 256> code;
  quantize_affine(x, importance, {0, 31}, out, code);
  for (size_t j = 0; j < 256; ++j) {
    out.high[j % 32] = static_cast<uint8_t>(out.high[j % 32] | (code[j] >> 4) << (j / 32));
  }
}

void quantize_block(const float* x, const float* importance, BlockQ6_K& out) {
  const auto v = split<16>(x, importance);
  std::array<float, 16> ideal;
  float largest = 0;
  for (size_t s = 0; s < 16; ++s) {
    ideal[s] = fit_sub_block(v[s]);
    if (std::fabs(ideal[s]) > std::fabs(largest)) largest = ideal[s];
  }
  SignedBlock block{};
  block.d = f16_above(std::fabs(largest) / 128);
  if (largest > 0) block.d.bits |= 0x8000;  // the signed byte reaches one further down
  SignedBlock best{};
  for (int round = 0; round < kRounds; ++round) {
    choose_integers(v, ideal, block);
    if (block.error >= best.error) break;
    best = block;
    fit_shared(v, block);
  }

  out = BlockQ6_K{};
  out.d = best.d;
  for (size_t s = 0; s < 16; ++s) {
    out.scales[s] = static_cast<int8_t>(best.scale[s]);
    const float inv = inverse(to_float(best.d) * static_cast<float>(best.scale[s]));
    for (int i = 0; i < 4; ++i) {
      const Float4 c = code_of(v[s], i, inv, 0, kGrid6);
      for (int l = 0; l < 4; ++l) {
        // Value j of the block: quarter q of its half, place p within the quarter.
        const int j = static_cast<int>(16 * s) + 4 * i + l;
        const int half = j / 128, q = j % 128 / 32, p = j % 32;
        const int code = static_cast<int>(c[l]) + 32;
        uint8_t& low = out.low[64 * half + 32 * (q % 2) + p];
        uint8_t& high = out.high[32 * half + p];
        low = static_cast<uint8_t>(low | (code & 15) << (4 * (q / 2)));
        high = static_cast<uint8_t>(high | (code >> 4) << (2 * q));
      }
    }
  }
}

}  // namespace drover
