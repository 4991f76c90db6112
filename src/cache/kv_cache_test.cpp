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

// A number of each layer and position, as if it were what the decoder stores there.
int& at(const KvCache& cache, int64_t layer, int64_t position) {
  const int64_t slot = cache.slot(layer, position);
  return reinterpret_cast<int*>(cache.pages(layer).pages[slot / kPageTokens])[slot % kPageTokens];
}

void store(KvCache& cache, int64_t tokens, int value) {
  const int64_t first = cache.length();
  cache.reserve(tokens);
  cache.begin_store();
  for (int64_t layer = 0; layer < 4; ++layer) {
    for (int64_t p = first; p < first + tokens; ++p) at(cache, layer, p) = value;
  }
  cache.advance(tokens);
}

void expect_values(const KvCache& cache, int64_t first, int64_t end, int value) {
  for (int64_t layer = 0; layer < 4; ++layer) {
    for (int64_t p = first; p < end; ++p) {
      if (cache.layout().chunked[static_cast<size_t>(layer)] &&
          p < cache.layout().chunk_begin(cache.length() - 1)) {
        continue;
      }
      ASSERT_EQ(at(cache, layer, p), value) << "layer " << layer << ", position " << p;
    }
  }
}

TEST(KvCache, TwoThatShareGoOnEachByItself) {
  const CacheLayout layout = two_kinds(512);
  PagePool pool(layout.page_bytes(), PagePool::kNoLimit);
  KvCache one(layout, 5000, pool);
  store(one, 600, 1);
  KvCache two = one, three = one;
  // Three pages of the global layer, and a ring of two pages on three.
  EXPECT_EQ(pool.pages(), 3 + 3 * 2);
  EXPECT_EQ(one.bytes(), pool.bytes());
  EXPECT_EQ(one.pages_to_take(10), 1 + 3) << "the pages that it writes to, on every layer";
  store(one, 10, 10);
  EXPECT_EQ(pool.pages(), 9 + 4);
  store(two, 10, 20);
  EXPECT_EQ(three.pages_to_take(10), 0) << "now it alone has the others";
  store(three, 10, 30);
  EXPECT_EQ(pool.pages(), 9 + 2 * 4);
  int value = 10;
  for (const KvCache* cache : {&one, &two, &three}) {
    expect_values(*cache, 0, 600, 1);
    expect_values(*cache, 600, 610, value);
    value += 10;
  }
  // One that goes back into what it shares writes to a page of its own again.
  two.rewind(550);
  store(two, 100, 21);
  expect_values(one, 0, 600, 1);
  expect_values(three, 600, 610, 30);
  expect_values(two, 550, 650, 21);
}

TEST(KvCache, AdoptsPagesAndCopiesTheLastWhenItGoesOn) {
  const CacheLayout layout = two_kinds(512);
  PagePool pool(layout.page_bytes(), PagePool::kNoLimit);
  KvCache from(layout, 5000, pool);
  store(from, 700, 1);
  KvCache to(layout, 5000, pool);
  to.adopt(from.global_pages(0), {}, kPageTokens);
  EXPECT_FALSE(to.ring_complete()) << "inside a chunk without its ring";
  to.adopt(from.global_pages(256), {}, kPageTokens);
  EXPECT_TRUE(to.ring_complete()) << "at a border rings are empty";
  to.adopt(from.global_pages(512), from.local_pages(512), 100);
  EXPECT_TRUE(to.ring_complete());
  EXPECT_EQ(to.length(), 612);
  EXPECT_EQ(to.pages_to_take(1), 1 + 3);
  store(to, 100, 2);
  expect_values(to, 0, 612, 1);
  expect_values(to, 612, 712, 2);
  expect_values(from, 0, 700, 1);
  // Inside a chunk without a ring the only way is back.
  KvCache lost(layout, 5000, pool);
  lost.adopt(from.global_pages(0), {}, kPageTokens);
  lost.adopt(from.global_pages(256), {}, kPageTokens);
  lost.adopt(from.global_pages(512), {}, 100);
  EXPECT_FALSE(lost.ring_complete());
  EXPECT_EQ(lost.rewind(612), 512);
}

TEST(KvCache, SharesAPageThatSomebodyElseStoredAlike) {
  const CacheLayout layout = two_kinds(512);
  PagePool pool(layout.page_bytes(), PagePool::kNoLimit);
  KvCache one(layout, 5000, pool), two(layout, 5000, pool);
  store(one, 600, 1);
  store(two, 600, 1);
  const int64_t before = pool.pages();
  two.share_global(0, one.global_pages(0));
  two.share_global(256, one.global_pages(256));
  EXPECT_EQ(pool.pages(), before - 2);
  store(two, 400, 2);
  expect_values(one, 0, 600, 1);
  expect_values(two, 0, 600, 1);
}

TEST(KvCache, ARingThatIsSharedIsLeftAtABorderAlone) {
  const CacheLayout layout = two_kinds(512);
  PagePool pool(layout.page_bytes(), PagePool::kNoLimit);
  KvCache one(layout, 5000, pool);
  store(one, 500, 1);
  const KvCache two = one;
  one.leave_shared_ring();
  EXPECT_TRUE(one.ring_shared()) << "inside a chunk it is needed";
  store(one, 12, 2);
  EXPECT_TRUE(one.ring_shared()) << "the first page still is";
  one.leave_shared_ring();
  EXPECT_FALSE(one.ring_shared());
  EXPECT_EQ(one.pages_to_take(1), 1 + 3);
  EXPECT_EQ(one.pages_to_take(512), 2 + 2 * 3);
  store(one, 300, 3);
  expect_values(two, 0, 500, 1);
  EXPECT_EQ(one.rewind(500), 0) << "what was left is not there to go back to";
}

// Whoever asks for room at a border may lose the rings of the chunk before it.
TEST(KvCache, RoomThatWasTakenAndNotUsedDoesNotPassForARing) {
  const CacheLayout layout = two_kinds(512);
  PagePool pool(layout.page_bytes(), PagePool::kNoLimit);
  KvCache one(layout, 5000, pool);
  store(one, 512, 1);
  const KvCache two = one;
  EXPECT_TRUE(one.ring_holds(100));
  one.reserve(10);
  EXPECT_FALSE(one.ring_holds(100));
  EXPECT_EQ(one.rewind(400), 0);
  expect_values(two, 0, 512, 1);
}

// L L G L: the last layer's tokens before position `live` were left out.
TEST(KvCache, AStepBackIntoAChunkWithoutItsTailGoesToItsBorder) {
  const CacheLayout layout = {
      .kv_heads = 2, .head_dim = 16, .chunked = {true, true, false, true}, .chunk = 16};
  ASSERT_TRUE(layout.has_tail());
  const auto read = [](KvCache& cache, int64_t tokens, int64_t live) {
    cache.reserve(tokens);
    cache.begin_store();
    cache.advance(tokens, live);
  };
  KvCache cache(layout, 200);
  read(cache, 40, 64);
  EXPECT_FALSE(cache.ring_complete());
  EXPECT_FALSE(cache.ring_holds(32));
  read(cache, 4, 64);
  EXPECT_FALSE(cache.ring_complete());
  EXPECT_EQ(KvCache(cache).rewind(43), 32);
  EXPECT_EQ(KvCache(cache).rewind(44), 32) << "nor can it stay";
  read(cache, 26, 64);  // to 70, across the border from where all layers are live
  EXPECT_TRUE(cache.ring_complete());
  EXPECT_EQ(KvCache(cache).rewind(66), 66);
  EXPECT_EQ(KvCache(cache).rewind(63), 48);
  // A chunk that begins live stays so when more of it comes.
  read(cache, 5, 64);
  EXPECT_TRUE(cache.ring_holds(64));
  // Without a tail nothing is left out.
  KvCache whole(two_kinds(16), 200);
  read(whole, 40, 64);
  EXPECT_TRUE(whole.ring_complete());
  EXPECT_EQ(whole.rewind(35), 35);
}

TEST(KvCache, WithoutChunksRewindsAnywhere) {
  KvCache cache({.kv_heads = 1, .head_dim = 8, .chunked = {false}, .chunk = 0}, 100);
  cache.reserve(70);
  cache.advance(70);
  EXPECT_EQ(cache.rewind(3), 3);
}

}  // namespace
}  // namespace drover
