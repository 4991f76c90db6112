// How far a model's memory can be trusted: needles at many depths of contexts of many lengths.
// Trials are cells of a grid; each is done once, kept in a state file if there is one, and summed
// up.
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/progress.h"
#include "eval/needle_answerer.h"
#include "eval/needle_task.h"
#include "eval/recall_map.h"

namespace drover {

struct NeedleGrid {
  std::vector<int64_t> lengths;  // tokens, question and answer included
  int64_t depths = 11;           // from 0 to 1 in even steps; one alone is the middle
  int64_t seeds = 3;             // needles, each tried at every depth of every length
  std::vector<NeedleKind> kinds;
  bool across_border = false;
  uint64_t seed = 1;

  double depth(int64_t index) const;
};

// Throws kUsage for a grid without cells, or lengths and kinds that come twice.
void validate(const NeedleGrid& grid);

struct NeedleCell {
  NeedleKind kind = NeedleKind::kSingle;
  int64_t length = 0;
  int64_t depth = 0;  // index
  int64_t seed = 0;   // index

  auto operator<=>(const NeedleCell&) const = default;
};

// All cells in the order in which neighbours share most of their prompts: from the shortest length,
// and from the deepest needle, so that what stands before it has been read.
std::vector<NeedleCell> cells_of(const NeedleGrid& grid);

struct NeedleResult {
  double score = 0;  // 0 to 1
  std::string answer;
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
};
using NeedleResults = std::map<NeedleCell, NeedleResult>;

// The results so far, in a file of lines (JSONL): the settings, then a line for each cell, written
// in one piece and flushed. A line that a crash cut short is dropped. One process at a time.
class NeedleState {
 public:
  // Opens or makes the file. Throws kUsage that names the difference if it was made with other
  // settings, kBadData if it is no such file, kLimit while another process has it, and what files
  // throw.
  NeedleState(const std::filesystem::path& path, const boost::json::object& settings);
  ~NeedleState();
  NeedleState(const NeedleState&) = delete;
  NeedleState& operator=(const NeedleState&) = delete;

  const NeedleResults& results() const { return results_; }
  void add(const NeedleCell& cell, const NeedleResult& result);

 private:
  void load(const std::string& text, const boost::json::object& settings);
  void append(const std::string& line);

  std::string path_;
  int fd_ = -1;
  NeedleResults results_;
};

// Does all cells that `state`, which may be null, does not hold yet. Progress counts cells.
NeedleResults run_needles(const NeedleGrid& grid, NeedleAnswerer& answerer, Haystack& haystack,
                          NeedleState* state, const Progress& progress = {});

// A mean over trials.
struct NeedleMean {
  int64_t trials = 0;
  double sum = 0;
  double recall() const { return trials == 0 ? 0 : sum / static_cast<double>(trials); }
  void add(double score) { ++trials, sum += score; }
};

struct NeedleSummary {
  std::map<std::tuple<NeedleKind, int64_t, int64_t>, NeedleMean> by_depth;  // kind, length, depth
  std::map<std::pair<NeedleKind, int64_t>, NeedleMean> by_kind;             // kind, length
  std::map<int64_t, NeedleMean> by_length;                                  // without the control
  NeedleMean control;
};
NeedleSummary summarise(const NeedleGrid& grid, const NeedleResults& results);

// True if every length's mean over all kinds reaches the threshold and no control was answered.
bool reaches(const NeedleSummary& summary, double threshold);

RecallMap recall_map_of(const NeedleSummary& summary, const std::string& model, double threshold);

}  // namespace drover
