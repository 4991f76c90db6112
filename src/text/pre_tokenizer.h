// Cuts text into the pieces inside which BPE merges. Each pattern below is the regular expression
// of the model family, matched by hand: it takes linear time on any input, needs no limits and no
// machine code at run time, and gives the same pieces whatever libraries a system has. A regular
// expression engine was the other choice; it brings its own Unicode version (see unicode.h) and
// needs a fallback for the inputs that exceed its stack.
//
// Broken UTF-8 is cut as if each ill-formed group (utf8.h) were U+FFFD, a symbol; the pieces keep
// the bytes as they are.
//
// Everything here is pure and thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace drover {

enum class PreTokenizer : uint8_t {
  kLlama4,  // the o200k pattern, spec 7.3
  kLlama3,  // (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}
            // | ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
  kGpt2,    // 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
  kSmolLm,  // every \p{N} alone, then kGpt2 between them
};

// "llama4", "llama3", "gpt2", "smollm".
std::string_view pre_tokenizer_name(PreTokenizer pre);

// The end of the piece that starts at text[begin]; begin < text.size(), and begin is 0 or an
// earlier result. The result is greater than begin. Amortised over a whole text the cost is linear.
size_t piece_end(PreTokenizer pre, std::string_view text, size_t begin);

}  // namespace drover
