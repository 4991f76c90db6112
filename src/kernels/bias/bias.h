// The bias of a linear map. Maps of the decoder have none; those of the vision encoder do.
#pragma once

#include "kernels/context.h"
#include "tensor/view.h"

namespace drover {

// x[t,:] += bias
// x: [T,D]. bias: [D]. Element by element, so bits do not depend on T, threads or instruction set.
// Does not fail. Where a GELU follows, gelu_bias saves a pass.
void add_bias(Context& context, MatrixView x, const float* bias);

}  // namespace drover
