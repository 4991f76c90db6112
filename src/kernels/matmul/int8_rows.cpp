#include "kernels/matmul/int8_rows.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace drover {
namespace {

auto row_kernel(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512) return internal::quantize_row_avx512;
  if (isa != Isa::kPlain) return internal::quantize_row_avx2;
#endif
  (void)isa;
  return internal::quantize_row_plain;
}

}  // namespace

void Int8Rows::resize(int64_t rows, int64_t cols) {
  DROVER_CHECK(rows >= 0 && cols >= 0 && cols % 32 == 0);
  blocks_.reserve_discarding(static_cast<size_t>(rows * (cols / 32)));
  rows_ = rows;
  cols_ = cols;
}

void quantize_rows(Context& context, ConstMatrixView x, Int8Rows& out) {
  out.resize(x.rows, x.cols);
  // About 10 microseconds of work: enough to pay for waking a thread.
  constexpr int64_t kBlocksPerTask = 1024;
  const int64_t row_blocks = out.blocks_per_row();
  if (x.rows == 0 || row_blocks == 0) return;
  const int64_t rows_per_task = std::max<int64_t>(1, kBlocksPerTask / row_blocks);
  const auto quantize_row = row_kernel(context.isa);
  context.threads.run((x.rows + rows_per_task - 1) / rows_per_task, [&](int64_t task, int) {
    const int64_t end = std::min(x.rows, (task + 1) * rows_per_task);
    for (int64_t r = task * rows_per_task; r < end; ++r) {
      quantize_row(x.row(r), row_blocks, out.row(r));
    }
  });
}

namespace internal {

void quantize_row_plain(const float* x, int64_t blocks, Int8Block* out) {
  for (int64_t b = 0; b < blocks; ++b) {
    const float* values = x + 32 * b;
    Int8Block& block = out[b];
    float largest = 0;
    bool finite = true;
    for (int j = 0; j < 32; ++j) {
      largest = std::max(largest, std::fabs(values[j]));
      finite = finite && std::isfinite(values[j]);
    }
    block = {};
    int32_t sums[2] = {0, 0};
    if (!finite) {
      block.scale = std::numeric_limits<float>::quiet_NaN();
    } else if (largest >= kSmallestActivation) {
      block.scale = largest / 127;
      const float inverse = 127 / largest;
      for (int j = 0; j < 32; ++j) {
        block.q[j] = static_cast<int8_t>(std::lrint(values[j] * inverse));
        sums[j / 16] += block.q[j];
      }
    }
    set_sums(block, sums[0], sums[1]);
  }
}

}  // namespace internal
}  // namespace drover
