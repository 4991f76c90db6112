#include "kernels/limits/limits_kernels.h"

namespace drover {
namespace {

uint64_t read(const std::byte* data, size_t bytes) {
  const auto* words = reinterpret_cast<const uint64_t*>(data);
  uint64_t sums[8] = {};
  for (size_t i = 0; i < bytes / 8; i += 8) {
    for (int j = 0; j < 8; ++j) sums[j] ^= words[i + j];
  }
  uint64_t sum = 0;
  for (const uint64_t s : sums) sum ^= s;
  return sum;
}

// Arrays in the first cache: a compiler makes the best vectors of them that it may.
constexpr int kValues = 256;
constexpr int kLanes = 32;

int32_t int8(int64_t rounds, int8_t value) {
  alignas(64) int8_t a[kValues], b[kValues];
  for (int i = 0; i < kValues; ++i) a[i] = b[i] = value;
  int32_t sum = 0;
  for (int64_t r = 0; r < rounds; ++r) {
    a[r % kValues] = static_cast<int8_t>(r);  // the next round is not this one again
    int32_t part = 0;
    for (int i = 0; i < kValues; ++i) part += static_cast<int32_t>(a[i]) * b[i];
    sum ^= part;
  }
  return sum;
}

float floats(int64_t rounds, float value) {
  float sums[kLanes];
  for (int i = 0; i < kLanes; ++i) sums[i] = value + static_cast<float>(i);
  for (int64_t r = 0; r < rounds; ++r) {
    for (int i = 0; i < kLanes; ++i) sums[i] = sums[i] * value + value;
  }
  float sum = 0;
  for (const float s : sums) sum += s;
  return sum;
}

}  // namespace

LimitKernels limit_kernels_plain() { return {read, int8, floats, 2 * kValues, 2 * kLanes}; }

}  // namespace drover
