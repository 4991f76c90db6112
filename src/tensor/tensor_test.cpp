#include <gtest/gtest.h>

#include <cmath>

#include "tensor/dtype.h"
#include "tensor/float16.h"

namespace drover {
namespace {

TEST(DType, NamesAndGgufNumbersAgree) {
  for (uint32_t number = 0; number < 64; ++number) {
    if (auto type = dtype_from_gguf(number)) {
      EXPECT_EQ(dtype_name(*type), gguf_type_name(number));
      EXPECT_EQ(dtype_from_name(dtype_name(*type)), type);
    }
  }
  EXPECT_EQ(dtype_from_name("Q4_K"), DType::kQ4_K);
  EXPECT_FALSE(dtype_from_name("q9_9"));
  EXPECT_EQ(row_bytes(DType::kQ6_K, 512), 420);
}

// Every f16 survives the way to float and back; every float lies between its f16 neighbours and
// goes to the nearer, which a search over all halves decides independently.
TEST(Float16, HalvesRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float x = to_float(f16{static_cast<uint16_t>(bits)});
    if (std::isnan(x)) {
      EXPECT_TRUE(std::isnan(to_float(to_f16(x))));
    } else {
      EXPECT_EQ(to_f16(x).bits, bits);
    }
  }
}

TEST(Float16, RoundsToNearestTiesToEven) {
  for (uint32_t bits = 0; bits < 0x7bff; ++bits) {
    const float lo = to_float(f16{static_cast<uint16_t>(bits)});
    const float hi = to_float(f16{static_cast<uint16_t>(bits + 1)});
    const float middle = lo + (hi - lo) / 2;
    const uint16_t even = bits % 2 == 0 ? bits : bits + 1;
    EXPECT_EQ(to_f16(middle).bits, even);
    EXPECT_EQ(to_f16(std::nextafter(middle, lo)).bits, bits);
    EXPECT_EQ(to_f16(std::nextafter(middle, hi)).bits, bits + 1);
  }
  EXPECT_EQ(to_f16(65520.0f).bits, 0x7c00);
  EXPECT_EQ(to_f16(65519.0f).bits, 0x7bff);
  EXPECT_EQ(to_f16(-1e30f).bits, 0xfc00);
}

TEST(Float16, BrainFloatsRoundToNearestTiesToEven) {
  EXPECT_EQ(to_bf16(1.0f).bits, 0x3f80);
  EXPECT_EQ(to_bf16(1.00390625f).bits, 0x3f80);  // tie, to even
  EXPECT_EQ(to_bf16(1.01171875f).bits, 0x3f82);  // tie, to even
  EXPECT_EQ(to_bf16(1.0040f).bits, 0x3f81);
  EXPECT_TRUE(std::isnan(to_float(to_bf16(std::nanf("")))));
  EXPECT_TRUE(std::isinf(to_float(to_bf16(3.4e38f))));
}

}  // namespace
}  // namespace drover
