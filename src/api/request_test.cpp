#include "api/request.h"

#include <random>

#include "api/api_fixture.h"
#include "api/body.h"
#include "api/data_url.h"
#include "tests/support/expect_error.h"

namespace drover {
namespace {

using testing::expect_error;

class ApiRequestTest : public testing::ApiTest {};

TEST_F(ApiRequestTest, AChatBecomesTheTokensOfItsFormat) {
  const std::vector<Message> messages = {{"system", "be brief"}, {"user", "hello"}};
  const auto tokens = render_chat(ChatFormat::kChatMl, model_->tokenizer(), messages, true);
  for (
      const char* text :
      {R"({"messages":[{"role":"system","content":"be brief"},{"role":"user","content":"hello"}]})",
       R"({"messages":[{"role":"developer","content":"be brief"},
            {"role":"user","content":[{"type":"text","text":"hello"}]}],"user":"me","whatever":{"a":1}})"}) {
    EXPECT_EQ(chat(text).requests[0].prompt.tokens, tokens);
  }
}

TEST_F(ApiRequestTest, ParametersBecomeOptions) {
  const ApiRequest read = chat(R"({"model":"m","messages":[{"role":"user","content":"a"}],
      "temperature":0.5,"top_p":0.25,"top_k":7,"min_p":0.125,"n":3,"seed":9,"stop":["x","yz"],
      "presence_penalty":1,"frequency_penalty":0.5,"repetition_penalty":2,
      "max_tokens":5,"max_completion_tokens":6,"priority":2,"stream":false,"logprobs":false,
      "tools":[],"tool_choice":"auto","response_format":{"type":"text"},
      "logit_bias":{"5":1.5,"60":-100},"modalities":["text"],"best_of":3,
      "stop_token_ids":[9],"skip_special_tokens":false})");
  const Request& request = read.requests[0];
  const GenerateOptions& o = request.options;
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
  EXPECT_EQ(request.samples, 3);
  EXPECT_EQ(request.priority, 2);
  EXPECT_EQ(o.stop, (std::vector<std::string>{"x", "yz"}));
  EXPECT_EQ(o.sampling.logit_bias,
            (std::vector<std::pair<Token, float>>{{5, 1.5f}, {60, -100.0f}}));
  EXPECT_EQ(o.stop_tokens.back(), 9);
  EXPECT_TRUE(o.show_special);
  EXPECT_TRUE(read.seeded);
  EXPECT_FALSE(read.stream);
  EXPECT_EQ(o.logprobs, std::nullopt);
}

TEST_F(ApiRequestTest, WhatIsNotAskedForIsNotDone) {
  const ApiRequest read = chat(R"({"messages":[{"role":"user","content":"a"}],"stop":null,
      "logprobs":null,"top_logprobs":null,"logit_bias":{},"stream":null,"stream_options":null,
      "tools":null,"suffix":null,"ignore_eos":true})");
  EXPECT_FALSE(read.seeded || read.stream || read.include_usage || read.echo);
  EXPECT_EQ(read.requests[0].options.logprobs, std::nullopt);
  EXPECT_TRUE(read.requests[0].options.sampling.logit_bias.empty());
  EXPECT_TRUE(read.requests[0].options.stop_tokens.empty());
}

// A chat says whether and how many; a completion how many, and of its prompt too when it echoes.
TEST_F(ApiRequestTest, LogprobsAreAskedForInTwoWays) {
  const auto of_chat = [](const std::string& rest) {
    return chat(R"({"messages":[{"role":"user","content":"a"}],)" + rest + "}")
        .requests[0]
        .options.logprobs;
  };
  EXPECT_EQ(of_chat(R"("logprobs":true)"), 0);
  EXPECT_EQ(of_chat(R"("logprobs":true,"top_logprobs":20)"), 20);
  EXPECT_EQ(of_chat(R"("logprobs":false)"), std::nullopt);
  const auto refused = [&](std::string_view message, const std::string& rest) {
    expect_error(ErrorKind::kUsage, message, [&] { of_chat(rest); });
  };
  refused("top_logprobs: expected 0 to 20, got 21", R"("logprobs":true,"top_logprobs":21)");
  refused("top_logprobs: expected logprobs", R"("top_logprobs":2)");
  refused("key logprobs: expected a boolean", R"("logprobs":5)");
  const auto of_completion = [](const std::string& rest) {
    return completion(R"({"prompt":"a",)" + rest + "}").requests[0].options;
  };
  EXPECT_EQ(of_completion(R"("logprobs":0)").logprobs, 0);
  EXPECT_EQ(of_completion(R"("logprobs":5)").prompt_logprobs, std::nullopt);
  EXPECT_EQ(of_completion(R"("logprobs":5,"echo":true)").prompt_logprobs, 5);
  EXPECT_EQ(of_completion(R"("echo":true)").prompt_logprobs, std::nullopt);
  expect_error(ErrorKind::kUsage, "logprobs: expected 0 to 20, got 21",
               [&] { of_completion(R"("logprobs":21)"); });
}

TEST_F(ApiRequestTest, AStreamMayEndWithWhatItTook) {
  const auto of = [](const std::string& rest) {
    return chat(R"({"messages":[{"role":"user","content":"a"}],"stream":true)" + rest + "}");
  };
  EXPECT_TRUE(of("").stream);
  EXPECT_FALSE(of("").include_usage);
  EXPECT_TRUE(of(R"(,"stream_options":{"include_usage":true})").include_usage);
}

// The head of a conversation with a call in it, and its result.
constexpr char kCalled[] = R"({"messages":[{"role":"user","content":"a"},
  {"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function",
   "function":{"name":"f","arguments":"{\"x\": 1}"}}]},
  {"role":"tool","tool_call_id":"1","content":"b"}],)";

TEST_F(ApiRequestTest, ToolsStandInThePromptAsTheFormatHasThem) {
  const std::string tools =
      R"("tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}},)"
      R"({"type":"function","function":{"name":"g"}}])";
  const ApiRequest asked = chat(kCalled + tools + R"(,"parallel_tool_calls":false})");
  EXPECT_EQ(asked.tools, (std::vector<std::string>{"f", "g"}));
  EXPECT_EQ(asked.most_calls, 1);
  Message call("assistant", "");
  call.tool_calls = {{"f", boost::json::object{{"x", 1}}}};
  const std::vector<Message> messages = {{"user", "a"}, call, {"tool", "b"}};
  const Tools shown = read_tools(boost::json::parse("{" + tools + "}").at("tools"), nullptr);
  EXPECT_EQ(asked.requests[0].prompt.tokens,
            render_chat(ChatFormat::kChatMl, model_->tokenizer(), messages, true, shown));
  EXPECT_TRUE(chat(kCalled + tools + R"(,"tool_choice":"none"})").tools.empty());
}

TEST_F(ApiRequestTest, WhatCannotBeDoneIsRefusedByName) {
  const std::string head = R"({"messages":[{"role":"user","content":"a"}],)";
  const auto refused = [&](std::string_view name, const std::string& rest,
                           ErrorKind kind = ErrorKind::kUsage) {
    expect_error(kind, name, [&] { chat(head + rest + "}"); });
  };
  refused("tools", R"("tools":[{"type":"function"}])");
  refused("tool_choice", R"("tool_choice":"required")");
  refused("functions", R"("functions":[{"name":"f"}])", ErrorKind::kUnsupported);
  refused("response_format", R"("response_format":{"type":"json_object"})",
          ErrorKind::kUnsupported);
  refused("modalities", R"("modalities":["text","audio"])", ErrorKind::kUnsupported);
  refused("guided_json", R"("guided_json":{"type":"object"})", ErrorKind::kUnsupported);
  refused("best_of", R"("best_of":2)", ErrorKind::kUnsupported);
  refused("messages[0].tool_calls[0]", R"("messages":[{"role":"assistant","tool_calls":[1]}])");
  refused("messages[0]: tool_calls",
          R"("messages":[{"role":"user","content":"a","tool_calls":[{"function":{"name":"f"}}]}])");
  refused("logit_bias: expected tokens of 0 to 63, got 64", R"("logit_bias":{"64":1})");
  refused("logit_bias: expected tokens of 0 to 63, got -1", R"("logit_bias":{"-1":1})");
  refused("logit_bias: expected tokens of 0 to 63, got 05", R"("logit_bias":{"05":1})");
  refused("logit_bias: expected tokens of 0 to 63, got the", R"("logit_bias":{"the":1})");
  refused("logit_bias: expected -100 to 100, got 101", R"("logit_bias":{"5":101})");
  refused("logit_bias: key 5: expected a number", R"("logit_bias":{"5":"1"})");
  refused("stop_token_ids", R"("stop_token_ids":[64])");
  refused("n: expected 1 to 128, got 129", R"("n":129)");
  refused("temperature", R"("temperature":"hot")");
  refused("temperature", R"("temperature":-1)");
  refused("top_p", R"("top_p":0)");
  refused("n: expected 1 to 128", R"("n":0)");
  refused("max_tokens", R"("max_tokens":-5)");
  refused("stop", R"("stop":5)");
  expect_error(ErrorKind::kUsage, "messages", [&] { chat("{}"); });
  expect_error(ErrorKind::kUsage, "messages", [&] { chat(R"({"messages":[]})"); });
  expect_error(ErrorKind::kUsage, "messages[0]", [&] { chat(R"({"messages":[5]})"); });
  expect_error(ErrorKind::kUsage, "role",
               [&] { chat(R"({"messages":[{"role":"cat","content":""}]})"); });
  expect_error(ErrorKind::kUsage, "content", [&] { chat(R"({"messages":[{"role":"user"}]})"); });
  expect_error(ErrorKind::kUsage, "messages[0].content[0]: type",
               [&] { chat(R"({"messages":[{"role":"user","content":[{"type":"sound"}]}]})"); });
  expect_error(ErrorKind::kUnsupported, "text only", [&] {
    chat(R"({"messages":[{"role":"user","content":[{"type":"image_url",
         "image_url":{"url":"data:image/png;base64,AAAA"}}]}]})");
  });
}

TEST_F(ApiRequestTest, APromptIsATextOrTokensOrSeveralOfThem) {
  const auto prompts = [](const std::string& prompt) {
    std::vector<std::vector<Token>> out;
    for (const Request& one : completion(R"({"prompt":)" + prompt + "}").requests) {
      out.push_back(one.prompt.tokens);
    }
    return out;
  };
  using Prompts = std::vector<std::vector<Token>>;
  const std::vector<Token> ship = tokens_of("the ship"), sea = tokens_of("sea");
  EXPECT_EQ(prompts(R"("the ship")"), Prompts{ship});
  EXPECT_EQ(prompts(R"(["the ship"])"), Prompts{ship});
  EXPECT_EQ(prompts(R"(["the ship","sea"])"), (Prompts{ship, sea}));
  EXPECT_EQ(prompts("[1,2,3]"), (Prompts{{1, 2, 3}}));
  EXPECT_EQ(prompts("[[1,2,3],[4]]"), (Prompts{{1, 2, 3}, {4}}));
  for (const char* bad : {"{}", "[]", "5", "[true]", "[1,\"a\"]", "[[1],[[2]]]", "[1.5]", "null"}) {
    expect_error(ErrorKind::kUsage, "prompt", [&] { prompts(bad); });
  }
  expect_error(ErrorKind::kUsage, "prompt: expected tokens of 0 to 63, got 64",
               [&] { prompts("[[1],[64]]"); });
  std::string many = "[";
  for (size_t i = 0; i <= kMostInputs; ++i) many += "\"a\",";
  many.back() = ']';
  expect_error(ErrorKind::kUsage, "prompt: expected at most 2048, got 2049",
               [&] { prompts(many); });
}

TEST_F(ApiRequestTest, InputsOfEmbeddingsArePromptsWithoutAnAnswer) {
  const ApiRequest read = embedding(
      R"({"input":["the ship","sea"],"encoding_format":"base64","user":"me","dimensions":null})");
  ASSERT_EQ(read.requests.size(), 2u);
  EXPECT_EQ(read.requests[1].prompt.tokens, tokens_of("sea"));
  EXPECT_EQ(read.requests[1].kind, RequestKind::kEmbedding);
  EXPECT_TRUE(read.base64);
  const int64_t size = model_->config().hidden;
  EXPECT_FALSE(embedding(fmt::format(R"({{"input":"a","dimensions":{}}})", size)).base64);
  expect_error(ErrorKind::kUnsupported, fmt::format("dimensions: expected {}", size),
               [] { embedding(R"({"input":"a","dimensions":3})"); });
  expect_error(ErrorKind::kUsage, "encoding_format: expected float or base64",
               [] { embedding(R"({"input":"a","encoding_format":"int8"})"); });
  expect_error(ErrorKind::kUsage, "input: expected at least one token",
               [] { embedding(R"({"input":["a",""]})"); });
  expect_error(ErrorKind::kUsage, "input", [] { embedding("{}"); });
  try {
    embedding(R"({"input":[[1,2],[100000]]})");
    FAIL() << "tokens of another tokenizer";
  } catch (const Error& error) {
    EXPECT_NE(error.hint().find("another tokenizer"), std::string::npos);
  }
}

void list_values(boost::json::value& value, std::vector<boost::json::value*>& out) {
  out.push_back(&value);
  if (auto* object = value.if_object()) {
    for (auto& field : *object) list_values(field.value(), out);
  } else if (auto* array = value.if_array()) {
    for (auto& element : *array) list_values(element, out);
  }
}

// One to three values of a good body become something else: it is read, or refused as the caller's
// fault.
TEST_F(ApiRequestTest, HostileBodiesAreReadOrRefused) {
  const std::vector<std::pair<ApiKind, boost::json::object>> good = {
      {ApiKind::kChat, testing::parse_object(R"({"messages":[{"role":"system","content":"b"},
          {"role":"user","content":[{"type":"text","text":"a"}]}],"stop":["x"],"n":2,"seed":1,
          "logit_bias":{"5":1},"logprobs":true,"top_logprobs":2,"max_tokens":4,"stream":true,
          "stream_options":{"include_usage":true},"response_format":{"type":"text"},
          "temperature":1,"top_p":1,"tools":[],"stop_token_ids":[5],"modalities":["text"]})")},
      {ApiKind::kCompletion, testing::parse_object(R"({"prompt":["a","b"],"logprobs":1,"echo":true,
          "best_of":1,"priority":0,"min_p":0.5,"top_k":3})")},
      {ApiKind::kCompletion, testing::parse_object(R"({"prompt":[[1,2],[3]]})")},
      {ApiKind::kEmbedding, testing::parse_object(R"({"input":["a",[1]],"encoding_format":"base64",
          "dimensions":null})")},
      {ApiKind::kResponse, testing::parse_object(R"({"instructions":"b","input":[
          {"role":"user","content":[{"type":"input_text","text":"a"}]},
          {"type":"function_call","call_id":"1","name":"f","arguments":"{}"},
          {"type":"function_call_output","call_id":"1","output":"b"}],
          "tools":[{"type":"function","name":"f","parameters":{}}],"tool_choice":"auto",
          "metadata":{"a":"b"},"include":["message.output_text.logprobs"],"top_logprobs":1,
          "text":{"format":{"type":"text"}},"max_output_tokens":4})")},
      {ApiKind::kMessage, testing::parse_object(R"({"system":[{"type":"text","text":"b"}],
          "max_tokens":4,"messages":[{"role":"user","content":[{"type":"text","text":"a"}]},
          {"role":"assistant","content":[{"type":"tool_use","id":"1","name":"f","input":{}}]},
          {"role":"user","content":[{"type":"tool_result","tool_use_id":"1","content":"c"}]}],
          "tools":[{"name":"f","input_schema":{}}],"tool_choice":{"type":"auto"},
          "stop_sequences":["x"],"thinking":{"type":"disabled"}})")}};
  const auto others = boost::json::parse(R"([null,true,false,0,-1,64,9223372036854775807,
      18446744073709551615,1e308,-1e308,0.5,"","x","auto","\ud83d\ude00",[],[[]],[null],[{}],
      [1,"a"],{},{"type":"text"},{"a":{}},{"url":"data:;base64,AAAA"},[[1],["a"]],{"5":1e308}])")
                          .as_array();
  std::mt19937 random(1);
  int read_well = 0;
  for (int round = 0; round < 6000; ++round) {
    const auto& [kind, body] = good[random() % good.size()];
    boost::json::value changed = body;
    for (size_t changes = 1 + random() % 3; changes > 0; --changes) {
      std::vector<boost::json::value*> values;
      list_values(changed, values);
      if (values.size() > 1)
        *values[1 + random() % (values.size() - 1)] = others[random() % others.size()];
    }
    try {
      read_api_request(kind, changed.as_object(), *model_, ChatFormat::kChatMl);
      ++read_well;
    } catch (const Error& error) {
      EXPECT_TRUE(error.kind() == ErrorKind::kUsage || error.kind() == ErrorKind::kUnsupported)
          << error.what() << " in " << boost::json::serialize(changed);
    }
  }
  EXPECT_GT(read_well, 100);
  EXPECT_LT(read_well, 5400);
}

TEST_F(ApiRequestTest, UrlsNameTheKind) {
  EXPECT_EQ(api_kind("/v1/chat/completions"), ApiKind::kChat);
  EXPECT_EQ(api_kind("/chat/completions/"), ApiKind::kChat);
  EXPECT_EQ(api_kind("/v1/completions"), ApiKind::kCompletion);
  EXPECT_EQ(api_kind("/v1/embeddings/"), ApiKind::kEmbedding);
  EXPECT_EQ(api_kind("/v1/responses"), ApiKind::kResponse);
  EXPECT_EQ(api_kind("/v1/messages"), ApiKind::kMessage);
  for (const char* bad :
       {"", "/", "/v1", "chat/completions", "/v2/completions", "/v1/v1/completions"}) {
    expect_error(ErrorKind::kUsage, "url: expected", [&] { api_kind(bad); });
  }
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
