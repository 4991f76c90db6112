// How far a model's memory can be trusted, as `drover needle` measured it and `run` and `serve`
// read it: by length of context, the share of needles that it found.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace drover {

struct RecallMap {
  struct Length {
    int64_t length = 0;
    int64_t trials = 0;
    double recall = 0;  // 0 to 1
    std::map<std::string, double> by_kind;
  };
  std::string model;
  double threshold = 0;         // that `drover needle` was given, or kDefaultThreshold
  std::vector<Length> lengths;  // increasing
  int64_t control_trials = 0;   // with the needle removed
  double control_recall = 0;    // 0, or the figures mean nothing
};

inline constexpr double kDefaultThreshold = 0.9;

// The longest length with a recall of at least `threshold`, as has every shorter one that was
// measured; 0 if none, or if a control was answered.
int64_t vouched_length(const RecallMap& map, double threshold);

// As JSON. The file appears whole. Throws what FileWriter throws.
void save_recall_map(const RecallMap& map, const std::filesystem::path& path);
// Throws kBadData for a file that is no recall map, and what reading throws.
RecallMap load_recall_map(const std::filesystem::path& path);

}  // namespace drover
