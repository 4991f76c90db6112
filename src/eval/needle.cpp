#include "eval/needle.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cerrno>
#include <set>

#include "base/error.h"
#include "base/mapped_file.h"
#include "formats/json.h"

namespace drover {
namespace {

namespace json = boost::json;

constexpr int64_t kVersion = 1;

// Needles of a seed are the same at every length and depth. A control has no needle to place: its
// depths are questions of their own, about one text.
uint64_t task_seed(const NeedleGrid& grid, const NeedleCell& cell) {
  uint64_t seed = grid.seed * 8191 + static_cast<uint64_t>(cell.seed);
  if (cell.kind == NeedleKind::kControl) seed = seed * 8191 + static_cast<uint64_t>(cell.depth) + 1;
  return seed;
}

// Whether needles other than the first are in the text, so that two seeds have little in common.
bool has_others(NeedleKind kind) {
  return kind != NeedleKind::kControl && kind != NeedleKind::kSingle;
}

json::object line_of(const NeedleCell& cell, const NeedleResult& result) {
  return {{"kind", needle_kind_name(cell.kind)},
          {"length", cell.length},
          {"depth", cell.depth},
          {"seed", cell.seed},
          {"score", result.score},
          {"answer", printable(result.answer, 1000)},
          {"prompt_tokens", result.prompt_tokens},
          {"cached_tokens", result.cached_tokens}};
}

}  // namespace

double NeedleGrid::depth(int64_t index) const {
  return depths == 1 ? 0.5 : static_cast<double>(index) / static_cast<double>(depths - 1);
}

void validate(const NeedleGrid& grid) {
  if (grid.lengths.empty() || grid.kinds.empty()) {
    throw_error(ErrorKind::kUsage, "needle: expected lengths and kinds, got none");
  }
  if (grid.depths < 1 || grid.depths > 1001 || grid.seeds < 1 || grid.seeds > 1000) {
    throw_error(ErrorKind::kUsage,
                "needle: expected 1 to 1001 depths and 1 to 1000 seeds, got {} and {}", grid.depths,
                grid.seeds);
  }
  if (std::set(grid.lengths.begin(), grid.lengths.end()).size() != grid.lengths.size() ||
      std::set(grid.kinds.begin(), grid.kinds.end()).size() != grid.kinds.size()) {
    throw_error(ErrorKind::kUsage, "needle: expected every length and kind once, got one twice");
  }
}

std::vector<NeedleCell> cells_of(const NeedleGrid& grid) {
  std::vector<int64_t> lengths = grid.lengths;
  std::sort(lengths.begin(), lengths.end());
  std::vector<NeedleCell> out;
  for (const int64_t length : lengths) {
    for (const NeedleKind kind : grid.kinds) {
      if (has_others(kind)) {
        for (int64_t seed = 0; seed < grid.seeds; ++seed) {
          for (int64_t d = grid.depths - 1; d >= 0; --d) out.push_back({kind, length, d, seed});
        }
      } else {
        for (int64_t d = grid.depths - 1; d >= 0; --d) {
          for (int64_t seed = 0; seed < grid.seeds; ++seed) out.push_back({kind, length, d, seed});
        }
      }
    }
  }
  return out;
}

NeedleState::NeedleState(const std::filesystem::path& path, const json::object& settings)
    : path_(printable(path.string(), 300)) {
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd_ < 0) throw_errno("open", path.string(), errno);
  try {
    if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
      throw Error(ErrorKind::kLimit, fmt::format("{}: another process works on it", path_),
                  "wait for it, or give another --state");
    }
    // A million cells of a kilobyte.
    const std::string text = read_file(path, size_t{1} << 30);
    const size_t whole = text.rfind('\n') + 1;  // 0 without a line break
    if (whole != text.size() && ::ftruncate(fd_, static_cast<off_t>(whole)) != 0) {
      throw_errno("write", path.string(), errno);
    }
    if (whole == 0) {
      append(json::serialize(json::object{{"drover_needle", kVersion}, {"settings", settings}}));
    } else {
      load(text.substr(0, whole), settings);
    }
  } catch (...) {
    ::close(fd_);
    throw;
  }
}

NeedleState::~NeedleState() { ::close(fd_); }

void NeedleState::load(const std::string& text, const json::object& settings) {
  int64_t number = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = text.find('\n', at);
    const std::string where = fmt::format("{}: line {}", path_, ++number);
    const json::value value = parse_json(std::string_view(text).substr(at, end - at), where);
    at = end + 1;
    if (!value.is_object()) throw_error(ErrorKind::kBadData, "{}: expected an object", where);
    const JsonFields f(value.get_object(), where);
    if (number == 1) {
      if (f.integer("drover_needle") != kVersion) {
        throw_error(ErrorKind::kBadData, "{}: expected the state of `drover needle`, version {}",
                    where, kVersion);
      }
      const json::object& before = f.required_fields("settings").object();
      for (const auto& [key, now] : settings) {
        const json::value* then = before.if_contains(key);
        if (then != nullptr && *then == now) continue;
        throw Error(ErrorKind::kUsage,
                    fmt::format("{}: was made with '{}' {}, got {}", path_, std::string_view(key),
                                then == nullptr ? "unset" : printable(json::serialize(*then)),
                                printable(json::serialize(now))),
                    "go on with the same flags, or give another --state");
      }
      continue;
    }
    const NeedleCell cell{needle_kind_from_name(f.required_text("kind")),
                          f.required_integer("length"), f.required_integer("depth"),
                          f.required_integer("seed")};
    results_[cell] = {f.required_number("score"), std::string(f.required_text("answer")),
                      f.required_integer("prompt_tokens"), f.required_integer("cached_tokens")};
  }
}

void NeedleState::append(const std::string& line) {
  const std::string whole = line + "\n";
  const ssize_t written = ::write(fd_, whole.data(), whole.size());
  if (written != static_cast<ssize_t>(whole.size()) || ::fdatasync(fd_) != 0) {
    throw_errno("write", path_, written < 0 ? errno : ENOSPC);
  }
}

void NeedleState::add(const NeedleCell& cell, const NeedleResult& result) {
  append(json::serialize(line_of(cell, result)));
  results_[cell] = result;
}

NeedleResults run_needles(const NeedleGrid& grid, NeedleAnswerer& answerer, Haystack& haystack,
                          NeedleState* state, const Progress& progress) {
  validate(grid);
  const std::vector<NeedleCell> cells = cells_of(grid);
  const PromptLayout& layout = answerer.layout();
  const int64_t longest = *std::max_element(grid.lengths.begin(), grid.lengths.end());
  if (layout.context > 0 && longest > layout.context) {
    throw_error(ErrorKind::kLimit, "lengths: expected at most the context of {} tokens, got {}",
                layout.context, longest);
  }
  NeedleResults out;
  uint64_t done = 0;
  for (const NeedleCell& cell : cells) {
    if (progress) progress(done++, cells.size());
    if (state != nullptr && state->results().contains(cell)) {
      out[cell] = state->results().at(cell);
      continue;
    }
    const NeedleTask task = make_needle_task(cell.kind, task_seed(grid, cell),
                                             grid.depth(cell.depth), needle_room(cell.length));
    const bool across = grid.across_border && !task.needles.empty();
    const NeedlePrompt prompt = lay_out(layout, haystack, task, cell.length, across);
    const NeedleAnswer answer = answerer.answer(prompt);
    const NeedleResult result{score_answer(task, answer.text), answer.text, answer.prompt_tokens,
                              answer.cached_tokens};
    if (state != nullptr) state->add(cell, result);
    out[cell] = result;
  }
  return out;
}

NeedleSummary summarise(const NeedleGrid& grid, const NeedleResults& results) {
  NeedleSummary out;
  for (const NeedleCell& cell : cells_of(grid)) {
    const auto found = results.find(cell);
    if (found == results.end()) continue;
    const double score = found->second.score;
    out.by_depth[{cell.kind, cell.length, cell.depth}].add(score);
    out.by_kind[{cell.kind, cell.length}].add(score);
    if (cell.kind == NeedleKind::kControl) {
      out.control.add(score);
    } else {
      out.by_length[cell.length].add(score);
    }
  }
  return out;
}

bool reaches(const NeedleSummary& summary, double threshold) {
  return summary.control.sum == 0 &&
         std::all_of(summary.by_length.begin(), summary.by_length.end(),
                     [&](const auto& entry) { return entry.second.recall() >= threshold; });
}

RecallMap recall_map_of(const NeedleSummary& summary, const std::string& model, double threshold) {
  RecallMap out;
  out.model = model;
  out.threshold = threshold;
  out.control_trials = summary.control.trials;
  out.control_recall = summary.control.recall();
  for (const auto& [length, mean] : summary.by_length) {
    RecallMap::Length& entry = out.lengths.emplace_back();
    entry.length = length;
    entry.trials = mean.trials;
    entry.recall = mean.recall();
    for (const auto& [key, by_kind] : summary.by_kind) {
      if (key.second != length || key.first == NeedleKind::kControl) continue;
      entry.by_kind[std::string(needle_kind_name(key.first))] = by_kind.recall();
    }
  }
  return out;
}

}  // namespace drover
