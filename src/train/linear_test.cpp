// Linear maps and their gradients against sums in double precision.
#include "train/linear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

namespace drover {
namespace {

std::vector<float> random_floats(int64_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<size_t>(n));
  for (float& x : out) x = normal(random);
  return out;
}

// Two matrices, as of two experts, with copies for products as Parameters::refresh() makes them.
Parameter two_matrices(Context& context, int64_t rows, int64_t cols, Precision precision) {
  Parameter p;
  p.matrices = 2, p.rows = rows, p.cols = cols;
  const auto size = static_cast<size_t>(p.size());
  const auto values = random_floats(p.size(), 1);
  p.value = AlignedArray<float>(size);
  p.gradient = AlignedArray<float>(size);
  std::copy(values.begin(), values.end(), p.value.data());
  std::fill_n(p.gradient.data(), size, 0.5f);
  p.reserve_copies(context.isa, precision == Precision::kBF16);
  for (int64_t i = 0; i < 2; ++i) p.copy(context, i);
  return p;
}

struct Sum {
  double value = 0, size = 0;
  void add(double a, double b) { value += a * b, size += std::abs(a * b); }
};

// Rows as documents and experts have them: any number, mostly no multiple of anything. The sum over
// them is filled up with zeros.
TEST(LinearMaps, GiveTheGradientsOfTheirProductsForAnyNumberOfRows) {
  constexpr int64_t kRows = 24, kCols = 40;
  for (const Isa isa : available_isas()) {
    Context context(2, isa);
    LinearMaps maps(context);
    for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
      Parameter w = two_matrices(context, kRows, kCols, precision);
      Parameter bias;
      bias.rows = 1, bias.cols = kRows;
      bias.gradient = AlignedArray<float>(kRows);
      // Both factors rounded to bf16, by 2^-8 of themselves; each product and sum to float.
      const double of_factors = precision == Precision::kBF16 ? 0x1p-7 + 0x1p-16 : 0;
      for (const int64_t rows : {0, 1, 31, 32, 33, 70, 300, 1100}) {
        const auto x = random_floats(rows * kCols, 2), dy = random_floats(rows * kRows, 3);
        std::vector<float> dx(static_cast<size_t>(rows * kCols), -1.0f);
        std::fill_n(w.gradient.data(), w.gradient.size(), 0.5f);
        std::fill_n(bias.gradient.data(), kRows, 0.25f);
        const LinearBackward map{.w = &w,
                                 .index = 1,
                                 .x = {x.data(), rows, kCols, kCols},
                                 .dy = {dy.data(), rows, kRows, kRows},
                                 .dx = {dx.data(), rows, kCols, kCols},
                                 .bias = &bias};
        maps.backward({&map, 1});
        const auto where = [&](const char* what) {
          return std::string(isa_name(isa)) + ' ' + what + " of " + std::to_string(rows) +
                 " rows, precision " + std::to_string(static_cast<int>(precision));
        };
        const auto bound = [&](const Sum& sum, int64_t terms) {
          return sum.size * (of_factors + static_cast<double>(terms + 2) * 0x1p-24);
        };
        for (int64_t r = 0; r < kRows; ++r) {
          Sum of_bias;
          of_bias.add(0.25, 1);
          for (int64_t t = 0; t < rows; ++t) of_bias.add(dy[t * kRows + r], 1);
          EXPECT_NEAR(bias.gradient[r], of_bias.value, of_bias.size * (rows + 1) * 0x1p-24);
          for (int64_t c = 0; c < kCols; ++c) {
            Sum sum;
            sum.add(0.5, 1);
            for (int64_t t = 0; t < rows; ++t) sum.add(dy[t * kRows + r], x[t * kCols + c]);
            EXPECT_NEAR(w.gradient_of(1).row(r)[c], sum.value, bound(sum, rows)) << where("dW");
            EXPECT_EQ(w.gradient_of(0).row(r)[c], 0.5f) << where("dW of the other");
          }
        }
        for (int64_t t = 0; t < rows; ++t) {
          for (int64_t c = 0; c < kCols; ++c) {
            Sum sum;
            for (int64_t r = 0; r < kRows; ++r) {
              sum.add(dy[t * kRows + r], w.matrix(1)[r * kCols + c]);
            }
            EXPECT_NEAR(dx[t * kCols + c], sum.value, bound(sum, kRows)) << where("dx");
          }
        }
      }
    }
  }
}

// The same, turned a few rows at a time by whoever has them: also of more columns than a strip, and
// of rows in several panels.
TEST(LinearMaps, GiveTheSameGradientFromRowsThatWereTurnedBefore) {
  constexpr int64_t kRows = 40, kCols = 800, kPiece = 64;
  for (const Isa isa : available_isas()) {
    Context context(2, isa);
    LinearMaps maps(context);
    for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
      for (const int64_t rows : {1, 70, 700}) {
        Parameter w = two_matrices(context, kRows, kCols, precision);
        Parameter other = two_matrices(context, kRows, kCols, precision);
        const auto x = random_floats(rows * kCols, 2), dy = random_floats(rows * kRows, 3);
        LinearBackward map{.w = &w,
                           .index = 1,
                           .x = {x.data(), rows, kCols, kCols},
                           .dy = {dy.data(), rows, kRows, kRows},
                           .dx = {}};
        maps.add_gradients({&map, 1});

        TurnedInput turned_x;
        TurnedOutput turned_dy;
        turned_x.resize(GradientForm(isa, other), rows, kCols);
        turned_dy.resize(GradientForm(isa, other), rows, kRows);
        const RowPanels& panels = turned_x.panels();
        for (int64_t panel = panels.count() - 1; panel >= 0; --panel) {
          for (int64_t t = 0; t < panels.rows(panel); t += kPiece) {
            const int64_t first = panels.first(panel) + t;
            const int64_t count = std::min(kPiece, panels.rows(panel) - t);
            turned_x.put(context, first, {x.data() + first * kCols, count, kCols, kCols},
                         /*past_caches=*/t == 0);
            turned_dy.put(context, first, {dy.data() + first * kRows, count, kRows, kRows},
                          /*past_caches=*/t != 0);
          }
        }
        map.w = &other;
        map.x = {}, map.dy = {};
        map.turned_x = &turned_x, map.turned_dy = &turned_dy;
        maps.add_gradients({&map, 1});
        EXPECT_TRUE(
            std::equal(w.gradient.data(), w.gradient.data() + w.size(), other.gradient.data()))
            << isa_name(isa) << ", " << rows << " rows";
      }
    }
  }
}

// Threads share columns of dW, of several maps that read one x too, in panels of its rows.
TEST(LinearMaps, GiveTheSameBitsOnAnyNumberOfThreads) {
  constexpr int64_t kRows = 200, kCols = 800, kTokens = 700;
  const auto x = random_floats(kTokens * kCols, 2), other = random_floats(kTokens * kCols, 4);
  const auto dy = random_floats(kTokens * kRows, 3);
  for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
    std::vector<std::vector<float>> results;
    for (const int threads : {1, 2, 5}) {
      Context context(threads);
      LinearMaps maps(context);
      Parameter a = two_matrices(context, kRows, kCols, precision);
      Parameter b = two_matrices(context, kRows, kCols, precision);
      const auto map = [&](Parameter& w, int64_t index, const std::vector<float>& from) {
        return LinearBackward{.w = &w,
                              .index = index,
                              .x = {from.data(), kTokens, kCols, kCols},
                              .dy = {dy.data(), kTokens, kRows, kRows},
                              .dx = {}};
      };
      const LinearBackward all[] = {map(a, 0, x), map(b, 1, x), map(a, 1, other), map(b, 0, x)};
      maps.backward(all);
      std::vector<float>& result =
          results.emplace_back(a.gradient.data(), a.gradient.data() + a.size());
      result.insert(result.end(), b.gradient.data(), b.gradient.data() + b.size());
    }
    EXPECT_EQ(results[1], results[0]);
    EXPECT_EQ(results[2], results[0]);
    // Of one dy, x and beginning: alone or beside others is the same too.
    const auto matrix = results[0].begin();
    constexpr int64_t kSize = kRows * kCols;
    EXPECT_TRUE(std::equal(matrix, matrix + kSize, matrix + 2 * kSize));
    EXPECT_TRUE(std::equal(matrix, matrix + kSize, matrix + 3 * kSize));
    EXPECT_FALSE(std::equal(matrix, matrix + kSize, matrix + kSize));
  }
}

}  // namespace
}  // namespace drover
