#include "text/unicode.h"

#include <algorithm>
#include <iterator>
#include <memory>

namespace drover {
namespace {

using enum CharClass;

struct Run {
  char32_t first;
  CharClass char_class;
};

constexpr Run kRuns[] = {
#include "text/unicode_runs.inc"
};

constexpr char32_t kCodePoints = 0x110000;

std::unique_ptr<CharClass[]> lay_out() {
  auto table = std::make_unique<CharClass[]>(kCodePoints);
  for (const Run* run = std::begin(kRuns); run != std::end(kRuns); ++run) {
    const char32_t end = run + 1 == std::end(kRuns) ? kCodePoints : run[1].first;
    std::fill(&table[run->first], &table[0] + end, run->char_class);
  }
  return table;
}

}  // namespace

CharClass char_class(char32_t c) {
  static const std::unique_ptr<CharClass[]> table = lay_out();
  return table[c];
}

}  // namespace drover
