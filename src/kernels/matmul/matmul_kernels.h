// What each instruction set provides for matmul. Internal to this folder.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/isa.h"
#include "kernels/matmul/int8_rows.h"
#include "kernels/matmul/matmul_end.h"
#include "tensor/dtype.h"

namespace drover {
class RoundedRows;
}

namespace drover::internal {

// Rows of x as the matrix unit (Isa::kAmx) takes them: 32 tokens at a time, two tiles side by side,
// or one tile of as many as there are, if they are at most 16 and weights lie in tiles; K filled up
// with zeros to whole panels of 256 columns.
//   [panel][32 tokens][32 columns][term][16 tokens][pair of columns][token][2]
struct PackedTokens {
  const std::byte* data;  // null where the kernel reads x or x8
  int64_t pair_bytes;     // of a pair of columns of a tile: 4 per token
  int64_t term_bytes;     // from a term to the next: of both tiles, or of the one
  int64_t panel_bytes;    // from a panel of a token to its next
  int terms;              // 2: x = high + low; 1: x rounded
};

// One task: outputs [0, tokens) x [row_begin, row_end) of a job. Plain numbers, so that files with
// their own instruction set share no inline functions with the rest.
struct MatmulTile {
  DType type;
  int64_t cols;         // K, at least 1
  const std::byte* w;   // row 0 of the whole matrix
  int64_t w_stride;     // bytes
  int64_t w_rows;       // of the whole matrix
  int64_t row_begin;    // a multiple of kTileRows
  int64_t row_end;      // another, or w_rows
  int64_t next_row;     // where this thread is likely to go on: worth fetching early
  int64_t tokens;       // at least 1
  const float* x;       // its first token, for float weights
  int64_t x_stride;     // floats
  const Int8Block* x8;  // its first token, for quantised weights
  int64_t x8_stride;    // blocks
  float* out;           // its first token, row 0 of w
  int64_t out_stride;   // floats
  bool turned;         // out is [w_rows, tokens]; out and the end's bias begin with its first token
  std::byte* scratch;  // matmul_scratch_bytes() of this worker, cache-line aligned
  PackedTokens packed;  // its first token, for the matrix unit; scratch is packed_scratch_bytes()
  int64_t cut_cols;     // the matrix unit takes K in cuts of so many columns, whole panels

  // The matrix unit alone ends its sums itself; other kernels write them as they are.
  MatmulEnd end;     // bias of row 0
  std::byte* out16;  // null, or its first token in RoundedRows, in place of out
  int64_t out16_panel_bytes;
};

// Every kernel works on a divisor of so many rows at once.
inline constexpr int64_t kTileRows = 32;

// Quantised weights are unpacked so many blocks of 32 values at a time: two blocks of a K-quant.
// With 32 rows that is a panel of 16 KB codes and 4 KB scales, which stays in any first-level cache
// beside the activations that pass by; Q2_K alone touches the steps of its minima, 2 KB more.
inline constexpr int64_t kPanelBlocks = 16;

// Float weights meet many tokens in pieces of so many columns, for the same reason: six rows of
// activations of 4 KB each.
inline constexpr int64_t kFloatPanelCols = 1024;

// The most tokens of a tile of float weights whose partial sums fit the scratch memory at once.
inline constexpr int64_t kFloatTileTokens = 6;

// The matrix unit's tile has so many tokens and columns. Tokens are packed in pairs of tiles, and
// by panels of columns.
inline constexpr int64_t kUnitTokens = 16;
inline constexpr int64_t kUnitTokenPair = 32;
inline constexpr int64_t kUnitCols = 32;
inline constexpr int64_t kUnitPanelCols = 256;

// Whether weights can be multiplied where they lie, a tile of 16 rows at a time.
constexpr bool lie_in_tiles(DType type, int64_t rows, int64_t cols) {
  return type == DType::kBF16 && rows % 16 == 0 && cols % kUnitCols == 0;
}

// K filled up to whole groups of 16, as the definition of float products asks.
constexpr int64_t padded_cols(int64_t cols) { return (cols + 15) / 16 * 16; }

// Floats between the widened rows: a cache line more, since rows a power of two apart would share
// few sets of a cache and look alike to the check of loads against earlier stores.
constexpr int64_t widened_stride(int64_t cols) { return padded_cols(cols) + 16; }

// Scratch memory that a tile of these weights and so many tokens needs: a panel of codes, scales,
// minima and steps, and the sums between panels; or kTileRows rows widened to float and the partial
// sums of a few tokens.
inline int64_t matmul_scratch_bytes(DType type, int64_t cols, int64_t tokens) {
  if (is_quantized(type)) {
    return kPanelBlocks * kTileRows * (32 + 3 * sizeof(float)) +
           tokens * kTileRows * static_cast<int64_t>(sizeof(float));
  }
  return (kTileRows * widened_stride(cols) + kTileRows * kFloatTileTokens * 16) * sizeof(float);
}

// The same for packed tokens: two copies of kTileRows rows, a tile, and the sums, which rest
// between cuts of K if there are several.
inline int64_t packed_scratch_bytes(int64_t rows, int64_t tokens, int64_t cols, int64_t cut_cols) {
  const bool resting = cut_cols < cols;
  const int64_t all_rows = resting ? (rows + kTileRows - 1) / kTileRows * kTileRows : kTileRows;
  const int64_t all_tokens =
      resting ? (tokens + kUnitTokenPair - 1) / kUnitTokenPair * kUnitTokenPair : kUnitTokenPair;
  return kTileRows * 2 * cut_cols + 1024 +
         all_rows * all_tokens * static_cast<int64_t>(sizeof(float));
}

using MatmulTileKernel = void(const MatmulTile& tile);

// The kernel of this instruction set; the plain one where the set does not exist.
MatmulTileKernel* matmul_tile_kernel(Isa isa);

void matmul_tile_plain(const MatmulTile& tile);
void matmul_tile_avx2(const MatmulTile& tile);
void matmul_tile_avxvnni(const MatmulTile& tile);
void matmul_tile_avx512(const MatmulTile& tile);
void matmul_tile_amx(const MatmulTile& tile);

// These rows from `first` on, a multiple of 32 or the second half of such, as packed tokens.
PackedTokens packed_tokens(const RoundedRows& rows, int64_t first);

// Packs a tile of tokens, of which there are `tokens`, of `cols` columns to out, in this form.
void pack_amx(const float* x, int64_t x_stride, int64_t tokens, int64_t cols,
              const PackedTokens& form, std::byte* out);

}  // namespace drover::internal
