// Copies of activations in bf16, half as large.
#pragma once

#include "kernels/context.h"
#include "tensor/float16.h"
#include "tensor/view.h"

namespace drover {

// out[t, n] = x[t, n] to the nearest bf16, ties to even; on Isa::kAmx numbers below 2^-126 become
// zeros of their sign. x: [T, N]; out: T rows of N back to back. It is written past the caches
// where its rows are whole cache lines: it should not be wanted soon. May not alias. Does not fail.
void round_to_bf16(Context& context, ConstMatrixView x, bf16* out);

// out[t, n] = x[t, n], exactly: the other way round.
void widen_bf16(Context& context, const bf16* x, MatrixView out);

}  // namespace drover
