// A whole model small enough for a test: a golden checkpoint with a tokenizer made by hand. Its
// answers are nonsense, and always the same nonsense.
#pragma once

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "model/model.h"
#include "tests/support/temp_folder.h"
#include "text/byte_alphabet.h"

namespace drover::testing {

// Bytes that the tokenizer has; it leaves others out. The last two are the halves of U+00E9.
inline constexpr std::string_view kSmallAlphabet =
    "\n abcdefghijklmnopqrstuvwxyz0123456789.,!?'\"-:;()<|>_\xC3\xA9";

// Control tokens 0 to 3 (2 and 3 are what the goldens' generation_config.json stops at), then the
// alphabet, then "th", "the", " t". 64 tokens at most, as many as the smallest golden embeds.
inline std::string small_tokenizer_json() {
  namespace json = boost::json;
  json::array added;
  int64_t id = 0;
  for (const char* text : {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|spare|>"}) {
    added.push_back({{"id", id++}, {"content", text}, {"special", true}});
  }
  json::object vocab;
  for (const char byte : kSmallAlphabet)
    vocab[bytes_to_alphabet(std::string_view(&byte, 1))] = id++;
  for (const char* text : {"th", "the", " t"}) vocab[bytes_to_alphabet(text)] = id++;
  const json::array merges = {"t h", "th e", bytes_to_alphabet(" ") + " t"};
  return json::serialize(json::object{
      {"added_tokens", added},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}}});
}

inline std::string small_tokenizer_config_json() {
  return boost::json::serialize(boost::json::object{
      {"eos_token", "<|im_end|>"},
      {"chat_template",
       "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
       "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"}});
}

// Copies a golden into `folder`, which is made, and puts the tokenizer beside it.
inline void write_small_model(const std::filesystem::path& folder, std::string_view golden) {
  namespace fs = std::filesystem;
  fs::create_directories(folder);
  for (const auto& entry : fs::directory_iterator(fs::path("tests/data/goldens") / golden)) {
    const fs::path name = entry.path().filename();
    if (name.extension() == ".npy" || name == "tokens.json" || name == "config.older.json")
      continue;
    fs::copy(entry.path(), folder / name);
  }
  std::ofstream(folder / "tokenizer.json") << small_tokenizer_json();
  std::ofstream(folder / "tokenizer_config.json") << small_tokenizer_config_json();
}

// Tests on one of them, loaded once: Scout-like, with chunks of 16 tokens and a context of 1,024.
class SmallModelTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TempFolder();
    write_small_model(*folder_ / "model", "scout");
    model_ = Model::load((*folder_ / "model").string()).release();
  }
  static void TearDownTestSuite() {
    delete model_;
    delete folder_;
  }
  static std::vector<Token> tokens_of(std::string_view text) {
    return model_->tokenizer().encode(text);
  }

  static inline TempFolder* folder_ = nullptr;
  static inline Model* model_ = nullptr;
};

}  // namespace drover::testing
