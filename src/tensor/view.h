// Views of memory that somebody else owns. Shapes are row-major, the last dimension contiguous.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"

namespace drover {

// Weights of a linear map y = W x as they lie in a file: W is [rows, cols] = [out, in], each row
// `row_bytes(type, cols)` bytes, rows back to back. Read-only; no alignment is promised.
struct WeightView {
  const std::byte* data = nullptr;
  DType type = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;

  explicit operator bool() const { return data != nullptr; }
  int64_t row_stride() const { return row_bytes(type, cols); }
  int64_t bytes() const { return rows * row_stride(); }
  const std::byte* row(int64_t r) const { return data + r * row_stride(); }
};

// E such maps of one shape, back to back: the weights of a layer's experts.
struct ExpertsView {
  const std::byte* data = nullptr;
  DType type = DType::kF32;
  int64_t experts = 0;
  int64_t rows = 0;
  int64_t cols = 0;

  explicit operator bool() const { return data != nullptr; }
  WeightView expert(int64_t e) const {
    return {data + e * rows * row_bytes(type, cols), type, rows, cols};
  }
};

// A [rows, cols] matrix of floats whose rows are `stride` floats apart.
struct MatrixView {
  float* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  float* row(int64_t r) const { return data + r * stride; }
};
struct ConstMatrixView {
  const float* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  ConstMatrixView() = default;
  ConstMatrixView(const float* d, int64_t r, int64_t c, int64_t s)
      : data(d), rows(r), cols(c), stride(s) {}
  ConstMatrixView(MatrixView m) : data(m.data), rows(m.rows), cols(m.cols), stride(m.stride) {}
  const float* row(int64_t r) const { return data + r * stride; }
};

}  // namespace drover
