// The 8-bit form of rows of activations, which quantised weights are multiplied with. It is made
// once for all maps that read the same rows. An Int8Rows owns its memory; one writer at a time, any
// number of readers after that.
#pragma once

#include <cstdint>

#include "base/aligned.h"
#include "kernels/context.h"
#include "tensor/view.h"

namespace drover {

// The bits of the float 1.5 * 2^23, whose last bit counts 1: adding an integer n, |n| < 2^22, to
// the bits adds n to the float. So with F the float of the bits kFloatStart + n,
//   s * n, rounded once  =  fma(s, F, -(s * 1.5 * 2^23))
// where the last product is exact: a scale s has at most 22 significant bits in every format. That
// is one operation in place of a conversion and a product; n cannot come near 2^22, since
// 32 * 127 * 128 < 2^20. For s beyond 2^104 that product is infinite and the result a NaN.
inline constexpr int32_t kFloatStart = 0x4b400000;
inline constexpr float kFloatStartValue = 0x1.8p23f;

// 32 consecutive values: x[j] ~ scale * q[j]. With the sums that the kernels need it fills one
// cache line, so that one address per row leads a kernel to all of it.
//
// The weights that a kernel multiplies with are unsigned: code = weight + offset, the offset being
// the format's. Then Σ weight * q = Σ code * q - offset * Σ q. A kernel starts its integer sum at
// start = kFloatStart - offset * Σ q, so that it ends at kFloatStart + Σ weight * q, which read as
// a float needs no conversion.
struct alignas(kCacheLine) Int8Block {
  int8_t q[32];        // in [-127, 127]
  float scale;         // max |x| / 127
  float sum;           // Σ q, a whole number
  int32_t start8;      // of offset 8    (Q4_0)
  int32_t start16;     // of offset 16   (Q5_0 MXFP4)
  int32_t start128;    // of offset 128  (Q8_0 IQ4_NL IQ4_XS)
  int32_t start32[2];  // of offset 32, over the first and over the last 16 values  (Q6_K Q3_K)
  int16_t sums[2];     // Σ q over the first and over the last 16 values  (Q2_K)
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

// What follows from the sums of the first and of the last 16 values. Local to each file, since some
// are compiled for an instruction set.
[[gnu::always_inline]] static inline void set_sums(Int8Block& block, int32_t first, int32_t last) {
  const int32_t sum = first + last;
  block.sum = static_cast<float>(sum);
  block.start8 = kFloatStart - 8 * sum;
  block.start16 = kFloatStart - 16 * sum;
  block.start128 = kFloatStart - 128 * sum;
  block.start32[0] = kFloatStart - 32 * first;
  block.start32[1] = kFloatStart - 32 * last;
  block.sums[0] = static_cast<int16_t>(first);
  block.sums[1] = static_cast<int16_t>(last);
}

}  // namespace internal
}  // namespace drover
