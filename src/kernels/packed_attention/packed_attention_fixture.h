// For the tests of packed attention: random batches, and the formula in double precision together
// with how far a result in float may be from it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <ostream>
#include <random>
#include <utility>
#include <vector>

#include "kernels/packed_attention/packed_attention.h"

namespace drover::packed {

struct Heads {
  int64_t heads, kv_heads, d;
  int64_t q_cols() const { return heads * d; }
  int64_t kv_cols() const { return kv_heads * d; }

  friend std::ostream& operator<<(std::ostream& out, const Heads& h) {
    return out << h.heads << " heads, " << h.kv_heads << " kv heads, d " << h.d;
  }
};

inline std::vector<float> normal_floats(int64_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<size_t>(n));
  for (float& x : out) x = normal(random);
  return out;
}

// A batch with its gradient from above.
struct Batch {
  Heads heads;
  int64_t rows;
  std::vector<RowSpan> spans;
  bool causal = true;
  std::vector<float> q, k, v, dout;
  std::vector<float> bias;  // empty, or one per row

  Batch(Heads h, int64_t row_count, std::vector<RowSpan> row_spans, bool is_causal, bool with_bias,
        uint32_t seed = 1)
      : heads(h),
        rows(row_count),
        spans(std::move(row_spans)),
        causal(is_causal),
        q(normal_floats(rows * h.q_cols(), seed)),
        k(normal_floats(rows * h.kv_cols(), seed + 1)),
        v(normal_floats(rows * h.kv_cols(), seed + 2)),
        dout(normal_floats(rows * h.q_cols(), seed + 3)) {
    if (with_bias) bias = normal_floats(rows, seed + 4);
  }

  PackedAttention how(bool rounded = false) const {
    return {.heads = heads.heads,
            .kv_heads = heads.kv_heads,
            .head_dim = heads.d,
            .spans = spans,
            .causal = causal,
            .key_bias = bias.empty() ? nullptr : bias.data(),
            .rounded = rounded};
  }
  friend std::ostream& operator<<(std::ostream& out, const Batch& b) {
    out << b.heads << (b.causal ? ", causal" : "") << (b.bias.empty() ? "" : ", bias") << ", spans";
    for (const RowSpan& span : b.spans) out << " [" << span.first << ", +" << span.count << ")";
    return out;
  }
};

// What comes out of both passes.
template <typename T>
struct Results {
  std::vector<T> out, log_sums, dq, dk, dv;

  Results(const Batch& b, T fill)
      : out(b.q.size(), fill),
        log_sums(static_cast<size_t>(b.rows * b.heads.heads), fill),
        dq(b.q.size(), fill),
        dk(b.k.size(), fill),
        dv(b.k.size(), fill) {}

  struct Field {
    const char* name;
    const std::vector<T>* values;
  };
  std::array<Field, 5> fields() const {
    return {{{"out", &out}, {"log_sums", &log_sums}, {"dq", &dq}, {"dk", &dk}, {"dv", &dv}}};
  }
};

inline MatrixView view(std::vector<float>& x, int64_t cols) {
  return {x.data(), static_cast<int64_t>(x.size()) / cols, cols, cols};
}
inline ConstMatrixView view(const std::vector<float>& x, int64_t cols) {
  return {x.data(), static_cast<int64_t>(x.size()) / cols, cols, cols};
}

// Every element is written: there are NaNs before.
inline Results<float> run(Context& context, const Batch& b, bool rounded = false) {
  Results<float> r(b, NAN);
  const int64_t q_cols = b.heads.q_cols(), kv_cols = b.heads.kv_cols();
  packed_attention(context, b.how(rounded), view(r.out, q_cols), view(r.log_sums, b.heads.heads),
                   view(b.q, q_cols), view(b.k, kv_cols), view(b.v, kv_cols));
  const Results<float>& made = r;
  packed_attention_backward(context, b.how(rounded), view(r.dq, q_cols), view(r.dk, kv_cols),
                            view(r.dv, kv_cols), view(b.dout, q_cols), view(made.out, q_cols),
                            view(made.log_sums, b.heads.heads), view(b.q, q_cols),
                            view(b.k, kv_cols), view(b.v, kv_cols));
  return r;
}

// The formula in double, and to first order how far from it a result may be whose sums and
// functions are rounded to float (u = 2^-24 each) and whose products take operands rounded by
// `operand`, 0 or 2^-8 for bf16. Any order of n terms is off by n u of the sum of their sizes. An
// exponential is off by what its argument is, and by 4 u, or 2^-17 where it will be rounded to
// bf16; a running softmax takes one more per block of 64 keys.
struct Exact {
  Results<double> value, bound;

  Exact(const Batch& b, double operand) : value(b, 0.0), bound(b, 0.0) {
    const double u = 0x1p-24, two = 2 * operand + operand * operand;
    const double exponential = 4 * u + (operand > 0 ? 0x1p-17 : 0);
    const int64_t d = b.heads.d, group = b.heads.heads / b.heads.kv_heads;
    const double c = 1 / std::sqrt(static_cast<double>(d));
    std::vector<double> s, s_bound, w;
    for (const RowSpan& span : b.spans) {
      const double terms = static_cast<double>(span.count * group + d + 16);
      for (int64_t row = 0; row < span.count * b.heads.heads; ++row) {
        const int64_t t = span.first + row / b.heads.heads, head = row % b.heads.heads;
        const int64_t kv = head / group, at = (t * b.heads.heads + head) * d;
        const int64_t seen = b.causal ? t - span.first + 1 : span.count;
        const float *q = &b.q[at], *dout = &b.dout[at];
        const auto key_at = [&](int64_t p) {
          return ((span.first + p) * b.heads.kv_heads + kv) * d;
        };
        s.assign(seen, 0);
        s_bound.assign(seen, 0);
        w.assign(seen, 0);
        double most = -INFINITY, least = INFINITY;
        for (int64_t p = 0; p < seen; ++p) {
          double size = 0;
          for (int64_t i = 0; i < d; ++i) {
            const double product = c * q[i] * b.k[key_at(p) + i];
            s[p] += product;
            size += std::abs(product);
          }
          const double bias = b.bias.empty() ? 0 : b.bias[span.first + p];
          s[p] += bias;
          s_bound[p] = size * (two + (d + 6) * u) + 2 * u * (std::abs(bias) + size);
          most = std::max(most, s[p]);
          least = std::min(least, s[p]);
        }
        double sum = 0;
        for (int64_t p = 0; p < seen; ++p) sum += w[p] = std::exp(s[p] - most);
        const double log_sum = most + std::log(sum);
        const double blocks = static_cast<double>(seen / 64 + 1);
        const double function = exponential * blocks + u * (2 * (most - least) + 8 * blocks);
        double sum_bound = (terms + 2 * blocks) * u;
        for (int64_t p = 0; p < seen; ++p) {
          w[p] /= sum;
          sum_bound += w[p] * (s_bound[p] + function);
        }
        const double log_sum_bound = sum_bound + 4 * u * (std::abs(log_sum) + std::abs(most) + 1);
        value.log_sums[t * b.heads.heads + head] = log_sum;
        bound.log_sums[t * b.heads.heads + head] = log_sum_bound;

        double delta = 0, delta_bound = 0;
        for (int64_t i = 0; i < d; ++i) {
          double out = 0, out_bound = 0;
          for (int64_t p = 0; p < seen; ++p) {
            const double term = w[p] * b.v[key_at(p) + i];
            out += term;
            out_bound += std::abs(term) * (s_bound[p] + function + sum_bound + two + terms * u);
          }
          value.out[at + i] = out;
          bound.out[at + i] = out_bound;
          delta += dout[i] * out;
          delta_bound += std::abs(dout[i]) * (out_bound + (d + 2) * u * std::abs(out));
        }
        for (int64_t p = 0; p < seen; ++p) {
          double dweight = 0, dweight_bound = 0;
          for (int64_t i = 0; i < d; ++i) {
            const double term = static_cast<double>(dout[i]) * b.v[key_at(p) + i];
            dweight += term;
            dweight_bound += std::abs(term) * (two + (d + 2) * u);
          }
          const double w_bound = s_bound[p] + log_sum_bound + exponential +
                                 u * (2 * std::abs(s[p]) + 2 * std::abs(log_sum) + 4);
          const double ds = w[p] * (dweight - delta);
          const double ds_bound =
              std::abs(ds) * (w_bound + 4 * u) +
              w[p] * (dweight_bound + delta_bound + u * (std::abs(dweight) + std::abs(delta)));
          for (int64_t i = 0; i < d; ++i) {
            const double key = b.k[key_at(p) + i];
            value.dv[key_at(p) + i] += w[p] * dout[i];
            bound.dv[key_at(p) + i] += w[p] * std::abs(dout[i]) * (w_bound + two + terms * u);
            value.dk[key_at(p) + i] += ds * q[i] * c;
            bound.dk[key_at(p) + i] +=
                (ds_bound + std::abs(ds) * (two + terms * u)) * std::abs(q[i]) * c;
            value.dq[at + i] += ds * key * c;
            bound.dq[at + i] += (ds_bound + std::abs(ds) * (two + terms * u)) * std::abs(key) * c;
          }
        }
      }
    }
  }
};

// Whether all results are within the bounds; a tenth more for what is not of first order.
inline ::testing::AssertionResult within(const Results<float>& got, const Exact& exact) {
  const auto fields = got.fields();
  for (size_t f = 0; f < fields.size(); ++f) {
    const auto& values = *fields[f].values;
    for (size_t i = 0; i < values.size(); ++i) {
      const double expected = (*exact.value.fields()[f].values)[i];
      const double bound = 1.1 * (*exact.bound.fields()[f].values)[i] + 1e-30;
      if (std::abs(values[i] - expected) <= bound) continue;
      return ::testing::AssertionFailure() << fields[f].name << "[" << i << "]: " << values[i]
                                           << ", expected " << expected << " within " << bound;
    }
  }
  return ::testing::AssertionSuccess();
}

inline ::testing::AssertionResult same_bits(const std::vector<float>& a,
                                            const std::vector<float>& b) {
  if (a.size() != b.size()) return ::testing::AssertionFailure() << a.size() << ", " << b.size();
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(float)) == 0) continue;
    return ::testing::AssertionFailure() << "at " << i << ": " << a[i] << " and " << b[i];
  }
  return ::testing::AssertionSuccess();
}
inline ::testing::AssertionResult same_bits(const Results<float>& a, const Results<float>& b) {
  const auto fields = a.fields();
  for (size_t f = 0; f < fields.size(); ++f) {
    const auto same = same_bits(*fields[f].values, *b.fields()[f].values);
    if (!same) return ::testing::AssertionFailure() << fields[f].name << " " << same.message();
  }
  return ::testing::AssertionSuccess();
}

}  // namespace drover::packed
