// Random numbers that are a function of a seed and an index: example 5,000,000 of a seed needs no
// example before it. The same on every machine. Plain data.
#pragma once

#include <cmath>
#include <cstdint>

namespace drover {

// Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators" (SplitMix64).
class Random {
 public:
  Random(uint64_t seed, uint64_t index) : state_(seed) { state_ = next() ^ (index * 0xd1342543de82ef95u); }

  uint64_t next() {
    state_ += 0x9e3779b97f4a7c15u;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // In [0, n), n > 0: the upper half of a product, even to 2^-64 n.
  int64_t below(int64_t n) {
    return static_cast<int64_t>((static_cast<unsigned __int128>(next()) * static_cast<uint64_t>(n)) >> 64);
  }
  // In [first, last].
  int64_t between(int64_t first, int64_t last) { return first + below(last - first + 1); }
  // In [0, 1), 53 bits.
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  bool chance(double p) { return uniform() < p; }
  // Normal of mean 0 and deviation 1. Source: Box & Muller 1958.
  double normal() {
    const double u = 1.0 - uniform(), v = uniform();
    return std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586 * v);
  }

 private:
  uint64_t state_;
};

}  // namespace drover
