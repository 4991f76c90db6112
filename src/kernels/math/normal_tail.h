// P(normal > x) = erfc(x / sqrt 2) / 2 for x >= 0, for floats and for vectors of floats, from the
// same operations in the same order: a lane of a vector gives the same bits as a lone float, on
// every instruction set. Included by kernels only.
//
//   tail(x) = e^(-x^2 / 2) p(x) / q(x)
//
// p of degree 4 with p(0) = 1/2 and q of degree 5 with q(0) = 1, so that p / q goes through
// e^(x^2 / 2) erfc(x / sqrt 2) / 2 at nine points: x = 4 s / (1 - s) for the Chebyshev points s of
// [0, 13.2 / 17.2], which stand closest where the function bends most. It is 1.1e-8 relative from
// it on [0, 13.2], and no coefficient is negative: nothing cancels in the sums.
// The whole is within 4 ulp and x^2 / 4 more, by which the rounding of x^2 moves the exponential.
// Beyond 13 the tail is smaller than the smallest normal float, and 0 here. NaN gives NaN.
#pragma once

#include "kernels/math/exp.h"

namespace drover {

// p(x) / q(x), the tail over e^(-x^2 / 2).
template <typename F>
[[gnu::always_inline]] inline F normal_tail_ratio_of(F x) {
  F p = x * 0.003751831785f + 0.03826694411f;
  p = p * x + 0.1763609785f;
  p = p * x + 0.4292484558f;
  p = p * x + 0.5f;
  F q = x * 0.009404274244f + 0.09592976676f;
  q = q * x + 0.4512839734f;
  q = q * x + 1.174322525f;
  q = q * x + 1.656381485f;
  q = q * x + 1.0f;
  return p / q;
}

template <typename F, typename U>
[[gnu::always_inline]] inline F normal_tail_of(F x) {
  const F tail = exp_of<F, U>(x * x * -0.5f) * normal_tail_ratio_of<F>(x);
  return x > 13.0f ? F{} : tail;
}

[[gnu::always_inline]] inline float normal_tail_of(float x) {
  return normal_tail_of<float, uint32_t>(x);
}

}  // namespace drover
