// Attention that leaves pages out: what bounds its keys, which pages it visits, and what that
// costs.
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

// Keys that stand in one place for each page, far from those of other pages, and queries of the
// last tokens that look at the place of page `at`: a few pages have all the mass.
Sequence clustered(Context& context, Shape shape, DType type, int64_t positions, uint32_t seed) {
  Sequence s(shape, type, positions, seed);
  const int64_t cols = shape.kv_cols();
  const auto places = random_floats((positions / kPageTokens + 1) * cols, seed + 2);
  for (int64_t p = 0; p < positions; ++p) {
    for (int64_t i = 0; i < cols; ++i) {
      float& key = s.keys[p * cols + i];
      key = places[p / kPageTokens * cols + i] + 0.05f * key;
    }
  }
  s.store(context);
  s.bound(context);
  return s;
}
std::vector<float> queries_at(const Sequence& s, int64_t tokens, int64_t at, float strength) {
  auto q = random_floats(tokens * s.shape.q_cols(), 31);
  const int64_t d = s.shape.d;
  for (size_t j = 0; j < q.size(); ++j) {
    const int64_t head = static_cast<int64_t>(j) / d % (s.shape.kv_heads * s.shape.group);
    const int64_t i = static_cast<int64_t>(j) % d;
    q[j] = 0.1f * q[j] +
           strength * s.keys[at * kPageTokens * s.shape.kv_cols() + head / s.shape.group * d + i];
  }
  return q;
}

TEST(KeyBounds, HoldEveryKeyAndAreTight) {
  for (const DType type : kTypes) {
    for (const int64_t d : {1, 17, 64, 65}) {
      Context plain(1, Isa::kPlain);
      Sequence s({2, 1, d}, type, 3 * kPageTokens + 7, static_cast<uint32_t>(d));
      s.store(plain);
      s.bound(plain);
      for (int64_t page = 0; page < 3; ++page) {
        for (int64_t column = 0; column < 2 * d; ++column) {
          const int64_t head = column / d, i = column % d;
          float least = INFINITY, most = -INFINITY;
          for (int64_t t = page * kPageTokens; t < (page + 1) * kPageTokens; ++t) {
            const float key = s.element(false, t, head, i) * s.scale(false, t, head);
            least = std::min(least, key);
            most = std::max(most, key);
          }
          const float low = s.bound(false, page, head, i), high = s.bound(true, page, head, i);
          ASSERT_LE(low, least);
          ASSERT_GE(high, most);
          // A step of bf16 is at most 2^-7 of a number; int8 takes two.
          const float steps = type == DType::kBF16 ? 0 : type == DType::kF32 ? 1 : 2;
          ASSERT_GE(low, least - steps * 0x1p-7f * std::fabs(least) - 0x1p-126f);
          ASSERT_LE(high, most + steps * 0x1p-7f * std::fabs(most) + 0x1p-126f);
        }
      }
      for (const Isa isa : fast_isas()) {
        Sequence other({2, 1, d}, type, 3 * kPageTokens + 7, static_cast<uint32_t>(d));
        other.store(plain);
        other.bound(context(isa));
        EXPECT_EQ(std::memcmp(s.bounds[0], other.bounds[0], s.bounds_memory[0].size()), 0)
            << isa_name(isa) << ", " << dtype_name(type) << ", d " << d;
      }
    }
  }
}

TEST(KeyBounds, AreInfiniteWhereAKeyIsNotFinite) {
  for (const Isa isa : available_isas()) {
    for (const float number : {NAN, INFINITY, -INFINITY}) {
      Sequence s({1, 1, 20}, DType::kBF16, kPageTokens);
      s.keys[20 * 77 + 3] = number;
      s.store(context(isa));
      s.bound(context(isa));
      for (int64_t i = 0; i < 20; ++i) {
        EXPECT_EQ(std::isinf(s.bound(false, 0, 0, i)), i == 3);
        EXPECT_EQ(std::isinf(s.bound(true, 0, 0, i)), i == 3);
      }
    }
  }
}

// u of the contract.
float contract_bound(const Sequence& s, const float* q, int64_t kv_head, int64_t page) {
  const auto query = contract_query(s, q);
  float u = 0;
  for (int64_t i = 0; i < s.shape.d; ++i) {
    u = std::fma(query[i], s.bound(!(query[i] < 0), page, kv_head, i), u);
  }
  return u;
}

// To the bit, not nearly. Where all keys of a page are the same, bound and score are as close as
// they get.
TEST(PageChoice, NoScoreExceedsItsPagesBound) {
  Context plain(1, Isa::kPlain);
  for (const DType type : kTypes) {
    for (const int64_t d : {1, 16, 33, 64, 128}) {
      for (const bool same : {false, true}) {
        const Shape shape{2, 3, d};
        Sequence s(shape, type, 4 * kPageTokens, static_cast<uint32_t>(d));
        for (size_t i = 0; same && i < s.keys.size(); ++i) {
          s.keys[i] = s.keys[i % static_cast<size_t>(shape.kv_cols())];
        }
        s.store(plain);
        s.bound(plain);
        const auto q = random_floats(shape.q_cols(), 33);
        for (int64_t head = 0; head < 6; ++head) {
          for (int64_t page = 0; page < 4; ++page) {
            const float u = contract_bound(s, &q[head * d], head / 3, page);
            for (const float score :
                 contract_scores(s, &q[head * d], head / 3, page * kPageTokens, kPageTokens)) {
              ASSERT_LE(score, u) << dtype_name(type) << ", d " << d << ", same " << same;
            }
          }
        }
      }
    }
  }
}

// The choice and the result word for word, of one token and one kv head: the pages by their rank,
// as many of them as attention says that it visited, which are enough and not one too many.
TEST(PageChoice, IsTheContract) {
  Context context(2);
  for (const DType type : kTypes) {
    for (const auto& [strength, epsilon] : {std::pair<float, float>{4.0f, 1e-3f},
                                            {1.5f, 1e-2f},
                                            {1.0f, 0.1f},
                                            {0.5f, 1e-3f},
                                            {0.0f, 1e-3f}}) {
      const Shape shape{1, 3, 40};
      const int64_t positions = 90 * kPageTokens + 100, last = 90;
      const Sequence s = clustered(context, shape, type, positions, 5);
      const auto q = queries_at(s, 1, /*at=*/37, strength);
      // Masses of the two pages that come first, then of the others by rank.
      std::vector<std::vector<double>> u(3), m(3), l(3);
      std::vector<double> seed(3);
      for (int64_t h = 0; h < 3; ++h) {
        for (int64_t p = 0; p <= last; ++p) {
          const auto scores = contract_scores(s, &q[h * 40], 0, p * kPageTokens,
                                              std::min(kPageTokens, positions - p * kPageTokens));
          u[h].push_back(p < last ? contract_bound(s, &q[h * 40], 0, p) : 0);
          m[h].push_back(*std::max_element(scores.begin(), scores.end()));
          double sum = 0;
          for (const float x : scores) sum += std::exp(x - m[h][p]);
          l[h].push_back(sum);
        }
        seed[h] = std::max(m[h][0], m[h][last]);
      }
      std::vector<float> most(last, -INFINITY);
      for (int64_t h = 0; h < 3; ++h) {
        for (int64_t p = 1; p < last; ++p) {
          most[p] = std::max(most[p], static_cast<float>(u[h][p]) - static_cast<float>(seed[h]));
        }
      }
      const float best = *std::max_element(most.begin(), most.end());
      std::vector<int64_t> order(last - 1);
      for (int64_t p = 1; p < last; ++p) order[p - 1] = p;
      std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        return std::floor((best - most[a]) * 32) < std::floor((best - most[b]) * 32);
      });
      const auto part_left_out = [&](int64_t h, int64_t ranked, int64_t walked) {
        double mass = l[h][0] * std::exp(m[h][0]) + l[h][last] * std::exp(m[h][last]), rest = 0;
        for (int64_t i = 0; i < last - 1; ++i) {
          const int64_t p = order[i];
          if (i < walked) mass += l[h][p] * std::exp(m[h][p]);
          if (i >= ranked) rest += 256 * std::exp(u[h][p]);
        }
        return rest / (mass + rest);
      };
      for (const PageChoice choice : {PageChoice{PageChoice::Mode::kBounded, epsilon, 0},
                                      PageChoice{PageChoice::Mode::kBudget, 0, 20},
                                      PageChoice{PageChoice::Mode::kBudget, 0, 80}}) {
        PageVisits visits;
        const auto out = s.attend(context, q, 1, 1, &choice, &visits);
        const bool is_bounded = choice.mode == PageChoice::Mode::kBounded;
        const int64_t ranked = visits.visited - 2, walk = (last - 1 + 3) / 4;
        EXPECT_EQ(visits.seen, last + 1);
        if (!is_bounded) {
          EXPECT_EQ(visits.visited, choice.pages);
        }
        std::vector<int64_t> pages(order.begin(), order.begin() + ranked);
        pages.push_back(0);
        pages.push_back(last);
        std::sort(pages.begin(), pages.end());
        std::vector<float> expected;
        double before = 0, kept = 1;
        for (int64_t h = 0; h < 3; ++h) {
          const auto row = contract_row(s, &q[h * 40], 0, positions, pages);
          expected.insert(expected.end(), row.begin(), row.end());
          if (is_bounded) {
            EXPECT_LE(part_left_out(h, ranked, std::min(ranked, walk)), epsilon);
          }
          before = std::max(before, part_left_out(h, ranked - 1, std::min(ranked - 1, walk)));
          kept = std::min(kept, 1 - part_left_out(h, ranked, ranked));
        }
        EXPECT_TRUE(same_bits(out, expected)) << dtype_name(type) << ", strength " << strength;
        if (is_bounded && ranked > 0) {
          EXPECT_GT(before * 1.001, epsilon);  // R is rounded up a little
        }
        EXPECT_NEAR(visits.kept, kept, 1e-3 * (1 - kept) + 1e-6);
      }
    }
  }
}

// Over keys without any order, longer on some pages than on others; keys in clusters; and keys that
// make some bounds lie.
TEST(PageChoice, ResultsAreAsNearAsPromised) {
  Context context(2);
  for (const DType type : kTypes) {
    for (const char* kind : {"random", "clustered", "adverse"}) {
      const Shape shape{2, 4, 32};
      const int64_t positions = 150 * kPageTokens + 9, cols = shape.kv_cols();
      Sequence s = clustered(context, shape, type, positions, 7);
      const auto random = random_floats(positions * cols, 8);
      for (size_t j = 0; kind[0] != 'c' && j < s.keys.size(); ++j) {
        const int64_t p = static_cast<int64_t>(j) / cols, page = p / kPageTokens;
        if (kind[0] == 'r') {
          s.keys[j] = random[j] * 0.01f * static_cast<float>(page * 37 % 100);  // page 70: 0.9
        } else if (page == 70) {
          s.keys[j] = 1.5f;  // here is the mass
        } else {
          // Of every sixth page the keys point both ways, so that its bound is the highest and its
          // scores are low.
          const bool is_lie = page % 6 == 0;
          s.keys[j] = is_lie ? ((p + static_cast<int64_t>(j)) % 2 == 0 ? 3.0f : -3.0f) : 0.01f;
        }
      }
      s.store(context);
      s.bounds.clear();
      s.bound(context);
      const int64_t tokens = 3;
      const auto q = queries_at(s, tokens, /*at=*/70, kind[0] == 'r' ? 6.0f : 1.5f);
      float largest = 0;
      for (const float x : s.values) largest = std::max(largest, std::fabs(x));
      const auto exact = s.attend(context, q, tokens);
      for (const float epsilon : {0.3f, 0.01f, 1e-4f}) {
        const PageChoice choice{PageChoice::Mode::kBounded, epsilon};
        PageVisits visits;
        const auto out = s.attend(context, q, tokens, tokens, &choice, &visits);
        EXPECT_GE(visits.kept, 1 - epsilon) << kind;
        EXPECT_LT(visits.visited, visits.seen) << kind << ", epsilon " << epsilon;
        float error = 0;
        for (size_t i = 0; i < out.size(); ++i) {
          error = std::max(error, std::fabs(out[i] - exact[i]));
        }
        // Both are rounded: errors of sums over pages as in MatchesTheFormulaInDoublePrecision.
        EXPECT_LE(error, 2 * epsilon * largest + 1e-5f) << kind << ", epsilon " << epsilon;
      }
    }
  }
}

TEST(PageChoice, OfAllPagesIsTheExactResultToTheBit) {
  Context context(2);
  for (const DType type : kTypes) {
    const Shape shape{2, 3, 24};
    const int64_t positions = 70 * kPageTokens + 3, tokens = 5;
    const Sequence s = clustered(context, shape, type, positions, 11);
    const auto q = queries_at(s, tokens, 3, 1.0f);
    const auto exact = s.attend(context, q, tokens);
    for (const PageChoice choice : {PageChoice{PageChoice::Mode::kBounded, 0.0f},
                                    PageChoice{PageChoice::Mode::kBudget, 0.0f, 71},
                                    PageChoice{PageChoice::Mode::kBudget, 0.0f, 1 << 20}}) {
      PageVisits visits;
      EXPECT_TRUE(same_bits(s.attend(context, q, tokens, tokens, &choice, &visits), exact));
      // The last 3 tokens see 71 pages, those before them 70.
      EXPECT_EQ(visits.seen, 2 * (3 * 71 + 2 * 70));
      EXPECT_EQ(visits.visited, visits.seen);
      EXPECT_EQ(visits.kept, 1.0f);
    }
  }
}

// Some tokens of a job see a page less than others; one of the choices leaves more than a span to
// visit, one leaves nothing out, and exact jobs stand between.
TEST(PageChoice, DoesNotDependOnCompanyCutThreadsOrInstructionSet) {
  Context plain(1, Isa::kPlain);
  const PageChoice choices[] = {{PageChoice::Mode::kBounded, 1e-3f},
                                {PageChoice::Mode::kBounded, 1e-6f},
                                {PageChoice::Mode::kBudget, 0, 9},
                                {PageChoice::Mode::kBudget, 0, 100}};
  for (const DType type : kTypes) {
    if (testing::kSanitized && type == DType::kF32) continue;
    const Shape shape{2, 2, 20};
    const int64_t tokens = 5;
    std::vector<Sequence> sequences;
    std::vector<std::vector<float>> queries;
    const int64_t pages = testing::kSanitized ? kSpanPages + 2 : 2 * kSpanPages + 12;
    for (const int64_t positions :
         {pages * kPageTokens + 2, 2 * kPageTokens + 3, 30 * kPageTokens}) {
      sequences.push_back(clustered(plain, shape, type, positions, 13));
      queries.push_back(queries_at(sequences.back(), tokens, 1, 0.9f));
    }
    for (const PageChoice& choice : choices) {
      std::vector<std::vector<float>> expected;
      for (size_t i = 0; i < sequences.size(); ++i) {
        expected.push_back(sequences[i].attend(plain, queries[i], tokens, 1, &choice));
      }
      const auto exact = sequences[0].attend(plain, queries[0], tokens);
      for (const Isa isa : available_isas()) {
        for (const int threads : {1, 3}) {
          if (isa == Isa::kPlain && (threads == 1 || testing::kSanitized)) continue;  // slow
          Context context(threads, isa);
          for (const int64_t cut : {tokens, int64_t{3}}) {
            if (isa == Isa::kPlain && cut == tokens) continue;  // slow
            EXPECT_TRUE(same_bits(sequences[0].attend(context, queries[0], tokens, cut, &choice),
                                  expected[0]))
                << isa_name(isa) << ", " << dtype_name(type) << ", " << threads << " threads";
          }
          std::vector<std::vector<float>> out(4, std::vector<float>(exact.size()));
          std::vector<AttentionJob> jobs;
          for (size_t i = 0; i < 4; ++i) {
            const Sequence& s = sequences[i % 3];
            const int64_t cols = shape.q_cols();
            jobs.push_back({{queries[i % 3].data(), tokens, cols, cols},
                            s.view(),
                            s.positions - tokens,
                            {out[i].data(), tokens, cols, cols},
                            /*causal=*/true,
                            i < 3 ? &choice : nullptr});
          }
          std::swap(jobs[1], jobs[3]);
          attention(context, jobs);
          for (size_t i = 0; i < 4; ++i) {
            EXPECT_TRUE(same_bits(out[i], i < 3 ? expected[i] : exact))
                << isa_name(isa) << ", " << dtype_name(type) << ", job " << i;
          }
        }
      }
    }
  }
}

TEST(PageChoice, APageWithAKeyThatIsNoNumberIsAlwaysVisited) {
  Context context(2);
  for (const DType type : kTypes) {
    const Shape shape{1, 2, 16};
    Sequence s = clustered(context, shape, type, 100 * kPageTokens, 15);
    const auto q = queries_at(s, 1, 50, 4.0f);
    for (const PageChoice choice : {PageChoice{PageChoice::Mode::kBounded, 0.01f},
                                    PageChoice{PageChoice::Mode::kBudget, 0, 4}}) {
      PageVisits visits;
      for (const float x : s.attend(context, q, 1, 1, &choice, &visits)) {
        EXPECT_TRUE(std::isfinite(x));
      }
      EXPECT_LT(visits.visited, 20);
      Sequence other = clustered(context, shape, type, 100 * kPageTokens, 15);
      other.keys[(77 * kPageTokens + 5) * 16 + 2] = NAN;
      other.store(context);
      other.bounds.clear();
      other.bound(context);
      for (const float x : other.attend(context, q, 1, 1, &choice)) EXPECT_TRUE(std::isnan(x));
    }
  }
}

TEST(PageChoice, QueriesThatAreNoNumbersDoNotCrash) {
  Context context(2);
  const Shape shape{1, 2, 16};
  const Sequence s = clustered(context, shape, DType::kI8, 100 * kPageTokens, 17);
  for (const float number : {NAN, INFINITY, 3e38f}) {
    const std::vector<float> q(static_cast<size_t>(shape.q_cols()), number);
    for (const PageChoice choice : {PageChoice{PageChoice::Mode::kBounded, 0.01f},
                                    PageChoice{PageChoice::Mode::kBudget, 0, 4}}) {
      PageVisits visits;
      for (const float x : s.attend(context, q, 1, 1, &choice, &visits)) {
        EXPECT_TRUE(std::isnan(x));
      }
      EXPECT_LE(visits.visited, 100);
      EXPECT_EQ(visits.kept, visits.visited == 100 ? 1.0f : 0.0f);
    }
  }
}

}  // namespace
}  // namespace drover
