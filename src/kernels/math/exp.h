// e^x for floats and for vectors of floats, from the same operations in the same order: a lane of a
// vector gives the same bits as a lone float, on every instruction set. Included by kernels only.
//
//   n = round(x log2 e),  r = x - n ln 2,  e^x = 2^n p(r),  |r| <= ln 2 / 2
//
// p(r) = 1 + r + r^2 s(r), s of degree 4 through (e^r - 1 - r) / r^2 at the Chebyshev points of the
// interval: 1.1e-8 relative from e^r. The whole is within 2 ulp for x in [-87, 88]. Outside, x is
// clamped: the smallest result is 1.6e-38 and the largest 1.6e38. NaN gives NaN.
#pragma once

#include <cstdint>

namespace drover {

template <typename F, typename U>
[[gnu::always_inline]] inline F exp_of(F x) {
  // 1.5 * 2^23: adding it leaves the nearest integer, ties to even, in the low bits of the float.
  constexpr float kShift = 12582912.0f;
  constexpr uint32_t kShiftBits = 0x4b400000;
  const F low = F{} - 87.0f, high = F{} + 88.0f;
  x = x < low ? low : x;  // a NaN compares false and goes through
  x = x > high ? high : x;
  const F shifted = x * 1.44269504088896341f + kShift;
  const F n = shifted - kShift;
  // ln 2 in two parts; the first has few bits, so that n times it is exact.
  const F r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  F p = r * 0.001392618359f + 0.008363179053f;
  p = p * r + 0.04166655462f;
  p = p * r + 0.1666657699f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const U exponent = __builtin_bit_cast(U, shifted) - kShiftBits + 127u;
  return p * __builtin_bit_cast(F, exponent << 23);
}

[[gnu::always_inline]] inline float exp_of(float x) { return exp_of<float, uint32_t>(x); }

}  // namespace drover
