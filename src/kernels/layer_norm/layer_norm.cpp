#include "kernels/layer_norm/layer_norm.h"

#include <algorithm>

#include "kernels/row/row_blocks.h"
#include "kernels/row/row_kernels.h"

namespace drover {

void layer_norm(Context& context, MatrixView out, ConstMatrixView x, const float* weight,
                const float* bias, float eps) {
  const auto norm_row = internal::row_kernels(context.isa).layer_norm;
  internal::run_rows(context, x.rows, x.cols,
                     [&](int64_t t) { norm_row(x.row(t), x.cols, weight, bias, eps, out.row(t)); });
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

void layer_norm_backward(Context& context, MatrixView dx, float* dweight, float* dbias,
                         ConstMatrixView dy, ConstMatrixView x, const float* weight, float eps) {
  const auto row = internal::row_kernels(context.isa).layer_norm_backward;
  internal::add_over_rows(
      context, x.rows, x.cols, {dweight, dbias}, [&](int64_t first, int64_t end, float* sums) {
        float* const bias_sums = sums == nullptr ? nullptr : sums + x.cols;
        for (int64_t t = first; t < end; ++t) {
          row(dy.row(t), x.row(t), x.cols, weight, eps, dx.row(t), sums, bias_sums);
        }
      });
}

}  // namespace drover
