// Root-mean-square norm over the last axis, with or without a weight.
#pragma once

#include "kernels/context.h"
#include "tensor/view.h"

namespace drover {

// out[t,:] = x[t,:] * rsqrt(mean(x[t,:]^2) + eps) * weight
// x, out: [T,D], may be the same memory. weight: [D].
// The sum of squares runs in 16 partial sums (component i to sum i mod 16), added up as a tree:
// a row's result depends on the row alone. Does not fail.
// Source: Zhang & Sennrich 2019, arXiv 1910.07467; spec section 2.1.
void rms_norm(Context& context, MatrixView out, ConstMatrixView x, const float* weight, float eps);

// The same without a weight over each head of d components, in place: x is [T, heads * d].
// The query and key norm of Llama 4 (spec section 2.1, L2N). inverse: [T, heads], what each head is
// multiplied by, where a gradient will be wanted; not written if it has no data.
void rms_norm_heads(Context& context, MatrixView x, int64_t head_dim, float eps,
                    MatrixView inverse = {});

// The gradients of rms_norm:
//   r = rsqrt(mean(x[t,:]^2) + eps),  g = dy[t,:] * weight
//   dx[t,:] += r * (g - x[t,:] * r^2 * mean(g * x[t,:]))
//   dweight += sum over t of dy[t,:] * x[t,:] * r
// dx, dy, x: [T,D]; dx may not alias the others. weight: [D]. dweight: [D], added to, or null.
// The sum over t runs in blocks of 64 rows, each in order, then block after block: the same bits on
// any number of threads. Does not fail.
void rms_norm_backward(Context& context, MatrixView dx, float* dweight, ConstMatrixView dy,
                       ConstMatrixView x, const float* weight, float eps);

// Those of rms_norm_heads, from what it made: d is the gradient of its output y and becomes that of
// its input, d = r * (d - y * mean(d * y)) for each head. d, y: [T, heads * d]; r = inverse: [T,
// heads].
void rms_norm_heads_backward(Context& context, MatrixView d, ConstMatrixView y,
                             ConstMatrixView inverse, int64_t head_dim);

}  // namespace drover
