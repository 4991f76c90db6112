#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <boost/json.hpp>
#include <chrono>
#include <random>
#include <set>
#include <thread>
#include <tuple>

#include "base/error.h"
#include "tests/support/sanitized.h"
#include "text/detokenizer.h"
#include "text/merge_queue.h"
#include "text/test_vocabularies.h"
#include "text/utf8.h"

namespace drover {
namespace {

using testing::kSanitized;
constexpr int kRoundTrips = kSanitized ? 50'000 : 1'000'000;
constexpr size_t kLongText = size_t{kSanitized ? 1 : 10} << 20;

using Tokens = std::vector<Token>;

// The real tokenizers, made once; null when their file is not there.
const Tokenizer* real_tokenizer(const std::string& name) {
  static const auto load = [](const std::string& which) -> std::unique_ptr<Tokenizer> {
    const auto path = shared_data(which + "/tokenizer.model");
    if (!std::filesystem::exists(path)) return nullptr;
    return std::make_unique<Tokenizer>(vocabulary_from_tiktoken(read_ranks(path), which));
  };
  static const auto llama4 = load("llama4"), llama3 = load("llama3");
  return name == "llama4" ? llama4.get() : llama3.get();
}

#define REQUIRE_TOKENIZER(variable, name)                                     \
  const Tokenizer* variable = real_tokenizer(name);                           \
  if (!variable) {                                                            \
    GTEST_SKIP() << "needs " << shared_data(name "/tokenizer.model").string() \
                 << ", which is not there";                                   \
  }

const Tokenizer& small_tokenizer() {
  static const Tokenizer tokenizer(small_vocabulary());
  return tokenizer;
}

TEST(Tokenizer, MergesTheBestPairFirst) {
  const Tokenizer& t = small_tokenizer();
  EXPECT_EQ(t.encode("hello"), (Tokens{259}));
  EXPECT_EQ(t.encode("hell"), (Tokens{258}));
  EXPECT_EQ(t.encode("helo"), (Tokens{256, 'l', 'o'}));
  EXPECT_EQ(t.encode("a hello"), (Tokens{'a', ' ', 259}));  // "he" is better than " h"
  EXPECT_EQ(t.encode("a ha"), (Tokens{'a', 260, 'a'}));
  EXPECT_EQ(t.encode("lllll"), (Tokens{257, 257, 'l'}));  // leftmost first
  EXPECT_EQ(t.encode(""), Tokens{});
}

TEST(MergeQueue, GivesTheSmallestRankAndPositionWheneverTheyCame) {
  const unsigned seed = 5;
  std::mt19937 random(seed);
  for (int i = 0; i < 200; ++i) {
    MergeQueue queue;
    std::multiset<std::pair<uint32_t, uint32_t>> expected;
    const uint32_t ranks = random() % 5 + 1;
    for (int step = 0; step < 500; ++step) {
      uint32_t rank = random() % ranks, position = random() % 1000;
      if (random() % 2) {
        queue.push(rank, position);
        expected.emplace(rank, position);
      } else {
        ASSERT_EQ(queue.pop(rank, position), !expected.empty());
        if (expected.empty()) continue;
        ASSERT_EQ(std::pair(rank, position), *expected.begin()) << "seed " << seed << ", " << i;
        expected.erase(expected.begin());
      }
    }
  }
}

// The definition, step by step: the first merge of the list that applies anywhere, at its leftmost
// place, again and again.
Tokens merge_by_definition(const Vocabulary& v, const std::string& piece) {
  const auto joined = [&](const std::pair<Token, Token>& merge) {
    const std::string text =
        v.tokens[static_cast<size_t>(merge.first)] + v.tokens[static_cast<size_t>(merge.second)];
    return static_cast<Token>(std::find(v.tokens.begin(), v.tokens.end(), text) - v.tokens.begin());
  };
  Tokens out;
  for (const char byte : piece) out.push_back(static_cast<unsigned char>(byte));
  for (size_t rank = 0; rank < v.merges.size();) {
    const auto [left, right] = v.merges[rank];
    size_t k = 0;
    while (k + 1 < out.size() && (out[k] != left || out[k + 1] != right)) ++k;
    if (k + 1 >= out.size()) {
      ++rank;
      continue;
    }
    out[k] = joined(v.merges[rank]);
    out.erase(out.begin() + static_cast<ptrdiff_t>(k) + 1);
    rank = 0;
  }
  return out;
}

// Short and long pieces, which are merged in different ways; vocabularies of periodic tokens whose
// merges stand in any order, so that a merge often makes a better one possible.
TEST(Tokenizer, MergesByTheDefinitionWhateverTheOrderOfTheMerges) {
  const unsigned seed = 11;
  std::mt19937 random(seed);
  for (int i = 0; i < 1000; ++i) {
    Vocabulary v;
    for (int byte = 0; byte < 256; ++byte) v.tokens.emplace_back(1, static_cast<char>(byte));
    std::vector<std::string> parts = {"a", "b"};
    while (parts.size() < 12) {
      const std::string text = parts[random() % parts.size()] + parts[random() % parts.size()];
      if (text.size() > 16 || std::find(parts.begin(), parts.end(), text) != parts.end()) continue;
      parts.push_back(text);
      v.tokens.push_back(text);
    }
    v.kinds.assign(v.tokens.size(), TokenKind::kNormal);
    const auto id = [&](const std::string& text) {
      return static_cast<Token>(std::find(v.tokens.begin(), v.tokens.end(), text) -
                                v.tokens.begin());
    };
    for (const auto& left : parts) {
      for (const auto& right : parts) {
        if (id(left + right) < static_cast<Token>(v.tokens.size()) && random() % 8 != 0) {
          v.merges.emplace_back(id(left), id(right));
        }
      }
    }
    std::shuffle(v.merges.begin(), v.merges.end(), random);
    const Tokenizer t(v);
    for (const size_t length : {10, 60, 128, 129, 200}) {
      const std::string some[3] = {parts[random() % parts.size()], parts[random() % parts.size()],
                                   parts[random() % parts.size()]};
      std::string piece;  // few parts: long runs of equal tokens, which must join from the left
      while (piece.size() < length) piece += some[random() % 3];
      ASSERT_EQ(t.encode(piece), merge_by_definition(v, piece))
          << "seed " << seed << ", vocabulary " << i << ", piece " << piece;
    }
  }
}

TEST(Tokenizer, AWholePieceMayBeATokenThatNoMergeMakes) {
  Vocabulary v = small_vocabulary();
  v.tokens.push_back("xyzzy");
  v.kinds.push_back(TokenKind::kNormal);
  const Token xyzzy = static_cast<Token>(v.tokens.size() - 1);
  EXPECT_EQ(Tokenizer(v).encode("xyzzy"), (Tokens{'x', 'y', 'z', 'z', 'y'}));
  v.ignore_merges = true;
  EXPECT_EQ(Tokenizer(v).encode("xyzzy"), Tokens{xyzzy});
  EXPECT_EQ(Tokenizer(v).encode("xyzzyx"), (Tokens{'x', 'y', 'z', 'z', 'y', 'x'}));
}

TEST(Tokenizer, AUsersTextNeverBecomesAControlToken) {
  const Tokenizer& t = small_tokenizer();
  EXPECT_EQ(t.encode("<|eot|>").size(), 7u);
  EXPECT_EQ(t.decode(t.encode("a<|eot|>b")), "a<|eot|>b");
}

TEST(Tokenizer, SpecialTextBecomesTheLongestTokenWhereAsked) {
  const Tokenizer& t = small_tokenizer();
  const Token eot = t.special("<|eot|>").value(), more = t.special("<|eot|>more").value();
  EXPECT_EQ(t.encode_special("a<|eot|>b"), (Tokens{'a', eot, 'b'}));
  EXPECT_EQ(t.encode_special("<|eot|>mor"), (Tokens{eot, 'm', 'o', 'r'}));
  EXPECT_EQ(t.encode_special("<|eot|>more<|eot|>"), (Tokens{more, eot}));
  EXPECT_EQ(t.encode_special("<<|eot|"), t.encode("<<|eot|"));
  EXPECT_FALSE(t.special("<|eot|"));
  EXPECT_FALSE(t.special("hello"));
  EXPECT_FALSE(t.special(""));
}

TEST(Tokenizer, UserDefinedTokensAreCutOutOfAnyText) {
  const Tokenizer& t = small_tokenizer();
  const Token user = static_cast<Token>(t.size() - 1);
  EXPECT_EQ(t.encode("he[user]ll"), (Tokens{256, user, 257}));
  EXPECT_EQ(t.decode(Tokens{256, user}), "he[user]");
  EXPECT_FALSE(t.is_control(user));
}

TEST(Tokenizer, DecodeHidesControlTokensUnlessAsked) {
  const Tokenizer& t = small_tokenizer();
  const Token eot = t.special("<|eot|>").value();
  EXPECT_EQ(t.decode(Tokens{'a', eot, 'b'}), "ab");
  EXPECT_EQ(t.decode(Tokens{'a', eot, 'b'}, /*show_special=*/true), "a<|eot|>b");
  EXPECT_EQ(t.decode(Tokens{-1, 1 << 30}, /*show_special=*/true), "");
  EXPECT_TRUE(t.is_control(eot));
  EXPECT_FALSE(t.is_control(-1));
}

TEST(Tokenizer, BytesWithoutATokenAreLeftOutAndNamed) {
  Vocabulary v = small_vocabulary();
  v.kinds['e'] = TokenKind::kUnused;
  v.merges.erase(v.merges.begin());  // h e
  const Tokenizer t(std::move(v));
  EXPECT_EQ(t.encode("held"), (Tokens{'h', 'l', 'd'}));
  EXPECT_EQ(t.encode("lel"), (Tokens{257}));  // neighbours then, as in the tokenizers library
  EXPECT_EQ(std::string(t.missing_bytes().begin(), t.missing_bytes().end()), "e");
  EXPECT_TRUE(small_tokenizer().missing_bytes().empty());
}

TEST(Tokenizer, CopiesShareAndOutliveTheOriginal) {
  auto original = std::make_unique<Tokenizer>(small_vocabulary());
  const std::string_view hello = original->token_bytes(259);
  const Tokenizer copy = *original;
  original.reset();
  EXPECT_EQ(copy.encode("hello"), (Tokens{259}));
  EXPECT_EQ(hello, "hello");
}

TEST(Tokenizer, ManyThreadsGetTheSameTokens) {
  const Tokenizer& t = small_tokenizer();
  const Tokens expected = t.encode("hello world, hello 1212");
  std::vector<std::thread> threads;
  std::vector<int> wrong(4);
  for (size_t k = 0; k < wrong.size(); ++k) {
    threads.emplace_back([&, k] {
      for (int i = 0; i < 1000; ++i) wrong[k] += t.encode("hello world, hello 1212") != expected;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4));
}

TEST(Llama4Tokenizer, GivesTheVectorsOfTheSpecification) {
  REQUIRE_TOKENIZER(t, "llama4");
  const std::pair<const char*, Tokens> kVectors[] = {
      {"Roses are red,", {62, 19441, 583, 4242, 24}},
      {"You are a helpful assistant", {4662, 583, 262, 19933, 43910}},
      {"Hello, world! 12345", {19873, 24, 3817, 13, 220, 7235, 2127}},
      {"I'm can't WE'LL they'd", {23752, 12337, 39986, 19, 10962, 147941}},
      {"def f(x):\n    return x**2\n", {1251, 288, 2595, 1960, 277, 677, 831, 442, 30, 198}},
      {"  leading spaces", {220, 10855, 15174}},
      {"trailing   ", {12173, 10646, 277}},
      {"a\n\n\n b", {77, 2946, 297}},
      {"1234567", {7235, 19596, 35}},
      {"http://x.y/z?a=1//\n", {3303, 1050, 100, 5330, 30791, 108393, 41, 29, 24992}},
      {"\t\tx\r\n", {197, 27398, 13266}},
      {"naïve café", {1499, 164301, 49652}},
      {"日本語のテスト", {21764, 16728, 1169, 107459}},
      {"नमस्ते दुनिया", {1479, 2511, 23194, 790, 106801}},
      {"😀👍🏽", {80883, 222, 65906, 235, 73601, 134}},
      {"\n\n", {368}},
      {"system", {15651}},
      {"user", {1556}},
      {"assistant", {140680}},
      {"ipython", {607, 6934}},
      {"tool", {21188}}};
  for (const auto& [text, tokens] : kVectors) EXPECT_EQ(t->encode(text), tokens) << text;
  EXPECT_EQ(t->size(), 202048);
  EXPECT_EQ(t->vocabulary().bos, 200000);
  EXPECT_EQ(t->vocabulary().pad, 200018);
  EXPECT_EQ(t->vocabulary().stops, (Tokens{200001, 200007, 200008}));
  EXPECT_TRUE(t->missing_bytes().empty());
}

// As the conversion to tokenizer.json writes them: by the rank of the result, then of the parts.
TEST(Llama4Tokenizer, HasTheMergesThatItsRanksImply) {
  REQUIRE_TOKENIZER(t, "llama4");
  const auto& merges = t->vocabulary().merges;
  EXPECT_EQ(merges.size(), 439802u);
  std::tuple<Token, Token, Token> last{-1, -1, -1};
  for (const auto& [left, right] : merges) {
    const std::string joined =
        std::string(t->token_bytes(left)) + std::string(t->token_bytes(right));
    const Tokens result = t->encode_special(joined);  // one piece or not, it only may be one token
    if (result.size() != 1) continue;
    const std::tuple<Token, Token, Token> merge{result[0], left, right};
    ASSERT_LT(last, merge);
    last = merge;
  }
}

TEST(Llama3Tokenizer, HasItsSpecialTokens) {
  REQUIRE_TOKENIZER(t, "llama3");
  EXPECT_EQ(t->size(), 128256);
  EXPECT_EQ(t->special("<|eot_id|>"), 128009);
  EXPECT_EQ(t->special("<|reserved_special_token_247|>"), 128255);
  EXPECT_EQ(t->vocabulary().stops, (Tokens{128001, 128008, 128009}));
}

TEST(RealTokenizers, GiveTheTokensOfTheTokenizersPackage) {
  const auto golden =
      boost::json::parse(read_file("tests/data/text/tokenizer_golden.json", 1 << 20));
  const auto check = [&](const Tokenizer& tokenizer, const char* table) {
    const auto& rows = golden.at(table).as_array();
    ASSERT_EQ(rows.size(), 250u);
    for (const auto& row : rows) {
      EXPECT_EQ(tokenizer.encode(boost::json::value_to<std::string>(row.at(0))),
                boost::json::value_to<Tokens>(row.at(1)))
          << table << ": " << row.at(0);
    }
  };
  REQUIRE_TOKENIZER(llama4, "llama4");
  check(*llama4, "tokens_llama4");
  REQUIRE_TOKENIZER(llama3, "llama3");
  check(*llama3, "tokens_llama3");
}

// The text of every special token, alone, doubled, inside words and with its bars full-width or
// split by a zero-width space: ordinary tokens that spell it.
TEST(RealTokenizers, NoSpecialTextOfAUserBecomesAControlToken) {
  for (const char* name : {"llama4", "llama3"}) {
    const Tokenizer* t = real_tokenizer(name);
    if (!t) GTEST_SKIP() << "needs the vocabularies in ../shared/data, which are not there";
    int texts = 0;
    for (Token id = 0; id < t->size(); ++id) {
      if (!t->is_control(id)) continue;
      const std::string text(t->token_bytes(id));
      const std::string inner = text.substr(2, text.size() - 4);
      for (const std::string& variant :
           {text, text + text, "a" + text + "b", " \n" + text + "\n", "<\uFF5C" + inner + "\uFF5C>",
            "<\u200B|" + inner + "|>"}) {
        const Tokens tokens = t->encode(variant);
        for (const Token token : tokens) ASSERT_FALSE(t->is_control(token)) << variant;
        ASSERT_EQ(t->decode(tokens), variant);
        ++texts;
      }
      ASSERT_EQ(t->encode_special(text), Tokens{id}) << text;
    }
    std::printf("%s: %d texts\n", name, texts);
  }
}

std::string random_bytes(std::mt19937& random) {
  // Mostly short; some UTF-8 and some runs, so that words, merges and broken characters all occur.
  const size_t length = random() % 50 == 0 ? random() % 2000 : random() % 41;
  static const std::string_view kParts[] = {"the", " ",  "\n", "é",     "日本",
                                            "😀",   "'s", "12", "\u0301"};
  std::string out;
  const unsigned kind = random() % 3;
  while (out.size() < length) {
    if (kind == 0 || (kind == 1 && random() % 2)) {
      out += static_cast<char>(random());
    } else {
      out += kParts[random() % std::size(kParts)];
    }
  }
  return out;
}

void expect_round_trips(const Tokenizer& tokenizer, int count) {
  const unsigned seed = 20250405;
  std::mt19937 random(seed);
  for (int i = 0; i < count; ++i) {
    const std::string text = random_bytes(random);
    ASSERT_EQ(tokenizer.decode(tokenizer.encode(text)), text)
        << "seed " << seed << ", string " << i;
  }
  std::printf("%d strings of random bytes came back%s\n", count,
              kSanitized ? " (a twentieth, because of the sanitizer)" : "");
}

TEST(Tokenizer, RandomBytesComeBack) { expect_round_trips(small_tokenizer(), kRoundTrips / 10); }

TEST(Llama4Tokenizer, RandomBytesComeBack) {
  REQUIRE_TOKENIZER(t, "llama4");
  expect_round_trips(*t, kRoundTrips);
}

// The limit is generous to slow machines, and far below what quadratic time would need (days).
TEST(Llama4Tokenizer, TenMegabytesWithoutASpaceTakeSeconds) {
  REQUIRE_TOKENIZER(t, "llama4");
  std::mt19937 random(1);
  const auto repeat = [](std::string_view unit) {
    std::string out;
    while (out.size() < kLongText) out += unit;
    return out;
  };
  std::string letters = repeat("a"), bytes = letters;
  for (char& c : letters) c = static_cast<char>('a' + random() % 26);
  for (char& c : bytes) c = static_cast<char>(random());
  const std::pair<const char*, std::string> kTexts[] = {
      {"random letters", letters},
      {"one letter", repeat("a")},
      {"spaces", repeat(" ")},
      {"line breaks", repeat("\n")},
      {"combining marks", repeat("\u0301")},
      {"words run together", repeat("internationalization")},
      {"Chinese", repeat("\u65e5\u672c\u8a9e")},
      {"random bytes", bytes}};
  for (const auto& [name, text] : kTexts) {
    const auto start = std::chrono::steady_clock::now();
    const Tokens tokens = t->encode(text);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    std::printf("%zu bytes of %s: %.2f s, %zu tokens\n", text.size(), name, seconds.count(),
                tokens.size());
    EXPECT_LT(seconds.count(), 60.0) << name;
    EXPECT_EQ(t->decode(tokens), text) << name;
  }
}

// All pushes and the flush together.
std::string stream(const Tokenizer& tokenizer, const Tokens& tokens) {
  Detokenizer detokenizer(tokenizer);
  std::string out;
  for (const Token token : tokens) {
    const std::string part = detokenizer.push(token);
    for (size_t at = 0; at < part.size();) {
      const Utf8Step step = utf8_step(part, at);
      EXPECT_TRUE(step.well_formed) << "a push returned a part of a character";
      at += step.length;
    }
    out += part;
  }
  return out + detokenizer.flush();
}

TEST(Detokenizer, ReplacesBrokenBytesAsPythonDoes) {
  const auto golden =
      boost::json::parse(read_file("tests/data/text/tokenizer_golden.json", 1 << 20));
  const auto& rows = golden.at("lossy").as_array();
  ASSERT_EQ(rows.size(), 200u);
  for (const auto& row : rows) {
    const std::string hex = boost::json::value_to<std::string>(row.at(0));
    Tokens tokens;  // in the small vocabulary a byte is its own token
    for (size_t at = 0; at < hex.size(); at += 2) {
      tokens.push_back(std::stoi(hex.substr(at, 2), nullptr, 16));
    }
    EXPECT_EQ(stream(small_tokenizer(), tokens), boost::json::value_to<std::string>(row.at(1)))
        << hex;
  }
}

TEST(Detokenizer, HoldsBackOnlyWhatCanStillBecomeACharacter) {
  Detokenizer d(small_tokenizer());
  EXPECT_EQ(d.push('a'), "a");
  EXPECT_EQ(d.push(0xF0), "");
  EXPECT_EQ(d.push(0x9F), "");
  EXPECT_EQ(d.push(small_tokenizer().special("<|eot|>").value()), "");
  EXPECT_EQ(d.push(0x98), "");
  EXPECT_EQ(d.push(0x80), "😀");
  EXPECT_EQ(d.push(0xE6), "");
  EXPECT_EQ(d.push('x'), "\uFFFDx");  // can't complete any more
  EXPECT_EQ(d.push(0xFF), "\uFFFD");
  EXPECT_EQ(d.push(0xC3), "");
  EXPECT_EQ(d.flush(), "\uFFFD");
  EXPECT_EQ(d.flush(), "");
  EXPECT_EQ(d.push('z'), "z");
}

}  // namespace
}  // namespace drover
