#include "text/bpe_trainer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "tests/support/expect_error.h"
#include "text/chat_format.h"
#include "text/special_tokens.h"
#include "text/test_vocabularies.h"
#include "text/tokenizer.h"

namespace drover {
namespace {

using testing::expect_error;

TrainedBpe train(BpeTraining training, const std::vector<std::string>& texts) {
  BpeTrainer trainer(std::move(training));
  for (const std::string& text : texts) trainer.add(text);
  return trainer.train();
}

std::string alphabet_id_bytes() {
  std::string out;
  for (const int16_t byte : kCodePointToByte) {
    if (byte >= 0) out += static_cast<char>(byte);
  }
  return out;
}

// The definition, word for word: all pairs are counted anew before each merge.
std::vector<std::pair<Token, Token>> naive_merges(PreTokenizer pre, size_t count, int64_t least,
                                                  const std::vector<std::string>& texts) {
  const std::string bytes = alphabet_id_bytes();
  std::map<std::vector<Token>, int64_t> words;
  for (const std::string& text : texts) {
    for (size_t begin = 0, end; begin < text.size(); begin = end) {
      end = piece_end(pre, text, begin);
      std::vector<Token> word;
      for (size_t i = begin; i < end; ++i) word.push_back(static_cast<Token>(bytes.find(text[i])));
      ++words[word];
    }
  }
  std::vector<std::pair<Token, Token>> merges;
  for (Token next = 256; merges.size() < count; ++next) {
    std::map<std::pair<Token, Token>, int64_t> pairs;
    for (const auto& [word, times] : words) {
      for (size_t i = 0; i + 1 < word.size(); ++i) pairs[{word[i], word[i + 1]}] += times;
    }
    // The first of the most frequent ones, in the order of ids.
    const auto best =
        std::max_element(pairs.begin(), pairs.end(),
                         [](const auto& a, const auto& b) { return a.second < b.second; });
    if (best == pairs.end() || best->second < least) break;
    merges.push_back(best->first);
    std::map<std::vector<Token>, int64_t> joined;
    for (const auto& [word, times] : words) {
      std::vector<Token> out;
      for (size_t i = 0; i < word.size(); ++i) {
        const bool here = i + 1 < word.size() && std::pair(word[i], word[i + 1]) == best->first;
        out.push_back(here ? next : word[i]);
        i += here;
      }
      joined[out] += times;
    }
    words = std::move(joined);
  }
  return merges;
}

std::vector<std::string> texts_of_every_kind() {
  std::vector<std::string> out = {
      read_file("tests/reference/harbour.txt", 1 << 20).substr(0, 6000)};
  std::mt19937 random(20261127);
  // Two letters and runs of them: nearly every count is a tie, and pairs overlap themselves.
  std::string runs;
  for (int i = 0; i < 400; ++i) {
    runs += std::string(1 + random() % 9, "ab"[random() % 2]);
    if (random() % 4 == 0) runs += ' ';
  }
  out.push_back(runs);
  std::string bytes;  // most of them no UTF-8
  for (int i = 0; i < 3000; ++i) bytes += static_cast<char>(random() % 7 * 41);
  out.push_back(bytes);
  out.push_back("Straße, naïve café; 日本語 日本 東京 🙂🙂 \r\n\r\n  x1234567 ' 's");
  return out;
}

TEST(BpeTrainer, MergesAreThoseOfTheDefinition) {
  const std::vector<std::string> texts = texts_of_every_kind();
  for (const PreTokenizer pre : {PreTokenizer::kLlama4, PreTokenizer::kGpt2}) {
    for (const auto& part : {std::vector{texts[0]}, std::vector{texts[1]}, std::vector{texts[2]},
                             std::vector{texts[3]}, texts}) {
      for (const int64_t least : {1, 3}) {
        const auto expected = naive_merges(pre, 150, least, part);
        const TrainedBpe got = train({.pre = pre, .size = 256 + 150, .min_frequency = least}, part);
        EXPECT_EQ(got.vocabulary.merges, expected)
            << pre_tokenizer_name(pre) << ", at least " << least << ": " << part[0].substr(0, 20);
      }
    }
  }
}

TEST(BpeTrainer, TheOrderOfTextsChangesNothing) {
  std::vector<std::string> texts = texts_of_every_kind();
  const TrainedBpe forward = train({.size = 600}, texts);
  std::reverse(texts.begin(), texts.end());
  const TrainedBpe backward = train({.size = 600}, texts);
  EXPECT_EQ(forward.vocabulary.tokens, backward.vocabulary.tokens);
  EXPECT_EQ(forward.vocabulary.merges, backward.vocabulary.merges);
  EXPECT_EQ(forward.tokens, backward.tokens);
}

TEST(BpeTrainer, TheVocabularyEncodesTheTextInAsManyTokensAsItSays) {
  const std::vector<std::string> texts = texts_of_every_kind();
  const TrainedBpe trained = train({.size = 500}, texts);
  const Tokenizer tokenizer(trained.vocabulary);
  int64_t tokens = 0, bytes = 0;
  for (const std::string& text : texts) {
    const std::vector<Token> ids = tokenizer.encode(text);
    EXPECT_EQ(tokenizer.decode(ids), text);
    tokens += static_cast<int64_t>(ids.size());
    bytes += static_cast<int64_t>(text.size());
  }
  EXPECT_EQ(trained.tokens, tokens);
  EXPECT_EQ(trained.bytes, bytes);
  EXPECT_EQ(tokenizer.size(), 500);
  EXPECT_TRUE(tokenizer.missing_bytes().empty());
}

TEST(BpeTrainer, ControlTokensHaveTheLastIdsAndTheirParts) {
  BpeTraining training{.size = 300, .special = llama4_chat_tokens()};
  const TrainedBpe trained = train(training, {"<|eot|> <|eot|> <|eot|> <|eot|> and and and"});
  const Vocabulary& v = trained.vocabulary;
  const Tokenizer tokenizer(v);
  ASSERT_TRUE(v.bos && v.eos && v.pad);
  EXPECT_EQ(v.tokens[static_cast<size_t>(*v.bos)], "<|begin_of_text|>");
  EXPECT_EQ(static_cast<size_t>(*v.bos), v.tokens.size() - training.special.size());
  EXPECT_TRUE(v.add_bos);
  EXPECT_EQ(detect_chat_format(v), ChatFormat::kLlama4);
  std::vector<Token> picture;
  append_picture(tokenizer, {.rows = 2, .cols = 1, .per_tile = 1}, picture);
  EXPECT_EQ(picture.size(), 3 + 3 + 2u);
  // A text never makes one, however often it spells it.
  for (const Token token : tokenizer.encode("<|eot|>")) EXPECT_FALSE(tokenizer.is_control(token));
}

TEST(BpeTrainer, NoTextIsTrainedIntoAControlToken) {
  const TrainedBpe trained =
      train({.size = 300, .special = {"word"}}, {"word word word wording wording"});
  EXPECT_NO_THROW(validate(trained.vocabulary));
  EXPECT_EQ(std::count(trained.vocabulary.tokens.begin(), trained.vocabulary.tokens.end(), "word"),
            1);
}

TEST(BpeTrainer, EndsEarlyWhereThereIsNothingLeftToJoin) {
  EXPECT_EQ(train({.size = 1000}, {}).vocabulary.tokens.size(), 256u);
  const TrainedBpe trained = train({.size = 1000, .min_frequency = 2}, {"abc abc", "xyz"});
  // "ab", "abc"; the second one's space is before it, and stands once.
  EXPECT_EQ(trained.vocabulary.merges.size(), 2u);
  EXPECT_EQ(trained.words, 3);
  EXPECT_EQ(trained.distinct_words, 3);
}

TEST(BpeTrainer, RefusesSizesAndControlTokensThatCannotBe) {
  expect_error(ErrorKind::kUsage, "vocabulary: expected 258 to", [] {
    BpeTrainer({.size = 257, .special = {"<|a|>", "<|b|>"}});
  });
  expect_error(ErrorKind::kUsage, "control token", [] {
    BpeTrainer({.size = 300, .special = {"<|a|>", "<|a|>"}});
  });
  expect_error(ErrorKind::kUsage, "control token",
               [] { BpeTrainer({.size = 300, .special = {""}}); });
}

// The vocabulary as it comes back from a tokenizer.json.
Vocabulary there_and_back(const Vocabulary& v) {
  return vocabulary_from_tokenizer_json(vocabulary_to_tokenizer_json(v), "written", {});
}

TEST(TokenizerJsonWriter, WhatIsWrittenReadsTheSame) {
  for (const PreTokenizer pre :
       {PreTokenizer::kLlama4, PreTokenizer::kLlama3, PreTokenizer::kGpt2, PreTokenizer::kSmolLm}) {
    BpeTraining training{.pre = pre, .size = 400, .special = llama4_chat_tokens()};
    const Vocabulary v = train(training, texts_of_every_kind()).vocabulary;
    const Vocabulary back = there_and_back(v);
    EXPECT_EQ(back.pre, v.pre);
    EXPECT_EQ(back.tokens, v.tokens);
    EXPECT_EQ(back.kinds, v.kinds);
    EXPECT_EQ(back.merges, v.merges);
    EXPECT_EQ(back.bos, v.bos);
    EXPECT_EQ(back.add_bos, v.add_bos);
    EXPECT_EQ(back.stops, v.stops);
  }
}

TEST(TokenizerJsonWriter, KeepsIdsOfControlTokensAmongOthersAndHoles) {
  Vocabulary v = small_vocabulary();
  v.tokens.insert(v.tokens.begin(), {"<|first|>", ""});
  v.kinds.insert(v.kinds.begin(), {TokenKind::kControl, TokenKind::kUnused});
  for (auto& [left, right] : v.merges) left += 2, right += 2;
  *v.bos += 2;
  *v.eos += 2;
  v.ignore_merges = true;
  const Vocabulary back = there_and_back(v);
  EXPECT_EQ(back.tokens, v.tokens);
  EXPECT_EQ(back.kinds, v.kinds);
  EXPECT_EQ(back.merges, v.merges);
  EXPECT_TRUE(back.ignore_merges);
  v.add_bos = false;
  EXPECT_FALSE(there_and_back(v).add_bos);
}

}  // namespace
}  // namespace drover
