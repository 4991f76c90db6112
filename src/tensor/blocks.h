// The block formats of quantised weights, byte for byte as GGUF files hold them (spec section 9.5).
// A block stands for 32 or 256 consecutive values of a row. All numbers are little-endian and
// nothing is aligned: the structs are packed, so a pointer into a mapped file may be read through
// them wherever it points. What the fields mean is said once, in dequantize.cpp, as code.
#pragma once

#include <bit>
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

// 256 values in 16 sub-blocks of 16: x = (d * scale) * code - (dmin * min). A byte of `scales`
// holds a sub-block's scale in its low and its min in its high half. In each half of 128 values,
// the code of value 32 s + l is in bits 2s and 2s + 1 of q[32 half + l].
struct BlockQ2_K {
  uint8_t scales[16];
  uint8_t q[64];
  f16 d;
  f16 dmin;
};

// 256 values in 16 sub-blocks of 16: x = (d * scale) * (code - 4), with a 6-bit scale less 32 per
// sub-block (k3_scale below). The lower two bits of the codes as in Q2_K; the third of value
// 32 s + l is bit s of high[l].
struct BlockQ3_K {
  uint8_t high[32];
  uint8_t low[64];
  uint8_t scales[12];
  f16 d;
};

// x[j] = d * kIq4Values[code[j]], codes as in Q4_0.
struct BlockIQ4_NL {
  f16 d;
  uint8_t q[16];
};

// 256 values in 8 sub-blocks of 32: x = (d * scale) * kIq4Values[code], with a 6-bit scale less 32
// per sub-block (iq4_scale below). Sub-block s has the 16 bytes q[16s...], codes as in Q4_0.
struct BlockIQ4_XS {
  f16 d;
  uint8_t scales_high[2];
  uint8_t scales_low[4];
  uint8_t q[128];
};

// x[j] = half_e8m0(exponent) * kMxfp4Values[code[j]], codes as in Q4_0: the 4-bit floats of the OCP
// Microscaling formats v1.0.
struct BlockMXFP4 {
  uint8_t exponent;
  uint8_t q[16];
};

#pragma pack(pop)

static_assert(sizeof(BlockQ8_0) == 34 && sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20);
static_assert(sizeof(BlockQ5_0) == 22 && sizeof(BlockQ5_1) == 24);
static_assert(sizeof(BlockQ4_K) == 144 && sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210);
static_assert(sizeof(BlockQ2_K) == 84 && sizeof(BlockQ3_K) == 110);
static_assert(sizeof(BlockIQ4_NL) == 18 && sizeof(BlockIQ4_XS) == 136 && sizeof(BlockMXFP4) == 17);

// The scale and the minimum, 0 to 63, of sub-block s (0 to 7) of a Q4_K or Q5_K block. The first
// four have bytes s and s + 4 to themselves but for the two top bits, which hold the upper bits of
// the last four; their lower bits share byte s + 4.
inline int k_scale(const uint8_t scales[12], int s) {
  return s < 4 ? scales[s] & 63 : (scales[s + 4] & 15) | (scales[s - 4] >> 6 << 4);
}
inline int k_min(const uint8_t scales[12], int s) {
  return s < 4 ? scales[s + 4] & 63 : (scales[s + 4] >> 4) | (scales[s] >> 6 << 4);
}

// The scale, -32 to 31, of sub-block s (0 to 15) of a Q3_K block: the lower four bits in nibbles of
// the first eight bytes, the upper two in pairs of bits of the last four.
inline int k3_scale(const uint8_t scales[12], int s) {
  const int low = (scales[s % 8] >> (4 * (s / 8))) & 15;
  const int high = (scales[8 + s % 4] >> (2 * (s / 4))) & 3;
  return (low | high << 4) - 32;
}

// The scale, -32 to 31, of sub-block s (0 to 7) of an IQ4_XS block.
inline int iq4_scale(const BlockIQ4_XS& b, int s) {
  const int low = (b.scales_low[s / 2] >> (4 * (s % 2))) & 15;
  const int high = (b.scales_high[s / 4] >> (2 * (s % 4))) & 3;
  return (low | high << 4) - 32;
}

// What the codes of IQ4_NL and IQ4_XS stand for: denser near zero, as weights are.
inline constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                          1,    13,   25,  38,  53,  69,  89,  113};

// Twice what the codes of MXFP4 stand for: sign, two bits of exponent, one of mantissa. Doubled
// they are whole numbers; the scale is halved for it.
inline constexpr int8_t kMxfp4Values[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                            0, -1, -2, -3, -4, -6, -8, -12};

// Half of the scale of an MXFP4 block, 2^(e - 128). The two lowest are subnormal; 255, which OCP
// calls NaN, is read as 2^127 like any other, as all readers of GGUF files do.
inline float half_e8m0(uint8_t e) {
  const uint32_t normal = static_cast<uint32_t>(e - 1) << 23, subnormal = (e + 1u) << 21;
  return std::bit_cast<float>(e < 2 ? subnormal : normal);
}

}  // namespace drover
