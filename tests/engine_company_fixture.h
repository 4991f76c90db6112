// For the tests of many requests on one engine: small models of every kind, fifty requests, and a
// scheduler that is stepped by hand.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "eval/random_model.h"
#include "tests/support/temp_folder.h"

namespace drover {

inline constexpr int64_t kVocab = 512;

// Random weights in a shape small enough for thousands of steps: layers as listed, true for those
// that are chunked.
inline RandomShape shape_of(std::string_view name, std::vector<bool> chunked, int64_t chunk) {
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

inline RandomShape dense_shape() {
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

inline Tokens random_tokens(std::mt19937& random, int64_t count) {
  Tokens out;
  for (int64_t i = 0; i < count; ++i) out.push_back(static_cast<Token>(random() % (kVocab - 130)));
  return out;
}

inline Tokens operator+(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

inline Tokens first(const Tokens& tokens, int64_t count) {
  return {tokens.begin(), tokens.begin() + count};
}

inline GenerateOptions hot(int64_t max_tokens, uint64_t seed) {
  GenerateOptions options;
  options.sampling = {.temperature = 1.5f, .top_p = 1.0f, .seed = seed};
  options.max_tokens = max_tokens;
  return options;
}

inline GenerateOptions greedy(int64_t max_tokens) {
  GenerateOptions options;
  options.sampling.temperature = 0;
  options.max_tokens = max_tokens;
  return options;
}

// 50 requests: texts that begin alike, that consist of the same chunks at other places, that end on
// and beside borders of pages and chunks, and some that are the same.
inline std::vector<Request> requests() {
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

inline std::string message_of(std::exception_ptr error) {
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

  static inline testing::TempFolder* folder_ = nullptr;
  static inline std::map<std::string, std::unique_ptr<Model>> models_;
  static inline std::map<std::pair<Kind, DType>, Alone> alone_;
  Context context_{1};
};

}  // namespace drover
