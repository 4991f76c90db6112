#include "kernels/adamw/adamw.h"

#include <algorithm>

#include "kernels/row/row_kernels.h"

namespace drover {
namespace {

constexpr int64_t kPiece = 16384;  // that a thread takes at a time

}  // namespace

void adamw(Context& context, const AdamWStep& step, int64_t n, const float* gradient, float* value,
           float* m, float* v) {
  const auto row = internal::row_kernels(context.isa).adamw;
  context.threads.run((n + kPiece - 1) / kPiece, [&](int64_t piece, int) {
    const int64_t i = piece * kPiece;
    row(step, std::min(kPiece, n - i), gradient + i, value + i, m + i, v + i);
  });
}

}  // namespace drover
