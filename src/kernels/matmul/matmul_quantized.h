// Quantised weights times 8-bit activations, for any vector width. Included only by the files of an
// instruction set, like matmul_unpack.h.
//
// 2 V::kRows rows are unpacked, 512 columns at a time, to a panel in the first-level cache, and the
// panel meets all tokens, a few per pass. Weights are read once; an output's running sum rests in
// memory between panels, which loses nothing. At most V::kTokens tokens meet blocks of 32 values
// without a panel. Both ways add the same numbers in the same order.
#pragma once

#include "kernels/matmul/matmul_unpack.h"
#include "kernels/matmul/matmul_unpack_low.h"

namespace drover::internal {
namespace {

// Where the integer sum of a block (of a half, for two scales) starts.
template <class V, class Kind>
[[gnu::always_inline]] inline int32_t start_of(const Int8Block& x, int half) {
  if constexpr (Kind::kBits == 8 && V::kSignedBytes) return kFloatStart;
  if constexpr (Kind::kOffset == 8) return x.start8;
  if constexpr (Kind::kOffset == 16) return x.start16;
  if constexpr (Kind::kOffset == 128) return x.start128;
  if constexpr (Kind::kOffset == 32) return x.start32[half];
  return kFloatStart;
}

// scale * n from the sums that started at kFloatStart; see there.
template <class V>
struct Scale {
  typename V::Float scale, start;
  [[gnu::always_inline]] explicit Scale(const float* p)
      : scale(V::load_floats(p)), start(V::mul(scale, V::floats(-kFloatStartValue))) {}
  [[gnu::always_inline]] typename V::Float times(typename V::Int sum) const {
    return V::fma(scale, V::as_float(sum), start);
  }
};

// acc of kTokens tokens times kVectors vectors of rows after one more block, as matmul.h writes it.
template <class V, class Kind, int kVectors, int kTokens>
[[gnu::always_inline]] inline void add_block(const PanelBlock<V>* panel, const Int8Block* x,
                                             int64_t x_stride,
                                             typename V::Float (&acc)[kVectors][kTokens]) {
  using Int = typename V::Int;
  using Float = typename V::Float;
  constexpr bool kTwo = Kind::kForm == BlockForm::kTwoScales;
  Float y[kVectors][kTokens];
  unrolled<kTwo ? 2 : 1>([&](auto half) __attribute__((always_inline)) {
    constexpr int kGroups = kTwo ? 4 : 8;
    Int dot[kVectors][kTokens];
    for (int t = 0; t < kTokens; ++t) {
      for (int v = 0; v < kVectors; ++v) {
        dot[v][t] = V::dwords(start_of<V, Kind>(x[t * x_stride], half));
      }
    }
    V::template add_dots<Kind, half * kGroups, kGroups>(panel, x, x_stride, dot);
    for (int v = 0; v < kVectors; ++v) {
      const PanelBlock<V>& block = panel[v * kPanelBlocks];
      const Scale<V> scale(half == 0 ? block.scale : block.second);
      for (int t = 0; t < kTokens; ++t) {
        const Float part = scale.times(dot[v][t]);
        y[v][t] = half == 0 ? part : V::add(y[v][t], part);
      }
    }
  });
  for (int t = 0; t < kTokens; ++t) {
    const Int8Block& of_token = x[t * x_stride];
    for (int v = 0; v < kVectors; ++v) {
      const PanelBlock<V>& block = panel[v * kPanelBlocks];
      if constexpr (Kind::kForm == BlockForm::kWithMinimum) {
        y[v][t] = V::fma(V::load_floats(block.second), V::floats(of_token.sum), y[v][t]);
      }
      if constexpr (Kind::kForm == BlockForm::kTwoMinima) {
        int32_t halves;
        std::memcpy(&halves, of_token.sums, sizeof(halves));
        const Int steps = V::add_products(V::load(block.steps), V::dwords(halves));
        y[v][t] = V::fma(V::load_floats(block.second), V::to_float(steps), y[v][t]);
      }
      acc[v][t] = V::fma(V::floats(of_token.scale), y[v][t], acc[v][t]);
    }
  }
}

template <class V>
int64_t passes_of(const MatmulTile& tile) {
  return (tile.tokens + V::kTokens - 1) / V::kTokens;
}

// One vector of rows: where it starts, and which of its lanes are wanted. At the end of a matrix it
// is moved up so that it reads only rows that are there.
template <class V>
struct RowVector {
  int64_t row;
  typename V::Lanes lanes;
};

template <class V>
RowVector<V> row_vector(const MatmulTile& tile, int64_t row) {
  const int64_t last = tile.w_rows - V::kRows;
  const int64_t start = row < last ? row : last;
  return {start, V::lanes_from(static_cast<int>(row - start))};
}

// Where the sums of a token go: to the output after the last panel of K, until then to scratch
// memory, side by side. The rows of an output are often a power of two apart, and so share few sets
// of a cache: resting there, the sums of many tokens would push each other out.
template <class V>
struct PanelSums {
  float* resting;
  float* out;
  int64_t out_stride;
  bool first, last;

  float* between(int64_t token, int vector) const {
    return resting + (2 * token + vector) * V::kRows;
  }
};

// kTokens tokens times kVectors vectors of rows times `blocks` blocks.
template <class V, class Kind, int kVectors, int kTokens>
void multiply_panel(const PanelBlock<V>* panel, int64_t blocks, const Int8Block* x,
                    int64_t x_stride, const RowVector<V>* rows, const PanelSums<V>& sums,
                    Prefetch& next) {
  Prefetch prefetch = next;
  typename V::Float acc[kVectors][kTokens];
  for (int v = 0; v < kVectors; ++v) {
    for (int t = 0; t < kTokens; ++t) {
      acc[v][t] = sums.first ? V::zero() : V::load_floats(sums.between(t, v));
    }
  }
  for (int64_t b = 0; b < blocks; ++b) {
    prefetch.advance();
    add_block<V, Kind, kVectors, kTokens>(panel + b, x + b, x_stride, acc);
  }
  next = prefetch;
  for (int v = 0; v < kVectors; ++v) {
    for (int t = 0; t < kTokens; ++t) {
      if (sums.last) {
        V::store_lanes(sums.out + t * sums.out_stride + rows[v].row, rows[v].lanes, acc[v][t]);
      } else {
        V::store(sums.between(t, v), acc[v][t]);
      }
    }
  }
}

// All tokens times the panel, in passes of nearly equal size: a pass of one token costs more than
// its share.
template <class V, class Kind, int kVectors>
void multiply_tokens(const MatmulTile& tile, const PanelBlock<V>* panel, int64_t first_block,
                     int64_t blocks, const RowVector<V>* rows, float* resting, Prefetch& next) {
  const int64_t passes = passes_of<V>(tile);
  for (int64_t pass = 0; pass < passes; ++pass) {
    const int64_t begin = pass * tile.tokens / passes, end = (pass + 1) * tile.tokens / passes;
    const Int8Block* x = tile.x8 + begin * tile.x8_stride + first_block;
    const PanelSums<V> sums{resting + begin * 2 * V::kRows, tile.out + begin * tile.out_stride,
                            tile.out_stride, first_block == 0,
                            first_block + blocks == tile.cols / 32};
    unrolled<V::kTokens>([&](auto t) {
      if (end - begin == t + 1) {
        multiply_panel<V, Kind, kVectors, t + 1>(panel, blocks, x, tile.x8_stride, rows, sums,
                                                 next);
      }
    });
  }
}

template <class V, class Unpack>
void multiply_quantized(const MatmulTile& tile) {
  using Kind = typename Unpack::KindOf;
  auto* panel = reinterpret_cast<PanelBlock<V>*>(tile.scratch);
  auto* resting = reinterpret_cast<float*>(panel + 2 * kPanelBlocks);
  const int64_t blocks = tile.cols / 32;
  // Bytes of a row's panel; K-quants share out their 256 values evenly.
  const int64_t block_group = dtype_info(tile.type).block_values / 32;
  const int64_t group_bytes = dtype_info(tile.type).block_bytes;
  for (int64_t row = tile.row_begin; row < tile.row_end; row += 2 * V::kRows) {
    const bool two = row + V::kRows < tile.row_end;
    const RowVector<V> rows[2] = {row_vector<V>(tile, row),
                                  row_vector<V>(tile, two ? row + V::kRows : row)};
    const int64_t next = row + 2 * V::kRows < tile.row_end ? row + 2 * V::kRows : tile.next_row;
    const auto next_bytes = reinterpret_cast<uintptr_t>(tile.w) + next * tile.w_stride;
    const int64_t step = (1 + two) * V::kRows * tile.w_stride / blocks;
    const int64_t passes = passes_of<V>(tile);
    Prefetch by_unpacking{next_bytes, passes == 1 ? step / (1 + two) : 0};
    Prefetch by_multiplying{next_bytes, passes == 1 ? 0 : step / passes + 1};
    for (int64_t first = 0; first < blocks; first += kPanelBlocks) {
      const int64_t count = blocks - first < kPanelBlocks ? blocks - first : kPanelBlocks;
      const std::byte* w = tile.w + first / block_group * group_bytes;
      for (int v = 0; v < 1 + two; ++v) {
        Unpack::unpack(w + rows[v].row * tile.w_stride, tile.w_stride, count, by_unpacking,
                       panel + v * kPanelBlocks);
      }
      if (two) {
        multiply_tokens<V, Kind, 2>(tile, panel, first, count, rows, resting, by_multiplying);
      } else {
        multiply_tokens<V, Kind, 1>(tile, panel, first, count, rows, resting, by_multiplying);
      }
    }
  }
}

// A few tokens, at most V::kTokens, times all rows of the tile: every block goes from its bytes to
// the sums. What the panel would cost in stores and loads, 16 rows that are met once do not earn.
template <class V, class Unpack, int kTokens>
void multiply_directly(const MatmulTile& tile) {
  const int64_t blocks = tile.cols / 32;
  for (int64_t row = tile.row_begin; row < tile.row_end; row += V::kRows) {
    const RowVector<V> rows = row_vector<V>(tile, row);
    const int64_t next = row + V::kRows < tile.row_end ? V::kRows : tile.next_row - row;
    const std::byte* w = tile.w + rows.row * tile.w_stride;
    Prefetch prefetch{reinterpret_cast<uintptr_t>(w) + next * tile.w_stride,
                      V::kRows * Unpack::kBlockBytes};
    typename V::Float acc[1][kTokens];
    for (int t = 0; t < kTokens; ++t) acc[0][t] = V::zero();
    for (int64_t b = 0; b < blocks; ++b) {
      prefetch.advance();
      PanelBlock<V> block;  // lives in registers
      Unpack::load(w + b * Unpack::kBlockBytes, tile.w_stride, block);
      add_block<V, typename Unpack::KindOf, 1, kTokens>(&block, tile.x8 + b, tile.x8_stride, acc);
    }
    for (int t = 0; t < kTokens; ++t) {
      V::store_lanes(tile.out + t * tile.out_stride + rows.row, rows.lanes, acc[0][t]);
    }
  }
}

template <class V, class Unpack>
void multiply_by_tokens(const MatmulTile& tile) {
  if constexpr (requires { Unpack::kBlockBytes; }) {
    if (tile.tokens <= V::kTokens) {
      unrolled<V::kTokens>([&](auto t) {
        if (tile.tokens == t + 1) multiply_directly<V, Unpack, t + 1>(tile);
      });
      return;
    }
  }
  multiply_quantized<V, Unpack>(tile);
}

// False for a type that is not quantised.
template <class V>
bool multiply_if_quantized(const MatmulTile& tile) {
  switch (tile.type) {
    case DType::kQ8_0:
      multiply_by_tokens<V, UnpackQ8_0<V>>(tile);
      return true;
    case DType::kQ4_0:
      multiply_by_tokens<V, UnpackQ4_0<V>>(tile);
      return true;
    case DType::kQ4_1:
      multiply_by_tokens<V, UnpackQ4_1<V>>(tile);
      return true;
    case DType::kQ5_0:
      multiply_by_tokens<V, UnpackQ5_0<V>>(tile);
      return true;
    case DType::kQ5_1:
      multiply_by_tokens<V, UnpackQ5_1<V>>(tile);
      return true;
    case DType::kQ4_K:
      multiply_by_tokens<V, UnpackQ4_K<V>>(tile);
      return true;
    case DType::kQ5_K:
      multiply_by_tokens<V, UnpackQ5_K<V>>(tile);
      return true;
    case DType::kQ6_K:
      multiply_by_tokens<V, UnpackQ6_K<V>>(tile);
      return true;
    case DType::kQ2_K:
      multiply_by_tokens<V, UnpackQ2_K<V>>(tile);
      return true;
    case DType::kQ3_K:
      multiply_by_tokens<V, UnpackQ3_K<V>>(tile);
      return true;
    case DType::kIQ4_NL:
      multiply_by_tokens<V, UnpackIQ4_NL<V>>(tile);
      return true;
    case DType::kIQ4_XS:
      multiply_by_tokens<V, UnpackIQ4_XS<V>>(tile);
      return true;
    case DType::kMXFP4:
      multiply_by_tokens<V, UnpackMXFP4<V>>(tile);
      return true;
    default:
      return false;
  }
}

}  // namespace
}  // namespace drover::internal
