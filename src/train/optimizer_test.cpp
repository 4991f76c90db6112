#include "train/optimizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "train/random.h"

namespace drover {
namespace {

using Matrix = std::vector<double>;  // row-major

void fill_normal(Random& random, AlignedArray<float>& out, double deviation) {
  for (float& x : out.span()) x = static_cast<float>(deviation * random.normal());
}

Parameter make(const char* name, Parameter::Kind kind, int64_t matrices, int64_t rows, int64_t cols,
               uint64_t seed) {
  Parameter out;
  out.name = name;
  out.kind = kind;
  out.matrices = matrices;
  out.rows = rows;
  out.cols = cols;
  out.value = AlignedArray<float>(static_cast<size_t>(out.size()));
  out.gradient = AlignedArray<float>(static_cast<size_t>(out.size()));
  Random random(seed, 0);
  fill_normal(random, out.value, 0.5);
  return out;
}

Matrix product(const Matrix& a, const Matrix& b, int64_t n, int64_t k, int64_t m) {
  Matrix out(static_cast<size_t>(n * m), 0);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      for (int64_t l = 0; l < m; ++l) out[i * m + l] += a[i * k + j] * b[j * m + l];
    }
  }
  return out;
}

Matrix transposed(const Matrix& a, int64_t rows, int64_t cols) {
  Matrix out(a.size());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) out[c * rows + r] = a[r * cols + c];
  }
  return out;
}

// The iteration as it is written, in double.
Matrix orthogonalized(Matrix x, int64_t rows, int64_t cols) {
  double norm = 0;
  for (const double v : x) norm += v * v;
  norm = std::sqrt(norm);
  for (double& v : x) v /= norm + 1e-7;
  for (int step = 0; step < 5; ++step) {
    const Matrix a = product(x, transposed(x, rows, cols), rows, cols, rows);
    const Matrix aa = product(a, a, rows, rows, rows);
    Matrix b(a.size());
    for (size_t i = 0; i < b.size(); ++i) b[i] = -4.7750 * a[i] + 2.0315 * aa[i];
    const Matrix bx = product(b, x, rows, rows, cols);
    for (size_t i = 0; i < x.size(); ++i) x[i] = 3.4445 * x[i] + bx[i];
  }
  return x;
}

// By Jacobi's rotations of x x^T.
std::vector<double> singular_values(const Matrix& x, int64_t rows, int64_t cols) {
  Matrix a = product(x, transposed(x, rows, cols), rows, cols, rows);
  for (int sweep = 0; sweep < 30; ++sweep) {
    for (int64_t p = 0; p < rows; ++p) {
      for (int64_t q = p + 1; q < rows; ++q) {
        const double off = a[p * rows + q];
        if (off == 0) continue;
        const double angle = 0.5 * std::atan2(2 * off, a[q * rows + q] - a[p * rows + p]);
        const double c = std::cos(angle), s = std::sin(angle);
        for (int64_t k = 0; k < rows; ++k) {
          const double kp = a[k * rows + p], kq = a[k * rows + q];
          a[k * rows + p] = c * kp - s * kq;
          a[k * rows + q] = s * kp + c * kq;
        }
        for (int64_t k = 0; k < rows; ++k) {
          const double pk = a[p * rows + k], qk = a[q * rows + k];
          a[p * rows + k] = c * pk - s * qk;
          a[q * rows + k] = s * pk + c * qk;
        }
      }
    }
  }
  std::vector<double> out;
  for (int64_t i = 0; i < rows; ++i) out.push_back(std::sqrt(std::max(0.0, a[i * rows + i])));
  return out;
}

Matrix doubles(const float* x, int64_t count) { return Matrix(x, x + count); }

double largest_difference(const Matrix& a, const Matrix& b) {
  double out = 0;
  for (size_t i = 0; i < a.size(); ++i) out = std::max(out, std::abs(a[i] - b[i]));
  return out;
}

TEST(AdamW, FollowsItsFormulaInDoubleForTwentySteps) {
  Context context(2);
  Parameter matrix = make("m", Parameter::Kind::kEmbedding, 1, 5, 7, 1);
  Parameter vector = make("v", Parameter::Kind::kVector, 1, 1, 9, 2);
  const OptimizerOptions options{
      .muon = {},
      .adamw = {.rate = 0.01, .beta1 = 0.9, .beta2 = 0.95, .decay = 0.1, .epsilon = 1e-8}};
  Parameter* all[] = {&matrix, &vector};
  Optimizer optimizer(context, all, options, Precision::kF32);
  struct Truth {
    Matrix value, m, v;
  };
  std::vector<Truth> truths;
  for (Parameter* p : all) {
    truths.push_back({doubles(p->value.data(), p->size()), Matrix(p->value.size(), 0),
                      Matrix(p->value.size(), 0)});
  }
  Random random(3, 0);
  for (int step = 1; step <= 20; ++step) {
    const double scale = 1.0 / step, clip = 0.5;
    for (size_t k = 0; k < truths.size(); ++k) {
      fill_normal(random, all[k]->gradient, 1);
      Truth& t = truths[k];
      const double decay = all[k]->kind == Parameter::Kind::kVector ? 0 : 0.1;
      for (size_t i = 0; i < t.value.size(); ++i) {
        const double g = clip * all[k]->gradient[i];
        t.m[i] = 0.9 * t.m[i] + 0.1 * g;
        t.v[i] = 0.95 * t.v[i] + 0.05 * g * g;
        const double m = t.m[i] / (1 - std::pow(0.9, step)),
                     v = t.v[i] / (1 - std::pow(0.95, step));
        t.value[i] *= 1 - 0.01 * scale * decay;
        t.value[i] -= 0.01 * scale * m / (std::sqrt(v) + 1e-8);
      }
    }
    optimizer.update(scale, clip);
  }
  // Values below 2 are rounded twice a step, to 2^-24 of themselves, and a step of 0.01 to some ten
  // roundings: 20 (2 * 2 * 6e-8 + 0.01 * 10 * 6e-8) = 5e-6.
  for (size_t k = 0; k < truths.size(); ++k) {
    EXPECT_LT(largest_difference(doubles(all[k]->value.data(), all[k]->size()), truths[k].value),
              5e-6);
  }
}

TEST(AdamW, DecaysAllButVectors) {
  Context context(1);
  Parameter matrix = make("m", Parameter::Kind::kMatrix, 1, 4, 4, 1);
  Parameter vector = make("v", Parameter::Kind::kVector, 1, 1, 4, 2);
  const float before = matrix.value[5], bias = vector.value[1];
  Parameter* all[] = {&matrix, &vector};
  for (Parameter* p : all) std::fill(p->gradient.span().begin(), p->gradient.span().end(), 0.0f);
  Optimizer optimizer(context, all, {.muon = {}, .adamw = {.rate = 0.5, .decay = 0.5}},
                      Precision::kF32);
  optimizer.update(1, 1);
  EXPECT_EQ(matrix.value[5], 0.75f * before);
  EXPECT_EQ(vector.value[1], bias);
}

class Muon : public ::testing::TestWithParam<std::pair<int64_t, int64_t>> {};

TEST_P(Muon, BringsSingularValuesNearOneAndKeepsTheVectors) {
  const auto [rows, cols] = GetParam();
  Context context(2);
  Random random(5, 0);
  AlignedArray<float> x(static_cast<size_t>(rows * cols));
  fill_normal(random, x, 3);
  const bool tall = rows > cols;
  const Matrix start = doubles(x.data(), rows * cols);
  const int64_t m = std::min(rows, cols), n = std::max(rows, cols);
  Matrix truth = orthogonalized(tall ? transposed(start, rows, cols) : start, m, n);
  if (tall) truth = transposed(truth, cols, rows);

  AlignedArray<float> rounded(x.size());
  std::copy(x.span().begin(), x.span().end(), rounded.data());
  Orthogonalizer(context.isa, Precision::kF32).run(x.data(), rows, cols);
  // A step multiplies what is small by 3.4445 at most, rounding errors too: 3.4445^5 = 485 times
  // 2^-24, from some ten roundings of entries below 1.
  EXPECT_LT(largest_difference(doubles(x.data(), rows * cols), truth), 485 * 10 * 6e-8);

  Orthogonalizer(context.isa, Precision::kBF16).run(rounded.data(), rows, cols);
  for (const AlignedArray<float>* result : {&x, &rounded}) {
    Matrix lying = doubles(result->data(), rows * cols);
    double along = 0, length = 0, of_truth = 0;
    for (size_t i = 0; i < lying.size(); ++i) {
      along += lying[i] * truth[i];
      length += lying[i] * lying[i];
      of_truth += truth[i] * truth[i];
    }
    EXPECT_GT(along / std::sqrt(length * of_truth), 0.99);
    if (tall) lying = transposed(lying, rows, cols);
    for (const double value : singular_values(lying, m, n)) {
      EXPECT_GT(value, 0.6);
      EXPECT_LT(value, 1.3);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, Muon,
                         ::testing::Values(std::pair<int64_t, int64_t>{12, 30},
                                           std::pair<int64_t, int64_t>{30, 12},
                                           std::pair<int64_t, int64_t>{33, 70}),
                         [](const auto& info) {
                           return std::to_string(info.param.first) + "x" +
                                  std::to_string(info.param.second);
                         });

TEST(MuonStep, FollowsItsFormulaInDouble) {
  Context context(2);
  constexpr int64_t kRows = 24, kCols = 10;
  Parameter p = make("w", Parameter::Kind::kMatrix, 1, kRows, kCols, 1);
  for (const auto scale : {MuonOptions::Scale::kShape, MuonOptions::Scale::kRms}) {
    const MuonOptions muon{.rate = 0.02, .momentum = 0.9, .decay = 0.1, .scale = scale};
    Parameter* all[] = {&p};
    Optimizer optimizer(context, all, {.muon = muon, .adamw = {}}, Precision::kF32);
    Matrix value = doubles(p.value.data(), p.size()), momentum(p.value.size(), 0);
    Random random(7, 0);
    const double shape =
        scale == MuonOptions::Scale::kShape ? std::sqrt(24.0 / 10.0) : 0.2 * std::sqrt(24.0);
    for (int step = 0; step < 3; ++step) {
      fill_normal(random, p.gradient, 1);
      Matrix move(momentum.size());
      for (size_t i = 0; i < move.size(); ++i) {
        momentum[i] = 0.9 * momentum[i] + p.gradient[i];
        move[i] = p.gradient[i] + 0.9 * momentum[i];
      }
      move = transposed(orthogonalized(transposed(move, kRows, kCols), kCols, kRows), kCols, kRows);
      for (size_t i = 0; i < move.size(); ++i) {
        value[i] = value[i] * (1 - 0.02 * 0.1) - 0.02 * shape * move[i];
      }
      optimizer.update(1, 1);
    }
    // Three times what an orthogonal matrix may be off, as above.
    EXPECT_LT(largest_difference(doubles(p.value.data(), p.size()), value),
              3 * 0.02 * shape * 485 * 10 * 6e-8);
  }
}

TEST(MuonStep, TreatsEveryExpertAloneAndIsTheSameOnAnyNumberOfThreads) {
  constexpr int64_t kExperts = 3, kRows = 20, kCols = 36, kSize = kRows * kCols;
  const auto stepped = [](int threads, std::vector<Parameter*> all) {
    Context context(threads);
    Optimizer optimizer(context, all, {.muon = MuonOptions(), .adamw = {}}, Precision::kBF16);
    optimizer.update(1, 1);
    std::vector<float> values;
    for (const Parameter* p : all)
      values.insert(values.end(), p->value.data(), p->value.data() + p->size());
    return values;
  };
  std::vector<std::vector<float>> results;
  for (const int threads : {1, 3}) {
    Parameter experts = make("experts", Parameter::Kind::kMatrix, kExperts, kRows, kCols, 1);
    Random random(9, 0);
    fill_normal(random, experts.gradient, 1);
    Parameter second = make("second", Parameter::Kind::kMatrix, 1, kRows, kCols, 1);
    std::copy_n(experts.value.data() + kSize, kSize, second.value.data());
    std::copy_n(experts.gradient.data() + kSize, kSize, second.gradient.data());
    results.push_back(stepped(threads, {&experts, &second}));
    const float* values = results.back().data();
    EXPECT_TRUE(std::equal(values + kSize, values + 2 * kSize, values + kExperts * kSize));
  }
  EXPECT_EQ(results[0], results[1]);
}

TEST(MuonStep, LeavesAnExpertThatNobodyChoseWhereItIs) {
  Context context(1);
  Parameter p = make("w", Parameter::Kind::kMatrix, 2, 6, 8, 1);
  std::fill_n(p.gradient.data(), 48, 0.0f);
  std::fill_n(p.gradient.data() + 48, 48, 1.0f);
  const std::vector<float> before(p.value.data(), p.value.data() + 48);
  Parameter* all[] = {&p};
  Optimizer optimizer(context, all, {.muon = MuonOptions(), .adamw = {}}, Precision::kBF16);
  optimizer.update(1, 1);
  EXPECT_EQ(std::vector<float>(p.value.data(), p.value.data() + 48), before);
}

TEST(Optimizer, MeasuresAllGradientsTogetherInAnOrderOfItsOwn) {
  std::vector<double> norms;
  for (const int threads : {1, 3}) {
    Context context(threads);
    Parameter a = make("a", Parameter::Kind::kMatrix, 2, 150, 170, 1);
    Parameter b = make("b", Parameter::Kind::kVector, 1, 1, 33, 2);
    Parameter frozen = make("c", Parameter::Kind::kVector, 1, 1, 33, 3);
    frozen.taught = false;
    Random random(4, 0);
    for (Parameter* p : {&a, &b, &frozen}) fill_normal(random, p->gradient, 1);
    double sum = 0;
    for (const Parameter* p : {&a, &b}) {
      for (const float g : p->gradient.span()) sum += static_cast<double>(g) * g;
    }
    Parameter* all[] = {&a, &b, &frozen};
    Optimizer optimizer(context, all, {}, Precision::kF32);
    norms.push_back(optimizer.gradient_norm());
    EXPECT_NEAR(norms.back(), std::sqrt(sum), 1e-9 * std::sqrt(sum));  // both in double
  }
  EXPECT_EQ(norms[0], norms[1]);
}

TEST(Optimizer, LeavesFrozenParametersOut) {
  Context context(1);
  Parameter taught = make("taught", Parameter::Kind::kMatrix, 1, 4, 4, 1);
  Parameter frozen = make("frozen", Parameter::Kind::kMatrix, 1, 4, 4, 2);
  frozen.taught = false;
  frozen.gradient = {};
  const float before = frozen.value[3];
  std::fill_n(taught.gradient.data(), 16, 1.0f);
  Parameter* all[] = {&taught, &frozen};
  Optimizer optimizer(context, all, {}, Precision::kF32);
  optimizer.update(1, 1);
  EXPECT_EQ(frozen.value[3], before);
  for (const NamedFloats& kept : optimizer.state()) {
    EXPECT_EQ(kept.name.find("frozen"), std::string::npos) << kept.name;
  }
}

TEST(Optimizer, ClipsOnlyWhatIsLongerThanTheLimit) {
  EXPECT_EQ(clip_scale(0.5, 1), 1);
  EXPECT_EQ(clip_scale(4, 1), 0.25);
  EXPECT_EQ(clip_scale(4, 0), 1) << "0 is no limit";
}

}  // namespace
}  // namespace drover
