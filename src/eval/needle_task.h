// What a needle trial hides and asks: sentences with random numbers, a question whose answer is one
// of them, and the score of an answer. Everything is a function of kind and seed.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace drover {

enum class NeedleKind {
  kControl,        // the question without its needle: nobody can answer
  kSingle,         // one needle
  kMultiKey,       // beside seven others of other places
  kMultiValue,     // four numbers of one place, all of them asked for
  kNearDuplicate,  // beside up to 63 others whose places differ in a word
  kTracking,       // a number, and four names that each stand for the one before
  kTwoHop,         // a number, and one name that stands for that of the number
};

// "control", "single", "multi-key", "multi-value", "near-duplicate", "variable-tracking",
// "two-hop"; the other way throws kUsage for any other name.
std::string_view needle_kind_name(NeedleKind kind);
NeedleKind needle_kind_from_name(std::string_view name);
std::vector<NeedleKind> all_needle_kinds();

struct NeedleTask {
  struct Needle {
    std::string text;      // a sentence
    double depth = 0;      // where it stands: 0 begins the haystack, 1 ends it
    std::string question;  // whose answer is its number alone; empty if there is none
  };
  std::vector<Needle> needles;        // the one at the trial's depth first
  std::string question;               // ends with what form the answer has
  std::vector<std::string> expected;  // numbers, all of them
  std::vector<std::string> decoys;    // numbers of the other needles, in their order
};

// depth: of the first needle, 0 to 1. most: how many needles there is room for, at least what the
// kind needs; only near duplicates take fewer where it is less. The others stand spread over the
// haystack, at places that do not depend on the depth: so prompts of one seed are alike up to the
// needle.
NeedleTask make_needle_task(NeedleKind kind, uint64_t seed, double depth, int64_t most = 64);

// The share of expected numbers that the answer has, digit by digit; 0 if it has a decoy too. A
// number is a run of digits; commas between groups of three are no part of it.
double score_answer(const NeedleTask& task, std::string_view answer);

}  // namespace drover
