// Products on every instruction set, in any company, against the plain loops and the formula.
#include "kernels/matmul/matmul.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/math/gelu.h"
#include "kernels/matmul/matmul_fixture.h"
#include "kernels/matmul/matmul_kernels.h"
#include "tensor/dequantize.h"

namespace drover {
namespace {

class QuantizedMatmul : public ::testing::TestWithParam<DType> {};
class FloatMatmul : public ::testing::TestWithParam<DType> {};
class AnyMatmul : public ::testing::TestWithParam<DType> {};

std::string type_name(const ::testing::TestParamInfo<DType>& info) {
  return std::string(dtype_name(info.param));
}
INSTANTIATE_TEST_SUITE_P(Types, QuantizedMatmul, ::testing::ValuesIn(kQuantized), type_name);
INSTANTIATE_TEST_SUITE_P(Types, FloatMatmul, ::testing::ValuesIn(kFloats), type_name);
INSTANTIATE_TEST_SUITE_P(Types, AnyMatmul,
                         ::testing::Values(DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0,
                                           DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,
                                           DType::kQ4_K, DType::kQ5_K, DType::kQ6_K, DType::kQ2_K,
                                           DType::kQ3_K, DType::kIQ4_NL, DType::kIQ4_XS,
                                           DType::kMXFP4),
                         type_name);

// ---- the same bits on every instruction set ----

TEST_P(QuantizedMatmul, EveryNumberOfBlocksGivesTheBitsOfThePlainLoops) {
  const int64_t block = dtype_info(GetParam()).block_values;
  for (int64_t blocks = 1; blocks <= 9; ++blocks) {
    std::mt19937 random(static_cast<uint32_t>(blocks));
    const Problem p(GetParam(), 1 + blocks % 4, 16 + 5 * blocks, blocks * block, random);
    expect_all_isas_agree(p, "seed " + std::to_string(blocks));
  }
  // Around one, two and three panels of 16 blocks of 32.
  for (int64_t cols : {480, 512, 544, 768, 992, 1024, 1056, 1280, 1536, 1568}) {
    if (cols % block != 0) continue;
    std::mt19937 random(static_cast<uint32_t>(cols));
    const Problem p(GetParam(), 3, 37, cols, random);
    expect_all_isas_agree(p, "seed " + std::to_string(cols));
  }
}

TEST_P(FloatMatmul, EveryLengthGivesTheBitsOfThePlainLoops) {
  for (int64_t cols = 1; cols <= 257; ++cols) {
    std::mt19937 random(static_cast<uint32_t>(cols));
    const Problem p(GetParam(), 1 + cols % 9, 1 + cols % 7, cols, random);
    expect_all_isas_agree(p, "seed " + std::to_string(cols));
  }
  // Around the stretches of K that many tokens are taken in.
  for (int64_t cols : {1023, 1024, 1025, 2047, 2048, 2051}) {
    for (int64_t tokens : {2, 8}) {
      std::mt19937 random(static_cast<uint32_t>(cols));
      const Problem p(GetParam(), tokens, 6, cols, random);
      expect_all_isas_agree(p, "seed " + std::to_string(cols));
    }
  }
}

TEST_P(AnyMatmul, EveryNumberOfRowsAndTokensGivesTheBitsOfThePlainLoops) {
  const int64_t cols = std::max<int64_t>(64, dtype_info(GetParam()).block_values);
  for (int64_t n = 1; n <= 40; ++n) {
    std::mt19937 random(static_cast<uint32_t>(n));
    expect_all_isas_agree(Problem(GetParam(), 1 + n * 3 % 8, n, cols, random),
                          "seed " + std::to_string(n));
    expect_all_isas_agree(Problem(GetParam(), n, 17 + n % 3 * 8, cols, random),
                          "second of seed " + std::to_string(n));
  }
  for (int64_t n : {63, 64, 65, 96, 97}) {
    std::mt19937 random(static_cast<uint32_t>(n));
    expect_all_isas_agree(Problem(GetParam(), 7, n, cols, random), "seed " + std::to_string(n));
  }
}

TEST_P(QuantizedMatmul, ExtremeScalesAndCodesGiveTheBitsOfThePlainLoops) {
  const int64_t cols = 2 * std::max<int64_t>(64, dtype_info(GetParam()).block_values);
  for (uint32_t seed = 0; seed < 12; ++seed) {
    std::mt19937 random(seed);
    Problem p(GetParam(), 7, 33, cols, random, Scales::kExtreme);
    // All weights at one end of their range, all activations at +-127: the largest sums of
    // products.
    const bool lowest = seed % 2 == 0;
    for (int64_t row = 0; row < 8; ++row) {
      for (int64_t b = 0; b < cols / dtype_info(p.type).block_values; ++b) {
        const auto block_bytes = static_cast<size_t>(dtype_info(p.type).block_bytes);
        std::byte* block =
            p.weights.data() + 1 + row * p.w().row_stride() + b * static_cast<int64_t>(block_bytes);
        std::vector<std::byte> kept(block, block + block_bytes);
        const uint8_t end = p.type == DType::kQ8_0 ? (lowest ? 0x80 : 0x7f) : (lowest ? 0 : 0xff);
        std::memset(block, end, block_bytes);
        for (size_t f : f16_fields(p.type)) std::memcpy(block + f, &kept[f], sizeof(f16));
        if (p.type == DType::kMXFP4) block[0] = kept[0];
      }
    }
    for (int64_t k = 0; k < cols; ++k) {
      p.x[static_cast<size_t>(1 + k)] = 5.0f;
      p.x[static_cast<size_t>(1 + (cols + 3) + k)] = -5.0f;
      p.x[static_cast<size_t>(1 + 2 * (cols + 3) + k)] = 0.0f;
      p.x[static_cast<size_t>(1 + 3 * (cols + 3) + k)] = k % 2 ? 1e30f : -1e30f;
      p.x[static_cast<size_t>(1 + 4 * (cols + 3) + k)] *= 1e-30f;
    }
    p.x[static_cast<size_t>(1 + 5 * (cols + 3) + 9)] = INFINITY;
    expect_all_isas_agree(p, "seed " + std::to_string(seed));
    const auto out = multiply(context(detect_isa()), p);
    for (int64_t n = 0; n < p.rows; ++n) {
      EXPECT_TRUE(
          std::isnan(out[static_cast<size_t>(5 * (p.rows + 5) + n)]));  // the infinity's row
      EXPECT_FALSE(std::isnan(out[static_cast<size_t>(6 * (p.rows + 5) + n)]));  // its neighbour
    }
  }
}

TEST_P(FloatMatmul, ExtremeValuesGiveTheBitsOfThePlainLoops) {
  const float extremes[] = {0.0f, -0.0f, 1e-45f, -1e-38f, 3e38f, -3e38f, INFINITY, NAN, 65504.0f};
  for (uint32_t seed = 0; seed < 12; ++seed) {
    std::mt19937 random(seed);
    Problem p(GetParam(), 8, 9, 50, random);
    for (size_t i = 1; i < p.x.size(); i += 1 + random() % 40) p.x[i] = extremes[random() % 9];
    std::vector<float> w(static_cast<size_t>(p.rows * p.cols));
    for (float& v : w) v = random() % 30 ? 1e-20f : extremes[random() % 9];
    quantize_row(p.type, w, p.weights.data() + 1);
    expect_all_isas_agree(p, "seed " + std::to_string(seed));
  }
}

// ---- results do not depend on company ----

TEST_P(AnyMatmul, ATokenHasTheSameBitsAloneAndInAnyBatchOnAnyNumberOfThreads) {
  std::mt19937 random(1);
  // Enough tokens and rows for several tasks of both kinds.
  const Problem p(GetParam(), 130, 100, 1280, random);
  const Isa isa = detect_isa();
  const auto expected = multiply(context(isa), p);
  for (int threads : {2, 4}) {
    EXPECT_TRUE(same_bits(expected, multiply(context(isa, threads), p))) << threads << " threads";
  }
  const int64_t stride = p.rows + 5;
  for (int64_t size : {1, 2, 5, 6, 7, 13}) {
    for (int64_t t = 0; t + size <= p.tokens; t += 1 + size * 3) {
      const auto got = multiply(context(isa, 2), p, t, t + size);
      const std::vector<float> same(expected.begin() + t * stride,
                                    expected.begin() + (t + size) * stride + 1);
      auto wanted = same;
      wanted.back() = kUntouched;
      ASSERT_TRUE(same_bits(wanted, got)) << size << " tokens from " << t;
    }
  }
}

TEST_P(AnyMatmul, RoundedChangesNothingWhereItIsNotTaken) {
  std::mt19937 random(10);
  Problem p(GetParam(), 5, 40, 512, random);
  for (Isa isa : available_isas()) {
    if (takes_rounded(isa, p.type)) continue;
    p.rounded = false;
    const auto expected = multiply(context(isa), p);
    p.rounded = true;
    EXPECT_TRUE(same_bits(expected, multiply(context(isa), p))) << isa_name(isa);
  }
}

// ---- ends ----

// What a job with this end writes over `before`, by its steps.
std::vector<float> ended(const Problem& p, const MatmulEnd& end, const std::vector<float>& sums,
                         const std::vector<float>& before) {
  std::vector<float> out = before;
  const int64_t stride = p.rows + 5;
  for (int64_t t = 0; t < p.tokens; ++t) {
    for (int64_t n = 0; n < p.rows; ++n) {
      const auto i = static_cast<size_t>(t * stride + n);
      float y = sums[i];
      if (end.bias != nullptr) y += end.bias[n];
      if (end.gelu) y = gelu_of(y);
      out[i] = end.add ? before[i] + y : y;
    }
  }
  return out;
}

// Few tokens, and several tasks of many; on the matrix unit by its three ways, with sums that rest.
TEST_P(AnyMatmul, AnEndGivesTheBitsOfItsStepsAfterTheSums) {
  struct Shape {
    int64_t tokens, rows, cols;
  };
  for (const Shape shape : {Shape{1, 9, 256}, {7, 70, 512}, {17, 96, 256}, {70, 150, 2304}}) {
    std::mt19937 random(static_cast<uint32_t>(shape.rows));
    Problem p(GetParam(), shape.tokens, shape.rows, shape.cols, random);
    const auto bias = random_floats(p.rows, random);
    for (Isa isa : available_isas()) {
      for (const bool rounded : {false, true}) {
        if (rounded && !takes_rounded(isa, p.type)) continue;
        p.rounded = rounded;
        const auto sums = multiply(context(isa, 2), p);
        const auto before = random_floats(static_cast<int64_t>(sums.size()), random);
        for (int steps = 1; steps < 8; ++steps) {
          const MatmulEnd end{.bias = steps & 1 ? bias.data() : nullptr,
                              .gelu = (steps & 2) != 0,
                              .add = (steps & 4) != 0};
          auto out = before;
          Int8Rows x8;
          MatmulJob job{.x = p.x_view(),
                        .w = p.w(),
                        .out = {out.data(), p.tokens, p.rows, p.rows + 5},
                        .end = end,
                        .rounded = rounded};
          if (takes_8_bits(isa, p)) {
            quantize_rows(context(isa), job.x, x8);
            job.x8 = &x8;
          }
          matmul(context(isa, 2), {&job, 1});
          ASSERT_TRUE(same_bits(ended(p, end, sums, before), out))
              << isa_name(isa) << " T=" << p.tokens << " N=" << p.rows << " steps " << steps
              << (rounded ? " rounded" : "");
        }
      }
    }
  }
}

TEST(Matmul, AnEmptySumHasAnEndToo) {
  const std::vector<float> bias = {1, 2, 3};
  for (Isa isa : available_isas()) {
    std::vector<float> out = {10, 20, 30, 40, 50, 60};
    const MatmulJob job{.x = {nullptr, 2, 0, 0},
                        .w = {nullptr, DType::kF32, 3, 0},
                        .out = {out.data(), 2, 3, 3},
                        .end = {.bias = bias.data(), .add = true}};
    matmul(context(isa), {&job, 1});
    EXPECT_EQ(out, (std::vector<float>{11, 22, 33, 41, 52, 63}));
  }
}

TEST(Matmul, JobsOfOneCallGiveTheBitsOfSeparateCalls) {
  for (Isa isa : available_isas()) {
    std::mt19937 random(3);
    std::vector<Problem> problems;
    for (DType type : {DType::kQ4_0, DType::kBF16, DType::kQ6_K, DType::kF32, DType::kQ8_0}) {
      for (int64_t tokens : {0, 1, 9, 50}) problems.emplace_back(type, tokens, 70, 512, random);
    }
    problems.emplace_back(DType::kF32, 3, 0, 16, random);
    std::vector<Int8Rows> x8(problems.size());
    std::vector<std::vector<float>> out(problems.size());
    std::vector<MatmulJob> jobs;
    for (size_t i = 0; i < problems.size(); ++i) {
      const Problem& p = problems[i];
      const int64_t stride = p.rows + 5;
      out[i].assign(static_cast<size_t>(p.tokens * stride + 1), kUntouched);
      MatmulJob job{.x = p.x_view(), .w = p.w(), .out = {out[i].data(), p.tokens, p.rows, stride}};
      if (is_quantized(p.type)) {
        quantize_rows(context(isa, 4), p.x_view(), x8[i]);
        job.x8 = &x8[i];
      }
      jobs.push_back(job);
    }
    matmul(context(isa, 4), jobs);
    for (size_t i = 0; i < problems.size(); ++i) {
      EXPECT_TRUE(same_bits(multiply(context(isa), problems[i]), out[i]))
          << isa_name(isa) << " job " << i;
    }
  }
}

// Tasks run side by side: none may write a row of another, not even the value it would have anyway.
TEST_P(AnyMatmul, ATileWritesItsOwnRowsOnly) {
  std::mt19937 random(7);
  const Problem p(GetParam(), 7, 70, 768, random);
  Int8Rows x8;
  quantize_rows(context(Isa::kPlain), p.x_view(), x8);
  AlignedArray<std::byte> scratch(static_cast<size_t>(
      std::max(internal::matmul_scratch_bytes(p.type, p.cols, p.tokens),
               internal::packed_scratch_bytes(p.rows, p.tokens, p.cols, p.cols))));
  for (Isa isa : available_isas()) {
    const auto expected = multiply(context(isa), p);
    const auto kernel = internal::matmul_tile_kernel(isa);
    AlignedArray<std::byte> packed;
    for (auto [begin, end] : {std::pair<int64_t, int64_t>{0, 32}, {32, 64}, {64, 70}}) {
      std::vector<float> out(static_cast<size_t>(p.tokens * 75), kUntouched);
      internal::MatmulTile tile{};
      tile.type = p.type;
      tile.cols = p.cols;
      tile.w = p.w().data;
      tile.w_stride = p.w().row_stride();
      tile.w_rows = p.rows;
      tile.row_begin = begin;
      tile.row_end = end;
      tile.next_row = end;
      tile.tokens = p.tokens;
      tile.x = p.x_view().data;
      tile.x_stride = p.x_view().stride;
      tile.x8 = x8.row(0);
      tile.x8_stride = x8.blocks_per_row();
#if defined(__x86_64__)
      if (on_matrix_unit(isa, p)) {
        // 70 rows are not whole tiles, so tokens come as two tiles of 16.
        internal::PackedTokens& form = tile.packed;
        form = {packed.data(), 64, 2 * 1024, 8 * 4 * 1024, /*terms=*/2};
        packed.reserve_discarding(static_cast<size_t>(3 * form.panel_bytes));
        internal::pack_amx(tile.x, tile.x_stride, p.tokens, p.cols, form, packed.data());
        form.data = packed.data();
        tile.cut_cols = p.cols;
      }
#endif
      tile.out = out.data();
      tile.out_stride = 75;
      tile.scratch = scratch.data();
      kernel(tile);
      for (int64_t i = 0; i < p.tokens * 75; ++i) {
        const bool own = i % 75 >= begin && i % 75 < end;
        ASSERT_EQ(out[static_cast<size_t>(i)], own ? expected[static_cast<size_t>(i)] : kUntouched)
            << isa_name(isa) << " rows from " << begin << ", token " << i / 75 << " row " << i % 75;
      }
    }
  }
}

// ---- the right numbers ----

// Float rounds each of the steps in the contract of matmul.h by at most u = 2^-24 of its result.
// Per block that is one or two steps for y and one for acc, which later steps carry along, so after
// B blocks |error| <= (B + 2) u * (sum of the magnitudes of all terms), up to second order.
TEST_P(QuantizedMatmul, PlainLoopsAreTheDotProductOfWhatTheBlocksStandFor) {
  for (uint32_t seed = 0; seed < 4; ++seed) {
    std::mt19937 random(seed);
    const Problem p(GetParam(), 3, 5, 1024, random);
    const auto out = multiply(context(Isa::kPlain), p);
    Int8Rows x8;
    quantize_rows(context(Isa::kPlain), p.x_view(), x8);
    const int64_t blocks = p.cols / 32;
    for (int64_t t = 0; t < p.tokens; ++t) {
      for (int64_t n = 0; n < p.rows; ++n) {
        double sum = 0, magnitude = 0;
        for (int64_t b = 0; b < blocks; ++b) {
          const Block32 w = unpack_block(p.type, p.w().row(n), b);
          const Int8Block& x = x8.row(t)[b];
          for (int j = 0; j < 32; ++j) {
            const int steps = w.form == BlockForm::kTwoMinima ? w.m[j / 16] : 1;
            const double minimum = double{w.minimum} * steps;
            const double weight = double{w.scale[j / 16]} * w.q[j] + minimum;
            sum += weight * x.q[j] * double{x.scale};
            magnitude += (std::fabs(double{w.scale[j / 16]} * w.q[j]) + std::fabs(minimum)) *
                         std::abs(x.q[j]) * double{x.scale};
          }
        }
        ASSERT_NEAR(out[static_cast<size_t>(t * (p.rows + 5) + n)], sum,
                    1.01 * static_cast<double>(blocks + 2) * 0x1p-24 * magnitude)
            << "seed " << seed << " t=" << t << " n=" << n;
      }
    }
  }
}

// The 8-bit form of the activations is off by half a step of max / 127 at most, so each block adds
// no more than that times its weights' magnitudes to the difference from the float product.
TEST_P(QuantizedMatmul, EightBitActivationsCostAtMostHalfAStepEach) {
  std::mt19937 random(8);
  const Problem p(GetParam(), 4, 20, 1024, random);
  const auto out = multiply(context(detect_isa()), p);
  std::vector<float> w(static_cast<size_t>(p.cols));
  for (int64_t n = 0; n < p.rows; ++n) {
    dequantize_row(p.type, p.w().row(n), w);
    for (int64_t t = 0; t < p.tokens; ++t) {
      const float* x = p.x_view().row(t);
      double sum = 0, bound = 0;
      for (int64_t b = 0; b < p.cols / 32; ++b) {
        double largest = 0, weights = 0;
        for (int64_t k = 32 * b; k < 32 * (b + 1); ++k) {
          sum += double{x[k]} * w[static_cast<size_t>(k)];
          largest = std::max(largest, std::fabs(double{x[k]}));
          weights += std::fabs(double{w[static_cast<size_t>(k)]});
        }
        // 1 % on top for float's own rounding.
        bound += 1.01 * 0.5 * largest / 127 * weights;
      }
      ASSERT_NEAR(out[static_cast<size_t>(t * (p.rows + 5) + n)], sum, bound) << t << ' ' << n;
    }
  }
}

// Each lane takes ceil(K / 16) fma steps and the tree 4 more, each off by u of its result.
TEST_P(FloatMatmul, PlainLoopsAreTheDotProduct) {
  for (int64_t cols : {1, 15, 16, 17, 100, 1000}) {
    std::mt19937 random(static_cast<uint32_t>(cols));
    const Problem p(GetParam(), 3, 5, cols, random);
    const auto out = multiply(context(Isa::kPlain), p);
    std::vector<float> w(static_cast<size_t>(cols));
    for (int64_t n = 0; n < p.rows; ++n) {
      dequantize_row(p.type, p.w().row(n), w);
      for (int64_t t = 0; t < p.tokens; ++t) {
        double sum = 0, magnitude = 0;
        for (int64_t k = 0; k < cols; ++k) {
          const double term = double{p.x_view().row(t)[k]} * w[static_cast<size_t>(k)];
          sum += term;
          magnitude += std::fabs(term);
        }
        const double steps = static_cast<double>((cols + 15) / 16 + 4);
        ASSERT_NEAR(out[static_cast<size_t>(t * (p.rows + 5) + n)], sum,
                    1.01 * steps * 0x1p-24 * magnitude)
            << "seed " << cols << " t=" << t << " n=" << n;
      }
    }
  }
}

TEST(Matmul, EmptyShapesGiveEmptySums) {
  for (Isa isa : available_isas()) {
    std::mt19937 random(4);
    const Problem none(DType::kF32, 2, 3, 0, random);
    const auto out = multiply(context(isa), none);
    for (size_t i = 0; i < out.size(); ++i) {
      EXPECT_EQ(out[i], i % 8 < 3 && i < 16 ? 0.0f : kUntouched) << i;
    }
    EXPECT_NO_THROW(multiply(context(isa), Problem(DType::kQ4_0, 0, 3, 64, random)));
    EXPECT_NO_THROW(multiply(context(isa), Problem(DType::kQ4_0, 2, 0, 64, random)));
    EXPECT_NO_THROW(matmul(context(isa), {}));
  }
}

TEST(Matmul, ShapesThatDoNotFitAreRefused) {
  std::mt19937 random(5);
  const Problem p(DType::kQ4_0, 2, 16, 64, random);
  std::vector<float> out(1000);
  Context& c = context(Isa::kPlain);
  Int8Rows x8;
  quantize_rows(c, p.x_view(), x8);
  const MatmulJob good{.x = p.x_view(), .x8 = &x8, .w = p.w(), .out = {out.data(), 2, 16, 16}};
  EXPECT_NO_THROW(matmul(c, {&good, 1}));
  auto refused = [&](auto change) {
    MatmulJob job = good;
    change(job);
    EXPECT_THROW(matmul(c, {&job, 1}), Error);
  };
  refused([](MatmulJob& j) { j.x8 = nullptr; });
  refused([](MatmulJob& j) { j.x8_row = 1; });
  refused([](MatmulJob& j) { j.x.cols = 32; });
  refused([](MatmulJob& j) { j.out.cols = 15; });
  refused([](MatmulJob& j) { j.out.rows = 1; });
  refused([](MatmulJob& j) { j.w.type = DType::kI32; });
  refused(
      [](MatmulJob& j) { j.w.type = DType::kF32; });  // and an 8-bit form that it has no use for
}

}  // namespace
}  // namespace drover
