#include "engine/step_clock.h"

#include <gtest/gtest.h>

#include <vector>

namespace drover {
namespace {

constexpr int64_t kBatch = 2048;

// Four answers take a tenth of a second a step, a token of a prompt a thousandth more.
StepClock measured() {
  StepClock clock(kBatch);
  clock.learn(4, 0, 0.1);
  clock.learn(4, 16, 0.1 + 0.016);
  return clock;
}

TEST(StepClock, PromptsAloneTakeWholeSteps) {
  EXPECT_EQ(StepClock(kBatch).prompt_budget(0), kBatch);
  EXPECT_EQ(measured().prompt_budget(0), kBatch);
}

TEST(StepClock, BesideAnswersPromptsWaitUntilTheTimeOfAnswersIsKnown) {
  StepClock clock(kBatch);
  EXPECT_EQ(clock.prompt_budget(4), 0);
  clock.learn(4, 0, 0.1);
  EXPECT_EQ(clock.prompt_budget(4), 16);  // what a token takes is not known
  // 0.4 of a step: two thirds of what answers take, 67 tokens' worth.
  EXPECT_NEAR(static_cast<double>(measured().prompt_budget(4)), 66.5, 1);
}

TEST(StepClock, AnotherCrowdIsMeasuredAnew) {
  const StepClock clock = measured();
  EXPECT_GT(clock.prompt_budget(2), 0);
  EXPECT_GT(clock.prompt_budget(8), 0);
  EXPECT_EQ(clock.prompt_budget(1), 0);
  EXPECT_EQ(clock.prompt_budget(9), 0);
}

TEST(StepClock, AnswersAreMeasuredAgainSoonAndThenSeldom) {
  StepClock clock(kBatch);
  std::vector<int64_t> between;
  for (int64_t i = 0; i < 8; ++i) {
    clock.learn(4, 0, 0.1);
    int64_t steps = 0;
    while (clock.prompt_budget(4) > 0) clock.learn(4, 16, 0.116), ++steps;
    between.push_back(steps);
  }
  EXPECT_EQ(between, (std::vector<int64_t>{2, 4, 8, 16, 32, 64, 64, 64}));
}

TEST(StepClock, OneSlowStepDoesNotPassForAll) {
  StepClock clock = measured();
  const int64_t before = clock.prompt_budget(4);
  clock.learn(4, 0, 10);
  // Half as much again, and not a hundred times.
  EXPECT_LE(clock.prompt_budget(4), before * 3 / 2 + 1);
}

TEST(StepClock, ABurstGoesAheadUntilItsHeadStartIsUsedUp) {
  StepClock clock = measured();
  EXPECT_EQ(clock.ahead(), 512);
  // Prompts take two thirds of these steps, 0.4 are theirs: after 12 steps of 0.6 s three seconds
  // are gone.
  for (int i = 0; i < 16; ++i) clock.learn(4, 500, 0.1 + 0.5);
  EXPECT_EQ(clock.ahead(), 0);
  // Steps without prompts give back their share.
  for (int i = 0; i < 10; ++i) clock.learn(4, 0, 0.1);
  EXPECT_NEAR(static_cast<double>(clock.ahead()), 400, 2);
  clock.learn(0, 100, 0.1);  // nobody waits
  EXPECT_EQ(clock.ahead(), 512);
}

}  // namespace
}  // namespace drover
