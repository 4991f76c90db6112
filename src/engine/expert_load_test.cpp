// How many tokens went to which expert, as an engine tells it.
#include <gtest/gtest.h>

#include <map>
#include <numeric>

#include "engine/engine.h"
#include "tests/support/small_model.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

// Counts the rows that are multiplied with each map, by where its numbers stand.
class RowCounter : public InputObserver {
 public:
  void see(WeightView w, ConstMatrixView x) override { rows_[w.data] += x.rows; }
  int64_t rows(WeightView w) const {
    const auto found = rows_.find(w.data);
    return found == rows_.end() ? 0 : found->second;
  }

 private:
  std::map<const void*, int64_t> rows_;
};

class ExpertLoadTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    testing::write_small_model(folder_ / "model", GetParam());
    model_ = Model::load((folder_ / "model").string());
  }
  // Of a layer, all its experts.
  int64_t all(const SchedulerState& state, int64_t layer) const {
    const auto first = state.expert_tokens.begin() + layer * state.experts;
    return std::accumulate(first, first + state.experts, int64_t{0});
  }

  testing::TempFolder folder_;
  std::unique_ptr<Model> model_;
  Context context_{2};
};

TEST_P(ExpertLoadTest, CountsAreTheRowsOfEachExpertAndAddUpToTokensTimesTopK) {
  const ModelConfig& config = model_->config();
  RowCounter counter;
  EngineOptions options{.batch = 7, .observer = &counter};
  options.shortcuts.dead_prefill = false;
  Engine engine(*model_, context_, options);
  EXPECT_EQ(engine.state().expert_tokens,
            std::vector<int64_t>(static_cast<size_t>(config.layer_count() * config.experts)));

  const std::vector<Token> prompt =
      model_->tokenizer().encode("the ship came into the harbour at noon");
  GenerateOptions generate{.max_tokens = 9};
  const Answer answer = engine.generate(prompt, generate);
  ASSERT_EQ(answer.tokens.size(), 9u);
  // The last token that was drawn is not read.
  const auto read = static_cast<int64_t>(prompt.size() + answer.tokens.size()) - 1;

  const SchedulerState state = engine.state();
  ASSERT_EQ(state.experts, config.experts);
  int64_t moe_layers = 0;
  for (int64_t layer = 0; layer < config.layer_count(); ++layer) {
    const bool moe = config.layers[layer].moe;
    moe_layers += moe;
    EXPECT_EQ(all(state, layer), moe ? read * config.experts_used : 0) << "layer " << layer;
    for (int64_t e = 0; moe && e < config.experts; ++e) {
      EXPECT_EQ(state.expert_tokens[layer * config.experts + e],
                counter.rows(model_->weights().layers[layer].expert_up.expert(e)))
          << "layer " << layer << ", expert " << e;
    }
  }
  EXPECT_GT(moe_layers, 0);
}

TEST_P(ExpertLoadTest, WhatIsKnownOrNeverLookedAtGoesToNoExpert) {
  const ModelConfig& config = model_->config();
  Engine engine(*model_, context_);
  const std::vector<Token> prompt =
      model_->tokenizer().encode("the ship came into the harbour at noon");
  const auto layers = static_cast<int64_t>(config.layers.size());
  const auto read = [&] {
    const SchedulerState before = engine.state();
    const Answer answer = engine.generate(prompt, {.max_tokens = 0});
    const SchedulerState after = engine.state();
    std::vector<int64_t> out;
    for (int64_t layer = 0; layer < layers; ++layer) {
      if (config.layers[layer].moe) out.push_back(all(after, layer) - all(before, layer));
    }
    return std::pair(out, answer.cached_tokens);
  };
  const auto [fresh, none] = read();
  EXPECT_EQ(none, 0);
  EXPECT_LE(fresh.back(), fresh.front());
  const auto [again, known] = read();
  ASSERT_GT(known, 0);
  EXPECT_EQ(again.front(), (static_cast<int64_t>(prompt.size()) - known) * config.experts_used);
}

INSTANTIATE_TEST_SUITE_P(Models, ExpertLoadTest, ::testing::Values("scout", "maverick", "top_2"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace drover
