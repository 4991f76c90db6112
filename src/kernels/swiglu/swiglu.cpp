#include "kernels/swiglu/swiglu.h"

#include "kernels/swiglu/swiglu_row.h"

namespace drover {
namespace {

auto row_kernel(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512) return internal::swiglu_row_avx512;
  if (isa != Isa::kPlain) return internal::swiglu_row_avx2;
#endif
  (void)isa;
  return internal::swiglu_row_plain;
}

}  // namespace

void swiglu(Context& context, MatrixView gate, ConstMatrixView up) {
  const auto row = row_kernel(context.isa);
  context.threads.run(gate.rows, [&](int64_t t, int) { row(gate.row(t), up.row(t), gate.cols); });
}

}  // namespace drover
