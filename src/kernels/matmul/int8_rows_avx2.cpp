#include "kernels/matmul/int8_rows.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace drover::internal {
namespace {

// The sums of the 16 bytes of each half, in lanes 0 and 2 of the result's 64-bit numbers.
__m128i sum_halves(__m256i q) {
  // psadbw sums unsigned bytes: lift by 128, take 16 * 128 off.
  const __m256i lifted = _mm256_xor_si256(q, _mm256_set1_epi8(static_cast<char>(0x80)));
  const __m256i quarters = _mm256_sad_epu8(lifted, _mm256_setzero_si256());
  const __m128i low = _mm256_castsi256_si128(quarters);
  const __m128i high = _mm256_extracti128_si256(quarters, 1);
  const __m128i sums = _mm_add_epi32(_mm_unpacklo_epi64(low, high), _mm_unpackhi_epi64(low, high));
  return _mm_sub_epi32(sums, _mm_set_epi32(0, 16 * 128, 0, 16 * 128));
}

}  // namespace

void quantize_row_avx2(const float* x, int64_t blocks, Int8Block* out) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  for (int64_t b = 0; b < blocks; ++b, x += 32) {
    __m256 v[4];
    for (int i = 0; i < 4; ++i) v[i] = _mm256_loadu_ps(x + 8 * i);
    // As unsigned integers magnitudes compare like floats, and NaN and infinity come out on top.
    __m256i m = _mm256_castps_si256(_mm256_and_ps(v[0], magnitude));
    for (int i = 1; i < 4; ++i) {
      m = _mm256_max_epu32(m, _mm256_castps_si256(_mm256_and_ps(v[i], magnitude)));
    }
    __m128i n = _mm_max_epu32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    n = _mm_max_epu32(n, _mm_shuffle_epi32(n, 0x4e));
    n = _mm_max_epu32(n, _mm_shuffle_epi32(n, 0xb1));
    const auto largest_bits = static_cast<uint32_t>(_mm_cvtsi128_si32(n));
    const float largest = _mm_cvtss_f32(_mm_castsi128_ps(n));

    Int8Block& block = out[b];
    const bool finite = largest_bits < 0x7f800000;
    if (!finite || largest < kSmallestActivation) {
      block.scale = finite ? 0.0f : __builtin_nanf("");
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(block.q), _mm256_setzero_si256());
      set_sums(block, 0, 0);
      continue;
    }
    const __m256 factor = _mm256_set1_ps(127 / largest);
    __m256i q[4];
    for (int i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], factor));
    // The packs work within 128-bit lanes; the permutation puts the groups of four back in order.
    const __m256i packed = _mm256_permutevar8x32_epi32(
        _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3])),
        _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_store_si256(reinterpret_cast<__m256i*>(block.q), packed);

    const __m128i halves = sum_halves(packed);
    const int32_t first = _mm_cvtsi128_si32(halves), last = _mm_extract_epi32(halves, 2);
    block.scale = largest / 127;
    set_sums(block, first, last);
  }
}

}  // namespace drover::internal
#endif
