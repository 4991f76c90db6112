// Layer norm over the last axis, as vision encoders use it.
#pragma once

#include "kernels/context.h"
#include "kernels/matmul/rounded_rows.h"
#include "tensor/view.h"

namespace drover {

// out[t,:] = (x[t,:] - m) * rsqrt(v + eps) * weight + bias
// with m the mean of x[t,:] and v the mean of (x[t,:] - m)^2, divided by D and not by D - 1.
// x, out: [T,D], may be the same memory. weight, bias: [D].
// Two passes, so that a large mean does not swallow a small variance. Both sums run in 16 partial
// sums (component i to sum i mod 16), added up as a tree: a row's result depends on the row alone,
// never on T, threads or instruction set. Does not fail.
// Source: Ba, Kiros & Hinton 2016, arXiv 1607.06450; spec sections 5.2 and 5.4.
void layer_norm(Context& context, MatrixView out, ConstMatrixView x, const float* weight,
                const float* bias, float eps);

// The same, rounded to bf16 for products that come next. out is [T,D] already.
void layer_norm(Context& context, RoundedRows& out, ConstMatrixView x, const float* weight,
                const float* bias, float eps);

// Its gradients, with n = (x[t,:] - m) r the normed row, r = rsqrt(v + eps), g = dy[t,:] * weight:
//   dx[t,:] += r * (g - mean(g) - n * mean(g * n))
//   dweight += sum over t of dy[t,:] * n,  dbias += sum over t of dy[t,:]
// dx, dy, x: [T,D]; dx may not alias the others. dweight, dbias: [D], added to, or both null.
// Sums over t run in blocks of 64 rows, each in order, then block after block: the same bits on any
// number of threads. Does not fail.
void layer_norm_backward(Context& context, MatrixView dx, float* dweight, float* dbias,
                         ConstMatrixView dy, ConstMatrixView x, const float* weight, float eps);

}  // namespace drover
