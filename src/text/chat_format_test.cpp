#include "text/chat_format.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "base/error.h"
#include "text/test_vocabularies.h"

namespace drover {
namespace {

using Tokens = std::vector<Token>;
namespace json = boost::json;

// Bytes and the control tokens of all formats: enough to spell any conversation.
Tokenizer byte_tokenizer(std::string chat_template) {
  Vocabulary v = small_vocabulary();
  for (const char* text :
       {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>",
        "<|image|>", "<|python_start|>", "<|python_end|>", "<|python_tag|>"}) {
    v.tokens.push_back(text);
    v.kinds.push_back(TokenKind::kControl);
  }
  v.chat_template = std::move(chat_template);
  return Tokenizer(std::move(v));
}

const json::value& golden() {
  static const json::value value =
      json::parse(read_file("tests/data/text/chat_golden.json", 1 << 20));
  return value;
}

// Short templates of ours, with the words by which the formats and variants are recognised.
std::string recognisable_template(const std::string& format) {
  if (format == "llama4") return "{{ '<|header_start|>' }}";
  if (format == "llama3") return "{{ '<|start_header_id|>' }}";
  if (format == "llama3.1") return "{{ '<|start_header_id|>' }}{{ 'Cutting Knowledge Date: ' }}";
  if (format == "pythonic")
    return json::value_to<std::string>(golden().at("our_pythonic_template"));
  if (format == "hermes") return "{{ '<|im_start|>' }}{{ '<tool_response>' }}";
  return json::value_to<std::string>(golden().at("our_chatml_template"));
}

std::vector<Message> messages_of(const json::value& row) {
  std::vector<Message> out;
  for (const auto& message : row.at("messages").as_array()) {
    out.push_back(
        {json::value_to<std::string>(message.at(0)), json::value_to<std::string>(message.at(1))});
  }
  return out;
}

TEST(ChatFormat, SpellsWhatTheModelsTemplatesSpell) {
  int rows = 0;
  for (const std::string format : {"llama4", "llama3", "llama3.1", "chatml"}) {
    const Tokenizer tokenizer = byte_tokenizer(recognisable_template(format));
    const ChatFormat detected = detect_chat_format(tokenizer.vocabulary());
    for (const auto& row : golden().at(format).as_array()) {
      const Tokens tokens =
          render_chat(detected, tokenizer, messages_of(row), row.at("prompt").as_bool());
      EXPECT_EQ(tokenizer.decode(tokens, /*show_special=*/true),
                json::value_to<std::string>(row.at("text")))
          << format << ": " << row.at("messages");
      ++rows;
    }
  }
  EXPECT_EQ(rows, 3 * 10 + 12);
}

// A conversation in OpenAI's shapes, but for the arguments, which are objects.
std::vector<Message> messages_with_calls(const json::value& given) {
  std::vector<Message> out;
  for (const auto& message : given.as_array()) {
    out.emplace_back(json::value_to<std::string>(message.at("role")),
                     json::value_to<std::string>(message.at("content")));
    const auto* calls = message.as_object().if_contains("tool_calls");
    for (const auto& call : calls ? calls->as_array() : json::array()) {
      out.back().tool_calls.push_back({json::value_to<std::string>(call.at("function").at("name")),
                                       call.at("function").at("arguments")});
    }
  }
  return out;
}

Tools golden_tools(const json::value& choice = nullptr) {
  return read_tools(golden().at("tools"), choice);
}

std::string rendered(const Tokenizer& tokenizer, const std::vector<Message>& messages,
                     const Tools& tools) {
  return tokenizer.decode(
      render_chat(detect_chat_format(tokenizer.vocabulary()), tokenizer, messages,
                  /*add_generation_prompt=*/true, tools),
      /*show_special=*/true);
}

TEST(ChatFormat, SpellsToolsCallsAndResultsAsTheTemplatesDo) {
  int rows = 0;
  for (const std::string format : {"llama4", "pythonic", "llama3.1", "hermes"}) {
    const Tokenizer tokenizer = byte_tokenizer(recognisable_template(format));
    for (const auto& row : golden().at("tools, " + format).as_array()) {
      EXPECT_EQ(rendered(tokenizer, messages_with_calls(row.at("messages")),
                         row.at("tools").as_bool() ? golden_tools() : Tools{}),
                json::value_to<std::string>(row.at("text")))
          << format << ": " << row.at("messages");
      ++rows;
    }
  }
  EXPECT_EQ(rows, 2 * 6 + 2 * 4);
}

// Beyond what the templates take.
TEST(ChatFormat, WritesCallsThatATemplateWouldRefuseOrGetWrong) {
  const json::object values = {
      {"n", 2}, {"s", "say \"hi\""}, {"x", json::array{true, nullptr, 0.5}}};
  const std::vector<Message> messages = [&] {
    std::vector<Message> out = {{"user", "?"}, {"assistant", "So:"}};
    out[1].tool_calls = {{"f", values}, {"now", json::object()}};
    return out;
  }();
  const auto turn = [&](const char* format) {
    const std::string text = rendered(byte_tokenizer(recognisable_template(format)), messages, {});
    const size_t at = text.find("assistant");
    return text.substr(at, text.find("<|", text.find("now", at)) - at);
  };
  EXPECT_EQ(turn("pythonic"),
            "assistant<|header_end|>\n\nSo:"
            "[f(n=2, s=\"say \\\"hi\\\"\", x=[True, None, 0.5]), now()]");
  EXPECT_EQ(turn("llama3.1"),
            "assistant<|end_header_id|>\n\n"
            "{\"name\": \"f\", \"parameters\": {\"n\": 2, \"s\": \"say \\\"hi\\\"\", "
            "\"x\": [true, null, 0.5]}}; {\"name\": \"now\", \"parameters\": {}}");
  EXPECT_EQ(turn("llama3"), turn("llama3.1"));
  EXPECT_EQ(turn("chatml"), turn("hermes"));
  // Without a user's message before it, the tools have a turn of their own.
  const Tokenizer tokenizer = byte_tokenizer(recognisable_template("llama4"));
  const std::string alone = rendered(tokenizer, {{"assistant", "Hello."}}, golden_tools());
  EXPECT_TRUE(alone.starts_with("<|begin_of_text|><|header_start|>user<|header_end|>\n\nGiven"));
  EXPECT_NE(alone.find("}<|eot|><|header_start|>assistant<|header_end|>\n\nHello.<|eot|>"),
            std::string::npos);
}

TEST(ChatFormat, AChoiceActsOnWhatTheModelIsShown) {
  const std::vector<Message> messages = {{"system", "Be brief."}, {"user", "Rome?"}};
  for (const char* format : {"llama4", "pythonic", "llama3", "llama3.1", "chatml", "hermes"}) {
    const Tokenizer tokenizer = byte_tokenizer(recognisable_template(format));
    const auto text = [&](const json::value& choice) {
      return rendered(tokenizer, messages, golden_tools(choice));
    };
    const auto has = [](const std::string& text, std::string_view part) {
      return text.find(part) != std::string::npos;
    };
    EXPECT_EQ(text("none"), rendered(tokenizer, messages, {})) << format;
    EXPECT_TRUE(has(text("auto"), "get_weather") && has(text("auto"), "\"now\"")) << format;
    EXPECT_FALSE(has(text("auto"), "Call one of the functions now.")) << format;
    EXPECT_TRUE(has(text("required"), "Call one of the functions now.")) << format;
    const std::string named =
        text(json::object{{"type", "function"}, {"function", {{"name", "now"}}}});
    EXPECT_FALSE(has(named, "get_weather")) << format;
    EXPECT_TRUE(has(named, "Call the function now now.")) << format;
  }
}

TEST(ChatFormat, ToolsStandBeforeThePicturesOfTheFirstMessage) {
  Vocabulary v = small_vocabulary();
  for (const char* text : {"<|image_start|>", "<|image_end|>", "<|image|>", "<|patch|>"}) {
    v.tokens.push_back(text);
    v.kinds.push_back(TokenKind::kControl);
  }
  const Tokenizer tokenizer(std::move(v));
  const std::vector<Part> parts = {{"", PictureTokens{1, 1, 1}}, {" What is it? \n"}};
  const std::string text = rendered(tokenizer, {{"user", parts}}, golden_tools());
  EXPECT_NE(text.find("\n}\n\n<|image_start|><|image|><|patch|><|image_end|> What is it?<|eot|>"),
            std::string::npos)
      << text;
}

// A tool's words, a call's arguments and a result that hold control tokens: only the frame's count.
TEST(ChatFormat, NoToolForgesAControlToken) {
  for (const char* format : {"llama4", "pythonic", "llama3", "llama3.1", "chatml", "hermes"}) {
    const Tokenizer tokenizer = byte_tokenizer(recognisable_template(format));
    const auto controls = [&](const std::string& words) {
      const json::value tools = json::array{
          json::object{{"type", "function"},
                       {"function", {{"name", "f"}, {"description", words}, {words, words}}}}};
      std::vector<Message> messages = {
          {"user", "x"}, {"assistant", words}, {"tool", words}, {"ipython", words}};
      messages[1].tool_calls = {{"f", json::object{{"a", words}, {words, words}}},
                                {words, json::string(words)}};
      Tokens out;
      for (const Token token : render_chat(detect_chat_format(tokenizer.vocabulary()), tokenizer,
                                           messages, true, read_tools(tools, "required"))) {
        if (tokenizer.is_control(token)) out.push_back(token);
      }
      return out;
    };
    const Tokens honest = controls("words");
    for (Token id = 0; id < tokenizer.size(); ++id) {
      if (!tokenizer.is_control(id)) continue;
      const std::string forged(tokenizer.token_bytes(id));
      EXPECT_EQ(controls(forged), honest) << format << ": " << forged;
      EXPECT_EQ(controls(forged + forged), honest) << format << ": " << forged;
    }
  }
}

TEST(ChatFormat, KnowsTheTokensThatMarkCalls) {
  const Tokenizer tokenizer = byte_tokenizer("");
  EXPECT_EQ(tool_marker_tokens(tokenizer), (Tokens{tokenizer.special("<|python_start|>").value(),
                                                   tokenizer.special("<|python_end|>").value(),
                                                   tokenizer.special("<|python_tag|>").value()}));
  EXPECT_TRUE(tool_marker_tokens(Tokenizer(small_vocabulary())).empty());
}

TEST(ChatFormat, GivesTheTokensOfTheWholeText) {
  for (const std::string format : {"llama4", "llama3", "llama3.1"}) {
    const std::string name = format.substr(0, 6);
    const auto path = shared_data(name + "/tokenizer.model");
    if (!std::filesystem::exists(path)) GTEST_SKIP() << "needs " << path << ", which is not there";
    Vocabulary v = vocabulary_from_tiktoken(read_ranks(path), name);
    v.chat_template = recognisable_template(format);
    const Tokenizer tokenizer(std::move(v));
    for (const auto& row : golden().at(format).as_array()) {
      EXPECT_EQ(render_chat(detect_chat_format(tokenizer.vocabulary()), tokenizer, messages_of(row),
                            row.at("prompt").as_bool()),
                json::value_to<Tokens>(row.at("tokens")))
          << format << ": " << row.at("messages");
    }
  }
}

TEST(ChatFormat, Llama4GivesTheTokensOfTheSpecification) {
  const auto path = shared_data("llama4/tokenizer.model");
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "needs " << path << ", which is not there";
  const Tokenizer tokenizer(vocabulary_from_tiktoken(read_ranks(path), "llama4"));
  const std::vector<Message> messages = {{"system", "You are a helpful assistant"},
                                         {"user", "Roses are red,"}};
  EXPECT_EQ(render_chat(ChatFormat::kLlama4, tokenizer, messages, true),
            (Tokens{200000, 200005, 15651,  200006, 368,    4662,   583, 262,   19933,
                    43910,  200008, 200005, 1556,   200006, 368,    62,  19441, 583,
                    4242,   24,     200008, 200005, 140680, 200006, 368}));
  EXPECT_EQ(chat_stop_tokens(ChatFormat::kLlama4, tokenizer), (Tokens{200001, 200007, 200008}));
  // A content that begins with a line break stays apart from the blank line of the header.
  const std::vector<Message> line_break = {{"user", "\nhi"}};
  const Tokens tokens = render_chat(ChatFormat::kLlama4, tokenizer, line_break, false);
  EXPECT_EQ(Tokens(tokens.begin(), tokens.begin() + 6),
            (Tokens{200000, 200005, 1556, 200006, 368, 198}));
}

// Every control token's text in every place of a message: the only control tokens are the frame's.
TEST(ChatFormat, NoMessageForgesAControlToken) {
  for (const ChatFormat format : {ChatFormat::kLlama4, ChatFormat::kLlama3, ChatFormat::kChatMl}) {
    const Tokenizer tokenizer = byte_tokenizer("");
    const auto controls = [&](const std::vector<Message>& messages) {
      Tokens out;
      for (const Token token : render_chat(format, tokenizer, messages, true)) {
        if (tokenizer.is_control(token)) out.push_back(token);
      }
      return out;
    };
    for (const char* role : {"system", "user", "assistant", "tool"}) {
      const Tokens honest = controls({{role, "x"}, {role, "x"}});
      for (Token id = 0; id < tokenizer.size(); ++id) {
        if (!tokenizer.is_control(id)) continue;
        const std::string forged(tokenizer.token_bytes(id));
        const size_t half = forged.size() / 2;
        EXPECT_EQ(controls({{role, forged}, {role, forged + forged}}), honest) << forged;
        EXPECT_EQ(controls({{role, forged.substr(0, half)}, {role, forged.substr(half)}}), honest);
        EXPECT_EQ(controls({{role + forged, "x"}, {forged, "x"}}), honest) << forged;
      }
    }
  }
}

TEST(ChatFormat, IsDetectedFromTheTemplateThenFromTheTokens) {
  const auto detect = [](std::string chat_template) {
    return detect_chat_format(byte_tokenizer(std::move(chat_template)).vocabulary());
  };
  EXPECT_EQ(detect("... <|header_start|> ..."), ChatFormat::kLlama4);
  EXPECT_EQ(detect("... <|start_header_id|> ..."), ChatFormat::kLlama3);
  EXPECT_EQ(detect("... <|im_start|> ..."), ChatFormat::kChatMl);
  EXPECT_EQ(detect("[INST]"), ChatFormat::kNone);
  EXPECT_EQ(detect(""), ChatFormat::kLlama4);
  Vocabulary v = small_vocabulary();
  v.kinds[static_cast<size_t>(*v.eos)] = TokenKind::kUnused;
  EXPECT_EQ(detect_chat_format(v), ChatFormat::kNone);  // no <|eot|>
}

TEST(ChatFormat, SaysWhatIsMissing) {
  const Tokenizer tokenizer(small_vocabulary());
  const std::vector<Message> messages = {{"user", "x"}};
  EXPECT_THROW(render_chat(ChatFormat::kNone, tokenizer, messages, true), Error);
  try {
    render_chat(ChatFormat::kChatMl, tokenizer, messages, true);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
    EXPECT_NE(error.message().find("<|im_start|>"), std::string::npos) << error.what();
  }
}

TEST(ChatFormat, HasNames) {
  for (const ChatFormat format :
       {ChatFormat::kNone, ChatFormat::kLlama4, ChatFormat::kLlama3, ChatFormat::kChatMl}) {
    EXPECT_EQ(chat_format_from_name(chat_format_name(format)), format);
  }
  EXPECT_THROW(chat_format_from_name("alpaca"), Error);
}

// Spec sections 6.7 and 6.8.
TEST(ChatFormat, APictureIsItsMarkersSeparatorsAndPatches) {
  Vocabulary v = small_vocabulary();
  for (const char* text : {"<|image_start|>", "<|image_end|>", "<|tile_x_separator|>",
                           "<|tile_y_separator|>", "<|image|>", "<|patch|>"}) {
    v.tokens.push_back(text);
    v.kinds.push_back(TokenKind::kControl);
  }
  const Tokenizer tokenizer(std::move(v));
  const auto spelled = [&](int64_t rows, int64_t cols) {
    Tokens tokens;
    const PictureTokens picture{rows, cols, 2};
    append_picture(tokenizer, picture, tokens);
    EXPECT_EQ(static_cast<int64_t>(tokens.size()), picture.length());
    const std::string out = tokenizer.decode(tokens, /*show_special=*/true);
    // One letter for each patch.
    constexpr std::string_view kPatch = "<|patch|>";
    std::string brief;
    for (size_t at = 0; at < out.size();) {
      const bool patch = out.compare(at, kPatch.size(), kPatch) == 0;
      brief.push_back(patch ? 'p' : out[at]);
      at += patch ? kPatch.size() : 1;
    }
    return brief;
  };
  EXPECT_EQ(spelled(1, 1), "<|image_start|><|image|>pp<|image_end|>");
  EXPECT_EQ(spelled(1, 2),
            "<|image_start|>pp<|tile_x_separator|>pp<|tile_y_separator|><|image|>pp<|image_end|>");
  EXPECT_EQ(spelled(2, 2),
            "<|image_start|>pp<|tile_x_separator|>pp<|tile_y_separator|>"
            "pp<|tile_x_separator|>pp<|tile_y_separator|><|image|>pp<|image_end|>");
  EXPECT_EQ((PictureTokens{3, 5, 144}).length(), 2322);
  EXPECT_EQ((PictureTokens{4, 3, 144}).length(), 1887);

  // In a user's turn, between words, and nowhere else.
  const PictureTokens small{1, 1, 1};
  const Tokens tokens = render_chat(ChatFormat::kLlama4, tokenizer,
                                    std::vector<Message>{{"user", {{"he"}, {"", small}, {"ll"}}}},
                                    /*add_generation_prompt=*/false);
  EXPECT_NE(tokenizer.decode(tokens, true)
                .find("\n\nhe<|image_start|><|image|><|patch|><|image_end|>ll<|eot|>"),
            std::string::npos);
  for (const char* role : {"system", "tool"}) {
    EXPECT_THROW(render_chat(ChatFormat::kLlama4, tokenizer,
                             std::vector<Message>{{role, {{"", small}}}}, false),
                 Error);
  }
  // A vocabulary without pictures names the token that it lacks.
  try {
    Tokens out;
    append_picture(Tokenizer(small_vocabulary()), small, out);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
    EXPECT_NE(error.message().find("<|patch|>"), std::string::npos);
  }
}

}  // namespace
}  // namespace drover
