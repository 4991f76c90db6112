// Tokens to text while they come: what may be shown now, never half a character.
#pragma once

#include <string>

#include "text/tokenizer.h"

namespace drover {

// One per stream; not thread-safe. Copies share the tokenizer. The strings of all calls together
// are the decoded bytes with each ill-formed group (utf8.h) replaced by U+FFFD: always valid UTF-8.
// Control tokens show nothing, and do not end a character that has begun.
class Detokenizer {
 public:
  explicit Detokenizer(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  // The characters that this token completes; maybe none. At most three bytes stay held back, and
  // only while they can still become a character.
  std::string push(Token token);

  // The end of the stream: what is held back can no longer become a character.
  std::string flush();

 private:
  Tokenizer tokenizer_;
  std::string pending_;
};

}  // namespace drover
