// Attention of `rounded` jobs, with both of its products on the processor's matrix unit.
//
// One product serves for scores and for weighted sums: 32 rows of bf16, as they lie, times 32
// columns, whose numbers lie in pairs of rows. Keys and values of a page are brought into that form
// once for all rows of the tile, which meet them 32 at a time: 32 rows' scores of a page and their
// weights take as much as a first-level cache.
#define DROVER_ATTENTION_ISA attention_amx
#define DROVER_ATTENTION_TILE_ONLY
#define DROVER_VECTOR_FLOATS 16
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the deliberately undefined operands inside its own intrinsics for a fault (bug
// 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include "kernels/attention/attention_impl.h"
#include "kernels/matmul/matrix_unit.h"

namespace drover::DROVER_ATTENTION_ISA {
namespace {

constexpr int64_t kLine = 64;               // bytes of a row of a tile
constexpr int64_t kTileValues = 16 * 32;    // bf16 in one
constexpr int64_t kPair = 2 * kTileValues;  // two tiles, 32 columns of 32 numbers

// 32 rows times 32 columns, summed over 32 * steps numbers. Strides are of rows.
void multiply(const Bf16* a, int64_t a_stride, const Bf16* b, int64_t steps, float* to,
              int64_t to_stride) {
  const int64_t a_bytes = a_stride * static_cast<int64_t>(sizeof(Bf16));
  const int64_t to_bytes = to_stride * static_cast<int64_t>(sizeof(float));
  zero_tile<0>();
  zero_tile<1>();
  zero_tile<2>();
  zero_tile<3>();
  for (int64_t step = 0; step < steps; ++step, a += kUnitWidth, b += kPair) {
    load_tile<kRowTile>(a, a_bytes);
    load_tile<kColumnTile>(b, kLine);
    multiply_tiles<0, kRowTile, kColumnTile>();
    load_tile<kColumnTile + 1>(b + kTileValues, kLine);
    multiply_tiles<1, kRowTile, kColumnTile + 1>();
    load_tile<kRowTile + 1>(a + 16 * a_stride, a_bytes);
    multiply_tiles<2, kRowTile + 1, kColumnTile>();
    multiply_tiles<3, kRowTile + 1, kColumnTile + 1>();
  }
  store_tile<0>(to, to_bytes);
  store_tile<1>(to + 16, to_bytes);
  store_tile<2>(to + 16 * to_stride, to_bytes);
  store_tile<3>(to + 16 * to_stride + 16, to_bytes);
}

// The first n of 32.
[[gnu::always_inline]] inline __mmask32 first_lanes(int64_t n) {
  return n >= 32 ? ~0u : n <= 0 ? 0 : (1u << n) - 1;
}

// 32 numbers of a row and of the one that goes with it, to a row of each of two tiles. Lanes that
// are not in the mask become zeros.
[[gnu::always_inline]] inline void interleave(const Bf16* even, __mmask32 even_mask,
                                              const Bf16* odd, __mmask32 odd_mask, Bf16* to) {
  alignas(kLine) static constexpr uint16_t kFirst[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                         37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                         11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i first = _mm512_load_si512(kFirst);
  const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
  const __m512i x = _mm512_maskz_loadu_epi16(even_mask, even);
  const __m512i y = _mm512_maskz_loadu_epi16(odd_mask, odd);
  _mm512_store_si512(to, _mm512_permutex2var_epi16(x, first, y));
  _mm512_store_si512(to + kTileValues, _mm512_permutex2var_epi16(x, second, y));
}

struct RoundedTile {
  Tile<Bf16> tile;      // sums up what pages give
  const int64_t width;  // components, filled up
  Bf16* const queries;  // [row][width]
  Bf16* const keys;     // [32 positions][32 components][2 tiles]
  Bf16* const values;   // [32 components][32 positions][2 tiles]
  Bf16* const weights;  // [32 rows][kPageTokens]
  float* const scores;  // [32 rows][kPageTokens]
  float* const sums;    // [32 rows][width]

  explicit RoundedTile(const AttentionTask& task)
      : tile(task),
        width(unit_padded(tile.padded)),
        queries(reinterpret_cast<Bf16*>(task.scratch + attention_scratch(tile.rows, tile.padded))),
        keys(queries + unit_padded(tile.rows) * width),
        values(keys + kPageTokens * width),
        weights(values + kPageTokens * width),
        scores(reinterpret_cast<float*>(weights + kUnitWidth * kPageTokens)),
        sums(scores + kUnitWidth * kPageTokens) {}

  void run() {
    take_queries();
    tile.run([&](int64_t k, float* to) { visit(k, to); });
  }

  void take_queries() {
    tile.expect_queries();
    const V scale = all(1.0f / __builtin_sqrtf(static_cast<float>(tile.d)));
    for (int64_t row = 0; row < unit_padded(tile.rows); ++row) {
      for (int64_t i = 0; i < width; i += 16) {
        const auto mask =
            static_cast<__mmask16>(row < tile.rows ? first_lanes(count(tile.d, i, 16)) : 0);
        const float* from = mask != 0 ? tile.query(row) + i : nullptr;
        store(queries + row * width + i, (V)_mm512_maskz_loadu_ps(mask, from) * scale);
      }
    }
  }

  // Pairs of components.
  void take_keys(const Bf16* from, int64_t filled) {
    Bf16* to = keys;
    for (int64_t p = 0; p < filled; p += kUnitWidth) {
      const Bf16* block = from + p / kBlockTokens * kBlockTokens * tile.d + p % kBlockTokens;
      for (int64_t i = 0; i < width; i += kUnitWidth, to += kPair) {
        for (int64_t j = 0; j < kUnitWidth; j += 2) {
          const Bf16* even = block + (i + j) * kBlockTokens;
          interleave(even, i + j < tile.d ? ~0u : 0, even + kBlockTokens,
                     i + j + 1 < tile.d ? ~0u : 0, to + j * 16);
        }
      }
    }
  }

  // Pairs of positions; zeros from `filled` on, where there may be anything.
  void take_values(const Bf16* from, int64_t filled) {
    for (int64_t i = 0; i < width; i += kUnitWidth) {
      const int64_t panel = i / kPanelWidth * kPanelWidth;
      const int64_t stride = count(tile.padded, panel, kPanelWidth);
      const __mmask32 mask = first_lanes(tile.padded - i);
      Bf16* to = values + i * kPageTokens;
      for (int64_t p = 0; p < filled; p += kUnitWidth, to += kPair) {
        for (int64_t j = 0; j < kUnitWidth; j += 2) {
          const Bf16* even = from + panel * kPageTokens + (p + j) * stride + i - panel;
          interleave(even, p + j < filled ? mask : 0, even + stride, p + j + 1 < filled ? mask : 0,
                     to + j * 16);
        }
      }
    }
  }

  // Finds what the k'th page gives; all rows see as much of it.
  void visit(int64_t k, float* to) {
    const int64_t filled = count(tile.positions(0), tile.page_begin(k), kPageTokens);
    take_keys(reinterpret_cast<const Bf16*>(tile.head(k)), filled);
    take_values(reinterpret_cast<const Bf16*>(tile.head(k) + tile.task.layout.values), filled);
    for (int64_t row = 0; row < tile.rows; row += kUnitWidth) {
      const int64_t rows = count(tile.rows, row, kUnitWidth);
      float* const states = to + row * tile.state;
      for (int64_t p = 0; p < filled; p += kUnitWidth) {
        multiply(queries + row * width, width, keys + p * width, width / kUnitWidth, scores + p,
                 kPageTokens);
      }
      find_weights(states, rows, filled);
      for (int64_t i = 0; i < tile.padded; i += kUnitWidth) {
        multiply(weights, kPageTokens, values + i * kPageTokens, unit_padded(filled) / kUnitWidth,
                 sums + i, width);
      }
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < tile.padded; i += 16) {
          store(states + r * tile.state + i, load(sums + r * width + i));
        }
      }
    }
  }

  // Of a block of rows, with maximum and sum of each.
  void find_weights(float* states, int64_t rows, int64_t filled) {
    for (int64_t r = 0; r < rows; ++r) {
      states[r * tile.state + tile.padded] = largest(scores + r * kPageTokens, filled);
    }
    for (int64_t r = 0; r < rows; ++r) {
      float* const mine = states + r * tile.state + tile.padded;
      float* const row = scores + r * kPageTokens;
      mine[1] = softmax(row, filled, mine[0], /*scale=*/nullptr);
      if ((filled - 1) % kUnitWidth < 16) store(row + (filled + 15) / 16 * 16, V{});
      for (int64_t p = 0; p < unit_padded(filled); p += 16) {
        store(weights + r * kPageTokens + p, load(row + p));
      }
    }
  }
};

}  // namespace

void attend_rounded(const AttentionTask& task) {
  configure_tiles();
  RoundedTile(task).run();
  release_tiles();
}

}  // namespace drover::DROVER_ATTENTION_ISA
