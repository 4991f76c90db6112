// The loss and its gradient against the formula in double precision, within a derived bound.
#include "kernels/cross_entropy/cross_entropy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/row/row_fixture.h"

namespace drover {
namespace {

TEST(CrossEntropy, MatchesTheFormulaForEveryLength) {
  Context context(2);
  auto sizes = lengths();
  sizes.push_back(5000);
  for (const int64_t v : sizes) {
    Rows logits(4, v, 1 + v, 5.0f);
    const Rows before = logits;
    std::vector<int32_t> targets;
    for (int64_t t = 0; t < 4; ++t) targets.push_back(static_cast<int32_t>(t * (v - 1) / 3));
    const std::vector<float> weights = {1.0f, 1e-4f, -2.0f, 0.0f};
    std::vector<float> losses(4);
    std::vector<int32_t> best(4);
    cross_entropy(context, logits, targets, weights, losses, best);
    EXPECT_TRUE(logits.gaps_untouched());
    for (int64_t t = 0; t < 4; ++t) {
      int64_t largest = 0;
      for (int64_t i = 1; i < v; ++i) {
        if (before(t, i) > before(t, largest)) largest = i;
      }
      const double most = before(t, largest);
      double sum = 0, depth = 0;
      for (int64_t i = 0; i < v; ++i) {
        const double e = std::exp(before(t, i) - most);
        sum += e, depth += e * (most - before(t, i));
      }
      // Rounding a difference moves its exponential by that much, and the exponential adds 4.
      const double of_sum = depth / sum + 4 + sum_roundings(v);
      const double loss = std::log(sum) + most - before(t, targets[t]);
      EXPECT_EQ(best[t], largest);
      EXPECT_NEAR(losses[t], loss, kUnit * (of_sum + loss)) << "V " << v << ", row " << t;
      for (int64_t i = 0; i < v; ++i) {
        const double weight = weights[t], p = std::exp(before(t, i) - most) / sum;
        const double expected = weight * (p - (i == targets[t]));
        const double roundings = most - before(t, i) + 4 + of_sum + 2;
        EXPECT_NEAR(logits(t, i), expected,
                    kUnit * (roundings * std::abs(weight) * p + std::abs(expected)) + 1e-37)
            << "V " << v << ", row " << t << ", logit " << i;
        if (weight == 0) {
          EXPECT_EQ(logits(t, i), 0.0f);
        }
      }
    }
  }
}

TEST(CrossEntropy, OfFarLogitsKeepsItsLoss) {
  Context context(1);
  Rows logits(2, 3, 1);
  for (int64_t t = 0; t < 2; ++t) logits(t, 0) = 1e4f, logits(t, 1) = -1e4f, logits(t, 2) = 0;
  std::vector<float> losses(2);
  cross_entropy(context, logits, std::vector<int32_t>{1, 0}, std::vector<float>{1, 1}, losses);
  EXPECT_EQ(losses[0], 2e4f);
  EXPECT_EQ(losses[1], 0.0f);
  EXPECT_EQ(logits(0, 0), 1.0f);
  EXPECT_EQ(logits(0, 1), -1.0f);
  EXPECT_EQ(logits(1, 0), 0.0f);
  EXPECT_NEAR(logits(1, 1), 0.0f, 1e-37);  // the smallest exponential
}

TEST(CrossEntropy, SaysTheFirstOfTheLargest) {
  for (const Isa isa : available_isas()) {
    Context context(1, isa);
    for (const int64_t v : {1, 5, 63, 64, 65, 200}) {
      // Pairs of equal ones at every distance, and -infinity beside them.
      for (int64_t first = 0; first < v; first += 7) {
        for (int64_t second = first; second < v; second += 9) {
          Rows logits(1, v, 1);
          for (int64_t i = 0; i < v; ++i) logits(0, i) = i % 3 == 0 ? -INFINITY : -1.0f;
          logits(0, first) = logits(0, second) = 2.0f;
          std::vector<float> losses(1);
          std::vector<int32_t> best(1, -1);
          cross_entropy(context, logits, std::vector<int32_t>{0}, std::vector<float>{1}, losses,
                        best);
          ASSERT_EQ(best[0], first) << isa_name(isa) << ", V " << v << ", second " << second;
        }
      }
    }
  }
}

}  // namespace
}  // namespace drover
