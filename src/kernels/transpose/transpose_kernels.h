// What each instruction set provides for transposes and for bf16 copies. All give the same bits,
// but for numbers below 2^-126, of which Isa::kAmx makes zeros of bf16. Plain data, since files
// with instruction-set flags include it. Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

namespace drover {
enum class Isa;
}

namespace drover::internal {

// Row n of out gets column n of x and zeros after it.
struct TransposePiece {
  const float* x;
  int64_t stride;      // floats
  int64_t rows, cols;  // of x
  std::byte* out;
  int64_t out_stride;  // bytes
  int64_t out_cols;    // at least rows
  bool past_caches;    // whole lines are written past them, where the set can; out and out_stride
                       // are multiples of a line of 64 bytes then
};

struct TransposeKernels {
  void (*to_f32)(const TransposePiece& piece);
  void (*to_bf16)(const TransposePiece& piece);
  // At most 32 rows and 32 columns, to a block of RoundedRows; zeros for those that are not there.
  // past_caches as above.
  void (*to_block)(const float* x, int64_t stride, int64_t rows, int64_t cols, std::byte* out,
                   bool past_caches);
  // n floats to bf16, past the caches where they are whole lines, and back.
  void (*round)(const float* x, int64_t n, uint16_t* out);
  void (*widen)(const uint16_t* x, int64_t n, float* out);
};

extern const TransposeKernels kTransposePlain, kTransposeAvx2, kTransposeAvx512, kTransposeAmx;

const TransposeKernels& transpose_kernels(Isa isa);

}  // namespace drover::internal
