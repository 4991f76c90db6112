// Transposed copies of activations, rounded on the way: what the products of a backward pass take.
// Free functions on views; thread-safe but for the Context.
#pragma once

#include <cstddef>

#include "kernels/context.h"
#include "kernels/matmul/rounded_rows.h"
#include "tensor/dtype.h"
#include "tensor/view.h"

namespace drover {

// out[n, t] = x[t, n]
// x: [T, N].  out: [N, T] of type bf16 (to nearest, ties to even) or f32, rows back to back, as a
// WeightView has them. May not alias. Does not fail.
// Large ones are twice as fast where rows of out begin on cache lines: T a multiple of 32.
void transpose(Context& context, ConstMatrixView x, DType type, std::byte* out);

// The same into the form of rounded products, where takes_rounded(); out is resized to [N, T].
void transpose(Context& context, ConstMatrixView x, RoundedRows& out);

}  // namespace drover
