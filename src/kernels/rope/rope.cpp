#include "kernels/rope/rope.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "kernels/row/row_blocks.h"
#include "kernels/row/row_kernels.h"

namespace drover {

void RopeTable::fill(std::span<const int64_t> positions, std::span<const float> frequencies) {
  resize(static_cast<int64_t>(positions.size()), static_cast<int64_t>(frequencies.size()));
  std::unordered_map<int64_t, int64_t> rows;  // of positions, which come again in each document
  for (int64_t t = 0; const int64_t position : positions) {
    const auto [row, is_new] = rows.try_emplace(position, t);
    if (is_new) {
      set(t, 0, position, frequencies);
    } else {
      std::copy_n(cosines(row->second), 2 * width_, table_.data() + t * 2 * width_);
    }
    ++t;
  }
}

void RopeTable::fill_2d(int64_t side, std::span<const float> frequencies) {
  const int64_t half = static_cast<int64_t>(frequencies.size());
  resize(side * side + 1, 2 * half);
  for (int64_t n = 0; n <= side * side; ++n) {
    const bool is_class = n == side * side;
    set(n, 0, is_class ? 0 : n % side + 1, frequencies);
    set(n, half, is_class ? 0 : n / side + 1, frequencies);
  }
}

void RopeTable::resize(int64_t tokens, int64_t pairs) {
  tokens_ = tokens;
  width_ = 2 * pairs;
  table_.reserve_discarding(static_cast<size_t>(tokens * 2 * width_));
}

void RopeTable::set(int64_t t, int64_t pair, int64_t position, std::span<const float> frequencies) {
  float* cosine = table_.data() + t * 2 * width_ + 2 * pair;
  for (const float frequency : frequencies) {
    const float angle = static_cast<float>(position) * frequency;
    float* const sine = cosine + width_;
    cosine[0] = cosine[1] = std::cos(angle);
    sine[1] = std::sin(angle);
    sine[0] = -sine[1];
    cosine += 2;
  }
}

namespace {

void rotate_rows(Context& context, std::initializer_list<MatrixView> xs, const RopeTable& table,
                 int64_t first, decltype(internal::RowKernels::rotate) rotate) {
  int64_t cols = 0;
  for (const MatrixView& x : xs) cols += x.cols;
  internal::run_rows(context, xs.begin()->rows, cols, [&](int64_t t) {
    const int64_t of_table = (first + t) % table.tokens();
    for (const MatrixView& x : xs) {
      rotate(x.row(t), x.cols, table.head_dim(), table.cosines(of_table), table.sines(of_table));
    }
  });
}

}  // namespace

void rope(Context& context, std::initializer_list<MatrixView> xs, const RopeTable& table,
          int64_t first) {
  rotate_rows(context, xs, table, first, internal::row_kernels(context.isa).rotate);
}

void rope_backward(Context& context, std::initializer_list<MatrixView> ds, const RopeTable& table,
                   int64_t first) {
  rotate_rows(context, ds, table, first, internal::row_kernels(context.isa).rotate_back);
}

}  // namespace drover
