// Float weights times float activations, for any vector width. Included only by the files of an
// instruction set, like matmul_unpack.h.
//
// A few rows times a few tokens at a time, each output with its 16 partial sums in registers
// (V::Wide). One pass of tokens reads weights as they lie. Many tokens: the tile's rows are widened
// to float once, and K is taken in pieces, so that the activations of a pass stay in the
// first-level cache while all rows go by; partial sums rest in scratch memory between pieces.
#pragma once

#include "kernels/matmul/matmul_unpack.h"

namespace drover::internal {
namespace {

// How a weight type is read: 16 values as floats, or the last 1 to 15 with zeros behind.
template <class V, class Element>
[[gnu::always_inline]] inline typename V::Wide load_tail(const Element* p, int64_t count) {
  Element padded[16] = {};
  std::memcpy(padded, p, static_cast<size_t>(count) * sizeof(Element));
  return V::widen(padded);
}

// Rows and tokens of a call, and the stretch of K.
template <class Element>
struct FloatPiece {
  const Element* w;  // first row, first column of the stretch
  int64_t w_stride;  // bytes: rows lie at any address
  const float* x;    // first token, first column of the stretch
  int64_t x_stride;  // floats
  int64_t cols;      // of the stretch; a multiple of 16 but at the end of K
  bool first, last;  // stretch of K
  float* sums;       // [row][token][16] between stretches; 64-byte aligned
  float* out;        // first token, first row
  int64_t out_stride;
  int64_t ahead;  // bytes from a row to the one of its place in the rows to be read next
};

template <class Element>
[[gnu::always_inline]] inline const Element* row_of(const Element* w, int64_t bytes) {
  return reinterpret_cast<const Element*>(reinterpret_cast<const char*>(w) + bytes);
}

// kFetch: the weights come from memory, and those to be read next are asked for on the way; the
// hardware's prefetchers lose track of short rows.
template <class V, class Element, int kRows, int kTokens, bool kFetch>
void multiply_float_piece(const FloatPiece<Element>& p) {
  typename V::Wide acc[kTokens][kRows];
  unrolled<kTokens>([&](auto t) __attribute__((always_inline)) {
    unrolled<kRows>([&](auto r) __attribute__((always_inline)) {
      acc[t][r] = p.first ? V::wide_zero() : V::widen(p.sums + (r * kFloatTileTokens + t) * 16);
    });
  });
  const int64_t whole = p.cols / 16 * 16, rest = p.cols - whole;
  for (int64_t k = 0; k < whole; k += 16) {
    typename V::Wide w[kRows];
    for (int r = 0; r < kRows; ++r) {
      const Element* row = row_of(p.w, r * p.w_stride) + k;
      if (kFetch) {
        __builtin_prefetch(
            reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(row) + p.ahead), /*rw=*/0,
            /*locality=*/2);
      }
      w[r] = V::widen(row);
    }
    for (int t = 0; t < kTokens; ++t) {
      const auto x = V::widen(p.x + t * p.x_stride + k);
      for (int r = 0; r < kRows; ++r) acc[t][r] = V::wide_fma(x, w[r], acc[t][r]);
    }
  }
  if (rest > 0) {
    typename V::Wide w[kRows];
    for (int r = 0; r < kRows; ++r) {
      w[r] = load_tail<V>(row_of(p.w, r * p.w_stride) + whole, rest);
    }
    unrolled<kTokens>([&](auto t) __attribute__((always_inline)) {
      const auto x = load_tail<V>(p.x + t * p.x_stride + whole, rest);
      unrolled<kRows>([&](auto r) __attribute__((always_inline)) {
        acc[t][r] = V::wide_fma(x, w[r], acc[t][r]);
      });
    });
  }
  unrolled<kTokens>([&](auto t) __attribute__((always_inline)) {
    if (p.last) {
      V::template store_totals<kRows>(acc[t], p.out + t * p.out_stride);
    } else {
      unrolled<kRows>([&](auto r) __attribute__((always_inline)) {
        V::store_wide(p.sums + (r * kFloatTileTokens + t) * 16, acc[t][r]);
      });
    }
  });
}

// Rows [begin, end) of the tile times kTokens tokens.
template <class V, class Element, int kTokens, bool kFetch>
void multiply_float_rows(const MatmulTile& tile, const Element* w, int64_t w_stride,
                         int64_t first_token, int64_t piece_cols, float* sums) {
  const int64_t count = tile.row_end - tile.row_begin;
  for (int64_t k = 0; k < tile.cols; k += piece_cols) {
    FloatPiece<Element> piece;
    piece.w_stride = w_stride;
    piece.x = tile.x + first_token * tile.x_stride + k;
    piece.x_stride = tile.x_stride;
    piece.cols = tile.cols - k < piece_cols ? tile.cols - k : piece_cols;
    piece.first = k == 0;
    piece.last = k + piece.cols == tile.cols;
    piece.out_stride = tile.out_stride;
    for (int64_t r = 0; r < count;) {
      piece.w = row_of(w, r * w_stride) + k;
      piece.sums = sums + r * kFloatTileTokens * 16;
      piece.out = tile.out + first_token * tile.out_stride + tile.row_begin + r;
      const int64_t rows = count - r >= V::kFloatRows ? V::kFloatRows : 1;
      const bool more = r + rows < count;
      piece.ahead = (more ? rows : tile.next_row - tile.row_begin - r) * w_stride;
      if (rows == V::kFloatRows) {
        multiply_float_piece<V, Element, V::kFloatRows, kTokens, kFetch>(piece);
      } else {
        multiply_float_piece<V, Element, 1, kTokens, kFetch>(piece);
      }
      r += rows;
    }
  }
}

template <class V, class Element, bool kFetch>
void multiply_float_tokens(const MatmulTile& tile, const Element* w, int64_t w_stride,
                           int64_t piece_cols, float* sums) {
  const int64_t passes = (tile.tokens + V::kFloatTokens - 1) / V::kFloatTokens;
  for (int64_t pass = 0; pass < passes; ++pass) {
    const int64_t begin = pass * tile.tokens / passes, end = (pass + 1) * tile.tokens / passes;
    unrolled<V::kFloatTokens>([&](auto t) {
      if (end - begin == t + 1) {
        multiply_float_rows<V, Element, t + 1, kFetch>(tile, w, w_stride, begin, piece_cols, sums);
      }
    });
  }
}

// The tile's rows as floats, one after the other and aligned. The rows that this thread is likely
// to widen next are asked for on the way, to arrive while these are multiplied.
template <class V, class Element>
void widen_rows(const MatmulTile& tile, const Element* w, float* widened) {
  const int64_t stride = widened_stride(tile.cols);
  const int64_t ahead = (tile.next_row - tile.row_begin) * tile.w_stride;
  for (int64_t r = 0; r < tile.row_end - tile.row_begin; ++r) {
    const Element* row = row_of(w, r * tile.w_stride);
    float* to = widened + r * stride;
    int64_t k = 0;
    for (; k + 16 <= tile.cols; k += 16) {
      __builtin_prefetch(
          reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(row + k) + ahead), /*rw=*/0,
          /*locality=*/2);
      V::store_wide(to + k, V::widen(row + k));
    }
    if (k < tile.cols) V::store_wide(to + k, load_tail<V>(row + k, tile.cols - k));
  }
}

template <class V, class Element>
void multiply_float(const MatmulTile& tile) {
  const auto* w = reinterpret_cast<const Element*>(tile.w + tile.row_begin * tile.w_stride);
  auto* widened = reinterpret_cast<float*>(tile.scratch);
  float* sums = widened + kTileRows * widened_stride(tile.cols);
  if (tile.tokens <= V::kFloatTokens) {
    multiply_float_tokens<V, Element, true>(tile, w, tile.w_stride,
                                            /*piece_cols=*/padded_cols(tile.cols), sums);
    return;
  }
  widen_rows<V>(tile, w, widened);
  multiply_float_tokens<V, float, false>(
      tile, widened, widened_stride(tile.cols) * static_cast<int64_t>(sizeof(float)),
      kFloatPanelCols, sums);
}

// False for a type that is not a float.
template <class V>
bool multiply_if_float(const MatmulTile& tile) {
  switch (tile.type) {
    case DType::kF32:
      multiply_float<V, float>(tile);
      return true;
    case DType::kF16:
      multiply_float<V, f16>(tile);
      return true;
    case DType::kBF16:
      multiply_float<V, bf16>(tile);
      return true;
    default:
      return false;
  }
}

}  // namespace
}  // namespace drover::internal
