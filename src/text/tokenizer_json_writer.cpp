// tokenizer.json in the form of the Hugging Face tokenizers library. Source: spec 7.5.
#include <boost/json.hpp>

#include "base/error.h"
#include "text/byte_alphabet.h"
#include "text/patterns.h"
#include "text/vocabulary.h"

namespace drover {
namespace {

namespace json = boost::json;

json::object byte_level(bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", true},
          {"use_regex", use_regex}};
}

json::object sequence(json::object first, json::object second) {
  return {{"type", "Sequence"},
          {"pretokenizers", json::array{std::move(first), std::move(second)}}};
}

json::object split(std::string_view pattern) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", pattern}}},
          {"behavior", "Isolated"},
          {"invert", false}};
}

json::object pre_tokenizer(PreTokenizer pre) {
  switch (pre) {
    case PreTokenizer::kLlama4:
      return sequence(split(kLlama4Pattern), byte_level(false));
    case PreTokenizer::kLlama3:
      return sequence(split(kLlama3Pattern), byte_level(false));
    case PreTokenizer::kGpt2:
      return byte_level(true);
    case PreTokenizer::kSmolLm:
      return sequence({{"type", "Digits"}, {"individual_digits", true}}, byte_level(true));
  }
  throw_error(ErrorKind::kInternal, "pre-tokenizer {} does not exist", static_cast<int>(pre));
}

// What stands around a text, and around a pair of them: begin-of-text before each.
json::value post_processor(const Vocabulary& v) {
  if (!v.add_bos || !v.bos) return nullptr;
  const std::string& bos = v.tokens[static_cast<size_t>(*v.bos)];
  const auto special = [&](int type) {
    return json::object{{"SpecialToken", {{"id", bos}, {"type_id", type}}}};
  };
  const auto text = [](const char* name, int type) {
    return json::object{{"Sequence", {{"id", name}, {"type_id", type}}}};
  };
  const json::object known = {
      {bos, json::object{{"id", bos}, {"ids", json::array{*v.bos}}, {"tokens", json::array{bos}}}}};
  return json::object{{"type", "TemplateProcessing"},
                      {"single", json::array{special(0), text("A", 0)}},
                      {"pair", json::array{special(0), text("A", 0), special(1), text("B", 1)}},
                      {"special_tokens", known}};
}

}  // namespace

std::string vocabulary_to_tokenizer_json(const Vocabulary& v) {
  const auto is_text = [&](size_t i) {
    return v.kinds[i] == TokenKind::kNormal || v.kinds[i] == TokenKind::kByte;
  };
  size_t text_end = v.tokens.size();
  while (text_end > 0 && !is_text(text_end - 1)) --text_end;

  json::object vocab;
  json::array added, merges;
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    if (is_text(i)) {
      vocab[bytes_to_alphabet(v.tokens[i])] = i;
    } else if (v.kinds[i] != TokenKind::kUnused) {
      added.push_back({{"id", i},
                       {"content", v.tokens[i]},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false},
                       {"special", v.kinds[i] != TokenKind::kUserDefined}});
      // The library gives tokens that it adds the next free ids. One that stands among the others
      // keeps its own by being one of them.
      if (i < text_end) vocab[v.tokens[i]] = i;
    }
  }
  for (const auto& [left, right] : v.merges) {
    // As one string: versions before 0.20 read no other form, and no alphabet has a space.
    merges.push_back(json::string(bytes_to_alphabet(v.tokens[static_cast<size_t>(left)]) + " " +
                                  bytes_to_alphabet(v.tokens[static_cast<size_t>(right)])));
  }
  return json::serialize(json::object{{"version", "1.0"},
                                      {"truncation", nullptr},
                                      {"padding", nullptr},
                                      {"added_tokens", std::move(added)},
                                      {"normalizer", nullptr},
                                      {"pre_tokenizer", pre_tokenizer(v.pre)},
                                      {"post_processor", post_processor(v)},
                                      {"decoder", byte_level(true)},
                                      {"model", json::object{{"type", "BPE"},
                                                             {"dropout", nullptr},
                                                             {"unk_token", nullptr},
                                                             {"continuing_subword_prefix", nullptr},
                                                             {"end_of_word_suffix", nullptr},
                                                             {"fuse_unk", false},
                                                             {"byte_fallback", false},
                                                             {"ignore_merges", v.ignore_merges},
                                                             {"vocab", std::move(vocab)},
                                                             {"merges", std::move(merges)}}}});
}

}  // namespace drover
