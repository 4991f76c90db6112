// What tests of sources need: a tokenizer with the control tokens of chats and pictures, eyes, and
// data in a folder of the test's own.
#pragma once

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <set>
#include <string>

#include "image/png_writer.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"
#include "text/bpe_trainer.h"
#include "text/special_tokens.h"
#include "train/sources.h"

namespace drover {

// {"kind": ...} with what every source of files must have.
inline boost::json::object data_settings(std::string_view kind, std::string_view file) {
  return {{"kind", kind},
          {"files", boost::json::array{file}},
          {"licence", "CC0-1.0"},
          {"origin", "made by a test"}};
}

class SourceTest : public ::testing::Test {
 protected:
  static Tokenizer trained(std::vector<std::string> special) {
    BpeTrainer trainer({.size = 300, .special = std::move(special)});
    trainer.add("the user says that the assistant says what the user says");
    return Tokenizer(trainer.train().vocabulary);
  }

  SourceTest() {
    vision_.tiles = {.size = 56, .max_tiles = 4};
    vision_.patch = 14;
    vision_.shuffle = 2;  // 4 tokens a tile
  }

  SourceContext context(bool held_out = false) const {
    return {&tokenizer_, ChatFormat::kLlama4, &vision_, folder_.path(), held_out};
  }
  // The message of the Error says these words.
  void refuses(const boost::json::object& settings, std::string_view words,
               ErrorKind kind = ErrorKind::kBadData) const {
    testing::expect_error(kind, words, [&] { make_source(settings, context()); });
  }
  // What is learnt of an example, as text with control tokens.
  std::string learnt(const Example& example) const {
    std::vector<Token> tokens;
    for (size_t i = 0; i < example.tokens.size(); ++i) {
      if (example.weights[i] > 0) tokens.push_back(example.tokens[i]);
    }
    return tokenizer_.decode(tokens, /*show_special=*/true);
  }
  std::string text(const Example& example) const {
    return tokenizer_.decode(example.tokens, /*show_special=*/true);
  }
  // A picture of one colour.
  void write_picture(std::string_view name, int64_t width, int64_t height, uint8_t value) const {
    const std::vector<uint8_t> rgb(static_cast<size_t>(width * height * 3), value);
    write_png(folder_ / name, rgb.data(), width, height);
  }

  testing::TempFolder folder_;
  Tokenizer tokenizer_ = trained(llama4_chat_tokens());
  VisionConfig vision_;
};

inline std::set<std::string> item_names(const Source& source) {
  std::set<std::string> out;
  for (const auto& item : source.facts().items) out.insert(item.name);
  return out;
}

}  // namespace drover
