// The part of row_impl.h that a trainer needs: gradients, the loss, and gelu apart from a product.

#include "kernels/math/gelu.h"
#include "kernels/row/row_kernels.h"
#include "kernels/row/row_vector.h"

namespace drover::internal {
namespace {

void rms_norm_backward_row(const float* dy, const float* x, int64_t n, const float* weight,
                           float eps, float* dx, float* dweight) {
  const auto g = [=](int64_t i, auto like) { return take(dy + i, like) * take(weight + i, like); };
  const auto means = means_of(
      n,
      [x](int64_t i, auto like) {
        const auto v = take(x + i, like);
        return v * v;
      },
      [&](int64_t i, auto like) { return g(i, like) * take(x + i, like); });
  const float r = 1.0f / __builtin_sqrtf(means.of[0] + eps), along = r * r * means.of[1];
  map_row(n, dx, [&](int64_t i, auto like) {
    return take(dx + i, like) + r * (g(i, like) - take(x + i, like) * along);
  });
  if (dweight == nullptr) return;
  map_row(n, dweight, [&](int64_t i, auto like) {
    return take(dweight + i, like) + take(dy + i, like) * (take(x + i, like) * r);
  });
}

void rms_norm_backward_head(float* d, const float* y, int64_t n, float r) {
  const float along =
      mean_of(n, [=](int64_t i, auto like) { return take(d + i, like) * take(y + i, like); });
  map_row(n, d, [=](int64_t i, auto like) {
    return r * (take(d + i, like) - take(y + i, like) * along);
  });
}

void layer_norm_backward_row(const float* dy, const float* x, int64_t n, const float* weight,
                             float eps, float* dx, float* dweight, float* dbias) {
  const float mean = mean_of(n, [x](int64_t i, auto like) { return take(x + i, like); });
  const float variance = mean_of(n, [x, mean](int64_t i, auto like) {
    const auto difference = take(x + i, like) - mean;
    return difference * difference;
  });
  const float r = 1.0f / __builtin_sqrtf(variance + eps);
  const auto normed = [=](int64_t i, auto like) { return (take(x + i, like) - mean) * r; };
  const auto g = [=](int64_t i, auto like) { return take(dy + i, like) * take(weight + i, like); };
  const auto means =
      means_of(n, g, [&](int64_t i, auto like) { return g(i, like) * normed(i, like); });
  const float shift = means.of[0], along = means.of[1];
  map_row(n, dx, [&](int64_t i, auto like) {
    return take(dx + i, like) + r * (g(i, like) - shift - normed(i, like) * along);
  });
  if (dweight == nullptr) return;
  map_row(n, dweight, [&](int64_t i, auto like) {
    return take(dweight + i, like) + take(dy + i, like) * normed(i, like);
  });
  map_row(n, dbias,
          [&](int64_t i, auto like) { return take(dbias + i, like) + take(dy + i, like); });
}

void swiglu_backward_row(const float* dout, const float* gate, const float* up, int64_t n,
                         float* dgate, float* dup, float* out) {
  map_row(n, dgate, [=](int64_t i, auto like) {
    using F = decltype(like);
    const F d = take(dout + i, like), x = take(gate + i, like), u = take(up + i, like);
    const F e = exp_of<F, typename IntegersOf<F>::Type>(-x);
    const F s = 1.0f / (1.0f + e), silu = x * s;
    store(out + i, silu * u);
    store(dup + i, d * silu);
    // 1 - s as e s, which keeps its precision where s is nearly 1.
    return d * u * s * (1.0f + x * (e * s));
  });
}

double sum_of_squares_row(const float* x, int64_t n) {
  typedef float Floats __attribute__((vector_size(32)));
  typedef double Doubles __attribute__((vector_size(64)));
  Doubles lanes = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    Floats v;
    __builtin_memcpy(&v, x + i, sizeof(v));
    const Doubles value = __builtin_convertvector(v, Doubles);
    lanes += value * value;
  }
  for (; i < n; ++i) lanes[0] += static_cast<double>(x[i]) * x[i];
  double sum = 0;
  for (int lane = 0; lane < 8; ++lane) sum += lanes[lane];
  return sum;
}

void adamw_row(const AdamWStep& step, int64_t n, const float* gradient, float* value, float* m,
               float* v) {
  const AdamWStep s = step;  // which no store can change
  map_row(n, value, [=](int64_t i, auto like) {
    const auto g = take(gradient + i, like) * s.scale;
    const auto average = s.beta1 * take(m + i, like) + s.other1 * g;
    const auto squares = s.beta2 * take(v + i, like) + s.other2 * (g * g);
    store(m + i, average);
    store(v + i, squares);
    const auto slope = square_root(squares) * s.root + s.epsilon;
    return s.keep * take(value + i, like) - s.step * average / slope;
  });
}

void gelu_row(const float* x, int64_t n, float* to) {
  map_row(n, to, [&](int64_t i, auto like) {
    using F = decltype(like);
    return gelu_of<F, typename IntegersOf<F>::Type>(take(x + i, like));
  });
}

void gelu_backward_row(const float* dy, const float* x, int64_t n, float* dx) {
  map_row(n, dx, [&](int64_t i, auto like) {
    using F = decltype(like);
    return take(dy + i, like) * gelu_slope_of<F, typename IntegersOf<F>::Type>(take(x + i, like));
  });
}

Largest largest_of_row(const float* x, int64_t n) {
  constexpr int kLanes = 64;  // chains enough that none waits for its comparison
  V most[kLanes / W];
  I at[kLanes / W] = {};  // where a lane's largest stands, less the lane
  for (V& lanes : most) lanes = V{} - __builtin_inff();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const I here = I{} + static_cast<int32_t>(i);
    for (int v = 0; v < kLanes / W; ++v) {
      const V value = load(x + i + v * W);
      const I more = value > most[v];  // a NaN is not
      most[v] = more ? value : most[v];
      at[v] = more ? here : at[v];
    }
  }
  Largest largest{-__builtin_inff(), 0};
  const auto meet = [&](float value, int32_t index) {
    if (value > largest.value || (value == largest.value && index < largest.index)) {
      largest = {value, index};
    }
  };
  for (int lane = 0; lane < kLanes; ++lane) {
    meet(most[lane / W][lane % W], at[lane / W][lane % W] + lane);
  }
  for (; i < n; ++i) meet(x[i], static_cast<int32_t>(i));
  return largest;
}

float exponentials_of_row(float* x, int64_t n, float shift) {
  return sums_of(n,
                 [=](int64_t i, auto like) {
                   using F = decltype(like);
                   const F e = exp_of<F, typename IntegersOf<F>::Type>(take(x + i, like) - shift);
                   store(x + i, e);
                   return e;
                 })
      .of[0];
}

}  // namespace
}  // namespace drover::internal
