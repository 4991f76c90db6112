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

// gelu'(x) = P(normal < x) + x e^(-x^2 / 2) / sqrt(2 pi), of which the tail has the exponential
// already. Beyond 13 either way it is 1 or 0. NaN gives NaN.
template <typename F, typename U>
[[gnu::always_inline]] inline F gelu_slope_of(F x) {
  const F a = x < 0 ? -x : x;
  const F bell = exp_of<F, U>(x * x * -0.5f);
  const F tail = a > 13.0f ? F{} : bell * normal_tail_ratio_of<F>(a);
  const F bend = a > 13.0f ? F{} : x * (bell * 0.398942280401432678f);
  return (x < 0 ? tail : 1.0f - tail) + bend;
}

[[gnu::always_inline]] inline float gelu_slope_of(float x) {
  return gelu_slope_of<float, uint32_t>(x);
}

// gelu(x) for a result that will be rounded to bf16, of which it is a sixteenth of half a unit: in
// a third of the time, without a division and with fused steps, fma(a, b, c) = a b + c.
//
//   gelu(x) = max(x, 0) - a 2^h(a),  a = |x|,  h(a) = log2 P(normal > a)
//
// h is nearly a parabola: of degree 6 on [0, 7], where it is best at the largest error. The result
// is within 2^-13 of gelu(x) for x >= -7, and below, where a counts as 7, between 0 and -1e-11.
// NaN gives NaN.
template <typename F, typename U, typename Fma>
[[gnu::always_inline]] inline F gelu_to_round(F x, const Fma& fma) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer
  constexpr uint32_t kShiftBits = 0x4b400000;
  const F zero{}, most = zero + 7.0f;
  F a = x < zero ? -x : x;
  a = a > most ? most : a;
  F h = fma(zero + 1.748765862e-05f, a, zero - 0.0005137292319f);
  h = fma(h, a, zero + 0.006554157007f);
  h = fma(h, a, zero - 0.04925563186f);
  h = fma(h, a, zero - 0.4638671279f);
  h = fma(h, a, zero - 1.14891398f);
  h = fma(h, a, zero - 1.000162959f);
  const F shifted = h + kShift;
  const F r = h - (shifted - kShift);
  F p = fma(zero + 0.009570102207f, r, zero + 0.05591785908f);  // 2^r, within 2.6e-6 of it
  p = fma(p, r, zero + 0.2402474433f);
  p = fma(p, r, zero + 0.6931217909f);
  p = fma(p, r, zero + 0.9999992847f);
  const U exponent = __builtin_bit_cast(U, shifted) - kShiftBits + 127u;
  const F tail = p * __builtin_bit_cast(F, exponent << 23);
  return fma(-a, tail, x > zero ? x : zero);
}

[[gnu::always_inline]] inline float gelu_to_round(float x) {
  return gelu_to_round<float, uint32_t>(
      x, [](float a, float b, float c) { return __builtin_fmaf(a, b, c); });
}

}  // namespace drover
