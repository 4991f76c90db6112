#include "train/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace drover {
namespace {

PlanPlace at(int64_t step, int64_t total) {
  return {.step = step, .left = total - step, .total = total};
}

TEST(Schedule, WarmsUpStaysAndFallsToZero) {
  const Schedule schedule{.warmup = 4, .decay = 0.25, .kind = Schedule::Kind::kLinear};
  EXPECT_EQ(rate_scale(schedule, at(0, 40)), 0.25);
  EXPECT_EQ(rate_scale(schedule, at(3, 40)), 1);
  EXPECT_EQ(rate_scale(schedule, at(29, 40)), 1);
  EXPECT_EQ(rate_scale(schedule, at(30, 40)), 1) << "the first of ten steps of the fall";
  EXPECT_EQ(rate_scale(schedule, at(35, 40)), 0.5);
  EXPECT_EQ(rate_scale(schedule, at(39, 40)), 0.1);
}

TEST(Schedule, FallsAsACosine) {
  const Schedule schedule{.warmup = 0, .decay = 1, .kind = Schedule::Kind::kCosine};
  EXPECT_NEAR(rate_scale(schedule, at(5, 10)), 0.5, 1e-12);
  EXPECT_NEAR(rate_scale(schedule, at(9, 10)), (1 - std::cos(3.14159265358979 / 10)) / 2, 1e-12);
}

TEST(Schedule, WithoutWarmUpOrDecayIsOne) {
  for (int64_t step = 0; step < 7; ++step) EXPECT_EQ(rate_scale({}, at(step, 7)), 1);
}

TEST(Schedule, FollowsThePlanWhenAStageEndedEarly) {
  const Schedule schedule{.warmup = 0, .decay = 0.1, .kind = Schedule::Kind::kLinear};
  // 100 were planned, 60 are left after 10: the fall still takes the last ten.
  EXPECT_EQ(rate_scale(schedule, {.step = 10, .left = 60, .total = 100}), 1);
  EXPECT_EQ(rate_scale(schedule, {.step = 65, .left = 5, .total = 100}), 0.5);
}

TEST(SelectionBias, RaisesExpertsBelowTheMeanAndLowersThoseAbove) {
  std::vector<float> bias(6, 0.5f);
  const std::vector<int64_t> tokens = {10, 20, 30, 7, 7, 7};
  update_selection_bias({.rate = 0.25, .until = 0.5}, at(1, 10), 3, tokens, bias);
  EXPECT_EQ(bias, (std::vector<float>{0.75f, 0.5f, 0.25f, 0.5f, 0.5f, 0.5f}));
}

TEST(SelectionBias, IsGoneHalfwayFromItsTurnToTheEnd) {
  std::vector<float> bias = {1, -2};
  const std::vector<int64_t> tokens = {5, 1};
  const SelectionBias rule{.rate = 0.001, .until = 0.6};
  // 20 steps of 50 fall, of which the first ten take it to zero.
  for (int64_t step = 30; step < 50; ++step) {
    const float before = bias[0];
    update_selection_bias(rule, at(step, 50), 2, tokens, bias);
    if (step < 39) {
      // A line from 1: nine multiplications round to 2^-24 each.
      EXPECT_NEAR(bias[0], 1 - static_cast<double>(step - 29) / 10, 1e-6) << step;
      EXPECT_LT(bias[0], before);
    } else {
      EXPECT_EQ(bias[0], 0) << step;
      EXPECT_EQ(bias[1], 0) << step;
    }
  }
}

}  // namespace
}  // namespace drover
