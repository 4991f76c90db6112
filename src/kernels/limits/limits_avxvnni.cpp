#include <immintrin.h>

#include "kernels/limits/limits_kernels.h"

namespace drover {
namespace {

constexpr int kSums = 12;
constexpr int kRepeat = 4;

int32_t int8(int64_t rounds, int8_t value) {
  const __m256i a = _mm256_set1_epi8(value);
  __m256i sums[kSums];
#pragma GCC unroll 12
  for (int j = 0; j < kSums; ++j) sums[j] = _mm256_set1_epi32(j);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kRepeat; ++i) {
#pragma GCC unroll 12
      for (int j = 0; j < kSums; ++j) sums[j] = _mm256_dpbusd_avx_epi32(sums[j], a, a);
    }
  }
#pragma GCC unroll 12
  for (int j = 1; j < kSums; ++j) sums[0] = _mm256_add_epi32(sums[0], sums[j]);
  return _mm256_extract_epi32(sums[0], 0);
}

}  // namespace

// All but the dot product is that of AVX2.
LimitKernels limit_kernels_avxvnni() {
  LimitKernels kernels = limit_kernels_avx2();
  kernels.int8 = int8;
  kernels.int8_operations = int64_t{kSums} * kRepeat * 64;
  return kernels;
}

}  // namespace drover
