// The body of gelu, written once and compiled once per instruction set. The including file sets
// DROVER_GELU_ROW, the function's name, and DROVER_VECTOR_FLOATS, the floats of a vector. Every
// element goes through the same operations, unfused, so the width never shows in the bits.

#include "kernels/gelu/gelu_row.h"
#include "kernels/math/normal_tail.h"

namespace drover::internal {
namespace {

typedef float V __attribute__((vector_size(4 * DROVER_VECTOR_FLOATS)));
typedef uint32_t U __attribute__((vector_size(4 * DROVER_VECTOR_FLOATS)));

// 1 + erf would lose a small result beside the 1; the tail keeps it.
template <typename F, typename Bits>
[[gnu::always_inline]] inline F gelu_of(F x) {
  const F tail = normal_tail_of<F, Bits>(x < 0 ? -x : x);
  return x * (x < 0 ? tail : 1.0f - tail);
}

}  // namespace

void DROVER_GELU_ROW(float* x, const float* bias, int64_t n) {
  int64_t i = 0;
  for (; i + DROVER_VECTOR_FLOATS <= n; i += DROVER_VECTOR_FLOATS) {
    V v, b;
    __builtin_memcpy(&v, x + i, sizeof(v));
    if (bias != nullptr) {
      __builtin_memcpy(&b, bias + i, sizeof(b));
      v += b;
    }
    v = gelu_of<V, U>(v);
    __builtin_memcpy(x + i, &v, sizeof(v));
  }
  for (; i < n; ++i) x[i] = gelu_of<float, uint32_t>(bias != nullptr ? x[i] + bias[i] : x[i]);
}

}  // namespace drover::internal
