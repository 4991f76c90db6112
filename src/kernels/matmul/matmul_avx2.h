// 256-bit vectors: AVX2, FMA and F16C, with or without AVX-VNNI. 8 rows to a vector. Included only
// by the files of the two instruction sets.
//
// Without VNNI bytes are multiplied by vpmaddubsw, which adds two products in 16 bits and would
// saturate: how many products may meet before they widen to 32 bits follows from the bits of a
// code, so that every dot is exact.
#pragma once

#include <immintrin.h>

#include "kernels/matmul/matmul_float.h"
#include "kernels/matmul/matmul_quantized.h"

namespace drover::internal {
namespace {

template <bool kVnni>
struct Avx2 {
  using Int = __m256i;
  using Float = __m256;
  using Lanes = __m256i;
  struct Wide {
    __m256 low, high;
  };
  static constexpr int kRows = 8;
  // Tokens x 2 vectors, each a float and an integer sum, and what they are made from, in 16
  // registers; without VNNI there is more of that.
  static constexpr int kTokens = kVnni ? 3 : 2;
  // 2 x 3 sums of 16 lanes in two registers each.
  static constexpr int kFloatRows = 2;
  static constexpr int kFloatTokens = 3;

  // ---- unpacking ----
  static Int load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static void store(void* p, Int v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
  static void store(float* p, Float v) { _mm256_storeu_ps(p, v); }
  static Int bytes(int value) { return _mm256_set1_epi8(static_cast<char>(value)); }
  static Int dwords(int value) { return _mm256_set1_epi32(value); }
  static Int bit_and(Int a, Int b) { return _mm256_and_si256(a, b); }
  static Int bit_or(Int a, Int b) { return _mm256_or_si256(a, b); }
  static Int and_or(Int a, Int mask, Int b) { return bit_or(bit_and(a, mask), b); }
  template <int kBits>
  static Int shift_right16(Int a) {
    return _mm256_srli_epi16(a, kBits);
  }
  template <int kLeft>
  static Int shift16(Int a) {
    if constexpr (kLeft >= 0) return _mm256_slli_epi16(a, kLeft);
    return _mm256_srli_epi16(a, kLeft < 0 ? -kLeft : 0);
  }
  template <int kLeft>
  static Int shift32(Int a) {
    if constexpr (kLeft >= 0) return _mm256_slli_epi32(a, kLeft);
    return _mm256_srli_epi32(a, kLeft < 0 ? -kLeft : 0);
  }
  static Int add_bytes(Int a, Int b) { return _mm256_add_epi8(a, b); }
  static Int add32(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Int max32(Int a, Int b) { return _mm256_max_epi32(a, b); }
  static Int mul16(Int a, Int b) { return _mm256_mullo_epi16(a, b); }
  static Float to_float(Int a) { return _mm256_cvtepi32_ps(a); }
  static Float as_float(Int a) { return _mm256_castsi256_ps(a); }
  // Tables of 16 bytes, and what stands there at each byte of `index`, which is below 16.
  static Int table(const int8_t values[16]) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
  }
  static Int lookup(Int table, Int index) { return _mm256_shuffle_epi8(table, index); }
  // The weights of 8 bits stay signed: see add_dots.
  static Int signed_codes(Int a) { return kVnni ? _mm256_xor_si256(a, bytes(0x80)) : a; }

  static Int load_two_rows(const std::byte* p, int64_t stride) {
    return _mm256_loadu2_m128i(reinterpret_cast<const __m128i*>(p + 4 * stride),
                               reinterpret_cast<const __m128i*>(p));
  }
  static void load_transposed(const std::byte* p, int64_t stride, Int out[4]) {
    const Int a = load_two_rows(p, stride), b = load_two_rows(p + stride, stride);
    const Int c = load_two_rows(p + 2 * stride, stride);
    const Int d = load_two_rows(p + 3 * stride, stride);
    const Int ab_low = _mm256_unpacklo_epi32(a, b), ab_high = _mm256_unpackhi_epi32(a, b);
    const Int cd_low = _mm256_unpacklo_epi32(c, d), cd_high = _mm256_unpackhi_epi32(c, d);
    out[0] = _mm256_unpacklo_epi64(ab_low, cd_low);
    out[1] = _mm256_unpackhi_epi64(ab_low, cd_low);
    out[2] = _mm256_unpacklo_epi64(ab_high, cd_high);
    out[3] = _mm256_unpackhi_epi64(ab_high, cd_high);
  }

  // 4 bytes of every row, by plain loads: on the processors that have no more than AVX2 a gather
  // takes as many, and longer.
  static Int gather(const std::byte* p, int64_t stride) {
    auto row = [&](int r) {
      int32_t four;
      std::memcpy(&four, p + r * stride, sizeof(four));
      return four;
    };
    return _mm256_setr_epi32(row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7));
  }

  template <int kByte>
  static Int spread_byte(Int a) {
    const Int first = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
    return _mm256_shuffle_epi8(a, _mm256_add_epi8(first, bytes(kByte)));
  }
  static Int sixteen_if_set(Int a) {
    const Int table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 16, 16, 0, 16, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0));
    return _mm256_shuffle_epi8(table, a);
  }
  template <int kByte>
  static Float unsigned_byte(Int a) {
    return _mm256_cvtepi32_ps(bit_and(_mm256_srli_epi32(a, 8 * kByte), dwords(0xff)));
  }
  template <int kByte>
  static Float signed_byte(Int a) {
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(a, 24 - 8 * kByte), 24));
  }
  static Float halves_to_float(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Float high_half_to_float(Int a) {
    const Int halves = _mm256_srli_epi32(a, 16);
    return _mm256_cvtph_ps(
        _mm_packus_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1)));
  }
  static Float low_half_to_float(Int a) { return high_half_to_float(_mm256_slli_epi32(a, 16)); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float negate(Float a) { return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f)); }

  // ---- multiplying ----
  static Float zero() { return _mm256_setzero_ps(); }
  static Lanes lanes_from(int first) {
    return _mm256_cmpgt_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), dwords(first - 1));
  }
  static Float load_lanes(const float* p, Lanes lanes) { return _mm256_maskload_ps(p, lanes); }
  static void store_lanes(float* p, Lanes lanes, Float v) { _mm256_maskstore_ps(p, lanes, v); }

  static Float load_floats(const float* p) { return _mm256_loadu_ps(p); }
  static Float floats(float x) { return _mm256_set1_ps(x); }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Int add_products(Int a, Int b) { return _mm256_madd_epi16(a, b); }

  // Group j of 4 activations, in every lane.
  static Int four_activations(const Int8Block& x, int j) {
    int32_t four;
    std::memcpy(&four, x.q + 4 * j, sizeof(four));
    return dwords(four);
  }

  // kCount groups of 4 values from group kFirst on, added to dot. Without VNNI codes of 8 bits stay
  // signed.
  static constexpr bool kSignedBytes = !kVnni;
  template <class Kind, int kFirst, int kCount, int kVectors, int kTokens>
  [[gnu::always_inline]] static void add_dots(const PanelBlock<Avx2>* panel, const Int8Block* x,
                                              int64_t x_stride, Int (&dot)[kVectors][kTokens]) {
    if constexpr (kVnni) {
      for (int j = kFirst; j < kFirst + kCount; ++j) {
        for (int t = 0; t < kTokens; ++t) {
          const Int activations = four_activations(x[t * x_stride], j);
          for (int v = 0; v < kVectors; ++v) {
            dot[v][t] = _mm256_dpbusd_avx_epi32(dot[v][t], load(panel[v * kPanelBlocks].codes[j]),
                                                activations);
          }
        }
      }
    } else {
      add_pairs<Kind, kFirst, kCount>(panel, x, x_stride, dot);
    }
  }

  template <class Kind, int kFirst, int kCount, int kVectors, int kTokens>
  [[gnu::always_inline]] static void add_pairs(const PanelBlock<Avx2>* panel, const Int8Block* x,
                                               int64_t x_stride, Int (&dot)[kVectors][kTokens]) {
    // Two products of codes below 2^bits and activations within 127: so many pairs fit in 16 bits.
    //   4 bits: 8 * 2 * 15 * 127 = 30480     5 bits: 4 * 2 * 31 * 127 = 31496
    //   6 bits: 2 * 2 * 63 * 127 = 32004     8 bits: 1 * 2 * 128 * 127 = 32512
    constexpr int kPairs = Kind::kBits == 4 ? 8 : Kind::kBits == 5 ? 4 : Kind::kBits == 6 ? 2 : 1;
    constexpr int kStep = kPairs < kCount ? kPairs : kCount;
    for (int j = kFirst; j < kFirst + kCount; j += kStep) {
      Int pairs[kVectors][kTokens];
      for (int i = 0; i < kStep; ++i) {
        Int w[kVectors];
        for (int v = 0; v < kVectors; ++v) w[v] = load(panel[v * kPanelBlocks].codes[j + i]);
        for (int t = 0; t < kTokens; ++t) {
          const Int activations = four_activations(x[t * x_stride], j + i);
          for (int v = 0; v < kVectors; ++v) {
            Int products;
            if constexpr (Kind::kBits == 8) {
              // The sign of the weight moves to the activation, which has no -128 to overflow.
              products =
                  _mm256_maddubs_epi16(_mm256_abs_epi8(w[v]), _mm256_sign_epi8(activations, w[v]));
            } else {
              products = _mm256_maddubs_epi16(w[v], activations);
            }
            pairs[v][t] = i == 0 ? products : _mm256_add_epi16(pairs[v][t], products);
          }
        }
      }
      for (int t = 0; t < kTokens; ++t) {
        for (int v = 0; v < kVectors; ++v) {
          dot[v][t] =
              _mm256_add_epi32(dot[v][t], _mm256_madd_epi16(pairs[v][t], _mm256_set1_epi16(1)));
        }
      }
    }
  }

  // ---- float weights ----
  static Wide wide_zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Wide widen(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static Wide widen(const f16* p) {
    auto eight = [](const f16* q) {
      return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q)));
    };
    return {eight(p), eight(p + 8)};
  }
  static Wide widen(const bf16* p) {
    auto eight = [](const bf16* q) {
      const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q));
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
    };
    return {eight(p), eight(p + 8)};
  }
  static void store_wide(float* p, Wide v) {
    _mm256_storeu_ps(p, v.low);
    _mm256_storeu_ps(p + 8, v.high);
  }
  static Wide wide_fma(Wide a, Wide b, Wide c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  // The totals of kCount vectors to out[0 ... kCount): lanes 8, then 4, then 2, then 1 apart.
  template <int kCount>
  [[gnu::always_inline]] static void store_totals(const Wide* v, float* out) {
    for (int i = 0; i < kCount; ++i) {
      const __m256 eight = _mm256_add_ps(v[i].low, v[i].high);
      __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
      four = _mm_add_ps(four, _mm_movehl_ps(four, four));
      _mm_store_ss(out + i, _mm_add_ss(four, _mm_movehdup_ps(four)));
    }
  }
};

}  // namespace
}  // namespace drover::internal
