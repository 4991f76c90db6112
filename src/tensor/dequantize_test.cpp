#include "tensor/dequantize.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <set>

#include "base/error.h"
#include "tensor/blocks.h"
#include "tensor/blocks_fixture.h"
#include "tensor/float16.h"

namespace drover {
namespace {

constexpr DType kQuantized[] = {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1,   DType::kQ5_0,
                                DType::kQ5_1, DType::kQ4_K, DType::kQ5_K,   DType::kQ6_K,
                                DType::kQ2_K, DType::kQ3_K, DType::kIQ4_NL, DType::kIQ4_XS,
                                DType::kMXFP4};

TEST(Dequantize, EveryBlockFormatGivesTheBitsOfTheReferencePackage) {
  std::set<DType> seen;
  for (const BlocksRecord& record : read_blocks_fixture()) {
    if (record.direction != BlocksRecord::kDequantized) continue;
    seen.insert(record.type);
    std::vector<float> out(record.floats.size());
    dequantize_row(record.type, record.blocks.data(), out);
    for (size_t i = 0; i < out.size(); ++i) {
      ASSERT_EQ(std::bit_cast<uint32_t>(out[i]), std::bit_cast<uint32_t>(record.floats[i]))
          << dtype_name(record.type) << " value " << i << ": expected " << record.floats[i]
          << ", got " << out[i];
    }
  }
  EXPECT_EQ(seen, std::set<DType>(std::begin(kQuantized), std::end(kQuantized)));
}

// One Q4_K block written down by hand from the spec's formulas, so that the fixture is not our only
// witness: d = 2, dmin = 0.5, sub-block 5 with scale 37 = 0b100101 and min 50 = 0b110010.
TEST(Dequantize, AQ4KBlockFollowsTheSpecByHand) {
  BlockQ4_K block{};
  block.d = to_f16(2.0f);
  block.dmin = to_f16(0.5f);
  block.scales[9] = (37 & 15) | (50 & 15) << 4;  // lower bits of both
  block.scales[1] = (37 >> 4) << 6;              // upper bits of the scale
  block.scales[5] = (50 >> 4) << 6;              // upper bits of the minimum
  block.q[2 * 32 + 7] = 11 << 4;                 // value 7 of sub-block 5
  std::vector<float> out(256);
  dequantize_row(DType::kQ4_K, reinterpret_cast<const std::byte*>(&block), out);
  EXPECT_EQ(out[5 * 32 + 7], 2.0f * 37 * 11 - 0.5f * 50);
  EXPECT_EQ(out[5 * 32 + 8], -25.0f);
  EXPECT_EQ(out[0], 0.0f);
}

// The same for Q3_K: sub-block 14 has the scale 41 - 32, its value 3 the code 0b101.
TEST(Dequantize, AQ3KBlockByHand) {
  BlockQ3_K block{};
  block.d = to_f16(0.5f);
  block.scales[6] = (41 & 15) << 4;   // lower bits, of the second eight
  block.scales[10] = (41 >> 4) << 6;  // upper bits, of the last four
  block.low[32 + 3] = 1 << 6;         // values 224 ... 255 of the second half: s = 3
  block.high[3] = 1 << 7;             // bit of the last 32 values
  std::vector<float> out(256);
  dequantize_row(DType::kQ3_K, reinterpret_cast<const std::byte*>(&block), out);
  EXPECT_EQ(out[224 + 3], 0.5f * (41 - 32) * (5 - 4));
  EXPECT_EQ(out[224 + 4], 0.5f * (41 - 32) * (0 - 4));
  EXPECT_EQ(out[0], 0.5f * (0 - 32) * (0 - 4));
}

// The values of OCP Microscaling v1.0, table 5 (E2M1), with the scales 2^0 and 2^-1.
TEST(Dequantize, Mxfp4GivesTheFourBitFloatsOfItsSpecification) {
  const float magnitudes[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  for (int exponent : {127, 126}) {
    BlockMXFP4 block{};
    block.exponent = static_cast<uint8_t>(exponent);
    for (int j = 0; j < 16; ++j) block.q[j] = static_cast<uint8_t>(j | (15 - j) << 4);
    std::vector<float> out(32);
    dequantize_row(DType::kMXFP4, reinterpret_cast<const std::byte*>(&block), out);
    const float scale = exponent == 127 ? 1.0f : 0.5f;
    for (size_t j = 0; j < 16; ++j) {
      EXPECT_EQ(out[j], (j < 8 ? 1 : -1) * magnitudes[j % 8] * scale) << j;
      EXPECT_EQ(out[16 + j], (j < 8 ? -1 : 1) * magnitudes[7 - j % 8] * scale) << j;
    }
  }
}

TEST(Dequantize, PlainTypesComeThroughExactlyAtAnyAddress) {
  for (size_t offset = 0; offset < 4; ++offset) {
    std::vector<std::byte> bytes(offset + 4 * 5);
    const float values[5] = {1.5f, -0.0f, INFINITY, 1e-40f, -2.25f};
    std::memcpy(bytes.data() + offset, values, sizeof(values));
    std::vector<float> out(5);
    dequantize_row(DType::kF32, bytes.data() + offset, out);
    EXPECT_EQ(std::memcmp(out.data(), values, sizeof(values)), 0);

    const uint16_t halves[5] = {0x3c00, 0x8000, 0x7c00, 0x0001, 0xc080};
    std::memcpy(bytes.data() + offset, halves, sizeof(halves));
    dequantize_row(DType::kF16, bytes.data() + offset, out);
    EXPECT_EQ(out, (std::vector<float>{1.0f, -0.0f, INFINITY, 0x1p-24f, -2.25f}));
    dequantize_row(DType::kBF16, bytes.data() + offset, out);
    EXPECT_EQ(out[0], std::bit_cast<float>(0x3c000000u));
    EXPECT_EQ(out[4], std::bit_cast<float>(0xc0800000u));
  }
}

TEST(Dequantize, QuantizedRowsMayLieAtOddAddresses) {
  for (const BlocksRecord& record : read_blocks_fixture()) {
    if (record.direction != BlocksRecord::kDequantized) continue;
    std::vector<std::byte> shifted(record.blocks.size() + 1);
    std::memcpy(shifted.data() + 1, record.blocks.data(), record.blocks.size());
    std::vector<float> out(record.floats.size());
    dequantize_row(record.type, shifted.data() + 1, out);
    EXPECT_EQ(std::memcmp(out.data(), record.floats.data(), out.size() * sizeof(float)), 0);
  }
}

TEST(Dequantize, TypesThatAreNotWeightsAndBrokenBlocksAreRefused) {
  std::vector<std::byte> row(256);
  std::vector<float> out(32);
  EXPECT_THROW(dequantize_row(DType::kI32, row.data(), out), Error);
  EXPECT_THROW(dequantize_row(DType::kQ4_K, row.data(), out), Error);  // 32 of 256 values
  EXPECT_THROW(unpack_block(DType::kF32, row.data(), 0), Error);
}

}  // namespace
}  // namespace drover
