// Finds the texts of special tokens in a text. Views the vocabulary's tokens, which must stay in
// place and outlive it. Immutable and thread-safe.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/vocabulary.h"

namespace drover {

class SpecialMatcher {
 public:
  // Looks for the tokens of one kind.
  SpecialMatcher(const Vocabulary& vocabulary, TokenKind kind);

  struct Match {
    size_t begin;  // text.size() when there is none
    size_t end;
    Token token;
  };

  // The leftmost match that starts at `from` or later; the longest of those that start there.
  Match find(std::string_view text, size_t from) const;

  // The token with exactly this text, or -1.
  Token exactly(std::string_view text) const;

 private:
  std::vector<std::pair<std::string_view, Token>> texts_;  // sorted
  std::array<bool, 256> starts_{};                         // bytes that a text begins with
};

}  // namespace drover
