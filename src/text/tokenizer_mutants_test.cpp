// Broken tokenizer files: each mutant must give a typed Error or a tokenizer that works.
#include <gtest/gtest.h>

#include <cstdio>
#include <functional>
#include <map>
#include <random>

#include "base/error.h"
#include "text/chat_format.h"
#include "text/special_tokens.h"
#include "text/test_vocabularies.h"
#include "text/tokenizer.h"

namespace drover {
namespace {

constexpr unsigned kSeed = 20250405;
constexpr int kJsonMutants = 3000, kGgufMutants = 1980, kTiktokenMutants = 20;

// Counts what became of the mutants.
class Outcomes {
 public:
  void run(int index, const std::function<Vocabulary()>& load) {
    try {
      const Tokenizer tokenizer(load());
      use(tokenizer);
      ++counts_["loaded"];
    } catch (const Error& error) {
      ++counts_[std::string(error_kind_name(error.kind()))];
      const bool typed = error.kind() == ErrorKind::kBadData ||
                         error.kind() == ErrorKind::kUnsupported ||
                         error.kind() == ErrorKind::kLimit;
      EXPECT_TRUE(typed) << "seed " << kSeed << ", mutant " << index << ": " << error.what();
      EXPECT_LT(error.message().size(), 1000u) << "mutant " << index;
    }
  }
  ~Outcomes() {
    for (const auto& [name, count] : counts_) std::printf("%s: %d  ", name.c_str(), count);
    std::printf("\n");
  }
  int operator[](const std::string& name) { return counts_[name]; }

 private:
  // Everything that a damaged vocabulary could trip.
  static void use(const Tokenizer& tokenizer) {
    const std::string text = "hello <|eot|> he\xff 12 [user] naïve\n\n" + std::string(300, 'l');
    const auto tokens = tokenizer.encode_special(text);
    for (const Token token : tokens) {
      ASSERT_GE(token, 0);
      ASSERT_LT(token, tokenizer.size());
    }
    if (tokenizer.missing_bytes().empty()) {
      ASSERT_EQ(tokenizer.decode(tokens, /*show_special=*/true), text);
    }
    const ChatFormat format = detect_chat_format(tokenizer.vocabulary());
    if (format != ChatFormat::kNone) {
      const Message message{"user", text};
      render_chat(format, tokenizer, {&message, 1}, /*add_generation_prompt=*/true);
    }
  }

  std::map<std::string, int> counts_;
};

// Damages text as disks, networks and people do: bytes, cuts, copies, and words that mean something
// to the format.
void damage(std::string& text, std::mt19937& random) {
  static constexpr std::string_view kWords[] = {
      "null",     "0",           "-1", "1e999", "4294967296", "99999999999999999999",
      "\"\"",     "[]",          "{}", "[[[[",  "true",       "\"\\ud800\"",
      "\xff\xfe", ",",           ":",  "\"",    "\\",         "false",
      "1048575",  "\"Sequence\""};
  for (unsigned n = random() % 3 + 1; n > 0 && !text.empty(); --n) {
    const size_t at = random() % text.size(),
                 length = std::min<size_t>(random() % 30, text.size() - at);
    const std::string_view word = kWords[random() % std::size(kWords)];
    switch (random() % 7) {
      case 0:
        text[at] = static_cast<char>(random());
        break;
      case 1:
        text.erase(at, length);
        break;
      case 2:
        text.insert(random() % text.size(), text.substr(at, length));
        break;
      case 3:
        text.insert(at, word);
        break;
      case 4:
        text.replace(at, std::min(length, word.size()), word);
        break;
      case 5:
        text.resize(random() % 20 == 0 ? at : text.size());
        break;
      case 6: {  // a whole value, so that the syntax survives
        const size_t colon = text.find_first_of(":,", at),
                     end = text.find_first_of(",}]", colon + 1);
        if (colon < text.size() && end < text.size())
          text.replace(colon + 1, end - colon - 1, word);
        break;
      }
    }
  }
}

TEST(TokenizerMutants, OfTokenizerJsonAreRefusedOrWork) {
  std::mt19937 random(kSeed);
  const std::string json = tokenizer_json(small_vocabulary(), false);
  const std::string pairs = tokenizer_json(small_vocabulary(), true);
  const std::string config =
      R"({"bos_token": "<|begin_of_text|>", "eos_token": {"content": "<|eot|>"},
          "add_bos_token": true, "chat_template": [{"name": "default", "template": "x"}]})";
  // Most of a vocabulary is alike: half of the mutants are hit in the part around it.
  Outcomes outcomes;
  for (int i = 0; i < kJsonMutants; ++i) {
    std::string text = i % 2 ? pairs : json, config_text = config;
    if (i % 5 == 0) {
      damage(config_text, random);
    } else if (i % 5 < 3) {
      damage(text, random);
    } else {
      const size_t vocab = text.find("\"vocab\"");
      std::string head = text.substr(0, vocab);
      damage(head, random);
      text = head + text.substr(vocab);
    }
    outcomes.run(i, [&] { return vocabulary_from_tokenizer_json(text, "mutant", config_text); });
  }
  EXPECT_GT(outcomes["bad_data"], kJsonMutants / 10);
  EXPECT_GT(outcomes["unsupported"], 0);
  EXPECT_GT(outcomes["loaded"], kJsonMutants / 100);
}

TEST(TokenizerMutants, OfGgufFieldsAreRefusedOrWork) {
  std::mt19937 random(kSeed);
  Outcomes outcomes;
  static const std::string kOdd[] = {"",
                                     " ",
                                     "a b",
                                     "a  b",
                                     "\xff",
                                     "\u65e5",
                                     "he",
                                     "hello",
                                     "\u0120",
                                     "<|eot|>",
                                     std::string(5000, 'x'),
                                     "[PAD7]"};
  static const uint32_t kIds[] = {0, 1, 97, 268, 269, 1000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF};
  for (int i = 0; i < kGgufMutants; ++i) {
    GgufSource source(small_vocabulary(), "llama4");
    GgufTokenizerFields& f = source.fields;
    const auto any = [&](auto& list) -> auto& { return list[random() % std::size(list)]; };
    for (unsigned n = random() % 3 + 1; n > 0; --n) {
      switch (random() % 12) {
        case 0:
          any(f.tokens) = any(kOdd);
          break;
        case 1:
          any(f.tokens) = any(f.tokens);
          break;
        case 2:
          any(f.token_types) = static_cast<int32_t>(random() % 9) - 1;
          break;
        case 3:
          any(f.merges) = any(kOdd);
          break;
        case 4:
          f.merges.push_back(any(f.merges));
          break;
        case 5:
          std::swap(any(f.merges), any(f.merges));
          break;
        case 6:
          f.tokens.resize(f.tokens.size() - random() % 20);
          break;
        case 7:
          f.token_types.resize(random() % 300);
          break;
        case 8:
          (random() % 2 ? f.bos : f.eos) = any(kIds);
          break;
        case 9:
          (random() % 2 ? f.eot : f.pad) = any(kIds);
          break;
        case 10:
          f.add_bos = random() % 2;
          f.bos.reset();
          break;
        case 11:
          f.pre = random() % 2 ? std::string_view("smollm") : any(kOdd);
          break;
      }
      if (f.token_types.empty()) break;
    }
    outcomes.run(i, [&] { return vocabulary_from_gguf(f); });
  }
  EXPECT_GT(outcomes["bad_data"], kGgufMutants / 10);
  EXPECT_GT(outcomes["loaded"], kGgufMutants / 100);
}

TEST(TokenizerMutants, OfTiktokenRanksAreRefusedOrWork) {
  // A vocabulary of the right size whose tokens are all bytes and many pairs and triples of them.
  std::vector<std::string> ranks;
  for (int byte = 0; byte < 256; ++byte) ranks.emplace_back(1, static_cast<char>(byte));
  for (size_t i = 0; ranks.size() < kLlama3Ranks; ++i) {
    std::string token = {static_cast<char>(i), static_cast<char>(i >> 8)};
    if (i >= 65536) token += static_cast<char>(i % 251);
    ranks.push_back(std::move(token));
  }
  std::mt19937 random(kSeed);
  Outcomes outcomes;
  for (int i = 0; i < kTiktokenMutants; ++i) {
    auto mutant = ranks;
    const size_t at = random() % mutant.size(), byte = random() % 256;
    switch (i % 5) {
      case 0:
        mutant[at] = mutant[random() % mutant.size()];
        break;
      case 1:
        mutant[at].clear();
        break;
      case 2:
        mutant[byte] = "two";
        break;
      case 3:
        mutant[at] = std::string(random() % 2 ? 500 : 5000, 'x');
        break;
      case 4:
        std::swap(mutant[at], mutant[byte]);
        break;
    }
    outcomes.run(i, [&] { return vocabulary_from_tiktoken(std::move(mutant), "mutant"); });
  }
  EXPECT_GT(outcomes["bad_data"], 0);
  EXPECT_GT(outcomes["loaded"], 0);
}

}  // namespace
}  // namespace drover
