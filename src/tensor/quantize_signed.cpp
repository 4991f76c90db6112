// Q3_K, Q6_K, IQ4_NL, IQ4_XS and MXFP4: x is modelled as scale * point, the points of a format
// being whole numbers, evenly spaced or not.
#include <algorithm>
#include <array>
#include <cmath>

#include "tensor/quantize_lanes.h"
#include "tensor/quantize_searched.h"

namespace drover {
namespace {

using namespace searched;

// All whole numbers from kLowOf to kHighOf; the code is the distance from the lowest.
template <int kLowOf, int kHighOf>
struct EvenPoints {
  static constexpr float kLow = kLowOf, kHigh = kHighOf;

  // The nearest point to c.
  static Float4 nearest(Float4 c) { return round(min(max(c, Float4{} + kLow), Float4{} + kHigh)); }
  static uint8_t code_of(float c) { return static_cast<uint8_t>(nearest(Float4{c})[0] - kLow); }
};

// The 16 points of a table, whose codes are their places. What is halfway between two whole numbers
// is a whole number of halves, so each half open interval of that width has one nearest point.
template <const int8_t (&kValues)[16]>
struct TablePoints {
  static constexpr int kLowest = *std::min_element(kValues, kValues + 16);
  static constexpr int kHighest = *std::max_element(kValues, kValues + 16);
  static constexpr float kLow = kLowest, kHigh = kHighest;

  struct Cells {
    std::array<uint8_t, 2 * (kHighest - kLowest) + 1> code;
    std::array<float, 2 * (kHighest - kLowest) + 1> point;
  };
  static constexpr Cells kCells = [] {
    Cells out{};
    for (size_t i = 0; i < out.code.size(); ++i) {
      // Four times the middle of cell [kLowest + i / 2, kLowest + (i + 1) / 2).
      const int middle = 4 * kLowest + 2 * static_cast<int>(i) + 1;
      uint8_t best = 0;
      const auto distance = [&](int code) {
        const int d = 4 * kValues[code] - middle;
        return d < 0 ? -d : d;
      };
      for (uint8_t code = 1; code < 16; ++code) {
        if (distance(code) < distance(best)) best = code;
      }
      out.code[i] = best;
      out.point[i] = kValues[best];
    }
    return out;
  }();

  static Float4 nearest(Float4 c) {
    const Float4 place = (min(max(c, Float4{} + kLow), Float4{} + kHigh) - kLow) * 2;
    Float4 out;
    for (int l = 0; l < 4; ++l) out[l] = kCells.point[static_cast<size_t>(place[l])];
    return out;
  }
  static uint8_t code_of(float c) {
    return kCells.code[static_cast<size_t>((std::clamp(c, kLow, kHigh) - kLow) * 2)];
  }
};

// What tells the formats with shared floats apart: values of a sub-block, points, and the integers
// that scale can be times the shared float. The extreme value of a sub-block is tried on points
// from kNarrow to kWide times the lowest and the highest, in steps of kStep. Beyond these spans and
// below these steps next to nothing was won on Gaussian, Laplace and Student-t rows.
struct FormatQ3_K {
  static constexpr int kCount = 16;
  using Points = EvenPoints<-4, 3>;
  static constexpr int kLowInteger = -32, kHighInteger = 31;
  static constexpr float kNarrow = 0.5f, kWide = 1.3f, kStep = 0.05f;
};
struct FormatQ6_K {
  static constexpr int kCount = 16;
  using Points = EvenPoints<-32, 31>;
  static constexpr int kLowInteger = -128, kHighInteger = 127;
  static constexpr float kNarrow = 29.5f / 32, kWide = 34.0f / 32, kStep = 0.5f / 32;
};
struct FormatIQ4 {
  static constexpr int kCount = 32;
  using Points = TablePoints<kIq4Values>;
  static constexpr int kLowInteger = -32, kHighInteger = 31;
  static constexpr float kNarrow = 0.68f, kWide = 1.2f, kStep = 0.04f;
};

// A block is chosen in so many rounds at most.
constexpr int kRounds = 3;

// The weighted squared error that is left when every value takes its nearest point.
template <class Points, int kCount>
float error_of(const SubBlock<kCount>& v, float scale) {
  const float inv = inverse(scale);
  Float4 error{};
  for (int i = 0; i < v.kVectors; ++i) {
    const Float4 r = Points::nearest(v.x[i] * inv) * scale - v.x[i];
    error += v.w[i] * r * r;
  }
  return sum(error);
}

struct Fit {
  float scale;
  float gain;  // how much less the weighted squared error is than with scale 0
};

// The least-squares scale for the points that this trial scale gives.
template <class Points, int kCount>
Fit fit_points(const SubBlock<kCount>& v, float inverse_scale) {
  Float4 pp{}, xp{};
  for (int i = 0; i < v.kVectors; ++i) {
    const Float4 p = Points::nearest(v.x[i] * inverse_scale);
    pp += v.w[i] * p * p;
    xp += v.w[i] * p * v.x[i];
  }
  if (!(sum(pp) > 0)) return {0, 0};
  const float scale = sum(xp) / sum(pp);
  return {scale, scale * sum(xp)};
}

template <class F>
float fit_sub_block(const SubBlock<F::kCount>& v) {
  using Points = typename F::Points;
  float extreme = 0;
  for (const Float4& values : v.x) {
    for (int l = 0; l < 4; ++l) {
      if (std::fabs(values[l]) > std::fabs(extreme)) extreme = values[l];
    }
  }
  if (std::fabs(extreme) < kSmallestValue) return 0;
  Fit best{0, 0};
  const auto keep_better = [&](Fit trial) {
    const bool better = trial.gain > best.gain;
    if (better) best = trial;
    return better;
  };
  for (float width = F::kNarrow; width < F::kWide; width += F::kStep) {
    for (float end : {Points::kLow, -Points::kLow}) {
      keep_better(fit_points<Points>(v, width * end / extreme));
    }
  }
  // The new scale may give new points, which ask for a newer scale.
  while (keep_better(fit_points<Points>(v, inverse(best.scale)))) {
  }
  return best.scale;
}

// A block in the making: what is stored, but for the packing.
template <class F>
struct SignedBlock {
  f16 d;
  std::array<int, 256 / F::kCount> scale;
  float error = kInfinity;
};

// Gives every sub-block the integer that serves it best under the shared float.
template <class F>
void choose_integers(const SubBlocks<F::kCount>& v, const std::array<float, 256 / F::kCount>& ideal,
                     SignedBlock<F>& block) {
  const float d = to_float(block.d);
  block.error = 0;
  for (size_t s = 0; s < v.size(); ++s) {
    const int scale = nearest(ideal[s] * inverse(d), F::kLowInteger, F::kHighInteger);
    float best = kInfinity;
    for (int a = std::max(scale - 1, F::kLowInteger); a <= std::min(scale + 1, F::kHighInteger);
         ++a) {
      const float error = error_of<typename F::Points>(v[s], d * static_cast<float>(a));
      if (error < best) {
        best = error;
        block.scale[s] = a;
      }
    }
    block.error += best;
  }
}

// The shared float that fits all points best, the integers given.
template <class F>
void fit_shared(const SubBlocks<F::kCount>& v, SignedBlock<F>& block) {
  const float d = to_float(block.d);
  float aa = 0, xa = 0;
  for (size_t s = 0; s < v.size(); ++s) {
    const auto scale = static_cast<float>(block.scale[s]);
    const float inv = inverse(d * scale);
    Float4 saa{}, sxa{};
    for (int i = 0; i < v[s].kVectors; ++i) {
      const Float4 a = F::Points::nearest(v[s].x[i] * inv) * scale;
      saa += v[s].w[i] * a * a;
      sxa += v[s].w[i] * a * v[s].x[i];
    }
    aa += sum(saa);
    xa += sum(sxa);
  }
  if (aa > 0) block.d = to_f16(std::clamp(xa / aa, -65504.0f, 65504.0f));
}

template <class F>
SignedBlock<F> search(const SubBlocks<F::kCount>& v) {
  std::array<float, 256 / F::kCount> ideal;
  float largest = 0;
  for (size_t s = 0; s < v.size(); ++s) {
    ideal[s] = fit_sub_block<F>(v[s]);
    if (std::fabs(ideal[s]) > std::fabs(largest)) largest = ideal[s];
  }
  SignedBlock<F> block{};
  // The integers reach one further down than up: the largest scale gets the lowest of them.
  block.d = f16_above(std::fabs(largest) / -F::kLowInteger);
  if (largest > 0) block.d.bits |= 0x8000;
  SignedBlock<F> best{};
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
std::array<uint8_t, 256> codes_of(const float* x, const SignedBlock<F>& block) {
  std::array<uint8_t, 256> out;
  for (size_t j = 0; j < 256; ++j) {
    const auto scale = static_cast<float>(block.scale[j / F::kCount]);
    out[j] = F::Points::code_of(x[j] * inverse(to_float(block.d) * scale));
  }
  return out;
}

// 32 codes to 16 bytes: code j in the low, code j + 16 in the high half.
void pack_nibbles(const uint8_t code[32], uint8_t out[16]) {
  for (int j = 0; j < 16; ++j) out[j] = static_cast<uint8_t>(code[j] | code[j + 16] << 4);
}

}  // namespace

void quantize_block(const float* x, const float* importance, BlockQ3_K& out) {
  const auto block = search<FormatQ3_K>(split<FormatQ3_K::kCount>(x, importance));
  const auto code = codes_of(x, block);
  out = BlockQ3_K{};
  out.d = block.d;
  for (size_t s = 0; s < 16; ++s) {
    const int scale = block.scale[s] + 32;
    uint8_t& low = out.scales[s % 8];
    uint8_t& high = out.scales[8 + s % 4];
    low = static_cast<uint8_t>(low | (scale & 15) << (4 * (s / 8)));
    high = static_cast<uint8_t>(high | (scale >> 4) << (2 * (s / 4)));
  }
  for (size_t j = 0; j < 256; ++j) {
    uint8_t& low = out.low[32 * (j / 128) + j % 32];
    uint8_t& high = out.high[j % 32];
    low = static_cast<uint8_t>(low | (code[j] & 3) << (2 * (j % 128 / 32)));
    high = static_cast<uint8_t>(high | (code[j] >> 2) << (j / 32));
  }
}

void quantize_block(const float* x, const float* importance, BlockQ6_K& out) {
  const auto block = search<FormatQ6_K>(split<FormatQ6_K::kCount>(x, importance));
  const auto code = codes_of(x, block);
  out = BlockQ6_K{};
  out.d = block.d;
  for (size_t s = 0; s < 16; ++s) out.scales[s] = static_cast<int8_t>(block.scale[s]);
  for (size_t j = 0; j < 256; ++j) {
    // Value j of the block: quarter q of its half, place p within the quarter.
    const size_t half = j / 128, q = j % 128 / 32, p = j % 32;
    uint8_t& low = out.low[64 * half + 32 * (q % 2) + p];
    uint8_t& high = out.high[32 * half + p];
    low = static_cast<uint8_t>(low | (code[j] & 15) << (4 * (q / 2)));
    high = static_cast<uint8_t>(high | (code[j] >> 4) << (2 * q));
  }
}

void quantize_block(const float* x, const float* importance, BlockIQ4_NL& out) {
  out.d = to_f16(fit_sub_block<FormatIQ4>(SubBlock<32>(x, importance)));
  uint8_t code[32];
  for (int j = 0; j < 32; ++j) {
    code[j] = FormatIQ4::Points::code_of(x[j] * inverse(to_float(f16(out.d))));
  }
  pack_nibbles(code, out.q);
}

void quantize_block(const float* x, const float* importance, BlockIQ4_XS& out) {
  const auto block = search<FormatIQ4>(split<FormatIQ4::kCount>(x, importance));
  const auto code = codes_of(x, block);
  out = BlockIQ4_XS{};
  out.d = block.d;
  for (size_t s = 0; s < 8; ++s) {
    const int scale = block.scale[s] + 32;
    uint8_t& low = out.scales_low[s / 2];
    uint8_t& high = out.scales_high[s / 4];
    low = static_cast<uint8_t>(low | (scale & 15) << (4 * (s % 2)));
    high = static_cast<uint8_t>(high | (scale >> 4) << (2 * (s % 4)));
    pack_nibbles(&code[32 * s], out.q + 16 * s);
  }
}

void quantize_block(const float* x, const float* importance, BlockMXFP4& out) {
  using Points = TablePoints<kMxfp4Values>;
  float largest = 0;
  for (int j = 0; j < 32; ++j) largest = std::max(largest, std::fabs(x[j]));
  // OCP's choice: the largest value lands between 4 and 8, where 6 is the end. In units of half the
  // scale, as kMxfp4Values are, that is from 8 to 16. Blocks below 2^-122 need not be served well.
  const int usual = std::clamp(largest > 0 ? std::ilogb(largest) + 125 : 2, 2, 252);
  const float unit = std::ldexp(1.0f, 128 - usual);  // exact, and so are its products with x
  float scaled[32];
  for (int j = 0; j < 32; ++j) scaled[j] = x[j] * unit;
  const SubBlock<32> v(scaled, importance);
  // The exponents beside it: half the scale if the ends do not matter, twice if they do.
  int best = 0;
  float best_error = error_of<Points>(v, 1.0f);
  for (int step : {1, -1}) {
    const float error = error_of<Points>(v, std::ldexp(1.0f, step));
    if (error < best_error) {
      best_error = error;
      best = step;
    }
  }
  out.exponent = static_cast<uint8_t>(usual + best);
  uint8_t code[32];
  for (int j = 0; j < 32; ++j) code[j] = Points::code_of(std::ldexp(scaled[j], -best));
  pack_nibbles(code, out.q);
}

}  // namespace drover
