// What the operations on single rows (norms, rotation, gate, loss, and their gradients) do to one,
// by instruction set. Every set gives the same bits: elements go through the same operations,
// unfused, and sums run in 16 partial sums (component i to sum i mod 16), added up as a tree.
//
// Plain data, since files with instruction-set flags include it. Thread-safe.
#pragma once

#include <cstdint>

#include "kernels/adamw/adamw_step.h"

namespace drover {
enum class Isa;
}

namespace drover::internal {

struct Largest {
  float value;
  int32_t index;  // the lowest of equal ones
};

struct RowKernels {
  // 1 / sqrt(mean(x^2) + eps) of n components.
  float (*inverse_rms)(const float* x, int64_t n, float eps);
  // to = x * scale * weight, or x * scale without a weight. to may be x.
  void (*scale)(const float* x, int64_t n, float scale, const float* weight, float* to);
  // to = (x - mean) / sqrt(variance + eps) * weight + bias. to may be x.
  void (*layer_norm)(const float* x, int64_t n, const float* weight, const float* bias, float eps,
                     float* to);
  // Rotates the pairs (x[2k], x[2k+1]) of each head of d components, of n in all: component i
  // becomes x[i] * cosine[i] + x[i ^ 1] * sine[i] of its place in the head.
  void (*rotate)(float* x, int64_t n, int64_t d, const float* cosine, const float* sine);
  // to = silu(gate) * up. to may be gate.
  void (*swiglu)(const float* gate, const float* up, int64_t n, float* to);

  // The gradients, as the headers of the operations have them. dx, dweight and dbias are added to;
  // dweight, and dbias with it, may be null.
  void (*rms_norm_backward)(const float* dy, const float* x, int64_t n, const float* weight,
                            float eps, float* dx, float* dweight);
  void (*rms_norm_head_backward)(float* d, const float* y, int64_t n, float inverse_rms);
  void (*layer_norm_backward)(const float* dy, const float* x, int64_t n, const float* weight,
                              float eps, float* dx, float* dweight, float* dbias);
  void (*rotate_back)(float* x, int64_t n, int64_t d, const float* cosine, const float* sine);
  // dgate, dup and out may be dout, gate and up, in any order.
  void (*swiglu_backward)(const float* dout, const float* gate, const float* up, int64_t n,
                          float* dgate, float* dup, float* out);
  // In double, by 8 partial sums (component i to sum i mod 8; those of the last n mod 8 to the
  // first) added up in order.
  double (*sum_of_squares)(const float* x, int64_t n);
  // As kernels/adamw has it.
  void (*adamw)(const AdamWStep& step, int64_t n, const float* gradient, float* value, float* m,
                float* v);
  // to may be x, dx may be dy.
  void (*gelu)(const float* x, int64_t n, float* to);
  void (*gelu_backward)(const float* dy, const float* x, int64_t n, float* dx);

  // Of numbers that are not NaN; (-infinity, 0) where there are none above it.
  Largest (*largest)(const float* x, int64_t n);
  // x = e^(x - shift); the sum of these.
  float (*exponentials)(float* x, int64_t n, float shift);
};

extern const RowKernels kRowPlain, kRowAvx2, kRowAvx512;

const RowKernels& row_kernels(Isa isa);

}  // namespace drover::internal
