// The end of a product for one token, written once and compiled once per instruction set. The
// including file sets DROVER_MATMUL_END, the function's name, and DROVER_VECTOR_FLOATS, the floats
// of a vector. Every element goes through the same operations, unfused, so the width never shows in
// the bits.

#include "kernels/math/gelu.h"
#include "kernels/matmul/matmul_end.h"

namespace drover::internal {
namespace {

typedef float V __attribute__((vector_size(4 * DROVER_VECTOR_FLOATS)));
typedef uint32_t U __attribute__((vector_size(4 * DROVER_VECTOR_FLOATS)));

// F is a vector, or one float. Bits is its twin of integers.
template <typename F, typename Bits>
[[gnu::always_inline]] inline void end_of(const float* sum, const float* bias, const MatmulEnd& end,
                                          float* out) {
  F y, other;
  __builtin_memcpy(&y, sum, sizeof(y));
  if (bias != nullptr) {
    __builtin_memcpy(&other, bias, sizeof(other));
    y = y + other;
  }
  if (end.gelu) y = gelu_of<F, Bits>(y);
  if (end.add) {
    __builtin_memcpy(&other, out, sizeof(other));
    y = other + y;
  }
  __builtin_memcpy(out, &y, sizeof(y));
}

}  // namespace

void DROVER_MATMUL_END(const float* sums, const float* bias, const MatmulEnd& end, float* out,
                       int64_t n) {
  int64_t i = 0;
  for (; i + DROVER_VECTOR_FLOATS <= n; i += DROVER_VECTOR_FLOATS) {
    end_of<V, U>(sums + i, bias != nullptr ? bias + i : nullptr, end, out + i);
  }
  for (; i < n; ++i) {
    end_of<float, uint32_t>(sums + i, bias != nullptr ? bias + i : nullptr, end, out + i);
  }
}

}  // namespace drover::internal
