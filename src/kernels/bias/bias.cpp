#include "kernels/bias/bias.h"

namespace drover {

void add_bias(Context& context, MatrixView x, const float* bias) {
  context.threads.run(x.rows, [&](int64_t t, int) {
    float* row = x.row(t);
    for (int64_t i = 0; i < x.cols; ++i) row[i] += bias[i];
  });
}

}  // namespace drover
