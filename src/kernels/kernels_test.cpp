// The small kernels against their formulas in double precision, and their bits across instruction
// sets, threads and batches. Matrix multiplication has a test of its own.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/math/exp.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rope/rope.h"
#include "kernels/swiglu/swiglu.h"
#include "tensor/float16.h"

namespace drover {
namespace {

std::vector<float> random_floats(size_t n, uint32_t seed, float spread = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> out(n);
  for (float& x : out) x = normal(random);
  return out;
}

MatrixView matrix(std::vector<float>& data, int64_t rows, int64_t cols) {
  return {data.data(), rows, cols, cols};
}

TEST(Exp, IsWithinTwoUlpAndClamped) {
  for (float x = -87.0f; x <= 88.0f; x += 0.0037f) {
    const double expected = std::exp(static_cast<double>(x));
    EXPECT_NEAR(exp_of(x), expected, 2 * 0x1p-23 * expected) << x;
  }
  EXPECT_EQ(exp_of(0.0f), 1.0f);
  EXPECT_EQ(exp_of(-INFINITY), exp_of(-87.0f));
  EXPECT_EQ(exp_of(1000.0f), exp_of(88.0f));
  EXPECT_TRUE(std::isnan(exp_of(NAN)));
}

TEST(RmsNorm, MatchesTheFormulaForEveryLength) {
  Context context(2);
  for (int64_t d = 1; d <= 70; ++d) {
    auto x = random_floats(3 * d, d), weight = random_floats(d, 1000 + d);
    std::vector<float> out(3 * d);
    rms_norm(context, matrix(out, 3, d), matrix(x, 3, d), weight.data(), 1e-5f);
    for (int64_t t = 0; t < 3; ++t) {
      double mean = 0;
      for (int64_t i = 0; i < d; ++i) mean += static_cast<double>(x[t * d + i]) * x[t * d + i] / d;
      for (int64_t i = 0; i < d; ++i) {
        const double expected = x[t * d + i] / std::sqrt(mean + 1e-5) * weight[i];
        // Half the rounding errors of the d-term sum, and three roundings after it.
        EXPECT_NEAR(out[t * d + i], expected, (4 + d / 2.0) * 0x1p-24 * std::abs(expected));
      }
    }
  }
}

TEST(RmsNorm, OfHeadsIsTheNormOfEachHead) {
  Context context(1);
  auto x = random_floats(2 * 3 * 24, 5);
  auto heads = x;
  std::vector<float> ones(24, 1.0f), out(x.size());
  rms_norm_heads(context, matrix(heads, 2, 72), 24, 1e-5f);
  rms_norm(context, matrix(out, 6, 24), matrix(x, 6, 24), ones.data(), 1e-5f);
  EXPECT_EQ(heads, out);
}

TEST(Rope, RotatesAdjacentPairs) {
  Context context(2);
  const std::vector<float> frequencies = {1.0f, 0.1f, 0.01f};
  const std::vector<int64_t> positions = {0, 7, 8191};
  RopeTable table;
  table.fill(positions, frequencies);
  auto x = random_floats(3 * 2 * 6, 9);
  auto y = x;
  rope(context, matrix(y, 3, 12), table);
  for (int64_t t = 0; t < 3; ++t) {
    for (int64_t pair = 0; pair < 6; ++pair) {
      // The angle is formed in float32 by definition; all else is checked in double.
      const double angle = static_cast<float>(positions[t]) * frequencies[pair % 3];
      const double re = x[t * 12 + 2 * pair], im = x[t * 12 + 2 * pair + 1];
      const double bound = 4 * 0x1p-24 * (std::abs(re) + std::abs(im));
      EXPECT_NEAR(y[t * 12 + 2 * pair], re * std::cos(angle) - im * std::sin(angle), bound);
      EXPECT_NEAR(y[t * 12 + 2 * pair + 1], re * std::sin(angle) + im * std::cos(angle), bound);
    }
  }
}

TEST(Swiglu, MatchesTheFormula) {
  Context context(2);
  auto gate = random_floats(2 * 37, 11, 20.0f), up = random_floats(2 * 37, 12);
  auto out = gate;
  swiglu(context, matrix(out, 2, 37), matrix(up, 2, 37));
  for (size_t i = 0; i < out.size(); ++i) {
    const double g = gate[i], expected = g / (1 + std::exp(-g)) * up[i];
    EXPECT_NEAR(out[i], expected, 6 * 0x1p-24 * std::abs(expected) + 1e-37);
  }
}

// Pages that own their memory, filled with random keys and values of `positions` tokens.
struct FilledPages {
  std::vector<AlignedArray<std::byte>> memory;
  std::vector<std::byte*> pages;
  KvPages view;
  std::vector<float> keys, values;

  FilledPages(Context& context, DType type, int64_t heads, int64_t d, int64_t positions)
      : keys(random_floats(positions * heads * d, 21)),
        values(random_floats(positions * heads * d, 22)) {
    view = {nullptr, type, heads, d};
    for (int64_t p = 0; p * kPageTokens < positions; ++p) {
      memory.emplace_back(view.page_bytes());
      std::memset(memory.back().data(), 0, memory.back().size());
      pages.push_back(memory.back().data());
    }
    view.pages = pages.data();
    // Rounded here, so that the formula below sees what the cache keeps.
    if (type == DType::kBF16) {
      for (float& x : keys) x = to_float(to_bf16(x));
      for (float& x : values) x = to_float(to_bf16(x));
    }
    const KvStoreJob job{view, 0, matrix(keys, positions, heads * d),
                         matrix(values, positions, heads * d)};
    store_kv(context, {&job, 1});
  }
};

TEST(Attention, MatchesTheFormula) {
  Context context(2);
  for (const DType type : {DType::kF32, DType::kBF16}) {
    for (const int64_t d : {1, 8, 16, 24, 64, 88, 128}) {
      for (const int64_t group : {1, 2, 3, 5, 8}) {
        for (const int64_t positions : {1, 17, 256, 257, 700}) {
          const int64_t heads = 2, tokens = std::min<int64_t>(positions, 3);
          FilledPages kv(context, type, heads, d, positions);
          auto q = random_floats(tokens * heads * group * d, 23, 2.0f);
          std::vector<float> out(q.size());
          const AttentionJob job{matrix(q, tokens, heads * group * d), kv.view, positions - tokens,
                                 matrix(out, tokens, heads * group * d)};
          attention(context, {&job, 1});
          for (int64_t t = 0; t < tokens; ++t) {
            for (int64_t h = 0; h < heads * group; ++h) {
              const float* qh = &q[(t * heads * group + h) * d];
              const int64_t kv_head = h / group, seen = positions - tokens + t + 1;
              std::vector<double> weight(seen);
              double max = -1e300, sum = 0;
              for (int64_t p = 0; p < seen; ++p) {
                double dot = 0;
                for (int64_t i = 0; i < d; ++i) {
                  dot += static_cast<double>(qh[i]) * kv.keys[(p * heads + kv_head) * d + i];
                }
                weight[p] = dot / std::sqrt(static_cast<double>(d));
                max = std::max(max, weight[p]);
              }
              for (double& w : weight) sum += w = std::exp(w - max);
              for (int64_t i = 0; i < d; ++i) {
                double expected = 0;
                for (int64_t p = 0; p < seen; ++p) {
                  expected += weight[p] / sum * kv.values[(p * heads + kv_head) * d + i];
                }
                // Scores of size 10 to 20 carry an absolute error of some 1e-6 into the exponent;
                // values are of size 1 to 4.
                EXPECT_NEAR(out[((t * heads * group) + h) * d + i], expected, 2e-5)
                    << dtype_name(type) << " d " << d << " group " << group << " positions "
                    << positions;
              }
            }
          }
        }
      }
    }
  }
}

TEST(Attention, GivesTheSameBitsOnEveryInstructionSetThreadCountAndCut) {
  for (const DType type : {DType::kF32, DType::kBF16}) {
    for (const int64_t d : {8, 24, 64, 80}) {
      constexpr int64_t kHeads = 2, kGroup = 5, kPositions = 600, kTokens = 150;
      Context plain(1, Isa::kPlain);
      FilledPages kv(plain, type, kHeads, d, kPositions);
      auto q = random_floats(kTokens * kHeads * kGroup * d, 31, 2.0f);
      const int64_t cols = kHeads * kGroup * d;
      std::vector<float> expected(q.size());
      const AttentionJob whole{matrix(q, kTokens, cols), kv.view, kPositions - kTokens,
                               matrix(expected, kTokens, cols)};
      attention(plain, {&whole, 1});
      for (const Isa isa : available_isas()) {
        for (const int threads : {1, 2, 4}) {
          Context context(threads, isa);
          std::vector<float> out(q.size());
          std::vector<AttentionJob> jobs;  // cut into pieces of 1, 2, 3, ... tokens
          for (int64_t t = 0, n = 1; t < kTokens; t += n, ++n) {
            const int64_t rows = std::min(n, kTokens - t);
            jobs.push_back({{q.data() + t * cols, rows, cols, cols},
                            kv.view,
                            kPositions - kTokens + t,
                            {out.data() + t * cols, rows, cols, cols}});
          }
          attention(context, jobs);
          EXPECT_EQ(std::memcmp(out.data(), expected.data(), out.size() * sizeof(float)), 0)
              << isa_name(isa) << " threads " << threads << " d " << d;
        }
      }
    }
  }
}

}  // namespace
}  // namespace drover
