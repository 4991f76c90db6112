#include "kernels/rounding/rounding.h"

#include "kernels/row/row_blocks.h"
#include "kernels/transpose/transpose_kernels.h"

namespace drover {

void round_to_bf16(Context& context, ConstMatrixView x, bf16* out) {
  const auto round = internal::transpose_kernels(context.isa).round;
  internal::run_rows(context, x.rows, x.cols, [&](int64_t t) {
    round(x.row(t), x.cols, reinterpret_cast<uint16_t*>(out + t * x.cols));
  });
}

void widen_bf16(Context& context, const bf16* x, MatrixView out) {
  const auto widen = internal::transpose_kernels(context.isa).widen;
  internal::run_rows(context, out.rows, out.cols, [&](int64_t t) {
    widen(reinterpret_cast<const uint16_t*>(x + t * out.cols), out.cols, out.row(t));
  });
}

}  // namespace drover
