// Many requests on one engine: what each gets does not depend on the others, nor on what was in the
// tree of beginnings, nor on how short memory was; and what is taken is given back.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <latch>
#include <map>
#include <random>
#include <thread>

#include "engine/engine.h"
#include "eval/random_model.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

using std::chrono::steady_clock;
using testing::expect_error;

constexpr int64_t kVocab = 512;

// Random weights in a shape small enough for thousands of steps: layers as listed, true for those
// that are chunked.
RandomShape shape_of(std::string_view name, std::vector<bool> chunked, int64_t chunk) {
  RandomShape shape = random_shape("tiny");
  ModelConfig& c = *shape.config;
  c.name = name;
  c.vocab = kVocab;
  c.hidden = 64;
  c.heads = 2;
  c.kv_heads = 1;
  c.head_dim = 32;
  c.experts = 2;
  c.expert_width = 64;
  c.context = 4096;
  c.chunk = chunk;
  c.floor_scale = 100;
  c.layers.clear();
  for (const bool local : chunked)
    c.layers.push_back({.rope = local, .chunked = local, .moe = true});
  set_rope_frequencies(c);
  return shape;
}

RandomShape dense_shape() {
  RandomShape shape = random_shape("edge-dense");
  ModelConfig& c = *shape.config;
  c.name = "dense";
  c.vocab = kVocab;
  c.hidden = 64;
  c.heads = 2;
  c.kv_heads = 1;
  c.head_dim = 32;
  c.dense_width = 64;
  c.context = 4096;
  c.layers.resize(2);
  set_rope_frequencies(c);
  return shape;
}

// Bits of what the output matrix is multiplied with: as good as logits, which are a function of
// them.
class Rows : public InputObserver {
 public:
  explicit Rows(const Model& model) : output_(model.weights().output.data) {}
  void see(WeightView w, ConstMatrixView x) override {
    if (w.data != output_) return;
    for (int64_t r = 0; r < x.rows; ++r) {
      uint64_t hash = 1;
      for (int64_t i = 0; i < x.cols; ++i) {
        hash = (hash ^ std::bit_cast<uint32_t>(x.row(r)[i])) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 29;
      }
      seen.push_back(hash);
    }
  }
  std::vector<uint64_t> seen;

 private:
  const void* output_;
};

using Tokens = std::vector<Token>;

// All that a request's sender gets, to the bit.
struct Said {
  Tokens tokens;
  std::vector<ChoiceLogprobs> logprobs, prompt_logprobs;
  std::vector<float> embedding;

  explicit Said(const Answer& answer)
      : tokens(answer.tokens), logprobs(answer.logprobs), embedding(answer.embedding) {
    if (answer.prompt_logprobs) prompt_logprobs = *answer.prompt_logprobs;
  }
  bool operator==(const Said&) const = default;
};

Tokens random_tokens(std::mt19937& random, int64_t count) {
  Tokens out;
  for (int64_t i = 0; i < count; ++i) out.push_back(static_cast<Token>(random() % (kVocab - 130)));
  return out;
}

Tokens operator+(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

Tokens first(const Tokens& tokens, int64_t count) {
  return {tokens.begin(), tokens.begin() + count};
}

GenerateOptions hot(int64_t max_tokens, uint64_t seed) {
  GenerateOptions options;
  options.sampling = {.temperature = 1.5f, .top_p = 1.0f, .seed = seed};
  options.max_tokens = max_tokens;
  return options;
}

GenerateOptions greedy(int64_t max_tokens) {
  GenerateOptions options;
  options.sampling.temperature = 0;
  options.max_tokens = max_tokens;
  return options;
}

// 50 requests: texts that begin alike, that consist of the same chunks at other places, that end on
// and beside borders of pages and chunks, and some that are the same.
std::vector<Request> requests() {
  std::mt19937 random(5);
  const Tokens a = random_tokens(random, 1100), b = random_tokens(random, 512),
               c = random_tokens(random, 512);
  std::vector<Tokens> texts;
  for (const int64_t n : {1, 2, 17, 255, 256, 257, 300, 511, 512, 513, 600, 767, 768, 769, 1024}) {
    texts.push_back(first(a, n));
  }
  texts.push_back(a);
  texts.push_back(a);
  texts.push_back(first(a, 600) + random_tokens(random, 30));
  texts.push_back(first(a, 600) + random_tokens(random, 30));
  texts.push_back(b + c + first(a, 20));
  texts.push_back(c + b + first(a, 20));
  texts.push_back(first(a, 256) + b + first(a, 20));
  texts.push_back(first(a, 512) + b + c);
  texts.push_back(b + first(a, 512) + c + first(a, 1));
  while (texts.size() < 50) texts.push_back(random_tokens(random, 1 + random() % 120));
  std::vector<Request> out;
  for (size_t i = 0; i < texts.size(); ++i) {
    const int64_t most = i % 11 == 3 ? 0 : 1 + static_cast<int64_t>(random() % 14);
    out.push_back({.prompt = {texts[i]},
                   .options = i % 2 == 0 ? hot(most, i) : greedy(most),
                   .samples = i % 7 == 2 ? 3 : 1});
    // Some are told more, and some are texts that want no answer.
    if (i % 3 == 1) out.back().options.logprobs = static_cast<int64_t>(i % 4);
    if (i % 5 == 4) out.back().options.prompt_logprobs = static_cast<int64_t>(i % 3);
    if (i % 8 == 5) out.back().kind = RequestKind::kEmbedding;
  }
  return out;
}

// A scheduler and what became of its requests.
class Play {
 public:
  Play(const Model& model, Context& context, EngineOptions options)
      : rows(model), options_(with(options)), scheduler(model, context, options_) {}

  struct Outcome {
    std::vector<Answer> answers;
    std::exception_ptr error;
    int done = 0;  // how often its end was told
  };

  // Returns its number.
  uint64_t ask(const Request& request, Events events = {}) {
    const uint64_t id = next_++;
    const auto also = events.done;
    events.done = [this, id, also](std::vector<Answer> answers, std::exception_ptr error) {
      Outcome& outcome = outcomes[id];
      outcome.answers = answers;
      outcome.error = error;
      ++outcome.done;
      order.push_back(id);
      if (also) also(std::move(answers), error);
    };
    scheduler.enqueue(scheduler.prepare(request, std::move(events)), id);
    return id;
  }
  bool step() {
    const bool more = scheduler.step();
    const SchedulerState state = scheduler.state();
    EXPECT_LE(state.pages_used, state.pages);
    EXPECT_LE(state.pages_promised, state.pages);
    return more;
  }
  // To the end of all; a scheduler that only turns in circles fails.
  void drain() {
    for (int i = 0; i < 20'000; ++i) {
      if (!step()) return;
    }
    FAIL() << "no end in sight";
  }
  Answer answer(const Request& request) {
    const uint64_t id = ask(request);
    drain();
    EXPECT_EQ(outcomes[id].done, 1);
    if (outcomes[id].answers.empty()) return {};
    return outcomes[id].answers[0];
  }
  void expect_nothing_left() {
    scheduler.forget();
    const SchedulerState state = scheduler.state();
    EXPECT_EQ(state.pages_used, 0);
    EXPECT_EQ(state.pages_promised, 0);
    EXPECT_EQ(state.kept_tokens, 0);
    EXPECT_EQ(state.running + state.waiting, 0);
  }

  Rows rows;
  std::map<uint64_t, Outcome> outcomes;
  std::vector<uint64_t> order;  // in which they ended

 private:
  EngineOptions with(EngineOptions options) {
    options.observer = &rows;
    return options;
  }
  const EngineOptions options_;
  uint64_t next_ = 1;

 public:
  Scheduler scheduler;
};

std::string message_of(std::exception_ptr error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

enum Kind { kReuse, kTail, kTwoGlobal, kDense, kLocal, kOddChunk };

// Models, made when they are first asked for, and the answers of requests that are alone.
class EngineCompany : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { folder_ = new testing::TempFolder(); }
  static void TearDownTestSuite() {
    models_.clear();
    alone_.clear();
    delete folder_;
  }

  static const Model& load(const RandomShape& shape) {
    const auto path = *folder_ / (shape.config->name + ".gguf");
    auto& model = models_[shape.config->name];
    if (!model) {
      Context context(2);
      write_random_model(context, shape, *mixture_from_name("f32"), 3, path);
      model = Model::load(path.string());
    }
    return *model;
  }
  static const Model& model(Kind kind) {
    switch (kind) {
      case kReuse:
        return load(shape_of("reuse", {true, true, false}, 512));
      case kTail:
        return load(shape_of("tail", {true, false, true}, 256));
      case kTwoGlobal:
        return load(shape_of("two_global", {true, false, true, false}, 512));
      case kDense:
        return load(dense_shape());
      case kLocal:
        return load(shape_of("local", {true, true}, 512));
      case kOddChunk:
        return load(shape_of("odd_chunk", {true, true, false}, 300));
    }
    return load(dense_shape());
  }

  struct Alone {
    std::vector<std::vector<Said>> answers;  // of each request and sample
    std::vector<uint64_t> rows;              // of all of them, sorted
  };
  // Each on a scheduler that knows nothing, in one piece, with no shortcut.
  static const Alone& alone(Kind kind, DType cache) {
    Alone& out = alone_[{kind, cache}];
    if (!out.answers.empty()) return out;
    Context context(1);
    for (const Request& request : requests()) {
      Play play(model(kind), context,
                {.cache_type = cache, .shortcuts = {.dead_prefill = false}, .chunk_reuse = false});
      const uint64_t id = play.ask(request);
      play.drain();
      std::vector<Said> samples;
      for (const Answer& answer : play.outcomes[id].answers) samples.emplace_back(answer);
      out.answers.push_back(samples);
      out.rows.insert(out.rows.end(), play.rows.seen.begin(), play.rows.seen.end());
    }
    std::sort(out.rows.begin(), out.rows.end());
    return out;
  }

  // All requests, or every so many of them, in some order, at most `mix` at a time.
  void expect_company(Kind kind, DType cache, int mix, int threads, EngineOptions options,
                      uint32_t seed, size_t every = 1) {
    const Alone& expected = alone(kind, cache);
    Context context(threads);
    options.cache_type = cache;
    Play play(model(kind), context, options);
    std::mt19937 random(seed);
    std::vector<Request> all = requests();
    std::vector<size_t> order;
    for (size_t i = 0; i < all.size(); i += every) order.push_back(i);
    std::shuffle(order.begin(), order.end(), random);
    std::map<uint64_t, size_t> ids;
    size_t next = 0;
    while (next < order.size() || play.order.size() < ids.size()) {
      // They come one by one, or some at once.
      while (next < order.size() && static_cast<int>(ids.size() - play.order.size()) < mix) {
        ids[play.ask(all[order[next]])] = order[next];
        ++next;
        if (random() % 3 == 0) break;
      }
      play.step();
    }
    for (const auto& [id, which] : ids) {
      const Play::Outcome& outcome = play.outcomes[id];
      EXPECT_EQ(outcome.done, 1);
      ASSERT_EQ(message_of(outcome.error), "") << "request " << which;
      std::vector<Said> samples;
      for (const Answer& answer : outcome.answers) samples.emplace_back(answer);
      EXPECT_TRUE(samples == expected.answers[which]) << "request " << which;
    }
    std::sort(play.rows.seen.begin(), play.rows.seen.end());
    EXPECT_TRUE(std::includes(expected.rows.begin(), expected.rows.end(), play.rows.seen.begin(),
                              play.rows.seen.end()))
        << "other logits";
    if (every == 1) {
      EXPECT_EQ(play.rows.seen.size(), expected.rows.size());
    }
    play.expect_nothing_left();
  }

  // Bytes that the largest of the requests needs, and so many pages more.
  static int64_t tight(Kind kind, DType cache, int64_t pages) {
    const CacheLayout layout = model(kind).config().cache_layout(cache);
    int64_t most = 0;
    for (const Request& r : requests()) {
      const int64_t prompt = static_cast<int64_t>(r.prompt.tokens.size());
      const int64_t longest = prompt + r.options.max_tokens;
      most = std::max(most, layout.pages(longest) + (r.samples - 1) * (layout.pages(longest) -
                                                                       layout.global_layers() *
                                                                           (prompt / kPageTokens)));
    }
    return (most + pages) * layout.page_bytes();
  }

  static testing::TempFolder* folder_;
  static std::map<std::string, std::unique_ptr<Model>> models_;
  static std::map<std::pair<Kind, DType>, Alone> alone_;
  Context context_{1};
};
testing::TempFolder* EngineCompany::folder_ = nullptr;
std::map<std::string, std::unique_ptr<Model>> EngineCompany::models_;
std::map<std::pair<Kind, DType>, EngineCompany::Alone> EngineCompany::alone_;

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

TEST_F(EngineCompany, TenThousandCancelsLoseNothing) {
  constexpr int kCycles = 10'000;  // on two kinds of model
  std::mt19937 random(3);
  const Tokens text = random_tokens(random, 400);
  for (const Kind kind : {kReuse, kTail}) {
    const CacheLayout layout = model(kind).config().cache_layout(DType::kBF16);
    // Few pages and few places, so that some always wait.
    Play play(model(kind), context_,
              {.batch = 64,
               .cache_type = DType::kBF16,
               .cache_memory = 40 * layout.page_bytes(),
               .parallel = 6});
    std::vector<uint64_t> open;
    for (int i = 0; i < kCycles / 2; ++i) {
      const int64_t n = random() % 40 == 0 ? 300 : 1 + random() % 20;
      Request request{.prompt = {first(text, n)}, .options = hot(1 + random() % 9, i)};
      if (random() % 4 == 0) request.prompt = {random_tokens(random, n)};
      if (random() % 8 == 0) request.samples = 3;
      open.push_back(play.ask(request));
      if (random() % 2 == 0) play.step();
      while (open.size() > 8 || (!open.empty() && random() % 3 == 0)) {
        std::swap(open[random() % open.size()], open.back());
        play.scheduler.cancel(open.back());
        open.pop_back();
      }
      if (i % 500 == 499) {
        play.drain();
        play.expect_nothing_left();
      }
    }
    play.drain();
    play.expect_nothing_left();
    ASSERT_EQ(play.outcomes.size(), static_cast<size_t>(kCycles / 2));
    int cancelled = 0;
    for (const auto& [id, outcome] : play.outcomes) {
      ASSERT_EQ(outcome.done, 1) << id;
      ASSERT_EQ(message_of(outcome.error), "");
      cancelled += outcome.answers[0].finish == FinishReason::kCancelled;
    }
    EXPECT_GT(cancelled, kCycles / 8);
    EXPECT_LT(cancelled, kCycles / 2);
  }
}

TEST_F(EngineCompany, RequestsAreRefusedAtOnceWithTheNumbersOrAnsweredWhole) {
  std::mt19937 random(4);
  const std::vector<Request> all = requests();
  const Alone& expected = alone(kReuse, DType::kBF16);
  const int64_t page = model(kReuse).config().cache_layout(DType::kBF16).page_bytes();
  int refused = 0, answered = 0;
  for (int mix = 0; mix < 50; ++mix) {
    const int64_t pages = 6 + static_cast<int64_t>(random() % 14);
    Play play(model(kReuse), context_,
              {.batch = 16 + static_cast<int64_t>(random() % 600),
               .cache_type = DType::kBF16,
               .cache_memory = pages * page});
    std::map<uint64_t, size_t> ids;
    for (int i = 0; i < 6; ++i) {
      const size_t which = random() % all.size();
      try {
        ids[play.ask(all[which])] = which;
      } catch (const Error& error) {
        ++refused;
        EXPECT_EQ(error.kind(), ErrorKind::kLimit);
        EXPECT_NE(error.message().find("bytes are needed"), std::string::npos);
        EXPECT_NE(error.message().find(fmt::format("{} are available", pages * page)),
                  std::string::npos)
            << error.what();
      }
      if (random() % 2 == 0) play.step();
    }
    play.drain();
    for (const auto& [id, which] : ids) {
      ASSERT_EQ(message_of(play.outcomes[id].error), "") << "mix " << mix << ", " << which;
      for (size_t sample = 0; sample < expected.answers[which].size(); ++sample) {
        EXPECT_TRUE(Said(play.outcomes[id].answers[sample]) == expected.answers[which][sample])
            << which;
      }
      ++answered;
    }
    play.expect_nothing_left();
  }
  EXPECT_GT(refused, 10);
  EXPECT_GT(answered, 100);
}

// Memory for just this request, in which an earlier one that ends inside a page is known.
TEST_F(EngineCompany, ARequestThatFillsTheMemoryIsLetInWhateverIsKnown) {
  std::mt19937 random(5);
  const Tokens text = random_tokens(random, 1000);
  for (const Kind kind : {kReuse, kTail, kTwoGlobal, kDense, kOddChunk}) {
    SCOPED_TRACE(kind);
    const CacheLayout layout = model(kind).config().cache_layout(DType::kBF16);
    for (const int64_t n : {100, 400, 520, 1000}) {
      for (const int64_t before : {90, 300, 1000}) {
        const int64_t longest = n + 40;
        const int64_t memory = std::max(layout.pages(longest), layout.pages(before + 1));
        Play play(model(kind), context_,
                  {.batch = 128,
                   .cache_type = DType::kBF16,
                   .cache_memory = memory * layout.page_bytes()});
        play.answer({.prompt = {first(text, before)}, .options = greedy(1)});
        const uint64_t id = play.ask({.prompt = {first(text, n)}, .options = greedy(40)});
        play.drain();
        ASSERT_EQ(play.outcomes[id].done, 1) << n << " after " << before;
        ASSERT_EQ(message_of(play.outcomes[id].error), "") << n << " after " << before;
        EXPECT_EQ(play.outcomes[id].answers[0].tokens.size(), 40u);
      }
    }
  }
}

// The first of three answers to a prompt ends at once, and what it was promised is given to others,
// while the other two still hold what it read. The same prompt is read beside it.
TEST_F(EngineCompany, WhatAnAnswerLeavesToItsLikeStaysCounted) {
  std::mt19937 random(6);
  const Tokens text = random_tokens(random, 700);
  const CacheLayout layout = model(kTwoGlobal).config().cache_layout(DType::kBF16);
  for (const int64_t pages : {60, 64, 68, 72, 80}) {
    Play play(
        model(kTwoGlobal), context_,
        {.batch = 300, .cache_type = DType::kBF16, .cache_memory = pages * layout.page_bytes()});
    Request many{.prompt = {text}, .options = hot(100, 0), .samples = 3};
    // The first answer's first token ends it.
    const Answer draws = Play(model(kTwoGlobal), context_, {.cache_type = DType::kBF16})
                             .answer({.prompt = {text}, .options = hot(1, 0)});
    many.options.stop_tokens = draws.tokens;
    std::vector<uint64_t> ids;
    ids.push_back(play.ask({.prompt = {text}, .options = greedy(60)}));
    ids.push_back(play.ask(many));
    for (int i = 0; i < 6; ++i) {
      ids.push_back(play.ask({.prompt = {random_tokens(random, 500)}, .options = greedy(60)}));
    }
    play.drain();
    for (const uint64_t id : ids) EXPECT_EQ(message_of(play.outcomes[id].error), "") << pages;
    play.expect_nothing_left();
  }
}

TEST_F(EngineCompany, HigherPriorityGoesFirstAndOfEqualsTheEarlier) {
  Play play(model(kDense), context_, {.parallel = 1});
  std::mt19937 random(7);
  std::vector<uint64_t> ids;
  for (const int priority : {0, 1, 0, 5, 1}) {
    Request request{.prompt = {random_tokens(random, 30)}, .options = greedy(3)};
    request.priority = priority;
    ids.push_back(play.ask(request));
  }
  play.drain();
  EXPECT_EQ(play.order, (std::vector<uint64_t>{ids[3], ids[1], ids[4], ids[0], ids[2]}));
}

TEST_F(EngineCompany, NoMoreAnswersRunThanAllowedAlsoWhereAPromptHasMany) {
  Play play(model(kDense), context_, {.batch = 20, .parallel = 5});
  std::mt19937 random(8);
  std::vector<uint64_t> ids;
  for (const int64_t samples : {4, 1, 1, 3, 5, 1}) {
    ids.push_back(play.ask(
        {.prompt = {random_tokens(random, 50)}, .options = greedy(12), .samples = samples}));
  }
  int64_t most = 0;
  while (play.step()) most = std::max(most, play.scheduler.state().running);
  EXPECT_EQ(most, 5);
  for (const uint64_t id : ids) EXPECT_EQ(play.outcomes[id].done, 1);
  expect_error(ErrorKind::kLimit, "samples: expected at most 5, got 6", [&] {
    play.ask({.prompt = {{1, 2}}, .options = greedy(1), .samples = 6});
  });
}

TEST_F(EngineCompany, ADeadlineEndsARequestWhereverItIs) {
  Play play(model(kReuse), context_, {.batch = 16});
  std::mt19937 random(9);
  Request request{.prompt = {random_tokens(random, 600)}, .options = greedy(50), .samples = 2};
  // Past before it begins.
  request.deadline = steady_clock::now() - std::chrono::seconds(1);
  const Request in_time{.prompt = request.prompt, .options = greedy(5)};
  const uint64_t late = play.ask(request), other = play.ask(in_time);
  play.drain();
  ASSERT_EQ(play.outcomes[late].answers.size(), 2u);
  for (const Answer& answer : play.outcomes[late].answers) {
    EXPECT_EQ(answer.finish, FinishReason::kDeadline);
    EXPECT_TRUE(answer.tokens.empty());
    EXPECT_EQ(answer.prompt_tokens, 600);
  }
  EXPECT_EQ(play.outcomes[other].answers[0].finish, FinishReason::kLength);
  // While its prompt is read: the reader's own progress waits for it. And while it is answered.
  for (const uint64_t pass_at : {100, 600}) {
    play.scheduler.forget();
    request.deadline = steady_clock::now() + std::chrono::milliseconds(200);
    Events events;
    events.prompt = [&](uint64_t done, uint64_t) {
      if (done >= pass_at) std::this_thread::sleep_until(*request.deadline);
    };
    const uint64_t id = play.ask(request, events);
    play.drain();
    ASSERT_EQ(play.outcomes[id].answers.size(), 2u);
    EXPECT_EQ(play.outcomes[id].answers[0].finish, FinishReason::kDeadline);
    EXPECT_LT(play.outcomes[id].answers[0].tokens.size(), 50u);
  }
  play.expect_nothing_left();
}

TEST_F(EngineCompany, SamplesStopEachForItself) {
  std::mt19937 random(10);
  Request request{.prompt = {random_tokens(random, 256)}, .options = hot(60, 4), .samples = 5};
  const Answer one = Play(model(kTail), context_, {}).answer(request);
  request.options.stop_tokens = {one.tokens[7], one.tokens[20]};
  Play play(model(kTail), context_, {});
  const uint64_t id = play.ask(request);
  play.drain();
  for (int64_t sample = 0; sample < 5; ++sample) {
    Request single = request;
    single.samples = 1;
    single.options.sampling.seed += static_cast<uint64_t>(sample);
    const Answer expected = Play(model(kTail), context_, {.batch = 50}).answer(single);
    const Answer& got = play.outcomes[id].answers[static_cast<size_t>(sample)];
    EXPECT_EQ(got.tokens, expected.tokens) << sample;
    EXPECT_EQ(got.text, expected.text);
    EXPECT_EQ(got.finish, expected.finish);
  }
  EXPECT_EQ(play.outcomes[id].answers[0].finish, FinishReason::kStop);
}

// In each of its events, alone and beside others, who get what they would get without it.
TEST_F(EngineCompany, AnEventThatThrowsEndsItsOwnRequestAndNoOther) {
  std::mt19937 random(11);
  const Request loud{.prompt = {random_tokens(random, 300)}, .options = hot(40, 1), .samples = 2};
  const Request quiet{.prompt = {random_tokens(random, 300)}, .options = hot(20, 2)};
  const Answer expected = Play(model(kReuse), context_, {}).answer(quiet);
  for (const bool company : {false, true}) {
    for (const std::string where : {"begin", "reading", "text", "done"}) {
      SCOPED_TRACE(where);
      Play play(model(kReuse), context_, {.batch = 100});
      uint64_t beside = 0;
      if (company) beside = play.ask(quiet);
      Events events;
      const auto fail = [] { throw_error(ErrorKind::kIo, "the listener is gone"); };
      int heard = 0;
      if (where == "begin" || where == "reading") {
        events.prompt = [&](uint64_t done, uint64_t) {
          if (done > (where == "begin" ? 0u : 150u)) fail();
        };
      } else if (where == "text") {
        events.text = [&](int64_t sample, std::string_view) {
          if (sample == 1 && ++heard == 5) fail();
        };
      } else {
        events.done = [&](std::vector<Answer>, std::exception_ptr) { fail(); };
      }
      const uint64_t id = play.ask(loud, events);
      play.drain();
      EXPECT_EQ(play.outcomes[id].done, 1);
      EXPECT_EQ(message_of(play.outcomes[id].error), where == "done" ? "" : "the listener is gone");
      if (company) {
        EXPECT_EQ(message_of(play.outcomes[beside].error), "");
        EXPECT_EQ(play.outcomes[beside].answers[0].tokens, expected.tokens);
      }
      EXPECT_EQ(play.answer(quiet).tokens, expected.tokens);
      play.expect_nothing_left();
    }
  }
}

// What was held back is said at the end, also when a cancel is the end; that may throw too.
TEST_F(EngineCompany, AnEventThatThrowsWhileItsRequestIsCancelledIsItsErrorAlone) {
  std::mt19937 random(12);
  Request request{.prompt = {random_tokens(random, 20)}, .options = hot(200, 1), .samples = 2};
  // Every text may go on as this one, so all is held back.
  const Answer all = Play(model(kDense), context_, {}).answer(request);
  request.options.stop = {all.text + "and so on"};
  for (const bool waiting : {false, true}) {
    Play play(model(kDense), context_, {.parallel = 2});
    Events events;
    events.text = [](int64_t, std::string_view) { throw_error(ErrorKind::kIo, "gone"); };
    request.options.max_tokens = 30;
    Request one = request;
    one.samples = 1;
    const uint64_t id = play.ask(one, events);
    const uint64_t next = play.ask(request);
    for (int i = 0; i < 5; ++i) play.step();
    ASSERT_EQ(play.outcomes[id].done, 0) << "something was said";
    play.scheduler.cancel(id);
    if (waiting) play.scheduler.cancel(next);
    play.drain();
    EXPECT_EQ(message_of(play.outcomes[id].error), "gone");
    EXPECT_EQ(play.outcomes[next].done, 1);
    EXPECT_EQ(message_of(play.outcomes[next].error), "");
    play.expect_nothing_left();
  }
}

// Every step with answers has a token for each of them, and the prompt comes forward all the same.
TEST_F(EngineCompany, ALongPromptNeverStopsAnswers) {
  std::mt19937 random(13);
  Play play(model(kReuse), context_, {.batch = 64, .cache_memory = 64 << 20});
  for (int i = 0; i < 5; ++i) {
    play.ask({.prompt = {random_tokens(random, 10)}, .options = greedy(1000)});
  }
  while (play.rows.seen.size() < 25) play.step();
  bool read = false;
  Events events;
  events.prompt = [&](uint64_t done, uint64_t total) { read = done == total; };
  play.ask({.prompt = {random_tokens(random, 2000)}, .options = greedy(1000)}, events);
  int steps = 0;
  for (; !read && steps < 1000; ++steps) {
    const size_t before = play.rows.seen.size();
    play.step();
    EXPECT_GE(play.rows.seen.size(), before + 5) << "step " << steps;
  }
  // At least 16 tokens a step, but for those that time the answers alone.
  EXPECT_LE(steps, 2000 / 16 + 10);
}

TEST_F(EngineCompany, ScoresDoNotTakeWhatWasPromised) {
  std::mt19937 random(14);
  const CacheLayout layout = model(kDense).config().cache_layout(DType::kBF16);
  Play play(model(kDense), context_,
            {.cache_type = DType::kBF16, .cache_memory = 10 * layout.page_bytes()});
  const Prompt text{random_tokens(random, 1200)};
  int64_t rows = 0;
  const EachLogits count = [&](int64_t, ConstMatrixView logits) { rows += logits.rows; };
  play.scheduler.score(text, count);
  EXPECT_EQ(rows, 1200);
  const uint64_t id = play.ask({.prompt = {random_tokens(random, 10)}, .options = greedy(300)});
  for (int i = 0; i < 5; ++i) play.step();
  rows = 0;
  expect_error(ErrorKind::kLimit,
               fmt::format("{} bytes are needed for 1200 tokens, {} are available",
                           10 * layout.page_bytes(), 6 * layout.page_bytes()),
               [&] { play.scheduler.score(text, count); });
  EXPECT_EQ(rows, 0) << "refused before work";
  play.drain();
  EXPECT_EQ(play.outcomes[id].answers[0].tokens.size(), 300u);
}

TEST_F(EngineCompany, ManyThreadsAskAndCancelAtTheSameTime) {
  const std::vector<Request> all = requests();
  const Alone& expected = alone(kTail, DType::kBF16);
  Engine engine(model(kTail), context_, {.batch = 128, .cache_type = DType::kBF16});
  std::atomic<int> wrong = 0, ended = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(static_cast<uint32_t>(t));
      for (int i = 0; i < 8; ++i) {
        const size_t which = 20 + random() % 30;
        if (random() % 3 == 0) {
          const uint64_t id = engine.submit(
              all[which], {.prompt = {},
                           .text = {},
                           .done = [&](std::vector<Answer>, std::exception_ptr) { ++ended; }});
          engine.cancel(id);
          continue;
        }
        const auto answers = engine.generate(all[which]);
        ++ended;
        for (size_t s = 0; s < answers.size(); ++s) {
          wrong += Said(answers[s]) != expected.answers[which][s];
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  while (engine.state().running + engine.state().waiting > 0) std::this_thread::yield();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(ended, 6 * 8);
  engine.forget();
  EXPECT_EQ(engine.state().pages_used, 0);
}

TEST_F(EngineCompany, AnEngineThatGoesTellsEverybody) {
  std::mt19937 random(15);
  std::atomic<int> told = 0, stopped = 0;
  std::latch begun(1);
  {
    Engine engine(model(kReuse), context_, {.batch = 32, .parallel = 3});
    for (int i = 0; i < 8; ++i) {
      Events events;
      events.text = [&, i, first = true](int64_t, std::string_view) mutable {
        if (i == 0 && first) begun.count_down();
        first = false;
      };
      events.done = [&](std::vector<Answer> answers, std::exception_ptr error) {
        ++told;
        stopped += answers.empty() && message_of(error).find("stopped") != std::string::npos;
        if (told == 4) throw_error(ErrorKind::kIo, "the listener is gone");
      };
      engine.submit({.prompt = {random_tokens(random, 20)},
                     .options = hot(-1, static_cast<uint64_t>(i)),
                     .samples = i % 3 == 1 ? 2 : 1},
                    events);
    }
    begun.wait();
  }
  EXPECT_EQ(told, 8);
  EXPECT_EQ(stopped, 8);
}

}  // namespace
}  // namespace drover
