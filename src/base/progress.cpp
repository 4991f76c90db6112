#include "base/progress.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "fmt/format.h"

namespace drover {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

namespace {

// A terminal that can go back to the beginning of its line.
bool can_redraw() {
  const char* kind = std::getenv("TERM");
  return ::isatty(STDERR_FILENO) == 1 && (kind == nullptr || std::string_view(kind) != "dumb");
}

// Bytes are shown in a unit that people can read.
std::string amount(uint64_t done, uint64_t total, const std::string& unit) {
  if (unit != "bytes") return fmt::format("{}/{} {}", done, total, unit);
  const bool large = total >= 10'000'000'000;
  const double scale = large ? 1e9 : 1e6;
  return fmt::format("{:.1f}/{:.1f} {}", static_cast<double>(done) / scale,
                     static_cast<double>(total) / scale, large ? "GB" : "MB");
}

}  // namespace

ProgressBar::ProgressBar(std::string title, std::string unit)
    : title_(std::move(title)),
      unit_(std::move(unit)),
      terminal_(can_redraw()),
      start_(Clock::now()),
      last_(start_) {}

ProgressBar::~ProgressBar() {
  if (drawn_) fmt::print(stderr, "\r\033[K");
}

void ProgressBar::update(uint64_t done, uint64_t total) {
  if (!terminal_ || total == 0) return;
  const auto now = Clock::now();
  if (now - start_ < 200ms || now - last_ < 50ms) return;
  last_ = now;
  drawn_ = true;
  constexpr int kWidth = 30;
  const double fraction = static_cast<double>(done) / static_cast<double>(total);
  const int filled = static_cast<int>(fraction * kWidth);
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double left = fraction > 0 ? seconds / fraction - seconds : 0;
  fmt::print(stderr, "\r\033[K{} [{:#<{}}{:.<{}}] {}{}{}, {:.0f} s left", title_, "", filled, "",
             kWidth - filled, amount(done, total, unit_), note_.empty() ? "" : ", ", note_, left);
  std::fflush(stderr);
}

}  // namespace drover
