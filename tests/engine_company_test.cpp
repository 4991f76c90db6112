// Many requests on one engine: what each gets does not depend on the others, nor on what was in the
// tree of beginnings, nor on how short memory was.

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "tests/engine_company_fixture.h"
#include "tests/support/expect_error.h"

namespace drover {
namespace {

TEST_F(EngineCompany, OneOutputPerPromptInMixesAndSlicesOfAnySize) {
  uint32_t seed = 1;
  for (const auto& [mix, batch] : {std::pair{1, 2048}, {2, 16}, {5, 100}, {16, 512}, {64, 2048}}) {
    SCOPED_TRACE(fmt::format("{} at a time, batch {}", mix, batch));
    expect_company(kReuse, DType::kBF16, mix, 1, {.batch = batch}, seed++);
  }
}

TEST_F(EngineCompany, OneOutputPerPromptOnAnyNumberOfThreads) {
  for (const int threads : {2, 4}) {
    expect_company(kReuse, DType::kBF16, 8, threads, {.batch = 300}, 7, /*every=*/5);
  }
}

TEST_F(EngineCompany, OneOutputPerPromptWithAShortcutAndWithout) {
  for (const bool dead : {true, false}) {
    for (const bool reuse : {true, false}) {
      if (dead && reuse) continue;
      expect_company(kReuse, DType::kBF16, 6, 1,
                     {.batch = 200, .shortcuts = {.dead_prefill = dead}, .chunk_reuse = reuse}, 8);
    }
  }
}

TEST_F(EngineCompany, OneOutputPerPromptWithAnInt8Cache) {
  expect_company(kReuse, DType::kI8, 10, 1, {.batch = 256}, 9);
}

// Memory for the largest request, and a little more or nothing: beginnings give way all the time.
TEST_F(EngineCompany, OneOutputPerPromptWhereMemoryIsTight) {
  for (const int64_t more : {0, 1, 7}) {
    SCOPED_TRACE(more);
    expect_company(kReuse, DType::kBF16, 20, 1,
                   {.batch = 400, .cache_memory = tight(kReuse, DType::kBF16, more)}, 10);
    expect_company(kTwoGlobal, DType::kBF16, 20, 1,
                   {.batch = 400, .cache_memory = tight(kTwoGlobal, DType::kBF16, more)}, 11);
  }
}

// No page is taken that was not promised, in whatever order requests come, read and leave. How long
// slices are depends on the clock, so no two runs are the same.
TEST_F(EngineCompany, PromisedPagesAreThereInCompanyOfEveryKind) {
  // What sanitizers look for shows in a few; the arithmetic needs many.
#ifdef __SANITIZE_ADDRESS__
  constexpr uint32_t kSeeds = 3;
#else
  constexpr uint32_t kSeeds = 20;
#endif
  for (uint32_t seed = 100; seed < 100 + kSeeds; ++seed) {
    for (const Kind kind : {kReuse, kTail, kTwoGlobal, kDense, kLocal, kOddChunk}) {
      SCOPED_TRACE(fmt::format("seed {}, model {}", seed, static_cast<int>(kind)));
      expect_company(kind, DType::kBF16, 2 + seed % 30, 1,
                     {.batch = 20 + seed * 37 % 900,
                      .cache_memory = tight(kind, DType::kBF16, seed % 9),
                      .parallel = 3 + seed % 20},
                     seed);
    }
  }
}

TEST_F(EngineCompany, OneOutputPerPromptForEveryKindOfModel) {
  for (const Kind kind : {kTail, kTwoGlobal, kDense, kLocal, kOddChunk}) {
    SCOPED_TRACE(kind);
    expect_company(kind, DType::kBF16, 12, 1, {.batch = 150}, 20);
    expect_company(kind, DType::kBF16, 4, 1,
                   {.batch = 1000, .cache_memory = tight(kind, DType::kBF16, 2)}, 21);
  }
}

TEST_F(EngineCompany, OneOutputPerPromptWithPagesInAFile) {
  expect_company(kTail, DType::kI8, 10, 1, {.batch = 256, .cache_dir = folder_->path()}, 22);
}

TEST_F(EngineCompany, WhatWasReadIsNotReadAgainToTheToken) {
  std::mt19937 random(1);
  const Tokens text = random_tokens(random, 1300);
  const auto cached = [&](Play& play, const Tokens& prompt, int64_t most = 5) {
    const Answer answer = play.answer({.prompt = {prompt}, .options = greedy(most)});
    EXPECT_EQ(answer.prompt_tokens, static_cast<int64_t>(prompt.size()));
    return answer.cached_tokens;
  };
  for (const Kind kind : {kReuse, kTail, kTwoGlobal, kDense}) {
    SCOPED_TRACE(kind);
    Play play(model(kind), context_, {.batch = 2048});
    EXPECT_EQ(cached(play, text), 0);
    EXPECT_EQ(cached(play, text), 1299) << "all but the token whose logits are wanted";
    // Rings were kept of the chunk that the prompt ends in; before it borders are the places.
    EXPECT_EQ(cached(play, first(text, 1200) + Tokens{1, 2, 3}), kind == kTail ? 1024 : 1200);
    const int64_t chunk = model(kind).config().chunk;
    EXPECT_EQ(cached(play, first(text, 900) + Tokens{1, 2, 3}),
              chunk == 0 ? 900 : 900 / chunk * chunk);
    // Now there are rings there too.
    EXPECT_EQ(cached(play, first(text, 900) + Tokens{1, 2, 4}), 902);
    // What was answered is known as what was asked, but for the last token, which was not read.
    const Tokens prompt = random_tokens(random, 700);
    const Answer said = play.answer({.prompt = {prompt}, .options = hot(200, 1)});
    const Tokens all = prompt + said.tokens;
    EXPECT_EQ(cached(play, all + Tokens{9}), static_cast<int64_t>(all.size()) - 1);
    Request other{.prompt = {text}, .options = greedy(1)};
    other.salt = "somebody else";
    EXPECT_EQ(play.answer(other).cached_tokens, 0);
  }
}

// The text of ten chunks in which one was overwritten: that one is read again, and the last.
TEST_F(EngineCompany, OnlyTheChunkThatChangedIsReadAgain) {
  std::mt19937 random(1);
  Tokens text = random_tokens(random, 10 * 512 - 1700);
  Play play(model(kReuse), context_, {.batch = 2048});
  play.answer({.prompt = {text}, .options = greedy(1)});
  text[700] ^= 1;
  const Request request{.prompt = {text}, .options = greedy(8)};
  const Answer again = play.answer(request);
  const int64_t last = (static_cast<int64_t>(text.size()) - 1) / 512 * 512;
  EXPECT_EQ(again.cached_tokens, last - 512);
  Play fresh(model(kReuse), context_, {.chunk_reuse = false});
  EXPECT_EQ(again.tokens, fresh.answer(request).tokens);
}

// Where a global layer has positions, or a layer before it knows its own, what a chunk leaves
// behind depends on where it stands.
TEST_F(EngineCompany, ChunksThatDoNotStandAloneAreReadAtTheirPlaces) {
  RandomShape rope = shape_of("global_with_rope", {true, false}, 256);
  rope.config->layers[1].rope = true;
  RandomShape tuned = shape_of("chunked_without_rope", {true, false}, 256);
  tuned.config->layers[0].rope = false;
  for (const RandomShape& shape : {rope, tuned, shape_of("plain", {true, false}, 256)}) {
    SCOPED_TRACE(shape.config->name);
    const Model& model = load(shape);
    std::mt19937 random(2);
    const Tokens doc = random_tokens(random, 512), before = random_tokens(random, 256);
    const bool alone = shape.config->name == "plain";
    EXPECT_EQ(model.config().chunks_stand_alone(), alone);
    for (const bool modulo : {true, false}) {
      const EngineOptions options{.shortcuts = {.positions_in_chunk = modulo}};
      Play play(model, context_, options);
      play.answer({.prompt = {doc + Tokens{1}}, .options = greedy(1)});
      play.rows.seen.clear();
      const Request moved{.prompt = {before + doc + Tokens{1}}, .options = greedy(10)};
      const Answer answer = play.answer(moved);
      EXPECT_EQ(answer.cached_tokens, alone && modulo ? 512 : 0);
      Play fresh(model, context_, options);
      EXPECT_EQ(answer.tokens, fresh.answer(moved).tokens);
      EXPECT_EQ(play.rows.seen, fresh.rows.seen);
    }
  }
}

}  // namespace
}  // namespace drover
