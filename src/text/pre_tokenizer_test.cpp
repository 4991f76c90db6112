#include "text/pre_tokenizer.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <chrono>
#include <random>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "text/byte_alphabet.h"
#include "text/unicode.h"
#include "text/utf8.h"

namespace drover {
namespace {

using Pieces = std::vector<std::string>;

Pieces pieces(PreTokenizer pre, std::string_view text) {
  Pieces out;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = piece_end(pre, text, begin);
    EXPECT_GT(end, begin);
    EXPECT_LE(end, text.size());
    out.emplace_back(text.substr(begin, end - begin));
    begin = end;
  }
  return out;
}

constexpr PreTokenizer kAll[] = {PreTokenizer::kLlama4, PreTokenizer::kLlama3, PreTokenizer::kGpt2,
                                 PreTokenizer::kSmolLm};

TEST(PreTokenizer, Llama4CutsWordsAtCaseAndKeepsContractions) {
  const auto cut = [](std::string_view text) { return pieces(PreTokenizer::kLlama4, text); };
  EXPECT_EQ(cut("HTTPServer iPhone"), (Pieces{"HTTPServer", " i", "Phone"}));
  EXPECT_EQ(cut("it's WE'LL don'T"), (Pieces{"it's", " WE'LL", " don'T"}));
  EXPECT_EQ(cut("it'\u017F"), (Pieces{"it'\u017F"}));  // long s folds to s
  EXPECT_EQ(cut("1234567"), (Pieces{"123", "456", "7"}));
  EXPECT_EQ(cut("a\n\n\n b"), (Pieces{"a", "\n\n\n", " b"}));
  EXPECT_EQ(cut("x  \n  y"), (Pieces{"x", "  \n", " ", " y"}));
  EXPECT_EQ(cut("//\n"), (Pieces{"//\n"}));
  // A caseless letter can end the lower-case part, the capitals after it begin anew.
  EXPECT_EQ(cut("AB日CD"), (Pieces{"AB日", "CD"}));
  // A mark is both a possible prefix and a part of words.
  EXPECT_EQ(cut("\u0301AB"), (Pieces{"\u0301", "AB"}));
  EXPECT_EQ(cut("\u0301ab"), (Pieces{"\u0301ab"}));
}

TEST(PreTokenizer, Llama3CutsContractionsOff) {
  const auto cut = [](std::string_view text) { return pieces(PreTokenizer::kLlama3, text); };
  EXPECT_EQ(cut("it's WE'LL"), (Pieces{"it", "'s", " WE", "'LL"}));
  EXPECT_EQ(cut("HTTPServer 12345!"), (Pieces{"HTTPServer", " ", "123", "45", "!"}));
  EXPECT_EQ(cut("\"quoted\" //\n"), (Pieces{"\"quoted", "\"", " //\n"}));
}

TEST(PreTokenizer, Gpt2JoinsOneSpaceAndSmolLmIsolatesDigits) {
  EXPECT_EQ(pieces(PreTokenizer::kGpt2, "it's IT'S 123  x\n\ny"),
            (Pieces{"it", "'s", " IT", "'", "S", " 123", " ", " x", "\n", "\n", "y"}));
  EXPECT_EQ(pieces(PreTokenizer::kSmolLm, "a 12  3 b"),
            (Pieces{"a", " ", "1", "2", "  ", "3", " b"}));
}

TEST(PreTokenizer, PiecesAreThoseOfTheTokenizersPackage) {
  const auto golden =
      boost::json::parse(read_file("tests/data/text/tokenizer_golden.json", 1 << 20));
  const auto& rows = golden.at("pieces").as_array();
  ASSERT_GE(rows.size(), 200u);
  for (const auto& row : rows) {
    const std::string text = boost::json::value_to<std::string>(row.at(0));
    for (size_t k = 0; k < std::size(kAll); ++k) {
      std::vector<size_t> lengths;
      for (const auto& piece : pieces(kAll[k], text)) lengths.push_back(piece.size());
      EXPECT_EQ(lengths, boost::json::value_to<std::vector<size_t>>(row.at(k + 1)))
          << pre_tokenizer_name(kAll[k]) << ": " << row.at(0);
    }
  }
}

TEST(PreTokenizer, BrokenUtf8IsCutAsItsReplacementWouldBe) {
  const unsigned seed = 7;
  std::mt19937 random(seed);
  static const std::string kIngredients[] = {"a",        "B",        " ",    "\n",   "1",
                                             "日",       "'s",       "!",    "\xff", "\xe6",
                                             "\xe6\x97", "\xed\xa0", "\x80", "é"};
  for (int i = 0; i < 5000; ++i) {
    std::string broken;
    for (unsigned n = random() % 12 + 1; n > 0; --n) broken += kIngredients[random() % 14];
    std::string replaced;
    std::vector<size_t> replaced_at(broken.size() + 1);  // where a byte of `broken` went
    for (size_t at = 0; at < broken.size();) {
      const Utf8Step step = utf8_step(broken, at);
      replaced += step.well_formed ? broken.substr(at, step.length) : std::string(kReplacementUtf8);
      at += step.length;
      replaced_at[at] = replaced.size();
    }
    for (const PreTokenizer pre : kAll) {
      for (size_t begin = 0; begin < broken.size();) {
        const size_t end = piece_end(pre, broken, begin);
        ASSERT_EQ(replaced_at[end], piece_end(pre, replaced, replaced_at[begin]))
            << "seed " << seed << ", string " << i;
        begin = end;
      }
    }
  }
}

// Each takes milliseconds, and would take minutes in quadratic time.
TEST(PreTokenizer, RunsOfAnythingTakeLinearTime) {
  static const std::string kUnits[] = {"a",  "A",  " ",       "\n",   "'",   "\u0301",
                                       "日", "1",  "\u0301A", "\xff", " \n", "日AAAA",
                                       "A1", "!a", "\t ",     "/\n"};
  for (const PreTokenizer pre : kAll) {
    for (const std::string& unit : kUnits) {
      for (const char* end : {"", "x", "1", "A", "\n"}) {
        std::string text;
        while (text.size() < (size_t{1} << 18)) text += unit;
        text += end;
        const auto start = std::chrono::steady_clock::now();
        for (size_t begin = 0; begin < text.size();) begin = piece_end(pre, text, begin);
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        ASSERT_LT(seconds.count(), 10.0) << pre_tokenizer_name(pre) << ", runs of " << unit;
      }
    }
  }
}

TEST(CharClass, KnowsUnicode16) {
  EXPECT_EQ(char_class('A'), CharClass::kUpper);
  EXPECT_EQ(char_class(0x01C5), CharClass::kUpper);  // title case
  EXPECT_EQ(char_class(0x00AA), CharClass::kLetter);
  EXPECT_EQ(char_class(0x1C89), CharClass::kUpper);    // since Unicode 16
  EXPECT_EQ(char_class(0x10D40), CharClass::kNumber);  // since Unicode 16
  EXPECT_EQ(char_class(0x31350), CharClass::kLetter);  // since Unicode 15
  EXPECT_EQ(char_class(0x0085), CharClass::kSpace);
  EXPECT_EQ(char_class(0x001C), CharClass::kSymbol);
  EXPECT_EQ(char_class(0x10FFFF), CharClass::kSymbol);
}

TEST(ByteAlphabet, IsABijectionOfAllBytes) {
  for (int byte = 0; byte < 256; ++byte) {
    const std::string bytes(1, static_cast<char>(byte));
    EXPECT_EQ(alphabet_to_bytes(bytes_to_alphabet(bytes)), bytes);
  }
  EXPECT_EQ(bytes_to_alphabet(" \n\xAD\xC3\xA9"), "\u0120\u010A\u0143\u00C3\u00A9");
  EXPECT_FALSE(alphabet_to_bytes(" "));
  EXPECT_FALSE(alphabet_to_bytes("日"));
  EXPECT_FALSE(alphabet_to_bytes("\xff"));
}

}  // namespace
}  // namespace drover
