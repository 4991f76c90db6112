#include "kernels/rms_norm/rms_norm.h"

#include <cmath>

namespace drover {
namespace {

// 1 / sqrt(mean(x^2) + eps). One plain loop serves every instruction set: products and sums are not
// fused, so any vector width gives the same bits, and the norm is a thousandth of a layer's time.
float inverse_rms(const float* x, int64_t n, float eps) {
  float sums[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int l = 0; l < 16; ++l) sums[l] += x[i + l] * x[i + l];
  }
  for (int l = 0; i + l < n; ++l) sums[l] += x[i + l] * x[i + l];
  for (int width = 8; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) sums[l] += sums[l + width];
  }
  return 1.0f / std::sqrt(sums[0] / static_cast<float>(n) + eps);
}

}  // namespace

void rms_norm(Context& context, MatrixView out, ConstMatrixView x, const float* weight, float eps) {
  context.threads.run(x.rows, [&](int64_t t, int) {
    const float* in = x.row(t);
    float* to = out.row(t);
    const float scale = inverse_rms(in, x.cols, eps);
    for (int64_t i = 0; i < x.cols; ++i) to[i] = in[i] * scale * weight[i];
  });
}

void rms_norm_heads(Context& context, MatrixView x, int64_t head_dim, float eps) {
  context.threads.run(x.rows, [&](int64_t t, int) {
    for (float* head = x.row(t); head < x.row(t) + x.cols; head += head_dim) {
      const float scale = inverse_rms(head, head_dim, eps);
      for (int64_t i = 0; i < head_dim; ++i) head[i] *= scale;
    }
  });
}

}  // namespace drover
