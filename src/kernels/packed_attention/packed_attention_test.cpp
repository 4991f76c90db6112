// Packed attention, forward and backward: against the formula in double precision, the formula
// against finite differences, and the whole against itself in company, on threads, in other cuts.
#include "kernels/packed_attention/packed_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/attention/attention_fixture.h"
#include "kernels/packed_attention/packed_attention_fixture.h"
#include "tests/support/sanitized.h"

namespace drover::packed {
namespace {

bool has_matrix_unit() { return detect_isa() == Isa::kAmx; }

// Around vectors, tiles, blocks of 64, and tasks of 512 rows or keys.
std::vector<Batch> ragged_batches() {
  std::vector<Batch> out;
  const std::vector<RowSpan> small = {{2, 1}, {3, 2}, {5, 15}, {21, 17}, {40, 33}};
  const std::vector<RowSpan> blocks = {{1, 63}, {64, 65}, {129, 95}, {224, 97}};
  uint32_t seed = 1;
  for (const Heads h : {Heads{4, 2, 32}, {3, 3, 64}, {4, 1, 50}, {2, 1, 2}, {5, 5, 18}}) {
    for (const bool causal : {true, false}) {
      out.emplace_back(h, 75, small, causal, /*with_bias=*/causal, ++seed);
      out.emplace_back(h, 322, blocks, causal, /*with_bias=*/!causal, ++seed);
    }
  }
  out.emplace_back(Heads{9, 3, 34}, 210, std::vector<RowSpan>{{10, 200}}, true, true, ++seed);
  out.emplace_back(Heads{1, 1, 512}, 70, std::vector<RowSpan>{{0, 70}}, true, false, ++seed);
  out.emplace_back(Heads{2, 1, 88}, 394, std::vector<RowSpan>{{197, 197}, {0, 197}}, false, true,
                   ++seed);
  for (const bool causal : {true, false}) {
    if (testing::kSanitized) continue;
    out.emplace_back(Heads{2, 1, 6}, 1300, std::vector<RowSpan>{{0, 600}, {600, 700}}, causal, true,
                     ++seed);
  }
  return out;
}

TEST(PackedAttention, IsTheFormulaInDoublePrecision) {
  for (const Batch& batch : ragged_batches()) {
    const Exact exact(batch, /*operand=*/0);
    for (const Isa isa : available_isas()) {
      EXPECT_TRUE(within(run(context(isa), batch), exact)) << isa_name(isa) << ", " << batch;
    }
  }
}

// More keys than eight of the smallest stripes have.
TEST(PackedAttention, ALongSpanIsTheFormulaToo) {
  if (testing::kSanitized) GTEST_SKIP() << "takes a minute beside a sanitizer";
  for (const bool causal : {true, false}) {
    const int64_t rows = causal ? 4800 : 2000;
    const Batch batch({1, 1, 2}, rows, {{0, rows}}, causal, /*with_bias=*/false, 9);
    const Exact exact(batch, /*operand=*/0);
    for (const Isa isa : available_isas()) {
      EXPECT_TRUE(within(run(context(isa), batch), exact)) << isa_name(isa) << ", " << batch;
    }
  }
}

// d/dx of sum(dout * out) by central differences of step h: their error is h^2 / 6 of a third
// derivative, here of the size of 1, and 2^-53 / h of the sum's size, some 100: 1e-8 both.
TEST(PackedAttention, TheFormulaHasTheGradientsOfFiniteDifferences) {
  for (const bool causal : {true, false}) {
    Batch batch({4, 2, 6}, 13, {{1, 5}, {6, 7}}, causal, /*with_bias=*/true, 5);
    const Exact exact(batch, /*operand=*/0);
    const auto objective = [&] {
      const Exact at(batch, /*operand=*/0);
      double sum = 0;
      for (size_t i = 0; i < batch.dout.size(); ++i) sum += batch.dout[i] * at.value.out[i];
      return sum;
    };
    const auto check = [&](std::vector<float>& x, const std::vector<double>& gradient) {
      for (size_t i = 0; i < x.size(); i += 5) {
        const float before = x[i];
        x[i] = before + 0x1p-12f;
        const double up = x[i], above = objective();
        x[i] = before - 0x1p-12f;
        const double slope = (above - objective()) / (up - x[i]);
        x[i] = before;
        EXPECT_NEAR(slope, gradient[i], 1e-6) << i;
      }
    };
    check(batch.q, exact.value.dq);
    check(batch.k, exact.value.dk);
    check(batch.v, exact.value.dv);
  }
}

// Both are within the bound of the formula.
TEST(PackedAttention, AgreesWithTheAttentionOfCaches) {
  for (const bool causal : {true, false}) {
    const int64_t rows = 150;
    Batch batch({6, 2, 32}, rows, {{0, rows}}, causal, /*with_bias=*/false, 7);
    const Exact exact(batch, /*operand=*/0);
    for (const Isa isa : available_isas()) {
      Sequence sequence({2, 3, 32}, DType::kF32, rows);
      sequence.keys = batch.k;
      sequence.values = batch.v;
      sequence.store(context(isa));
      Results<float> results = run(context(isa), batch);
      const auto cached = causal ? sequence.attend(context(isa), batch.q, rows)
                                 : sequence.attend_to_all(context(isa), batch.q, rows);
      for (size_t i = 0; i < cached.size(); ++i) {
        ASSERT_NEAR(results.out[i], cached[i], 2.2 * exact.bound.out[i]) << isa_name(isa) << i;
      }
    }
  }
}

// ln 3 on a key is the key three times.
TEST(PackedAttention, ABiasStandsForCopiesOfAKey) {
  const Heads heads{2, 1, 16};
  Batch once(heads, 40, {{0, 40}}, /*causal=*/false, /*with_bias=*/false);
  once.bias.assign(40, 0.0f);
  once.bias[7] = std::log(3.0f);
  Batch thrice(heads, 42, {{0, 42}}, /*causal=*/false, /*with_bias=*/false);
  for (auto* x : {&thrice.k, &thrice.v}) {
    const auto& from = x == &thrice.k ? once.k : once.v;
    std::copy(from.begin(), from.end(), x->begin());
    for (const int64_t row : {40, 41}) {
      std::copy_n(from.begin() + 7 * heads.kv_cols(), heads.kv_cols(),
                  x->begin() + row * heads.kv_cols());
    }
  }
  std::copy(once.q.begin(), once.q.end(), thrice.q.begin());
  const Exact exact(once, /*operand=*/0);
  for (const Isa isa : available_isas()) {
    const auto a = run(context(isa), once).out, b = run(context(isa), thrice).out;
    for (size_t i = 0; i < a.size(); ++i) {
      ASSERT_NEAR(a[i], b[i], 2.2 * exact.bound.out[i]) << isa_name(isa) << ", " << i;
    }
  }
}

// Even where a block has no other keys.
TEST(PackedAttention, ABiasOfMinusInfinityTakesAKeyAway) {
  Batch batch({2, 2, 8}, 120, {{0, 120}}, /*causal=*/true, /*with_bias=*/true);
  for (int64_t p = 1; p < 110; ++p) batch.bias[p] = -std::numeric_limits<float>::infinity();
  for (const Isa isa : available_isas()) {
    for (const bool rounded : {false, true}) {
      const auto results = run(context(isa), batch, rounded);
      // Row 109 sees but the first key.
      for (int64_t i = 0; i < 8; ++i) {
        EXPECT_NEAR(results.out[109 * 16 + i], batch.v[i], 0x1p-8 * std::abs(batch.v[i]));
      }
      for (const auto& field : results.fields()) {
        for (const float x : *field.values) ASSERT_TRUE(std::isfinite(x)) << field.name;
      }
      for (int64_t i = 0; i < 16; ++i) {
        EXPECT_NEAR(results.dk[50 * 16 + i], 0, 1e-30) << isa_name(isa);
        EXPECT_NEAR(results.dv[50 * 16 + i], 0, 1e-30) << isa_name(isa);
      }
    }
  }
}

TEST(PackedAttention, RowsOutsideOfSpansGetZeros) {
  const Batch batch({2, 1, 10}, 90, {{60, 20}, {5, 30}}, /*causal=*/true, /*with_bias=*/false);
  const Batch none({2, 1, 10}, 90, {}, /*causal=*/true, /*with_bias=*/false);
  for (const Isa isa : available_isas()) {
    for (const bool rounded : {false, true}) {
      const auto results = run(context(isa), batch, rounded);
      for (const auto& field : results.fields()) {
        const int64_t cols = std::ssize(*field.values) / batch.rows;
        for (int64_t i = 0; i < std::ssize(*field.values); ++i) {
          const int64_t row = i / cols;
          const bool inside = (row >= 60 && row < 80) || (row >= 5 && row < 35);
          // The first row of a span sees itself alone, so that nothing depends on its score.
          const bool nothing = row == 5 || row == 60;
          if (!inside) {
            ASSERT_EQ((*field.values)[i], 0.0f) << field.name << ", row " << row;
          } else if (!nothing) {
            ASSERT_NE((*field.values)[i], 0.0f) << field.name << ", row " << row;
          }
        }
      }
      const auto empty = run(context(isa), none, rounded);
      for (const auto& field : empty.fields()) {
        for (const float x : *field.values) ASSERT_EQ(x, 0.0f) << field.name;
      }
    }
  }
}

// Rows [first, first + count) of x.
std::vector<float> rows_of(const std::vector<float>& x, int64_t cols, const RowSpan& rows) {
  return {x.begin() + rows.first * cols, x.begin() + (rows.first + rows.count) * cols};
}

TEST(PackedAttention, ASpanInCompanyGivesTheBitsOfItAlone) {
  for (const bool causal : {true, false}) {
    const Heads h{4, 2, 24};
    const Batch company(h, 820, {{0, 5}, {5, 530}, {600, 210}}, causal, /*with_bias=*/true, 3);
    for (const Isa isa : available_isas()) {
      for (const bool rounded : {false, true}) {
        const auto all = run(context(isa), company, rounded);
        for (const RowSpan& span : company.spans) {
          Batch alone(h, span.count, {{0, span.count}}, causal, /*with_bias=*/true);
          alone.q = rows_of(company.q, h.q_cols(), span);
          alone.k = rows_of(company.k, h.kv_cols(), span);
          alone.v = rows_of(company.v, h.kv_cols(), span);
          alone.dout = rows_of(company.dout, h.q_cols(), span);
          alone.bias = rows_of(company.bias, 1, span);
          const auto one = run(context(isa), alone, rounded);
          for (size_t f = 0; f < one.fields().size(); ++f) {
            const auto& field = *one.fields()[f].values;
            const int64_t cols = std::ssize(field) / span.count;
            EXPECT_TRUE(same_bits(field, rows_of(*all.fields()[f].values, cols, span)))
                << isa_name(isa) << ", " << one.fields()[f].name << ", rows " << span.count;
          }
        }
      }
    }
  }
}

TEST(PackedAttention, ThreadsDoNotChangeABit) {
  for (const bool causal : {true, false}) {
    const Batch batch({6, 2, 16}, 900, {{0, 700}, {700, 200}}, causal, /*with_bias=*/true, 3);
    for (const Isa isa : available_isas()) {
      if (testing::kSanitized && isa == Isa::kPlain) continue;
      for (const bool rounded : {false, true}) {
        const auto expected = run(context(isa), batch, rounded);
        for (const int threads : {2, 5}) {
          Context many(threads, isa);
          EXPECT_TRUE(same_bits(run(many, batch, rounded), expected))
              << isa_name(isa) << ", " << threads << " threads";
        }
      }
    }
  }
}

// Rows that are further apart than they are wide, in all nine matrices.
TEST(PackedAttention, RowsMayBeApart) {
  const Batch batch({4, 2, 20}, 130, {{0, 130}}, /*causal=*/true, /*with_bias=*/false);
  const int64_t q = batch.heads.q_cols(), kv = batch.heads.kv_cols(), gap = 7;
  const auto apart = [&](const std::vector<float>& x, int64_t cols) {
    std::vector<float> out(static_cast<size_t>(batch.rows * (cols + gap)), NAN);
    for (int64_t row = 0; row < batch.rows; ++row) {
      std::copy_n(x.begin() + row * cols, cols, out.begin() + row * (cols + gap));
    }
    return out;
  };
  const auto wide = [&](std::vector<float>& x, int64_t cols) {
    return MatrixView{x.data(), batch.rows, cols, cols + gap};
  };
  for (const Isa isa : available_isas()) {
    for (const bool rounded : {false, true}) {
      const auto expected = run(context(isa), batch, rounded);
      auto in_q = apart(batch.q, q), in_k = apart(batch.k, kv), in_v = apart(batch.v, kv);
      auto dout = apart(batch.dout, q);
      std::vector<float> out(in_q.size()), log_sums(batch.rows * (4 + gap)), dq(in_q.size()),
          dk(in_k.size()), dv(in_k.size());
      packed_attention(context(isa), batch.how(rounded), wide(out, q), wide(log_sums, 4),
                       wide(in_q, q), wide(in_k, kv), wide(in_v, kv));
      packed_attention_backward(context(isa), batch.how(rounded), wide(dq, q), wide(dk, kv),
                                wide(dv, kv), wide(dout, q), wide(out, q), wide(log_sums, 4),
                                wide(in_q, q), wide(in_k, kv), wide(in_v, kv));
      const std::vector<float>* got[] = {&out, &log_sums, &dq, &dk, &dv};
      for (size_t f = 0; f < 5; ++f) {
        const auto& field = *expected.fields()[f].values;
        const int64_t cols = std::ssize(field) / batch.rows;
        for (int64_t row = 0; row < batch.rows; ++row) {
          const auto* begin = got[f]->data() + row * (cols + gap);
          EXPECT_TRUE(same_bits({begin, begin + cols}, rows_of(field, cols, {row, 1})))
              << isa_name(isa) << ", " << expected.fields()[f].name;
          EXPECT_EQ(begin[cols], 0.0f) << "beyond the row";
        }
      }
    }
  }
}

// Half a unit of bf16 is 2^-8 of a number at most. As noise of its own in each operand it is 2^-8 /
// √3 and less, and what is left in a result some 2^-7 of its size in the mean: a wrong form shows
// as 1.
TEST(PackedAttention, RoundedIsWithinTheBoundOfItsOperands) {
  if (!has_matrix_unit()) GTEST_SKIP() << "this processor has no matrix unit";
  for (const Batch& batch : ragged_batches()) {
    const Exact exact(batch, /*operand=*/0x1p-8);
    const auto got = run(context(Isa::kAmx), batch, /*rounded=*/true);
    EXPECT_TRUE(within(got, exact)) << batch;
    for (size_t f = 0; f < 5; ++f) {
      double error = 0, size = 0;
      const auto& values = *exact.value.fields()[f].values;
      for (size_t i = 0; i < values.size(); ++i) {
        const double off = (*got.fields()[f].values)[i] - values[i];
        error += off * off;
        size += values[i] * values[i];
      }
      EXPECT_LT(std::sqrt(error), 0x1p-6 * std::sqrt(size)) << got.fields()[f].name << batch;
    }
  }
}

TEST(PackedAttention, RoundedIsAnyOtherWhereThereIsNoMatrixUnit) {
  const Batch batch({4, 2, 32}, 150, {{0, 150}}, /*causal=*/true, /*with_bias=*/false);
  for (const Isa isa : available_isas()) {
    const auto exact = run(context(isa), batch), rounded = run(context(isa), batch, true);
    EXPECT_EQ(static_cast<bool>(same_bits(exact, rounded)), isa != Isa::kAmx) << isa_name(isa);
  }
}

}  // namespace
}  // namespace drover::packed
