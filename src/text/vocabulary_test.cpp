#include "text/vocabulary.h"

#include <gtest/gtest.h>

#include <functional>

#include "base/error.h"
#include "text/special_tokens.h"
#include "text/test_vocabularies.h"
#include "text/tokenizer.h"

namespace drover {
namespace {

// The Error that `action` throws.
Error error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error;
  }
  return Error(ErrorKind::kInternal, "nothing was thrown");
}

testing::AssertionResult refuses(const std::function<void()>& action, ErrorKind kind,
                                 std::string_view part) {
  const Error error = error_of(action);
  if (error.kind() == kind && error.message().find(part) != std::string::npos) {
    return testing::AssertionSuccess();
  }
  return testing::AssertionFailure() << error_kind_name(error.kind()) << ": " << error.what();
}

TEST(SpecialTokens, StandAtTheIdsOfTheSpecification) {
  const auto llama4 = llama4_special_tokens();
  ASSERT_EQ(llama4.size(), 2048u);
  const std::pair<size_t, const char*> kKnown4[] = {
      {200000, "<|begin_of_text|>"},
      {200001, "<|end_of_text|>"},
      {200005, "<|header_start|>"},
      {200006, "<|header_end|>"},
      {200007, "<|eom|>"},
      {200008, "<|eot|>"},
      {200009, "<|step|>"},
      {200015, "<|text_post_train_reserved_special_token_5|>"},
      {200016, "<|python_start|>"},
      {200018, "<|finetune_right_pad|>"},
      {200019, "<|text_post_train_reserved_special_token_8|>"},
      {200079, "<|text_post_train_reserved_special_token_68|>"},
      {200080, "<|image_start|>"},
      {200084, "<|tile_x_separator|>"},
      {200085, "<|tile_y_separator|>"},
      {200090, "<|image|>"},
      {200092, "<|patch|>"},
      {201133, "<|vision_reserved_special_token_1047|>"},
      {201134, "<|reasoning_reserved_special_token_0|>"},
      {201143, "<|reasoning_thinking_end|>"},
      {201144, "<|reserved_special_token_0|>"},
      {202047, "<|reserved_special_token_903|>"}};
  for (const auto& [id, text] : kKnown4) EXPECT_EQ(llama4[id - 200000], text) << id;
  const auto llama3 = llama3_special_tokens();
  ASSERT_EQ(llama3.size(), 256u);
  const std::pair<size_t, const char*> kKnown3[] = {{128000, "<|begin_of_text|>"},
                                                    {128001, "<|end_of_text|>"},
                                                    {128003, "<|reserved_special_token_1|>"},
                                                    {128004, "<|finetune_right_pad_id|>"},
                                                    {128005, "<|reserved_special_token_2|>"},
                                                    {128006, "<|start_header_id|>"},
                                                    {128007, "<|end_header_id|>"},
                                                    {128008, "<|eom_id|>"},
                                                    {128009, "<|eot_id|>"},
                                                    {128010, "<|python_tag|>"},
                                                    {128011, "<|reserved_special_token_3|>"},
                                                    {128255, "<|reserved_special_token_247|>"}};
  for (const auto& [id, text] : kKnown3) EXPECT_EQ(llama3[id - 128000], text) << id;
}

TEST(Validate, AcceptsTheSmallVocabularyAndNamesEveryFault) {
  EXPECT_NO_THROW(validate(small_vocabulary()));
  const auto faulty = [](const std::function<void(Vocabulary&)>& break_it) {
    return [break_it] {
      Vocabulary v = small_vocabulary();
      break_it(v);
      validate(v);
    };
  };
  const auto bad = ErrorKind::kBadData;
  EXPECT_TRUE(refuses(faulty([](auto& v) { v = {}; }), bad, "empty"));
  EXPECT_TRUE(refuses(faulty([](auto& v) { v.kinds.pop_back(); }), bad, "kinds"));
  EXPECT_TRUE(
      refuses(faulty([](auto& v) { v.tokens['a'] = std::string(1, 'b'); }), bad, "both \"b\""));
  EXPECT_TRUE(refuses(faulty([](auto& v) { v.tokens['a'] = ""; }), bad, "token 97 is empty"));
  EXPECT_TRUE(refuses(faulty([](auto& v) { v.bos = 5000; }), bad, "begin-of-text"));
  EXPECT_TRUE(refuses(faulty([](auto& v) { v.eos = -1; }), bad, "end-of-text"));
  EXPECT_TRUE(refuses(faulty([](auto& v) { v.stops = {1 << 30}; }), bad, "stop"));
  EXPECT_TRUE(refuses(faulty([](auto& v) { v.bos.reset(); }), bad, "begin-of-text"));
  EXPECT_TRUE(refuses(faulty([](auto& v) { v.merges.push_back({'x', 'y'}); }), bad, "\"xy\""));
  EXPECT_TRUE(refuses(faulty([](auto& v) { v.merges.push_back({'h', 'e'}); }), bad, "twice"));
  EXPECT_TRUE(refuses(faulty([](auto& v) { v.merges.push_back({-1, 'e'}); }), bad, "-1"));
  EXPECT_TRUE(refuses(faulty([](auto& v) { v.merges.push_back({'h', *v.bos}); }), bad, "ordinary"));
  EXPECT_TRUE(refuses(faulty([](auto& v) { v.tokens[*v.bos] = v.tokens[*v.eos]; }), bad, "both"));
  EXPECT_TRUE(refuses(faulty([](auto& v) { v.tokens[*v.bos] = std::string(300, '<'); }),
                      ErrorKind::kLimit, "256"));
}

TEST(VocabularyFromGguf, ReadsWhatTheFileSays) {
  const GgufSource source(small_vocabulary(), "llama4");
  const Vocabulary v = vocabulary_from_gguf(source.fields);
  const Vocabulary small = small_vocabulary();
  EXPECT_EQ(v.tokens, small.tokens);
  EXPECT_EQ(v.kinds, small.kinds);
  EXPECT_EQ(v.merges, small.merges);
  EXPECT_EQ(v.bos, small.bos);
  EXPECT_EQ(v.eos, small.eos);
  EXPECT_EQ(v.stops, small.stops);
  EXPECT_TRUE(v.add_bos);
  EXPECT_TRUE(v.ignore_merges);
  EXPECT_EQ(v.pre, PreTokenizer::kLlama4);
  EXPECT_EQ(Tokenizer(v).encode("hello"), Tokenizer(small).encode("hello"));
}

TEST(VocabularyFromGguf, NamesOtherTokenizers) {
  GgufSource source(small_vocabulary(), "llama4");
  const auto load = [&] { vocabulary_from_gguf(source.fields); };
  source.fields.model = "llama";
  EXPECT_TRUE(refuses(load, ErrorKind::kUnsupported, "SentencePiece"));
  source.fields.model = "bert";
  EXPECT_TRUE(refuses(load, ErrorKind::kUnsupported, "\"bert\""));
  source.fields.model = "gpt2";
  source.fields.pre = "deepseek-llm";
  EXPECT_TRUE(refuses(load, ErrorKind::kUnsupported, "\"deepseek-llm\""));
  source.fields.pre = "llama-bpe";
  EXPECT_NO_THROW(load());
  source.fields.eos = 4'000'000'000u;
  EXPECT_TRUE(refuses(load, ErrorKind::kBadData, "4000000000"));
  source.fields.eos.reset();
  source.fields.merges[1] = "l";
  EXPECT_TRUE(refuses(load, ErrorKind::kBadData, "entry 1"));
  source.fields.merges[1] = "l \u65e5";
  EXPECT_TRUE(refuses(load, ErrorKind::kBadData, "entry 1"));
  source.fields.merges.clear();
  source.fields.token_types.pop_back();
  EXPECT_TRUE(refuses(load, ErrorKind::kBadData, "token_type"));
  source.fields.token_types.push_back(9);
  EXPECT_TRUE(refuses(load, ErrorKind::kBadData, "got 9"));
}

TEST(VocabularyFromTokenizerJson, ReadsWhatTheFileSays) {
  const Vocabulary small = small_vocabulary();
  for (const bool pairs : {false, true}) {
    const Vocabulary v = vocabulary_from_tokenizer_json(
        tokenizer_json(small, pairs), "small.json",
        R"({"bos_token": "<|begin_of_text|>", "eos_token": {"content": "<|eot|>"},
            "pad_token": "<|not there|>", "chat_template": "x"})");
    EXPECT_EQ(v.tokens, small.tokens);
    EXPECT_EQ(v.kinds, small.kinds);
    EXPECT_EQ(v.merges, small.merges);
    EXPECT_EQ(v.bos, small.bos);
    EXPECT_EQ(v.eos, small.eos);
    EXPECT_FALSE(v.pad);
    EXPECT_EQ(v.stops, small.stops);
    EXPECT_TRUE(v.add_bos);
    EXPECT_EQ(v.chat_template, "x");
    EXPECT_EQ(v.pre, PreTokenizer::kLlama4);
  }
}

// The text with its first `from` turned into `to`.
std::string with(std::string text, std::string_view from, std::string_view to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(VocabularyFromTokenizerJson, NamesWhatItDoesNotDo) {
  const std::string json = tokenizer_json(small_vocabulary(), false);
  const auto load = [](std::string text) {
    return [text] { vocabulary_from_tokenizer_json(text, "small.json", {}); };
  };
  const auto unsupported = ErrorKind::kUnsupported;
  EXPECT_TRUE(refuses(load(with(json, "\"BPE\"", "\"Unigram\"")), unsupported, "Unigram"));
  EXPECT_TRUE(refuses(load(with(json, "\"normalizer\":null", "\"normalizer\":{\"type\":\"NFC\"}")),
                      unsupported, "NFC"));
  EXPECT_TRUE(refuses(load(with(json, "Isolated", "Removed")), unsupported, "Removed"));
  EXPECT_TRUE(refuses(load(with(json, "{1,3}", "{1,2}")), unsupported, "{1,2}"));
  EXPECT_TRUE(
      refuses(load(with(json, "\"Split\"", "\"Punctuation\"")), unsupported, "Punctuation"));
  EXPECT_TRUE(refuses(load(with(json, "\"add_prefix_space\":false", "\"add_prefix_space\":true")),
                      unsupported, "add_prefix_space"));
  EXPECT_TRUE(
      refuses(load(with(json, "\"lstrip\":false", "\"lstrip\":true")), unsupported, "lstrip"));
  EXPECT_TRUE(refuses(load(with(json, "TemplateProcessing", "BertProcessing")), unsupported,
                      "BertProcessing"));
  EXPECT_TRUE(refuses(load(with(json, "\"fuse_unk\":false", "\"byte_fallback\":true")), unsupported,
                      "byte_fallback"));
}

TEST(VocabularyFromTokenizerJson, RefusesWhatIsBroken) {
  const std::string json = tokenizer_json(small_vocabulary(), false);
  const auto load = [](std::string text) {
    return [text] { vocabulary_from_tokenizer_json(text, "small.json", {}); };
  };
  const auto bad = ErrorKind::kBadData;
  EXPECT_TRUE(refuses(load(""), bad, "JSON"));
  EXPECT_TRUE(refuses(load("[]"), bad, "an object"));
  EXPECT_TRUE(refuses(load(json.substr(0, json.size() / 2)), bad, "JSON"));
  EXPECT_TRUE(refuses(load(json + "1"), bad, "JSON"));
  EXPECT_TRUE(refuses(load(std::string(100000, '[')), bad, "JSON"));
  EXPECT_TRUE(refuses(load(with(json, "\"hell\":258", "\"hell\":257")), bad, "stands twice"));
  EXPECT_TRUE(refuses(load(with(json, "\"hell\":258", "\"hell\":-1")), bad, "an id"));
  EXPECT_TRUE(refuses(load(with(json, "\"hell\":258", "\"hell\":2147483648")), bad, "an id"));
  EXPECT_TRUE(refuses(load(with(json, "\"hell\":258", "\"hell\":1e3")), bad, "an id"));
  EXPECT_TRUE(refuses(load(with(json, "\"he ll\"", "\"he lx\"")), bad, "two tokens"));
  EXPECT_TRUE(refuses(load(with(json, "\"he ll\"", "\"hell\"")), bad, "two tokens"));
  EXPECT_TRUE(refuses(load(with(json, "\"he ll\"", "[\"he\"]")), bad, "two tokens"));
  std::string zeros = "[";
  while (zeros.size() < 4'000'000) zeros += "0,";
  EXPECT_TRUE(refuses(load(zeros + "0]"), ErrorKind::kLimit, "memory"));
}

TEST(VocabularyFromTiktoken, TakesOnlyTheSizesThatItKnows) {
  EXPECT_TRUE(refuses(
      [] {
        vocabulary_from_tiktoken({"a", "b"}, "two.model");
      },
      ErrorKind::kUnsupported, "got 2"));
  EXPECT_TRUE(refuses(
      [] { vocabulary_from_tiktoken(std::vector<std::string>(kLlama3Ranks, "a"), "same.model"); },
      ErrorKind::kBadData, "no rank"));
}

}  // namespace
}  // namespace drover
