// Attention by the matrix unit, where a little less precision will do.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/attention/attention_fixture.h"

namespace drover {
namespace {

// What was never stored is a NaN: beyond the last position, and in the lanes that the unit fills
// up.
TEST(RoundedAttention, IsTheContractToTheBit) {
  if (detect_isa() != Isa::kAmx) GTEST_SKIP() << "this processor has no AMX";
  Context context(1);
  for (const int64_t d : {1, 16, 17, 33, 64, 88, 112, 200, 512}) {
    const Shape shape{2, 1 + d % 3, d};
    for (const int64_t positions : {1, 2, 16, 17, 33, 65, 256, 300, 513}) {
      if (positions > 100 && d > 100) continue;  // the plain loops take seconds
      for (const int64_t tokens : {int64_t{1}, std::min<int64_t>(positions, 17)}) {
        Sequence s(shape, DType::kBF16, positions, static_cast<uint32_t>(d));
        s.store(context);
        const auto q = random_floats(tokens * shape.q_cols(), 3);
        std::vector<float> expected;
        for (int64_t row = 0; row < tokens * shape.kv_heads * shape.group; ++row) {
          const int64_t kv_head = row / shape.group % shape.kv_heads;
          const auto one = contract_row(s, &q[row * d], kv_head, positions, {}, /*by_unit=*/true);
          expected.insert(expected.end(), one.begin(), one.end());
        }
        EXPECT_TRUE(same_bits(s.attend_to_all(context, q, tokens, /*rounded=*/true), expected))
            << shape << ", positions " << positions << ", tokens " << tokens;
      }
    }
  }
}

// Around blocks of 32 rows and tiles of 384, whole or cut smaller for more threads. The last tokens
// alone see as much as all together.
TEST(RoundedAttention, DoesNotDependOnCompanyOrThreads) {
  Context alone(1);
  for (const Shape shape : {Shape{2, 1, 88}, Shape{1, 3, 20}}) {
    for (const int64_t tokens : {31, 33, 385, 577}) {
      Sequence s(shape, DType::kBF16, tokens);
      s.store(alone);
      const auto q = random_floats(tokens * shape.q_cols(), 19);
      const auto expected = s.attend_to_all(alone, q, tokens, /*rounded=*/true);
      for (const int threads : {2, 8, 32}) {
        Context context(threads);
        EXPECT_TRUE(same_bits(s.attend_to_all(context, q, tokens, /*rounded=*/true), expected))
            << shape << ", tokens " << tokens << ", " << threads << " threads";
      }
      for (const int64_t last : {1, 7, 30}) {
        const std::vector<float> queries(q.end() - last * shape.q_cols(), q.end());
        EXPECT_TRUE(same_bits(s.attend_to_all(alone, queries, last, /*rounded=*/true),
                              {expected.end() - last * shape.q_cols(), expected.end()}))
            << shape << ", the last " << last << " of " << tokens;
      }
    }
  }
}

TEST(RoundedAttention, ALongPastIsSharedByThreadsWithoutATrace) {
  Context alone(1);
  const Shape shape{1, 5, 64};
  Sequence s(shape, DType::kBF16, (kSpanPages + 41) * kPageTokens + 3);
  s.store(alone);
  for (const int64_t tokens : {2, 6}) {
    const auto q = random_floats(tokens * shape.q_cols(), 21);
    const auto expected = s.attend_to_all(alone, q, tokens, /*rounded=*/true);
    for (const int threads : {2, 3, 8}) {
      Context context(threads);
      EXPECT_TRUE(same_bits(s.attend_to_all(context, q, tokens, /*rounded=*/true), expected))
          << "tokens " << tokens << ", " << threads << " threads";
    }
  }
}

TEST(RoundedAttention, IsAnyOtherWhereThereIsNoMatrixUnit) {
  const Shape shape{2, 2, 24};
  Sequence s(shape, DType::kBF16, 70);
  s.store(context(Isa::kPlain));
  const auto q = random_floats(70 * shape.q_cols(), 27);
  for (const Isa isa : available_isas()) {
    const auto exact = s.attend_to_all(context(isa), q, 70);
    const auto rounded = s.attend_to_all(context(isa), q, 70, /*rounded=*/true);
    EXPECT_EQ(static_cast<bool>(same_bits(rounded, exact)), isa != Isa::kAmx) << isa_name(isa);
  }
}

// What a row holds that is no number stays in it, or in all that see it.
TEST(RoundedAttention, NumbersThatAreNoneSpoilWhatSeesThem) {
  Context context(1);
  const Shape shape{2, 1, 40};
  const int64_t tokens = 70;
  for (const float number : {NAN, INFINITY}) {
    for (const bool in_keys : {true, false}) {
      Sequence s(shape, DType::kBF16, tokens);
      (in_keys ? s.keys : s.values)[33 * shape.kv_cols() + 5] = number;
      s.store(context);
      const auto q = random_floats(tokens * shape.q_cols(), 15);
      const auto out = s.attend_to_all(context, q, tokens, /*rounded=*/true);
      for (size_t j = 0; j < out.size(); ++j) {
        const auto i = static_cast<int64_t>(j) % shape.q_cols();
        // An infinite key is the largest, or weighs nothing.
        const bool spoilt = in_keys ? i < 40 && std::isnan(number) : i == 5;
        if (in_keys && i < 40 && !std::isnan(number)) continue;
        EXPECT_EQ(!std::isfinite(out[j]), spoilt) << number << ", keys " << in_keys << ", " << j;
      }
    }
    Sequence s(shape, DType::kBF16, tokens);
    s.store(context);
    auto q = random_floats(tokens * shape.q_cols(), 15);
    const auto clean = s.attend_to_all(context, q, tokens, /*rounded=*/true);
    q[33 * shape.q_cols() + 5] = number;
    const auto out = s.attend_to_all(context, q, tokens, /*rounded=*/true);
    for (int64_t j = 0; j < static_cast<int64_t>(out.size()); ++j) {
      const bool spoilt = j / shape.q_cols() == 33 && j % shape.q_cols() < 40;
      EXPECT_TRUE(spoilt ? std::isnan(out[j]) : out[j] == clean[j]) << number << ", " << j;
    }
  }
}

}  // namespace
}  // namespace drover
