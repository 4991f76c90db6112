#include "kernels/layer_norm/layer_norm.h"

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

}  // namespace

void layer_norm(Context& context, MatrixView out, ConstMatrixView x, const float* weight,
                const float* bias, float eps) {
  context.threads.run(x.rows, [&](int64_t t, int) {
    const float* in = x.row(t);
    float* to = out.row(t);
    const float mean = mean_of(x.cols, [&](int64_t i) { return in[i]; });
    const float variance = mean_of(x.cols, [&](int64_t i) {
      const float difference = in[i] - mean;
      return difference * difference;
    });
    const float scale = 1.0f / std::sqrt(variance + eps);
    for (int64_t i = 0; i < x.cols; ++i) to[i] = (in[i] - mean) * scale * weight[i] + bias[i];
  });
}

}  // namespace drover
