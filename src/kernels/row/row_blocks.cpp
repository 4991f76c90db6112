#include "kernels/row/row_blocks.h"

namespace drover::internal {
namespace {

constexpr int64_t kBlockRows = 64;
constexpr int64_t kPieceCols = 1024;  // of the totals, added up by one thread

}  // namespace

void add_over_rows(Context& context, int64_t rows, int64_t n, std::initializer_list<float*> totals,
                   const std::function<void(int64_t first, int64_t end, float* sums)>& body) {
  const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
  const bool wanted = *totals.begin() != nullptr;
  const int64_t width = wanted ? n * static_cast<int64_t>(totals.size()) : 0;
  float* const partial = context.shared_scratch<float>(static_cast<size_t>(blocks * width));
  context.threads.run(blocks, [&](int64_t block, int) {
    float* const sums = wanted ? partial + block * width : nullptr;
    std::fill_n(sums, width, 0.0f);
    body(block * kBlockRows, std::min(rows, (block + 1) * kBlockRows), sums);
  });
  if (!wanted) return;
  context.threads.run((n + kPieceCols - 1) / kPieceCols, [&](int64_t piece, int) {
    const int64_t first = piece * kPieceCols, end = std::min(n, first + kPieceCols);
    for (int64_t block = 0; block < blocks; ++block) {
      const float* sums = partial + block * width;
      for (float* total : totals) {
        for (int64_t i = first; i < end; ++i) total[i] += sums[i];
        sums += n;
      }
    }
  });
}

}  // namespace drover::internal
