#include "kernels/layer_norm/layer_norm.h"

#include <algorithm>

#include "kernels/row/row_kernels.h"

namespace drover {

void layer_norm(Context& context, MatrixView out, ConstMatrixView x, const float* weight,
                const float* bias, float eps) {
  const auto norm_row = internal::row_kernels(context.isa).layer_norm;
  context.threads.run(
      x.rows, [&](int64_t t, int) { norm_row(x.row(t), x.cols, weight, bias, eps, out.row(t)); });
}

void layer_norm(Context& context, RoundedRows& out, ConstMatrixView x, const float* weight,
                const float* bias, float eps) {
  const auto norm_row = internal::row_kernels(context.isa).layer_norm;
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
