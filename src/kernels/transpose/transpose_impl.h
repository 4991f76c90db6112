// The bodies of the transposes, written once over a vector of W floats and compiled once per
// instruction set. The including file sets DROVER_TRANSPOSE_KERNELS, their table's name, and
// DROVER_VECTOR_FLOATS = W. See row_vector.h for what may not stand here. With AVX512_BF16, which
// every processor with a matrix unit has, that does the rounding.
//
// What moves is a cell of 32 bits: a float, or a pair of bf16 of two rows of x, which stand beside
// each other in a row of the output. A block of 16 x 16 cells is a cache line of each row on either
// side, so that no line is read twice or written by halves.

#if DROVER_VECTOR_FLOATS > 4
#include <immintrin.h>
#endif

#include "kernels/row/row_vector.h"
#include "kernels/transpose/transpose_kernels.h"

namespace drover::internal {
namespace {

constexpr int64_t kBlock = 16;
constexpr int64_t kLine = 64;  // bytes of 16 cells

// Floats to the nearest bf16, ties to even, in their upper halves: to_bf16 (tensor/float16.h).
[[gnu::always_inline]] inline U round_to_bf16(V v) {
  const U u = __builtin_bit_cast(U, v);
  const U rounded = u + 0x7fff + ((u >> 16) & 1);
  return v == v ? rounded : u | 0x400000;  // a NaN stays one
}

struct Floats {
  static constexpr int64_t kRows = 1;
  [[gnu::always_inline]] static U cells(const float* x, int64_t) {
    return __builtin_bit_cast(U, load(x));
  }
};
struct Pairs {
  static constexpr int64_t kRows = 2;
  [[gnu::always_inline]] static U cells(const float* x, int64_t stride) {
#ifdef __AVX512BF16__
    // By the processor's own rounding, which makes zeros of numbers that the unit takes for zeros.
    const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(load(x + stride), load(x));
    return (U)_mm512_permutexvar_epi16(__m512i(kPairs), halves);
#else
    return (round_to_bf16(load(x)) >> 16) | (round_to_bf16(load(x + stride)) & 0xffff0000);
#endif
  }
#ifdef __AVX512BF16__
  // Halves i and 16 + i beside each other.
  typedef uint16_t Halves __attribute__((vector_size(64)));
  static constexpr Halves kPairs = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                    8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
#endif
};

template <int... kLanes>
struct Lanes {
  // Two lines, kStep apart in a square of lines, exchange what is off the square's diagonal.
  template <int kStep>
  [[gnu::always_inline]] static void exchange(U& a, U& b) {
    constexpr I kLow = {(kLanes & kStep ? W + kLanes - kStep : kLanes)...};
    constexpr I kHigh = {(kLanes & kStep ? W + kLanes : kLanes + kStep)...};
    const U low = __builtin_shuffle(a, b, kLow);
    b = __builtin_shuffle(a, b, kHigh);
    a = low;
  }
};

// W vectors of W lanes: lane l of vector v goes to lane v of vector l. Halves of the square are
// exchanged, then halves of its quarters, and so on.
template <int kStep = W / 2>
[[gnu::always_inline]] inline void turn(U (&lines)[W]) {
  if constexpr (kStep > 0) {
#pragma GCC unroll 16
    for (int v = 0; v < W; ++v) {
      if (v & kStep) continue;
      Lanes<__integer_pack(W)...>::template exchange<kStep>(lines[v], lines[v + kStep]);
    }
    turn<kStep / 2>(lines);
  }
}

// A vector at an address of its size, past the caches.
[[gnu::always_inline]] inline void stream(std::byte* p, U v) {
#if DROVER_VECTOR_FLOATS == 16
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#elif DROVER_VECTOR_FLOATS == 8
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#else
  __builtin_memcpy(p, &v, sizeof(v));
#endif
}

// 16 cells of 16 columns of x.
template <typename Cell, bool kPastCaches>
[[gnu::always_inline]] inline void transpose_block(const float* x, int64_t stride, std::byte* out,
                                                   int64_t out_stride) {
  for (int64_t col = 0; col < kBlock; col += W) {
    for (int64_t cell = 0; cell < kBlock; cell += W) {
      U lines[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) {
        lines[i] = Cell::cells(x + (cell + i) * Cell::kRows * stride + col, stride);
      }
      turn(lines);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) {
        std::byte* const to = out + (col + i) * out_stride + 4 * cell;
        if (kPastCaches) {
          stream(to, lines[i]);
        } else {
          __builtin_memcpy(to, &lines[i], sizeof(U));
        }
      }
    }
  }
}

// The corner of x that is there, in kRows x kCols floats with zeros.
template <int64_t kRows, int64_t kCols>
[[gnu::always_inline]] inline void fill_up(const float* x, int64_t stride, int64_t rows,
                                           int64_t cols, float* to) {
  for (int64_t t = 0; t < kRows; ++t) {
    for (int64_t n = 0; n < kCols; ++n) {
      to[t * kCols + n] = t < rows && n < cols ? x[t * stride + n] : 0.0f;
    }
  }
}

template <typename Cell>
void transpose_piece(const TransposePiece& piece) {
  constexpr int64_t kRows = kBlock * Cell::kRows, kBytes = kLine / kRows;
  for (int64_t t = 0; t < piece.out_cols; t += kRows) {
    for (int64_t n = 0; n < piece.cols; n += kBlock) {
      const int64_t rows = piece.rows - t, cols = piece.cols - n;
      const float* x = piece.x + t * piece.stride + n;
      int64_t stride = piece.stride;
      float corner[kRows * kBlock];
      if (rows < kRows || cols < kBlock) {
        fill_up<kRows, kBlock>(x, stride, rows, cols, corner);
        x = corner;
        stride = kBlock;
      }
      std::byte* const out = piece.out + n * piece.out_stride + t * kBytes;
      const int64_t out_cols = piece.out_cols - t;
      if (out_cols < kRows || cols < kBlock) {
        std::byte turned[kBlock * kLine];
        transpose_block<Cell, false>(x, stride, turned, kLine);
        const int64_t bytes = (out_cols < kRows ? out_cols : kRows) * kBytes;
        for (int64_t i = 0; i < (cols < kBlock ? cols : kBlock); ++i) {
          __builtin_memcpy(out + i * piece.out_stride, turned + i * kLine,
                           static_cast<size_t>(bytes));
        }
      } else if (piece.past_caches) {
        transpose_block<Cell, true>(x, stride, out, piece.out_stride);
      } else {
        transpose_block<Cell, false>(x, stride, out, piece.out_stride);
      }
    }
  }
#if DROVER_VECTOR_FLOATS > 4
  if (piece.past_caches) _mm_sfence();  // before another thread may learn that they are written
#endif
}

// The form has a pair of bf16 of two columns for each row, as x has them in two rows: there is
// nothing to transpose but pairs.
void to_block(const float* x, int64_t stride, int64_t rows, int64_t cols, std::byte* out,
              bool past_caches) {
  constexpr int64_t kSide = 2 * kBlock;
  float corner[kSide * kSide];
  if (rows < kSide || cols < kSide) {
    fill_up<kSide, kSide>(x, stride, rows, cols, corner);
    x = corner;
    stride = kSide;
  }
  for (int64_t pair = 0; pair < kBlock; ++pair) {
    for (int64_t n = 0; n < kSide; n += W) {
      const U cells = Pairs::cells(x + 2 * pair * stride + n, stride);
      std::byte* const tile = out + n / kBlock * kBlock * kLine;
      std::byte* const to = tile + pair * kLine + n % kBlock * 4;
      if (past_caches) {
        stream(to, cells);
      } else {
        __builtin_memcpy(to, &cells, sizeof(U));
      }
    }
  }
#if DROVER_VECTOR_FLOATS > 4
  if (past_caches) _mm_sfence();
#endif
}

// 2 W floats to the nearest bf16 each, in order.
[[gnu::always_inline]] inline void round_some(const float* x, std::byte* out, bool past_caches) {
#ifdef __AVX512BF16__
  const U halves = (U)_mm512_cvtne2ps_pbh(load(x + W), load(x));
#else
  typedef uint16_t Halves __attribute__((vector_size(2 * W)));
  const Halves parts[2] = {__builtin_convertvector(round_to_bf16(load(x)) >> 16, Halves),
                           __builtin_convertvector(round_to_bf16(load(x + W)) >> 16, Halves)};
  U halves;
  __builtin_memcpy(&halves, parts, sizeof(halves));
#endif
  if (past_caches) {
    stream(out, halves);
  } else {
    __builtin_memcpy(out, &halves, sizeof(halves));
  }
}

void round_row(const float* x, int64_t n, uint16_t* out) {
  const bool past_caches = n % 32 == 0 && reinterpret_cast<uintptr_t>(out) % 64 == 0;
  int64_t i = 0;
  for (; i + 2 * W <= n; i += 2 * W) {
    round_some(x + i, reinterpret_cast<std::byte*>(out + i), past_caches);
  }
  if (i < n) {
    float last[2 * W] = {};
    std::byte rounded[4 * W];
    for (int64_t j = i; j < n; ++j) last[j - i] = x[j];
    round_some(last, rounded, false);
    __builtin_memcpy(out + i, rounded, static_cast<size_t>(2 * (n - i)));
  }
#if DROVER_VECTOR_FLOATS > 4
  if (past_caches) _mm_sfence();
#endif
}

void widen_row(const uint16_t* x, int64_t n, float* out) {
  typedef uint16_t Halves __attribute__((vector_size(2 * W)));
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    Halves halves;
    __builtin_memcpy(&halves, x + i, sizeof(halves));
    const U bits = __builtin_convertvector(halves, U) << 16;
    __builtin_memcpy(out + i, &bits, sizeof(bits));
  }
  for (; i < n; ++i) {
    const uint32_t bits = uint32_t{x[i]} << 16;
    __builtin_memcpy(out + i, &bits, sizeof(bits));
  }
}

}  // namespace

const TransposeKernels DROVER_TRANSPOSE_KERNELS = {
    .to_f32 = transpose_piece<Floats>,
    .to_bf16 = transpose_piece<Pairs>,
    .to_block = to_block,
    .round = round_row,
    .widen = widen_row,
};

}  // namespace drover::internal
