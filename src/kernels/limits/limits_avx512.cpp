#include <immintrin.h>

#include "kernels/limits/limits_kernels.h"

namespace drover {
namespace {

// Two multipliers of five cycles want ten sums under way; sixteen leave a margin, and half of the
// registers.
constexpr int kSums = 16;
constexpr int kRepeat = 4;  // so that counting rounds costs nothing

uint64_t read(const std::byte* data, size_t bytes) {
  __m512i sums[4] = {};
  for (size_t i = 0; i < bytes; i += 256) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      sums[j] = _mm512_xor_si512(sums[j], _mm512_load_si512(data + i + 64 * j));
    }
  }
  const __m512i sum =
      _mm512_xor_si512(_mm512_xor_si512(sums[0], sums[1]), _mm512_xor_si512(sums[2], sums[3]));
  alignas(64) uint64_t parts[8];
  _mm512_store_si512(parts, sum);
  return parts[0] ^ parts[1] ^ parts[2] ^ parts[3] ^ parts[4] ^ parts[5] ^ parts[6] ^ parts[7];
}

int32_t int8(int64_t rounds, int8_t value) {
  const __m512i a = _mm512_set1_epi8(value), b = _mm512_set1_epi8(3);
  __m512i sums[kSums];
#pragma GCC unroll 16
  for (int j = 0; j < kSums; ++j) sums[j] = _mm512_set1_epi32(j);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kRepeat; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < kSums; ++j) sums[j] = _mm512_dpbusd_epi32(sums[j], a, b);
    }
  }
#pragma GCC unroll 16
  for (int j = 1; j < kSums; ++j) sums[0] = _mm512_add_epi32(sums[0], sums[j]);
  alignas(64) int32_t lanes[16];
  _mm512_store_si512(lanes, sums[0]);
  return lanes[0];
}

float floats(int64_t rounds, float value) {
  const __m512 a = _mm512_set1_ps(value), b = _mm512_set1_ps(0.5f);
  __m512 sums[kSums];
#pragma GCC unroll 16
  for (int j = 0; j < kSums; ++j) sums[j] = _mm512_set1_ps(static_cast<float>(j));
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kRepeat; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < kSums; ++j) sums[j] = _mm512_fmadd_ps(a, b, sums[j]);
    }
  }
#pragma GCC unroll 16
  for (int j = 1; j < kSums; ++j) sums[0] = _mm512_add_ps(sums[0], sums[j]);
  alignas(64) float lanes[16];
  _mm512_store_ps(lanes, sums[0]);
  return lanes[0];
}

}  // namespace

LimitKernels limit_kernels_avx512() {
  return {read, int8, floats, int64_t{kSums} * kRepeat * 128, int64_t{kSums} * kRepeat * 32};
}

}  // namespace drover
