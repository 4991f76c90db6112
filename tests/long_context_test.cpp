// The exact shortcuts at length: what is left out, taken over or counted from elsewhere does not
// show. 3,000 tokens in script/test; 65,536 with DROVER_LONG=1 (docs/testing.md).

#include <gtest/gtest.h>

#include <bit>
#include <cstdlib>

#include "engine/engine.h"
#include "eval/random_model.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

int64_t length() { return std::getenv("DROVER_LONG") != nullptr ? 65536 : 3000; }

// Sees what the output matrix is multiplied with: whoever has these bits has the logits.
class LastStates : public InputObserver {
 public:
  explicit LastStates(const Model& model) : output_(model.weights().output.data) {}
  void see(WeightView w, ConstMatrixView x) override {
    if (w.data != output_) return;
    for (int64_t t = 0; t < x.rows; ++t) {
      states.insert(states.end(), x.row(t), x.row(t) + x.cols);
    }
  }
  std::vector<float> states;

 private:
  const std::byte* output_;
};

struct Outcome {
  std::vector<Token> tokens;
  std::vector<float> states;
  int64_t cached = 0;

  bool operator==(const Outcome& other) const {
    return tokens == other.tokens && states.size() == other.states.size() &&
           std::equal(states.begin(), states.end(), other.states.begin(), [](float a, float b) {
             return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
           });
  }
};

class LongContext : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const auto path = folder_ / "model.gguf";
    const std::string& type = GetParam();
    write_random_model(context_, random_shape("memory"), *mixture_from_name(type), 1, path);
    model_ = Model::load(path.string());
    // Real chunks do not repeat; the last third of these does.
    const int64_t n = length(), chunk = model_->config().chunk;
    uint64_t state = 1;
    for (int64_t i = 0; i < n; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      const Token token = static_cast<Token>(state >> 33) % 4000;
      const int64_t twin = i - n / chunk * 2 / 3 * chunk;
      text_.push_back(twin >= 0 ? text_[static_cast<size_t>(twin)] : token);
    }
  }

  // The text, and the answer to it, after `before` was read.
  Outcome answer(EngineOptions options, const std::vector<Token>& before = {}) {
    LastStates seen(*model_);
    options.context = length() + 64;
    options.batch = model_->config().chunk;  // of two twins in one batch both are read
    options.observer = &seen;
    options.cache_type = GetParam() == "f32" ? DType::kF32 : DType::kBF16;
    Engine engine(*model_, context_, options);
    GenerateOptions greedy;
    greedy.sampling.temperature = 0;
    greedy.max_tokens = 8;
    if (!before.empty()) engine.generate(before, greedy);
    seen.states.clear();
    const Answer out = engine.generate(text_, greedy);
    return {out.tokens, seen.states, out.cached_tokens};
  }

  testing::TempFolder folder_;
  Context context_{2};
  std::unique_ptr<Model> model_;
  std::vector<Token> text_;
};

TEST_P(LongContext, WhatIsNotComputedDoesNotShow) {
  const Outcome all = answer({.shortcuts = {.dead_prefill = false}});
  EXPECT_EQ(answer({.chunk_reuse = false}), all);
}

TEST_P(LongContext, ChunksThatWereReadElsewhereAreNotReadAgain) {
  const Outcome without = answer({.chunk_reuse = false});
  EXPECT_EQ(without.cached, 0);
  const Outcome with = answer({});
  const int64_t chunk = model_->config().chunk;
  // The last third is the first, but for the chunk that the answer looks at.
  const int64_t chunks = length() / chunk;
  EXPECT_EQ(with.cached, (chunks - chunks * 2 / 3 - (length() % chunk == 0)) * chunk);
  EXPECT_EQ(with, without);
  // Another text that holds chunks of this one, in another order.
  const int64_t half = length() / 2 / chunk * chunk;
  std::vector<Token> other(text_.begin() + half, text_.begin() + 2 * half);
  other.insert(other.end(), text_.begin(), text_.begin() + half);
  other.push_back(5);
  const Outcome after = answer({}, other);
  EXPECT_GE(after.cached, 2 * half - 2 * chunk);
  EXPECT_EQ(after, without);
}

// Angles of absolute positions are rounded to float32, half a unit in the last place of the
// largest: p 2^-24 radians. They move scores by as much times the size of a query, some units here,
// where what the model says then follows.
TEST_P(LongContext, PositionsModuloTheChunkDifferByTheRoundingOfAngles) {
  if (GetParam() != "f32") GTEST_SKIP() << "rounding to 16 bits would drown it";
  const Outcome modulo = answer({});
  const Outcome absolute = answer({.shortcuts = {.positions_in_chunk = false}});
  double difference = 0, largest = 0;
  const size_t first = static_cast<size_t>(model_->config().hidden);  // of the prompt's last token
  for (size_t i = 0; i < first; ++i) {
    difference = std::max<double>(difference, std::abs(modulo.states[i] - absolute.states[i]));
    largest = std::max<double>(largest, std::abs(modulo.states[i]));
  }
  RecordProperty("difference", std::to_string(difference / largest));
  std::printf("modulo against absolute positions, %lld tokens: %.2g of the largest\n",
              static_cast<long long>(length()), difference / largest);
  EXPECT_LE(difference / largest, 8 * static_cast<double>(length()) * 0x1p-24);
}

INSTANTIATE_TEST_SUITE_P(Types, LongContext, ::testing::Values("f32", "bf16", "q8_0"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace drover
