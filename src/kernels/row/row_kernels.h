// What the operations on single rows (norms, rotation, gate) do to one, by instruction set. Every
// set gives the same bits: elements go through the same operations, unfused, and sums run in 16
// partial sums (component i to sum i mod 16), added up as a tree.
//
// Plain data, since files with instruction-set flags include it. Thread-safe.
#pragma once

#include <cstdint>

namespace drover {
enum class Isa;
}

namespace drover::internal {

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
  // gate = silu(gate) * up
  void (*swiglu)(float* gate, const float* up, int64_t n);
};

extern const RowKernels kRowPlain, kRowAvx2, kRowAvx512;

const RowKernels& row_kernels(Isa isa);

}  // namespace drover::internal
