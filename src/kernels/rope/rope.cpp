#include "kernels/rope/rope.h"

#include <cmath>

namespace drover {

void RopeTable::fill(std::span<const int64_t> positions, std::span<const float> frequencies) {
  resize(static_cast<int64_t>(positions.size()), static_cast<int64_t>(frequencies.size()));
  for (int64_t t = 0; const int64_t position : positions) set(t++, 0, position, frequencies);
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
  pairs_ = pairs;
  table_.reserve_discarding(static_cast<size_t>(tokens * 2 * pairs));
}

void RopeTable::set(int64_t t, int64_t pair, int64_t position, std::span<const float> frequencies) {
  float* out = table_.data() + t * 2 * pairs_ + pair;
  for (const float frequency : frequencies) {
    const float angle = static_cast<float>(position) * frequency;
    out[0] = std::cos(angle);
    out[pairs_] = std::sin(angle);
    ++out;
  }
}

void rope(Context& context, MatrixView x, const RopeTable& table) {
  const int64_t pairs = table.pairs();
  context.threads.run(x.rows, [&](int64_t t, int) {
    const float* cosine = table.token(t);
    const float* sine = cosine + pairs;
    for (float* head = x.row(t); head < x.row(t) + x.cols; head += 2 * pairs) {
      for (int64_t k = 0; k < pairs; ++k) {
        const float re = head[2 * k], im = head[2 * k + 1];
        head[2 * k] = re * cosine[k] - im * sine[k];
        head[2 * k + 1] = re * sine[k] + im * cosine[k];
      }
    }
  });
}

}  // namespace drover
