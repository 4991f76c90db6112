// Many requests on one engine that leave, wait, fail or do not fit: what is taken is given back,
// and nobody else is disturbed.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <latch>
#include <random>
#include <thread>

#include "tests/engine_company_fixture.h"
#include "tests/support/expect_error.h"

namespace drover {
namespace {

using std::chrono::steady_clock;
using testing::expect_error;

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
  EXPECT_LE(steps, 2000 / 16 + 20);
}

// 512 tokens of short prompts in a step: who asks beside answers hears a first token after the step
// that reads it, and not when its share of the time has come.
TEST_F(EngineCompany, ABurstOfShortPromptsIsReadAtOnce) {
  std::mt19937 random(17);
  Play play(model(kReuse), context_, {.batch = 1024, .cache_memory = 64 << 20, .parallel = 32});
  play.ask({.prompt = {random_tokens(random, 10)}, .options = greedy(1000)});
  while (play.rows.seen.size() < 5) play.step();
  constexpr int kBurst = 16;
  int heard = 0;
  for (int i = 0; i < kBurst; ++i) {
    Events events;
    events.token = [&heard, first = true](const DrawnToken&) mutable {
      heard += first;
      first = false;
    };
    play.ask({.prompt = {random_tokens(random, 64)}, .options = greedy(100)}, events);
  }
  play.step();
  EXPECT_EQ(heard, kBurst / 2);  // the first 512 tokens
  play.step();
  EXPECT_EQ(heard, kBurst);
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
