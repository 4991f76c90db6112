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
// The query and key norm of Llama 4 (spec section 2.1, L2N).
void rms_norm_heads(Context& context, MatrixView x, int64_t head_dim, float eps);

// The gradients of rms_norm:
//   r = rsqrt(mean(x[t,:]^2) + eps),  g = dy[t,:] * weight
//   dx[t,:] += r * (g - x[t,:] * r^2 * mean(g * x[t,:]))
//   dweight += sum over t of dy[t,:] * x[t,:] * r
// dx, dy, x: [T,D]; dx may not alias the others. weight: [D]. dweight: [D], added to, or null.
// The sum over t runs in blocks of 64 rows, each in order, then block after block: the same bits on
// any number of threads. Does not fail.
void rms_norm_backward(Context& context, MatrixView dx, float* dweight, ConstMatrixView dy,
                       ConstMatrixView x, const float* weight, float eps);

// The same without a weight over each head of d components, in place: d is the gradient of the
// output and becomes that of the input, x is the input. Both [T, heads * d].
void rms_norm_heads_backward(Context& context, MatrixView d, ConstMatrixView x, int64_t head_dim,
                             float eps);

}  // namespace drover
