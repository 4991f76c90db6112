// Text to tokens and back. A Tokenizer is immutable and thread-safe, and cheap to copy: copies
// share one vocabulary. It works on bytes: broken UTF-8 is text like any other.
//
// decode(encode(text)) == text for any bytes, as long as the vocabulary has a token for every byte
// (missing_bytes() is then empty); the vocabularies of Llama 3 and 4 have.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/vocabulary.h"

namespace drover {

// One call takes less than this; longer texts are refused with kLimit.
inline constexpr size_t kMaxTextBytes = (size_t{1} << 31) - 1;

class Tokenizer {
 public:
  // Throws what validate() throws.
  explicit Tokenizer(Vocabulary vocabulary);

  // The tokens of a user's text. Never a control token: "<|eot|>" in it is seven ordinary
  // characters. No begin-of-text token is put before it. Bytes that the vocabulary has no token for
  // are left out, as in the tokenizers library. Linear in the text, but n log n in its longest
  // piece (pre_tokenizer.h).
  std::vector<Token> encode(std::string_view text) const;
  void encode(std::string_view text, std::vector<Token>& out) const;  // appends

  // The tokens of a template's text, or of someone's who asks for it: the text of a control token
  // becomes that token, the leftmost first, the longest of those that start at one place.
  std::vector<Token> encode_special(std::string_view text) const;

  // The control token with this text.
  std::optional<Token> special(std::string_view text) const;

  // The bytes of a token, the text of a control token; empty for an unused or unknown id. The view
  // lives as long as any copy of this Tokenizer.
  std::string_view token_bytes(Token token) const;
  bool is_control(Token token) const;

  // The bytes that the tokens stand for. Control tokens show their text with `show_special`, and
  // nothing without.
  std::string decode(std::span<const Token> tokens, bool show_special = false) const;

  int64_t size() const { return static_cast<int64_t>(vocabulary().tokens.size()); }
  const Vocabulary& vocabulary() const;
  // Bytes without a token.
  std::span<const unsigned char> missing_bytes() const;

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

}  // namespace drover
