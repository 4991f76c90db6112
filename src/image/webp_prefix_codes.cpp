#include "image/webp_prefix_codes.h"

#include <algorithm>
#include <array>
#include <bitset>
#include <vector>

namespace drover {
namespace {

// Thrown and caught in this file.
struct Damaged {};

void require(bool sound) {
  if (!sound) throw Damaged();
}

// Bits from the lowest up.
class BitReader {
 public:
  explicit BitReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  uint32_t take(int count) {
    uint32_t out = 0;
    for (int i = 0; i < count; ++i, ++at_) {
      require(at_ / 8 < bytes_.size());
      out |= (std::to_integer<uint32_t>(bytes_[at_ / 8]) >> (at_ % 8) & 1) << i;
    }
    return out;
  }

 private:
  std::span<const std::byte> bytes_;
  uint64_t at_ = 0;
};

constexpr int kMaxLength = 15;

// A canonical prefix code, by the lengths of its symbols' codes.
class PrefixCode {
 public:
  explicit PrefixCode(std::span<const uint8_t> lengths) {
    for (const uint8_t length : lengths) ++counts_[length];
    counts_[0] = 0;
    std::array<uint32_t, kMaxLength + 2> place{};
    int64_t free = 1;
    for (int length = 1; length <= kMaxLength; ++length) {
      free = 2 * free - counts_[length];
      require(free >= 0);
      place[length + 1] = place[length] + counts_[length];
    }
    symbols_.resize(place[kMaxLength + 1]);
    for (size_t i = 0; i < lengths.size(); ++i) {
      if (lengths[i] != 0) symbols_[place[lengths[i]]++] = static_cast<uint16_t>(i);
    }
    // Complete, or of one symbol, which then takes no bits.
    require(free == 0 || symbols_.size() == 1);
  }

  uint32_t read(BitReader& bits) const {
    if (symbols_.size() == 1) return symbols_[0];
    // Codes of one length are consecutive numbers; after them the next length goes on.
    uint32_t code = 0, first = 0, index = 0;
    for (int length = 1;; ++length) {
      code |= bits.take(1);
      if (code - first < counts_[length]) return symbols_[index + code - first];
      index += counts_[length];
      first = (first + counts_[length]) << 1;
      code <<= 1;
    }
  }

 private:
  std::array<uint32_t, kMaxLength + 1> counts_{};
  std::vector<uint16_t> symbols_;
};

PrefixCode read_prefix_code(BitReader& bits, size_t alphabet) {
  std::vector<uint8_t> lengths(std::max<size_t>(alphabet, 256));
  if (bits.take(1) == 1) {  // one or two symbols, named
    const bool two = bits.take(1) == 1;
    lengths[bits.take(bits.take(1) == 1 ? 8 : 1)] = 1;
    if (two) lengths[bits.take(8)] = 1;
    return PrefixCode(std::span(lengths).first(alphabet));
  }
  constexpr uint8_t kOrder[19] = {17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  std::array<uint8_t, 19> length_lengths{};
  const uint32_t given = 4 + bits.take(4);
  for (uint32_t i = 0; i < given; ++i)
    length_lengths[kOrder[i]] = static_cast<uint8_t>(bits.take(3));
  const PrefixCode length_code(length_lengths);
  uint64_t steps = alphabet;
  if (bits.take(1) == 1) {
    const int width = 2 + 2 * static_cast<int>(bits.take(3));
    steps = 2 + bits.take(width);
    require(steps <= alphabet);
  }
  uint8_t previous = 8;
  for (size_t i = 0; i < alphabet && steps > 0; --steps) {
    const uint32_t symbol = length_code.read(bits);
    if (symbol < 16) {
      if (symbol != 0) previous = static_cast<uint8_t>(symbol);
      lengths[i++] = static_cast<uint8_t>(symbol);
      continue;
    }
    // 16: the last length that was not 0, again; 17 and 18: zeros.
    const size_t run = symbol == 16   ? 3 + bits.take(2)
                       : symbol == 17 ? 3 + bits.take(3)
                                      : 11 + bits.take(7);
    require(run <= alphabet - i);
    std::fill_n(lengths.begin() + static_cast<ptrdiff_t>(i), run, symbol == 16 ? previous : 0);
    i += run;
  }
  return PrefixCode(std::span(lengths).first(alphabet));
}

int read_cache_bits(BitReader& bits) {
  if (bits.take(1) == 0) return 0;
  const int cache_bits = static_cast<int>(bits.take(4));
  require(cache_bits >= 1 && cache_bits <= 11);
  return cache_bits;
}

// A length or a distance: its symbol says the highest two bits, the others follow.
uint32_t read_extended(BitReader& bits, uint32_t symbol) {
  if (symbol < 4) return symbol + 1;
  const int extra = static_cast<int>((symbol - 2) / 2);
  return ((2 + symbol % 2) << extra) + bits.take(extra) + 1;
}

// Numbers of groups that a picture of them uses.
using Numbers = std::bitset<65536>;

// Reads one of the small pictures that say how the large one is coded: literal pixels, copies and
// recent colours, under one group of prefix codes. Gives the numbers in red and green of its
// pixels; since copies and recent colours only repeat what was literal, the pixels themselves are
// not needed.
Numbers read_picture(const Decoding& decoding, BitReader& bits, int64_t width, int64_t height) {
  const int cache_bits = read_cache_bits(bits);
  const size_t colors = cache_bits == 0 ? 0 : size_t{1} << cache_bits;
  const PrefixCode green = read_prefix_code(bits, 256 + 24 + colors);
  const PrefixCode red = read_prefix_code(bits, 256), blue = read_prefix_code(bits, 256),
                   alpha = read_prefix_code(bits, 256), distance = read_prefix_code(bits, 40);
  Numbers out;
  int64_t left = width * height;
  for (uint64_t step = 0; left > 0; ++step) {
    if (step % 4096 == 0 && decoding.too_slow()) decoding.throw_if(Fault::kTooSlow, "WebP");
    const uint32_t symbol = green.read(bits);
    if (symbol < 256) {
      out.set(red.read(bits) << 8 | symbol);
      blue.read(bits);
      alpha.read(bits);
      --left;
    } else if (symbol < 256 + 24) {
      left -= read_extended(bits, symbol - 256);
      read_extended(bits, distance.read(bits));
    } else {
      out.set(0);  // what was not put in before is black
      --left;
    }
  }
  require(left == 0);
  return out;
}

int64_t squares(int64_t size, int bits) { return (size + (int64_t{1} << bits) - 1) >> bits; }

// How many groups of prefix codes there are, and the bits of the cache of colours.
struct Groups {
  int64_t count = 1;
  int cache_bits = 0;
};
Groups read_groups(const Decoding& decoding, BitReader& bits, int64_t width, int64_t height) {
  unsigned seen = 0;
  while (bits.take(1) == 1) {  // a transform, each kind at most once
    const uint32_t kind = bits.take(2);
    require((seen >> kind & 1) == 0);
    seen |= 1u << kind;
    if (kind == 0 || kind == 1) {  // predictors, or relations of colours: one for each square
      const int size = 2 + static_cast<int>(bits.take(3));
      read_picture(decoding, bits, squares(width, size), squares(height, size));
    } else if (kind == 3) {  // a palette; a small one puts several pixels into one
      const int64_t colors = 1 + bits.take(8);
      read_picture(decoding, bits, colors, 1);
      width = squares(width, colors > 16 ? 0 : colors > 4 ? 1 : colors > 2 ? 2 : 3);
    }
  }
  Groups out;
  out.cache_bits = read_cache_bits(bits);
  if (bits.take(1) == 0) return out;
  const int size = 2 + static_cast<int>(bits.take(3));
  const int64_t across = squares(width, size), down = squares(height, size);
  const Numbers used = read_picture(decoding, bits, across, down);
  int64_t most = static_cast<int64_t>(used.size());
  while (most > 0 && !used[most - 1]) --most;
  // Numbers that no square uses get no tables where there are many.
  out.count = most > 1000 || most > width * height ? static_cast<int64_t>(used.count()) : most;
  return out;
}

}  // namespace

int64_t webp_prefix_code_memory(const Decoding& decoding, std::span<const std::byte> stream,
                                int64_t width, int64_t height) {
  try {
    BitReader bits(stream);
    const Groups groups = read_groups(decoding, bits, width, height);
    // Of 4 bytes each: the most entries that tables of two levels, the first of 8 bits, can have
    // for the five alphabets; and a record for the group. The first alphabet grows with the cache.
    constexpr int64_t kEntries = 3 * 630 + 410, kRecord = 600;
    constexpr int64_t kFirst[12] = {654, 656, 658, 662, 670, 686, 718, 782, 912, 1168, 1680, 2704};
    return groups.count * (4 * (kEntries + kFirst[groups.cache_bits]) + kRecord);
  } catch (const Damaged&) {
    return 0;
  }
}

}  // namespace drover
