// The block formats of quantised weights, byte for byte as GGUF files hold them (spec section 9.5).
// A block stands for 32 or 256 consecutive values of a row. All numbers are little-endian and
// nothing is aligned: the structs are packed, so a pointer into a mapped file may be read through
// them wherever it points. What the fields mean is said once, in dequantize.cpp, as code.
#pragma once

#include <cstdint>

#include "tensor/float16.h"

namespace drover {

#pragma pack(push, 1)

// x[j] = d * q[j]
struct BlockQ8_0 {
  f16 d;
  int8_t q[32];
};

// x[j] = d * (code[j] - 8). A byte holds code j in its low and code j + 16 in its high half.
struct BlockQ4_0 {
  f16 d;
  uint8_t q[16];
};

// x[j] = d * code[j] + m, codes as in Q4_0.
struct BlockQ4_1 {
  f16 d;
  f16 m;
  uint8_t q[16];
};

// x[j] = d * (code[j] - 16). The lower four bits of the codes as in Q4_0; bit j of the 32 in `high`
// (least significant first) is the fifth of code j.
struct BlockQ5_0 {
  f16 d;
  uint8_t high[4];
  uint8_t q[16];
};

// x[j] = d * code[j] + m, codes as in Q5_0.
struct BlockQ5_1 {
  f16 d;
  f16 m;
  uint8_t high[4];
  uint8_t q[16];
};

// 256 values in 8 sub-blocks of 32: x = (d * scale) * code - (dmin * min), with a 6-bit scale and a
// 6-bit min per sub-block (k_scale and k_min below). Sub-blocks 2g and 2g + 1 share the 32 bytes
// q[32g...]: their codes are the low and the high halves.
struct BlockQ4_K {
  f16 d;
  f16 dmin;
  uint8_t scales[12];
  uint8_t q[128];
};

// As Q4_K with a fifth bit: bit s of high[l] belongs to code l of sub-block s.
struct BlockQ5_K {
  f16 d;
  f16 dmin;
  uint8_t scales[12];
  uint8_t high[32];
  uint8_t q[128];
};

// 256 values in 16 sub-blocks of 16: x = (d * scale) * (code - 32), with a signed 8-bit scale per
// sub-block and 6-bit codes. In each half of 128 values, value 32 s + l has its lower four bits in
// low[64 half + 32 (s % 2) + l] (low nibble for s = 0, 1, high for s = 2, 3) and its upper two in
// bits 2s and 2s + 1 of high[32 half + l].
struct BlockQ6_K {
  uint8_t low[128];
  uint8_t high[64];
  int8_t scales[16];
  f16 d;
};

#pragma pack(pop)

static_assert(sizeof(BlockQ8_0) == 34 && sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20);
static_assert(sizeof(BlockQ5_0) == 22 && sizeof(BlockQ5_1) == 24);
static_assert(sizeof(BlockQ4_K) == 144 && sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210);

// The scale and the minimum, 0 to 63, of sub-block s (0 to 7) of a Q4_K or Q5_K block. The first
// four have bytes s and s + 4 to themselves but for the two top bits, which hold the upper bits of
// the last four; their lower bits share byte s + 4.
inline int k_scale(const uint8_t scales[12], int s) {
  return s < 4 ? scales[s] & 63 : (scales[s + 4] & 15) | (scales[s - 4] >> 6 << 4);
}
inline int k_min(const uint8_t scales[12], int s) {
  return s < 4 ? scales[s + 4] & 63 : (scales[s + 4] >> 4) | (scales[s] >> 6 << 4);
}

}  // namespace drover
