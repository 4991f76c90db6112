// AMX beside AVX-512: products by the processor's matrix unit, which multiplies a tile of 16 rows
// of 32 bf16 weights by one of 32 columns of 16 tokens.
//
// Weights are the first operand as they lie in the file; activations, which matmul() has packed,
// the second. So nothing is unpacked. What comes out has the rows of w as its rows and is
// transposed on its way to the output, once per 16 x 16 outputs.
//
// Many tokens: sums of 32 rows x 32 tokens stay in the unit over all columns of a cut, so that each
// of its products asks for one tile of 1 KB, and the second-level cache gives nearly that: it holds
// the activations of the task and the 32 rows that meet them, which stay where they lie if they are
// bf16 and are rounded to a copy if not. Measured on a core of a Sapphire Rapids at K = 1408, where
// the unit alone does 2.55 TFLOP/s: 1.8 of these products in a loop of their own, 1.0 to 1.2 of
// whole calls.
#include "kernels/matmul/matmul_kernels.h"

#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the deliberately undefined operands inside its own intrinsics for a fault (bug
// 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include "kernels/math/gelu.h"
#include "kernels/matmul/matmul_unpack.h"
#include "kernels/matmul/matrix_unit.h"
#include "tensor/blocks.h"

namespace drover::internal {
namespace {

constexpr int kLine = 64;  // bytes of a row of a tile
constexpr int kTileBytes = 16 * kLine;
constexpr int kMostGroups = 4;  // of tokens that meet weights where they lie
constexpr int64_t kPanelSteps = kUnitPanelCols / kUnitCols;

constexpr int kWeights = kRowTile, kTokens = kColumnTile;

// Asks for a line that will be overwritten.
[[gnu::always_inline]] inline void expect_line(void* p) {
  asm volatile("prefetchw (%0)" : : "r"(p));
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

// By the processor's own rounding, which makes zeros of numbers that the unit takes for zeros.
[[gnu::always_inline]] inline __m512i rounded_line(__m512 low, __m512 high) {
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
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

// ---- sums to the output ----

typedef float Lanes __attribute__((vector_size(kLine)));
typedef uint32_t LaneBits __attribute__((vector_size(kLine)));

// 16 x 16 sums to the output, rows of w side by side; of `tokens` tokens, `rows` of the rows.
// `row` is the first.
void write_out(const MatmulTile& tile, const std::byte* sums, int64_t row, int64_t rows, float* out,
               int64_t tokens) {
  __m512i lines[16];
  for (int r = 0; r < 16; ++r) lines[r] = _mm512_load_si512(sums + r * kLine);
  transpose(lines);
  const __mmask16 lanes = first_lanes(rows);
  const MatmulEnd& end = tile.end;
  Lanes bias{};
  if (end.bias != nullptr) bias = _mm512_maskz_loadu_ps(lanes, end.bias + row);
  for (int t = 0; t < 16; ++t) {
    if (t >= tokens) continue;
    Lanes y = _mm512_castsi512_ps(lines[t]);
    if (end.bias != nullptr) y = y + bias;
    if (end.gelu) y = gelu_of<Lanes, LaneBits>(y);
    float* const to = out + t * tile.out_stride;
    if (end.add) y = _mm512_maskz_loadu_ps(lanes, to) + y;
    _mm512_mask_storeu_ps(to, lanes, y);
  }
}

// 16 x 16 sums to a turned output, which is at the first row and token; `rows` of the rows,
// `tokens` of the tokens. The bias is at the first token.
void write_turned(const MatmulTile& tile, const std::byte* sums, int64_t rows, const float* bias,
                  float* out, int64_t tokens) {
  const __mmask16 lanes = first_lanes(tokens);
  const __m512 more = bias != nullptr ? _mm512_maskz_loadu_ps(lanes, bias) : _mm512_setzero_ps();
  for (int64_t r = 0; r < at_most(rows, 16); ++r) {
    __m512 y = _mm512_load_ps(sums + r * kLine);
    float* const to = out + r * tile.out_stride;
    if (bias != nullptr) y = _mm512_add_ps(y, more);
    if (tile.end.add) y = _mm512_add_ps(_mm512_maskz_loadu_ps(lanes, to), y);
    _mm512_mask_storeu_ps(to, lanes, y);
  }
}

// The sums of two rows of w and 16 tokens, rounded, to a line of packed tokens; `rows` of the rows
// are there, and zeros stand for others.
void write_pair(const MatmulTile& tile, const std::byte* sums, int64_t row, int64_t rows,
                std::byte* out) {
  __m512i rounded[2] = {};
  for (int r = 0; r < 2; ++r) {
    if (r >= rows) continue;
    Lanes y = _mm512_load_ps(sums + r * kLine);
    if (tile.end.bias != nullptr) y = y + tile.end.bias[row + r];
    if (tile.end.gelu) {
      y = gelu_to_round<Lanes, LaneBits>(
          y, [](Lanes a, Lanes b, Lanes c) { return Lanes(_mm512_fmadd_ps(a, b, c)); });
    }
    rounded[r] = round_to_bf16(y);
  }
  const auto upper = static_cast<__mmask32>(0xaaaaaaaa);
  _mm512_store_si512(out,
                     _mm512_mask_blend_epi16(upper, _mm512_srli_epi32(rounded[0], 16), rounded[1]));
}

// ---- products ----

// One tile of rows where they lie times up to four tiles of tokens, over all of K.
template <int kGroups, int kTerms>
void multiply_row_tile(const MatmulTile& tile, const std::byte* w) {
  const PackedTokens& x = tile.packed;
  const int64_t unit_bytes = kPanelSteps * kTerms * x.term_bytes;
  unrolled<kGroups>([&](auto group) __attribute__((always_inline)) { zero_tile<group>(); });
  const std::byte* panel = x.data;
  for (int64_t steps = tile.cols / kUnitCols; steps > 0; steps -= kPanelSteps) {
    const std::byte* at = panel;
    for (int64_t step = 0; step < at_most(steps, kPanelSteps); ++step) {
      load_tile<kWeights>(w, tile.w_stride);
      unrolled<kGroups>([&](auto group) __attribute__((always_inline)) {
        const std::byte* high = at + group / 2 * unit_bytes + group % 2 * kTileBytes;
        load_tile<kTokens>(high, x.pair_bytes);
        multiply_tiles<group, kWeights, kTokens>();
        if constexpr (kTerms == 2) {
          load_tile<kTokens + 1>(high + x.term_bytes, x.pair_bytes);
          multiply_tiles<group, kWeights, kTokens + 1>();
        }
      });
      w += kLine;
      at += kTerms * x.term_bytes;
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
      write_out(tile, tile.scratch + g * kTileBytes, row, /*rows=*/16,
                tile.out + token * tile.out_stride + row, tile.tokens - token);
    }
  }
}

// 32 rows of weights over the columns of a cut, where the unit loads them: where they lie, or a
// copy.
struct RowBlock {
  int64_t row, rows;  // rows that there are; the copy has zeros for the others
  int64_t col, steps;
  bool in_place;
  const std::byte* data;
  int64_t row_bytes, tile_bytes, step_bytes;  // from one to the next
};

RowBlock row_block(const MatmulTile& tile, int64_t row, int64_t col) {
  RowBlock block{};
  block.row = row;
  block.rows = at_most(kTileRows, tile.w_rows - row);
  block.col = col;
  block.steps = (at_most(tile.cut_cols, tile.cols - col) + kUnitCols - 1) / kUnitCols;
  // A tile of rows that straddle cache lines would load twice as many; a copy costs less.
  block.in_place = tile.type == DType::kBF16 && block.rows == kTileRows &&
                   tile.w_stride % kLine == 0 && reinterpret_cast<uintptr_t>(tile.w) % kLine == 0;
  if (block.in_place) {
    block.data = tile.w + row * tile.w_stride + 2 * col;
    block.row_bytes = tile.w_stride;
    block.tile_bytes = 16 * tile.w_stride;
    block.step_bytes = kLine;
  } else {
    block.data = tile.scratch;
    block.row_bytes = kLine;
    block.tile_bytes = kTileBytes;
    block.step_bytes = 2 * kTileBytes;
  }
  return block;
}

// The copy. Made a little at a time while the unit works it would cost as much: its stores make
// loads of tiles wait that agree with them in the last 12 bits of the address.
template <class Weights>
void fill(const MatmulTile& tile, const RowBlock& block) {
  // By panels, 16 KB of the copy: whole rows would land in two sets of the first-level cache.
  for (int64_t first = 0; first < block.steps; first += kPanelSteps) {
    const int64_t end = at_most(block.steps, first + kPanelSteps);
    for (int64_t r = 0; r < kTileRows; ++r) {
      const std::byte* row = tile.w + (block.row + r) * tile.w_stride;
      std::byte* to = tile.scratch + r * kLine;  // a row is a line, tile after tile
      for (int64_t step = first; step < end; ++step) {
        const int64_t col = block.col + step * kUnitCols;
        _mm512_store_si512(to + step * block.step_bytes,
                           r < block.rows ? Weights::line(row, col / kUnitCols,
                                                          at_most(kUnitCols, tile.cols - col))
                                          : _mm512_setzero_si512());
      }
    }
  }
}

// 32 columns: two tiles of rows by two of tokens, first with their upper terms. That tokens pass by
// the first-level cache, where weights want to stay, makes 1.79 TFLOP/s of 1.69 at K = 1408.
template <int kTerms>
[[gnu::always_inline]] inline void multiply_step(const RowBlock& block, const std::byte* w,
                                                 const std::byte* x) {
  load_tile<kWeights>(w, block.row_bytes);
  load_passing_tile<kTokens>(x, kLine);
  multiply_tiles<0, kWeights, kTokens>();
  load_passing_tile<kTokens + 1>(x + kTileBytes, kLine);
  multiply_tiles<1, kWeights, kTokens + 1>();
  load_tile<kWeights + 1>(w + block.tile_bytes, block.row_bytes);
  multiply_tiles<2, kWeights + 1, kTokens>();
  multiply_tiles<3, kWeights + 1, kTokens + 1>();
  if constexpr (kTerms == 2) {
    load_passing_tile<kTokens>(x + 2 * kTileBytes, kLine);
    multiply_tiles<0, kWeights, kTokens>();
    multiply_tiles<2, kWeights + 1, kTokens>();
    load_passing_tile<kTokens + 1>(x + 3 * kTileBytes, kLine);
    multiply_tiles<1, kWeights, kTokens + 1>();
    multiply_tiles<3, kWeights + 1, kTokens + 1>();
  }
}

// A block of rows times 32 tokens: adds to the sums, or starts them. `meanwhile` is called after
// every step, with its number: what it does runs beside the unit, which has some ten steps waiting,
// if it is short (one call for every eight steps made the unit wait for most of it).
//
// A store of a tile costs some 700 cycles if none came in the 2000 cycles before it; one of no
// interest after every panel saves that.
template <int kTerms, class Meanwhile>
[[gnu::always_inline]] inline void multiply_block(const RowBlock& block, const std::byte* x,
                                                  int64_t panel_bytes, bool start, std::byte* sums,
                                                  std::byte* idle, const Meanwhile& meanwhile) {
  unrolled<4>([&](auto tile) __attribute__((always_inline)) {
    if (start) {
      zero_tile<tile>();
    } else {
      load_tile<tile>(sums + tile * kTileBytes, kLine);
    }
  });
  for (int64_t first = 0; first < block.steps; first += kPanelSteps) {
    const int64_t end = at_most(block.steps, first + kPanelSteps);
    for (int64_t step = first; step < end; ++step) {
      multiply_step<kTerms>(block, block.data + step * block.step_bytes,
                            x + (step - first) * kTerms * 2 * kTileBytes);
      meanwhile(step);
    }
    x += panel_bytes;
    store_tile<kWeights>(idle);
  }
  unrolled<4>([&](auto tile)
                  __attribute__((always_inline)) { store_tile<tile>(sums + tile * kTileBytes); });
}

// Sums of 32 rows x 32 tokens on their way to the output, a piece at a time: a tile of floats, or
// a line of rounded ones.
struct Outcome {
  const MatmulTile& tile;
  const std::byte* sums = nullptr;
  int64_t row = 0, rows = 0, token = 0;
  int64_t next = 0, pieces = 0;

  void start(const std::byte* from, int64_t first_row, int64_t row_count, int64_t first_token) {
    sums = from;
    row = first_row;
    rows = row_count;
    token = first_token;
    next = 0;
    pieces = tile.out16 != nullptr ? 32 : 4;
  }
  // Where piece i goes.
  float* tile_place(int64_t i) const {
    const int64_t t = token + i % 2 * kUnitTokens, r = row + i / 2 * 16;
    return tile.out + (tile.turned ? r * tile.out_stride + t : t * tile.out_stride + r);
  }
  std::byte* line_place(int64_t i) const {
    return tile.out16 + row / kUnitPanelCols * tile.out16_panel_bytes +
           (token * kUnitPanelCols + row % kUnitPanelCols * kUnitTokenPair) * 2 + i * kLine;
  }

  [[gnu::always_inline]] void write_next() {
    const int64_t i = next++;
    if (tile.turned) {
      const int64_t t = token + i % 2 * kUnitTokens;
      write_turned(tile, sums + i * kTileBytes, rows - i / 2 * 16,
                   tile.end.bias != nullptr ? tile.end.bias + t : nullptr, tile_place(i),
                   tile.tokens - t);
    } else if (tile.out16 == nullptr) {
      write_out(tile, sums + i * kTileBytes, row + i / 2 * 16, rows - i / 2 * 16, tile_place(i),
                tile.tokens - token - i % 2 * kUnitTokens);
    } else {  // 16 pairs of rows, eight from either tile of rows, for 16 tokens and for 16 more
      const int64_t pair = i % 16, of_tile = pair / 8 * 2 + i / 16;
      write_pair(tile, sums + of_tile * kTileBytes + pair % 8 * 2 * kLine, row + 2 * pair,
                 rows - 2 * pair, line_place(i));
    }
  }
  void write_rest() {
    while (next < pieces) write_next();
  }
};

// Many tokens: for every cut of K, every block of rows meets all tokens.
template <class Weights, int kTerms>
void multiply_blocks(const MatmulTile& tile) {
  const PackedTokens& packed = tile.packed;
  const int64_t units = (tile.tokens + kUnitTokenPair - 1) / kUnitTokenPair;
  const int64_t unit_bytes = kPanelSteps * kTerms * packed.term_bytes;
  std::byte* const idle = tile.scratch + 2 * kTileRows * tile.cut_cols;
  std::byte* const sums = idle + kTileBytes;
  const bool resting = tile.cut_cols < tile.cols;
  Outcome outcome{.tile = tile}, coming{.tile = tile};
  for (int64_t row = tile.row_begin, col = 0; col < tile.cols;) {
    const RowBlock block = row_block(tile, row, col);
    if (!block.in_place) fill<Weights>(tile, block);
    const bool last = col + tile.cut_cols >= tile.cols;
    // The block after this one, or the one where this thread is likely to go on.
    int64_t next_row = row + kTileRows, next_col = col;
    if (next_row >= tile.row_end) {
      next_row = last ? tile.next_row : tile.row_begin;
      next_col = last ? 0 : col + tile.cut_cols;
    }
    const int64_t next_rows = at_most(kTileRows, tile.w_rows - next_row);
    const int64_t next_bytes =
        at_most(tile.cut_cols, tile.cols - next_col) * tile.w_stride / tile.cols;
    const std::byte* const next_data =
        tile.w + next_row * tile.w_stride + next_col * tile.w_stride / tile.cols;
    for (int64_t unit = 0; unit < units; ++unit) {
      const int64_t slot = resting ? (row - tile.row_begin) / kTileRows * units + unit : 0;
      std::byte* const at = sums + slot * 4 * kTileBytes;
      const std::byte* x =
          packed.data + col / kUnitPanelCols * packed.panel_bytes + unit * unit_bytes;
      const int64_t token = unit * kUnitTokenPair, tokens = tile.tokens - token;
      if (last) coming.start(at, row, block.rows, token);
      const int64_t begin = kTileRows * unit / units;
      const int64_t end = at_most(next_rows, kTileRows * (unit + 1) / units);
      multiply_block<kTerms>(
          block, x, packed.panel_bytes, /*start=*/col == 0, at,
          idle, [&](int64_t step) __attribute__((always_inline)) {
            if (outcome.next < outcome.pieces) outcome.write_next();
            if (step + 1 == block.steps) outcome.write_rest();  // its place is needed again
            if (step * kLine < next_bytes) {
              for (int64_t r = begin; r < end; ++r) {
                _mm_prefetch(next_data + r * tile.w_stride + step * kLine, _MM_HINT_T1);
              }
            }
            // Stores that wait for their lines would hold up the unit.
            if (last && step < kUnitTokenPair) {
              if (tile.out16 != nullptr) {
                expect_line(coming.line_place(step));
              } else if (step < (tile.turned ? block.rows : tokens)) {
                float* const out = coming.tile_place(0) + step * tile.out_stride;
                expect_line(out);
                expect_line(out + 16);
              }
            }
          });
      if (last) outcome.start(at, row, block.rows, token);
    }
    if (last && row + kTileRows >= tile.row_end) break;
    row = next_row;
    col = next_col;
  }
  outcome.write_rest();
}

template <class Weights>
void multiply_many(const MatmulTile& tile) {
  if (tile.packed.terms == 2) {
    multiply_blocks<Weights, 2>(tile);
  } else {
    multiply_blocks<Weights, 1>(tile);
  }
}

template <int kTerms>
void pack(const float* x, int64_t x_stride, int64_t tokens, int64_t cols, const PackedTokens& form,
          std::byte* out) {
  const int64_t width = form.pair_bytes / 4;  // tokens, those included that are not there
  const __mmask16 lanes = first_lanes(width);
  for (int64_t k = 0; k < cols; k += kUnitCols) {
    __m512i terms[kTerms][16];
    for (int t = 0; t < 16; ++t) {
      if (t >= tokens) {
        for (auto& lines : terms) lines[t] = _mm512_setzero_si512();
        continue;
      }
      const Floats values(x + t * x_stride + k, cols - k);
      if constexpr (kTerms == 1) {
        terms[0][t] = rounded_line(values.low, values.high);
      } else {
        const __m512i first = round_to_bf16(values.low), second = round_to_bf16(values.high);
        terms[0][t] = upper_halves(first, second);
        terms[1][t] = rounded_line(rest_of(values.low, first), rest_of(values.high, second));
      }
    }
    for (auto& lines : terms) {
      if (width == 1) {
        _mm512_storeu_si512(out, lines[0]);
      } else {
        transpose(lines);
        for (int pair = 0; pair < 16; ++pair) {
          _mm512_mask_storeu_epi32(out + pair * form.pair_bytes, lanes, lines[pair]);
        }
      }
      out += form.term_bytes;
    }
  }
}

}  // namespace

void pack_amx(const float* x, int64_t x_stride, int64_t tokens, int64_t cols,
              const PackedTokens& form, std::byte* out) {
  (form.terms == 2 ? pack<2> : pack<1>)(x, x_stride, tokens, cols, form, out);
}

void matmul_tile_amx(const MatmulTile& tile) {
  if (!tile.packed.data) return matmul_tile_avx512(tile);
  configure_tiles(tile.packed.pair_bytes / 4);
  switch (tile.type) {
    case DType::kBF16:
      if (tile.tokens <= kMostGroups * kUnitTokens &&
          lie_in_tiles(tile.type, tile.w_rows, tile.cols) && tile.out16 == nullptr &&
          !tile.turned) {
        multiply_in_place(tile);
      } else {
        multiply_many<Bf16Weights>(tile);
      }
      break;
    case DType::kF16:
      multiply_many<F16Weights>(tile);
      break;
    case DType::kF32:
      multiply_many<F32Weights>(tile);
      break;
    default:
      multiply_many<Q8_0Weights>(tile);
      break;
  }
  release_tiles();
}

}  // namespace drover::internal
#endif
