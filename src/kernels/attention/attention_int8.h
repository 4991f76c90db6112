// Internal to attention: products of 8-bit pages with 16-bit rows (queries, weights) in whole
// numbers, for the instruction set that the including file is compiled for. Sums are exact, so
// their order is free and each set takes the products that it is fastest at:
//   AVX-512  four in a lane, u8 by s8: a row as two 8-bit digits, a page with 128 added to each
//            number, which is taken off again at the end
//   AVX2     two in a lane, s16 by s16
//   plain    one
// For that a block of a page is laid out anew, in lanes of so many rows of it; it then stays in the
// L1 cache while all rows of the tile meet it.
#pragma once

#include "kernels/attention/attention_task.h"
#include "kernels/attention/attention_vector.h"

namespace drover::DROVER_ATTENTION_ISA {
namespace {

// The largest number of a row: two digits to the base of 256, both in [-127, 127].
constexpr float kMostInRow = 32639.0f;

#if DROVER_VECTOR_FLOATS == 16
constexpr int kDepth = 4;     // products in a lane
constexpr int kDigits = 2;    // of a row
constexpr int kRowBytes = 2;  // of a number of a row, all digits
constexpr int kOffset = 128;  // of a laid out block
#elif DROVER_VECTOR_FLOATS == 8
constexpr int kDepth = 2;
constexpr int kDigits = 1;
constexpr int kRowBytes = 2;
constexpr int kOffset = 0;
#else
constexpr int kDepth = 1;
constexpr int kDigits = 1;
constexpr int kRowBytes = 4;
constexpr int kOffset = 0;
#endif

[[gnu::always_inline]] inline I load_lanes(const int32_t* p) { return load_as<I>(p); }
[[gnu::always_inline]] inline void store_lanes(int32_t* p, I v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

// What an offset adds to a sum may take it beyond 32 bits; once it is taken off again, it is back.
[[gnu::always_inline]] inline I wrapping_add(I a, I b) { return (I)((U)a + (U)b); }

// sum + the products of a lane of a block and a lane of a row.
[[gnu::always_inline]] inline I multiply_add(I sum, I block, I row) {
#if DROVER_VECTOR_FLOATS == 16
  return (I)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)block, (__m512i)row);
#elif DROVER_VECTOR_FLOATS == 8
  return sum + (I)_mm256_madd_epi16((__m256i)block, (__m256i)row);
#else
  return sum + block * row;
#endif
}

// Lays out `rows` rows of kBlockTokens columns, one after the other at `stride` bytes, in lanes of
// kDepth rows: of column j and rows g * kDepth on at to[g * kBlockTokens + j]. Whatever follows the
// last row completes its lanes, and may follow a narrower row: it meets zeros, or nobody reads it.
template <typename Fetch>
inline void lay_out(const int8_t* from, int64_t stride, int64_t rows, int32_t* to, Fetch fetch) {
  for (int64_t i = 0; i < rows; i += kDepth, to += kBlockTokens) {
    const int8_t* row[kDepth];
    for (int l = 0; l < kDepth; ++l) {
      row[l] = from + (i + l) * stride;
      fetch(row[l], 64);
    }
#if DROVER_VECTOR_FLOATS == 16
    // Unpacking works within 128 bits: quarters of 16 columns change places with the quarters of
    // those first, so that columns come out in order.
    const __m512i order = (__m512i)I{0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    const __m512i offset = (__m512i)(I{} + static_cast<int32_t>(0x80808080));
    __m512i x[4], y[4];
    for (int l = 0; l < 4; ++l) {
      x[l] = _mm512_maskz_permutexvar_epi32(0xffff, order, load_as<__m512i>(row[l])) ^ offset;
    }
    y[0] = _mm512_maskz_unpacklo_epi8(~0ull, x[0], x[1]);
    y[1] = _mm512_maskz_unpackhi_epi8(~0ull, x[0], x[1]);
    y[2] = _mm512_maskz_unpacklo_epi8(~0ull, x[2], x[3]);
    y[3] = _mm512_maskz_unpackhi_epi8(~0ull, x[2], x[3]);
    store_lanes(to, (I)_mm512_maskz_unpacklo_epi16(~0u, y[0], y[2]));
    store_lanes(to + 16, (I)_mm512_maskz_unpackhi_epi16(~0u, y[0], y[2]));
    store_lanes(to + 32, (I)_mm512_maskz_unpacklo_epi16(~0u, y[1], y[3]));
    store_lanes(to + 48, (I)_mm512_maskz_unpackhi_epi16(~0u, y[1], y[3]));
#elif DROVER_VECTOR_FLOATS == 8
    for (int64_t j = 0; j < kBlockTokens; j += 16) {
      const __m128i a = load_as<__m128i>(row[0] + j), b = load_as<__m128i>(row[1] + j);
      store_lanes(to + j, (I)_mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b)));
      store_lanes(to + j + 8, (I)_mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a, b)));
    }
#else
    for (int64_t j = 0; j < kBlockTokens; j += W) {
      store_lanes(to + j, widen(load_as<Byte>(row[0] + j)));
    }
#endif
  }
}

// One of the numbers that a row is multiplied by: `digit` 0 is the higher one.
template <int digit>
[[gnu::always_inline]] inline void store_digit(std::byte* to, I numbers) {
#if DROVER_VECTOR_FLOATS == 16
  // The lower digit is the nearest to zero, and what is cut to 8 bits keeps its lower ones.
  const Byte b = __builtin_convertvector(digit == 0 ? (numbers + 128) >> 8 : numbers, Byte);
#elif DROVER_VECTOR_FLOATS == 8
  typedef int16_t Short __attribute__((vector_size(2 * W)));
  const Short b = __builtin_convertvector(numbers, Short);
#else
  const I b = numbers;
#endif
  __builtin_memcpy(to, &b, sizeof(b));
}

// All lanes brought together by `join`, which must not mind their order.
template <typename F>
[[gnu::always_inline]] inline int32_t join_lanes(I lanes, F join) {
  I number;
  for (int l = 0; l < W; ++l) number[l] = l;
#pragma GCC unroll 4
  for (int step = W / 2; step > 0; step /= 2) {
    lanes = join(lanes, __builtin_shuffle(lanes, number ^ step));
  }
  return lanes[0];
}

// How a vector takes its 16-bit form (attention.h).
struct Rounding {
  float unit;
  float inverse;  // 0 if all numbers are
  bool is_finite;

  // x[0, n), n a multiple of 16.
  Rounding(const float* x, int64_t n) {
    // As integers magnitudes compare like floats, and NaN and infinity come out on top.
    const auto larger = [](I a, I b) __attribute__((always_inline)) { return a > b ? a : b; };
    I most = {};
    for (int64_t i = 0; i < n; i += W) {
      most = larger(__builtin_bit_cast(I, load(x + i)) & 0x7fffffff, most);
    }
    const int32_t bits = join_lanes(most, larger);
    const float largest = __builtin_bit_cast(float, bits);
    is_finite = bits < 0x7f800000;
    const bool is_zero = !is_finite || largest < 0x1p-110f;
    unit = !is_finite ? __builtin_nanf("") : is_zero ? 0.0f : largest / kMostInRow;
    inverse = is_zero ? 0.0f : kMostInRow / largest;
  }
  [[gnu::always_inline]] I numbers(const float* x) const {
    // 1.5 * 2^23: adding it leaves the nearest integer, ties to even, in the low bits.
    constexpr float kShift = 12582912.0f;
    const V shifted = load(x) * all(inverse) + all(kShift);
    return is_finite ? __builtin_bit_cast(I, shifted) - __builtin_bit_cast(int32_t, kShift) : I{};
  }
};

// What gives the products of a row their size, and what they lack in a laid out block.
struct RowUnit {
  float unit;
  int32_t missing;
};

// Makes a row of x[0, end), end a multiple of 64: digits of the k'th 64 numbers at `to` + k *
// block_bytes, each kind next_digit bytes after the other. `to` may be x if block_bytes is at most
// that of 64 floats and next_digit stays within.
inline RowUnit make_row(const float* x, int64_t end, std::byte* to, int64_t block_bytes,
                        int64_t next_digit) {
  constexpr int kDigitBytes = kRowBytes / kDigits;
  const Rounding rounding(x, end);
  I sum = {};
  for (int64_t i = 0; i < end; i += 64, to += block_bytes) {
    I numbers[64 / W];
    for (int v = 0; v < 64 / W; ++v) numbers[v] = rounding.numbers(x + i + v * W);
    for (int v = 0; v < 64 / W; ++v) {
      sum += numbers[v];
      store_digit<0>(to + v * W * kDigitBytes, numbers[v]);
      if (kDigits == 2) store_digit<1>(to + next_digit + v * W * kDigitBytes, numbers[v]);
    }
  }
  const int32_t total = join_lanes(
      sum, [](I a, I b) __attribute__((always_inline)) { return a + b; });
  return {rounding.unit, -kOffset * total};
}

// x[0, end) as its 16-bit form has it, end a multiple of 16.
inline void read_back(float* x, int64_t end) {
  const Rounding rounding(x, end);
  for (int64_t i = 0; i < end; i += W) {
    store(x + i, __builtin_convertvector(rounding.numbers(x + i), V) * all(rounding.unit));
  }
}

}  // namespace
}  // namespace drover::DROVER_ATTENTION_ISA
