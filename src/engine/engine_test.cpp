#include "engine/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <future>

#include "engine/stop_finder.h"
#include "tests/support/expect_error.h"
#include "tests/support/small_model.h"
#include "tests/support/temp_folder.h"
#include "text/utf8.h"

namespace drover {
namespace {

using testing::expect_error;

std::string show(StopFinder& finder, std::initializer_list<std::string_view> pieces) {
  std::string out;
  for (const auto piece : pieces) out += finder.push(piece) + "|";
  if (!finder.found()) out += finder.flush();
  return out;
}

TEST(StopFinder, ShowsNothingOfAStopStringAndHoldsBackItsBeginnings) {
  StopFinder finder({"END", "\n\n"});
  EXPECT_EQ(show(finder, {"a E", "N", "x", "\n", "b", "EN", "D more"}), "a ||ENx||\nb|||");
}

TEST(StopFinder, TheFirstStopInTheTextWins) {
  StopFinder finder({"later", "ate"});
  EXPECT_EQ(finder.push("I later"), "I ");
  EXPECT_EQ(finder.which(), "later");
  EXPECT_EQ(finder.push("more"), "");
}

TEST(StopFinder, WithoutStopsEverythingPasses) {
  StopFinder finder({""});
  EXPECT_EQ(finder.push("abc"), "abc");
  EXPECT_FALSE(finder.found());
  EXPECT_EQ(finder.which(), std::nullopt);
}

// Texts here cross several borders of the small model's chunks.
class EngineTest : public testing::SmallModelTest {
 protected:
  // Hot, so that many tokens are likely and other logits soon draw another one.
  static GenerateOptions hot(int64_t max_tokens, uint64_t seed = 1) {
    GenerateOptions options;
    options.sampling = {.temperature = 1.5f, .top_p = 1.0f, .seed = seed};
    options.max_tokens = max_tokens;
    return options;
  }

  Answer fresh(std::string_view prompt, const GenerateOptions& options) {
    Engine engine(*model_, context_, {.batch = 5});
    return engine.generate(tokens_of(prompt), options);
  }

  Context context_{1};
};

constexpr int64_t kChunk = 16;
constexpr char kPrompt[] =
    "the ship came into the harbour at noon, and nobody was there to see it.";

TEST_F(EngineTest, AConversationThatGoesOnAnswersAsAFreshEngineDoes) {
  const std::string base = kPrompt;
  // Longer, the same, cut back by a little, cut back by several chunks, other from the start.
  const std::vector<std::string> prompts = {base,
                                            base + " then it left.",
                                            base + " then it left.",
                                            base + " then it stayed",
                                            base.substr(0, 20) + "?",
                                            "no. " + base};
  for (const int64_t batch : {1, 5, 512}) {
    Engine engine(*model_, context_, {.batch = batch});
    for (size_t i = 0; i < prompts.size(); ++i) {
      const Answer answer = engine.generate(tokens_of(prompts[i]), hot(40, i));
      EXPECT_EQ(answer.tokens, fresh(prompts[i], hot(40, i)).tokens)
          << "batch " << batch << ", prompt " << i;
      EXPECT_LT(answer.cached_tokens, answer.prompt_tokens)
          << "the last token is computed for its logits";
    }
  }
}

TEST_F(EngineTest, APromptThatContinuesTheAnswerReadsOnlyWhatIsNew) {
  Engine engine(*model_, context_);
  std::vector<Token> text = tokens_of(kPrompt);
  const Answer first = engine.generate(text, hot(20));
  text.insert(text.end(), first.tokens.begin(), first.tokens.end());
  const size_t known = text.size();
  for (const Token token : tokens_of(" and")) text.push_back(token);
  const Answer second = engine.generate(text, hot(20));
  // The last token of an answer was sampled and never read. And with chunks as short as here rings
  // are not kept.
  EXPECT_EQ(second.cached_tokens, (static_cast<int64_t>(known) - 1) / kChunk * kChunk);
  Engine other(*model_, context_);
  EXPECT_EQ(second.tokens, other.generate(text, hot(20)).tokens);
}

TEST_F(EngineTest, TheSeedAloneDecidesTheDraws) {
  const Answer one = fresh(kPrompt, hot(30, 7));
  EXPECT_EQ(one.tokens, fresh(kPrompt, hot(30, 7)).tokens);
  EXPECT_NE(one.tokens, fresh(kPrompt, hot(30, 8)).tokens);
}

TEST_F(EngineTest, AnswersEndAfterMaxTokens) {
  const Answer all = fresh(kPrompt, hot(12));
  for (const int64_t max : {0, 1, 11}) {
    const Answer answer = fresh(kPrompt, hot(max));
    EXPECT_EQ(answer.finish, FinishReason::kLength);
    EXPECT_EQ(answer.tokens, std::vector<Token>(all.tokens.begin(), all.tokens.begin() + max));
  }
}

TEST_F(EngineTest, AStopTokenEndsTheAnswerAndIsNotPartOfIt) {
  const Answer all = fresh(kPrompt, hot(30));
  GenerateOptions options = hot(30);
  options.stop_tokens = {all.tokens[9]};
  const Answer answer = fresh(kPrompt, options);
  const auto end = std::find(all.tokens.begin(), all.tokens.end(), all.tokens[9]);
  EXPECT_EQ(answer.finish, FinishReason::kStop);
  EXPECT_EQ(answer.tokens, std::vector<Token>(all.tokens.begin(), end));
}

TEST_F(EngineTest, StopTokensMayBeManyInAnyOrder) {
  const Answer all = fresh(kPrompt, hot(30));
  GenerateOptions options = hot(30);
  for (Token i = 0; i < 1000; ++i) {
    options.stop_tokens.push_back(i % 10 == 3 ? all.tokens[9] : 1000 - i);
  }
  const Answer answer = fresh(kPrompt, options);
  const auto end = std::find_first_of(all.tokens.begin(), all.tokens.end(),
                                      options.stop_tokens.begin(), options.stop_tokens.end());
  EXPECT_EQ(answer.finish, FinishReason::kStop);
  EXPECT_EQ(answer.tokens, std::vector<Token>(all.tokens.begin(), end));
}

// Every piece of the answer's text in turn is a stop string, most of them spread over several
// tokens.
TEST_F(EngineTest, AStopStringAcrossTokensEndsTheTextBeforeIt) {
  const Answer all = fresh(kPrompt, hot(40));
  ASSERT_GT(all.text.size(), 20u);
  for (size_t first = 0; first + 6 < all.text.size(); first += 3) {
    GenerateOptions options = hot(40);
    options.stop = {"not in the answer", all.text.substr(first, 6)};
    std::string shown;
    Engine engine(*model_, context_);
    Listener listener;
    listener.text = [&](std::string_view piece) { shown += piece; };
    const Answer answer = engine.generate(tokens_of(kPrompt), options, listener);
    EXPECT_EQ(answer.finish, FinishReason::kStop);
    EXPECT_EQ(answer.text, all.text.substr(0, all.text.find(options.stop[1])));
    EXPECT_EQ(shown, answer.text);
    EXPECT_EQ(answer.stop_string, options.stop[1]);
  }
  EXPECT_EQ(all.stop_string, std::nullopt);
}

TEST_F(EngineTest, ThePiecesOfTheTextAreWholeCharacters) {
  std::string shown;
  Listener listener;
  listener.text = [&](std::string_view piece) {
    for (size_t at = 0; at < piece.size();) {
      const Utf8Step step = utf8_step(piece, at);
      EXPECT_TRUE(step.well_formed);
      at += step.length;
    }
    shown += piece;
  };
  Engine engine(*model_, context_);
  const Answer answer = engine.generate(tokens_of(kPrompt), hot(300), listener);
  EXPECT_EQ(shown, answer.text);
  // The halves of U+00E9 come up at random, mostly apart.
  EXPECT_NE(shown.find(kReplacementUtf8), std::string::npos);
}

TEST_F(EngineTest, AnAnswerEndsWhereTheContextIsFull) {
  const auto prompt = tokens_of(kPrompt);
  const int64_t n = static_cast<int64_t>(prompt.size());
  for (const int64_t room : {0, 1, 9}) {
    Engine engine(*model_, context_, {.context = n + room});
    const Answer answer = engine.generate(prompt, hot(-1));
    EXPECT_EQ(answer.finish, FinishReason::kContext);
    // The last token needs no room: nothing is computed after it.
    EXPECT_EQ(static_cast<int64_t>(answer.tokens.size()), room + 1);
    EXPECT_EQ(answer.tokens, fresh(kPrompt, hot(room + 1)).tokens);
  }
  Engine engine(*model_, context_, {.context = n - 1});
  expect_error(ErrorKind::kLimit,
               fmt::format("expected at most the context of {} tokens, got {}", n - 1, n),
               [&] { engine.generate(prompt, hot(5)); });
}

TEST_F(EngineTest, ACancelWhileReadingLeavesAnEngineThatAnswersAsBefore) {
  const auto prompt = tokens_of(kPrompt);
  for (const uint64_t stop_at : {4, 16, 20, 60}) {
    Engine engine(*model_, context_, {.batch = 4});
    std::atomic<bool> cancel{false};
    Listener listener;
    listener.cancel = &cancel;
    listener.prompt = [&](uint64_t done, uint64_t) { cancel = done >= stop_at; };
    const Answer answer = engine.generate(prompt, hot(20), listener);
    EXPECT_EQ(answer.finish, FinishReason::kCancelled);
    EXPECT_TRUE(answer.tokens.empty());
    EXPECT_EQ(engine.state().kept_tokens, static_cast<int64_t>(stop_at));
    const Answer again = engine.generate(prompt, hot(20));
    EXPECT_EQ(again.cached_tokens, static_cast<int64_t>(stop_at) / kChunk * kChunk);
    EXPECT_EQ(again.tokens, fresh(kPrompt, hot(20)).tokens);
  }
}

TEST_F(EngineTest, ACancelInsideABatchIsHeardBetweenLayers) {
  const auto prompt = tokens_of(kPrompt);
  Engine engine(*model_, context_);
  std::atomic<bool> cancel{false};
  Listener listener;
  listener.cancel = &cancel;
  uint64_t most = 0;
  listener.prompt = [&](uint64_t done, uint64_t) {
    most = done;
    cancel = true;
  };
  EXPECT_EQ(engine.generate(prompt, hot(20), listener).finish, FinishReason::kCancelled);
  EXPECT_GT(most, 0u);
  EXPECT_LT(most, prompt.size());
  EXPECT_EQ(engine.state().kept_tokens, 0);
  EXPECT_EQ(engine.generate(prompt, hot(20)).tokens, fresh(kPrompt, hot(20)).tokens);
}

TEST_F(EngineTest, ACancelWhileAnsweringKeepsWhatWasSaid) {
  const Answer all = fresh(kPrompt, hot(40));
  for (const size_t pieces : {1, 2, 17}) {
    Engine engine(*model_, context_);
    std::atomic<bool> cancel{false};
    size_t heard = 0;
    Listener listener;
    listener.cancel = &cancel;
    listener.text = [&](std::string_view) { cancel = ++heard >= pieces; };
    const Answer answer = engine.generate(tokens_of(kPrompt), hot(40), listener);
    EXPECT_EQ(answer.finish, FinishReason::kCancelled);
    EXPECT_FALSE(answer.text.empty());
    EXPECT_TRUE(all.text.starts_with(answer.text));
    EXPECT_EQ(engine.generate(tokens_of(kPrompt), hot(40)).tokens, all.tokens);
  }
}

TEST_F(EngineTest, AListenerThatThrowsLeavesAnEngineThatAnswersAsBefore) {
  Engine engine(*model_, context_, {.batch = 4});
  Listener listener;
  listener.text = [](std::string_view) { throw_error(ErrorKind::kIo, "the reader is gone"); };
  expect_error(ErrorKind::kIo, "gone",
               [&] { engine.generate(tokens_of(kPrompt), hot(20), listener); });
  listener = {};
  listener.prompt = [](uint64_t done, uint64_t) {
    if (done >= 20) throw_error(ErrorKind::kCancelled, "enough");
  };
  engine.forget();
  expect_error(ErrorKind::kCancelled, "enough",
               [&] { engine.generate(tokens_of(kPrompt), hot(20), listener); });
  EXPECT_EQ(engine.generate(tokens_of(kPrompt), hot(20)).tokens, fresh(kPrompt, hot(20)).tokens);
}

TEST_F(EngineTest, ControlTokensAreShownOnlyWhenAsked) {
  const Answer all = fresh(kPrompt, hot(300));
  const bool any = std::any_of(all.tokens.begin(), all.tokens.end(),
                               [](Token token) { return model_->tokenizer().is_control(token); });
  ASSERT_TRUE(any) << "the seed draws no control token; choose another";
  EXPECT_EQ(all.text.find("<|im_end|>"), std::string::npos);
  GenerateOptions options = hot(300);
  options.show_special = true;
  EXPECT_EQ(fresh(kPrompt, options).tokens, all.tokens);
  const std::string special = fresh(kPrompt, options).text;
  EXPECT_GT(special.size(), all.text.size());

  // Some of them, for a parser that takes them out again.
  options = hot(300);
  const Token shown = *std::find_if(all.tokens.begin(), all.tokens.end(), [](Token token) {
    return model_->tokenizer().is_control(token);
  });
  options.shown = {shown};
  const std::string name(model_->tokenizer().token_bytes(shown));
  std::string expected = special;
  for (const char* other : {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|spare|>"}) {
    for (size_t at; other != name && (at = expected.find(other)) != std::string::npos;) {
      expected.erase(at, std::string_view(other).size());
    }
  }
  EXPECT_NE(expected, all.text);
  EXPECT_EQ(fresh(kPrompt, options).text, expected);
}

TEST_F(EngineTest, RefusesWhatItCannotDoAndSaysWhy) {
  Engine engine(*model_, context_, {.context = 64});
  expect_error(ErrorKind::kUsage, "expected at least one token",
               [&] { engine.generate(Prompt{}, hot(1)); });
  const std::vector<Token> outside = {5, 64};
  expect_error(ErrorKind::kBadData, "token: expected 0 to 63, got 64",
               [&] { engine.generate(outside, hot(1)); });
  GenerateOptions bad = hot(1);
  bad.sampling.top_p = 0;
  expect_error(ErrorKind::kUsage, "top_p", [&] { engine.generate(tokens_of("a"), bad); });
  EXPECT_EQ(engine.generate(tokens_of("abc"), hot(9)).tokens, fresh("abc", hot(9)).tokens);

  const auto make = [&](EngineOptions options) {
    return [this, options] { Engine(*model_, context_, options); };
  };
  expect_error(ErrorKind::kLimit, "expected at most the model's 1024 tokens, got 1025",
               make({.context = 1025}));
  expect_error(ErrorKind::kUsage, "context", make({.context = -1}));
  expect_error(ErrorKind::kUsage, "batch", make({.batch = 0}));
  expect_error(ErrorKind::kUsage, "expected f32, bf16 or int8, got q8_0",
               make({.cache_type = DType::kQ8_0}));
}

TEST_F(EngineTest, ScoresInBatchesOfAnySizeAreTheSame) {
  const auto tokens = tokens_of(kPrompt);
  std::vector<float> expected;
  for (const int64_t batch : {512, 1, 7}) {
    Engine engine(*model_, context_, {.batch = batch});
    engine.generate(tokens_of("something else before"), hot(5));
    std::vector<float> logits;
    engine.score(tokens, [&](int64_t first, ConstMatrixView rows) {
      EXPECT_EQ(static_cast<size_t>(first * rows.cols), logits.size());
      for (int64_t t = 0; t < rows.rows; ++t) {
        logits.insert(logits.end(), rows.row(t), rows.row(t) + rows.cols);
      }
    });
    if (expected.empty()) expected = logits;
    EXPECT_EQ(logits, expected) << "batch " << batch;
    EXPECT_EQ(logits.size(), tokens.size() * 64);
  }
}

// -ln p of each token after the first, from the logits that score() gives.
std::vector<ChoiceLogprobs> scored(Engine& engine, std::span<const Token> text, int64_t top) {
  std::vector<ChoiceLogprobs> out;
  engine.score(text, [&](int64_t first, ConstMatrixView logits) {
    for (int64_t t = 0; t < logits.rows; ++t) {
      const size_t next = static_cast<size_t>(first + t) + 1;
      if (next == text.size()) break;
      out.push_back(
          logprobs_of({logits.row(t), static_cast<size_t>(logits.cols)}, text[next], top));
    }
  });
  return out;
}

// Whatever the sampling, they are those of the logits that scoring the whole text gives, to the
// bit.
TEST_F(EngineTest, LogprobsOfPromptAndAnswerAreThoseOfTheScoredText) {
  const auto prompt = tokens_of(kPrompt);
  for (const int64_t batch : {1, 5, 512}) {
    Engine engine(*model_, context_, {.batch = batch});
    GenerateOptions options = hot(30);
    const Answer plain = engine.generate(prompt, options);
    EXPECT_TRUE(plain.logprobs.empty());
    EXPECT_EQ(plain.prompt_logprobs, nullptr);
    options.logprobs = 3;
    options.prompt_logprobs = 2;
    const Answer answer = engine.generate(prompt, options);
    EXPECT_EQ(answer.tokens, plain.tokens);
    EXPECT_EQ(answer.cached_tokens, 0) << "all of the prompt is read";
    std::vector<Token> text = prompt;
    text.insert(text.end(), answer.tokens.begin(), answer.tokens.end());
    EXPECT_EQ(*answer.prompt_logprobs, scored(engine, prompt, 2));
    const auto all = scored(engine, text, 3);
    EXPECT_EQ(answer.logprobs, std::vector(all.begin() + prompt.size() - 1, all.end()));
    options = hot(30);
    options.logprobs = 3;
    options.sampling.temperature = 0.7f;
    options.sampling.top_k = 5;
    options.sampling.logit_bias = {{10, 3.0f}, {11, -3.0f}};
    options.sampling.repeat_penalty = 1.3f;
    const Answer changed = engine.generate(prompt, options);
    EXPECT_GT(changed.cached_tokens, 0);
    text.resize(prompt.size());
    text.insert(text.end(), changed.tokens.begin(), changed.tokens.end());
    const auto other = scored(engine, text, 3);
    EXPECT_EQ(changed.logprobs, std::vector(other.begin() + prompt.size() - 1, other.end()));
  }
}

TEST_F(EngineTest, APromptOfOneTokenHasNoLogprobsAndMayHaveNoAnswer) {
  Engine engine(*model_, context_);
  GenerateOptions options = hot(0);
  options.prompt_logprobs = 0;
  for (const size_t n : {1, 2, 20}) {
    const Answer answer = engine.generate(std::vector<Token>(n, 7), options);
    ASSERT_NE(answer.prompt_logprobs, nullptr);
    EXPECT_EQ(answer.prompt_logprobs->size(), n - 1);
    EXPECT_TRUE(answer.tokens.empty());
    EXPECT_EQ(answer.finish, FinishReason::kLength);
  }
}

// A parser of tool calls sees every token with its bytes; the text shows what it always did.
TEST_F(EngineTest, EachTokenIsToldWithItsBytesBeforeTheTextItLetsOut) {
  const Answer plain = fresh(kPrompt, hot(300));
  GenerateOptions options = hot(300);
  options.stop_tokens = {plain.tokens[250]};
  options.logprobs = 1;
  options.prompt_logprobs = 1;
  std::vector<Token> tokens;
  std::vector<std::string> order;
  std::string bytes, text;
  std::optional<Token> stop;
  bool control = false;
  std::promise<Answer> promise;
  Events events;
  events.prompt_logprobs = [&](std::span<const ChoiceLogprobs> logprobs) {
    EXPECT_EQ(logprobs.size(), tokens_of(kPrompt).size() - 1);
    EXPECT_TRUE(tokens.empty());
    order.push_back("prompt");
  };
  events.token = [&](const DrawnToken& t) {
    EXPECT_FALSE(stop) << "nothing comes after it";
    EXPECT_EQ(t.bytes, model_->tokenizer().token_bytes(t.token));
    EXPECT_EQ(t.control, model_->tokenizer().is_control(t.token));
    ASSERT_NE(t.logprobs, nullptr);
    EXPECT_EQ(t.logprobs->chosen.token, t.token);
    t.stop ? void(stop = t.token) : tokens.push_back(t.token);
    control = control || t.control;
    if (!t.control && !t.stop) bytes += t.bytes;
    order.push_back("token");
  };
  events.text = [&](int64_t, std::string_view piece) {
    text += piece;
    // What is not held back any more was drawn before.
    EXPECT_LE(as_utf8(text).size(), as_utf8(bytes).size());
  };
  events.done = [&](std::vector<Answer> answers, std::exception_ptr error) {
    error ? promise.set_exception(error) : promise.set_value(std::move(answers[0]));
  };
  Engine engine(*model_, context_);
  engine.submit({.prompt = {tokens_of(kPrompt)}, .options = options}, events);
  const Answer answer = promise.get_future().get();
  EXPECT_TRUE(control) << "the seed draws no control token; choose another";
  EXPECT_EQ(order.front(), "prompt");
  EXPECT_EQ(tokens, answer.tokens);
  EXPECT_EQ(text, answer.text);
  EXPECT_EQ(stop, answer.stop_token);
  EXPECT_EQ(stop, plain.tokens[250]);
  EXPECT_EQ(answer.logprobs.size(), answer.tokens.size() + 1);
  EXPECT_EQ(answer.logprobs.back().chosen.token, *stop);
}

TEST_F(EngineTest, ABanHoldsForAWholeAnswer) {
  const Answer plain = fresh(kPrompt, hot(60));
  GenerateOptions options = hot(60);
  options.sampling.logit_bias = {{plain.tokens[0], kBan}, {plain.tokens[5], kBan}};
  const Answer answer = fresh(kPrompt, options);
  for (const auto& [token, bias] : options.sampling.logit_bias) {
    EXPECT_EQ(std::count(answer.tokens.begin(), answer.tokens.end(), token), 0);
  }
  Engine engine(*model_, context_);
  options.sampling.logit_bias = {{64, 1.0f}};
  expect_error(ErrorKind::kUsage, "logit_bias: expected tokens of 0 to 63, got 64",
               [&] { engine.generate(tokens_of("a"), options); });
  options = hot(1);
  options.logprobs = kMostTopLogprobs + 1;
  expect_error(ErrorKind::kUsage, "top_logprobs: expected 0 to 20, got 21",
               [&] { engine.generate(tokens_of("a"), options); });
}

// The mean of the states that the decoder gives for the whole text at once, to the bit, however the
// text is cut, and whatever is known of it.
TEST_F(EngineTest, AnEmbeddingIsTheMeanOfTheLastStatesAndOfLengthOne) {
  const auto tokens = tokens_of(kPrompt);
  const int64_t n = static_cast<int64_t>(tokens.size()), hidden = model_->config().hidden;
  Decoder decoder(context_, model_->config(), model_->weights());
  KvCache cache(model_->config().cache_layout(choose_cache_type(*model_, {})), n);
  std::vector<float> states(static_cast<size_t>(n * hidden));
  const SequenceSlice slice{
      .cache = &cache, .tokens = tokens, .logits = 0, .states = {states.data(), n, hidden, hidden}};
  ASSERT_TRUE(decoder.forward({&slice, 1}, {}));
  std::vector<double> sum(static_cast<size_t>(hidden));
  for (size_t i = 0; i < states.size(); ++i) sum[i % sum.size()] += states[i];
  double square = 0;
  for (const double x : sum) square += x * x;
  std::vector<float> expected;
  for (const double x : sum) expected.push_back(static_cast<float>(x * (1 / std::sqrt(square))));

  for (const int64_t batch : {1, 5, 512}) {
    Engine engine(*model_, context_, {.batch = batch});
    engine.generate(tokens, hot(5));
    const int64_t kept = engine.state().kept_tokens;
    const Answer answer = engine.generate({.prompt = {tokens}, .kind = RequestKind::kEmbedding})[0];
    EXPECT_EQ(answer.embedding, expected) << "batch " << batch;
    EXPECT_EQ(answer.prompt_tokens, n);
    EXPECT_EQ(answer.cached_tokens, 0);
    EXPECT_TRUE(answer.tokens.empty());
    EXPECT_EQ(engine.state().kept_tokens, kept);
    double length = 0;
    for (const float x : answer.embedding) length += static_cast<double>(x) * x;
    // Each of the D numbers is rounded by 2^-25 of itself at the most, and so is the root.
    EXPECT_NEAR(length, 1.0, 0x1p-23);
  }
}

TEST_F(EngineTest, AnEmbeddingIsCancelledAndLimitedAsAnswersAre) {
  Engine engine(*model_, context_, {.context = 64, .batch = 4});
  Request request{.prompt = {std::vector<Token>(65, 9)}, .kind = RequestKind::kEmbedding};
  expect_error(ErrorKind::kLimit, "expected at most the context of 64 tokens, got 65",
               [&] { engine.generate(request); });
  request.prompt.tokens.resize(60);
  std::atomic<bool> cancel{false};
  Listener listener;
  listener.cancel = &cancel;
  listener.prompt = [&](uint64_t done, uint64_t) { cancel = done >= 20; };
  const Answer answer = engine.generate(request, listener)[0];
  EXPECT_EQ(answer.finish, FinishReason::kCancelled);
  EXPECT_TRUE(answer.embedding.empty());
  EXPECT_EQ(engine.state().pages_used, 0);
}

}  // namespace
}  // namespace drover
