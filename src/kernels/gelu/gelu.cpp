#include "kernels/gelu/gelu.h"

#include "kernels/row/row_blocks.h"
#include "kernels/row/row_kernels.h"

namespace drover {

void gelu(Context& context, MatrixView out, ConstMatrixView x) {
  const auto row = internal::row_kernels(context.isa).gelu;
  internal::run_rows(context, x.rows, x.cols,
                     [&](int64_t t) { row(x.row(t), x.cols, out.row(t)); });
}

void gelu_backward(Context& context, MatrixView dx, ConstMatrixView dy, ConstMatrixView x) {
  const auto row = internal::row_kernels(context.isa).gelu_backward;
  internal::run_rows(context, x.rows, x.cols,
                     [&](int64_t t) { row(dy.row(t), x.row(t), x.cols, dx.row(t)); });
}

}  // namespace drover
