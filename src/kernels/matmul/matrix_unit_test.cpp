// The matrix unit against its definition.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "base/error.h"
#include "kernels/math/gelu.h"
#include "kernels/matmul/matmul_fixture.h"
#include "kernels/matmul/matmul_kernels.h"
#include "kernels/matmul/rounded_rows.h"

namespace drover {
namespace {

bool no_matrix_unit() { return detect_isa() != Isa::kAmx; }

// Up to 64 tokens a tile of rows at a time and more by blocks of 32 x 32; tiles and panels that are
// whole and not; more tokens and rows than one task takes.
TEST(MatrixUnit, EveryShapeGivesTheBitsOfTheDefinition) {
  if (no_matrix_unit()) GTEST_SKIP() << "this processor has no AMX";
  for (int64_t tokens : {1, 2, 15, 16, 17, 48, 64, 65}) {
    for (int64_t rows : {1, 15, 16, 48, 80, 90}) {
      for (int64_t cols : {1, 32, 63, 256, 288, 513}) {
        std::mt19937 random(static_cast<uint32_t>(tokens + rows + cols));
        expect_all_isas_agree(Problem(DType::kBF16, tokens, rows, cols, random), "");
      }
    }
  }
  std::mt19937 random(9);
  const Problem p(DType::kBF16, 270, 150, 290, random);
  for (int threads : {1, 2, 4}) {
    EXPECT_TRUE(same_bits(multiply_like_matrix_unit(p), multiply(context(Isa::kAmx, threads), p)))
        << threads << " threads";
  }
}

// Blocks of rows where they lie, the last one copied, and sums of several blocks that rest between
// cuts of K, of which 2080 columns make two or more.
TEST(MatrixUnit, WeightsOnCacheLinesAndSumsThatRestGiveTheBitsOfTheDefinition) {
  if (no_matrix_unit()) GTEST_SKIP() << "this processor has no AMX";
  for (DType type : {DType::kBF16, DType::kQ8_0}) {
    for (int64_t cols : {32, 544, 2080}) {
      for (bool aligned : {true, false}) {
        for (bool rounded : {true, false}) {
          if (!rounded && type != DType::kBF16) continue;
          std::mt19937 random(static_cast<uint32_t>(cols));
          Problem p(type, 70, 150, cols, random);
          p.rounded = rounded;
          if (aligned) p.align_weights();
          ASSERT_TRUE(same_bits(multiply_like_matrix_unit(p), multiply(context(Isa::kAmx), p)))
              << dtype_name(type) << " K=" << cols << (aligned ? " aligned" : "")
              << (rounded ? " rounded" : "");
        }
      }
    }
  }
}

// More tokens of so many columns than the largest part of a cache holds, and not in equal pieces.
TEST(MatrixUnit, TokensCutInPiecesGiveTheBitsOfTheDefinition) {
  if (no_matrix_unit()) GTEST_SKIP() << "this processor has no AMX";
  std::mt19937 random(12);
  Problem p(DType::kBF16, 1300, 33, 1100, random);
  p.rounded = true;
  const auto expected = multiply_like_matrix_unit(p);
  for (int threads : {1, 3}) {
    EXPECT_TRUE(same_bits(expected, multiply(context(Isa::kAmx, threads), p)))
        << threads << " threads";
  }
}

TEST(MatrixUnit, RoundedJobsOfEveryTypeGiveTheBitsOfTheDefinition) {
  if (no_matrix_unit()) GTEST_SKIP() << "this processor has no AMX";
  for (DType type : {DType::kBF16, DType::kF16, DType::kF32, DType::kQ8_0}) {
    ASSERT_TRUE(takes_rounded(Isa::kAmx, type));
    for (int64_t tokens : {1, 5, 16, 33}) {
      for (int64_t rows : {7, 64, 90}) {
        for (int64_t cols : {32, 288, 544}) {
          std::mt19937 random(static_cast<uint32_t>(tokens + rows + cols));
          Problem p(type, tokens, rows, cols, random);
          p.rounded = true;
          ASSERT_TRUE(same_bits(multiply_like_matrix_unit(p), multiply(context(Isa::kAmx, 2), p)))
              << dtype_name(type) << " T=" << tokens << " N=" << rows << " K=" << cols;
        }
      }
    }
  }
}

// Two terms miss x by 2^-16 of it. A product goes through at most 16 sums of its 32 columns, two
// more that join them, and one for each later half step: 2 K / 32. Each is off by u = 2^-24 of its
// result; what is left of the magnitudes after second order is 1 % of that. Rounded jobs miss x and
// w by 2^-8 each.
TEST(MatrixUnit, ItsSumsAreTheDotProduct) {
  if (no_matrix_unit()) GTEST_SKIP() << "this processor has no AMX";
  for (const bool rounded : {false, true}) {
    for (int64_t cols : {1, 31, 100, 1000}) {
      std::mt19937 random(static_cast<uint32_t>(cols));
      Problem p(rounded ? DType::kF32 : DType::kBF16, 3, 5, cols, random);
      p.rounded = rounded;
      const auto out = multiply(context(Isa::kAmx), p);
      std::vector<float> w(static_cast<size_t>(cols));
      const double steps = 18 + 2 * static_cast<double>((cols + 31) / 32);
      const double bound = (rounded ? 2 * 0x1p-8 : 0x1p-16) + steps * 0x1p-24;
      for (int64_t n = 0; n < p.rows; ++n) {
        dequantize_row(p.type, p.w().row(n), w);
        for (int64_t t = 0; t < p.tokens; ++t) {
          double sum = 0, magnitude = 0;
          for (int64_t k = 0; k < cols; ++k) {
            const double term = double{p.x_view().row(t)[k]} * w[static_cast<size_t>(k)];
            sum += term;
            magnitude += std::fabs(term);
          }
          ASSERT_NEAR(out[static_cast<size_t>(t * (p.rows + 5) + n)], sum, 1.01 * bound * magnitude)
              << "seed " << cols << " t=" << t << " n=" << n;
        }
      }
    }
  }
}

// Two products in a row. Tiles and panels that are whole and not, weights where they lie and
// copied, sums that rest between cuts of K.
TEST(MatrixUnit, ARoundedOutputIsReadAsIfItsFloatsWereRoundedAfterwards) {
  if (no_matrix_unit()) GTEST_SKIP() << "this processor has no AMX";
  struct Shape {
    int64_t tokens, cols, rows;
  };
  for (const Shape shape : {Shape{1, 32, 1},
                            {5, 64, 31},
                            {5, 64, 64},
                            {16, 64, 48},
                            {33, 96, 96},
                            {33, 96, 90},
                            {70, 2304, 290},
                            {65, 64, 256},
                            {1300, 1088, 90}}) {
    for (DType type : {DType::kBF16, DType::kF16, DType::kF32, DType::kQ8_0}) {
      std::mt19937 random(static_cast<uint32_t>(shape.rows));
      Problem p(type, shape.tokens, shape.rows, shape.cols, random);
      if (shape.tokens > 30) p.align_weights();
      const auto bias = random_floats(p.rows, random);
      const auto w = random_weights(DType::kBF16, 16 * p.rows, random);
      for (const bool gelu : {false, true}) {
        for (int threads : {1, 2}) {
          Context& c = context(Isa::kAmx, threads);
          const auto chained = [&](bool rounded_between) {
            std::vector<float> between(static_cast<size_t>(p.tokens * p.rows));
            std::vector<float> out(static_cast<size_t>(p.tokens * 16));
            const MatrixView floats{between.data(), p.tokens, p.rows, p.rows};
            RoundedRows rounded;
            rounded.resize(p.tokens, p.rows);
            MatmulJob first{.x = p.x_view(),
                            .w = p.w(),
                            .out = floats,
                            .end = {.bias = bias.data(), .gelu = gelu},
                            .rounded = true};
            MatmulJob second{.x = floats,
                             .w = {w.data(), DType::kBF16, 16, p.rows},
                             .out = {out.data(), p.tokens, 16, 16},
                             .rounded = true};
            if (rounded_between) {
              first.out = {};
              first.out16 = &rounded;
              second.x16 = &rounded;
              second.x.data = nullptr;
            } else {
              first.end.gelu = false;
            }
            matmul(c, {&first, 1});
            if (gelu && !rounded_between) {
              for (float& y : between) y = gelu_to_round(y);
            }
            matmul(c, {&second, 1});
            return out;
          };
          ASSERT_TRUE(same_bits(chained(false), chained(true)))
              << dtype_name(type) << " T=" << p.tokens << " N=" << p.rows << " K=" << p.cols;
        }
      }
    }
  }
}

// With the factors' places changed, as weights that are packed once are taken: the bits of the
// product as it stands, and after its end.
TEST(MatrixUnit, ATurnedProductIsTheProduct) {
  if (no_matrix_unit()) GTEST_SKIP() << "this processor has no AMX";
  struct Shape {
    int64_t tokens, rows, cols;
  };
  for (const Shape shape : {Shape{1, 1, 32},
                            {5, 31, 64},
                            {33, 16, 96},
                            {64, 64, 100},
                            {65, 90, 513},
                            {300, 150, 290},
                            {70, 1300, 2080}}) {
    std::mt19937 random(static_cast<uint32_t>(shape.rows));
    Problem p(DType::kF32, shape.tokens, shape.rows, shape.cols, random);
    p.rounded = true;
    const auto [T, N, K] = shape;
    const auto bias = random_floats(N, random), before = random_floats(T * N, random);
    std::vector<float> x;
    for (int64_t t = 0; t < T; ++t) {
      x.insert(x.end(), p.x_view().row(t), p.x_view().row(t) + K);
    }
    const auto* w = reinterpret_cast<const float*>(p.w().data);
    std::vector<float> weights(static_cast<size_t>(N * K));
    std::memcpy(weights.data(), w, weights.size() * sizeof(float));
    RoundedRows packed;
    packed.resize(N, K);
    for (int64_t n = 0; n < N; n += RoundedRows::kGroup) {
      packed.put(n, {weights.data() + n * K, std::min(RoundedRows::kGroup, N - n), K, K});
    }
    for (const bool ends : {false, true}) {
      const MatmulEnd end = {.bias = ends ? bias.data() : nullptr, .add = ends};
      std::vector<float> expected = before;
      const MatmulJob plain{.x = {x.data(), T, K, K},
                            .w = p.w(),
                            .out = {expected.data(), T, N, N},
                            .end = end,
                            .rounded = true};
      matmul(context(Isa::kAmx), {&plain, 1});
      for (const int threads : {1, 3}) {
        std::vector<float> out = before;
        const MatmulJob turned{
            .x = {nullptr, N, K, K},
            .w = {reinterpret_cast<const std::byte*>(x.data()), DType::kF32, T, K},
            .out = {out.data(), T, N, N},
            .end = end,
            .rounded = true,
            .x16 = &packed,
            .turned = true};
        matmul(context(Isa::kAmx, threads), {&turned, 1});
        ASSERT_TRUE(same_bits(expected, out)) << "T=" << T << " N=" << N << " K=" << K;
      }
    }
  }
}

TEST(MatrixUnit, RoundedRowsThatDoNotFitAreRefused) {
  std::mt19937 random(11);
  const Problem p(DType::kBF16, 2, 16, 64, random);
  std::vector<float> out(32);
  RoundedRows x16, out16, other;
  x16.resize(2, 64);
  out16.resize(2, 16);
  other.resize(2, 32);
  x16.put(0, {p.x_view().data, 2, 64, p.x_view().stride});
  for (Isa isa : available_isas()) {
    auto fits = [&](auto change) {
      MatmulJob job{.x = p.x_view(),
                    .w = p.w(),
                    .out = {out.data(), 2, 16, 16},
                    .rounded = true,
                    .x16 = &x16,
                    .out16 = &out16};
      change(job);
      try {
        matmul(context(isa), {&job, 1});
        return true;
      } catch (const Error&) {
        return false;
      }
    };
    EXPECT_EQ(fits([](MatmulJob&) {}), takes_rounded(isa, DType::kBF16));
    EXPECT_TRUE(fits([](MatmulJob& j) { j.x16 = nullptr, j.out16 = nullptr; }));
    EXPECT_FALSE(fits([](MatmulJob& j) { j.rounded = false; }));
    EXPECT_FALSE(fits([&](MatmulJob& j) { j.x16 = &other; }));
    EXPECT_FALSE(fits([&](MatmulJob& j) { j.out16 = &other; }));
    EXPECT_FALSE(fits([](MatmulJob& j) { j.end.add = true; }));  // to what?
    const auto turn = [](MatmulJob& j) { j.out16 = nullptr, j.out.rows = 16, j.out.cols = 2; };
    EXPECT_FALSE(fits([&](MatmulJob& j) { turn(j), j.turned = true, j.x16 = nullptr; }));
    EXPECT_FALSE(fits([&](MatmulJob& j) { turn(j), j.turned = true, j.end.gelu = true; }));
    EXPECT_FALSE(fits([&](MatmulJob& j) { turn(j), j.turned = true, j.out.rows = 15; }));
  }
}

}  // namespace
}  // namespace drover
