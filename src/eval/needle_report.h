// What needle trials came to, as JSON, as a table for programs, and as heat maps to look at.
#pragma once

#include <boost/json/object.hpp>
#include <filesystem>
#include <string>

#include "eval/needle.h"

namespace drover {

// "512", "8K", "1M", "10M": as lengths are given.
std::string length_text(int64_t tokens);

// settings: what was asked, as it stands in the state file.
boost::json::object needle_json(const NeedleGrid& grid, const NeedleSummary& summary,
                                const NeedleResults& results, const boost::json::object& settings,
                                double threshold);

// kind,length,depth,trials,recall; a line for each kind, length and depth.
std::string needle_csv(const NeedleGrid& grid, const NeedleSummary& summary);

// A panel for each kind: lengths from left to right, depths from top to bottom, the recall of each
// as colour and figure.
std::string needle_svg(const NeedleGrid& grid, const NeedleSummary& summary,
                       const std::string& title);
void write_needle_png(const std::filesystem::path& path, const NeedleGrid& grid,
                      const NeedleSummary& summary, const std::string& title);

}  // namespace drover
