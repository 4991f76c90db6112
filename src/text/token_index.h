// Finds a token by its bytes. A hash table of ids over texts that it does not own: they must
// outlive it and stay where they are. Immutable after the inserts, then thread-safe.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace drover {

// Hashes start from a number drawn once per process, so that no file can be built to make all its
// tokens collide. Nothing that leaves the program depends on it.
inline uint64_t hash_seed() {
  static const uint64_t seed = [] {
    std::random_device device;
    return uint64_t{device()} << 32 | device();
  }();
  return seed;
}

// A bijection that spreads every input bit over the word (the finalizer of splitmix64).
inline uint64_t mix_bits(uint64_t x) {
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  return x ^ x >> 31;
}

class TokenIndex {
 public:
  // `texts` by id; room for `count` inserts.
  TokenIndex(const std::vector<std::string>& texts, size_t count) : texts_(&texts) {
    size_t slots = 16;
    while (slots < 2 * count) slots *= 2;
    ids_.assign(slots, -1);
  }

  // False when another id has the same text.
  bool insert(int32_t id) {
    const size_t slot = find_slot((*texts_)[static_cast<size_t>(id)]);
    if (ids_[slot] >= 0) return false;
    ids_[slot] = id;
    return true;
  }

  // The id, or -1.
  int32_t find(std::string_view text) const { return ids_[find_slot(text)]; }

 private:
  size_t find_slot(std::string_view text) const {
    uint64_t hash = hash_seed();
    size_t at = 0;
    for (; at + 8 <= text.size(); at += 8) hash = mix_bits(hash ^ word(text, at, 8));
    hash = mix_bits(hash ^ word(text, at, text.size() - at) ^ uint64_t{text.size()} << 56);
    for (size_t slot = hash & (ids_.size() - 1);; slot = (slot + 1) & (ids_.size() - 1)) {
      if (ids_[slot] < 0 || (*texts_)[static_cast<size_t>(ids_[slot])] == text) return slot;
    }
  }

  static uint64_t word(std::string_view text, size_t at, size_t n) {
    uint64_t out = 0;
    text.copy(reinterpret_cast<char*>(&out), n, at);
    return out;
  }

  const std::vector<std::string>* texts_;
  std::vector<int32_t> ids_;
};

}  // namespace drover
