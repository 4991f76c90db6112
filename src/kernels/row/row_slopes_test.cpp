// Gradients of the operations on rows against central differences of the forward formulas, in
// double precision: that they are the gradients of what they say they are.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <vector>

#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/gelu/gelu.h"
#include "kernels/layer_norm/layer_norm.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rope/rope.h"
#include "kernels/row/row_fixture.h"
#include "kernels/swiglu/swiglu.h"

namespace drover {
namespace {

using Formula = std::function<Doubles(const Doubles&)>;

Doubles rms_norm_of(const Doubles& x, const Doubles& weight, double eps) {
  double square = 0;
  for (const double v : x) square += v * v / static_cast<double>(x.size());
  Doubles out;
  for (size_t i = 0; i < x.size(); ++i) out.push_back(x[i] / std::sqrt(square + eps) * weight[i]);
  return out;
}

Doubles layer_norm_of(const Doubles& x, const Doubles& weight, const Doubles& bias, double eps) {
  double mean = 0, variance = 0;
  for (const double v : x) mean += v / static_cast<double>(x.size());
  for (const double v : x) variance += (v - mean) * (v - mean) / static_cast<double>(x.size());
  Doubles out;
  for (size_t i = 0; i < x.size(); ++i) {
    out.push_back((x[i] - mean) / std::sqrt(variance + eps) * weight[i] + bias[i]);
  }
  return out;
}

// d(sum of dy * f(x)) / dx[i] by a central difference of fourth order: with steps of 1e-3 and
// functions as smooth as these it is within 1e-9.
double slope(const Formula& f, const Doubles& dy, Doubles x, size_t i) {
  const double at = x[i], h = 1e-3;
  const auto value = [&](double step) {
    x[i] = at + step;
    const Doubles y = f(x);
    double sum = 0;
    for (size_t j = 0; j < y.size(); ++j) sum += dy[j] * y[j];
    return sum;
  };
  return (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h);
}

Doubles row_of(const Rows& m, int64_t t) {
  Doubles out;
  for (int64_t i = 0; i < m.cols; ++i) out.push_back(m(t, i));
  return out;
}

// Where rounding to float is 1e-7 of the terms, which are not much larger than 1, a wrong formula
// is off by more than this.
constexpr double kSlopeBound = 2e-5;

TEST(Slopes, OfTheNormsAreTheirGradients) {
  // An eps that keeps short rows smooth.
  constexpr float kSmooth = 0.1f;
  Context context(2);
  for (const int64_t d : {1, 2, 7, 16, 33}) {
    Rows x(3, d, 1 + d), dy(3, d, 2 + d), dx(3, d, 3 + d), dx_layer = dx;
    const Rows before = dx;
    const auto weight = random_floats(d, 4 + d), bias = random_floats(d, 5 + d);
    std::vector<float> dweight(d, 0.5f), dweight_layer(d, 0.25f), dbias(d, -1.0f);
    rms_norm_backward(context, dx, dweight.data(), dy, x, weight.data(), kSmooth);
    layer_norm_backward(context, dx_layer, dweight_layer.data(), dbias.data(), dy, x, weight.data(),
                        kSmooth);
    const auto w = doubles(weight), b = doubles(bias);
    Doubles of_weight(d, 0.5), of_weight_layer(d, 0.25), of_bias(d, -1.0);
    for (int64_t t = 0; t < 3; ++t) {
      const auto row = row_of(x, t), d_row = row_of(dy, t);
      const double eps = kSmooth;
      for (int64_t i = 0; i < d; ++i) {
        const auto rms = [&](const Doubles& v) { return rms_norm_of(v, w, eps); };
        const auto layer = [&](const Doubles& v) { return layer_norm_of(v, w, b, eps); };
        EXPECT_NEAR(dx(t, i) - before(t, i), slope(rms, d_row, row, i), kSlopeBound) << d;
        EXPECT_NEAR(dx_layer(t, i) - before(t, i), slope(layer, d_row, row, i), kSlopeBound) << d;
        of_weight[i] +=
            slope([&](const Doubles& v) { return rms_norm_of(row, v, eps); }, d_row, w, i);
        of_weight_layer[i] +=
            slope([&](const Doubles& v) { return layer_norm_of(row, v, b, eps); }, d_row, w, i);
        of_bias[i] +=
            slope([&](const Doubles& v) { return layer_norm_of(row, w, v, eps); }, d_row, b, i);
      }
    }
    for (int64_t i = 0; i < d; ++i) {
      EXPECT_NEAR(dweight[i], of_weight[i], kSlopeBound) << d;
      EXPECT_NEAR(dweight_layer[i], of_weight_layer[i], kSlopeBound) << d;
      EXPECT_NEAR(dbias[i], of_bias[i], kSlopeBound) << d;
    }
  }
}

TEST(Slopes, OfHeadsAndRotationsAreTheirGradients) {
  constexpr float kSmooth = 0.1f;
  Context context(2);
  const std::vector<float> frequencies = {1.0f, 0.3f, 0.01f};
  const std::vector<int64_t> positions = {0, 7, 8191};
  RopeTable table;
  table.fill(positions, frequencies);
  Rows x(3, 12, 1), dy(3, 12, 2), d_norm = dy, d_rope = dy, y = x, inverse(3, 2, 3);
  rms_norm_heads(context, y, 6, kSmooth, inverse);
  rms_norm_heads_backward(context, d_norm, y, inverse, 6);
  rope_backward(context, {d_rope}, table);
  for (int64_t t = 0; t < 3; ++t) {
    for (int64_t head = 0; head < 12; head += 6) {
      Doubles row = row_of(x, t), d_row = row_of(dy, t);
      row = {row.begin() + head, row.begin() + head + 6};
      d_row = {d_row.begin() + head, d_row.begin() + head + 6};
      const auto norm = [&](const Doubles& v) {
        return rms_norm_of(v, Doubles(6, 1.0), double{kSmooth});
      };
      const auto turned = [&](const Doubles& v) {
        Doubles out(6);
        for (int k = 0; k < 3; ++k) {
          const double angle = static_cast<float>(positions[t]) * frequencies[k];
          out[2 * k] = v[2 * k] * std::cos(angle) - v[2 * k + 1] * std::sin(angle);
          out[2 * k + 1] = v[2 * k] * std::sin(angle) + v[2 * k + 1] * std::cos(angle);
        }
        return out;
      };
      for (int64_t i = 0; i < 6; ++i) {
        EXPECT_NEAR(d_norm(t, head + i), slope(norm, d_row, row, i), kSlopeBound);
        EXPECT_NEAR(d_rope(t, head + i), slope(turned, d_row, row, i), kSlopeBound);
      }
    }
  }
}

TEST(Slopes, OfTheGatesAreTheirGradients) {
  Context context(2);
  Rows gate(2, 37, 1, 4.0f), up(2, 37, 2), dout(2, 37, 3), dgate(2, 37, 4), dup(2, 37, 5);
  Rows dx(2, 37, 6), out(2, 37, 7);
  swiglu_backward(context, dgate, dup, out, dout, gate, up);
  gelu_backward(context, dx, dout, gate);
  for (int64_t t = 0; t < 2; ++t) {
    for (int64_t i = 0; i < 37; ++i) {
      const double g = gate(t, i), u = up(t, i);
      const Doubles d = {dout(t, i)};
      const auto of_gate = [&](const Doubles& v) { return Doubles{v[0] * sigmoid(v[0]) * u}; };
      const auto of_up = [&](const Doubles& v) { return Doubles{g * sigmoid(g) * v[0]}; };
      const auto of_gelu = [&](const Doubles& v) { return Doubles{v[0] * normal_below(v[0])}; };
      EXPECT_NEAR(dgate(t, i), slope(of_gate, d, {g}, 0), kSlopeBound);
      EXPECT_NEAR(dup(t, i), slope(of_up, d, {u}, 0), kSlopeBound);
      EXPECT_NEAR(dx(t, i), slope(of_gelu, d, {g}, 0), kSlopeBound);
    }
  }
}

TEST(Slopes, OfTheLossAreTheGradientOfTheLogits) {
  Context context(2);
  for (const int64_t v : {1, 2, 17, 70}) {
    Rows logits(3, v, 1 + v, 2.0f);
    const Rows before = logits;
    const std::vector<int32_t> targets = {0, static_cast<int32_t>(v - 1),
                                          static_cast<int32_t>(v / 2)};
    const std::vector<float> weights = {1.0f, 0.25f, -2.0f};
    std::vector<float> losses(3);
    cross_entropy(context, logits, targets, weights, losses);
    for (int64_t t = 0; t < 3; ++t) {
      const auto loss = [&](const Doubles& x) {
        double sum = 0;
        for (const double logit : x) sum += std::exp(logit);
        return Doubles{std::log(sum) - x[targets[t]]};
      };
      EXPECT_NEAR(losses[t], loss(row_of(before, t))[0], kSlopeBound);
      for (int64_t i = 0; i < v; ++i) {
        EXPECT_NEAR(logits(t, i), slope(loss, {weights[t]}, row_of(before, t), i), kSlopeBound)
            << v << ", row " << t << ", logit " << i;
      }
    }
  }
}

}  // namespace
}  // namespace drover
