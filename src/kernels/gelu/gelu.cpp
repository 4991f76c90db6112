#include "kernels/gelu/gelu.h"

#include "kernels/gelu/gelu_row.h"

namespace drover {
namespace {

auto row_kernel(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512) return internal::gelu_row_avx512;
  if (isa >= Isa::kAvx2) return internal::gelu_row_avx2;
#endif
  (void)isa;
  return internal::gelu_row_plain;
}

}  // namespace

void gelu(Context& context, MatrixView x) { gelu_bias(context, x, nullptr); }

void gelu_bias(Context& context, MatrixView x, const float* bias) {
  const auto row = row_kernel(context.isa);
  context.threads.run(x.rows, [&](int64_t t, int) { row(x.row(t), bias, x.cols); });
}

}  // namespace drover
