// The Gaussian error linear unit over matrices, with its gradient (exact form, math/gelu.h). Within
// a product the end of the product does it (matmul_end.h).
#pragma once

#include "kernels/context.h"
#include "tensor/view.h"

namespace drover {

// out = gelu(x), element by element. x, out: [T, F], may be the same memory. Does not fail.
void gelu(Context& context, MatrixView out, ConstMatrixView x);

// dx = dy * gelu'(x),  gelu'(x) = P(normal < x) + x * density(x)
// dx may be dy. All [T, F]. Does not fail.
void gelu_backward(Context& context, MatrixView dx, ConstMatrixView dy, ConstMatrixView x);

}  // namespace drover
