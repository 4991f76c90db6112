// The processor's matrix unit, for files that are compiled for it: its instructions, the one use of
// its registers that all of them make, and a transposition that its forms need. One product takes
// 16 rows of 32 bf16 and 16 columns of as many, which lie in pairs: a line of 64 bytes holds two
// neighbouring numbers of each column.
//
// No library templates here: an inline function compiled with AVX-512 must not be picked by the
// linker for the rest of the program.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace drover {
namespace {

// Tile registers: four sums, enough under way to keep the unit busy; two of rows; two of columns.
constexpr int kRowTile = 4, kColumnTile = 6;

// By register number, which the compiler's own intrinsics want as a literal. They reach memory
// behind its back, so they say so here. Strides are in bytes.
template <int kTile>
[[gnu::always_inline]] inline void load_tile(const void* p, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(kTile) : "memory");
}
// Of what passes by once while other operands want to stay in the first-level cache.
template <int kTile>
[[gnu::always_inline]] inline void load_passing_tile(const void* p, int64_t stride) {
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
[[gnu::always_inline]] inline void store_tile(void* p, int64_t stride = 64) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
[[gnu::always_inline]] inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
template <int kSum, int kA, int kB>
[[gnu::always_inline]] inline void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
}

// The shapes of the tiles; sums and columns are so many wide.
inline void configure_tiles(int64_t columns = 16) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int tile = 0; tile < 8; ++tile) {
    const bool is_rows = tile / 2 == kRowTile / 2;
    config.row_bytes[tile] = static_cast<uint16_t>(is_rows ? 64 : 4 * columns);
    config.rows[tile] = 16;
  }
  asm volatile("ldtilecfg %0" : : "m"(config));
}

inline void release_tiles() { asm volatile("tilerelease"); }

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

}  // namespace
}  // namespace drover
