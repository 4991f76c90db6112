// Internal to kernels on rows: a vector of W floats and loops over a row with it, for the
// instruction set that the including file is compiled for. It sets DROVER_VECTOR_FLOATS = W, which
// divides 16. Unfused, so W never shows in the bits. No library templates here: an inline function
// compiled with AVX-512 must not be picked by the linker for the rest of the program.
#pragma once

#if DROVER_VECTOR_FLOATS > 4
#include <immintrin.h>
#endif

#include <cstdint>

namespace drover::internal {
namespace {

constexpr int W = DROVER_VECTOR_FLOATS;
typedef float V __attribute__((vector_size(4 * W)));
typedef uint32_t U __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));

// The integers that stand for a vector, or for one float.
template <typename F>
struct IntegersOf {
  using Type = U;
};
template <>
struct IntegersOf<float> {
  using Type = uint32_t;
};

[[gnu::always_inline]] inline V load(const float* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
[[gnu::always_inline]] inline void store(float* p, V v) { __builtin_memcpy(p, &v, sizeof(v)); }
[[gnu::always_inline]] inline void store(float* p, float x) { *p = x; }

// Components from p on, as many as `like` has.
[[gnu::always_inline]] inline V take(const float* p, V) { return load(p); }
[[gnu::always_inline]] inline float take(const float* p, float) { return *p; }

[[gnu::always_inline]] inline float square_root(float x) { return __builtin_sqrtf(x); }
[[gnu::always_inline]] inline V square_root(V v) {
#if DROVER_VECTOR_FLOATS == 16
  return _mm512_maskz_sqrt_ps(0xffff, v);  // GCC 12 warns of what the plain one leaves undefined
#elif DROVER_VECTOR_FLOATS == 8
  return _mm256_sqrt_ps(v);
#else
  for (int lane = 0; lane < W; ++lane) v[lane] = __builtin_sqrtf(v[lane]);
  return v;
#endif
}

// What kTerms terms came to.
template <int kTerms>
struct Totals {
  float of[kTerms];
};

// The sums of some terms over i < n, side by side, so that none waits for another. A term is called
// with i and what its result is like: a vector of the components from i on, or one.
template <typename... Terms>
[[gnu::always_inline]] inline Totals<sizeof...(Terms)> sums_of(int64_t n, const Terms&... terms) {
  constexpr int kTerms = sizeof...(terms);
  V partial[kTerms][16 / W] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int v = 0; v < 16 / W; ++v) {
      int s = 0;
      ((partial[s][v] = partial[s][v] + terms(i + v * W, V{}), ++s), ...);
    }
  }
  float sums[kTerms][16];
  for (int s = 0; s < kTerms; ++s) {
    for (int v = 0; v < 16 / W; ++v) store(sums[s] + v * W, partial[s][v]);
  }
  for (int l = 0; i + l < n; ++l) {
    int s = 0;
    ((sums[s][l] += terms(i + l, 0.0f), ++s), ...);
  }
  Totals<kTerms> totals;
  for (int s = 0; s < kTerms; ++s) {
    for (int width = 8; width > 0; width /= 2) {
      for (int l = 0; l < width; ++l) sums[s][l] += sums[s][l + width];
    }
    totals.of[s] = sums[s][0];
  }
  return totals;
}

// The same divided by n.
template <typename... Terms>
[[gnu::always_inline]] inline Totals<sizeof...(Terms)> means_of(int64_t n, const Terms&... terms) {
  Totals<sizeof...(Terms)> totals = sums_of(n, terms...);
  for (float& total : totals.of) total /= static_cast<float>(n);
  return totals;
}
template <typename Term>
[[gnu::always_inline]] inline float mean_of(int64_t n, const Term& term) {
  return means_of(n, term).of[0];
}

// to[i] = map(i, like), a vector of components at a time, and one where there are fewer.
template <typename Map>
[[gnu::always_inline]] inline void map_row(int64_t n, float* to, const Map& map) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store(to + i, map(i, V{}));
  for (; i < n; ++i) store(to + i, map(i, 0.0f));
}

}  // namespace
}  // namespace drover::internal
