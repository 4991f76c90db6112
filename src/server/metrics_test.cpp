#include "server/metrics.h"

#include <gtest/gtest.h>

namespace drover {
namespace {

// Whether the text has this line.
bool has(const std::string& text, const std::string& line) {
  return ("\n" + text).find("\n" + line + "\n") != std::string::npos;
}

// Two layers with four experts each between two without.
SchedulerState experts(std::vector<int64_t> second, std::vector<int64_t> third) {
  SchedulerState out;
  out.experts = 4;
  out.expert_tokens = std::vector<int64_t>(16);
  std::copy(second.begin(), second.end(), out.expert_tokens.begin() + 4);
  std::copy(third.begin(), third.end(), out.expert_tokens.begin() + 8);
  return out;
}

TEST(Metrics, TellHowEvenlyTheExpertsOfALayerAreLoaded) {
  Metrics metrics("1");
  EXPECT_EQ(metrics.text({}, {}, 0, 0).find("drover_expert_load_ratio{"), std::string::npos);
  EXPECT_EQ(metrics.text(experts({}, {}), {}, 0, 0).find("drover_expert_load_ratio{"),
            std::string::npos);
  const std::string text = metrics.text(experts({5, 5, 5, 5}, {0, 6, 0, 2}), {}, 0, 0);
  EXPECT_TRUE(has(text, R"(drover_expert_load_ratio{layer="1"} 1)")) << text;
  EXPECT_TRUE(has(text, R"(drover_expert_load_ratio{layer="2"} 3)")) << text;
  EXPECT_EQ(text.find(R"(layer="0")"), std::string::npos);
  EXPECT_EQ(text.find(R"(layer="3")"), std::string::npos);
  EXPECT_EQ(text.find("drover_expert_tokens_total"), std::string::npos);
}

TEST(Metrics, CountTheTokensOfEachExpertIfAsked) {
  Metrics metrics("1", /*experts=*/true);
  metrics.text(experts({1, 2, 3, 4}, {}), {}, 0, 0);
  const std::string text = metrics.text(experts({2, 2, 3, 4}, {0, 0, 0, 7}), {}, 0, 0);
  EXPECT_TRUE(has(text, R"(drover_expert_tokens_total{expert="0",layer="1"} 2)")) << text;
  EXPECT_TRUE(has(text, R"(drover_expert_tokens_total{expert="3",layer="1"} 4)")) << text;
  EXPECT_TRUE(has(text, R"(drover_expert_tokens_total{expert="0",layer="2"} 0)")) << text;
  EXPECT_TRUE(has(text, R"(drover_expert_tokens_total{expert="3",layer="2"} 7)")) << text;
}

TEST(Metrics, TellOfTheCacheAndThePrefixes) {
  Metrics metrics("1");
  metrics.finished("completions", "stop", std::chrono::seconds(1), 10, 4, 3);
  metrics.finished("completions", "stop", std::chrono::seconds(1), 10, 0, 3);
  SchedulerState state;
  state.page_bytes = 100;
  state.pages = 9;
  state.pages_promised = 5;
  state.pages_used = 3;
  const std::string text = metrics.text(state, {}, 2, 77);
  for (const char* line : {"drover_cache_used_bytes 300", "drover_cache_promised_bytes 500",
                           "drover_cache_limit_bytes 900", "drover_prefix_hits_total 1",
                           "drover_prompt_tokens_cached_total 4", "drover_tokens_in_hand 77",
                           "drover_requests_in_hand 2"}) {
    EXPECT_TRUE(has(text, line)) << line << " in\n" << text;
  }
}

}  // namespace
}  // namespace drover
