#include "base/crc32c.h"

#include <array>

#include "base/crc32c_tables.h"

namespace drover {
namespace {

// What a byte that leaves the state on the right adds to the rest.
constexpr std::array<uint32_t, 256> make_table() {
  std::array<uint32_t, 256> out{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = crc_times_x(value);
    out[byte] = value;
  }
  return out;
}
constexpr std::array<uint32_t, 256> kTable = make_table();

}  // namespace

uint32_t crc32c_plain(std::span<const std::byte> bytes) {
  uint32_t state = ~uint32_t{0};
  for (const std::byte byte : bytes) {
    state = kTable[(state ^ static_cast<uint32_t>(byte)) & 0xff] ^ (state >> 8);
  }
  return ~state;
}

uint32_t crc32c(std::span<const std::byte> bytes) {
#if defined(__x86_64__)
  static const bool fast = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul");
  if (fast) return ~crc32c_sse42(~uint32_t{0}, bytes.data(), bytes.size());
#endif
  return crc32c_plain(bytes);
}

}  // namespace drover
