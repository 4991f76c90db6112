// Seeded damage to bytes, for tests that feed readers with what no writer writes. The same seed
// gives the same damage everywhere: only the generator's raw bits are used, no distribution of the
// library.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace drover::testing {

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : bits_(seed) {}

  // A number in [0, n); 0 for n = 0.
  uint64_t below(uint64_t n) { return n == 0 ? 0 : bits_() % n; }
  bool one_in(uint64_t n) { return below(n) == 0; }

  template <typename T>
  const T& pick(const std::vector<T>& list) {
    return list[below(list.size())];
  }

  // A number on which arithmetic on sizes tends to break.
  uint64_t number() {
    static const std::vector<uint64_t> kNumbers = {0,
                                                   1,
                                                   2,
                                                   3,
                                                   7,
                                                   8,
                                                   31,
                                                   32,
                                                   64,
                                                   255,
                                                   256,
                                                   65535,
                                                   65536,
                                                   1u << 20,
                                                   1u << 24,
                                                   0x7fffffff,
                                                   0x80000000,
                                                   0xffffffff,
                                                   1ull << 32,
                                                   1ull << 40,
                                                   (1ull << 62) - 1,
                                                   1ull << 62,
                                                   (1ull << 63) - 1,
                                                   1ull << 63,
                                                   ~0ull - 31,
                                                   ~0ull - 1,
                                                   ~0ull};
    return one_in(8) ? bits_() : pick(kNumbers);
  }

  // Overwrites `width` bytes (at most 8) at `offset` with such a number.
  void set_number(std::string& bytes, size_t offset, size_t width) {
    const uint64_t value = number();
    if (offset >= bytes.size()) return;
    std::memcpy(bytes.data() + offset, &value,
                std::min({width, sizeof(value), bytes.size() - offset}));
  }

  // One random fault in [begin, end) of the bytes: flipped bits, overwritten numbers, bytes lost,
  // doubled or swapped, or an end cut off.
  void damage(std::string& bytes, size_t begin, size_t end) {
    end = std::min(end, bytes.size());
    if (begin >= end) return;
    const size_t at = begin + below(end - begin);
    const size_t length = std::min<size_t>(1 + below(one_in(4) ? 64 : 8), end - at);
    switch (below(8)) {
      case 0:
      case 1:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
        break;
      case 2:
        bytes[at] = static_cast<char>(bits_());
        break;
      case 3:
        set_number(bytes, at, size_t{1} << below(4));
        break;
      case 4:
        bytes.erase(at, length);
        break;
      case 5:
        bytes.insert(at, bytes.substr(at, length));
        break;
      case 6: {
        const size_t other = begin + below(end - begin - length + 1);
        for (size_t i = 0; i < length; ++i) std::swap(bytes[at + i], bytes[other + i]);
        break;
      }
      case 7:
        bytes.resize(at);
        break;
    }
  }

 private:
  std::mt19937_64 bits_;
};

}  // namespace drover::testing
