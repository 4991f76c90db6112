// For the tests of operations on rows: matrices of random numbers, and comparisons.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include "tensor/view.h"

namespace drover {

inline constexpr double kUnit = 0x1p-24;  // half a unit in the last place of a float
inline constexpr float kEps = 1e-5f;
inline constexpr float kUntouched = -12345.0f;

// Random numbers at an odd address, with room between the rows.
struct Rows {
  int64_t rows, cols, stride;
  std::vector<float> data;

  Rows(int64_t rows, int64_t cols, uint32_t seed, float spread = 1.0f)
      : rows(rows),
        cols(cols),
        stride(cols + 3),
        data(static_cast<size_t>(1 + rows * stride), kUntouched) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0f, spread);
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t i = 0; i < cols; ++i) (*this)(t, i) = normal(random);
    }
  }
  float& operator()(int64_t t, int64_t i) { return data[static_cast<size_t>(1 + t * stride + i)]; }
  float operator()(int64_t t, int64_t i) const {
    return data[static_cast<size_t>(1 + t * stride + i)];
  }
  MatrixView view() { return {data.data() + 1, rows, cols, stride}; }
  MatrixView row(int64_t t) { return {data.data() + 1 + t * stride, 1, cols, stride}; }
  operator MatrixView() { return view(); }
  operator ConstMatrixView() { return view(); }

  bool gaps_untouched() const {
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t i = cols; i < stride; ++i) {
        if ((*this)(t, i) != kUntouched) return false;
      }
    }
    return data[0] == kUntouched;
  }
};

inline std::vector<float> random_floats(int64_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<size_t>(n));
  for (float& x : out) x = normal(random);
  return out;
}

// Every length to beyond two vectors, and a few beyond that.
inline std::vector<int64_t> lengths() {
  std::vector<int64_t> out;
  for (int64_t n = 1; n <= 35; ++n) out.push_back(n);
  out.insert(out.end(), {64, 100, 257});
  return out;
}

// Equal to the bit; any NaN equals any other.
inline ::testing::AssertionResult same_bits(const std::vector<float>& expected,
                                            const std::vector<float>& got) {
  if (expected.size() != got.size()) return ::testing::AssertionFailure() << "sizes differ";
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(expected[i]) && std::isnan(got[i])) continue;
    if (std::bit_cast<uint32_t>(expected[i]) == std::bit_cast<uint32_t>(got[i])) continue;
    return ::testing::AssertionFailure()
           << "at " << i << ": expected " << expected[i] << ", got " << got[i];
  }
  return ::testing::AssertionSuccess();
}

using Doubles = std::vector<double>;
inline Doubles doubles(const std::vector<float>& x) { return {x.begin(), x.end()}; }

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
inline double normal_below(double x) { return std::erfc(-x * std::sqrt(0.5)) / 2; }

// Roundings of a sum of n terms in 16 partial sums and a tree.
inline double sum_roundings(int64_t n) { return static_cast<double>((n + 15) / 16) + 4; }
// Roundings of a sum over rows, in blocks of 64.
inline double row_roundings(int64_t rows) {
  return static_cast<double>(std::min<int64_t>(rows, 64) + (rows + 63) / 64);
}

}  // namespace drover
