// The Unicode character classes that the pre-tokenizer patterns speak of, from our own table of
// Unicode 16. Tokens must not depend on which Unicode version a system library happens to know:
// Debian 12's PCRE2 knows 14, the tokenizers that made the vocabularies know 16, and 9,500 code
// points lie between.
#pragma once

#include <cstdint>

namespace drover {

enum class CharClass : uint8_t {
  kSymbol,   // everything that is in no class below: punctuation, symbols, controls, unassigned
  kSpace,    // \s except CR and LF
  kNewline,  // CR, LF
  kNumber,   // N
  kUpper,    // Lu, Lt
  kLower,    // Ll
  kLetter,   // Lm, Lo: letters without case
  kMark,     // M
};

// The class of a code point below 0x110000. Thread-safe; one byte load from a 1.1 MB table that is
// laid out at the first call.
CharClass char_class(char32_t c);

inline bool is_letter(CharClass c) { return c >= CharClass::kUpper && c <= CharClass::kLetter; }
inline bool is_white(CharClass c) { return c == CharClass::kSpace || c == CharClass::kNewline; }

}  // namespace drover
