// The bodies of the row kernels, written once over a vector of W floats and compiled once per
// instruction set. The including file sets DROVER_ROW_KERNELS, their table's name, and
// DROVER_VECTOR_FLOATS = W. See row_vector.h for what may not stand here.

#include "kernels/math/exp.h"
#include "kernels/row/row_gradients_impl.h"
#include "kernels/row/row_kernels.h"
#include "kernels/row/row_vector.h"

namespace drover::internal {
namespace {

float inverse_rms(const float* x, int64_t n, float eps) {
  const float mean = mean_of(n, [x](int64_t i, auto like) {
    const auto v = take(x + i, like);
    return v * v;
  });
  return 1.0f / __builtin_sqrtf(mean + eps);
}

void scale_row(const float* x, int64_t n, float scale, const float* weight, float* to) {
  if (weight == nullptr) {
    map_row(n, to, [&](int64_t i, auto like) { return take(x + i, like) * scale; });
  } else {
    map_row(n, to, [&](int64_t i, auto like) {
      return take(x + i, like) * scale * take(weight + i, like);
    });
  }
}

void layer_norm_row(const float* x, int64_t n, const float* weight, const float* bias, float eps,
                    float* to) {
  const float mean = mean_of(n, [x](int64_t i, auto like) { return take(x + i, like); });
  const float variance = mean_of(n, [x, mean](int64_t i, auto like) {
    const auto difference = take(x + i, like) - mean;
    return difference * difference;
  });
  const float scale = 1.0f / __builtin_sqrtf(variance + eps);
  map_row(n, to, [&](int64_t i, auto like) {
    return (take(x + i, like) - mean) * scale * take(weight + i, like) + take(bias + i, like);
  });
}

// Forth with sign 1, back with -1.
template <int kSign>
void rotate_row(float* x, int64_t n, int64_t d, const float* cosine, const float* sine) {
  I partner;
  for (int l = 0; l < W; ++l) partner[l] = l ^ 1;
  for (float* head = x; head < x + n; head += d) {
    int64_t i = 0;
    for (; i + W <= d; i += W) {
      const V v = load(head + i), turned = __builtin_shuffle(v, partner) * load(sine + i);
      store(head + i, v * load(cosine + i) + (kSign > 0 ? turned : -turned));
    }
    for (; i < d; i += 2) {
      const float re = head[i], im = head[i + 1];
      head[i] = re * cosine[i] + kSign * (im * sine[i]);
      head[i + 1] = im * cosine[i + 1] + kSign * (re * sine[i + 1]);
    }
  }
}

void swiglu_row(const float* gate, const float* up, int64_t n, float* to) {
  map_row(n, to, [&](int64_t i, auto like) {
    using F = decltype(like);
    const F x = take(gate + i, like);
    const F e = exp_of<F, typename IntegersOf<F>::Type>(-x);
    return x / (1.0f + e) * take(up + i, like);
  });
}

}  // namespace

const RowKernels DROVER_ROW_KERNELS = {
    .inverse_rms = inverse_rms,
    .scale = scale_row,
    .layer_norm = layer_norm_row,
    .rotate = rotate_row<1>,
    .swiglu = swiglu_row,
    .rms_norm_backward = rms_norm_backward_row,
    .rms_norm_head_backward = rms_norm_backward_head,
    .layer_norm_backward = layer_norm_backward_row,
    .rotate_back = rotate_row<-1>,
    .swiglu_backward = swiglu_backward_row,
    .sum_of_squares = sum_of_squares_row,
    .adamw = adamw_row,
    .gelu = gelu_row,
    .gelu_backward = gelu_backward_row,
    .largest = largest_of_row,
    .exponentials = exponentials_of_row,
};

}  // namespace drover::internal
