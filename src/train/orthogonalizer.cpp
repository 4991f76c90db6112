#include "train/orthogonalizer.h"

#include <algorithm>
#include <cmath>

#include "base/huge_pages.h"
#include "kernels/matmul/matmul.h"
#include "kernels/row/row_kernels.h"
#include "kernels/transpose/transpose.h"
#include "tensor/float16.h"

namespace drover {

double sum_of_squares(Isa isa, const float* x, int64_t count) {
  return internal::row_kernels(isa).sum_of_squares(x, count);
}

WeightView Orthogonalizer::as_factor(const float* x, int64_t rows, int64_t cols) {
  // The matrix unit's kernel rounds f32 factors itself.
  if (precision_ == Precision::kF32 || takes_rounded(context_.isa, DType::kF32)) {
    return {reinterpret_cast<const std::byte*>(x), DType::kF32, rows, cols};
  }
  reserve_huge(factor_, static_cast<size_t>(rows * row_bytes(DType::kBF16, cols)));
  auto* to = reinterpret_cast<bf16*>(factor_.data());
  for (int64_t i = 0; i < rows * cols; ++i) to[i] = to_bf16(x[i]);
  return {factor_.data(), DType::kBF16, rows, cols};
}

WeightView Orthogonalizer::as_transposed_factor(const float* x, int64_t rows, int64_t cols) {
  const DType type = precision_ == Precision::kBF16 ? DType::kBF16 : DType::kF32;
  reserve_huge(factor_, static_cast<size_t>(cols * row_bytes(type, rows)));
  transpose(context_, {x, rows, cols, cols}, type, factor_.data());
  return {factor_.data(), type, cols, rows};
}

void Orthogonalizer::multiply(const float* left, int64_t rows, WeightView w, float* out, bool add) {
  const MatmulJob job{.x = {left, rows, w.cols, w.cols},
                      .w = w,
                      .out = {out, rows, w.rows, w.rows},
                      .end = {.add = add},
                      .rounded = precision_ == Precision::kBF16};
  matmul(context_, {&job, 1});
}

void Orthogonalizer::run(float* values, int64_t rows, int64_t cols) {
  constexpr float kA = 3.4445f, kB = -4.7750f, kC = 2.0315f;
  constexpr int kSteps = 5;
  const int64_t size = rows * cols;
  // It lies on its longer side: x x^T is then the smaller product.
  const bool turned = rows > cols;
  const int64_t m = std::min(rows, cols), n = std::max(rows, cols);
  if (turned) reserve_huge(lying_, static_cast<size_t>(size));
  float* const x = turned ? lying_.data() : values;
  const auto turn = [&](const float* from, int64_t from_rows, int64_t from_cols, float* to) {
    transpose(context_, {from, from_rows, from_cols, from_cols}, DType::kF32,
              reinterpret_cast<std::byte*>(to));
  };
  if (turned) turn(values, rows, cols, x);
  const double length = std::sqrt(sum_of_squares(context_.isa, x, size));
  const auto scale = static_cast<float>(1 / (length + 1e-7));
  for (int64_t k = 0; k < size; ++k) x[k] *= scale;

  reserve_huge(a_, static_cast<size_t>(m * m));
  reserve_huge(b_, static_cast<size_t>(m * m));
  float* const a = a_.data();
  float* const b = b_.data();
  for (int step = 0; step < kSteps; ++step) {
    multiply(x, m, as_factor(x, m, n), a);  // a = x x^T
    // b = kB a + kC a a; a is its own transpose, but for rounding
    multiply(a, m, as_factor(a, m, m), b);
    for (int64_t i = 0; i < m * m; ++i) b[i] = kB * a[i] + kC * b[i];
    // x = kA x + b x
    const WeightView factor = as_transposed_factor(x, m, n);
    for (int64_t k = 0; k < size; ++k) x[k] *= kA;
    multiply(b, m, factor, x, /*add=*/true);
  }
  if (turned) turn(x, cols, rows, values);
}

}  // namespace drover
