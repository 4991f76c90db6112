// Linear maps of a pass and their gradients, as matrix products of the house (kernels/matmul): with
// bf16 copies of weights and activations rounded likewise, or all in f32 (Precision).
#pragma once

#include <span>
#include <vector>

#include "base/aligned.h"
#include "kernels/context.h"
#include "kernels/matmul/matmul.h"
#include "kernels/matmul/rounded_rows.h"
#include "train/parameters.h"

namespace drover {

// y = W x (+ bias) for the rows of x; W is matrix `index` of the parameter.
struct LinearForward {
  const Parameter* w = nullptr;
  int64_t index = 0;
  ConstMatrixView x;  // [T, cols]
  MatrixView y;       // [T, rows], overwritten, or added to
  bool add = false;
  const Parameter* bias = nullptr;
};

// dW += dy^T x,  dx += W^T dy,  dbias += sum of dy. A gradient of a frozen parameter is left out.
struct LinearBackward {
  Parameter* w = nullptr;
  int64_t index = 0;
  ConstMatrixView x;    // [T, cols]
  ConstMatrixView dy;   // [T, rows]
  MatrixView dx;        // [T, cols], added to; not wanted if it has no data
  Parameter* bias = nullptr;
};

// Holds scratch memory; one thread at a time uses it.
class LinearMaps {
 public:
  LinearMaps(Context& context, Precision precision) : context_(context), precision_(precision) {}

  // Maps that read one input, or the experts of a layer, belong in one call. No two outputs may
  // overlap.
  void forward(std::span<const LinearForward> maps);
  // Several maps may share dx or x, as the same views; otherwise nothing overlaps. A map of no rows
  // is none. The sum over rows of dW is one chain per element: the same bits on any number of
  // threads.
  void backward(std::span<const LinearBackward> maps);

 private:
  struct Transposed {  // of one matrix of activations
    ConstMatrixView of;
    RoundedRows rounded;            // as the first factor
    AlignedArray<std::byte> plain;  // as the second factor, bf16 or f32
    AlignedArray<float> floats;     // as the first factor, where products do not round
  };

  Context& context_;
  const Precision precision_;
  std::vector<Transposed> first_, second_;  // scratch, kept
};

}  // namespace drover
