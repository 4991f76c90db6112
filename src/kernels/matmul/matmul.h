// The matrix product of the house: out = x w^T for float activations and weights of any type, as
// they lie in a file. Free functions on views; nothing is kept between calls.
//
// What an output is, to the bit. It depends on its row of x, its row of w and K alone, never on the
// other rows, on how many there are, or on threads; nor on the instruction set, but for what
// Isa::kAmx does with bf16 weights and `rounded` jobs. Only the bits of a NaN are left open. K is
// summed in one order:
//
// Quantised w, with x in the 8-bit form of int8_rows.h. Start with acc = +0. For each block of 32
// values in order, all products and sums rounded to float where they stand, fma with one rounding:
//
//   y = w_scale * dot                               Q8_0 Q4_0 Q5_0 IQ4_NL IQ4_XS MXFP4
//   y = fma(w_min, sum, w_scale * dot)              Q4_1 Q5_1 Q4_K Q5_K
//   y = w_scale[0] * dot[0] + w_scale[1] * dot[1]   Q6_K Q3_K
//   y = fma(w_min, w_m[0] * sum[0] + w_m[1] * sum[1], w_scale * dot)   Q2_K, the sum an integer
//   acc = fma(x_scale, y, acc)
//
// dot = Σ weight integer * activation integer and sum = Σ activation integer, exact, over the block
// or, where there are two, over its halves of 16. Weight integers, w_scale, w_min and w_m are those
// of unpack_block (tensor/dequantize.h). A w_scale beyond 2^104 makes a NaN (see kFloatStart).
//
// f32, f16 and bf16 w, with x in float: the weights widen exactly; K is filled up with zeros to a
// multiple of 16; lane l of 16 sums k = l, l + 16, l + 32, ... in order by fma from +0; then lanes
// l and l + 8 are added, then l and l + 4, l and l + 2, 0 and 1.
//
// bf16 w on Isa::kAmx, by the matrix unit, which takes bf16 on both sides. x is split in two terms,
// rounded to nearest, ties to even: high = bf16(x), low = bf16(x - high), or 0 where high is not
// finite. Their sum is x to 2^-16 of itself. K is filled up with zeros to a multiple of 32. Start
// with acc = +0. For each 32 columns in order, first with high, then with low:
//
//   even = fma over k = 0, 2, 4 ... 30 in order from +0;  odd = the same over k = 1, 3, 5 ... 31
//   acc = acc + (even + odd)
//
// Every operand and result of these steps that is smaller than 2^-126 counts as a zero of its sign,
// so subnormal weights and terms are lost. An x that rounds to an infinite bf16 counts as infinite.
// An infinite weight makes a NaN where low is 0 or has the other sign than x.
//
// `rounded` jobs where takes_rounded(): the same with high alone, and w rounded to bf16 (of Q8_0:
// scale * q, rounded once); floats smaller than 2^-126 are zeros before they are rounded.
//
// What is written is that sum after the job's end (matmul_end.h), element by element.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.h"
#include "kernels/matmul/int8_rows.h"
#include "kernels/matmul/matmul_end.h"
#include "kernels/matmul/rounded_rows.h"
#include "tensor/view.h"

namespace drover {

struct MatmulJob {
  ConstMatrixView x;             // [T,K]; its data is not read when x8 is required
  const Int8Rows* x8 = nullptr;  // the 8-bit form, required exactly when w is quantised, and then
                                 // not for a rounded job where takes_rounded():
  int64_t x8_row = 0;            // row t of x is its row x8_row + t
  WeightView w;                  // [N,K], at any address; K a whole number of blocks
  MatrixView out;                // [T,N], overwritten, or added to if that is the end
  MatmulEnd end = {};            // what becomes of a sum before it is written
  bool rounded = false;  // x may be rounded to bf16 first, where that is faster: for vision,
                         // whose reference runs in bf16. Elsewhere it changes nothing.

  // Only for a rounded job where takes_rounded(), and null otherwise:
  const RoundedRows* x16 = nullptr;  // x, rounded already; the data of x is not read then
  // x and w change places for the unit, and so the sides of the result: out is [N,T] and out[n,t]
  // is written, bias is [T]. Needs x16; the end has no gelu. Sums then go to the output as they
  // leave the unit, without a transposition: for weights that are packed once for many products, as
  // x16.
  bool turned = false;
  // Written in place of out: [T,N], for the product that is next. The end's gelu is then
  // gelu_to_round() (math/gelu.h).
  RoundedRows* out16 = nullptr;
};

// Whether `rounded` makes a difference for weights of this type. Quantised weights of such a job
// take x itself and no 8-bit form.
bool takes_rounded(Isa isa, DType type);

// How many products the matrix unit does for one of w and x: 2 for bf16 weights, 1 for a `rounded`
// job that is taken; 0 where other units do them, or there is none.
int matrix_unit_products(Isa isa, DType type, bool rounded);

// out[t,n] = end(Σ_k x[t,k] w[n,k]) for every job, all in one parallel pass: the maps that read one
// input, or the experts of a layer, belong in one call. Jobs may share x and w, and no output may
// overlap another or any input. T, N and K may be 0 (K = 0 gives zeros).
// kInternal when shapes do not fit together; kUnsupported when w is not of a weight type.
void matmul(Context& context, std::span<const MatmulJob> jobs);

}  // namespace drover
