// The small kernels against their formulas in double precision, and their bits across instruction
// sets, threads and batches. Attention and matrix multiplication have tests of their own.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/layer_norm/layer_norm.h"
#include "kernels/math/exp.h"
#include "kernels/math/gelu.h"
#include "kernels/math/normal_tail.h"
#include "kernels/matmul/matmul.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rope/rope.h"
#include "kernels/swiglu/swiglu.h"

namespace drover {
namespace {

std::vector<float> random_floats(size_t n, uint32_t seed, float spread = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> out(n);
  for (float& x : out) x = normal(random);
  return out;
}

constexpr double kUnit = 0x1p-24;  // half a unit in the last place of a float

::testing::AssertionResult same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(float)) == 0) continue;
    return ::testing::AssertionFailure() << "at " << i << ": " << a[i] << " and " << b[i];
  }
  return ::testing::AssertionSuccess();
}

MatrixView matrix(std::vector<float>& data, int64_t rows, int64_t cols) {
  return {data.data(), rows, cols, cols};
}

TEST(Exp, IsWithinTwoUlpAndClamped) {
  for (float x = -87.0f; x <= 88.0f; x += 0.0037f) {
    const double expected = std::exp(static_cast<double>(x));
    EXPECT_NEAR(exp_of(x), expected, 2 * 0x1p-23 * expected) << x;
  }
  EXPECT_EQ(exp_of(0.0f), 1.0f);
  EXPECT_EQ(exp_of(-INFINITY), exp_of(-87.0f));
  EXPECT_EQ(exp_of(1000.0f), exp_of(88.0f));
  EXPECT_TRUE(std::isnan(exp_of(NAN)));
}

double normal_tail(double x) { return std::erfc(x * std::sqrt(0.5)) / 2; }

TEST(NormalTail, IsWithinFourUlpAndWhatTheSquareLoses) {
  for (float x = 0; x <= 13.0f; x += 0.0001f) {
    const double expected = normal_tail(x);
    // Below 2^-126 a float has no relative precision left.
    EXPECT_NEAR(normal_tail_of(x), expected, (8 + x * x / 2) * kUnit * expected + 0x1p-149) << x;
  }
  EXPECT_EQ(normal_tail_of(0.0f), 0.5f);
  EXPECT_EQ(normal_tail_of(1e-30f), 0.5f);
  for (const float x : {13.01f, 1e10f, std::numeric_limits<float>::max(), INFINITY}) {
    EXPECT_EQ(normal_tail_of(x), 0.0f) << x;
  }
  EXPECT_TRUE(std::isnan(normal_tail_of(NAN)));
}

TEST(Gelu, MatchesTheFormula) {
  for (float v = -14.0f; v <= 14.0f; v += 0.0003f) {
    const double expected = double{v} * normal_tail(-v);
    // The tail's bound and the rounding of the product; what is cut off at -13 is below 1e-37.
    const double relative = v < 0 ? 9 + double{v} * v / 2 : 9;
    EXPECT_NEAR(gelu_of(v), expected, relative * kUnit * std::abs(expected) + 1e-37) << v;
    EXPECT_NEAR(gelu_of(v), expected, v < 0 ? 1e-7 : 2 * kUnit * expected + 1e-7) << v;
  }
}

TEST(Gelu, ToRoundIsASixteenthOfHalfAUnitOfBf16FromTheFormula) {
  for (float v = -7.0f; v <= 14.0f; v += 0.0003f) {
    const double expected = double{v} * normal_tail(-v);
    EXPECT_NEAR(gelu_to_round(v), expected, 0x1p-13 * std::abs(expected)) << v;
  }
  for (const float v : {-7.001f, -20.0f, -1e30f, -INFINITY}) {
    EXPECT_LE(gelu_to_round(v), 0.0f);
    EXPECT_GT(gelu_to_round(v), -1e-11f);
  }
  EXPECT_EQ(gelu_to_round(0.0f), 0.0f);
  EXPECT_EQ(gelu_to_round(1e30f), 1e30f);
  EXPECT_EQ(gelu_to_round(INFINITY), INFINITY);
  EXPECT_TRUE(std::isnan(gelu_to_round(NAN)));
}

TEST(Gelu, OfSpecialValuesIsTheLimitOrNoNumber) {
  for (const Isa isa : available_isas()) {
    constexpr float kMax = std::numeric_limits<float>::max();
    const std::vector<float> x = {0.0f,  -0.0f, 1e-30f, -1e-30f,  0x1p-149f, -13.01f,
                                  20.0f, kMax,  -kMax,  INFINITY, -INFINITY, NAN};
    const std::vector<float> expected = {0.0f,  -0.0f, 5e-31f, -5e-31f,  0.0f, -0.0f,
                                         20.0f, kMax,  -0.0f,  INFINITY, NAN,  NAN};
    // Each in a whole vector and in the rest of a row.
    for (size_t i = 0; i < x.size(); ++i) {
      std::vector<float> out(19, x[i]);
      internal::matmul_end_kernel(isa)(out.data(), nullptr, {.gelu = true}, out.data(), 19);
      for (const float y : out) {
        if (std::isnan(expected[i])) {
          EXPECT_TRUE(std::isnan(y)) << isa_name(isa) << ", " << x[i];
        } else {
          EXPECT_TRUE(same_bits({y}, {expected[i]})) << isa_name(isa) << ", " << x[i];
        }
      }
    }
  }
}

TEST(MatmulEnd, GivesTheBitsOfItsStepsOnEveryInstructionSet) {
  for (const Isa isa : available_isas()) {
    for (int64_t n = 0; n <= 40; ++n) {
      const auto sums = random_floats(n, 21 + n, 4.0f), bias = random_floats(n, 22 + n);
      const auto before = random_floats(n, 23 + n);
      for (int steps = 0; steps < 8; ++steps) {
        const MatmulEnd end{.bias = steps & 1 ? bias.data() : nullptr,
                            .gelu = (steps & 2) != 0,
                            .add = (steps & 4) != 0};
        auto expected = before, out = before;
        for (size_t i = 0; i < sums.size(); ++i) {
          float y = sums[i];
          if (end.bias != nullptr) y += bias[i];
          if (end.gelu) y = gelu_of(y);
          expected[i] = end.add ? before[i] + y : y;
        }
        internal::matmul_end_kernel(isa)(sums.data(), end.bias, end, out.data(), n);
        EXPECT_TRUE(same_bits(out, expected)) << isa_name(isa) << ", n " << n << ", " << steps;
      }
    }
  }
}

// Products with rows that the norm has rounded and with its floats, which the product rounds.
TEST(LayerNorm, RoundedItGivesTheBitsOfItsFloatsRoundedAfterwards) {
  if (!takes_rounded(detect_isa(), DType::kBF16)) {
    GTEST_SKIP() << "this processor has no unit for rounded rows";
  }
  constexpr int64_t kOut = 3;
  for (const int64_t rows : {1, 15, 16, 17, 32, 33, 70}) {
    for (const int64_t d : {1, 40, 256, 290}) {
      Context context(2);
      const auto x = random_floats(rows * d, rows + d), w = random_floats(kOut * d, d);
      const auto weight = random_floats(d, 1000 + d), bias = random_floats(d, 2000 + d);
      const ConstMatrixView x_view(x.data(), rows, d, d);
      std::vector<float> floats(rows * d), expected(rows * kOut), out(rows * kOut);
      RoundedRows rounded;
      rounded.resize(rows, d);
      layer_norm(context, matrix(floats, rows, d), x_view, weight.data(), bias.data(), 1e-5f);
      layer_norm(context, rounded, x_view, weight.data(), bias.data(), 1e-5f);
      MatmulJob job{.x = matrix(floats, rows, d),
                    .w = {reinterpret_cast<const std::byte*>(w.data()), DType::kF32, kOut, d},
                    .out = matrix(expected, rows, kOut),
                    .rounded = true};
      matmul(context, {&job, 1});
      job.x16 = &rounded;
      job.out = matrix(out, rows, kOut);
      matmul(context, {&job, 1});
      EXPECT_TRUE(same_bits(out, expected)) << rows << " rows of " << d;
    }
  }
}

TEST(LayerNorm, MatchesTheFormulaForEveryLengthAndFarFromZero) {
  Context context(2);
  for (const double center : {0.0, 1000.0}) {
    for (int64_t d = 1; d <= 1408; d += d < 70 ? 1 : 669) {
      auto x = random_floats(3 * d, d);
      for (float& v : x) v += static_cast<float>(center);
      const auto weight = random_floats(d, 1000 + d), bias = random_floats(d, 2000 + d);
      std::vector<float> out(3 * d);
      layer_norm(context, matrix(out, 3, d), matrix(x, 3, d), weight.data(), bias.data(), 1e-5f);
      for (int64_t t = 0; t < 3; ++t) {
        const float* row = &x[t * d];
        double mean = 0, size = 0, variance = 0;
        for (int64_t i = 0; i < d; ++i) mean += row[i], size += std::abs(row[i]);
        mean /= d, size /= d;
        for (int64_t i = 0; i < d; ++i) variance += (row[i] - mean) * (row[i] - mean) / d;
        const double scale = 1 / std::sqrt(variance + 1e-5);
        for (int64_t i = 0; i < d; ++i) {
          const double scaled = (row[i] - mean) * scale * weight[i], expected = scaled + bias[i];
          // The mean is off by the roundings of d / 16 terms, 4 sums and a division; so is every
          // difference, but not the variance, where the offset counts only squared. The variance
          // has as many roundings and three per term, of which the root halves all; six come after.
          const double roundings = d / 16.0 + 6;
          EXPECT_NEAR(out[t * d + i], expected,
                      kUnit * (roundings * size * scale * std::abs(weight[i]) +
                               (roundings / 2 + 8) * std::abs(scaled) + std::abs(expected)))
              << "center " << center << ", d " << d << ", component " << i;
        }
      }
    }
  }
}

TEST(LayerNorm, OfARowDependsOnTheRowAlone) {
  const int64_t d = 45;
  Context alone(1, Isa::kPlain);
  const auto x = random_floats(7 * d, 31), weight = random_floats(d, 32),
             bias = random_floats(d, 33);
  std::vector<float> expected;
  for (int64_t t = 0; t < 7; ++t) {
    std::vector<float> row(x.begin() + t * d, x.begin() + (t + 1) * d);
    layer_norm(alone, matrix(row, 1, d), matrix(row, 1, d), weight.data(), bias.data(), 1e-5f);
    expected.insert(expected.end(), row.begin(), row.end());
  }
  for (const Isa isa : available_isas()) {
    for (const int threads : {1, 2, 3}) {
      Context context(threads, isa);
      auto out = x;
      layer_norm(context, matrix(out, 7, d), matrix(out, 7, d), weight.data(), bias.data(), 1e-5f);
      EXPECT_TRUE(same_bits(out, expected)) << isa_name(isa) << ", " << threads << " threads";
    }
  }
}

TEST(RmsNorm, MatchesTheFormulaForEveryLength) {
  Context context(2);
  for (int64_t d = 1; d <= 70; ++d) {
    auto x = random_floats(3 * d, d), weight = random_floats(d, 1000 + d);
    std::vector<float> out(3 * d);
    rms_norm(context, matrix(out, 3, d), matrix(x, 3, d), weight.data(), 1e-5f);
    for (int64_t t = 0; t < 3; ++t) {
      double mean = 0;
      for (int64_t i = 0; i < d; ++i) mean += static_cast<double>(x[t * d + i]) * x[t * d + i] / d;
      for (int64_t i = 0; i < d; ++i) {
        const double expected = x[t * d + i] / std::sqrt(mean + 1e-5) * weight[i];
        // Half the rounding errors of the d-term sum, and three roundings after it.
        EXPECT_NEAR(out[t * d + i], expected, (4 + d / 2.0) * 0x1p-24 * std::abs(expected));
      }
    }
  }
}

TEST(RmsNorm, OfHeadsIsTheNormOfEachHead) {
  Context context(1);
  auto x = random_floats(2 * 3 * 24, 5);
  auto heads = x;
  std::vector<float> ones(24, 1.0f), out(x.size());
  rms_norm_heads(context, matrix(heads, 2, 72), 24, 1e-5f);
  rms_norm(context, matrix(out, 6, 24), matrix(x, 6, 24), ones.data(), 1e-5f);
  EXPECT_EQ(heads, out);
}

TEST(Rope, RotatesAdjacentPairs) {
  Context context(2);
  const std::vector<float> frequencies = {1.0f, 0.1f, 0.01f};
  const std::vector<int64_t> positions = {0, 7, 8191};
  RopeTable table;
  table.fill(positions, frequencies);
  auto x = random_floats(3 * 2 * 6, 9);
  auto y = x;
  rope(context, {matrix(y, 3, 12)}, table);
  for (int64_t t = 0; t < 3; ++t) {
    for (int64_t pair = 0; pair < 6; ++pair) {
      // The angle is formed in float32 by definition; all else is checked in double.
      const double angle = static_cast<float>(positions[t]) * frequencies[pair % 3];
      const double re = x[t * 12 + 2 * pair], im = x[t * 12 + 2 * pair + 1];
      const double bound = 4 * 0x1p-24 * (std::abs(re) + std::abs(im));
      EXPECT_NEAR(y[t * 12 + 2 * pair], re * std::cos(angle) - im * std::sin(angle), bound);
      EXPECT_NEAR(y[t * 12 + 2 * pair + 1], re * std::sin(angle) + im * std::cos(angle), bound);
    }
  }
}

TEST(Rope, OfATileTurnsHalfThePairsByColumnAndHalfByRow) {
  for (const int64_t side : {1, 3, 24}) {
    std::vector<float> frequencies;
    for (int m = 0; m < 22; ++m) frequencies.push_back(std::pow(10000.0f, -2.0f * m / 44));
    RopeTable table;
    table.fill_2d(side, frequencies);
    ASSERT_EQ(table.head_dim(), 88);
    ASSERT_EQ(table.tokens(), side * side + 1);
    for (int64_t n = 0; n < side * side; ++n) {
      for (int64_t pair = 0; pair < 44; ++pair) {
        const int64_t place = pair < 22 ? n % side + 1 : n / side + 1;
        // The angle is formed in float32; its cosine is within a unit in the last place of 1.
        const double angle = static_cast<float>(place) * frequencies[pair % 22];
        const float* cosines = table.cosines(n) + 2 * pair;
        const float* sines = table.sines(n) + 2 * pair;
        EXPECT_NEAR(cosines[0], std::cos(angle), 2 * kUnit) << n << ", pair " << pair;
        EXPECT_NEAR(sines[1], std::sin(angle), 2 * kUnit) << n << ", pair " << pair;
        EXPECT_EQ(cosines[1], cosines[0]);
        EXPECT_EQ(sines[0], -sines[1]);
      }
    }
    for (int64_t i = 0; i < 88; ++i) {
      EXPECT_EQ(table.cosines(side * side)[i], 1.0f);
      EXPECT_EQ(table.sines(side * side)[i], 0.0f);
    }
  }
}

TEST(Rope, OfSeveralTilesIsThatOfEach) {
  Context context(2);
  RopeTable table;
  table.fill_2d(2, std::vector<float>{1.0f, 0.1f});
  const auto tile = random_floats(5 * 16, 41), other = random_floats(5 * 16, 42);
  auto both = tile, also = other, first = tile, second = other;
  both.insert(both.end(), other.begin(), other.end());
  also.insert(also.end(), tile.begin(), tile.end());
  rope(context, {matrix(both, 10, 16), matrix(also, 10, 16)}, table);
  rope(context, {matrix(first, 5, 16)}, table);
  rope(context, {matrix(second, 5, 16)}, table);
  auto expected = first, reverse = second;
  expected.insert(expected.end(), second.begin(), second.end());
  reverse.insert(reverse.end(), first.begin(), first.end());
  EXPECT_TRUE(same_bits(both, expected));
  EXPECT_TRUE(same_bits(also, reverse));
}

TEST(Rope, OfRowsFromOneOnIsThatOfThoseRows) {
  Context context(2);
  RopeTable table;
  // Positions come again, as in documents one after the other.
  table.fill(std::vector<int64_t>{0, 1, 2, 0, 1, 7}, std::vector<float>{1.0f, 0.1f});
  auto all = random_floats(6 * 8, 43), part = all;
  rope(context, {matrix(all, 6, 8)}, table);
  rope(context, {MatrixView{part.data() + 2 * 8, 4, 8, 8}}, table, /*first=*/2);
  EXPECT_TRUE(std::equal(all.begin() + 2 * 8, all.end(), part.begin() + 2 * 8));
  rope_backward(context, {MatrixView{part.data() + 2 * 8, 4, 8, 8}}, table, /*first=*/2);
  rope_backward(context, {matrix(all, 6, 8)}, table);
  EXPECT_TRUE(std::equal(all.begin() + 2 * 8, all.end(), part.begin() + 2 * 8));
  for (int64_t t : {3, 4}) {
    for (int64_t i = 0; i < 4; ++i) {
      EXPECT_EQ(table.cosines(t)[i], table.cosines(t - 3)[i]);
      EXPECT_EQ(table.sines(t)[i], table.sines(t - 3)[i]);
    }
  }
}

// Row lengths on either side of every vector's, and of 16 partial sums.
TEST(Rows, HaveTheSameBitsOnEveryInstructionSet) {
  for (int64_t d = 2; d <= 100; ++d) {
    const auto x = random_floats(2 * d, 51 + d), weight = random_floats(d, 52 + d);
    const auto bias = random_floats(d, 53 + d);
    auto up = random_floats(2 * d, 54 + d);
    RopeTable table;
    const std::vector<float> frequencies = random_floats(d / 2, 55 + d);
    table.fill(std::vector<int64_t>{3}, frequencies);
    const auto all_of = [&](Isa isa) {
      Context context(1, isa);
      auto normed = x, scaled = x, heads = x, turned = x, gated = x;
      layer_norm(context, matrix(normed, 2, d), matrix(normed, 2, d), weight.data(), bias.data(),
                 1e-5f);
      rms_norm(context, matrix(scaled, 2, d), matrix(scaled, 2, d), weight.data(), 1e-5f);
      rms_norm_heads(context, matrix(heads, 1, 2 * d), d, 1e-5f);
      const int64_t even = d / 2 * 2;
      rope(context, {{turned.data(), 1, 2 * even, 2 * even}}, table);
      swiglu(context, matrix(gated, 2, d), matrix(up, 2, d));
      std::vector<float> out;
      for (const auto& part : {normed, scaled, heads, turned, gated}) {
        out.insert(out.end(), part.begin(), part.end());
      }
      return out;
    };
    const auto expected = all_of(Isa::kPlain);
    for (const Isa isa : available_isas()) {
      EXPECT_TRUE(same_bits(all_of(isa), expected)) << isa_name(isa) << ", d " << d;
    }
  }
}

TEST(Swiglu, MatchesTheFormula) {
  Context context(2);
  auto gate = random_floats(2 * 37, 11, 20.0f), up = random_floats(2 * 37, 12);
  auto out = gate;
  swiglu(context, matrix(out, 2, 37), matrix(up, 2, 37));
  for (size_t i = 0; i < out.size(); ++i) {
    const double g = gate[i], expected = g / (1 + std::exp(-g)) * up[i];
    EXPECT_NEAR(out[i], expected, 6 * 0x1p-24 * std::abs(expected) + 1e-37);
  }
}

}  // namespace
}  // namespace drover
