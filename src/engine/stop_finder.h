// Finds the first stop string in a text that comes in pieces, and holds back what may be the
// beginning of one.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace drover {

class StopFinder {
 public:
  explicit StopFinder(std::vector<std::string> stops);

  // Adds a piece; returns what can be shown now.
  std::string push(std::string_view piece);
  // No more pieces: returns what was held back.
  std::string flush();
  bool found() const { return found_.has_value(); }
  // Which of them it was; of those at one place the one that was given first.
  const std::optional<std::string>& which() const { return found_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  std::optional<std::string> found_;
};

}  // namespace drover
