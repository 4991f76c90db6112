#include "engine/session.h"

#include <gtest/gtest.h>

namespace drover {
namespace {

std::string show(StopFinder& finder, std::initializer_list<std::string_view> pieces) {
  std::string out;
  for (const auto piece : pieces) out += finder.push(piece) + "|";
  if (!finder.found()) out += finder.flush();
  return out;
}

TEST(StopFinder, ShowsNothingOfAStopStringAndHoldsBackItsBeginnings) {
  StopFinder finder({"END", "\n\n"});
  EXPECT_EQ(show(finder, {"a E", "N", "x", "\n", "b", "EN", "D more"}), "a ||ENx||\nb|||");
}

TEST(StopFinder, TheFirstStopInTheTextWins) {
  StopFinder finder({"later", "ate"});
  EXPECT_EQ(finder.push("I later"), "I ");
  EXPECT_TRUE(finder.found());
  EXPECT_EQ(finder.push("more"), "");
}

TEST(StopFinder, WithoutStopsEverythingPasses) {
  StopFinder finder({""});
  EXPECT_EQ(finder.push("abc"), "abc");
  EXPECT_FALSE(finder.found());
}

}  // namespace
}  // namespace drover
