// Internal to attention: a vector of W floats and what the kernels do with one, for the instruction
// set that the including file is compiled for. It sets DROVER_ATTENTION_ISA (a namespace of its
// own, so that no code crosses over between sets) and DROVER_VECTOR_FLOATS = W. No library
// templates here: an inline function compiled with AVX-512 must not be picked by the linker for the
// rest of the program.
#pragma once

#include <cstdint>

#if DROVER_VECTOR_FLOATS > 4
#include <immintrin.h>
#endif

namespace drover::DROVER_ATTENTION_ISA {
namespace {

constexpr int W = DROVER_VECTOR_FLOATS;
typedef float V __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));
typedef uint32_t U __attribute__((vector_size(4 * W)));
typedef uint16_t Half __attribute__((vector_size(2 * W)));
typedef int8_t Byte __attribute__((vector_size(W)));

// A bf16 of a cache page; a type of its own, for overloads.
struct Bf16 {
  uint16_t bits;
};

template <typename T>
[[gnu::always_inline]] inline T load_as(const void* p) {
  T v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
[[gnu::always_inline]] inline V load(const float* p) { return load_as<V>(p); }
// The masked forms of AVX-512, with a full mask: GCC 12 warns about its own header in the others.
#if DROVER_VECTOR_FLOATS == 16
[[gnu::always_inline]] inline U widen(Half h) {
  return (U)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)h);
}
[[gnu::always_inline]] inline I widen(Byte b) {
  return (I)_mm512_maskz_cvtepi8_epi32(0xffff, (__m128i)b);
}
#elif DROVER_VECTOR_FLOATS == 8
[[gnu::always_inline]] inline U widen(Half h) { return (U)_mm256_cvtepu16_epi32((__m128i)h); }
[[gnu::always_inline]] inline I widen(Byte b) {
  return (I)_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(__builtin_bit_cast(int64_t, b)));
}
#else
[[gnu::always_inline]] inline U widen(Half h) { return __builtin_convertvector(h, U); }
[[gnu::always_inline]] inline I widen(Byte b) { return __builtin_convertvector(b, I); }
#endif
[[gnu::always_inline]] inline V load(const Bf16* p) {
  return __builtin_bit_cast(V, widen(load_as<Half>(p)) << 16);
}
[[gnu::always_inline]] inline V load(const int8_t* p) {
  return __builtin_convertvector(widen(load_as<Byte>(p)), V);
}

[[gnu::always_inline]] inline void store(float* p, V v) { __builtin_memcpy(p, &v, sizeof(v)); }
// To nearest, ties to even; a NaN stays one. The same as to_bf16 (tensor/float16.h).
[[gnu::always_inline]] inline void store(Bf16* p, V v) {
  const U u = __builtin_bit_cast(U, v);
  const U rounded = u + 0x7fff + ((u >> 16) & 1);
  const U nan = u | 0x400000;
  const Half h = __builtin_convertvector((v == v ? rounded : nan) >> 16, Half);
  __builtin_memcpy(p, &h, sizeof(h));
}
// v holds whole numbers in [-127, 127].
[[gnu::always_inline]] inline void store(int8_t* p, V v) {
  const Byte b = __builtin_convertvector(__builtin_convertvector(v, I), Byte);
  __builtin_memcpy(p, &b, sizeof(b));
}

// x in every lane; a b + c with one rounding; the larger of two, b if either is NaN.
[[gnu::always_inline]] inline float fma(float a, float b, float c) {
  return __builtin_fmaf(a, b, c);
}
[[gnu::always_inline]] inline float max(float a, float b) { return a > b ? a : b; }
#if DROVER_VECTOR_FLOATS == 16
[[gnu::always_inline]] inline V all(float x) { return _mm512_set1_ps(x); }
[[gnu::always_inline]] inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
[[gnu::always_inline]] inline V max(V a, V b) { return _mm512_maskz_max_ps(0xffff, a, b); }
#elif DROVER_VECTOR_FLOATS == 8
[[gnu::always_inline]] inline V all(float x) { return _mm256_set1_ps(x); }
[[gnu::always_inline]] inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
[[gnu::always_inline]] inline V max(V a, V b) { return _mm256_max_ps(a, b); }
#else
[[gnu::always_inline]] inline V all(float x) { return V{x, x, x, x}; }
[[gnu::always_inline]] inline V fma(V a, V b, V c) {
  for (int l = 0; l < W; ++l) c[l] = __builtin_fmaf(a[l], b[l], c[l]);
  return c;
}
[[gnu::always_inline]] inline V max(V a, V b) { return a > b ? a : b; }
#endif

// Sixteen numbers brought together by `join`, which is commutative: number l with l + 8, then with
// l + 4, l + 2 and l + 1. Every lane of the result holds it.
template <typename F>
[[gnu::always_inline]] inline V join_all(V (&numbers)[16 / W], F join) {
  for (int half = 16 / W / 2; half > 0; half /= 2) {
    for (int v = 0; v < half; ++v) numbers[v] = join(numbers[v], numbers[v + half]);
  }
  V all = numbers[0];
  I lane;
  for (int l = 0; l < W; ++l) lane[l] = l;
#pragma GCC unroll 4
  for (int step = W / 2; step > 0; step /= 2) {
    all = join(all, __builtin_shuffle(all, lane ^ step));
  }
  return all;
}

// e^x for x <= 0, with the polynomial of math/exp.h and its error, in fused steps: half of the
// operations, which count here, where every score needs one. Below -87 the result is that of -87;
// NaN gives NaN.
template <typename F, typename Bits>
[[gnu::always_inline]] inline F exp_of_negative(F x) {
  // 1.5 * 2^23 + 127: adding it leaves the nearest integer, ties to even, plus the bias of a
  // float's exponent in the low bits.
  constexpr float kShift = 12582912.0f + 127.0f;
  x = max(F{} - 87.0f, x);
  const F shifted = fma(x, F{} + 1.44269504088896341f, F{} + kShift);
  const F n = shifted - kShift;
  F r = fma(n, F{} - 0.693359375f, x);
  r = fma(n, F{} + 2.12194440e-4f, r);
  F p = fma(r, F{} + 0.001392618359f, F{} + 0.008363179053f);
  p = fma(p, r, F{} + 0.04166655462f);
  p = fma(p, r, F{} + 0.1666657699f);
  p = fma(p, r, F{} + 0.5f);
  p = fma(p, r, F{} + 1.0f);
  p = fma(p, r, F{} + 1.0f);
  return p * __builtin_bit_cast(F, __builtin_bit_cast(Bits, shifted) << 23);
}
[[gnu::always_inline]] inline V exp_of_negative(V x) { return exp_of_negative<V, U>(x); }
[[gnu::always_inline]] inline float exp_of_negative(float x) {
  return exp_of_negative<float, uint32_t>(x);
}

// A number known to the compiler, passed as an argument.
template <int N>
struct Constant {
  static constexpr int value = N;
};

}  // namespace
}  // namespace drover::DROVER_ATTENTION_ISA
