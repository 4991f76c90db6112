#include "kernels/rms_norm/rms_norm.h"

#include "kernels/row/row_kernels.h"

namespace drover {

void rms_norm(Context& context, MatrixView out, ConstMatrixView x, const float* weight, float eps) {
  const internal::RowKernels& row = internal::row_kernels(context.isa);
  context.threads.run(x.rows, [&](int64_t t, int) {
    row.scale(x.row(t), x.cols, row.inverse_rms(x.row(t), x.cols, eps), weight, out.row(t));
  });
}

void rms_norm_heads(Context& context, MatrixView x, int64_t head_dim, float eps) {
  const internal::RowKernels& row = internal::row_kernels(context.isa);
  context.threads.run(x.rows, [&](int64_t t, int) {
    for (float* head = x.row(t); head < x.row(t) + x.cols; head += head_dim) {
      row.scale(head, head_dim, row.inverse_rms(head, head_dim, eps), nullptr, head);
    }
  });
}

}  // namespace drover
