#include "kernels/rope/rope.h"

#include <cmath>

namespace drover {

void RopeTable::fill(std::span<const int64_t> positions, std::span<const float> frequencies) {
  pairs_ = static_cast<int64_t>(frequencies.size());
  table_.reserve_discarding(positions.size() * 2 * frequencies.size());
  float* out = table_.data();
  for (const int64_t position : positions) {
    for (int64_t k = 0; k < pairs_; ++k) {
      const float angle = static_cast<float>(position) * frequencies[k];
      out[k] = std::cos(angle);
      out[pairs_ + k] = std::sin(angle);
    }
    out += 2 * pairs_;
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
