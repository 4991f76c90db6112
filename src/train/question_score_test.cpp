#include "train/question_score.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <random>

#include "eval/random_model.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

// Examples that the test wrote itself.
class Written : public Source {
 public:
  explicit Written(std::vector<Example> examples) : examples_(std::move(examples)) {}
  std::string_view name() const override { return "written"; }
  Example example(uint64_t seed, uint64_t index, int64_t) const override {
    // Or a training with the same seed would have taught what is asked.
    EXPECT_NE(seed, QuestionOptions().seed);
    return examples_[static_cast<size_t>(index) % examples_.size()];
  }

 private:
  std::vector<Example> examples_;
};

// Random weights answer nonsense, and always the same nonsense: what is expected can be made of it.
class QuestionScoreTest : public ::testing::Test {
 protected:
  static constexpr int64_t kQuestions = 6;

  QuestionScoreTest() {
    write_random_model(context_, random_shape("tiny-vision"), *mixture_from_name("f32"), 1,
                       folder_ / "model.gguf");
    model_ = Model::load((folder_ / "model.gguf").string());
    engine_ = std::make_unique<Engine>(*model_, context_);
    engine_->call([&] { encoder_.emplace(*model_, context_); });
  }

  TiledImage noise(uint32_t seed) const {
    const int64_t size = model_->vision().config.tiles.size;
    TiledImage out{{1, 1, size, size}, size, {}};
    std::mt19937 random(seed);
    out.pixels.resize(static_cast<size_t>(size * size * 3));
    for (uint8_t& byte : out.pixels) byte = static_cast<uint8_t>(random());
    return out;
  }

  // A picture and "cd", with what the model answers to it.
  Example answered(const TiledImage& picture) {
    const Tokenizer& tokenizer = model_->tokenizer();
    Example out;
    tokenizer.encode("ab", out.tokens);
    append_picture(tokenizer, picture_tokens(model_->vision().config, picture.layout), out.tokens);
    tokenizer.encode("cd", out.tokens);
    out.weights.assign(out.tokens.size(), 0);
    out.pictures = {picture};
    Prompt prompt{out.tokens};
    engine_->call([&] { prompt.pictures = encoder_->encode(out.pictures); });
    GenerateOptions options{.max_tokens = 64};
    options.sampling.temperature = 0;
    options.stop_tokens = chat_stop_tokens(ChatFormat::kLlama4, tokenizer);
    expect(out, engine_->generate(prompt, options).text);
    return out;
  }
  void expect(Example& example, std::string_view answer) const {
    model_->tokenizer().encode(answer, example.tokens);
    example.weights.resize(example.tokens.size(), 1);
  }

  QuestionScore score(std::vector<Example> examples) {
    QuestionOptions options;
    options.examples = static_cast<int64_t>(examples.size());
    return score_questions(*engine_, &*encoder_, model_->tokenizer(), Written(std::move(examples)),
                           options);
  }

  testing::TempFolder folder_;
  Context context_{2};
  std::unique_ptr<Model> model_;
  std::unique_ptr<Engine> engine_;
  std::optional<PictureEncoder> encoder_;
};

TEST_F(QuestionScoreTest, SharesAreOfAnswersThatAreRightToTheLetter) {
  std::vector<Example> examples;
  std::map<std::string, int64_t> times;
  for (int64_t i = 0; i < kQuestions; ++i) {
    examples.push_back(answered(noise(static_cast<uint32_t>(i))));
    if (i % 3 == 0) expect(examples.back(), "a");  // a letter too many
    ++times[first_question(examples.back(), model_->tokenizer()).expected];
  }
  const QuestionScore got = score(examples);
  EXPECT_EQ(got.asked, kQuestions);
  EXPECT_DOUBLE_EQ(got.right, 4.0 / 6);
  ASSERT_EQ(got.misses.size(), 2u);
  EXPECT_EQ(got.misses[0].expected, got.misses[0].answer + "a");
  EXPECT_EQ(got.misses[0].question, "cd");
  int64_t most = 0;
  for (const auto& [answer, count] : times) most = std::max(most, count);
  EXPECT_DOUBLE_EQ(got.most_frequent, static_cast<double>(most) / kQuestions);
  // Noise is not like other noise to this model; without any it sees less still.
  EXPECT_LT(got.without_picture, got.right);
  EXPECT_LT(got.other_picture, got.right);
}

TEST_F(QuestionScoreTest, AnotherPictureThatIsTheSameChangesNothing) {
  const std::vector<Example> examples(4, answered(noise(1)));
  const QuestionScore got = score(examples);
  EXPECT_EQ(got.right, 1);
  EXPECT_EQ(got.other_picture, 1);
  EXPECT_EQ(got.most_frequent, 1);
}

// Examples 0 and 1 are asked, 2 and 3 say what is usual.
TEST_F(QuestionScoreTest, WhatIsAnsweredMostOftenIsLearntFromOthers) {
  const auto text_only = [&](std::string_view question, std::string_view answer) {
    Example out;
    out.tokens = model_->tokenizer().encode(question);
    out.weights.assign(out.tokens.size(), 0);
    expect(out, answer);
    return out;
  };
  const auto most_frequent = [&](std::vector<Example> examples) {
    QuestionOptions options;
    options.examples = 2;
    return score_questions(*engine_, nullptr, model_->tokenizer(), Written(std::move(examples)),
                           options)
        .most_frequent;
  };
  // By itself a question that comes once would always be right. Here "z" is said to both.
  EXPECT_EQ(most_frequent({text_only("a", "x"), text_only("b", "z"), text_only("c", "z"),
                           text_only("d", "z")}),
            0.5);
  EXPECT_EQ(most_frequent({text_only("a", "x"), text_only("c", "z"), text_only("c", "z"),
                           text_only("a", "x")}),
            1);
}

TEST_F(QuestionScoreTest, QuestionsWithoutPicturesHaveNoSuchControls) {
  Example example = answered(noise(1));
  example.pictures.clear();
  example.tokens = model_->tokenizer().encode("abcd");
  example.weights = std::vector<float>(example.tokens.size(), 0);
  example.weights.back() = 1;
  const QuestionScore got = score({example});
  EXPECT_EQ(got.without_picture, -1);
  EXPECT_EQ(got.other_picture, -1);

  example.weights.back() = 0;
  testing::expect_error(ErrorKind::kBadData, "answer", [&] { score({example}); });
}

// Both ends solve (share - p)^2 = z^2 p (1 - p) / n, which is the definition.
TEST(Interval95, EndsWhereTheShareIsTwoDeviationsAway) {
  for (const auto& [right, trials] : {std::pair{90, 100}, {1, 3}, {500, 1000}}) {
    const double share = static_cast<double>(right) / trials;
    const Interval got = interval_95(share, trials);
    for (const double p : {got.low, got.high}) {
      EXPECT_NEAR(std::abs(share - p) / std::sqrt(p * (1 - p) / trials), 1.959964, 1e-9);
    }
    EXPECT_LT(got.low, share);
    EXPECT_GT(got.high, share);
  }
  EXPECT_EQ(interval_95(1, 100).high, 1);
  EXPECT_NEAR(interval_95(1, 100).low, 0.963, 0.0005);  // 100 of 100 are no certainty
  EXPECT_EQ(interval_95(0, 100).low, 0);
  EXPECT_EQ(interval_95(0, 0).high - interval_95(0, 0).low, 1);
}

}  // namespace
}  // namespace drover
