// AMX beside AVX-512: products by the processor's matrix unit, which multiplies a tile of 16 rows
// of 32 bf16 weights by one of 32 columns of 16 tokens.
//
// Weights are the first operand as they lie in the file; activations, which matmul() has packed,
// the second. So nothing is unpacked for few tokens. What comes out has the rows of w as its rows
// and is transposed on its way to the output, once per 16 x 16 outputs.
//
// Many tokens: the rows of a tile in a mapped file lie far apart, often by a power of two, and push
// each other out of the first-level cache. 64 rows by 256 columns are copied to a panel there, or
// rounded on the way if they are of another type, and meet all tokens of the task.
#include "kernels/matmul/matmul_kernels.h"

#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the deliberately undefined operands inside its own intrinsics for a fault (bug
// 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include "kernels/matmul/matmul_unpack.h"
#include "tensor/blocks.h"

namespace drover::internal {
namespace {

constexpr int kLine = 64;  // bytes of a row of a tile
constexpr int kTileBytes = 16 * kLine;
constexpr int kRowTiles = kUnitRows / 16;  // four sums: enough under way to keep the unit busy
constexpr int kMostGroups = 4;             // of tokens that meet weights where they lie
constexpr int64_t kPanelSteps = kUnitPanelCols / kUnitCols;

// Tile registers: the sums of four tiles of rows; two of weights; the upper and the lower terms of
// the activations.
constexpr int kWeights = 4, kHigh = 6, kLow = 7;

// The unit's instructions by register number, which the compiler's own intrinsics want as a
// literal. They reach memory behind its back, so they say so here.
template <int kTile>
[[gnu::always_inline]] inline void load_tile(const void* p, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
[[gnu::always_inline]] inline void store_tile(void* p) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)"
               :
               : "r"(p), "r"(int64_t{kLine}), "i"(kTile)
               : "memory");
}
template <int kTile>
[[gnu::always_inline]] inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
template <int kSum, int kA, int kB>
[[gnu::always_inline]] inline void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
}

// The shapes of the tiles; of activations and sums so many tokens.
void configure_tiles(int64_t tokens) {
  struct alignas(kCacheLine) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int tile = 0; tile < 8; ++tile) {
    const bool weights = tile / 2 == kWeights / 2;
    config.row_bytes[tile] = static_cast<uint16_t>(weights ? kLine : 4 * tokens);
    config.rows[tile] = 16;
  }
  asm volatile("ldtilecfg %0" : : "m"(config));
}

int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

// ---- bf16 ----

// Floats to the nearest bf16, ties to even, in their upper halves.
[[gnu::always_inline]] inline __m512i round_to_bf16(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x400000));
}

// x less its upper term, which is exact; 0 where that is not finite.
[[gnu::always_inline]] inline __m512 rest_of(__m512 x, __m512i rounded) {
  const __m512i mask = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  const __m512 high = _mm512_castsi512_ps(_mm512_and_si512(rounded, mask));
  const __mmask16 finite =
      _mm512_cmp_ps_mask(_mm512_abs_ps(high), _mm512_set1_ps(__builtin_inff()), _CMP_LT_OQ);
  return _mm512_maskz_sub_ps(finite, x, high);
}

// The upper halves of 32 floats, in order.
[[gnu::always_inline]] inline __m512i upper_halves(__m512i first, __m512i second) {
  alignas(64) static constexpr uint16_t kOdd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                    23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                    45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  return _mm512_permutex2var_epi16(first, _mm512_load_si512(kOdd), second);
}

// 16 vectors of 16 lanes: lane l of vector v goes to lane v of vector l.
[[gnu::always_inline]] inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  __m512i u[16];  // [4 * i + c]: columns c, c + 4, c + 8, c + 12 of vectors 4 i ... 4 i + 3
  for (int i = 0; i < 4; ++i) {
    u[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    u[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    u[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    u[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int c = 0; c < 4; ++c) {
    const __m512i even_low = _mm512_shuffle_i32x4(u[c], u[4 + c], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(u[c], u[4 + c], 0xdd);
    const __m512i even_high = _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0x88);
    const __m512i odd_high = _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0xdd);
    r[c] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
    r[4 + c] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
    r[8 + c] = _mm512_shuffle_i32x4(even_low, even_high, 0xdd);
    r[12 + c] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
  }
}

__mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << (count > 0 ? count : 0)) - 1);
}

// Floats k and k + 16 of a row, zeros beyond `count`.
struct Floats {
  __m512 low, high;
  Floats(const float* p, int64_t count)
      : low(_mm512_maskz_loadu_ps(first_lanes(count), p)),
        high(_mm512_maskz_loadu_ps(first_lanes(count - 16), p + 16)) {}
};

// ---- weights: 32 of a row as bf16, zeros beyond `count` ----

struct Bf16Weights {
  static __m512i line(const std::byte* row, int64_t step, int64_t count) {
    const auto lanes = static_cast<__mmask32>(count >= 32 ? ~0u : (1u << count) - 1);
    return _mm512_maskz_loadu_epi16(lanes, row + step * kLine);
  }
};

[[gnu::always_inline]] inline __m512i rounded_line(__m512 low, __m512 high) {
  return upper_halves(round_to_bf16(low), round_to_bf16(high));
}

struct F32Weights {
  static __m512i line(const std::byte* row, int64_t step, int64_t count) {
    const Floats values(reinterpret_cast<const float*>(row) + step * kUnitCols, count);
    return rounded_line(values.low, values.high);
  }
};

struct F16Weights {
  static __m512i line(const std::byte* row, int64_t step, int64_t count) {
    const __m512i halves = Bf16Weights::line(row, step, count);
    return rounded_line(_mm512_cvtph_ps(_mm512_castsi512_si256(halves)),
                        _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1)));
  }
};

struct Q8_0Weights {
  static __m512i line(const std::byte* row, int64_t step, int64_t) {
    const auto* block = reinterpret_cast<const BlockQ8_0*>(row) + step;
    const __m512 scale = _mm512_set1_ps(to_float(block->d));
    const auto weights = [&](const int8_t* q) {  // exact: 11 bits times 8
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q));
      return _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
    };
    return rounded_line(weights(block->q), weights(block->q + 16));
  }
};

// ---- products ----

// One tile of tokens times up to four tiles of rows, over a stretch of K.
struct Stretch {
  const std::byte* w[kRowTiles];
  int64_t w_row;   // bytes from a row to the next
  int64_t w_step;  // bytes from 32 columns to the next
  const std::byte* x;
  int64_t x_row;  // bytes of a pair of columns of the tokens
  int64_t steps;
};

template <int kTiles, int kTerms>
[[gnu::always_inline]] inline void multiply_stretch(const Stretch& stretch) {
  const Stretch s = stretch;
  const std::byte* x = s.x;
  int64_t at = 0;
  for (int64_t step = 0; step < s.steps; ++step) {
    load_tile<kHigh>(x, s.x_row);
    if constexpr (kTerms == 2) load_tile<kLow>(x + 16 * s.x_row, s.x_row);
    // By pairs, so that the second product with a sum does not wait for the first.
    unrolled<(kTiles + 1) / 2>([&](auto pair) __attribute__((always_inline)) {
      constexpr int kFirst = 2 * pair;
      constexpr bool kBoth = kFirst + 1 < kTiles;
      load_tile<kWeights>(s.w[kFirst] + at, s.w_row);
      if constexpr (kBoth) load_tile<kWeights + 1>(s.w[kFirst + 1] + at, s.w_row);
      multiply_tiles<kFirst, kWeights, kHigh>();
      if constexpr (kBoth) multiply_tiles<kFirst + 1, kWeights + 1, kHigh>();
      if constexpr (kTerms == 2) {
        multiply_tiles<kFirst, kWeights, kLow>();
        if constexpr (kBoth) multiply_tiles<kFirst + 1, kWeights + 1, kLow>();
      }
    });
    x += kTerms * 16 * s.x_row;
    at += s.w_step;
  }
}

// Where the sums rest between stretches, and where they go after the last: `tokens` tokens of rows
// [row, row + rows).
struct UnitSums {
  std::byte* resting;
  bool first, last;
  float* out;
  int64_t out_stride, tokens, rows;
};

void write_out(const UnitSums& sums) {
  for (int64_t tile = 0; 16 * tile < sums.rows; ++tile) {
    __m512i lines[16];
    for (int r = 0; r < 16; ++r) {
      lines[r] = _mm512_load_si512(sums.resting + tile * kTileBytes + r * kLine);
    }
    transpose(lines);
    const __mmask16 rows = first_lanes(sums.rows - 16 * tile);
    for (int t = 0; t < 16; ++t) {
      if (t < sums.tokens) {
        _mm512_mask_storeu_epi32(sums.out + t * sums.out_stride + 16 * tile, rows, lines[t]);
      }
    }
  }
}

template <int kTiles, int kTerms>
void multiply_tile_rows(const Stretch& stretch, const UnitSums& sums) {
  unrolled<kTiles>([&](auto tile) __attribute__((always_inline)) {
    if (sums.first) {
      zero_tile<tile>();
    } else {
      load_tile<tile>(sums.resting + tile * kTileBytes, kLine);
    }
  });
  multiply_stretch<kTiles, kTerms>(stretch);
  unrolled<kTiles>([&](auto tile) __attribute__((always_inline)) {
    store_tile<tile>(sums.resting + tile * kTileBytes);
  });
  if (sums.last) write_out(sums);
}

template <int kTerms>
void multiply_rows(const Stretch& stretch, const UnitSums& sums) {
  unrolled<kRowTiles>([&](auto tile) {
    if ((sums.rows + 15) / 16 == tile + 1) multiply_tile_rows<tile + 1, kTerms>(stretch, sums);
  });
}

void multiply_any(const Stretch& stretch, const UnitSums& sums, int terms) {
  terms == 2 ? multiply_rows<2>(stretch, sums) : multiply_rows<1>(stretch, sums);
}

// One tile of rows where they lie times up to four tiles of tokens, over all of K.
template <int kGroups, int kTerms>
void multiply_row_tile(const MatmulTile& tile, const std::byte* w) {
  const PackedTokens& x = tile.packed;
  const int64_t term_bytes = 16 * x.pair_bytes;
  const int64_t group_bytes = kPanelSteps * kTerms * term_bytes;
  unrolled<kGroups>([&](auto group) __attribute__((always_inline)) { zero_tile<group>(); });
  const std::byte* panel = x.data;
  for (int64_t steps = tile.cols / kUnitCols; steps > 0; steps -= kPanelSteps) {
    const std::byte* at = panel;
    for (int64_t step = 0; step < at_most(steps, kPanelSteps); ++step) {
      load_tile<kWeights>(w, tile.w_stride);
      unrolled<kGroups>([&](auto group) __attribute__((always_inline)) {
        load_tile<kHigh>(at + group * group_bytes, x.pair_bytes);
        multiply_tiles<group, kWeights, kHigh>();
        if constexpr (kTerms == 2) {
          load_tile<kLow>(at + group * group_bytes + term_bytes, x.pair_bytes);
          multiply_tiles<group, kWeights, kLow>();
        }
      });
      w += kLine;
      at += kTerms * term_bytes;
    }
    panel += x.panel_bytes;
  }
  unrolled<kGroups>([&](auto group) __attribute__((always_inline)) {
    store_tile<group>(tile.scratch + group * kTileBytes);
  });
}

// Few tokens times weights where they lie: 16 rows at a time, which the hardware's prefetchers
// still follow; of 64 they lose track. Asking for lines of the next rows gained nothing.
void multiply_in_place(const MatmulTile& tile) {
  const int64_t groups = (tile.tokens + kUnitTokens - 1) / kUnitTokens;
  for (int64_t row = tile.row_begin; row < tile.row_end; row += 16) {
    const std::byte* w = tile.w + row * tile.w_stride;
    unrolled<kMostGroups>([&](auto group) {
      if (groups != group + 1) return;
      if (tile.packed.terms == 2) {
        multiply_row_tile<group + 1, 2>(tile, w);
      } else {
        multiply_row_tile<group + 1, 1>(tile, w);
      }
    });
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t token = g * kUnitTokens;
      write_out({tile.scratch + g * kTileBytes, true, true,
                 tile.out + token * tile.out_stride + row, tile.out_stride,
                 at_most(kUnitTokens, tile.tokens - token), /*rows=*/16});
    }
  }
}

// `rows` rows from `row` on, columns from `col` on; zeros where there are none.
template <class Weights>
void fill_panel(const MatmulTile& tile, int64_t row, int64_t rows, int64_t col, std::byte* panel) {
  const int64_t steps = at_most(kPanelSteps, (tile.cols - col + kUnitCols - 1) / kUnitCols);
  for (int64_t r = 0; r < (rows + 15) / 16 * 16; ++r) {
    const std::byte* from = tile.w + (row + r) * tile.w_stride;
    std::byte* to = panel + r / 16 * kPanelSteps * kTileBytes + r % 16 * kLine;
    for (int64_t s = 0; s < steps; ++s) {
      const int64_t step = col / kUnitCols + s;
      const int64_t count = at_most(kUnitCols, tile.cols - step * kUnitCols);
      _mm512_store_si512(to + s * kTileBytes,
                         r < rows ? Weights::line(from, step, count) : _mm512_setzero_si512());
    }
  }
}

template <class Weights>
void multiply_panels(const MatmulTile& tile) {
  std::byte* panel = tile.scratch;
  std::byte* sums = panel + kRowTiles * kPanelSteps * kTileBytes;
  const int64_t groups = (tile.tokens + kUnitTokens - 1) / kUnitTokens;
  const int64_t x_step = tile.packed.terms * 16 * tile.packed.pair_bytes;
  for (int64_t col = 0; col < tile.cols; col += kUnitPanelCols) {
    const std::byte* x = tile.packed.data + col / kUnitPanelCols * tile.packed.panel_bytes;
    std::byte* resting = sums;
    for (int64_t row = tile.row_begin; row < tile.row_end; row += kUnitRows) {
      const int64_t rows = at_most(kUnitRows, tile.row_end - row);
      fill_panel<Weights>(tile, row, rows, col, panel);
      for (int64_t g = 0; g < groups; ++g) {
        Stretch stretch{};
        for (int i = 0; i < kRowTiles; ++i) stretch.w[i] = panel + i * kPanelSteps * kTileBytes;
        stretch.w_row = kLine;
        stretch.w_step = kTileBytes;
        stretch.x = x + g * kPanelSteps * x_step;
        stretch.x_row = tile.packed.pair_bytes;
        stretch.steps = at_most(kPanelSteps, (tile.cols - col + kUnitCols - 1) / kUnitCols);
        multiply_any(stretch,
                     {resting, col == 0, col + kUnitPanelCols >= tile.cols,
                      tile.out + g * kUnitTokens * tile.out_stride + row, tile.out_stride,
                      at_most(kUnitTokens, tile.tokens - g * kUnitTokens), rows},
                     tile.packed.terms);
        resting += kRowTiles * kTileBytes;
      }
    }
  }
}

}  // namespace

void pack_amx(const float* x, int64_t x_stride, int64_t tokens, int64_t cols, int terms,
              int64_t pair_bytes, std::byte* out) {
  const int64_t width = pair_bytes / 4;  // tokens, those included that are not there
  const __mmask16 lanes = first_lanes(width);
  for (int64_t k = 0; k < cols; k += kUnitCols) {
    __m512i high[16], low[16];
    for (int t = 0; t < 16; ++t) {
      if (t >= tokens) {
        high[t] = low[t] = _mm512_setzero_si512();
        continue;
      }
      const Floats values(x + t * x_stride + k, cols - k);
      const __m512i first = round_to_bf16(values.low), second = round_to_bf16(values.high);
      high[t] = upper_halves(first, second);
      low[t] = rounded_line(rest_of(values.low, first), rest_of(values.high, second));
    }
    for (int term = 0; term < terms; ++term) {
      __m512i(&lines)[16] = term == 0 ? high : low;
      if (width == 1) {
        _mm512_storeu_si512(out, lines[0]);
      } else {
        transpose(lines);
        for (int pair = 0; pair < 16; ++pair) {
          _mm512_mask_storeu_epi32(out + pair * pair_bytes, lanes, lines[pair]);
        }
      }
      out += 16 * pair_bytes;
    }
  }
}

void matmul_tile_amx(const MatmulTile& tile) {
  if (!tile.packed.data) return matmul_tile_avx512(tile);
  configure_tiles(tile.packed.pair_bytes / 4);
  const bool whole_tiles = tile.cols % kUnitCols == 0 && tile.w_rows % 16 == 0;
  switch (tile.type) {
    case DType::kBF16:
      if (tile.tokens <= kMostGroups * kUnitTokens && whole_tiles) {
        multiply_in_place(tile);
      } else {
        multiply_panels<Bf16Weights>(tile);
      }
      break;
    case DType::kF16:
      multiply_panels<F16Weights>(tile);
      break;
    case DType::kF32:
      multiply_panels<F32Weights>(tile);
      break;
    default:
      multiply_panels<Q8_0Weights>(tile);
      break;
  }
  asm volatile("tilerelease");
}

}  // namespace drover::internal
#endif
