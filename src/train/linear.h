// Linear maps of a pass and their gradients, as matrix products of the house (kernels/matmul): with
// bf16 copies of weights and activations rounded likewise, or in f32 where the parameter has no
// such copies (Parameter::working).
#pragma once

#include <deque>
#include <optional>
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
  MatrixView y;       // [T, rows]
  bool add = false;   // to y, in place of overwriting it
  const Parameter* bias = nullptr;
};

// dx = W^T dy,  dW += dy^T x,  dbias += sum over rows of dy; those of frozen parameters are left
// out.
struct LinearBackward {
  Parameter* w = nullptr;
  int64_t index = 0;
  ConstMatrixView x;   // [T, cols]
  ConstMatrixView dy;  // [T, rows]
  MatrixView dx;       // [T, cols]; not wanted if it has no data
  bool add = false;    // to dx, in place of overwriting it
  Parameter* bias = nullptr;
};

// Holds scratch memory; one thread at a time uses it.
class LinearMaps {
 public:
  explicit LinearMaps(Context& context) : context_(context) {}

  // Maps that read one input, or the experts of a layer, belong in one call. No two outputs may
  // overlap.
  void forward(std::span<const LinearForward> maps);
  // Maps that have dx in common, as the same view, add to it in order: the first overwrites it or
  // not, the others say `add`. The sum over rows in dW is one chain per element: the same bits on
  // any number of threads.
  void backward(std::span<const LinearBackward> maps);

 private:
  // One matrix of activations transposed, as the first or the second factor of a product. Maps of
  // a call that share the matrix share this.
  struct Transposed {
    ConstMatrixView of;
    bool in_bf16 = false;
    RoundedRows rounded;            // first factor where products round
    AlignedArray<std::byte> plain;  // first factor elsewhere, f32; second factor, bf16 or f32
  };
  class Shelf {  // of matrices that were transposed in this call, with their memory for later ones
   public:
    void clear() { used_ = 0; }
    // The one of this matrix, or a free one and false.
    std::pair<Transposed*, bool> find(ConstMatrixView of, bool in_bf16);

   private:
    std::deque<Transposed> all_;
    size_t used_ = 0;
  };
  const Transposed& first_factor(ConstMatrixView of, bool in_bf16);
  const Transposed& second_factor(ConstMatrixView of, bool in_bf16);

  Context& context_;
  Shelf first_, second_;
};

}  // namespace drover
