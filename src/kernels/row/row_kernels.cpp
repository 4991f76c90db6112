#include "kernels/row/row_kernels.h"

#include "kernels/isa.h"

namespace drover::internal {

const RowKernels& row_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512) return kRowAvx512;
  if (isa != Isa::kPlain) return kRowAvx2;
#endif
  (void)isa;
  return kRowPlain;
}

}  // namespace drover::internal
