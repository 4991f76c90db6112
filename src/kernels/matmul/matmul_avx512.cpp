// AVX-512 F, BW, VL, DQ and VNNI. 16 rows to a vector; the integer dots are vpdpbusd, whose second
// operand comes straight from the activations, broadcast.
#include "kernels/matmul/matmul_kernels.h"

#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the deliberately undefined operands inside its own intrinsics for a fault (bug
// 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include "kernels/matmul/matmul_float.h"
#include "kernels/matmul/matmul_quantized.h"

namespace drover::internal {
namespace {

struct Avx512 {
  using Int = __m512i;
  using Float = __m512;
  using Lanes = __mmask16;
  using Wide = __m512;
  static constexpr int kRows = 16;
  // 6 tokens x 2 vectors: 12 float and 12 integer sums, 2 vectors of weights, 1 of activations.
  static constexpr int kTokens = 6;
  // 4 x 6 sums of 16 lanes: 24 products for 10 loads.
  static constexpr int kFloatRows = 4;
  static constexpr int kFloatTokens = 6;

  // ---- unpacking ----
  static Int load(const void* p) { return _mm512_loadu_si512(p); }
  static void store(void* p, Int v) { _mm512_storeu_si512(p, v); }
  static void store(float* p, Float v) { _mm512_storeu_ps(p, v); }
  static Int bytes(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }
  static Int dwords(int value) { return _mm512_set1_epi32(value); }
  static Int bit_and(Int a, Int b) { return _mm512_and_si512(a, b); }
  static Int bit_or(Int a, Int b) { return _mm512_or_si512(a, b); }
  static Int and_or(Int a, Int mask, Int b) { return _mm512_ternarylogic_epi32(a, mask, b, 0xea); }
  template <int kBits>
  static Int shift_right16(Int a) {
    return _mm512_srli_epi16(a, kBits);
  }
  template <int kLeft>
  static Int shift16(Int a) {
    if constexpr (kLeft >= 0) return _mm512_slli_epi16(a, kLeft);
    return _mm512_srli_epi16(a, kLeft < 0 ? -kLeft : 0);
  }
  template <int kLeft>
  static Int shift32(Int a) {
    if constexpr (kLeft >= 0) return _mm512_slli_epi32(a, kLeft);
    return _mm512_srli_epi32(a, kLeft < 0 ? -kLeft : 0);
  }
  static Int add_bytes(Int a, Int b) { return _mm512_add_epi8(a, b); }
  static Int add32(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Int max32(Int a, Int b) { return _mm512_max_epi32(a, b); }
  static Int mul16(Int a, Int b) { return _mm512_mullo_epi16(a, b); }
  static Float to_float(Int a) { return _mm512_cvtepi32_ps(a); }
  static Float as_float(Int a) { return _mm512_castsi512_ps(a); }
  // Tables of 16 bytes, and what stands there at each byte of `index`, which is below 16.
  static Int table(const int8_t values[16]) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
  }
  static Int lookup(Int table, Int index) { return _mm512_shuffle_epi8(table, index); }
  // The weights of 8 bits become unsigned by an offset of 128.
  static Int signed_codes(Int a) { return _mm512_xor_si512(a, bytes(0x80)); }

  // Rows 0, 4, 8, 12 from p in the four 128-bit lanes.
  static Int load_four_rows(const std::byte* p, int64_t stride) {
    auto row = [&](int r) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + r * stride));
    };
    __m512i v = _mm512_castsi128_si512(row(0));
    v = _mm512_inserti32x4(v, row(4), 1);
    v = _mm512_inserti32x4(v, row(8), 2);
    return _mm512_inserti32x4(v, row(12), 3);
  }
  static void load_transposed(const std::byte* p, int64_t stride, Int out[4]) {
    const Int a = load_four_rows(p, stride), b = load_four_rows(p + stride, stride);
    const Int c = load_four_rows(p + 2 * stride, stride);
    const Int d = load_four_rows(p + 3 * stride, stride);
    const Int ab_low = _mm512_unpacklo_epi32(a, b), ab_high = _mm512_unpackhi_epi32(a, b);
    const Int cd_low = _mm512_unpacklo_epi32(c, d), cd_high = _mm512_unpackhi_epi32(c, d);
    out[0] = _mm512_unpacklo_epi64(ab_low, cd_low);
    out[1] = _mm512_unpackhi_epi64(ab_low, cd_low);
    out[2] = _mm512_unpacklo_epi64(ab_high, cd_high);
    out[3] = _mm512_unpackhi_epi64(ab_high, cd_high);
  }

  // 4 bytes of every row.
  static Int gather(const std::byte* p, int64_t stride) {
    const Int rows = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const Int offsets = _mm512_mullo_epi32(rows, dwords(static_cast<int>(stride)));
    return _mm512_i32gather_epi32(offsets, p, 1);
  }

  // Byte kByte of each 32-bit lane in all four of its bytes.
  template <int kByte>
  static Int spread_byte(Int a) {
    const Int first =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
    return _mm512_shuffle_epi8(a, _mm512_add_epi8(first, bytes(kByte)));
  }
  // Bytes of 1, 2, 4, 8 to 16; 0 stays.
  static Int sixteen_if_set(Int a) {
    const Int table =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 16, 16, 0, 16, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0));
    return _mm512_shuffle_epi8(table, a);
  }
  template <int kByte>
  static Float unsigned_byte(Int a) {
    return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(a, 8 * kByte), dwords(0xff)));
  }
  template <int kByte>
  static Float signed_byte(Int a) {
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(a, 24 - 8 * kByte), 24));
  }
  static Float halves_to_float(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Float low_half_to_float(Int a) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a)); }
  static Float high_half_to_float(Int a) { return low_half_to_float(_mm512_srli_epi32(a, 16)); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float negate(Float a) { return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f)); }

  // ---- multiplying ----
  static Float zero() { return _mm512_setzero_ps(); }
  static Lanes lanes_from(int first) { return static_cast<Lanes>(0xffff << first); }
  static Float load_lanes(const float* p, Lanes lanes) { return _mm512_maskz_loadu_ps(lanes, p); }
  static void store_lanes(float* p, Lanes lanes, Float v) { _mm512_mask_storeu_ps(p, lanes, v); }

  static Float load_floats(const float* p) { return _mm512_loadu_ps(p); }
  static Float floats(float x) { return _mm512_set1_ps(x); }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Int add_products(Int a, Int b) { return _mm512_madd_epi16(a, b); }

  // kCount groups of 4 values from group kFirst on, added to dot.
  static constexpr bool kSignedBytes = false;
  template <class Kind, int kFirst, int kCount, int kVectors, int kTokens>
  [[gnu::always_inline]] static void add_dots(const PanelBlock<Avx512>* panel, const Int8Block* x,
                                              int64_t x_stride, Int (&dot)[kVectors][kTokens]) {
    for (int j = kFirst; j < kFirst + kCount; ++j) {
      Int w[kVectors];
      for (int v = 0; v < kVectors; ++v) w[v] = load(panel[v * kPanelBlocks].codes[j]);
      for (int t = 0; t < kTokens; ++t) {
        int32_t four;
        std::memcpy(&four, x[t * x_stride].q + 4 * j, sizeof(four));
        const Int activations = dwords(four);
        for (int v = 0; v < kVectors; ++v) {
          dot[v][t] = _mm512_dpbusd_epi32(dot[v][t], w[v], activations);
        }
      }
    }
  }

  // ---- float weights ----
  static Wide wide_zero() { return _mm512_setzero_ps(); }
  static Wide widen(const float* p) { return _mm512_loadu_ps(p); }
  static Wide widen(const f16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Wide widen(const bf16* p) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  static void store_wide(float* p, Wide v) { _mm512_storeu_ps(p, v); }
  static Wide wide_fma(Wide a, Wide b, Wide c) { return _mm512_fmadd_ps(a, b, c); }

  // The totals of kCount vectors to out[0 ... kCount): lanes 8, then 4, then 2, then 1 apart.
  template <int kCount>
  [[gnu::always_inline]] static void store_totals(const Wide* v, float* out) {
    if constexpr (kCount == 4) {
      auto halves = [](Wide a, Wide b) {  // 8 sums of a, then 8 of b
        return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
      };
      const Wide ab = halves(v[0], v[1]), cd = halves(v[2], v[3]);
      Wide quarters =
          _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
      quarters = _mm512_add_ps(quarters, _mm512_permute_ps(quarters, 0x4e));
      quarters = _mm512_add_ps(quarters, _mm512_permute_ps(quarters, 0xb1));
      const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
      _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, quarters)));
    } else {
      static_assert(kCount == 1);
      const __m256 eight =
          _mm256_add_ps(_mm512_castps512_ps256(v[0]), _mm512_extractf32x8_ps(v[0], 1));
      __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
      four = _mm_add_ps(four, _mm_movehl_ps(four, four));
      _mm_store_ss(out, _mm_add_ss(four, _mm_movehdup_ps(four)));
    }
  }
};

}  // namespace

void matmul_tile_avx512(const MatmulTile& tile) {
  if (multiply_if_float<Avx512>(tile)) return;
  if (tile.w_rows < Avx512::kRows) return matmul_tile_avx2(tile);
  multiply_if_quantized<Avx512>(tile);
}

}  // namespace drover::internal
#endif
