#include "kernels/cross_entropy/cross_entropy.h"

#include <algorithm>
#include <cmath>

#include "kernels/row/row_blocks.h"
#include "kernels/row/row_kernels.h"

namespace drover {

void cross_entropy(Context& context, MatrixView logits, std::span<const int32_t> targets,
                   std::span<const float> weights, std::span<float> losses,
                   std::span<int32_t> best) {
  const internal::RowKernels& row = internal::row_kernels(context.isa);
  const int64_t n = logits.cols;
  internal::run_rows(context, logits.rows, n, [&](int64_t t) {
    float* const x = logits.row(t);
    const auto i = static_cast<size_t>(t);
    const float weight = weights[i];
    const internal::Largest largest = row.largest(x, n);
    if (!best.empty()) best[i] = largest.index;
    // In double, so that the sum alone is rounded, and the loss.
    const double below = double{largest.value} - double{x[targets[i]]};
    const float sum = row.exponentials(x, n, largest.value);
    losses[i] = static_cast<float>(std::log(double{sum}) + below);
    if (weight == 0) {
      std::fill_n(x, n, 0.0f);
    } else {
      row.scale(x, n, weight / sum, nullptr, x);
      x[targets[i]] -= weight;
    }
  });
}

}  // namespace drover
