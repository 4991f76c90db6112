#include "kernels/swiglu/swiglu.h"

#include "kernels/row/row_blocks.h"
#include "kernels/row/row_kernels.h"

namespace drover {

void swiglu(Context& context, MatrixView gate, ConstMatrixView up) {
  swiglu(context, gate, gate, up);
}

void swiglu(Context& context, MatrixView out, ConstMatrixView gate, ConstMatrixView up) {
  const auto row = internal::row_kernels(context.isa).swiglu;
  internal::run_rows(context, out.rows, out.cols,
                     [&](int64_t t) { row(gate.row(t), up.row(t), out.cols, out.row(t)); });
}

void swiglu_backward(Context& context, MatrixView dgate, MatrixView dup, MatrixView out,
                     ConstMatrixView dout, ConstMatrixView gate, ConstMatrixView up) {
  const auto row = internal::row_kernels(context.isa).swiglu_backward;
  internal::run_rows(context, dout.rows, dout.cols, [&](int64_t t) {
    row(dout.row(t), gate.row(t), up.row(t), dout.cols, dgate.row(t), dup.row(t), out.row(t));
  });
}

}  // namespace drover
