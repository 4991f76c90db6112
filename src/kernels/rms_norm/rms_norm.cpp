#include "kernels/rms_norm/rms_norm.h"

#include "kernels/row/row_blocks.h"
#include "kernels/row/row_kernels.h"

namespace drover {

void rms_norm(Context& context, MatrixView out, ConstMatrixView x, const float* weight, float eps) {
  const internal::RowKernels& row = internal::row_kernels(context.isa);
  internal::run_rows(context, x.rows, x.cols, [&](int64_t t) {
    row.scale(x.row(t), x.cols, row.inverse_rms(x.row(t), x.cols, eps), weight, out.row(t));
  });
}

void rms_norm_heads(Context& context, MatrixView x, int64_t head_dim, float eps,
                    MatrixView inverse) {
  const internal::RowKernels& row = internal::row_kernels(context.isa);
  internal::run_rows(context, x.rows, x.cols, [&](int64_t t) {
    for (int64_t i = 0; i < x.cols; i += head_dim) {
      float* const head = x.row(t) + i;
      const float r = row.inverse_rms(head, head_dim, eps);
      row.scale(head, head_dim, r, nullptr, head);
      if (inverse.data != nullptr) inverse.row(t)[i / head_dim] = r;
    }
  });
}

void rms_norm_backward(Context& context, MatrixView dx, float* dweight, ConstMatrixView dy,
                       ConstMatrixView x, const float* weight, float eps) {
  const auto row = internal::row_kernels(context.isa).rms_norm_backward;
  internal::add_over_rows(context, x.rows, x.cols, {dweight},
                          [&](int64_t first, int64_t end, float* sums) {
                            for (int64_t t = first; t < end; ++t) {
                              row(dy.row(t), x.row(t), x.cols, weight, eps, dx.row(t), sums);
                            }
                          });
}

void rms_norm_heads_backward(Context& context, MatrixView d, ConstMatrixView y,
                             ConstMatrixView inverse, int64_t head_dim) {
  const auto head_row = internal::row_kernels(context.isa).rms_norm_head_backward;
  internal::run_rows(context, y.rows, y.cols, [&](int64_t t) {
    for (int64_t i = 0; i < y.cols; i += head_dim) {
      head_row(d.row(t) + i, y.row(t) + i, head_dim, inverse.row(t)[i / head_dim]);
    }
  });
}

}  // namespace drover
