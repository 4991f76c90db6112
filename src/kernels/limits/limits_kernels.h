// Internal to limits/: the loops of one instruction set, each in a file of its own. Operands that
// never change and accumulators that all stay in registers: nothing but the multipliers, or the
// memory, holds the loop up.
#pragma once

#include <cstddef>
#include <cstdint>

namespace drover {

struct LimitKernels {
  // Reads `bytes`, a multiple of 1024, from `data`, which stands on a cache line. What comes back
  // depends on all of it, so that no compiler leaves a part out.
  uint64_t (*read)(const std::byte* data, size_t bytes);
  // Runs the loop `rounds` times; `value` is what the operands are made of. What comes back depends
  // on every product.
  int32_t (*int8)(int64_t rounds, int8_t value);
  float (*floats)(int64_t rounds, float value);
  // Operations of one round of each.
  int64_t int8_operations;
  int64_t float_operations;
  // The same with bf16 operands drawn from `seed`; null where there is no matrix unit.
  float (*bf16)(int64_t rounds, uint32_t seed) = nullptr;
  int64_t bf16_operations = 0;
};

LimitKernels limit_kernels_plain();
LimitKernels limit_kernels_avx2();
LimitKernels limit_kernels_avxvnni();
LimitKernels limit_kernels_avx512();
LimitKernels limit_kernels_amx();

}  // namespace drover
