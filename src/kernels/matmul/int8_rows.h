// The 8-bit form of rows of activations, which quantised weights are multiplied with. It is made
// once for all maps that read the same rows. An Int8Rows owns its memory; one writer at a time, any
// number of readers after that.
#pragma once

#include <cstdint>

#include "base/aligned.h"
#include "kernels/context.h"
#include "tensor/view.h"

namespace drover {

// 32 consecutive values: x[j] ~ scale * q[j]. With the sums that the kernels need it fills one
// cache line, so that one address per row leads a kernel to all of it.
//
// The weights that a kernel multiplies with are unsigned: code = weight + offset, the offset being
// the format's. Then Σ weight * q = Σ code * q + bias with bias = -offset * Σ q, where a kernel
// starts its integer sum.
struct alignas(kCacheLine) Int8Block {
  int8_t q[32];       // in [-127, 127]
  float scale;        // max |x| / 127
  float sum;          // Σ q, a whole number
  int32_t bias8;      // -8 Σ q    (Q4_0)
  int32_t bias16;     // -16 Σ q   (Q5_0 MXFP4)
  int32_t bias128;    // -128 Σ q  (Q8_0 IQ4_NL IQ4_XS)
  int32_t bias32[2];  // -32 Σ q over the first and over the last 16 values  (Q6_K Q3_K)
  int16_t sums[2];    // Σ q over the first and over the last 16 values  (Q2_K)
};
static_assert(sizeof(Int8Block) == kCacheLine);

class Int8Rows {
 public:
  // Makes room for `rows` rows of `cols` values (a multiple of 32); the old content is lost. Memory
  // grows and is kept.
  void resize(int64_t rows, int64_t cols);

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t blocks_per_row() const { return cols_ / 32; }
  Int8Block* row(int64_t r) { return blocks_.data() + r * blocks_per_row(); }
  const Int8Block* row(int64_t r) const { return blocks_.data() + r * blocks_per_row(); }

 private:
  AlignedArray<Int8Block> blocks_;
  int64_t rows_ = 0;
  int64_t cols_ = 0;
};

// The definition, per block of 32 values, all in float and the same bits on every instruction set:
//   largest = max |x|
//   scale   = largest / 127
//   q[j]    = x[j] * (127 / largest), to the nearest integer, ties to even
// A block whose largest magnitude is below 2^-120 counts as zero: scale 0, q 0. A block with a NaN
// or an infinity: scale NaN, q 0, so that every product with it is NaN.
// x: [T,K], K a multiple of 32.  out is resized to it.
void quantize_rows(Context& context, ConstMatrixView x, Int8Rows& out);

namespace internal {

// One row of `blocks` blocks. The plain form is the reference.
void quantize_row_plain(const float* x, int64_t blocks, Int8Block* out);
void quantize_row_avx2(const float* x, int64_t blocks, Int8Block* out);
void quantize_row_avx512(const float* x, int64_t blocks, Int8Block* out);

inline constexpr float kSmallestActivation = 0x1p-120f;

}  // namespace internal
}  // namespace drover
