// Vocabularies for tests: the real ones of ../shared/data when they are there, and one small enough
// to stand in a test.
#pragma once

#include <boost/json.hpp>
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

// The GGUF fields that say what `vocabulary` does, and the strings that they view.
struct GgufSource {
  GgufSource(const Vocabulary& v, std::string_view pre) {
    for (size_t i = 0; i < v.tokens.size(); ++i) {
      tokens.push_back(v.kinds[i] == TokenKind::kNormal ? bytes_to_alphabet(v.tokens[i])
                                                        : v.tokens[i]);
      fields.token_types.push_back(static_cast<int32_t>(v.kinds[i]) + 1);
    }
    for (const auto& [left, right] : v.merges) {
      merges.push_back(tokens[static_cast<size_t>(left)] + " " +
                       tokens[static_cast<size_t>(right)]);
    }
    fields.source = v.source;
    fields.model = "gpt2";
    fields.pre = pre;
    fields.tokens.assign(tokens.begin(), tokens.end());
    fields.merges.assign(merges.begin(), merges.end());
    if (v.bos) fields.bos = static_cast<uint32_t>(*v.bos);
    if (v.eos) fields.eos = static_cast<uint32_t>(*v.eos);
    fields.add_bos = v.add_bos;
  }
  GgufSource(const GgufSource&) = delete;
  GgufSource& operator=(const GgufSource&) = delete;

  std::vector<std::string> tokens, merges;
  GgufTokenizerFields fields;
};

// A tokenizer.json that says what a Llama 4 `vocabulary` does, with its merges as pairs or as
// strings.
inline std::string tokenizer_json(const Vocabulary& v, bool merges_as_pairs) {
  namespace json = boost::json;
  json::object vocab;
  json::array added, merges;
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    if (v.kinds[i] == TokenKind::kNormal) {
      vocab[bytes_to_alphabet(v.tokens[i])] = i;
    } else {
      added.push_back({{"id", i},
                       {"content", v.tokens[i]},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false},
                       {"special", v.kinds[i] == TokenKind::kControl}});
    }
  }
  for (const auto& [left, right] : v.merges) {
    const std::string a = bytes_to_alphabet(v.tokens[static_cast<size_t>(left)]);
    const std::string b = bytes_to_alphabet(v.tokens[static_cast<size_t>(right)]);
    if (merges_as_pairs) {
      merges.push_back(json::array{a, b});
    } else {
      merges.push_back(json::string(a + " " + b));
    }
  }
  const std::string pattern =
      R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
      R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
      R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  const json::value byte_level = {{"type", "ByteLevel"},
                                  {"add_prefix_space", false},
                                  {"trim_offsets", true},
                                  {"use_regex", false}};
  const json::value split = {{"type", "Split"},
                             {"pattern", {{"Regex", pattern}}},
                             {"behavior", "Isolated"},
                             {"invert", false}};
  const std::string bos = v.tokens[static_cast<size_t>(v.bos.value())];
  const json::array single = {
      json::object{{"SpecialToken", json::object{{"id", bos}, {"type_id", 0}}}},
      json::object{{"Sequence", json::object{{"id", "A"}, {"type_id", 0}}}}};
  const json::object root = {
      {"version", "1.0"},
      {"added_tokens", added},
      {"normalizer", nullptr},
      {"pre_tokenizer",
       json::object{{"type", "Sequence"}, {"pretokenizers", json::array{split, byte_level}}}},
      {"post_processor", json::object{{"type", "TemplateProcessing"}, {"single", single}}},
      {"decoder", byte_level},
      {"model", json::object{{"type", "BPE"},
                             {"dropout", nullptr},
                             {"unk_token", nullptr},
                             {"fuse_unk", false},
                             {"ignore_merges", v.ignore_merges},
                             {"vocab", vocab},
                             {"merges", merges}}}};
  return json::serialize(root);
}

}  // namespace drover
