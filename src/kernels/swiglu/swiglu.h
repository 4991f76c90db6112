// The gate of a feed-forward network.
#pragma once

#include "kernels/context.h"
#include "tensor/view.h"

namespace drover {

// gate[t,i] = silu(gate[t,i]) * up[t,i],  silu(x) = x / (1 + e^-x)
// gate, up: [T,F]; gate is overwritten. Element by element, so bits do not depend on T, threads or
// instruction set. Does not fail.
// Source: Shazeer 2020, arXiv 2002.05202; spec section 2.1.
void swiglu(Context& context, MatrixView gate, ConstMatrixView up);

// The same, with gate kept: out[t,i] = silu(gate[t,i]) * up[t,i]. out may not alias.
void swiglu(Context& context, MatrixView out, ConstMatrixView gate, ConstMatrixView up);

// Its gradients, with s = 1 / (1 + e^-gate), and out once more, to a rounding or two:
//   dgate = dout * up * s * (1 + gate * (1 - s)),  dup = dout * gate * s,  out = gate * s * up
// All [T,F]; dgate, dup and out may be dout, gate and up, in any order. Does not fail.
void swiglu_backward(Context& context, MatrixView dgate, MatrixView dup, MatrixView out,
                     ConstMatrixView dout, ConstMatrixView gate, ConstMatrixView up);

}  // namespace drover
