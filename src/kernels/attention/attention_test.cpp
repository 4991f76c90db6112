// Attention against its contract to the bit, against the formula in double precision, and against
// itself: on every instruction set, however it is cut, whatever stands beside it.
#include "kernels/attention/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/attention/attention_fixture.h"
#include "tests/support/sanitized.h"

namespace drover {
namespace {

TEST(Attention, ExponentialIsWithinTwoUlp) {
  for (float x = -87.0f; x <= 0; x += 0.0037f) {
    const double expected = std::exp(static_cast<double>(x));
    EXPECT_NEAR(contract_exp(x), expected, 4 * kUnit * expected) << x;
  }
  EXPECT_EQ(contract_exp(0.0f), 1.0f);
  EXPECT_EQ(contract_exp(-INFINITY), contract_exp(-87.0f));
  EXPECT_TRUE(std::isnan(contract_exp(NAN)));
}

TEST(Attention, IsTheContractToTheBit) {
  Context context(2);
  for (const DType type : kTypes) {
    for (const int64_t d : kDims) {
      const Shape shape{2, 1 + d % 5, d};
      for (const int64_t positions : {1, 64, 300, 513}) {
        if (positions > 100 && d > 100) continue;  // the plain loops take seconds
        const int64_t tokens = std::min<int64_t>(positions, 4);
        Sequence s(shape, type, positions, static_cast<uint32_t>(d));
        s.store(context);
        const auto q = random_floats(tokens * shape.q_cols(), 3);
        std::vector<float> expected;
        for (int64_t row = 0; row < tokens * shape.kv_heads * shape.group; ++row) {
          const int64_t t = row / (shape.kv_heads * shape.group);
          const int64_t kv_head = row / shape.group % shape.kv_heads;
          const auto one = contract_row(s, &q[row * d], kv_head, positions - tokens + t + 1);
          expected.insert(expected.end(), one.begin(), one.end());
        }
        EXPECT_TRUE(same_bits(s.attend(context, q, tokens), expected))
            << dtype_name(type) << ", " << shape << ", positions " << positions;
      }
    }
  }
}

// Two tokens after three spans and a bit. The second shape's pages cost so little that whole spans
// are handed out, the first one's are handed out a few pages at a time.
TEST(Attention, ManySpansAreTheContractToTheBitHoweverTheyAreCut) {
  for (const Shape shape : {Shape{1, 2, 64}, Shape{2, 1, 5}}) {
    for (const DType type : kTypes) {
      if (shape.d == 64 && type == DType::kF32) continue;  // as the others, and slow to make
      Context alone(1);
      const int64_t positions = 3 * kSpanPages * kPageTokens + kPageTokens + 1;
      Sequence s(shape, type, positions);
      s.store(alone);
      const auto q = random_floats(2 * shape.q_cols(), 25);
      std::vector<float> expected;
      for (int64_t row = 0; row < 2 * shape.kv_heads * shape.group; ++row) {
        const int64_t t = row / (shape.kv_heads * shape.group);
        const int64_t kv_head = row / shape.group % shape.kv_heads;
        const auto one = contract_row(s, &q[row * shape.d], kv_head, positions - 1 + t);
        expected.insert(expected.end(), one.begin(), one.end());
      }
      for (const Isa isa : available_isas()) {
        for (const int threads : {1, 2, 8}) {
          Context context(threads, isa);
          EXPECT_TRUE(same_bits(s.attend(context, q, 2), expected))
              << isa_name(isa) << ", " << dtype_name(type) << ", " << shape << ", " << threads
              << " threads";
        }
      }
    }
  }
}

// The same page stands at all places but the last three. With equal scores every weight is 1, and
// all sums are multiples of 256 below 2^32: exact.
TEST(Attention, PositionsMayLieBeyondTwoToThe31) {
  Context context(2);
  Sequence s({1, 1, 1}, DType::kF32, 2 * kPageTokens);
  std::fill(s.keys.begin(), s.keys.end(), 0.0f);
  std::fill_n(s.values.begin(), kPageTokens, 0.0f);
  std::fill_n(s.values.begin() + kPageTokens, kPageTokens, 0x1p22f);
  s.store(context);
  std::vector<std::byte*> pages(size_t{1} << 23, s.pages[0]);
  pages.insert(pages.end(), 3, s.pages[1]);
  KvPages view = s.view();
  view.pages = pages.data();
  const float q = 1.0f;
  float out = 0;
  const int64_t seen = (int64_t{1} << 31) + 3 * kPageTokens;
  const AttentionJob job{{&q, 1, 1, 1}, view, seen - 1, {&out, 1, 1, 1}};
  attention(context, {&job, 1});
  EXPECT_EQ(out, 3 * 256 * 0x1p22f / static_cast<float>(seen));
}

TEST(Attention, WithoutACausalLimitIsTheContractToTheBit) {
  Context context(2);
  for (const DType type : kTypes) {
    for (const int64_t d : {1, 17, 64, 88}) {
      const Shape shape{2, 1 + d % 3, d};
      for (const int64_t positions : {1, 65, 300, 513}) {
        // From the start of the sequence, and after a past.
        for (const int64_t tokens : {positions, int64_t{7}}) {
          if (tokens > positions || tokens > 100) continue;  // the plain loops take seconds
          Sequence s(shape, type, positions, static_cast<uint32_t>(d));
          s.store(context);
          const auto q = random_floats(tokens * shape.q_cols(), 3);
          std::vector<float> expected;
          for (int64_t row = 0; row < tokens * shape.kv_heads * shape.group; ++row) {
            const int64_t kv_head = row / shape.group % shape.kv_heads;
            const auto one = contract_row(s, &q[row * d], kv_head, positions);
            expected.insert(expected.end(), one.begin(), one.end());
          }
          EXPECT_TRUE(same_bits(s.attend_to_all(context, q, tokens), expected))
              << dtype_name(type) << ", " << shape << ", positions " << positions << ", tokens "
              << tokens;
        }
      }
    }
  }
}

// All products of int8 pages as large as they get, and of one sign: sums within a hundredth of
// 2^31.
TEST(Attention, TheLargestSumsOfInt8FitInto32Bits) {
  for (const Isa isa : available_isas()) {
    for (const float sign : {1.0f, -1.0f}) {
      const Shape shape{1, 2, kMaxHeadDim};
      Sequence s(shape, DType::kI8, kPageTokens);
      std::fill(s.keys.begin(), s.keys.end(), sign);
      std::fill(s.values.begin(), s.values.end(), sign);
      s.store(context(isa));
      const std::vector<float> q(static_cast<size_t>(shape.q_cols()), 1.0f);
      auto expected = contract_row(s, q.data(), 0, kPageTokens);
      EXPECT_NEAR(expected[0], sign, 1e-5f);
      expected.insert(expected.end(), expected.begin(), expected.end());
      EXPECT_TRUE(same_bits(s.attend(context(isa), q, 1), expected)) << isa_name(isa) << sign;
    }
  }
}

TEST(Attention, MatchesTheFormulaInDoublePrecision) {
  Context context(2);
  double worst = 0, worst_int8 = 0;
  for (const DType type : kTypes) {
    for (const int64_t d : kDims) {
      for (const int64_t group : {1, 3, 8}) {
        const Shape shape{2, group, d};
        const int64_t positions = 70 * group, tokens = 2;
        Sequence s(shape, type, positions, static_cast<uint32_t>(d + group));
        s.store(context);
        const auto q = random_floats(tokens * shape.q_cols(), 5);
        const auto out = s.attend(context, q, tokens);
        for (int64_t row = 0; row < tokens * 2 * group; ++row) {
          const int64_t kv_head = row / group % 2,
                        seen = positions - tokens + row / (2 * group) + 1;
          std::vector<double> w(seen), o(d);
          double sum = 0, most_score = 0, most_value = 0;
          double most_query = 0, most_keys = 0, most_weight = 0;
          for (int64_t i = 0; i < d; ++i) {
            most_query = std::max(most_query, std::abs(static_cast<double>(q[row * d + i])) /
                                                  std::sqrt(static_cast<double>(d)));
          }
          for (int64_t p = 0; p < seen; ++p) {
            double size = 0, keys = 0;
            for (int64_t i = 0; i < d; ++i) {
              const double product = static_cast<double>(q[row * d + i]) *
                                     s.element(false, p, kv_head, i) * s.scale(false, p, kv_head);
              w[p] += product / std::sqrt(static_cast<double>(d));
              size += std::abs(product) / std::sqrt(static_cast<double>(d));
              keys += std::abs(s.element(false, p, kv_head, i) * s.scale(false, p, kv_head));
            }
            most_score = std::max(most_score, size);
            most_keys = std::max(most_keys, keys);
          }
          const double max = *std::max_element(w.begin(), w.end());
          for (int64_t p = 0; p < seen; ++p) {
            sum += w[p] = std::exp(w[p] - max);
            most_weight = std::max(most_weight, w[p] * s.scale(true, p, kv_head));
            for (int64_t i = 0; i < d; ++i) {
              const double v =
                  static_cast<double>(s.element(true, p, kv_head, i)) * s.scale(true, p, kv_head);
              o[i] += w[p] * v;
              most_value = std::max(most_value, std::abs(v));
            }
          }
          // A score is off by d + 4 roundings of at most its absolute terms' sum A, and by two
          // more of the difference of two scores, at most 2 A. That and the 4 units of e^x are a
          // relative error of its weight, which counts in the weighted sum and in the sum. Then a
          // page's 256 products and its 16 + 4 sums, the merges (4 roundings, each with two e^x),
          // the scale of int8 and the division.
          const double pages = static_cast<double>((seen + kPageTokens - 1) / kPageTokens);
          double bound =
              kUnit * most_value *
              (2 * ((static_cast<double>(d) + 8) * most_score + 4) + 256 + 20 + 12 * pages + 2);
          if (type == DType::kI8) {
            // A number of the query is off by half a unit, and a score by that times its keys,
            // which counts twice as above. A weight is off by half a unit of its page, which is no
            // larger than the unit of the largest of all, and meets numbers up to 127.
            bound += 2 * most_value * most_query / 32639 / 2 * most_keys;
            bound += static_cast<double>(seen) * most_weight / 32639 / 2 * 127 / sum;
          }
          for (int64_t i = 0; i < d; ++i) {
            const double error = std::abs(out[row * d + i] - o[i] / sum);
            double& worst_of_type = type == DType::kI8 ? worst_int8 : worst;
            worst_of_type = std::max(worst_of_type, error);
            ASSERT_LE(error, bound) << dtype_name(type) << ", " << shape << ", row " << row;
          }
        }
      }
    }
  }
  // What the errors come to when they do not all point one way (16 bits: 2^-16 of the largest): a
  // mechanism that is wrong is off by more, however loose the bound of a long row is.
  EXPECT_LT(worst, 1e-5);
  EXPECT_LT(worst_int8, 2e-4);
}

TEST(Attention, EveryNumberOfPositionsGivesTheSameBitsOnEveryInstructionSet) {
  Context plain(1, Isa::kPlain);
  for (const DType type : kTypes) {
    const Shape shape{1, 3, 20};
    Sequence s(shape, type, 2 * kPageTokens + 1);
    s.store(plain);
    const auto q = random_floats(3 * shape.q_cols(), 7);
    for (int64_t positions = 1; positions <= kPageTokens + 1; ++positions) {
      s.positions = positions;
      const int64_t tokens = std::min<int64_t>(positions, 3);
      const auto expected = s.attend(plain, q, tokens);
      for (const Isa isa : fast_isas()) {
        EXPECT_TRUE(same_bits(s.attend(context(isa), q, tokens), expected))
            << isa_name(isa) << ", " << dtype_name(type) << ", positions " << positions;
      }
    }
  }
}

TEST(Attention, EveryShapeGivesTheSameBitsOnEveryInstructionSet) {
  Context plain(1, Isa::kPlain);
  for (const DType type : kTypes) {
    for (const int64_t d : kDims) {
      for (int64_t group = 1; group <= 8; ++group) {
        const Shape shape{1, group, d};
        Sequence s(shape, type, 70);
        s.store(plain);
        const auto q = random_floats(2 * shape.q_cols(), 9);
        const auto expected = s.attend(plain, q, 2);
        for (const Isa isa : fast_isas()) {
          EXPECT_TRUE(same_bits(s.attend(context(isa), q, 2), expected))
              << isa_name(isa) << ", " << dtype_name(type) << ", " << shape;
        }
      }
    }
  }
}

// Tiles have up to 96 rows and, where threads wait, fewer; the token counts stand around their
// borders. A job's tokens may be cut anywhere, and so may the past of a lone token.
TEST(Attention, AnyTileCutAndNumberOfThreadsGivesTheSameBits) {
  Context alone(1);
  for (const DType type : kTypes) {
    for (const int64_t group : {1, 4, 5}) {
      const Shape shape{2, group, 24};
      const int64_t positions = 3 * kPageTokens + 5;
      Sequence s(shape, type, positions);
      s.store(alone);
      const int64_t tile = 96 / group;
      for (const int64_t tokens : {int64_t{1}, tile - 1, tile, tile + 1, 2 * tile, 2 * tile + 1}) {
        const auto q = random_floats(tokens * shape.q_cols(), 11);
        const auto expected = s.attend(alone, q, tokens, 1);
        for (const int threads : {1, 2, 4}) {
          Context context(threads);
          for (const int64_t cut : {tokens, int64_t{1}, int64_t{7}, tile}) {
            EXPECT_TRUE(same_bits(s.attend(context, q, tokens, cut), expected))
                << dtype_name(type) << ", " << shape << ", tokens " << tokens << " in pieces of "
                << cut << ", " << threads << " threads";
          }
        }
      }
    }
  }
}

TEST(Attention, ALongPastIsSharedByThreadsWithoutATrace) {
  Context alone(1);
  for (const DType type : kTypes) {
    for (const Shape shape : {Shape{1, 5, 64}, Shape{2, 4, 128}}) {
      Sequence s(shape, type, 41 * kPageTokens + 3);
      s.store(alone);
      for (const int64_t tokens : {1, 2, 3, 6}) {
        const auto q = random_floats(tokens * shape.q_cols(), 13);
        const auto expected = s.attend(alone, q, tokens);
        for (const int threads : {2, 3, 8}) {
          for (const Isa isa : available_isas()) {
            // Slow.
            if (isa == Isa::kPlain && (threads != 3 || tokens != 2 || shape.d != 64)) continue;
            Context context(threads, isa);
            EXPECT_TRUE(same_bits(s.attend(context, q, tokens), expected))
                << isa_name(isa) << ", " << dtype_name(type) << ", " << shape << ", tokens "
                << tokens << ", " << threads << " threads";
          }
        }
      }
    }
  }
}

// Around six rows, tiles of 96 rows, pages, and the 577 tokens of a vision encoder's tile. A lone
// token at the last position sees as much, by the code that the tests above are about.
TEST(Attention, WithoutACausalLimitEveryTokenIsAsIfAloneAndLast) {
  Context alone(1);
  std::vector<std::unique_ptr<Context>> contexts;
  for (const Isa isa : available_isas()) {
    for (const int threads : {1, 2, 3}) contexts.push_back(std::make_unique<Context>(threads, isa));
  }
  for (const DType type : kTypes) {
    for (const Shape shape : {Shape{2, 1, 88}, Shape{1, 3, 20}}) {
      for (const auto& [tokens, past] : {std::pair<int64_t, int64_t>{1, 70},
                                         {5, 0},
                                         {7, 257},
                                         {95, 0},
                                         {97, 70},
                                         {257, 0},
                                         {577, 0}}) {
        Sequence s(shape, type, past + tokens);
        s.store(alone);
        const auto q = random_floats(tokens * shape.q_cols(), 19);
        const auto expected = s.attend_alone(alone, q, tokens);
        for (const auto& context : contexts) {
          // Slow.
          if (context->isa == Isa::kPlain && tokens > (type == DType::kF32 ? 257 : 97)) continue;
          EXPECT_TRUE(same_bits(s.attend_to_all(*context, q, tokens), expected))
              << isa_name(context->isa) << ", " << dtype_name(type) << ", " << shape << ", tokens "
              << tokens << " after " << past << ", " << context->threads.size() << " threads";
        }
      }
    }
  }
}

TEST(Attention, WithoutACausalLimitALongPastIsSharedByThreadsToo) {
  Context alone(1);
  for (const DType type : kTypes) {
    const Shape shape{1, 5, 64};
    Sequence s(shape, type, 41 * kPageTokens + 3);
    s.store(alone);
    for (const int64_t tokens : {2, 6}) {
      const auto q = random_floats(tokens * shape.q_cols(), 21);
      const auto expected = s.attend_alone(alone, q, tokens);
      for (const int threads : {2, 3, 8}) {
        Context context(threads);
        EXPECT_TRUE(same_bits(s.attend_to_all(context, q, tokens), expected))
            << dtype_name(type) << ", tokens " << tokens << ", " << threads << " threads";
      }
    }
  }
}

TEST(Attention, JobsWithAndWithoutACausalLimitDoNotDisturbEachOther) {
  Context alone(1);
  const Shape shape{2, 1, 88};
  for (const Isa isa : available_isas()) {
    for (const int threads : {1, 2, 3}) {
      Context context(threads, isa);
      std::vector<Sequence> sequences;
      for (const int64_t tokens : {100, 1, 49, 30}) {
        sequences.emplace_back(shape, DType::kF32, tokens, static_cast<uint32_t>(tokens));
        sequences.back().store(alone);
      }
      std::vector<std::vector<float>> queries, outs;
      for (const Sequence& s : sequences) {
        queries.push_back(random_floats(s.positions * shape.q_cols(), 23));
        outs.emplace_back(queries.back().size());
      }
      std::vector<AttentionJob> jobs;
      for (size_t i = 0; i < sequences.size(); ++i) {
        jobs.push_back(sequences[i].job_to_all(queries[i], sequences[i].positions, outs[i]));
        jobs.back().causal = i == 2;
      }
      attention(context, jobs);
      for (size_t i = 0; i < sequences.size(); ++i) {
        const Sequence& s = sequences[i];
        EXPECT_TRUE(same_bits(outs[i], i == 2 ? s.attend(alone, queries[i], s.positions)
                                              : s.attend_to_all(alone, queries[i], s.positions)))
            << isa_name(isa) << ", " << threads << " threads, job " << i;
      }
    }
  }
}

// A key or value that is no number spoils the tokens that see it and leaves no trace in the others,
// though they share a tile with those that do.
TEST(Attention, WhatATokenDoesNotSeeDoesNotMatterEvenIfItIsNoNumber) {
  for (const Isa isa : available_isas()) {
    Context context(2, isa);
    for (const DType type : kTypes) {
      for (const int64_t d : {8, 80}) {
        if (isa == Isa::kPlain && d != 8) continue;  // slow
        const Shape shape{2, 3, d};
        const int64_t positions = kPageTokens + 70, tokens = 80;
        const auto q = random_floats(tokens * shape.q_cols(), 15);
        Sequence s(shape, type, positions);
        s.store(context);
        const auto clean = s.attend(context, q, tokens);
        for (const int64_t bad : {positions - 79, positions - 70, positions - 33, positions - 1}) {
          if (isa == Isa::kPlain && bad != positions - 33) continue;
          for (const float number : {NAN, INFINITY}) {
            for (const bool in_keys : {true, false}) {
              Sequence other(shape, type, positions);
              for (int64_t i = 0; i < shape.kv_cols(); i += 5) {
                (in_keys ? other.keys : other.values)[bad * shape.kv_cols() + i] = number;
              }
              other.store(context);
              const auto out = other.attend(context, q, tokens);
              const int64_t unaware = (bad - (positions - tokens)) * shape.q_cols();
              EXPECT_TRUE(same_bits({out.begin(), out.begin() + unaware},
                                    {clean.begin(), clean.begin() + unaware}))
                  << isa_name(isa) << ", " << dtype_name(type) << ", d " << d << ", bad " << bad;
              const auto numbers = std::count_if(out.begin() + unaware, out.end(),
                                                 [](float x) { return std::isfinite(x); });
              // In f32 and bf16 a value spoils its own component only, and an infinite key may just
              // make a score the smallest.
              if (type == DType::kI8 || (in_keys && std::isnan(number))) {
                EXPECT_EQ(numbers, 0);
              } else {
                EXPECT_LT(numbers, static_cast<int64_t>(out.size()) - unaware);
              }
            }
          }
        }
      }
    }
  }
}

TEST(Attention, QueriesThatAreNoNumbersDoNotCrash) {
  Context context(2);
  for (const DType type : kTypes) {
    const Shape shape{2, 4, 64};
    Sequence s(shape, type, 300);
    s.store(context);
    for (const float number : {NAN, INFINITY, -INFINITY, 3e38f}) {
      const std::vector<float> q(static_cast<size_t>(20 * shape.q_cols()), number);
      for (const float x : s.attend(context, q, 20)) EXPECT_TRUE(std::isnan(x));
    }
  }
}

TEST(Attention, LargeScoresChooseTheLargest) {
  Context context(1);
  const Shape shape{1, 1, 4};
  Sequence s(shape, DType::kF32, 2 * kPageTokens);
  s.keys[4 * 100] = 1000.0f;
  s.store(context);
  const std::vector<float> q = {1000.0f, 0, 0, 0};
  const auto out = s.attend(context, q, 1);
  for (int i = 0; i < 4; ++i) EXPECT_FLOAT_EQ(out[i], s.values[4 * 100 + i]);
}

}  // namespace
}  // namespace drover
