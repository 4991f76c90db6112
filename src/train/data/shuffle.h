// A shuffle without a table: where each of n items stands is a function of the seed, so that item
// 5,000,000 needs none before it. Plain functions.
#pragma once

#include <bit>
#include <cstdint>
#include <utility>

#include "train/random.h"

namespace drover {

// A bijection of [0, n), n > 0, another one for each key. Source: Black & Rogaway 2002, "Ciphers
// with arbitrary finite domains": a Feistel network over the next power of four, walked until it
// comes back into the domain, after less than four steps on average.
inline uint64_t shuffled(uint64_t key, uint64_t i, uint64_t n) {
  const int half = (std::bit_width(n - 1) + 1) / 2;
  const uint64_t mask = (uint64_t{1} << half) - 1;
  do {
    uint64_t left = i >> half, right = i & mask;
    for (uint64_t round = 0; round < 4; ++round) {
      const uint64_t mixed = Random(key + round, right).next() & mask;
      left ^= mixed;
      std::swap(left, right);
    }
    i = left << half | right;
  } while (i >= n);
  return i;
}

// The item of example `index` where all n are taken once before any is taken again.
inline uint64_t taken_in_turn(uint64_t seed, uint64_t index, uint64_t n) {
  return shuffled(Random(seed, index / n).next(), index % n, n);
}

}  // namespace drover
