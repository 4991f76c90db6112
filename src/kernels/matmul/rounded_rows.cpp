#include "kernels/matmul/rounded_rows.h"

#include <algorithm>

#include "base/error.h"
#include "base/huge_pages.h"
#include "kernels/matmul/matmul_kernels.h"

namespace drover {

void RoundedRows::resize(int64_t rows, int64_t cols) {
  rows_ = rows;
  cols_ = cols;
  reserve_huge(data_, static_cast<size_t>(bytes(rows, cols)));
}

void RoundedRows::put(int64_t first, ConstMatrixView x) {
#if defined(__x86_64__)
  DROVER_CHECK(first % kGroup == 0 && x.cols == cols_);
  DROVER_CHECK(x.rows == std::min(kGroup, rows_ - first));
  const internal::PackedTokens form = internal::packed_tokens(*this, first);
  const bool is_second = first / kGroup % 2 == 1;
  // Where the last rows fill one tile of two only, the other holds no rows, and zeros.
  const int64_t groups = !is_second && first + kGroup >= rows_ ? 2 : 1;
  for (int64_t col = 0; col < cols_; col += internal::kUnitPanelCols) {
    std::byte* to = unit(first) + col / internal::kUnitPanelCols * form.panel_bytes;
    for (int64_t group = 0; group < groups; ++group) {
      internal::pack_amx(x.data + col, x.stride, group == 0 ? x.rows : 0,
                         std::min(internal::kUnitPanelCols, cols_ - col), form,
                         to + (is_second || group == 1 ? form.term_bytes / 2 : 0));
    }
  }
#else
  (void)first;
  (void)x;
  DROVER_CHECK(false);
#endif
}

internal::PackedTokens internal::packed_tokens(const RoundedRows& rows, int64_t first) {
  return {.data = rows.unit(first),
          .pair_bytes = 4 * kUnitTokens,
          .term_bytes = kUnitCols * kUnitTokenPair * 2,
          .panel_bytes = rows.panel_bytes(),
          .terms = 1};
}

}  // namespace drover
