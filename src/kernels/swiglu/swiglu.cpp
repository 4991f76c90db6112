#include "kernels/swiglu/swiglu.h"

#include "kernels/math/exp.h"

namespace drover {

void swiglu(Context& context, MatrixView gate, ConstMatrixView up) {
  context.threads.run(gate.rows, [&](int64_t t, int) {
    float* __restrict g = gate.row(t);
    const float* __restrict u = up.row(t);
    for (int64_t i = 0; i < gate.cols; ++i) g[i] = g[i] / (1.0f + exp_of(-g[i])) * u[i];
  });
}

}  // namespace drover
