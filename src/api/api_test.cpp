#include <gtest/gtest.h>

#include "api/completions.h"
#include "api/data_url.h"
#include "tests/support/expect_error.h"
#include "tests/support/small_model.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

using testing::expect_error;

boost::json::object body(std::string_view text) { return boost::json::parse(text).as_object(); }

class Api : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new testing::TempFolder();
    testing::write_small_model(*folder_ / "model", "scout");
    model_ = Model::load((*folder_ / "model").string()).release();
  }
  static void TearDownTestSuite() {
    delete model_;
    delete folder_;
  }

  static ApiRequest chat(std::string_view text) {
    return read_api_request(ApiKind::kChat, body(text), *model_, ChatFormat::kChatMl);
  }
  static ApiRequest completion(std::string_view text) {
    return read_api_request(ApiKind::kCompletion, body(text), *model_, ChatFormat::kChatMl);
  }

  static testing::TempFolder* folder_;
  static Model* model_;
};
testing::TempFolder* Api::folder_ = nullptr;
Model* Api::model_ = nullptr;

TEST_F(Api, AChatBecomesTheTokensOfItsFormat) {
  const std::vector<Message> messages = {{"system", "be brief"}, {"user", "hello"}};
  const auto tokens = render_chat(ChatFormat::kChatMl, model_->tokenizer(), messages, true);
  for (
      const char* text :
      {R"({"messages":[{"role":"system","content":"be brief"},{"role":"user","content":"hello"}]})",
       R"({"messages":[{"role":"developer","content":"be brief"},
            {"role":"user","content":[{"type":"text","text":"hello"}]}],"user":"me","whatever":{"a":1}})"}) {
    EXPECT_EQ(chat(text).request.prompt.tokens, tokens);
  }
}

TEST_F(Api, ParametersBecomeOptions) {
  const ApiRequest read = chat(R"({"model":"m","messages":[{"role":"user","content":"a"}],
      "temperature":0.5,"top_p":0.25,"top_k":7,"min_p":0.125,"n":3,"seed":9,"stop":["x","yz"],
      "presence_penalty":1,"frequency_penalty":0.5,"repetition_penalty":2,
      "max_tokens":5,"max_completion_tokens":6,"priority":2,"stream":false,"logprobs":false,
      "tools":[],"tool_choice":"auto","response_format":{"type":"text"}})");
  const GenerateOptions& o = read.request.options;
  EXPECT_EQ(read.model, "m");
  EXPECT_EQ(o.sampling.temperature, 0.5f);
  EXPECT_EQ(o.sampling.top_p, 0.25f);
  EXPECT_EQ(o.sampling.top_k, 7);
  EXPECT_EQ(o.sampling.min_p, 0.125f);
  EXPECT_EQ(o.sampling.seed, 9u);
  EXPECT_EQ(o.sampling.presence_penalty, 1.0f);
  EXPECT_EQ(o.sampling.frequency_penalty, 0.5f);
  EXPECT_EQ(o.sampling.repeat_penalty, 2.0f);
  EXPECT_EQ(o.max_tokens, 6);
  EXPECT_EQ(read.request.samples, 3);
  EXPECT_EQ(read.request.priority, 2);
  EXPECT_EQ(o.stop, (std::vector<std::string>{"x", "yz"}));
}

TEST_F(Api, WhatCannotBeDoneIsRefusedByName) {
  const std::string head = R"({"messages":[{"role":"user","content":"a"}],)";
  const auto refused = [&](std::string_view name, const std::string& rest) {
    expect_error(ErrorKind::kUsage, name, [&] { chat(head + rest + "}"); });
  };
  refused("tools", R"("tools":[{"type":"function"}])");
  refused("tool_choice", R"("tool_choice":"required")");
  refused("logprobs", R"("logprobs":true)");
  refused("logit_bias", R"("logit_bias":{"5":1})");
  refused("stream", R"("stream":true)");
  refused("response_format", R"("response_format":{"type":"json_object"})");
  refused("temperature", R"("temperature":"hot")");
  refused("temperature", R"("temperature":-1)");
  refused("top_p", R"("top_p":0)");
  refused("n: expected 1 to 128", R"("n":0)");
  refused("max_tokens", R"("max_tokens":-5)");
  refused("stop", R"("stop":5)");
  expect_error(ErrorKind::kUsage, "messages", [&] { chat("{}"); });
  expect_error(ErrorKind::kUsage, "messages", [&] { chat(R"({"messages":[]})"); });
  expect_error(ErrorKind::kUsage, "message 0", [&] { chat(R"({"messages":[5]})"); });
  expect_error(ErrorKind::kUsage, "role",
               [&] { chat(R"({"messages":[{"role":"cat","content":""}]})"); });
  expect_error(ErrorKind::kUsage, "content", [&] { chat(R"({"messages":[{"role":"user"}]})"); });
  expect_error(ErrorKind::kUsage, "part 0: type",
               [&] { chat(R"({"messages":[{"role":"user","content":[{"type":"sound"}]}]})"); });
  expect_error(ErrorKind::kUnsupported, "text only", [&] {
    chat(R"({"messages":[{"role":"user","content":[{"type":"image_url",
         "image_url":{"url":"data:image/png;base64,AAAA"}}]}]})");
  });
}

TEST_F(Api, ACompletionTakesTextOrTokensAndEchoes) {
  const ApiRequest text = completion(R"({"prompt":"the ship","echo":true})");
  EXPECT_EQ(text.prompt_text, "the ship");
  const ApiRequest tokens = completion(R"({"prompt":[1,2,3]})");
  EXPECT_EQ(tokens.request.prompt.tokens, (std::vector<Token>{1, 2, 3}));
  expect_error(ErrorKind::kUsage, "prompt: expected tokens of 0 to 63, got 64",
               [&] { completion(R"({"prompt":[64]})"); });
  expect_error(ErrorKind::kUsage, "prompt", [&] { completion("{}"); });
  Answer answer;
  answer.text = " sails\xff";
  answer.finish = FinishReason::kContext;
  answer.prompt_tokens = 7;
  answer.tokens = {1, 2};
  const auto out = api_answer(text, {&answer, 1}, "id", "m", 5);
  EXPECT_EQ(out.at("choices").at(0).at("text"), "the ship sails\xef\xbf\xbd");
  EXPECT_EQ(out.at("choices").at(0).at("finish_reason"), "length");
  EXPECT_EQ(out.at("usage").at("total_tokens"), 9);
}

TEST_F(Api, ErrorsNameTheirFieldAndStatus) {
  const Error usage(ErrorKind::kUsage, "top_p: expected more than 0");
  EXPECT_EQ(api_status(usage), 400);
  EXPECT_EQ(api_error(usage).at("error").at("param"), "top_p");
  const Error overflow(ErrorKind::kLimit,
                       "prompt: expected at most the context of 4 tokens, got 5");
  EXPECT_EQ(api_status(overflow), 400);
  EXPECT_EQ(api_error(overflow).at("error").at("code"), "context_length_exceeded");
  EXPECT_EQ(api_status(Error(ErrorKind::kInternal, "bug")), 500);
}

TEST(DataUrl, GivesTheBytesAndRefusesTheRest) {
  const auto text = [](std::string_view url) {
    const auto bytes = bytes_of_data_url(url, "x");
    return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  };
  EXPECT_EQ(text("data:;base64,aGVsbG8="), "hello");
  EXPECT_EQ(text("data:image/png;base64,aGVsbG8h"), "hello!");
  EXPECT_EQ(text("data:image/png;base64,aA=="), "h");
  for (const char* bad : {"", "http://a/b.png", "data:,abc", "data:;base64,", "data:;base64,abc",
                          "data:;base64,ab\nc", "data:;base64,a===", "data:;base64,====",
                          "data:;base64,aGVs bG8", "data:;base64,aG=s"}) {
    expect_error(ErrorKind::kUsage, "x: expected", [&] { bytes_of_data_url(bad, "x"); });
  }
}

}  // namespace
}  // namespace drover
