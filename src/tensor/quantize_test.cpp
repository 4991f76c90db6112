#include "tensor/quantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <set>
#include <vector>

#include "base/error.h"
#include "tensor/blocks_fixture.h"
#include "tensor/dequantize.h"
#include "tensor/float16.h"

namespace drover {
namespace {

constexpr DType kLegacy[] = {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1};
constexpr DType kSearched[] = {DType::kQ2_K, DType::kQ3_K,   DType::kQ4_K,   DType::kQ5_K,
                               DType::kQ6_K, DType::kIQ4_NL, DType::kIQ4_XS, DType::kMXFP4};

std::vector<std::byte> quantized(DType type, const std::vector<float>& x,
                                 std::span<const float> importance = {}) {
  std::vector<std::byte> out(static_cast<size_t>(row_bytes(type, static_cast<int64_t>(x.size()))));
  quantize_row(type, x, out.data(), importance);
  return out;
}

std::vector<float> read_back(DType type, const std::vector<float>& x,
                             std::span<const float> importance = {}) {
  std::vector<float> out(x.size());
  dequantize_row(type, quantized(type, x, importance).data(), out);
  return out;
}

double relative_rms_error(DType type, const std::vector<float>& x) {
  const std::vector<float> y = read_back(type, x);
  double error = 0, norm = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    error += (double{x[i]} - y[i]) * (double{x[i]} - y[i]);
    norm += double{x[i]} * x[i];
  }
  return std::sqrt(error / norm);
}

std::vector<float> normal_values(size_t count, float deviation, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> out(count);
  for (float& x : out) x = normal(random);
  return out;
}

TEST(Quantize, LegacyFormatsGiveTheBytesOfTheReferencePackage) {
  std::set<DType> seen;
  for (const BlocksRecord& record : read_blocks_fixture()) {
    if (record.direction != BlocksRecord::kQuantized) continue;
    seen.insert(record.type);
    const std::vector<std::byte> out = quantized(record.type, record.floats);
    const auto block = static_cast<size_t>(dtype_info(record.type).block_bytes);
    for (size_t i = 0; i < out.size(); ++i) {
      ASSERT_EQ(out[i], record.blocks[i])
          << dtype_name(record.type) << " block " << i / block << " byte " << i % block;
    }
  }
  EXPECT_EQ(seen, std::set<DType>(std::begin(kLegacy), std::end(kLegacy)));
}

// The figures are what llama.cpp's own quantisers leave on rows of the normal distribution,
// measured with its library on 512 rows of 4096 values (the K-quants of 4 bits and more) or 64.
// Ours must not be worse; over 2^17 values the figure moves by less than 0.5 % with the seed, and
// the nearest of ours, MXFP4, is 2 % below its line.
TEST(Quantize, SearchedFormatsLoseNoMoreThanTheStandardQuantisers) {
  const std::vector<float> x = normal_values(1 << 17, 0.02f, /*seed=*/11);
  EXPECT_LT(relative_rms_error(DType::kQ4_K, x), 0.0713);
  EXPECT_LT(relative_rms_error(DType::kQ5_K, x), 0.0361);
  EXPECT_LT(relative_rms_error(DType::kQ6_K, x), 0.0177);
  EXPECT_LT(relative_rms_error(DType::kQ2_K, x), 0.297);
  EXPECT_LT(relative_rms_error(DType::kQ3_K, x), 0.151);
  EXPECT_LT(relative_rms_error(DType::kIQ4_NL, x), 0.0762);
  EXPECT_LT(relative_rms_error(DType::kIQ4_XS, x), 0.0768);
  EXPECT_LT(relative_rms_error(DType::kMXFP4, x), 0.1141);
}

// Whatever the scale of a row, the error stays that of the format. A step is at most the range of
// the block, twice its largest value, over its codes. A value is within half a step of its code;
// the search may leave an extreme value up to 1.2 steps outside the codes (its narrowest grid);
// scales and minima rounded to 6 or 8 bits move a value by a quarter of a step. Two steps bound the
// sum.
TEST(Quantize, EveryValueComesBackWithinTwoSteps) {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    std::mt19937 random(seed);
    const float deviation = std::pow(10.0f, std::uniform_real_distribution<float>(-2, 4)(random));
    std::vector<float> x = normal_values(256, deviation, seed);
    if (seed % 4 == 1)
      for (float& v : x) v = std::fabs(v);
    if (seed % 4 == 2)
      for (float& v : x) v = -std::fabs(v) - deviation;
    if (seed % 4 == 3) x[seed] *= 50;
    float largest = 0;
    for (float v : x) largest = std::max(largest, std::fabs(v));
    for (auto [type, codes] : {std::pair{DType::kQ2_K, 3},
                               {DType::kQ3_K, 7},
                               {DType::kQ4_K, 15},
                               {DType::kQ5_K, 31},
                               {DType::kQ6_K, 63}}) {
      const std::vector<float> y = read_back(type, x);
      for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_NEAR(x[i], y[i], 2 * 2 * largest / static_cast<float>(codes))
            << dtype_name(type) << " value " << i << " seed " << seed;
      }
    }
  }
}

TEST(Quantize, GridsThatAFormatCanHoldComeBackExactly) {
  std::vector<float> x(256);
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = 0.25f * static_cast<float>(static_cast<int>(i % 16)) - 1;
  EXPECT_LT(relative_rms_error(DType::kQ4_K, x), 2e-3);  // scales are 6-bit parts of an f16
  const std::vector<float> zeros(256, 0.0f);
  for (DType type : kSearched) EXPECT_EQ(read_back(type, zeros), zeros) << dtype_name(type);
  for (DType type : kLegacy) EXPECT_EQ(read_back(type, zeros), zeros) << dtype_name(type);
}

TEST(Quantize, ImportantColumnsComeBackCloser) {
  const std::vector<float> x = normal_values(1 << 14, 1.0f, /*seed=*/5);
  std::vector<float> importance(x.size(), 0.01f);
  for (size_t i = 0; i < x.size(); i += 4) importance[i] = 1.0f;
  auto error_at_important = [&](const std::vector<float>& y) {
    double error = 0;
    for (size_t i = 0; i < x.size(); i += 4) error += std::pow(double{x[i]} - y[i], 2);
    return error;
  };
  for (DType type : kSearched) {
    // MXFP4 has nothing to search but whether to double or to halve its scale.
    const double share = type == DType::kMXFP4 ? 0.98 : 0.8;
    EXPECT_LT(error_at_important(read_back(type, x, importance)),
              share * error_at_important(read_back(type, x)))
        << dtype_name(type);
  }
}

// An expert that no token came to, or columns that were never lit, have no importance; their
// weights must not be thrown away for it. Nor may the unit of the importance matter.
TEST(Quantize, WithoutImportanceAllValuesCountAlike) {
  const std::vector<float> x = normal_values(1 << 12, 1.0f, /*seed=*/6);
  std::vector<float> importance(x.size(), 1.0f);
  for (size_t i = 0; i < x.size(); i += 3) importance[i] = 5.0f;
  for (DType type : kSearched) {
    const auto alike = quantized(type, x);
    for (float level : {0.0f, 1e-30f, 1.0f, 1e30f}) {
      EXPECT_EQ(quantized(type, x, std::vector<float>(x.size(), level)) == alike, true)
          << dtype_name(type) << ' ' << level;
    }
    // The second half of every 64 values is never lit, so there are sub-blocks of nothing else.
    std::vector<float> half = importance;
    for (size_t i = 0; i < x.size(); ++i) {
      if (i % 64 >= 32) half[i] = 0;
    }
    const std::vector<float> y = read_back(type, x, half);
    double error = 0, norm = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      if (i % 64 < 32) continue;
      error += std::pow(double{x[i]} - y[i], 2);
      norm += std::pow(double{x[i]}, 2);
    }
    EXPECT_LT(std::sqrt(error / norm), 2 * relative_rms_error(type, x)) << dtype_name(type);
  }
}

// The usual exponent leaves values of up to 8 above an end of 6. Where these matter, the next
// exponent is taken, and where they do not, the finer one.
TEST(Quantize, Mxfp4ChoosesItsExponentByWhatItLoses) {
  std::vector<float> x(32, 7.9f);
  EXPECT_EQ(read_back(DType::kMXFP4, x), std::vector<float>(32, 8.0f));
  x.assign(32, 0.5f);
  x[0] = 4.0f;
  std::vector<float> importance(32, 1.0f);
  importance[0] = 0;
  for (size_t i = 1; i < 32; ++i) x[i] = i % 2 ? 0.75f : 0.25f;
  const std::vector<float> y = read_back(DType::kMXFP4, x, importance);
  for (size_t i = 1; i < 32; ++i) EXPECT_EQ(y[i], x[i]) << i;
  EXPECT_EQ(y[0], 3.0f);
}

TEST(Quantize, ABlockWithANonFiniteValueReadsBackAsNan) {
  for (float bad : {NAN, INFINITY, -INFINITY}) {
    for (DType type : {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,
                       DType::kQ4_K, DType::kQ5_K, DType::kQ6_K, DType::kQ2_K, DType::kQ3_K,
                       DType::kIQ4_NL, DType::kIQ4_XS, DType::kMXFP4}) {
      std::vector<float> x = normal_values(512, 1.0f, /*seed=*/3);
      x[300] = bad;
      const std::vector<float> y = read_back(type, x);
      const size_t block = static_cast<size_t>(dtype_info(type).block_values);
      for (size_t i = 0; i < x.size(); ++i) {
        const bool lost = type == DType::kMXFP4 ? std::isinf(y[i]) : std::isnan(y[i]);
        EXPECT_EQ(lost, i / block == 300 / block) << dtype_name(type) << " value " << i;
      }
    }
    EXPECT_EQ(std::isnan(bad), std::isnan(read_back(DType::kF16, {bad})[0]));
    EXPECT_EQ(std::isnan(bad), std::isnan(read_back(DType::kBF16, {bad})[0]));
  }
}

TEST(Quantize, ExtremeMagnitudesStayDefined) {
  for (float magnitude : {1e-45f, 1e-38f, 1e-20f, 1e-8f, 1e-7f, 4e6f, 1e10f, 3e38f}) {
    std::vector<float> x = normal_values(256, 0.2f, /*seed=*/9);
    for (float& v : x) v = std::clamp(v, -1.0f, 1.0f) * magnitude;
    for (DType type : kSearched) {
      const std::vector<float> y = read_back(type, x);
      for (size_t i = 0; i < x.size(); ++i) {
        if (type == DType::kMXFP4) {
          EXPECT_LE(std::fabs(y[i]), 1.34f * magnitude + 1e-36f) << magnitude;
        } else if (magnitude > 4.2e6f || (magnitude > 1e6f && type == DType::kQ2_K)) {
          EXPECT_TRUE(std::isnan(y[i])) << dtype_name(type) << ' ' << magnitude;
        } else {
          EXPECT_LE(std::fabs(y[i]), 2 * magnitude + 1e-6f) << dtype_name(type) << ' ' << magnitude;
        }
      }
    }
    for (DType type : kLegacy) read_back(type, x);  // no trap, nothing undefined (ASan, UBSan)
  }
}

TEST(Quantize, PlainTypesRoundLikeTheirScalarConversion) {
  const std::vector<float> x = normal_values(1000, 100.0f, /*seed=*/2);
  const std::vector<float> halves = read_back(DType::kF16, x), brains = read_back(DType::kBF16, x);
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(halves[i], to_float(to_f16(x[i])));
    EXPECT_EQ(brains[i], to_float(to_bf16(x[i])));
  }
  EXPECT_EQ(read_back(DType::kF32, x), x);
}

TEST(Quantize, MisuseIsRefused) {
  std::vector<std::byte> out(1024);
  EXPECT_THROW(quantize_row(DType::kQ4_K, std::vector<float>(32), out.data()), Error);
  EXPECT_THROW(quantize_row(DType::kI8, std::vector<float>(32), out.data()), Error);
  EXPECT_THROW(
      quantize_row(DType::kQ4_K, std::vector<float>(256), out.data(), std::vector<float>(255)),
      Error);
}

}  // namespace
}  // namespace drover
