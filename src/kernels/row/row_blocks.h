// How operations share the rows of a matrix among threads: by blocks of rows, since handing out a
// task costs as much as a short row. Results do not depend on the blocks, or these are fixed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <initializer_list>

#include "kernels/context.h"

namespace drover::internal {

// Calls body(t) once for each row t in [0, rows), each of `cols` elements.
template <typename Body>
void run_rows(Context& context, int64_t rows, int64_t cols, const Body& body) {
  // 32 KB of floats, a microsecond or two; fewer where threads would have less than four tasks.
  const int64_t fair = (rows + 4 * context.threads.size() - 1) / (4 * context.threads.size());
  const int64_t block = std::max<int64_t>(1, std::min(fair, 8192 / std::max<int64_t>(cols, 1)));
  context.threads.run((rows + block - 1) / block, [&](int64_t task, int) {
    const int64_t end = std::min(rows, (task + 1) * block);
    for (int64_t t = task * block; t < end; ++t) body(t);
  });
}

// Sums over the rows of a batch, of n elements each, added to `totals`: body(first, end, sums) adds
// those of rows [first, end) to sums, zeros at first, total after total. Blocks are of 64 rows and
// are added up in order. All totals are null where none is wanted, and then sums is.
void add_over_rows(Context& context, int64_t rows, int64_t n, std::initializer_list<float*> totals,
                   const std::function<void(int64_t first, int64_t end, float* sums)>& body);

}  // namespace drover::internal
