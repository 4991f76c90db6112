// Activations in their 8-bit form.
#include "kernels/matmul/int8_rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "base/error.h"
#include "kernels/matmul/matmul_fixture.h"

namespace drover {
namespace {

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
