#include "kernels/matmul/matmul.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/aligned.h"
#include "base/error.h"
#include "kernels/math/gelu.h"
#include "kernels/matmul/matmul_kernels.h"
#include "tensor/dequantize.h"
#include "tensor/float16.h"
#include "tensor/quantize.h"

namespace drover {
namespace {

constexpr DType kQuantized[] = {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1,   DType::kQ5_0,
                                DType::kQ5_1, DType::kQ4_K, DType::kQ5_K,   DType::kQ6_K,
                                DType::kQ2_K, DType::kQ3_K, DType::kIQ4_NL, DType::kIQ4_XS,
                                DType::kMXFP4};
constexpr DType kFloats[] = {DType::kF32, DType::kF16, DType::kBF16};

// One Context per instruction set and number of threads; making threads anew would take longer than
// the products.
Context& context(Isa isa, int threads = 1) {
  static std::vector<std::unique_ptr<Context>> made;
  for (auto& c : made) {
    if (c->isa == isa && c->threads.size() == threads) return *c;
  }
  return *made.emplace_back(std::make_unique<Context>(threads, isa));
}

// Every set but the plain one, against which they are held.
std::vector<Isa> fast_isas() {
  auto isas = available_isas();
  isas.erase(isas.begin());
  return isas;
}

// The offsets of the f16 numbers in a block.
std::vector<size_t> f16_fields(DType type) {
  switch (type) {
    case DType::kQ4_1:
    case DType::kQ5_1:
    case DType::kQ4_K:
    case DType::kQ5_K:
      return {0, 2};
    case DType::kQ6_K:
      return {208};
    case DType::kQ2_K:
      return {80, 82};
    case DType::kQ3_K:
      return {108};
    case DType::kMXFP4:
      return {};  // its scale is a byte: see random_weights
    default:
      return {0};
  }
}

enum class Scales { kUsual, kExtreme };

// Blocks of random bits, so that every code occurs, with scales that are numbers: around 0.01, or
// zero, subnormal and the largest.
std::vector<std::byte> random_weights(DType type, int64_t values, std::mt19937& random,
                                      Scales scales = Scales::kUsual) {
  std::vector<std::byte> out(static_cast<size_t>(row_bytes(type, values)));
  std::normal_distribution<float> normal(0, 0.01f);
  if (!is_quantized(type)) {
    std::vector<float> x(static_cast<size_t>(values));
    for (float& v : x) v = normal(random);
    quantize_row(type, x, out.data());
    return out;
  }
  for (std::byte& b : out) b = static_cast<std::byte>(random());
  const auto block = static_cast<size_t>(dtype_info(type).block_bytes);
  const uint16_t extremes[] = {0, 0x8000, 0x0001, 0x83ff, 0x7bff, 0xfbff, 0x0400};
  for (size_t b = 0; b < out.size(); b += block) {
    for (size_t field : f16_fields(type)) {
      const f16 d = scales == Scales::kUsual ? to_f16(normal(random)) : f16{extremes[random() % 7]};
      std::memcpy(&out[b + field], &d, sizeof(d));
    }
    if (type == DType::kMXFP4) {
      // Powers of two around 0.01; or both subnormals, 2^-127 and the largest that the sums of
      // products with 1e30 below stay finite with.
      const uint8_t far[] = {0, 1, 2, 127, 140};
      out[b] =
          static_cast<std::byte>(scales == Scales::kUsual ? 118 + random() % 4 : far[random() % 5]);
    }
  }
  return out;
}

std::vector<float> random_floats(int64_t count, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<size_t>(count));
  for (float& v : out) v = normal(random);
  return out;
}

// One product with all that it reads. Weights lie at an odd address, x at an odd float, and there
// is room between the rows.
struct Problem {
  DType type;
  int64_t tokens, rows, cols;
  bool rounded = false;
  int64_t first = 1;
  std::vector<std::byte> weights;  // from byte `first` on
  std::vector<float> x;            // from float 1 on, rows cols + 3 apart

  Problem(DType type, int64_t tokens, int64_t rows, int64_t cols, std::mt19937& random,
          Scales scales = Scales::kUsual)
      : type(type), tokens(tokens), rows(rows), cols(cols), weights(1) {
    const auto w = random_weights(type, rows * cols, random, scales);
    weights.insert(weights.end(), w.begin(), w.end());
    x = random_floats(1 + tokens * (cols + 3), random);
  }

  // Weights on a cache line instead, where the matrix unit loads them as they lie.
  void align_weights() {
    const std::vector<std::byte> bytes(weights.begin() + first, weights.end());
    weights.assign(bytes.size() + 64, std::byte{});
    first = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(weights.data()) % 64);
    std::copy(bytes.begin(), bytes.end(), weights.begin() + first);
  }

  WeightView w() const { return {weights.data() + first, type, rows, cols}; }
  ConstMatrixView x_view() const { return {x.data() + 1, tokens, cols, cols + 3}; }
};

constexpr float kUntouched = -12345.0f;

bool takes_8_bits(Isa isa, const Problem& p) {
  return is_quantized(p.type) && !(p.rounded && takes_rounded(isa, p.type));
}

// The outputs of tokens [begin, end), rows stride floats apart, `kUntouched` between them.
std::vector<float> multiply(Context& context, const Problem& p, int64_t begin = 0,
                            int64_t end = -1) {
  if (end < 0) end = p.tokens;
  const int64_t stride = p.rows + 5;
  std::vector<float> out(static_cast<size_t>((end - begin) * stride + 1), kUntouched);
  Int8Rows x8;
  MatmulJob job{.x = p.x_view(),
                .w = p.w(),
                .out = {out.data(), end - begin, p.rows, stride},
                .rounded = p.rounded};
  if (takes_8_bits(context.isa, p)) {
    quantize_rows(context, job.x, x8);
    job.x8 = &x8;
    job.x8_row = begin;
  }
  job.x.data += begin * job.x.stride;
  job.x.rows = end - begin;
  matmul(context, {&job, 1});
  return out;
}

// A number too small for a normal float is a zero of its sign to the matrix unit.
float flushed(float v) { return std::fabs(v) < 0x1p-126f ? std::copysign(0.0f, v) : v; }

// The plain twin of the matrix unit: its definition of matmul.h as loops.
std::vector<float> multiply_like_matrix_unit(const Problem& p) {
  const int64_t stride = p.rows + 5;
  const auto cols = static_cast<size_t>(p.cols), padded = (cols + 31) / 32 * 32;
  std::vector<float> out(static_cast<size_t>(p.tokens * stride + 1), kUntouched);
  std::vector<float> weights(padded);
  std::vector<std::vector<float>> terms[2];  // [high, low][token][k]
  for (int64_t t = 0; t < p.tokens; ++t) {
    for (auto& term : terms) term.emplace_back(padded);
    for (size_t k = 0; k < cols; ++k) {
      const float x = p.x_view().row(t)[k], high = to_float(to_bf16(x));
      terms[0].back()[k] = flushed(high);
      if (std::isfinite(high)) terms[1].back()[k] = flushed(to_float(to_bf16(x - high)));
    }
  }
  for (int64_t n = 0; n < p.rows; ++n) {
    dequantize_row(p.type, p.w().row(n), {weights.data(), cols});
    for (float& w : weights) w = flushed(to_float(to_bf16(w)));
    for (int64_t t = 0; t < p.tokens; ++t) {
      float acc = 0;
      for (size_t first = 0; first < padded; first += 32) {
        for (int term = 0; term < (p.rounded ? 1 : 2); ++term) {
          const auto& x = terms[term][static_cast<size_t>(t)];
          float sums[2] = {0, 0};
          for (size_t k = first; k < first + 32; ++k) {
            sums[k % 2] = flushed(std::fma(weights[k], x[k], sums[k % 2]));
          }
          acc = flushed(acc + flushed(sums[0] + sums[1]));
        }
      }
      out[static_cast<size_t>(t * stride + n)] = acc;
    }
  }
  return out;
}

// Whether the matrix unit has a say in this product.
bool on_matrix_unit(Isa isa, const Problem& p) {
  return isa == Isa::kAmx && (p.type == DType::kBF16 || (p.rounded && takes_rounded(isa, p.type)));
}

// Equal to the bit; any NaN equals any other.
::testing::AssertionResult same_bits(const std::vector<float>& expected,
                                     const std::vector<float>& got) {
  if (expected.size() != got.size()) return ::testing::AssertionFailure() << "sizes differ";
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(expected[i]) && std::isnan(got[i])) continue;
    if (std::bit_cast<uint32_t>(expected[i]) != std::bit_cast<uint32_t>(got[i])) {
      return ::testing::AssertionFailure()
             << "index " << i << ": expected " << expected[i] << ", got " << got[i];
    }
  }
  return ::testing::AssertionSuccess();
}

void expect_all_isas_agree(const Problem& p, const std::string& what) {
  const auto expected = multiply(context(Isa::kPlain), p);
  const int64_t stride = p.rows + 5;
  for (size_t i = 0; i < expected.size(); ++i) {
    const bool between = static_cast<int64_t>(i) % stride >= p.rows || i + 1 == expected.size();
    ASSERT_EQ(expected[i] == kUntouched, between) << "plain, index " << i << ", " << what;
  }
  for (Isa isa : fast_isas()) {
    const auto wanted = on_matrix_unit(isa, p) ? multiply_like_matrix_unit(p) : expected;
    ASSERT_TRUE(same_bits(wanted, multiply(context(isa), p)))
        << isa_name(isa) << ' ' << dtype_name(p.type) << " T=" << p.tokens << " N=" << p.rows
        << " K=" << p.cols << ", " << what;
  }
}

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

// ---- the matrix unit ----

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

// ---- the 8-bit form ----

TEST(Int8Rows, EveryIsaGivesTheBitsOfThePlainLoop) {
  // Kernels take four blocks at once, and one by one what is left.
  constexpr int64_t kRows = 9, kBlocks = 7, kCols = 32 * kBlocks;
  for (uint32_t seed = 0; seed < 50; ++seed) {
    std::mt19937 random(seed);
    std::vector<float> x = random_floats(1 + kRows * kCols, random);
    const float special[] = {0.0f,     -0.0f,    1e-45f,    1e-36f, 3.4e38f,
                             -3.4e38f, INFINITY, -INFINITY, NAN};
    const float factor = std::pow(10.0f, static_cast<float>(static_cast<int>(random() % 76) - 38));
    for (float& v : x) v *= factor;
    // Every other time so rarely that four blocks in a row are free of them.
    const uint32_t gap = seed % 2 == 0 ? 90 : 900;
    for (size_t i = 0; i < x.size(); i += 1 + random() % gap) x[i] = special[random() % 9];
    if (seed == 0) std::fill(x.begin(), x.end(), 0.0f);
    if (seed == 1)
      for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 64) / 2 - 15.5f;
    Int8Rows plain;
    quantize_rows(context(Isa::kPlain), {x.data() + 1, kRows, kCols, kCols}, plain);
    for (Isa isa : fast_isas()) {
      Int8Rows fast;
      quantize_rows(context(isa), {x.data() + 1, kRows, kCols, kCols}, fast);
      for (int64_t b = 0; b < kRows * kBlocks; ++b) {
        Int8Block expected = plain.row(0)[b], got = fast.row(0)[b];
        if (std::isnan(expected.scale) && std::isnan(got.scale)) expected.scale = got.scale = 0;
        ASSERT_EQ(std::memcmp(&expected, &got, sizeof(got)), 0)
            << isa_name(isa) << " seed " << seed << " block " << b;
      }
    }
  }
}

TEST(Int8Rows, ABlockIsItsDefinition) {
  std::mt19937 random(6);
  const std::vector<float> x = random_floats(64 * 32, random);
  Int8Rows rows;
  quantize_rows(context(detect_isa(), 2), {x.data(), 64, 32, 32}, rows);
  for (int64_t r = 0; r < 64; ++r) {
    const Int8Block& block = rows.row(r)[0];
    float largest = 0;
    int sums[2] = {0, 0}, extreme = 0;
    for (int64_t j = 0; j < 32; ++j) {
      const float v = x[static_cast<size_t>(32 * r + j)];
      largest = std::max(largest, std::fabs(v));
      // Half a step, and a little for the two roundings of the factor and the product.
      EXPECT_NEAR(v, block.scale * block.q[j], block.scale * 0.5001f);
      sums[j / 16] += block.q[j];
      extreme = std::max(extreme, std::abs(block.q[j]));
    }
    EXPECT_EQ(extreme, 127);
    EXPECT_EQ(block.scale, largest / 127);
    EXPECT_EQ(block.sum, static_cast<float>(sums[0] + sums[1]));
    EXPECT_EQ(block.start8, kFloatStart - 8 * (sums[0] + sums[1]));
    EXPECT_EQ(block.start16, kFloatStart - 16 * (sums[0] + sums[1]));
    EXPECT_EQ(block.start128, kFloatStart - 128 * (sums[0] + sums[1]));
    EXPECT_EQ(block.start32[0], kFloatStart - 32 * sums[0]);
    EXPECT_EQ(block.start32[1], kFloatStart - 32 * sums[1]);
    EXPECT_EQ(block.sums[0], sums[0]);
    EXPECT_EQ(block.sums[1], sums[1]);
  }
  EXPECT_THROW(rows.resize(1, 33), Error);
}

}  // namespace
}  // namespace drover
