// The body of swiglu, written once and compiled once per instruction set. The including file sets
// DROVER_SWIGLU_ROW, the function's name, and DROVER_VECTOR_FLOATS, the floats of a vector. Every
// element goes through the same operations, unfused, so the width never shows in the bits.

#include "kernels/math/exp.h"
#include "kernels/swiglu/swiglu_row.h"

namespace drover::internal {
namespace {

typedef float V __attribute__((vector_size(4 * DROVER_VECTOR_FLOATS)));
typedef uint32_t U __attribute__((vector_size(4 * DROVER_VECTOR_FLOATS)));

template <typename F, typename Bits>
[[gnu::always_inline]] inline F gated(F gate, F up) {
  return gate / (1.0f + exp_of<F, Bits>(-gate)) * up;
}

}  // namespace

void DROVER_SWIGLU_ROW(float* gate, const float* up, int64_t n) {
  int64_t i = 0;
  for (; i + DROVER_VECTOR_FLOATS <= n; i += DROVER_VECTOR_FLOATS) {
    V g, u;
    __builtin_memcpy(&g, gate + i, sizeof(g));
    __builtin_memcpy(&u, up + i, sizeof(u));
    g = gated<V, U>(g, u);
    __builtin_memcpy(gate + i, &g, sizeof(g));
  }
  for (; i < n; ++i) gate[i] = gated<float, uint32_t>(gate[i], up[i]);
}

}  // namespace drover::internal
