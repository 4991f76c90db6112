#include "kernels/swiglu/swiglu.h"

#include "kernels/row/row_kernels.h"

namespace drover {

void swiglu(Context& context, MatrixView gate, ConstMatrixView up) {
  const auto row = internal::row_kernels(context.isa).swiglu;
  context.threads.run(gate.rows, [&](int64_t t, int) { row(gate.row(t), up.row(t), gate.cols); });
}

}  // namespace drover
