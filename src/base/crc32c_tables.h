// Internal to crc32c: arithmetic of polynomials over GF(2) modulo the Castagnoli polynomial, bits
// reflected (bit 31 is x^0). All of it happens when compiling.
#pragma once

#include <cstddef>
#include <cstdint>

namespace drover {

inline constexpr uint32_t kCastagnoli = 0x82f63b78;  // reflected, without x^32

// a * x
constexpr uint32_t crc_times_x(uint32_t a) { return (a >> 1) ^ ((a & 1) ? kCastagnoli : 0); }

// x^n
constexpr uint32_t crc_power_of_x(uint64_t n) {
  uint32_t out = uint32_t{1} << 31;
  for (uint64_t i = 0; i < n; ++i) out = crc_times_x(out);
  return out;
}

// With the crc32 instruction and a multiplication without carries; the state goes in and comes out
// as it is, not inverted.
uint32_t crc32c_sse42(uint32_t state, const std::byte* data, size_t bytes);

}  // namespace drover
