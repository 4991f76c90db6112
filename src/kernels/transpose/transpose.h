// Transposed copies of activations, rounded on the way: what the products of a backward pass take.
// Free functions on views; thread-safe but for the Context.
#pragma once

#include <cstddef>

#include "kernels/context.h"
#include "kernels/matmul/rounded_rows.h"
#include "tensor/dtype.h"
#include "tensor/view.h"

namespace drover {

// out[n, t] = x[t, n] for t < T, and 0 for T <= t < length
// x: [T, N].  out: [N, length] of type bf16 (to nearest, ties to even) or f32; from one row to the
// next it is `stride` values, or as many as are written, as a WeightView has them, for 0. length:
// at least T, or 0 for T. past_caches: it will not be read soon, and is written past the caches, as
// a large output is anyway. May not alias. Does not fail.
//
// Where a sum over t is wanted, zeros do not matter, and rows that begin on cache lines do: with
// on_lines(T) as length a large transpose takes half of the time, and its product need not copy it.
void transpose(Context& context, ConstMatrixView x, DType type, std::byte* out, int64_t length = 0,
               int64_t stride = 0, bool past_caches = false);

// The same into the form of rounded products: columns [first, first + length) of out, which has N
// rows and room for them. first is a multiple of 32, and so is length unless it ends at out's last
// column.
void transpose(Context& context, ConstMatrixView x, RoundedRows& out, int64_t first, int64_t length,
               bool past_caches = false);

// The next multiple of 32, which is a cache line of bf16.
inline int64_t on_lines(int64_t length) { return (length + 31) / 32 * 32; }

}  // namespace drover
