// Products of bf16 for packed attention, on the processor's matrix unit; sums stay in float.
//
// The first operand of a product is 32 rows as they lie, the second 32 columns whose numbers lie in
// pairs. Scores being transposed, every form is made by rounding, by bringing two neighbouring rows
// together, and, for what is as small as keys and rows, by turning the pairs.
#define DROVER_ATTENTION_ISA packed_attention_amx
#define DROVER_VECTOR_FLOATS 16
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the deliberately undefined operands inside its own intrinsics for a fault (bug
// 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include "kernels/matmul/matrix_unit.h"
#include "kernels/packed_attention/packed_attention_impl.h"

namespace drover::DROVER_ATTENTION_ISA {
namespace {

constexpr int64_t kUnit = 32;  // rows, columns and terms of a product

// 16 floats at p, as far as `n` reaches, times scale.
[[gnu::always_inline]] inline V load_some(const float* p, int64_t n, float scale) {
  if (n >= 16) return load(p) * scale;
  const auto mask = static_cast<__mmask16>(n > 0 ? (1 << n) - 1 : 0);
  return (V)_mm512_maskz_loadu_ps(mask, p) * scale;
}

// The nearest bf16 of each: those of `low`, then those of `high`.
[[gnu::always_inline]] inline __m512i round_both(V low, V high) {
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

// The two halves, number by number.
[[gnu::always_inline]] inline __m512i in_pairs(__m512i halves) {
  alignas(64) static constexpr uint16_t kPlaces[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                       21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                       11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kPlaces), halves);
}

// Rows of floats, read as far as there are any; zeros beyond.
struct Source {
  PackedRows from;
  int64_t rows, cols;
  float scale;

  // 32 numbers of a row from column i on.
  __m512i line(int64_t row, int64_t i) const {
    if (row >= rows) return _mm512_setzero_si512();
    const float* p = from.data + row * from.stride + i;
    return round_both(load_some(p, cols - i, scale), load_some(p + 16, cols - i - 16, scale));
  }
  // 16 pairs of numbers of this row and the next.
  __m512i pairs(int64_t row, int64_t i) const {
    if (row >= rows) return _mm512_setzero_si512();
    const float* p = from.data + row * from.stride + i;
    const V next = row + 1 < rows ? load_some(p + from.stride, cols - i, scale) : V{};
    return in_pairs(round_both(load_some(p, cols - i, scale), next));
  }
};

// 32 rows of a times 32 columns of b, over 32 * steps terms; set or added. Strides are in elements.
template <bool kAdd>
void multiply(const Bf16* a, int64_t a_stride, const uint32_t* b, int64_t b_stride, int64_t steps,
              float* to, int64_t to_stride) {
  const int64_t a_bytes = 2 * a_stride, b_bytes = 4 * b_stride, to_bytes = 4 * to_stride;
  float* const below = to + 16 * to_stride;
  if constexpr (kAdd) {
    load_tile<0>(to, to_bytes);
    load_tile<1>(to + 16, to_bytes);
    load_tile<2>(below, to_bytes);
    load_tile<3>(below + 16, to_bytes);
  } else {
    zero_tile<0>();
    zero_tile<1>();
    zero_tile<2>();
    zero_tile<3>();
  }
  for (int64_t step = 0; step < steps; ++step, a += kUnit, b += 16 * b_stride) {
    load_tile<kRowTile>(a, a_bytes);
    load_tile<kColumnTile>(b, b_bytes);
    multiply_tiles<0, kRowTile, kColumnTile>();
    load_tile<kColumnTile + 1>(b + 16, b_bytes);
    multiply_tiles<1, kRowTile, kColumnTile + 1>();
    load_tile<kRowTile + 1>(a + 16 * a_stride, a_bytes);
    multiply_tiles<2, kRowTile + 1, kColumnTile>();
    multiply_tiles<3, kRowTile + 1, kColumnTile + 1>();
  }
  store_tile<0>(to, to_bytes);
  store_tile<1>(to + 16, to_bytes);
  store_tile<2>(below, to_bytes);
  store_tile<3>(below + 16, to_bytes);
}

struct MatrixUnit {
  static constexpr int64_t kStep = kUnit;  // to which rows and components are filled up
  static constexpr int64_t kKeyStep = kUnit;
  static constexpr int kTerms = 4;  // of exponentials

  struct Keys {
    int64_t d, width;
    Bf16* plain;   // [keys][width], or null
    Bf16* turned;  // [width][kBlockKeys] of each block, or null

    Keys(Scratch& scratch, int64_t head_dim, int64_t n, bool with_plain, bool with_turned)
        : d(head_dim),
          width(up_to(d, kUnit)),
          plain(with_plain ? scratch.take<Bf16>(n * width) : nullptr),
          turned(with_turned ? scratch.take<Bf16>(n * width) : nullptr) {}

    // Of the block that begins with key p.
    Bf16* block(int64_t p) const { return turned + p * width; }

    void take(PackedRows from, int64_t n) {
      const Source source{from, n, d, 1.0f};
      const int64_t end = up_to(n, kUnit);
      for (int64_t p = 0; p < end && plain != nullptr; ++p) {
        for (int64_t i = 0; i < width; i += kUnit) {
          _mm512_store_si512(plain + p * width + i, source.line(p, i));
        }
      }
      for (int64_t p = 0; p < end && turned != nullptr; p += kUnit) {
        Bf16* to = block(p / kBlockKeys * kBlockKeys) + p % kBlockKeys;
        for (int64_t i = 0; i < width; i += 16) {
          __m512i lines[16];
          for (int j = 0; j < 16; ++j) lines[j] = source.pairs(p + 2 * j, i);
          transpose(lines);
          for (int j = 0; j < 16; ++j) _mm512_store_si512(to + (i + j) * kBlockKeys, lines[j]);
        }
      }
    }
  };

  // Pairs of components, and pairs of rows.
  struct Rows {
    int64_t d, width;
    uint32_t* turned;  // [width / 2][kBlockRows]
    uint32_t* plain;   // [kBlockRows / 2][width], or null

    Rows(Scratch& scratch, int64_t head_dim, bool with_plain)
        : d(head_dim),
          width(up_to(d, kUnit)),
          turned(scratch.take<uint32_t>(width / 2 * kBlockRows)),
          plain(with_plain ? scratch.take<uint32_t>(kBlockRows / 2 * width) : nullptr) {}

    void take(PackedRows from, int64_t rows, float scale) {
      const Source source{from, rows, d, scale};
      const int64_t end = up_to(rows, kUnit);
      for (int64_t r = 0; r < end; r += 16) {
        for (int64_t i = 0; i < width; i += kUnit) {
          __m512i lines[16];
          for (int j = 0; j < 16; ++j) lines[j] = source.line(r + j, i);
          transpose(lines);
          for (int j = 0; j < 16; ++j) {
            _mm512_store_si512(turned + (i / 2 + j) * kBlockRows + r, lines[j]);
          }
        }
      }
      for (int64_t r = 0; r < end && plain != nullptr; r += 2) {
        for (int64_t i = 0; i < width; i += 16) {
          _mm512_store_si512(plain + r / 2 * width + i, source.pairs(r, i));
        }
      }
    }
  };

  // For products with keys pairs of keys, for those with rows as they come.
  template <bool kForKeys, bool kForRows>
  struct Weights {
    float* scores;    // [kBlockKeys][kBlockRows]
    uint32_t* pairs;  // [kBlockKeys / 2][kBlockRows]
    Bf16* plain;      // [kBlockKeys][kBlockRows]

    explicit Weights(Scratch& scratch)
        : scores(scratch.take<float>(kBlockKeys * kBlockRows)),
          pairs(kForKeys ? scratch.take<uint32_t>(kBlockKeys / 2 * kBlockRows) : nullptr),
          plain(kForRows ? scratch.take<Bf16>(kBlockKeys * kBlockRows) : nullptr) {}

    [[gnu::always_inline]] void keep(int64_t p, int64_t lane, V even, V odd) {
      const __m512i both = round_both(even, odd);
      if constexpr (kForRows) {
        Bf16* to = plain + p * kBlockRows + lane;
        _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm512_castsi512_si256(both));
        _mm256_store_si256(reinterpret_cast<__m256i*>(to + kBlockRows),
                           _mm512_extracti64x4_epi64(both, 1));
      }
      if constexpr (kForKeys) {
        _mm512_store_si512(pairs + p / 2 * kBlockRows + lane, in_pairs(both));
      }
    }
  };

  static void scores(const Keys& keys, int64_t first, const Rows& rows, const Meeting& m,
                     float* to) {
    for (int64_t p = 0; p < m.keys; p += kUnit) {
      for (int64_t r = m.first_row(p) / kUnit * kUnit; r < m.rows; r += kUnit) {
        multiply<false>(keys.plain + (first + p) * keys.width, keys.width, rows.turned + r,
                        kBlockRows, keys.width / kUnit, to + p * kBlockRows + r, kBlockRows);
      }
    }
  }

  template <typename Weights>
  static void add_keys(const Keys& keys, int64_t first, const Weights& weights, const Meeting& m,
                       float* to) {
    for (int64_t r = 0; r < m.rows; r += kUnit) {
      const int64_t steps = up_to(m.end_key(r + kUnit - 1), kUnit) / kUnit;
      for (int64_t i = 0; i < keys.width; i += kUnit) {
        multiply<true>(keys.block(first) + i * kBlockKeys, kBlockKeys, weights.pairs + r,
                       kBlockRows, steps, to + i * kBlockRows + r, kBlockRows);
      }
    }
  }

  template <typename Weights>
  static void add_rows(const Weights& weights, const Rows& rows, const Meeting& m, float* to) {
    for (int64_t p = 0; p < m.keys; p += kUnit) {
      const int64_t begin = m.first_row(p) / kUnit * kUnit;
      const int64_t steps = (up_to(m.rows, kUnit) - begin) / kUnit;
      for (int64_t i = 0; i < rows.width; i += kUnit) {
        multiply<true>(weights.plain + p * kBlockRows + begin, kBlockRows,
                       rows.plain + begin / 2 * rows.width + i, rows.width, steps,
                       to + p * rows.width + i, rows.width);
      }
    }
  }
};

void forward(const PackedForward& task) {
  configure_tiles();
  Forward<MatrixUnit>(task).run();
  release_tiles();
}

void backward(const PackedBackward& task) {
  configure_tiles();
  Backward<MatrixUnit>(task).run();
  release_tiles();
}

}  // namespace
}  // namespace drover::DROVER_ATTENTION_ISA

namespace drover {

const PackedFunctions kPackedAmx = {
    packed_attention_amx::forward, packed_attention_amx::backward,
    packed_attention_amx::forward_scratch<packed_attention_amx::MatrixUnit>,
    packed_attention_amx::backward_scratch<packed_attention_amx::MatrixUnit>};

}  // namespace drover
