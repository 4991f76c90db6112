#include "text/pre_tokenizer.h"

#include "base/error.h"
#include "text/unicode.h"
#include "text/utf8.h"

namespace drover {
namespace {

using enum CharClass;

// A character of the text: its class, where it ends. At the end of the text there is none.
struct Char {
  bool exists;
  CharClass char_class;
  char32_t code_point;
  size_t end;
};

Char char_at(std::string_view text, size_t at) {
  if (at >= text.size()) return {false, kSymbol, 0, at};
  const Utf8Step step = utf8_step(text, at);
  return {true, char_class(step.code_point), step.code_point, at + step.length};
}

// The end of the longest run from `at` of characters whose class satisfies `accept`.
template <typename Accept>
size_t run_end(std::string_view text, size_t at, Accept accept) {
  while (true) {
    const Char c = char_at(text, at);
    if (!c.exists || !accept(c.char_class)) return at;
    at = c.end;
  }
}

bool is_symbol(CharClass c) { return c == kSymbol || c == kMark; }  // [^\s\p{L}\p{N}]
bool is_number(CharClass c) { return c == kNumber; }

// 's|'t|'re|'ve|'m|'ll|'d at text[at]: where it ends, or `at`. Without regard to case, s is also
// U+017F, the only other character that folds to one of these letters.
size_t contraction_end(std::string_view text, size_t at, bool any_case) {
  if (at + 1 >= text.size() || text[at] != '\'') return at;
  const auto letter = [&](size_t i) {
    const char c = i < text.size() ? text[i] : '\0';
    return any_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  };
  const char first = letter(at + 1), second = letter(at + 2);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return at + 2;
  if ((first == 'r' || first == 'v') && second == 'e') return at + 3;
  if (first == 'l' && second == 'l') return at + 3;
  if (any_case && text.substr(at + 1, 2) == "\xC5\xBF") return at + 3;
  return at;
}

// ` ?[^\s\p{L}\p{N}]+` followed by any of `tail`: the end, or `begin` when it does not match.
size_t symbols_end(std::string_view text, size_t begin, std::string_view tail) {
  const size_t first = begin + (text[begin] == ' ');
  size_t end = run_end(text, first, is_symbol);
  if (end == first) return begin;
  while (end < text.size() && tail.find(text[end]) != std::string_view::npos) ++end;
  return end;
}

// `\s*[\r\n]+|\s+(?!\S)|\s+` with newlines, `\s+(?!\S)|\s+` without, on text[begin], which is
// white space. With `numbers_end` a number ends the text for the look-ahead.
size_t white_end(std::string_view text, size_t begin, bool newlines, bool numbers_end) {
  size_t end = begin, last = begin, after_newline = begin;
  Char c = char_at(text, begin);
  for (; c.exists && is_white(c.char_class); c = char_at(text, end)) {
    last = end;
    end = c.end;
    if (c.char_class == kNewline) after_newline = end;
  }
  if (newlines && after_newline != begin) return after_newline;
  const bool text_ends = !c.exists || (numbers_end && c.char_class == kNumber);
  // The look-ahead gives the last white character back, if another one is left.
  return text_ends || last == begin ? end : last;
}

// `\p{N}{1,3}` on text[begin], which is a number.
size_t up_to_three_numbers_end(std::string_view text, size_t begin) {
  size_t end = begin;
  for (int i = 0; i < 3; ++i) {
    const Char c = char_at(text, end);
    if (!c.exists || c.char_class != kNumber) break;
    end = c.end;
  }
  return end;
}

// [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}] and [\p{Ll}\p{Lm}\p{Lo}\p{M}] of the Llama 4 pattern.
bool is_upper_side(CharClass c) { return c == kUpper || c == kLetter || c == kMark; }
bool is_lower_side(CharClass c) { return c == kLower || c == kLetter || c == kMark; }

struct WordEnds {
  size_t lower;  // end of upper* lower+, or `at` when it does not match
  size_t upper;  // end of upper+ lower* where the former does not match, or `at`
};

// `upper* lower+` with backtracking: upper* takes its whole run; if no lower-side character
// follows, it gives back until one that is on both sides (a caseless letter or a mark) can be the
// lower+.
WordEnds word_ends(std::string_view text, size_t at) {
  size_t end = at, after_both = at;
  Char c = char_at(text, at);
  for (; c.exists && is_upper_side(c.char_class); c = char_at(text, end)) {
    end = c.end;
    if (c.char_class != kUpper) after_both = end;
  }
  if (c.exists && c.char_class == kLower) {
    return {run_end(text, end, is_lower_side), at};
  }
  return {after_both, end};
}

size_t llama4_end(std::string_view text, size_t begin) {
  // Both word alternatives may start with one character that is no letter, number or newline. The
  // order is that of the pattern: lower with prefix, lower without, upper with, upper without. A
  // mark is both a possible prefix and a part of words, all others only one of them.
  const Char first = char_at(text, begin);
  const bool prefix = is_symbol(first.char_class) || first.char_class == kSpace;
  const bool in_word = is_letter(first.char_class) || first.char_class == kMark;
  const WordEnds with = prefix ? word_ends(text, first.end) : WordEnds{first.end, first.end};
  size_t end = begin;
  if (with.lower != first.end) {
    end = with.lower;
  } else if (in_word) {
    const WordEnds without = word_ends(text, begin);
    end = without.lower != begin ? without.lower : without.upper;
  } else if (with.upper != first.end) {
    end = with.upper;
  }
  if (end != begin) return contraction_end(text, end, /*any_case=*/true);

  if (first.char_class == kNumber) return up_to_three_numbers_end(text, begin);
  end = symbols_end(text, begin, "\r\n/");
  if (end != begin) return end;
  return white_end(text, begin, /*newlines=*/true, /*numbers_end=*/false);
}

size_t llama3_end(std::string_view text, size_t begin) {
  size_t end = contraction_end(text, begin, /*any_case=*/true);
  if (end != begin) return end;
  const Char first = char_at(text, begin);
  if (is_letter(first.char_class)) return run_end(text, begin, is_letter);
  if (first.char_class == kNumber) return up_to_three_numbers_end(text, begin);
  if (first.char_class != kNewline) {
    end = run_end(text, first.end, is_letter);
    if (end != first.end) return end;
  }
  end = symbols_end(text, begin, "\r\n");
  if (end != begin) return end;
  return white_end(text, begin, /*newlines=*/true, /*numbers_end=*/false);
}

size_t gpt2_end(std::string_view text, size_t begin, bool numbers_alone) {
  size_t end = contraction_end(text, begin, /*any_case=*/false);
  if (end != begin) return end;
  if (numbers_alone) {
    const Char first = char_at(text, begin);
    if (first.char_class == kNumber) return first.end;
  }
  const size_t first = begin + (text[begin] == ' ');
  end = run_end(text, first, is_letter);
  if (end != first) return end;
  if (!numbers_alone) {
    end = run_end(text, first, is_number);
    if (end != first) return end;
  }
  end = symbols_end(text, begin, "");
  if (end != begin) return end;
  return white_end(text, begin, /*newlines=*/false, numbers_alone);
}

}  // namespace

std::string_view pre_tokenizer_name(PreTokenizer pre) {
  switch (pre) {
    case PreTokenizer::kLlama4:
      return "llama4";
    case PreTokenizer::kLlama3:
      return "llama3";
    case PreTokenizer::kGpt2:
      return "gpt2";
    case PreTokenizer::kSmolLm:
      return "smollm";
  }
  return "unknown";
}

size_t piece_end(PreTokenizer pre, std::string_view text, size_t begin) {
  switch (pre) {
    case PreTokenizer::kLlama4:
      return llama4_end(text, begin);
    case PreTokenizer::kLlama3:
      return llama3_end(text, begin);
    case PreTokenizer::kGpt2:
      return gpt2_end(text, begin, /*numbers_alone=*/false);
    case PreTokenizer::kSmolLm:
      return gpt2_end(text, begin, /*numbers_alone=*/true);
  }
  throw_error(ErrorKind::kInternal, "pre-tokenizer {} does not exist", static_cast<int>(pre));
}

}  // namespace drover
