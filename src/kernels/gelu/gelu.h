// The Gaussian error linear unit, in its exact form.
#pragma once

#include "kernels/context.h"
#include "tensor/view.h"

namespace drover {

// x[t,i] = gelu(x[t,i]),  gelu(x) = x / 2 * (1 + erf(x / sqrt 2)) = x * P(normal < x)
// x: [T,F], overwritten. Element by element, so bits do not depend on T, threads or instruction
// set. Does not fail. gelu(-infinity) is NaN, 0 times infinity, as the formula has it.
// Source: Hendrycks & Gimpel 2016, arXiv 1606.08415; spec sections 5.4 and 5.6.
void gelu(Context& context, MatrixView x);

// x[t,i] = gelu(x[t,i] + bias[i]): the same bits as add_bias and then gelu, in one pass.
void gelu_bias(Context& context, MatrixView x, const float* bias);

}  // namespace drover
