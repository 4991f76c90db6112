// An adapter of random numbers for any model, strong enough that a wrong one shows.
#pragma once

#include <cmath>
#include <filesystem>
#include <functional>
#include <random>
#include <vector>

#include "model/peft.h"

namespace drover::testing {

// Factors of every target, or of those that `wanted` says, of normal values such that B A is about
// as large as a weight of deviation 0.3 / sqrt(cols).
inline std::vector<LowRank> random_adapter(
    const ModelConfig& config, int64_t rank, uint32_t seed, float scale,
    const std::function<bool(const AdapterTarget&)>& wanted = {}) {
  std::mt19937 random(seed);
  std::vector<LowRank> out;
  for (const AdapterTarget& target : adapter_targets(config)) {
    if (wanted && !wanted(target)) continue;
    LowRank low{target, rank, scale, {}, {}};
    low.a.resize(static_cast<size_t>(target.matrices * rank * target.cols));
    low.b.resize(static_cast<size_t>(target.matrices * target.rows * rank));
    std::normal_distribution<float> a(0, 1 / std::sqrt(static_cast<float>(target.cols)));
    std::normal_distribution<float> b(0, 0.3f / std::sqrt(static_cast<float>(rank)) / scale);
    for (float& value : low.a) value = a(random);
    for (float& value : low.b) value = b(random);
    out.push_back(std::move(low));
  }
  return out;
}

// The same in a folder as PEFT has it; scale = alpha / rank.
inline void write_random_adapter(const std::filesystem::path& folder, const ModelConfig& config,
                                 int64_t rank, uint32_t seed, double alpha = 8) {
  const auto scale = static_cast<float>(alpha / static_cast<double>(rank));
  write_peft(random_adapter(config, rank, seed, scale), {.rank = rank, .alpha = alpha}, config,
             folder);
}

}  // namespace drover::testing
