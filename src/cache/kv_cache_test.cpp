#include "cache/kv_cache.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace drover {
namespace {

CacheLayout two_kinds(int64_t chunk) {
  return {.kv_heads = 2, .head_dim = 16, .chunked = {true, true, true, false}, .chunk = chunk};
}

TEST(KvCache, ChunkedLayersNeverHoldMoreThanOneChunk) {
  KvCache cache(two_kinds(512), 10'000);
  for (int i = 0; i < 10; ++i) {
    cache.reserve(1000);
    cache.advance(1000);
  }
  const int64_t page = cache.pages(0).page_bytes();
  EXPECT_EQ(cache.bytes(), (3 * 2 + 40) * page);
  EXPECT_EQ(cache.layout().local_bytes(10'000), 3 * 2 * page);
  EXPECT_EQ(cache.layout().global_bytes_per_token() * kPageTokens, page);
  EXPECT_EQ(cache.slot(0, 513), 1);
  EXPECT_EQ(cache.slot(3, 513), 513);
}

TEST(KvCache, RefusesMoreThanTheContextAndStaysAsItWas) {
  KvCache cache(two_kinds(16), 100);
  cache.reserve(90);
  cache.advance(90);
  try {
    cache.reserve(11);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kLimit);
    EXPECT_NE(error.message().find("101"), std::string::npos);
  }
  EXPECT_EQ(cache.length(), 90);
  cache.reserve(10);
}

TEST(KvCache, RewindsInsideAChunkAndElseToItsBorder) {
  KvCache cache(two_kinds(16), 100);
  cache.reserve(40);
  cache.advance(40);
  EXPECT_EQ(cache.rewind(50), 40);
  EXPECT_EQ(cache.rewind(35), 35);  // same chunk: [32, 48)
  EXPECT_EQ(cache.rewind(32), 32);
  EXPECT_EQ(cache.rewind(31), 16);  // tokens 32 to 39 overwrote the ring of the chunk [16, 32)
  cache.reserve(5);
  cache.advance(5);
  EXPECT_EQ(cache.rewind(18), 18);
  EXPECT_EQ(cache.rewind(9), 0);
}

TEST(KvCache, AStoreThatWasCutShortCostsTheChunk) {
  KvCache cache(two_kinds(16), 100);
  cache.reserve(40);
  cache.begin_store();
  cache.advance(40);
  EXPECT_EQ(cache.rewind(40), 40);
  cache.reserve(20);
  cache.begin_store();
  // Something was thrown here. The rings of the chunk [32, 48) may have been overwritten.
  EXPECT_THROW(cache.reserve(1), Error);
  EXPECT_EQ(cache.rewind(40), 32);
  cache.reserve(20);
  EXPECT_EQ(cache.rewind(20), 16);
}

TEST(KvCache, TypesHaveNamesAndOnlyThose) {
  for (const DType type : {DType::kF32, DType::kBF16, DType::kI8}) {
    EXPECT_TRUE(is_cache_type(type));
    EXPECT_EQ(cache_type_from_name(cache_type_name(type)), type);
  }
  EXPECT_EQ(cache_type_from_name("INT8"), DType::kI8);
  for (const char* name : {"", "f16", "i8", "int", "int88"}) {
    EXPECT_EQ(cache_type_from_name(name), std::nullopt) << name;
  }
  // One byte each for key and value, and two float scales.
  KvCache cache({.kv_heads = 2, .head_dim = 16, .chunked = {false}, .chunk = 0, .type = DType::kI8},
                9);
  EXPECT_EQ(cache.layout().global_bytes_per_token(), 2 * (2 * 16 + 2 * 4));
}

TEST(KvCache, WithoutChunksRewindsAnywhere) {
  KvCache cache({.kv_heads = 1, .head_dim = 8, .chunked = {false}, .chunk = 0}, 100);
  cache.reserve(70);
  cache.advance(70);
  EXPECT_EQ(cache.rewind(3), 3);
}

}  // namespace
}  // namespace drover
