#include "formats/tiktoken.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

using testing::expect_error;
using testing::TempFolder;

using Tokens = std::vector<std::string>;

Tokens read(std::string_view text) {
  const TempFolder folder;
  return read_tiktoken(folder.write("tokenizer.model", text));
}
void expect_bad(std::string_view words, std::string_view text) {
  expect_error(ErrorKind::kBadData, words, [&] { read(text); });
}

TEST(Tiktoken, GivesTheTokensByRank) {
  // One, two and three bytes: with two, one and no sign of padding.
  EXPECT_EQ(read("YQ== 0\nYWI= 1\nYWJj 2\n"), (Tokens{"a", "ab", "abc"}));
  EXPECT_EQ(read("YWI= 1\r\n\r\nYQ== 0"), (Tokens{"a", "ab"})) << "any order, any line ends";
  EXPECT_EQ(read("AP+/+w== 0"), (Tokens{std::string("\0\xff\xbf\xfb", 4)}));
}

TEST(Tiktoken, RefusesWhatIsNotBase64) {
  for (const char* code : {"YQ=", "YQ", "Y===", "====", "Y Q==", "YQ==YQ==", "YR==", "YWJ=", "Y-Jj",
                           "YWJj\xff\xff\xff\xff"}) {
    expect_bad("line 1: expected base64", std::string(code) + " 0\n");
  }
  expect_bad("line 2: expected base64 of 1 to 1024 bytes, a space and a rank, got YWI=",
             "YQ== 0\nYWI=\n");
  expect_bad("line 1: expected base64 of 1 to 1024 bytes", " 0\n");
  std::string code(1368, 'A');  // 1026 bytes
  expect_bad("line 1: expected base64 of 1 to 1024 bytes", code + " 0\n");
  code.replace(1366, 2, "==");  // 1024 bytes
  EXPECT_EQ(read(code + " 0\n")[0].size(), kMaxTiktokenTokenBytes);
}

TEST(Tiktoken, RefusesRanksThatAreNotOneEach) {
  for (const char* rank : {"", "x", "-1", "+0", "0 ", "0x0", "1", "99999999999999999999"}) {
    expect_bad("line 1: expected a rank from 0 to 0", std::string("YQ== ") + rank + "\n");
  }
  expect_bad("line 2: rank 0: expected once, got twice", "YQ== 0\nYWI= 0\n");
  expect_bad("line 2: expected a rank from 0 to 1, got 2", "YQ== 0\nYWI= 2\n");
  expect_bad("token \"a\": expected once, got twice", "YQ== 0\nYg== 1\nYQ== 2\n");
  expect_bad("expected lines of base64 and rank, got none", "\n\n");
  expect_bad("expected lines of base64 and rank, got none", "");
}

TEST(Tiktoken, HoldsToItsLimits) {
  std::string lines;
  for (size_t i = 0; i <= kMaxTiktokenTokens; ++i) lines += "YQ== 0\n";
  expect_error(ErrorKind::kLimit, "expected at most 1048576 tokens, got 1048577",
               [&] { read(lines); });
  expect_error(ErrorKind::kLimit, "expected at most 67108864 bytes",
               [&] { read(std::string(kMaxTiktokenBytes + 1, '\n')); });
}

TEST(Tiktoken, ReadsTheVocabulariesOfLlama) {
  const char* shared = std::getenv("DROVER_SHARED");
  const std::filesystem::path data =
      std::filesystem::path(shared != nullptr ? shared : "../shared") / "data";
  for (const auto& [model, size] : {std::pair("llama4", 200000u), std::pair("llama3", 128000u)}) {
    const auto path = data / model / "tokenizer.model";
    if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not here";
    const Tokens tokens = read_tiktoken(path);
    EXPECT_EQ(tokens.size(), size) << model;
    const auto bytes =
        std::count_if(tokens.begin(), tokens.end(), [](const auto& t) { return t.size() == 1; });
    EXPECT_EQ(bytes, 256) << model << ": every byte is a token";
  }
}

}  // namespace
}  // namespace drover
