// Vocabularies for tests: the real ones of ../shared/data when they are there, and one small enough
// to stand in a test.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/mapped_file.h"
#include "text/byte_alphabet.h"
#include "text/vocabulary.h"

namespace drover {

inline std::filesystem::path shared_data(std::string_view name) {
  const char* root = std::getenv("DROVER_SHARED");
  return std::filesystem::path(root ? root : "../shared") / "data" / name;
}

// Tokens by rank of a tiktoken file: lines of base64, a space, the rank. For tests: it trusts the
// file, formats/ has the reader that does not.
inline std::vector<std::string> read_ranks(const std::filesystem::path& path) {
  static constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const std::string file = read_file(path, size_t{64} << 20);
  std::vector<std::string> out;
  for (size_t at = 0; at < file.size();) {
    const size_t space = file.find(' ', at), line = file.find('\n', at);
    DROVER_CHECK(space != std::string::npos && line != std::string::npos);
    std::string token;
    uint32_t bits = 0;
    int n = 0;
    for (; at < space && file[at] != '='; ++at) {
      bits = bits << 6 | static_cast<uint32_t>(kDigits.find(file[at]));
      n += 6;
      if (n >= 8) token += static_cast<char>(bits >> (n -= 8) & 0xFF);
    }
    DROVER_CHECK(std::stoul(file.substr(space + 1, line - space)) == out.size());
    out.push_back(std::move(token));
    at = line + 1;
  }
  return out;
}

// All 256 bytes in order, then "he", "ll", "hell", "hello", " h", "12", then the special tokens of
// Llama 4's chat format and one user-defined token.
inline Vocabulary small_vocabulary() {
  Vocabulary v;
  v.source = "small";
  const auto add = [&v](std::string text, TokenKind kind) {
    v.tokens.push_back(std::move(text));
    v.kinds.push_back(kind);
    return static_cast<Token>(v.tokens.size() - 1);
  };
  for (int byte = 0; byte < 256; ++byte) {
    add(std::string(1, static_cast<char>(byte)), TokenKind::kNormal);
  }
  const Token he = add("he", TokenKind::kNormal);
  const Token ll = add("ll", TokenKind::kNormal);
  const Token hell = add("hell", TokenKind::kNormal);
  add("hello", TokenKind::kNormal);
  add(" h", TokenKind::kNormal);
  add("12", TokenKind::kNormal);
  v.merges = {{'h', 'e'}, {'l', 'l'}, {he, ll}, {hell, 'o'}, {' ', 'h'}, {'1', '2'}};
  v.bos = add("<|begin_of_text|>", TokenKind::kControl);
  for (const char* text : {"<|header_start|>", "<|header_end|>", "<|eom|>"}) {
    add(text, TokenKind::kControl);
  }
  v.eos = add("<|eot|>", TokenKind::kControl);
  add("<|eot|>more", TokenKind::kControl);
  add("[user]", TokenKind::kUserDefined);
  v.add_bos = true;
  find_stops(v);
  return v;
}

}  // namespace drover
