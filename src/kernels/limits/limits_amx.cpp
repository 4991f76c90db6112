#include <immintrin.h>

#include "kernels/limits/limits_kernels.h"

namespace drover {
namespace {

constexpr int kRepeat = 16;  // so that counting rounds costs nothing

// Four sums of two tiles by two. The operands are random numbers of both signs from 1/4 to 4: zeros
// would need less power, and the clock be higher than any work finds it.
float bf16(int64_t rounds, uint32_t seed) {
  alignas(64) uint16_t operands[4][512];
  for (auto& tile : operands) {
    for (uint16_t& value : tile) {
      seed = seed * 1664525 + 1013904223;
      const uint32_t exponent = 125 + (seed >> 30);
      value = static_cast<uint16_t>(exponent << 7 | (seed >> 22 & 127) | (seed >> 14 & 0x8000));
    }
  }
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  alignas(64) float sums[4][256];
  // The intrinsics do not tell the compiler which memory they read and write.
  asm volatile("" : : "r"(&operands), "r"(&config), "r"(&sums) : "memory");
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, operands[0], 64);
  _tile_loadd(5, operands[1], 64);
  _tile_loadd(6, operands[2], 64);
  _tile_loadd(7, operands[3], 64);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kRepeat; ++i) {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  _tile_stored(2, sums[2], 64);
  _tile_stored(3, sums[3], 64);
  _tile_release();
  asm volatile("" : : "r"(&sums) : "memory");
  return sums[0][0] + sums[1][0] + sums[2][0] + sums[3][0];
}

}  // namespace

// All but the matrix unit is that of AVX-512.
LimitKernels limit_kernels_amx() {
  LimitKernels kernels = limit_kernels_avx512();
  kernels.bf16 = bf16;
  kernels.bf16_operations = int64_t{kRepeat} * 4 * 2 * 16 * 16 * 32;
  return kernels;
}

}  // namespace drover
