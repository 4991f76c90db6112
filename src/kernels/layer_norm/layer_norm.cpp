#include "kernels/layer_norm/layer_norm.h"

#include <algorithm>
#include <cmath>

namespace drover {
namespace {

// The mean of term(i) for i < n. As in rms_norm, one plain loop serves every instruction set.
template <typename Term>
float mean_of(int64_t n, const Term& term) {
  float sums[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int l = 0; l < 16; ++l) sums[l] += term(i + l);
  }
  for (int l = 0; i + l < n; ++l) sums[l] += term(i + l);
  for (int width = 8; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) sums[l] += sums[l + width];
  }
  return sums[0] / static_cast<float>(n);
}

void norm_row(const float* in, int64_t cols, const float* weight, const float* bias, float eps,
              float* to) {
  const float mean = mean_of(cols, [&](int64_t i) { return in[i]; });
  const float variance = mean_of(cols, [&](int64_t i) {
    const float difference = in[i] - mean;
    return difference * difference;
  });
  const float scale = 1.0f / std::sqrt(variance + eps);
  for (int64_t i = 0; i < cols; ++i) to[i] = (in[i] - mean) * scale * weight[i] + bias[i];
}

}  // namespace

void layer_norm(Context& context, MatrixView out, ConstMatrixView x, const float* weight,
                const float* bias, float eps) {
  context.threads.run(
      x.rows, [&](int64_t t, int) { norm_row(x.row(t), x.cols, weight, bias, eps, out.row(t)); });
}

void layer_norm(Context& context, RoundedRows& out, ConstMatrixView x, const float* weight,
                const float* bias, float eps) {
  constexpr int64_t kGroup = RoundedRows::kGroup;
  context.threads.run((x.rows + kGroup - 1) / kGroup, [&](int64_t group, int worker) {
    const int64_t first = group * kGroup, rows = std::min(kGroup, x.rows - first);
    float* normed = context.scratch<float>(worker, static_cast<size_t>(kGroup * x.cols));
    for (int64_t t = 0; t < rows; ++t) {
      norm_row(x.row(first + t), x.cols, weight, bias, eps, normed + t * x.cols);
    }
    out.put(first, {normed, rows, x.cols, x.cols});
  });
}

}  // namespace drover
