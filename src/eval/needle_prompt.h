// Prompts of an exact length with needles in them. A needle takes the place of as many tokens of
// the haystack as it has itself, so that every other token stays what and where it was, and a model
// that remembers what it read reads only the touched chunk again.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/needle_task.h"
#include "text/vocabulary.h"

namespace drover {

// How whoever answers reads texts.
struct PromptLayout {
  std::function<std::vector<Token>(std::string_view text)> encode;
  std::function<std::string(std::span<const Token> tokens)> decode;
  // What a user's turn with this content becomes, the answer's beginning included.
  std::function<std::vector<Token>(std::string_view content)> render;
  int64_t chunk = 0;    // tokens of a chunk of local attention; 0: none, or not known
  int64_t context = 0;  // most tokens of prompt and answer; 0: not known
};

// Four bytes count as one token: for those whose tokenizer nobody here has. Cutting a text there
// may cut a character.
PromptLayout byte_layout();

// What a prompt with needles begins with.
inline constexpr std::string_view kNeedlePreface =
    "Somewhere in the text below stands what the question at its end asks for. Read the text and "
    "remember the numbers in it.\n\n";

// What stands before and after a long text that a user's turn consists of, between a preface and a
// question.
struct PromptFrame {
  std::vector<Token> head, tail;
};
PromptFrame frame_of(const PromptLayout& layout, std::string_view preface,
                     std::string_view question);

// A text without end, as tokens. Not thread-safe.
class Haystack {
 public:
  // Made up here: sentences about people, things and places, without a digit.
  static Haystack made_up(const PromptLayout& layout);
  // The files one after the other, and from the start again. Throws kUsage if they are empty, and
  // what reading throws.
  static Haystack from_files(const PromptLayout& layout,
                             std::span<const std::filesystem::path> files);

  // The first tokens.
  std::span<const Token> tokens(int64_t count);
  // Tells texts apart: "made up, version 1", or a hash of the files.
  const std::string& name() const { return name_; }

 private:
  std::string name_;
  std::function<void(std::vector<Token>&)> more_;  // appends
  std::vector<Token> tokens_;
};

struct NeedlePrompt {
  std::vector<Token> tokens;
  int64_t max_tokens = 0;  // of the answer
  int64_t first_body = 0;  // where the haystack begins
  std::string content;     // of the user's turn, for those who are told texts
  struct Span {
    int64_t first, count;
  };
  std::vector<Span> needles;  // where they stand, as in the task
};

// Tokens that an answer may take.
int64_t answer_tokens(const NeedleTask& task);

// Needles that a prompt of this length has room for: they fill a quarter of it at most.
int64_t needle_room(int64_t length);

// The task in a prompt that with its answer takes `length` tokens exactly. A needle stands inside
// one chunk; with across_border the first one lies over the border next to its depth. No two
// overlap: what would moves to the nearest free place. Throws kUsage where the length is too short
// for the question and the needles, or has no border.
NeedlePrompt lay_out(const PromptLayout& layout, Haystack& haystack, const NeedleTask& task,
                     int64_t length, bool across_border);

}  // namespace drover
