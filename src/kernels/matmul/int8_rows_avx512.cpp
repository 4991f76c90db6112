#include "kernels/matmul/int8_rows.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace drover::internal {
namespace {

// Blocks whose largest magnitudes are found together, so that the last steps of four reductions are
// one, and so are their divisions. A pair of blocks fills a vector from there on.
constexpr int kTogether = 4;

// The largest of the 16 magnitudes of each of four vectors. As unsigned integers magnitudes compare
// like floats, and NaN and infinity come out on top. The masked extracts, with a full mask: GCC 12
// warns about its own header in the plain ones.
__m128i largest_of_each(const __m512i (&m)[kTogether]) {
  __m128i quarters[kTogether];
  for (int b = 0; b < kTogether; ++b) {
    const __m256i halves = _mm256_max_epu32(_mm512_maskz_extracti64x4_epi64(0xf, m[b], 0),
                                            _mm512_maskz_extracti64x4_epi64(0xf, m[b], 1));
    quarters[b] =
        _mm_max_epu32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
  }
  const __m128i first = _mm_max_epu32(_mm_unpacklo_epi32(quarters[0], quarters[1]),
                                      _mm_unpackhi_epi32(quarters[0], quarters[1]));
  const __m128i last = _mm_max_epu32(_mm_unpacklo_epi32(quarters[2], quarters[3]),
                                     _mm_unpackhi_epi32(quarters[2], quarters[3]));
  return _mm_max_epu32(_mm_unpacklo_epi64(first, last), _mm_unpackhi_epi64(first, last));
}

// What follows q in the two blocks of 32 integers each, but for the scale, which is 0.
__m512i sums_of(__m512i q) {
  // psadbw sums unsigned bytes: lift by 128, and take 16 * 128 off each half of a block.
  const __m512i lifted = _mm512_xor_si512(q, _mm512_set1_epi8(static_cast<char>(0x80)));
  const __m512i quarters = _mm512_sad_epu8(lifted, _mm512_setzero_si512());
  const __m512i halves = _mm512_add_epi32(
      quarters, _mm512_maskz_shuffle_epi32(0xffff, quarters, static_cast<_MM_PERM_ENUM>(0x4e)));
  // scale, sum, start8, start16, start128, start32[0], start32[1], sums[0]: of the first half of a
  // block and, but for the three of one half only, of the last.
  const __m512i one = _mm512_maskz_permutexvar_epi32(
      0xfefe, _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 4, 0, 8, 8, 8, 8, 8, 8, 12, 8), halves);
  const __m512i other = _mm512_maskz_permutexvar_epi32(
      0x1e1e, _mm512_setr_epi32(4, 4, 4, 4, 4, 4, 4, 4, 12, 12, 12, 12, 12, 12, 12, 12), halves);
  const __m512i offsets = _mm512_setr_epi32(0, 4096, 4096, 4096, 4096, 2048, 2048, 2048,  //
                                            0, 4096, 4096, 4096, 4096, 2048, 2048, 2048);
  const __m512i factors = _mm512_setr_epi32(0, 1, -8, -16, -128, -32, -32, 1,  //
                                            0, 1, -8, -16, -128, -32, -32, 1);
  const __m512i starts = _mm512_maskz_set1_epi32(0x7c7c, kFloatStart);
  const __m512i scaled = _mm512_add_epi32(
      _mm512_mullo_epi32(_mm512_sub_epi32(_mm512_add_epi32(one, other), offsets), factors), starts);
  // sums[1] shares a lane with sums[0], as its upper half.
  const __m512i last = _mm512_maskz_permutexvar_epi32(
      0x8080, _mm512_setr_epi32(4, 4, 4, 4, 4, 4, 4, 4, 12, 12, 12, 12, 12, 12, 12, 12), halves);
  const __m512i upper =
      _mm512_maskz_slli_epi32(0xffff, _mm512_sub_epi32(last, _mm512_set1_epi32(2048)), 16);
  const __m512i all = _mm512_mask_blend_epi16(0x80008000, scaled, upper);
  return _mm512_castps_si512(_mm512_mask_cvtepi32_ps(_mm512_castsi512_ps(all), 0x0202, all));
}

}  // namespace

void quantize_row_avx512(const float* x, int64_t blocks, Int8Block* out) {
  // The packs work within 128-bit lanes; this puts the groups of four back in order.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  int64_t b = 0;
  for (; b + kTogether <= blocks; b += kTogether, x += 32 * kTogether) {
    __m512 v[2 * kTogether];
    for (int i = 0; i < 2 * kTogether; ++i) v[i] = _mm512_loadu_ps(x + 16 * i);
    __m512i m[kTogether];
    for (int k = 0; k < kTogether; ++k) {
      m[k] =
          _mm512_maskz_max_epu32(0xffff, _mm512_and_si512(_mm512_castps_si512(v[2 * k]), magnitude),
                                 _mm512_and_si512(_mm512_castps_si512(v[2 * k + 1]), magnitude));
    }
    const __m128i bits = largest_of_each(m);
    const __m128 largest = _mm_castsi128_ps(bits);
    // A block of zeros, or with a NaN or an infinity, is rare: the other form knows what to do.
    const int usual = _mm_cmplt_epu32_mask(bits, _mm_set1_epi32(0x7f800000)) &
                      _mm_cmp_ps_mask(largest, _mm_set1_ps(kSmallestActivation), _CMP_GE_OQ);
    if (usual != 0xf) {
      quantize_row_avx2(x, kTogether, out + b);
      continue;
    }
    alignas(16) float scales[kTogether], inverses[kTogether];
    _mm_store_ps(scales, _mm_div_ps(largest, _mm_set1_ps(127)));
    _mm_store_ps(inverses, _mm_div_ps(_mm_set1_ps(127), largest));
    for (int pair = 0; pair < kTogether; pair += 2) {
      __m512i q[4];
      for (int i = 0; i < 4; ++i) {
        q[i] = _mm512_maskz_cvtps_epi32(
            0xffff, _mm512_mul_ps(v[2 * pair + i], _mm512_set1_ps(inverses[pair + i / 2])));
      }
      const __m512i bytes = _mm512_maskz_permutexvar_epi32(
          0xffff, order,
          _mm512_packs_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3])));
      const __m512i rest = sums_of(bytes);
      for (int half = 0; half < 2; ++half) {
        const auto part = [&](__m512i of) __attribute__((always_inline)) {
          return half == 0 ? _mm512_maskz_extracti64x4_epi64(0xf, of, 0)
                           : _mm512_maskz_extracti64x4_epi64(0xf, of, 1);
        };
        Int8Block& block = out[b + pair + half];
        _mm256_store_si256(reinterpret_cast<__m256i*>(block.q), part(bytes));
        _mm256_store_si256(reinterpret_cast<__m256i*>(&block.scale), part(rest));
        block.scale = scales[pair + half];
      }
    }
  }
  quantize_row_avx2(x, blocks - b, out + b);
}

}  // namespace drover::internal
#endif
