// Rows of activations rounded to bf16, to nearest, ties to even, in the form that the matrix unit
// takes: the input of `rounded` products, where takes_rounded(). It is written once for all maps
// that read the same rows, by an operation before them or by the end of another product. A
// RoundedRows owns its memory; one writer of a place at a time, any number of readers after that.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/aligned.h"
#include "tensor/view.h"

namespace drover {

class RoundedRows {
 public:
  // Makes room for `rows` rows of `cols` values; the old content is lost. Memory grows and is kept.
  void resize(int64_t rows, int64_t cols);

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }

  // Rounds rows first, first + 1 ... to their place here: kGroup of them or as many as there are
  // to the end; `first` is a multiple of it.
  static constexpr int64_t kGroup = 16;
  void put(int64_t first, ConstMatrixView x);

  // What kernels know of the form: [panel of 256 columns][32 rows][32 columns], of which the last
  // two are a block of 2 KB, two tiles side by side; see PackedTokens.
  std::byte* unit(int64_t row) { return data_.data() + row / 32 * kUnitBytes; }
  const std::byte* unit(int64_t row) const { return data_.data() + row / 32 * kUnitBytes; }
  // The block with this row and column, which are multiples of 32.
  std::byte* block(int64_t row, int64_t col) {
    return unit(row) + col / 256 * panel_bytes() + col % 256 / 32 * kBlockBytes;
  }
  const std::byte* block(int64_t row, int64_t col) const {
    return unit(row) + col / 256 * panel_bytes() + col % 256 / 32 * kBlockBytes;
  }
  static constexpr int64_t kBlockBytes = 32 * 32 * 2;
  // That so many take: whole blocks and panels.
  static constexpr int64_t bytes(int64_t rows, int64_t cols) {
    return (cols + 255) / 256 * ((rows + 31) / 32) * kUnitBytes;
  }
  int64_t panel_bytes() const { return (rows_ + 31) / 32 * kUnitBytes; }

 private:
  static constexpr int64_t kUnitBytes = 32 * 256 * 2;  // of 32 rows in a panel

  AlignedArray<std::byte> data_;
  int64_t rows_ = 0;
  int64_t cols_ = 0;
};

}  // namespace drover
