// The Gaussian error linear unit in its exact form, for floats and for vectors of floats, from the
// same operations in the same order: a lane of a vector gives the same bits as a lone float, on
// every instruction set. Included by kernels only.
//
//   gelu(x) = x / 2 * (1 + erf(x / sqrt 2)) = x * P(normal < x)
//
// gelu(-infinity) is NaN, 0 times infinity, as the formula has it.
// Source: Hendrycks & Gimpel 2016, arXiv 1606.08415; spec sections 5.4 and 5.6.
#pragma once

#include "kernels/math/normal_tail.h"

namespace drover {

// 1 + erf would lose a small result beside the 1; the tail keeps it.
template <typename F, typename U>
[[gnu::always_inline]] inline F gelu_of(F x) {
  const F tail = normal_tail_of<F, U>(x < 0 ? -x : x);
  return x * (x < 0 ? tail : 1.0f - tail);
}

[[gnu::always_inline]] inline float gelu_of(float x) { return gelu_of<float, uint32_t>(x); }

}  // namespace drover
