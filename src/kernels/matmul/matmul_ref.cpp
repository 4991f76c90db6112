// The plain twin: the definition of matmul.h as loops.
#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/matmul/matmul_kernels.h"
#include "tensor/dequantize.h"

namespace drover::internal {
namespace {

// scale * n, rounded once; a NaN for an infinite scale, or one that kFloatStart makes infinite.
float scaled(float scale, int32_t n) {
  return std::fma(scale, std::bit_cast<float>(kFloatStart + n), -(scale * kFloatStartValue));
}

// acc after one more block, as matmul.h writes it.
float add_block(const Block32& w, const Int8Block& x, float acc) {
  int32_t dot[2] = {0, 0};
  for (int j = 0; j < 32; ++j) dot[j / 16] += w.q[j] * x.q[j];
  float y = 0;
  if (w.form == BlockForm::kTwoScales) {
    y = scaled(w.scale[0], dot[0]) + scaled(w.scale[1], dot[1]);
  } else {
    y = scaled(w.scale[0], dot[0] + dot[1]);
  }
  if (w.form == BlockForm::kWithMinimum) y = std::fma(w.minimum, x.sum, y);
  if (w.form == BlockForm::kTwoMinima) {
    y = std::fma(w.minimum, static_cast<float>(w.m[0] * x.sums[0] + w.m[1] * x.sums[1]), y);
  }
  return std::fma(x.scale, y, acc);
}

void multiply_quantized(const MatmulTile& tile, int64_t row) {
  const std::byte* w = tile.w + row * tile.w_stride;
  for (int64_t t = 0; t < tile.tokens; ++t) tile.out[t * tile.out_stride + row] = 0;
  for (int64_t b = 0; b < tile.cols / 32; ++b) {
    const Block32 block = unpack_block(tile.type, w, b);
    for (int64_t t = 0; t < tile.tokens; ++t) {
      float& acc = tile.out[t * tile.out_stride + row];
      acc = add_block(block, tile.x8[t * tile.x8_stride + b], acc);
    }
  }
}

void multiply_float(const MatmulTile& tile, int64_t row, float* w) {
  dequantize_row(tile.type, tile.w + row * tile.w_stride, {w, static_cast<size_t>(tile.cols)});
  const int64_t padded = (tile.cols + 15) / 16 * 16;
  std::fill(w + tile.cols, w + padded, 0.0f);
  for (int64_t t = 0; t < tile.tokens; ++t) {
    const float* x = tile.x + t * tile.x_stride;
    float lane[16] = {};
    for (int64_t k = 0; k < padded; ++k) {
      lane[k % 16] = std::fma(k < tile.cols ? x[k] : 0.0f, w[k], lane[k % 16]);
    }
    for (int half = 8; half >= 1; half /= 2) {
      for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
    }
    tile.out[t * tile.out_stride + row] = lane[0];
  }
}

}  // namespace

void matmul_tile_plain(const MatmulTile& tile) {
  for (int64_t row = tile.row_begin; row < tile.row_end; ++row) {
    if (is_quantized(tile.type)) {
      multiply_quantized(tile, row);
    } else {
      multiply_float(tile, row, reinterpret_cast<float*>(tile.scratch));
    }
  }
}

}  // namespace drover::internal
