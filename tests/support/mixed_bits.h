// Numbers by a formula that any language can repeat, for data that need not lie in files.
#pragma once

#include <cstdint>

namespace drover::testing {

// 64 well mixed bits for element i of a tensor: splitmix64's step and finaliser, as the scripts
// that make the goldens have it (tests/reference/README.md, "The released width").
inline uint64_t mix(uint64_t tensor, uint64_t i) {
  uint64_t z = (i + 1 + (tensor << 40)) * 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

}  // namespace drover::testing
