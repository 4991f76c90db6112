// A progress bar on a terminal's standard error; silent in a pipe. Library code takes a Progress
// callback and never prints.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

namespace drover {

// Called with how much is done of how much in all, in the caller's unit. May throw to cancel.
using Progress = std::function<void(uint64_t done, uint64_t total)>;

class ProgressBar {
 public:
  // `unit` is shown after the figures; "bytes" are shown as MB or GB. Shows nothing for the first
  // 200 ms, so that short work leaves no flicker.
  ProgressBar(std::string title, std::string unit);
  ~ProgressBar();  // clears the line
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void update(uint64_t done, uint64_t total);
  // Shown after the figures from now on.
  void note(std::string text) { note_ = std::move(text); }
  Progress callback() {
    return [this](uint64_t done, uint64_t total) { update(done, total); };
  }

 private:
  std::string title_, unit_, note_;
  bool terminal_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point start_, last_;
};

}  // namespace drover
