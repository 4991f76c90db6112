// Running text: documents, windows, sides.
#include <map>

#include "train/data/data_fixture.h"

namespace drover {
namespace {

namespace json = boost::json;
using TextSourceTest = SourceTest;

// A text without repetitions longer than a few letters: the place of a window shows in it.
std::string numbers(int first, int count) {
  std::string out;
  for (int i = first; i < first + count; ++i) out += std::to_string(i) + ' ';
  return out;
}

TEST_F(TextSourceTest, AWindowIsAPieceOfOneDocumentOfTheLengthAskedFor) {
  const std::map<std::string, std::string> texts = {{"a.txt", numbers(1000, 200)},
                                                    {"b.txt", numbers(5000, 400)}};
  std::vector<std::string> documents;
  for (const auto& [name, text] : texts) {
    folder_.write(name, text);
    documents.push_back(text + "<|end_of_text|>");
  }
  const auto source = make_source(data_settings("text", "*.txt"), context());
  const Token bos = *tokenizer_.special("<|begin_of_text|>");
  std::set<std::string> seen;
  for (uint64_t i = 0; i < 100; ++i) {
    const Example example = source->example(3, i, 64);
    ASSERT_EQ(example.tokens.size(), 64u);
    EXPECT_EQ(example.tokens[0], bos);
    EXPECT_EQ(std::count(example.tokens.begin(), example.tokens.end(), bos), 1);
    EXPECT_EQ(example.weights, std::vector<float>(64, 1.0f));
    const std::string window =
        tokenizer_.decode(std::span(example.tokens).subspan(1), /*show_special=*/true);
    EXPECT_TRUE(documents[0].find(window) != std::string::npos ||
                documents[1].find(window) != std::string::npos)
        << window;
    seen.insert(window);
    EXPECT_EQ(source->example(3, i, 64).tokens, example.tokens);
  }
  EXPECT_GT(seen.size(), 80u);  // begun anywhere
  EXPECT_NE(source->example(4, 0, 64).tokens, source->example(3, 0, 64).tokens);
}

TEST_F(TextSourceTest, EveryTokenIsAboutAsLikelyAsAnyOther) {
  folder_.write("a.txt", std::string(100, 'a'));  // 101 tokens with the one that ends it
  folder_.write("b.txt", std::string(300, 'b'));
  const auto source = make_source(data_settings("text", "*.txt"), context());
  std::map<Token, int64_t> counts;
  int64_t ends = 0;
  constexpr uint64_t kWindows = 4000;
  for (uint64_t i = 0; i < kWindows; ++i) {
    const Example example = source->example(1, i, 21);
    ++counts[example.tokens[1]];
    ends += tokenizer_.token_bytes(example.tokens.back()) == "<|end_of_text|>";
  }
  const int64_t a = counts[tokenizer_.encode("a")[0]];
  // 101 of 402 tokens; four standard deviations of 4,000 draws are 110.
  EXPECT_NEAR(static_cast<double>(a), 4000.0 * 101 / 402, 110);
  // The last tokens too: a window of 20 has the last one if the drawn one stands k before the end
  // and at most 20 - k into the window, in 210 of 402 * 20 cases for each document. Windows whose
  // begin alone is drawn would have it in a ninth of that.
  EXPECT_NEAR(static_cast<double>(ends), 4000.0 * 2 * 210 / (402 * 20), 57);
}

TEST_F(TextSourceTest, ADocumentShorterThanTheWindowComesWhole) {
  folder_.write("a.txt", "short");
  const auto source = make_source(data_settings("text", "a.txt"), context());
  EXPECT_EQ(text(source->example(1, 2, 1000)), "<|begin_of_text|>short<|end_of_text|>");
}

TEST_F(TextSourceTest, PartsOfAFileAreDocumentsOfTheirOwn) {
  folder_.write("a.txt", "one\n\n\n\n\ntwo\nlines\n\n\nthree\n");
  json::object settings = data_settings("text", "a.txt");
  settings["split"] = "\n\n\n";
  const auto source = make_source(settings, context());
  std::set<std::string> seen;
  for (uint64_t i = 0; i < 50; ++i) seen.insert(text(source->example(1, i, 1000)));
  EXPECT_EQ(seen, (std::set<std::string>{"<|begin_of_text|>one<|end_of_text|>",
                                         "<|begin_of_text|>two\nlines<|end_of_text|>",
                                         "<|begin_of_text|>three<|end_of_text|>"}));
}

TEST_F(TextSourceTest, TheSidesAreApartAndTogetherAllAndStayWhenOthersCome) {
  json::object settings = data_settings("text", "a.txt");
  settings["split"] = "\n---\n";
  settings["held_out"] = 0.3;
  const auto write = [&](int count) {
    std::string text;
    for (int i = 0; i < count; ++i) text += fmt::format("document number {}\n---\n", i);
    folder_.write("a.txt", text);
  };
  const auto contents = [&](bool held) {
    std::set<Digest> out;
    for (const auto& item : make_source(settings, context(held))->facts().items) {
      out.insert(item.content);
    }
    return out;
  };
  write(100);
  const auto learnt = contents(false), held = contents(true);
  EXPECT_EQ(learnt.size() + held.size(), 100u);
  // 30 are expected; four standard deviations are 18.
  EXPECT_GT(held.size(), 12u);
  EXPECT_LT(held.size(), 48u);
  for (const Digest& one : held) EXPECT_FALSE(learnt.contains(one));
  write(150);
  const auto held_later = contents(true);
  for (const Digest& one : held) EXPECT_TRUE(held_later.contains(one));
}

TEST_F(TextSourceTest, HoldsLargeVocabulariesToo) {
  Vocabulary v = tokenizer_.vocabulary();
  const size_t size = v.tokens.size();
  // "th" moves behind id 65,535.
  for (int i = 0; i < 70'000; ++i) {
    v.tokens.push_back(fmt::format("<|spare {}|>", i));
    v.kinds.push_back(TokenKind::kControl);
  }
  const auto th = static_cast<size_t>(tokenizer_.encode("th")[0]);
  ASSERT_GE(th, 256u) << "the trained vocabulary has no token for th";
  ASSERT_LT(th, size);
  std::swap(v.tokens[th], v.tokens.back());
  std::swap(v.kinds[th], v.kinds.back());
  for (auto& [left, right] : v.merges) {
    for (Token* side : {&left, &right}) {
      if (*side == static_cast<Token>(th)) *side = static_cast<Token>(v.tokens.size() - 1);
    }
  }
  const Tokenizer large(std::move(v));
  SourceContext with = context();
  with.tokenizer = &large;
  folder_.write("a.txt", "thth");
  const Example example = make_source(data_settings("text", "a.txt"), with)->example(1, 0, 100);
  EXPECT_EQ(large.decode(example.tokens), "thth");
  EXPECT_GT(*std::max_element(example.tokens.begin(), example.tokens.end()), 65'535);
}

}  // namespace
}  // namespace drover
