#include <immintrin.h>

#include "kernels/limits/limits_kernels.h"

namespace drover {
namespace {

// Twelve sums and two operands fit the sixteen registers; two multipliers of five cycles want ten.
constexpr int kSums = 12;
constexpr int kRepeat = 4;  // so that counting rounds costs nothing

uint64_t read(const std::byte* data, size_t bytes) {
  __m256i sums[8] = {};
  for (size_t i = 0; i < bytes; i += 256) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      sums[j] = _mm256_xor_si256(
          sums[j], _mm256_load_si256(reinterpret_cast<const __m256i*>(data + i + 32 * j)));
    }
  }
#pragma GCC unroll 8
  for (int j = 1; j < 8; ++j) sums[0] = _mm256_xor_si256(sums[0], sums[j]);
  alignas(32) uint64_t parts[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(parts), sums[0]);
  return parts[0] ^ parts[1] ^ parts[2] ^ parts[3];
}

// AVX2 has no 8-bit dot product: pairs go to 16 bits, those to 32, and then they are added.
int32_t int8(int64_t rounds, int8_t value) {
  const __m256i a = _mm256_set1_epi8(value), ones = _mm256_set1_epi16(1);
  __m256i sums[kSums];
#pragma GCC unroll 12
  for (int j = 0; j < kSums; ++j) sums[j] = _mm256_set1_epi32(j);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kRepeat; ++i) {
#pragma GCC unroll 12
      for (int j = 0; j < kSums; ++j) {
        // The sum itself is an operand: a product that never changes would be taken out of the
        // loop.
        const __m256i pairs = _mm256_maddubs_epi16(a, sums[j]);
        sums[j] = _mm256_add_epi32(sums[j], _mm256_madd_epi16(pairs, ones));
      }
    }
  }
#pragma GCC unroll 12
  for (int j = 1; j < kSums; ++j) sums[0] = _mm256_add_epi32(sums[0], sums[j]);
  return _mm256_extract_epi32(sums[0], 0);
}

float floats(int64_t rounds, float value) {
  const __m256 a = _mm256_set1_ps(value), b = _mm256_set1_ps(0.5f);
  __m256 sums[kSums];
#pragma GCC unroll 12
  for (int j = 0; j < kSums; ++j) sums[j] = _mm256_set1_ps(static_cast<float>(j));
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kRepeat; ++i) {
#pragma GCC unroll 12
      for (int j = 0; j < kSums; ++j) sums[j] = _mm256_fmadd_ps(a, b, sums[j]);
    }
  }
#pragma GCC unroll 12
  for (int j = 1; j < kSums; ++j) sums[0] = _mm256_add_ps(sums[0], sums[j]);
  return _mm256_cvtss_f32(sums[0]);
}

}  // namespace

LimitKernels limit_kernels_avx2() {
  return {read, int8, floats, int64_t{kSums} * kRepeat * 64, int64_t{kSums} * kRepeat * 16};
}

}  // namespace drover
