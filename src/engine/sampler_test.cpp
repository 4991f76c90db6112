#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>

#include "base/error.h"
#include "engine/logprobs.h"
#include "tests/support/expect_error.h"

namespace drover {
namespace {

SamplingOptions plain(float temperature) { return {.temperature = temperature, .top_p = 1.0f}; }

// How often each token is drawn over many positions.
std::map<Token, double> frequencies(const SamplingOptions& options,
                                    const std::vector<float>& logits, std::vector<Token> text = {},
                                    int64_t answer = 0) {
  constexpr int kDraws = 40000;
  Sampler sampler(options);
  std::map<Token, double> out;
  for (int i = 0; i < kDraws; ++i) {
    std::vector<float> copy = logits;
    out[sampler.sample(copy, text, answer, i)] += 1.0 / kDraws;
  }
  return out;
}

// Four standard deviations of a frequency over 40,000 draws.
constexpr double kNoise = 4 * 0.5 / 200;

TEST(Sampler, TemperatureZeroTakesTheBestAndOfEqualsTheFirst) {
  std::vector<float> logits = {1.0f, 3.0f, 3.0f, NAN, -INFINITY};
  EXPECT_EQ(Sampler(plain(0)).sample(logits, {}, 0, 0), 1);
  std::vector<float> broken = {NAN, NAN};
  EXPECT_THROW(Sampler(plain(0)).sample(broken, {}, 0, 0), Error);
}

TEST(Sampler, DrawsBySoftmaxOfLogitsOverTemperature) {
  const std::vector<float> logits = {0.0f, 1.0f, 2.0f};
  for (const float temperature : {0.5f, 1.0f, 2.0f}) {
    auto drawn = frequencies(plain(temperature), logits);
    double sum = 0;
    for (const float l : logits) sum += std::exp(l / temperature);
    for (Token t = 0; t < 3; ++t) {
      EXPECT_NEAR(drawn[t], std::exp(logits[t] / temperature) / sum, kNoise);
    }
  }
}

TEST(Sampler, TopKKeepsTheBestAndRenormalises) {
  SamplingOptions options = plain(1);
  options.top_k = 2;
  auto drawn = frequencies(options, {0.0f, 1.0f, 2.0f, 1.5f});
  EXPECT_EQ(drawn.size(), 2u);
  EXPECT_NEAR(drawn[2], 1 / (1 + std::exp(-0.5)), kNoise);
}

TEST(Sampler, TopPKeepsTheFewestThatHoldTheMass) {
  // Probabilities 0.5, 0.3, 0.15, 0.05.
  const std::vector<float> logits = {std::log(0.15f), std::log(0.5f), std::log(0.05f),
                                     std::log(0.3f)};
  SamplingOptions options = plain(1);
  options.top_p = 0.79f;
  EXPECT_EQ(frequencies(options, logits).size(), 2u);
  options.top_p = 0.81f;
  EXPECT_EQ(frequencies(options, logits).size(), 3u);
  options.top_p = 0.3f;
  EXPECT_EQ(frequencies(options, logits).size(), 1u);
}

// The shortcut that sorts only what can be chosen gives the token that a full sort gives.
TEST(Sampler, TopPAgreesWithAFullSortOnLargeVocabularies) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0, 3);
  for (int round = 0; round < 50; ++round) {
    std::vector<float> logits(5000);
    for (float& l : logits) l = normal(random);
    SamplingOptions options = plain(0.9f);
    options.top_p = 0.95f;
    options.seed = round;
    std::vector<std::pair<double, Token>> sorted;
    double sum = 0;
    const float best = *std::max_element(logits.begin(), logits.end());
    for (Token t = 0; t < 5000; ++t) {
      sorted.emplace_back(
          -std::exp((static_cast<double>(logits[t]) - best) * (1.0 / options.temperature)), t);
      sum -= sorted.back().first;
    }
    std::sort(sorted.begin(), sorted.end());
    double kept = 0;
    size_t count = 0;
    while (kept < options.top_p * sum) kept -= sorted[count++].first;
    double target = draw(round, 3) * kept;
    size_t i = 0;
    for (double seen = -sorted[0].first; target >= seen && i + 1 < count;)
      seen -= sorted[++i].first;
    std::vector<float> copy = logits;
    EXPECT_EQ(Sampler(options).sample(copy, {}, 0, 3), sorted[i].second) << "round " << round;
  }
}

// Top-p and min-p look at what top-k kept, whichever of the cuts is the tightest.
TEST(Sampler, TopKComesBeforeTheOtherCuts) {
  std::vector<float> logits = {0.0f, std::log(0.6f)};
  logits.resize(1002, std::log(0.01f));
  SamplingOptions options = plain(1);
  options.top_k = 2;
  options.top_p = 0.5f;  // of 1.6: the first token alone holds it
  options.min_p = 0.1f;
  EXPECT_EQ(frequencies(options, logits).size(), 1u);
  options = plain(1);
  options.top_k = 3;
  options.top_p = 0.9f;  // of 1.109: the first token alone holds it
  logits = {0.0f, std::log(0.09f), std::log(0.019f), std::log(0.019f), std::log(0.019f)};
  EXPECT_EQ(frequencies(options, logits).size(), 1u);
}

TEST(Sampler, MinPDropsWhatIsFarBelowTheBest) {
  SamplingOptions options = plain(1);
  options.min_p = 0.5f;
  auto drawn = frequencies(options, {0.0f, -0.6f, -0.8f});
  EXPECT_EQ(drawn.size(), 2u);  // e^-0.6 = 0.55, e^-0.8 = 0.45
}

TEST(Sampler, PenaltiesLowerWhatWasSaid) {
  SamplingOptions options = plain(0);
  options.repeat_penalty = 2.0f;
  std::vector<float> logits = {2.0f, 1.5f, -1.0f};
  EXPECT_EQ(Sampler(options).sample(logits, std::vector<Token>{0}, 0, 0), 1);
  EXPECT_EQ(logits[0], 1.0f);
  options = plain(0);
  options.presence_penalty = 0.25f;
  options.frequency_penalty = 0.25f;
  logits = {2.0f, 1.5f, -1.0f};
  // The prompt's tokens do not count: only the last three are the answer.
  EXPECT_EQ(Sampler(options).sample(logits, std::vector<Token>{1, 1, 0, 0, 2}, 3, 0), 1);
  EXPECT_EQ(logits, (std::vector<float>{1.25f, 1.5f, -1.5f}));
}

TEST(Sampler, TheSameSeedAndPositionGiveTheSameTokenWhateverCameBefore) {
  std::vector<float> logits(100);
  for (int i = 0; i < 100; ++i) logits[i] = std::sin(i * 1.7f);
  SamplingOptions options = plain(1);
  options.seed = 42;
  Sampler a(options), b(options);
  for (int position = 0; position < 20; ++position) {
    auto copy = logits;
    a.sample(copy, {}, 0, position);
  }
  auto first = logits, second = logits;
  EXPECT_EQ(a.sample(first, {}, 0, 1000), b.sample(second, {}, 0, 1000));
}

TEST(Sampler, ABiasIsAddedBeforeAllElseAndMinus100Bans) {
  SamplingOptions options = plain(1);
  options.logit_bias = {{0, 1.0f}, {2, kBan}, {3, 100.0f}, {3, -100.0f}};
  auto drawn = frequencies(options, {0.0f, 1.0f, 50.0f, 50.0f});
  EXPECT_EQ(drawn.size(), 2u) << "a ban holds however probable the token was";
  EXPECT_NEAR(drawn[0], 0.5, kNoise);
  options = plain(0);
  options.logit_bias = {{1, 3.0f}};
  options.presence_penalty = 1.0f;
  std::vector<float> logits = {2.0f, 0.0f, -1.0f};
  EXPECT_EQ(Sampler(options).sample(logits, std::vector<Token>{1}, 1, 0), 0);
  EXPECT_EQ(logits, (std::vector<float>{2.0f, 2.0f, -1.0f}));
}

TEST(Sampler, WhereAllIsBannedItSaysWhoDidIt) {
  SamplingOptions options = plain(1);
  options.logit_bias = {{0, kBan}, {1, kBan}};
  std::vector<float> logits = {1.0f, 2.0f};
  testing::expect_error(ErrorKind::kUsage, "logit_bias: expected to leave a token at position 7",
                        [&] { Sampler(options).sample(logits, {}, 0, 7); });
  options = plain(1);
  options.constraint = [](std::span<const Token>, std::span<float> all) {
    std::fill(all.begin(), all.end(), -INFINITY);
  };
  testing::expect_error(ErrorKind::kUsage, "constraint",
                        [&] { Sampler(options).sample(logits, {}, 0, 7); });
}

// The token after the last one of the answer, whatever is more probable.
TEST(Sampler, AConstraintSeesTheAnswerAndLeavesWhatMayCome) {
  SamplingOptions options = plain(1);
  options.logit_bias = {{0, 100.0f}};
  int asked = 0;
  options.constraint = [asked](std::span<const Token> answer, std::span<float> logits) mutable {
    EXPECT_EQ(asked++, static_cast<int>(answer.size())) << "a copy of its own";
    for (size_t i = 0; i < logits.size(); ++i) {
      if (i != (answer.empty() ? 1u : static_cast<size_t>(answer.back()) + 1)) {
        logits[i] = -INFINITY;
      }
    }
  };
  for (int samples = 0; samples < 2; ++samples) {
    Sampler sampler(options);
    std::vector<Token> text = {9, 9};
    for (int i = 0; i < 4; ++i) {
      std::vector<float> logits = {5, 1, 0, -3, 2, 7};
      text.push_back(sampler.sample(logits, text, i, i));
      EXPECT_EQ(text.back(), i + 1);
    }
  }
}

TEST(Logprobs, AreTheSoftmaxOfTheLogitsAndTheTopIsInOrder) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 4);
  for (const size_t vocab : {1u, 2u, 20u, 500u}) {
    std::vector<float> logits(vocab);
    // Rounded, so that many are equal.
    for (float& l : logits) l = std::round(normal(random));
    long double sum = 0;
    for (const float l : logits) sum += std::exp(static_cast<long double>(l));
    std::vector<Token> order(vocab);
    for (size_t i = 0; i < vocab; ++i) order[i] = static_cast<Token>(i);
    std::stable_sort(order.begin(), order.end(),
                     [&](Token a, Token b) { return logits[a] > logits[b]; });
    for (const int64_t top : {0, 1, 5, 20}) {
      const Token chosen = static_cast<Token>(random() % vocab);
      const ChoiceLogprobs got = logprobs_of(logits, chosen, top);
      const auto expect = [&](const TokenLogprob& entry, Token token) {
        EXPECT_EQ(entry.token, token);
        // The sum of at most 500 terms errs by 500 half units of a double at the most, which is
        // 6e-14 of it, and so of its logarithm; the subtraction adds less.
        EXPECT_NEAR(entry.logprob, logits[token] - static_cast<double>(std::log(sum)), 1e-13);
      };
      expect(got.chosen, chosen);
      ASSERT_EQ(got.top.size(), std::min<size_t>(vocab, static_cast<size_t>(top)));
      for (size_t i = 0; i < got.top.size(); ++i) expect(got.top[i], order[i]);
    }
  }
}

TEST(Logprobs, LogitsOfAnySizeDoNotOverflow) {
  const ChoiceLogprobs got = logprobs_of(std::vector<float>{3e38f, -3e38f, -INFINITY}, 2, 3);
  EXPECT_EQ(got.top[0], (TokenLogprob{0, 0.0}));
  EXPECT_EQ(got.chosen.logprob, -INFINITY);
}

TEST(Sampler, RefusesOptionsOutOfRange) {
  for (auto change : std::vector<void (*)(SamplingOptions&)>{
           [](SamplingOptions& o) { o.temperature = -1; }, [](SamplingOptions& o) { o.top_p = 0; },
           [](SamplingOptions& o) { o.top_p = 1.1f; }, [](SamplingOptions& o) { o.min_p = 2; },
           [](SamplingOptions& o) { o.top_k = -1; },
           [](SamplingOptions& o) { o.repeat_penalty = 0; },
           [](SamplingOptions& o) { o.temperature = NAN; },
           [](SamplingOptions& o) {
             o.logit_bias = {{5, 101.0f}};
           },
           [](SamplingOptions& o) {
             o.logit_bias = {{5, NAN}};
           },
           [](SamplingOptions& o) {
             o.logit_bias = {{-1, 1.0f}};
           },
           [](SamplingOptions& o) {
             o.logit_bias.resize(kMostBiases + 1, {1, 1.0f});
           }}) {
    SamplingOptions options;
    change(options);
    EXPECT_THROW(Sampler{options}, Error);
  }
}

}  // namespace
}  // namespace drover
