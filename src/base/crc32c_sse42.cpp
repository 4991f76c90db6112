// The crc32 instruction takes 8 bytes per cycle but gives its result after 3 cycles, so three lanes
// run side by side and are joined: what the first lane has is multiplied by x to the number of bits
// that come after it.
#include <immintrin.h>

#include <cstring>

#include "base/crc32c_tables.h"

namespace drover {
namespace {

// Three lanes of 1,360 bytes fill a 4 KiB piece to its last 16 bytes.
constexpr size_t kLane = 1360;

// Times x^(8 * bytes). The product of two reflected polynomials stands one bit lower than its
// place, and the crc32 instruction multiplies by x^32 when it reduces: hence 33 less.
template <size_t bytes>
uint32_t shifted(uint32_t state) {
  constexpr uint32_t kFactor = crc_power_of_x(8 * bytes - 33);
  const __m128i product =
      _mm_clmulepi64_si128(_mm_cvtsi32_si128(static_cast<int>(state)),
                           _mm_cvtsi32_si128(static_cast<int>(kFactor)), /*low, low*/ 0);
  return static_cast<uint32_t>(_mm_crc32_u64(0, static_cast<uint64_t>(_mm_cvtsi128_si64(product))));
}

uint64_t load(const std::byte* data) {
  uint64_t out;
  std::memcpy(&out, data, sizeof(out));
  return out;
}

}  // namespace

uint32_t crc32c_sse42(uint32_t state, const std::byte* data, size_t bytes) {
  for (; bytes >= 3 * kLane; bytes -= 3 * kLane, data += 3 * kLane) {
    uint64_t a = state, b = 0, c = 0;
    for (size_t i = 0; i < kLane; i += 8) {
      a = _mm_crc32_u64(a, load(data + i));
      b = _mm_crc32_u64(b, load(data + kLane + i));
      c = _mm_crc32_u64(c, load(data + 2 * kLane + i));
    }
    state = shifted<2 * kLane>(static_cast<uint32_t>(a)) ^
            shifted<kLane>(static_cast<uint32_t>(b)) ^ static_cast<uint32_t>(c);
  }
  uint64_t rest = state;
  for (; bytes >= 8; bytes -= 8, data += 8) rest = _mm_crc32_u64(rest, load(data));
  state = static_cast<uint32_t>(rest);
  for (; bytes > 0; --bytes, ++data) state = _mm_crc32_u8(state, static_cast<uint8_t>(*data));
  return state;
}

}  // namespace drover
