// Gradients of the operations on rows against their formulas in double precision, within derived
// bounds; their bits across instruction sets, threads and batches; rows of no numbers, and of none.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/adamw/adamw.h"
#include "kernels/context.h"
#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/gelu/gelu.h"
#include "kernels/layer_norm/layer_norm.h"
#include "kernels/math/gelu.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rope/rope.h"
#include "kernels/row/row_fixture.h"
#include "kernels/row/row_kernels.h"
#include "kernels/swiglu/swiglu.h"

namespace drover {
namespace {

double normal_density(double x) { return std::exp(-x * x / 2) / std::sqrt(2 * std::acos(-1.0)); }

TEST(RmsNormBackward, MatchesTheFormulaForEveryLength) {
  Context context(2);
  for (const int64_t d : lengths()) {
    const int64_t rows = d == 33 ? 150 : 3;
    Rows x(rows, d, 1 + d), dy(rows, d, 2 + d), dx(rows, d, 3 + d);
    const Rows before = dx;
    const auto weight = random_floats(d, 4 + d), dweight_before = random_floats(d, 5 + d);
    auto dweight = dweight_before;
    rms_norm_backward(context, dx, dweight.data(), dy, x, weight.data(), kEps);
    EXPECT_TRUE(dx.gaps_untouched());
    Doubles expected_weight = doubles(dweight_before), weight_size(d);
    for (int64_t i = 0; i < d; ++i) weight_size[i] = std::abs(expected_weight[i]);
    // The mean square has a rounding per term and two after its sum and eps's, of which the root
    // halves all; the root and the division follow.
    const double s = sum_roundings(d), of_r = (s + 3) / 2 + 2;
    for (int64_t t = 0; t < rows; ++t) {
      double square = 0, mean = 0, size = 0;
      for (int64_t i = 0; i < d; ++i) {
        const double v = x(t, i), g = double{dy(t, i)} * weight[i];
        square += v * v / d, mean += g * v / d, size += std::abs(g * v) / d;
      }
      const double r = 1 / std::sqrt(square + double{kEps});
      for (int64_t i = 0; i < d; ++i) {
        const double v = x(t, i), g = double{dy(t, i)} * weight[i];
        const double expected = before(t, i) + r * (g - v * r * r * mean);
        // The mean of products has s + 3 roundings, and they do not cancel as the terms may; r
        // comes in three times; six roundings are left, and that of the last sum.
        const double terms = r * (std::abs(g) + std::abs(v) * r * r * size);
        EXPECT_NEAR(dx(t, i), expected,
                    kUnit * ((s + 3 + 3 * of_r + 6) * terms + std::abs(expected)))
            << "d " << d << ", row " << t << ", component " << i;
        expected_weight[i] += double{dy(t, i)} * v * r;
        weight_size[i] += std::abs(double{dy(t, i)} * v * r);
      }
    }
    for (int64_t i = 0; i < d; ++i) {
      EXPECT_NEAR(dweight[i], expected_weight[i],
                  kUnit * (of_r + 2 + row_roundings(rows)) * weight_size[i])
          << "d " << d << ", component " << i;
    }
  }
}

TEST(RmsNormBackward, OfHeadsIsThatOfEachHeadWithoutAWeight) {
  Context context(2);
  for (const int64_t d : {1, 2, 16, 24, 35, 64}) {
    Rows x(4, 3 * d, 1 + d), dy(4, 3 * d, 2 + d), heads = dy, expected(4, 3 * d, 3);
    Rows y = x, inverse(4, 3, 4);
    rms_norm_heads(context, y, d, kEps, inverse);
    rms_norm_heads_backward(context, heads, y, inverse, d);
    EXPECT_TRUE(heads.gaps_untouched() && inverse.gaps_untouched());
    const std::vector<float> ones(d, 1.0f);
    for (int64_t t = 0; t < 4; ++t) std::fill_n(expected.row(t).data, 3 * d, 0.0f);
    for (int64_t first = 0; first < 3 * d; first += d) {
      const auto head = [&](Rows& m) {
        return MatrixView{m.view().data + first, m.rows, d, m.stride};
      };
      rms_norm_backward(context, head(expected), nullptr, head(dy), head(x), ones.data(), kEps);
    }
    // From the output, which is rounded twice on the way from the input: twice in each term of the
    // mean, and once more in what is taken away.
    for (int64_t t = 0; t < 4; ++t) {
      for (int64_t i = 0; i < 3 * d; ++i) {
        double size = 0, r = inverse(t, i / d);
        for (int64_t j = i / d * d; j < (i / d + 1) * d; ++j) size += std::abs(dy(t, j) * y(t, j));
        const double terms = r * (std::abs(dy(t, i)) + std::abs(y(t, i)) * size / d);
        EXPECT_NEAR(heads(t, i), expected(t, i), kUnit * (2 * sum_roundings(d) + 20) * terms)
            << "d " << d << ", row " << t << ", component " << i;
      }
    }
  }
}

TEST(LayerNormBackward, MatchesTheFormulaForEveryLengthAndFarFromZero) {
  Context context(2);
  for (const double center : {0.0, 100.0}) {
    for (const int64_t d : lengths()) {
      const int64_t rows = d == 33 ? 150 : 3;
      Rows x(rows, d, 1 + d), dy(rows, d, 2 + d), dx(rows, d, 3 + d);
      for (int64_t t = 0; t < rows; ++t) {
        for (int64_t i = 0; i < d; ++i) x(t, i) += static_cast<float>(center);
      }
      const Rows before = dx;
      const auto weight = random_floats(d, 4 + d);
      const auto dweight_before = random_floats(d, 5 + d), dbias_before = random_floats(d, 6 + d);
      auto dweight = dweight_before, dbias = dbias_before;
      layer_norm_backward(context, dx, dweight.data(), dbias.data(), dy, x, weight.data(), kEps);
      EXPECT_TRUE(dx.gaps_untouched());
      Doubles expected_weight = doubles(dweight_before), expected_bias = doubles(dbias_before);
      Doubles weight_size(d), weight_off(d), bias_size(d);
      for (int64_t i = 0; i < d; ++i) {
        weight_size[i] = std::abs(expected_weight[i]), bias_size[i] = std::abs(expected_bias[i]);
      }
      const double s = sum_roundings(d);
      for (int64_t t = 0; t < rows; ++t) {
        double mean = 0, size = 0, variance = 0;
        for (int64_t i = 0; i < d; ++i) mean += x(t, i), size += std::abs(x(t, i));
        mean /= d, size /= d;
        for (int64_t i = 0; i < d; ++i) variance += (x(t, i) - mean) * (x(t, i) - mean) / d;
        const double r = 1 / std::sqrt(variance + double{kEps});
        // How far off, in units: the mean; the variance, in which the mean's error counts squared;
        // r, the root of which halves; a normed component.
        const double mean_off = (s + 1) * size;
        const double squared = mean_off * r * mean_off * r * kUnit;
        const double r_off = (s + 6 + squared) / 2 + 2;
        const auto normed = [&](int64_t i) { return (x(t, i) - mean) * r; };
        const auto normed_off = [&](int64_t i) {
          return r * mean_off + (r_off + 2) * std::abs(normed(i));
        };
        double shift = 0, shift_size = 0, along = 0, along_off = 0;
        for (int64_t i = 0; i < d; ++i) {
          const double g = double{dy(t, i)} * weight[i], n = normed(i);
          shift += g / d, shift_size += std::abs(g) / d, along += g * n / d;
          along_off += std::abs(g) * (normed_off(i) + (s + 3) * std::abs(n)) / d;
        }
        for (int64_t i = 0; i < d; ++i) {
          const double g = double{dy(t, i)} * weight[i], n = normed(i);
          const double term = r * (g - shift - n * along), expected = before(t, i) + term;
          const double terms = std::abs(g) + std::abs(shift) + std::abs(n * along);
          const double off = (s + 2) * shift_size + normed_off(i) * std::abs(along) +
                             std::abs(n) * along_off + 4 * terms;
          EXPECT_NEAR(dx(t, i), expected,
                      kUnit * (r * off + (r_off + 1) * std::abs(term) + std::abs(expected)))
              << "center " << center << ", d " << d << ", row " << t << ", component " << i;
          expected_weight[i] += dy(t, i) * n, expected_bias[i] += dy(t, i);
          weight_size[i] += std::abs(dy(t, i) * n), bias_size[i] += std::abs(dy(t, i));
          weight_off[i] += std::abs(dy(t, i)) * (normed_off(i) + std::abs(n));
        }
      }
      for (int64_t i = 0; i < d; ++i) {
        const double sums = row_roundings(rows);
        EXPECT_NEAR(dweight[i], expected_weight[i], kUnit * (weight_off[i] + sums * weight_size[i]))
            << "center " << center << ", d " << d << ", component " << i;
        EXPECT_NEAR(dbias[i], expected_bias[i], kUnit * sums * bias_size[i]);
      }
    }
  }
}

// Each row's part alone, as that of a batch of one; the contract's blocks as loops.
TEST(NormsBackward, SumOverRowsInBlocksOf64) {
  const int64_t rows = 150, d = 21;
  Rows x(rows, d, 1), dy(rows, d, 2), dx(rows, d, 3);
  const auto weight = random_floats(d, 4), before = random_floats(d, 5);
  Context one(1, Isa::kPlain);
  std::vector<float> expected[3] = {before, before, before}, sums[3];
  for (int64_t t = 0; t < rows; ++t) {
    if (t % 64 == 0) {
      for (auto& sum : sums) sum.assign(d, 0.0f);
    }
    std::vector<float> part[3] = {std::vector<float>(d), std::vector<float>(d),
                                  std::vector<float>(d)};
    Rows scratch(1, d, 6);
    rms_norm_backward(one, scratch, part[0].data(), dy.row(t), x.row(t), weight.data(), kEps);
    layer_norm_backward(one, scratch, part[1].data(), part[2].data(), dy.row(t), x.row(t),
                        weight.data(), kEps);
    for (int which = 0; which < 3; ++which) {
      for (int64_t i = 0; i < d; ++i) {
        sums[which][i] += part[which][i];
        if (t % 64 == 63 || t + 1 == rows) expected[which][i] += sums[which][i];
      }
    }
  }
  for (const Isa isa : available_isas()) {
    for (const int threads : {1, 2, 4}) {
      Context context(threads, isa);
      std::vector<float> got[3] = {before, before, before};
      rms_norm_backward(context, dx, got[0].data(), dy, x, weight.data(), kEps);
      layer_norm_backward(context, dx, got[1].data(), got[2].data(), dy, x, weight.data(), kEps);
      for (int which = 0; which < 3; ++which) {
        EXPECT_TRUE(same_bits(expected[which], got[which]))
            << isa_name(isa) << ", " << threads << " threads, sum " << which;
      }
    }
  }
}

TEST(NormsBackward, WithoutAWeightToTeachGiveTheSameRows) {
  Context context(2);
  Rows x(70, 19, 1), dy(70, 19, 2), dx(70, 19, 3), frozen = dx, layer = dx, frozen_layer = dx;
  const auto weight = random_floats(19, 4);
  std::vector<float> dweight(19), dbias(19);
  rms_norm_backward(context, dx, dweight.data(), dy, x, weight.data(), kEps);
  rms_norm_backward(context, frozen, nullptr, dy, x, weight.data(), kEps);
  layer_norm_backward(context, layer, dweight.data(), dbias.data(), dy, x, weight.data(), kEps);
  layer_norm_backward(context, frozen_layer, nullptr, nullptr, dy, x, weight.data(), kEps);
  EXPECT_TRUE(same_bits(dx.data, frozen.data));
  EXPECT_TRUE(same_bits(layer.data, frozen_layer.data));
}

TEST(RopeBackward, TurnsEachPairBack) {
  Context context(2);
  const std::vector<float> frequencies = random_floats(19, 1);
  const std::vector<int64_t> positions = {0, 7, 8191};
  RopeTable table;
  table.fill(positions, frequencies);
  // Two tensors, and rows that go through the table twice.
  Rows a(6, 2 * 38, 2), b(6, 38, 3);
  const Rows a_before = a, b_before = b;
  rope_backward(context, {a, b}, table);
  EXPECT_TRUE(a.gaps_untouched() && b.gaps_untouched());
  for (int64_t t = 0; t < 6; ++t) {
    for (int64_t pair = 0; pair < 3 * 19; ++pair) {
      const Rows& before = pair < 38 ? a_before : b_before;
      const Rows& after = pair < 38 ? a : b;
      const int64_t i = 2 * (pair % 38);
      // The angle is formed in float32 by definition; all else is checked in double.
      const double angle = static_cast<float>(positions[t % 3]) * frequencies[pair % 19];
      const double re = before(t, i), im = before(t, i + 1);
      const double bound = 4 * kUnit * (std::abs(re) + std::abs(im));
      EXPECT_NEAR(after(t, i), re * std::cos(angle) + im * std::sin(angle), bound);
      EXPECT_NEAR(after(t, i + 1), im * std::cos(angle) - re * std::sin(angle), bound);
    }
  }
}

TEST(SwigluBackward, MatchesTheFormula) {
  Context context(2);
  for (const int64_t n : lengths()) {
    Rows gate(3, n, 1 + n, 20.0f), up(3, n, 2 + n), dout(3, n, 3 + n);
    Rows dgate(3, n, 4), dup(3, n, 5), out(3, n, 6), again(3, n, 7);
    swiglu_backward(context, dgate, dup, again, dout, gate, up);
    swiglu(context, out, gate, up);
    EXPECT_TRUE(dgate.gaps_untouched() && dup.gaps_untouched() && out.gaps_untouched());
    EXPECT_TRUE(again.gaps_untouched());
    for (int64_t t = 0; t < 3; ++t) {
      for (int64_t i = 0; i < n; ++i) {
        const double g = gate(t, i), u = up(t, i), d = dout(t, i), s = sigmoid(g);
        // The exponential is within 4 units, so that s is within 6 and 1 - s within 11; what the
        // clamp of the exponential leaves is below 1e-36.
        EXPECT_NEAR(out(t, i), g * s * u, 8 * kUnit * std::abs(g * s * u) + 1e-36);
        EXPECT_NEAR(again(t, i), g * s * u, 8 * kUnit * std::abs(g * s * u) + 1e-36);
        EXPECT_NEAR(dup(t, i), d * g * s, 8 * kUnit * std::abs(d * g * s) + 1e-36);
        const double bend = g * sigmoid(-g);
        EXPECT_NEAR(dgate(t, i), d * u * s * (1 + bend),
                    kUnit * std::abs(d * u * s) * (10 + 22 * std::abs(bend)) + 1e-36)
            << "gate " << g;
      }
    }
  }
}

TEST(GeluBackward, MatchesTheFormula) {
  Context context(2);
  for (float v = -14.0f; v <= 14.0f; v += 0.0003f) {
    const double density = normal_density(v), expected = normal_below(v) + v * density;
    // The tail's bound (normal_tail.h), the rounding of what it is taken from, the density's and
    // that of their sum; what is cut off at 13 is 13 times 8e-38.
    const double roundings = 8 + double{v} * v / 2;
    EXPECT_NEAR(gelu_slope_of(v), expected,
                kUnit * (roundings * (normal_below(-std::abs(v)) + std::abs(v * density)) +
                         normal_below(v) + std::abs(expected)) +
                    1.1e-36)
        << v;
  }
  for (const int64_t n : lengths()) {
    Rows x(3, n, 1 + n, 3.0f), dy(3, n, 2 + n), dx(3, n, 3), out(3, n, 4);
    gelu_backward(context, dx, dy, x);
    gelu(context, out, x);
    EXPECT_TRUE(dx.gaps_untouched() && out.gaps_untouched());
    for (int64_t t = 0; t < 3; ++t) {
      for (int64_t i = 0; i < n; ++i) {
        EXPECT_EQ(out(t, i), gelu_of(x(t, i)));
        EXPECT_EQ(dx(t, i), dy(t, i) * gelu_slope_of(x(t, i)));
      }
    }
  }
}

TEST(GeluBackward, FarFromZeroTheSlopeIsOneOrNothing) {
  for (const float x : {13.01f, 1e10f, std::numeric_limits<float>::max(), INFINITY}) {
    EXPECT_EQ(gelu_slope_of(x), 1.0f) << x;
    EXPECT_EQ(gelu_slope_of(-x), 0.0f) << -x;
  }
  EXPECT_EQ(gelu_slope_of(0.0f), 0.5f);
  EXPECT_TRUE(std::isnan(gelu_slope_of(NAN)));
}

TEST(Gradients, OfARowWithANanStayInThatRow) {
  for (const Isa isa : available_isas()) {
    Context context(2, isa);
    const int64_t d = 37;
    const auto weight = random_floats(d, 1);
    const auto all_of = [&](float at_5) {
      Rows x(3, d, 2), dy(3, d, 3), dx(3, d, 4), layer = dx, heads = dy, logits(3, d, 5);
      Rows inverse(3, 1, 6);
      x(1, 5) = at_5, logits(1, 5) = at_5;
      rms_norm_backward(context, dx, nullptr, dy, x, weight.data(), kEps);
      layer_norm_backward(context, layer, nullptr, nullptr, dy, x, weight.data(), kEps);
      rms_norm_heads_backward(context, heads, x, inverse, d);
      std::vector<float> losses(3);
      std::vector<int32_t> best(3);
      cross_entropy(context, logits, std::vector<int32_t>{1, 2, 3}, std::vector<float>{1, 1, 1},
                    losses, best);
      EXPECT_EQ(std::isnan(losses[1]), std::isnan(at_5)) << isa_name(isa);
      EXPECT_FALSE(std::isnan(losses[0]) || std::isnan(losses[2]));
      EXPECT_NE(best[1], 5);
      return std::vector<Rows>{dx, layer, heads, logits};
    };
    const auto with = all_of(NAN), without = all_of(-5.0f);
    for (size_t which = 0; which < with.size(); ++which) {
      for (int64_t i = 0; i < d; ++i) {
        EXPECT_TRUE(std::isnan(with[which](1, i))) << isa_name(isa) << ", " << which;
        for (const int64_t t : {0, 2}) EXPECT_EQ(with[which](t, i), without[which](t, i));
      }
    }
    // Nothing is learnt from a row of weight 0, whatever it is.
    Rows logits(1, d, 6);
    logits(0, 3) = NAN;
    std::vector<float> losses(1);
    cross_entropy(context, logits, std::vector<int32_t>{1}, std::vector<float>{0}, losses);
    for (int64_t i = 0; i < d; ++i) EXPECT_EQ(logits(0, i), 0.0f);
  }
}

TEST(Gradients, MayTakeThePlaceOfWhatTheyAreMadeOf) {
  Context context(2);
  for (const int64_t n : {1, 16, 35, 100}) {
    Rows gate(3, n, 1, 3.0f), up(3, n, 2), dout(3, n, 3), dgate(3, n, 4), dup(3, n, 5);
    Rows out(3, n, 6), slope_in_place = dout, dx(3, n, 7);
    swiglu_backward(context, dgate, dup, out, dout, gate, up);
    // In every order of the three that they are made of.
    std::vector<int> order = {0, 1, 2};
    do {
      Rows places[] = {dout, gate, up};
      swiglu_backward(context, places[order[0]], places[order[1]], places[order[2]], places[0],
                      places[1], places[2]);
      EXPECT_TRUE(same_bits(dgate.data, places[order[0]].data));
      EXPECT_TRUE(same_bits(dup.data, places[order[1]].data));
      EXPECT_TRUE(same_bits(out.data, places[order[2]].data));
    } while (std::next_permutation(order.begin(), order.end()));
    gelu_backward(context, dx, dout, gate);
    gelu_backward(context, slope_in_place, slope_in_place, gate);
    Rows gated(3, n, 8), gated_in_place = gate, curved(3, n, 9), curved_in_place = gate;
    swiglu(context, gated, gate, up);
    swiglu(context, gated_in_place, up);
    gelu(context, curved, gate);
    gelu(context, curved_in_place, curved_in_place);
    EXPECT_TRUE(same_bits(dx.data, slope_in_place.data));
    EXPECT_TRUE(same_bits(gated.data, gated_in_place.data));
    EXPECT_TRUE(same_bits(curved.data, curved_in_place.data));
  }
}

// What every operation makes of rows [first, first + rows) of a batch, but for sums over rows.
std::vector<float> all_gradients(Context& context, int64_t d, int64_t first, int64_t rows) {
  const int64_t even = 2 * ((d + 1) / 2);
  std::vector<float> out;
  const auto part = [&](Rows& m) {
    return MatrixView{m.view().row(first), rows, m.cols, m.stride};
  };
  const auto keep = [&](Rows& m) {
    for (int64_t t = first; t < first + rows; ++t) {
      out.insert(out.end(), m.view().row(t), m.view().row(t) + m.cols);
    }
  };
  constexpr int64_t kBatch = 150;
  Rows x(kBatch, d, 1), dy(kBatch, d, 2), dx(kBatch, d, 3), layer = dx;
  const auto weight = random_floats(d, 4);
  rms_norm_backward(context, part(dx), nullptr, part(dy), part(x), weight.data(), kEps);
  layer_norm_backward(context, part(layer), nullptr, nullptr, part(dy), part(x), weight.data(),
                      kEps);
  Rows heads(kBatch, 2 * even, 5), heads_y(kBatch, 2 * even, 6), turned = heads;
  Rows inverse(kBatch, 2, 17);
  rms_norm_heads_backward(context, part(heads), part(heads_y), part(inverse), even);
  RopeTable table;
  table.fill(std::vector<int64_t>{3}, random_floats(even / 2, 7));
  rope_backward(context, {part(turned)}, table);
  Rows gate(kBatch, d, 8, 4.0f), up(kBatch, d, 9), dgate(kBatch, d, 10), dup(kBatch, d, 11);
  Rows gated(kBatch, d, 12), curved(kBatch, d, 13), slopes(kBatch, d, 14);
  swiglu(context, part(gated), part(gate), part(up));
  Rows again(kBatch, d, 18);
  swiglu_backward(context, part(dgate), part(dup), part(again), part(dy), part(gate), part(up));
  gelu(context, part(curved), part(gate));
  gelu_backward(context, part(slopes), part(dy), part(gate));
  Rows logits(kBatch, d, 15, 4.0f), losses(1, kBatch, 16);
  const auto n = static_cast<size_t>(rows);
  const std::vector<int32_t> targets(n, static_cast<int32_t>(d / 2));
  std::vector<int32_t> best(n);
  cross_entropy(context, part(logits), targets, std::vector<float>(n, 0.5f),
                {losses.view().row(0) + first, n}, best);
  for (Rows* m :
       {&dx, &layer, &heads, &turned, &dgate, &dup, &again, &gated, &curved, &slopes, &logits}) {
    keep(*m);
  }
  out.insert(out.end(), losses.view().row(0) + first, losses.view().row(0) + first + rows);
  out.insert(out.end(), best.begin(), best.end());
  return out;
}

TEST(Gradients, HaveTheSameBitsOnEveryInstructionSet) {
  for (const int64_t d : lengths()) {
    Context plain(1, Isa::kPlain);
    const auto expected = all_gradients(plain, d, 0, 3);
    for (const Isa isa : available_isas()) {
      Context context(1, isa);
      EXPECT_TRUE(same_bits(expected, all_gradients(context, d, 0, 3)))
          << isa_name(isa) << ", d " << d;
    }
  }
}

// Vectors' square roots and sums in double as one element's, for lengths that are no multiple.
TEST(AdamW, HasTheSameBitsOnEveryInstructionSetAndAnyNumberOfThreads) {
  const AdamWStep step = {.scale = 0.7f,
                          .beta1 = 0.9f,
                          .other1 = 0.1f,
                          .beta2 = 0.95f,
                          .other2 = 0.05f,
                          .keep = 0.999f,
                          .step = 0.01f,
                          .root = 1.3f,
                          .epsilon = 1e-8f};
  for (const int64_t n : {0, 1, 7, 33, 40000}) {
    const auto gradient = random_floats(n, 1), begin = random_floats(n, 2);
    auto squares = random_floats(n, 3);
    for (float& v : squares) v *= v;
    const auto of = [&](Isa isa, int threads) {
      Context context(threads, isa);
      auto value = begin, m = gradient, v = squares;
      for (float& x : m) x *= 0.5f;
      adamw(context, step, n, gradient.data(), value.data(), m.data(), v.data());
      value.insert(value.end(), m.begin(), m.end());
      value.insert(value.end(), v.begin(), v.end());
      const double sum = internal::row_kernels(isa).sum_of_squares(gradient.data(), n);
      value.push_back(static_cast<float>(sum));
      value.push_back(static_cast<float>(sum - static_cast<float>(sum)));
      return value;
    };
    const auto expected = of(Isa::kPlain, 1);
    for (const Isa isa : available_isas()) {
      for (const int threads : {1, 3}) {
        EXPECT_TRUE(same_bits(expected, of(isa, threads))) << isa_name(isa) << ", n " << n;
      }
    }
    for (int64_t i = 0; i < n; ++i) {
      const double g = 0.7f * gradient[i], m = 0.45 * gradient[i] + 0.1 * g;
      const double v = 0.95 * squares[i] + 0.05 * g * g;
      const double moved = 0.01 * m / (std::sqrt(v) * 1.3 + 1e-8);
      // The step goes through some ten roundings, of constants with the others.
      EXPECT_NEAR(expected[static_cast<size_t>(i)], 0.999 * begin[i] - moved,
                  kUnit * (4 * std::abs(begin[i]) + 20 * std::abs(moved)));
    }
  }
}

TEST(Gradients, OfARowDependOnTheRowAlone) {
  const int64_t d = 45;
  Context plain(1, Isa::kPlain);
  const auto expected = all_gradients(plain, d, 0, 150);
  for (const Isa isa : available_isas()) {
    for (const int threads : {1, 2, 4}) {
      Context context(threads, isa);
      EXPECT_TRUE(same_bits(expected, all_gradients(context, d, 0, 150)))
          << isa_name(isa) << ", " << threads << " threads";
    }
  }
  // A row in the middle of the batch, alone.
  const auto alone = all_gradients(plain, d, 77, 1);
  const auto widths = {45, 45, 92, 92, 45, 45, 45, 45, 45, 45, 45, 1, 1};
  size_t at = 0, before = 0;
  for (const int width : widths) {
    for (int i = 0; i < width; ++i) {
      ASSERT_EQ(alone[at + i], expected[before + 77 * width + i]) << "at " << at + i;
    }
    at += width, before += 150 * width;
  }
  EXPECT_EQ(at, alone.size());
}

TEST(Gradients, OfNoRowsAreNone) {
  Context context(2);
  const auto weight = random_floats(8, 1);
  std::vector<float> dweight(8, 0.5f), dbias(8, 0.25f);
  const ConstMatrixView none(weight.data(), 0, 8, 8);
  const MatrixView out{dweight.data(), 0, 8, 8};
  rms_norm_backward(context, out, dweight.data(), none, none, weight.data(), kEps);
  layer_norm_backward(context, out, dweight.data(), dbias.data(), none, none, weight.data(), kEps);
  rms_norm_heads_backward(context, out, none, none, 4);
  swiglu_backward(context, out, out, out, none, none, none);
  gelu_backward(context, out, none, none);
  cross_entropy(context, out, {}, {}, {});
  EXPECT_EQ(dweight, std::vector<float>(8, 0.5f));
  EXPECT_EQ(dbias, std::vector<float>(8, 0.25f));
}

}  // namespace
}  // namespace drover
