// The orthogonal matrix that is nearest to another one, roughly, as Muon wants it: for one matrix
// and on one thread, since a step has more matrices than threads and one stays in the core's cache.
//
// An Orthogonalizer owns its scratch memory; one thread at a time uses it.
#pragma once

#include <cstdint>

#include "base/aligned.h"
#include "kernels/context.h"
#include "tensor/view.h"
#include "train/parameters.h"

namespace drover {

class Orthogonalizer {
 public:
  // precision: of products.
  Orthogonalizer(Isa isa, Precision precision)
      : context_(/*threads=*/1, isa), precision_(precision) {}

  // Five steps of the iteration
  //   x = a x + b (x x^T) x + c (x x^T)^2 x,   a = 3.4445, b = -4.7750, c = 2.0315
  // from x / |x|: its singular values come to lie near 1 (between 0.6 and 1.3, but for those that
  // were below a thousandth of the length), its singular vectors stay. The coefficients trade a
  // sharper limit for speed. Source: Jordan et al. 2024, as Muon's.
  // x: [rows, cols], overwritten. A matrix of zeros stays one.
  void run(float* x, int64_t rows, int64_t cols);

 private:
  // x, or its transpose, as second factor of a product; good until the next one is made.
  WeightView as_factor(const float* x, int64_t rows, int64_t cols);
  WeightView as_transposed_factor(const float* x, int64_t rows, int64_t cols);
  // out = left w^T, or out + left w^T. left: [rows, w.cols], rounded with kBF16.
  void multiply(const float* left, int64_t rows, WeightView w, float* out, bool add = false);

  Context context_;
  const Precision precision_;
  AlignedArray<float> lying_, a_, b_;
  AlignedArray<std::byte> factor_;
};

// The sum of squares in double, in an order that depends on the count alone.
double sum_of_squares(Isa isa, const float* x, int64_t count);

}  // namespace drover
