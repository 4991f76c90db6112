#include "api/anthropic.h"

#include "api/api_fixture.h"
#include "tests/support/expect_error.h"

namespace drover {
namespace {

namespace json = boost::json;

class MessagesTest : public testing::ApiTest {
 protected:
  static const ApiName& name() {
    static const ApiName name{.id = "msg_1", .model = "m", .created = 5};
    return name;
  }
  static json::object whole(const ApiRequest& request, const Answer& answer) {
    return whole_of(request, answer, name());
  }
  static testing::EventLog stream(const ApiRequest& request, const Answer& answer) {
    return stream_of(request, answer, name());
  }
  static std::vector<Token> prompt(std::string_view rest) {
    return message(R"({"max_tokens":9,)" + std::string(rest) + "}").requests[0].prompt.tokens;
  }
  static std::vector<Token> chat_prompt(std::string_view body) {
    return chat(body).requests[0].prompt.tokens;
  }
};

constexpr char kAsk[] = R"({"max_tokens":9,"messages":[{"role":"user","content":"a"}])";
constexpr char kTools[] =
    R"("tools":[{"name":"f","description":"d","input_schema":{"type":"object"},)"
    R"("cache_control":{"type":"ephemeral"}},{"type":"custom","name":"g","input_schema":{}}])";

TEST_F(MessagesTest, AMessageIsAnthropicsToTheLetter) {
  const ApiRequest request = message(std::string(kAsk) + "}");
  EXPECT_EQ(whole(request, answer_of("a\xC3\xA9")), testing::parse_object(R"({
    "id":"msg_1","type":"message","role":"assistant","model":"m",
    "content":[{"type":"text","text":"aé"}],"stop_reason":"end_turn","stop_sequence":null,
    "usage":{"input_tokens":4,"cache_creation_input_tokens":0,"cache_read_input_tokens":3,
             "output_tokens":5}})"));
  EXPECT_EQ(whole(request, answer_of("")).at("content"), json::array());
}

TEST_F(MessagesTest, AMessageSaysWhyItStopped) {
  const ApiRequest request = message(std::string(kAsk) + "," + kTools + "}");
  const auto reason = [&](const Answer& answer) {
    return whole(request, answer).at("stop_reason");
  };
  EXPECT_EQ(reason(answer_of("b", FinishReason::kLength)), "max_tokens");
  EXPECT_EQ(reason(answer_of("b", FinishReason::kContext)), "max_tokens");
  EXPECT_EQ(reason(answer_of("[f()]")), "tool_use");
  EXPECT_EQ(reason(answer_of("[f()]", FinishReason::kLength)), "max_tokens");
  EXPECT_EQ(reason(answer_of("[h()]")), "end_turn") << "no tool of mine";
  Answer stopped = answer_of("b");
  stopped.stop_string = "END";
  EXPECT_EQ(reason(stopped), "stop_sequence");
  EXPECT_EQ(whole(request, stopped).at("stop_sequence"), "END");
}

TEST_F(MessagesTest, AStreamIsAnthropicsToTheLetter) {
  const ApiRequest request = message(std::string(kAsk) + R"(,"stream":true})");
  const testing::EventLog log = stream(request, answer_of("ab"));
  const auto expected = json::parse(fmt::format(R"([
    {{"type":"message_start","message":{{"id":"msg_1","type":"message","role":"assistant",
      "model":"m","content":[],"stop_reason":null,"stop_sequence":null,"usage":{{
        "input_tokens":{},"cache_creation_input_tokens":0,"cache_read_input_tokens":0,
        "output_tokens":0}}}}}},
    {{"type":"ping"}},
    {{"type":"content_block_start","index":0,"content_block":{{"type":"text","text":""}}}},
    {{"type":"content_block_delta","index":0,"delta":{{"type":"text_delta","text":"a"}}}},
    {{"type":"content_block_delta","index":0,"delta":{{"type":"text_delta","text":"b"}}}},
    {{"type":"content_block_stop","index":0}},
    {{"type":"message_delta","delta":{{"stop_reason":"end_turn","stop_sequence":null}},"usage":{{
        "input_tokens":4,"cache_creation_input_tokens":0,"cache_read_input_tokens":3,
        "output_tokens":5}}}},
    {{"type":"message_stop"}}])",
                                                request.requests[0].prompt.tokens.size()))
                            .as_array();
  ASSERT_EQ(log.events.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(json::value(log.events[i]), expected[i]);
}

TEST_F(MessagesTest, CallsAreBlocksInTheOrderInWhichTheyWereSaid) {
  const ApiRequest request = message(std::string(kAsk) + "," + kTools + "}");
  const Answer answer = answer_of(R"(Wait. [f(a=1, b={"c": [true, None]}), g()])");
  const json::object body = whole(request, answer);
  EXPECT_EQ(body.at("content"), json::parse(R"([
    {"type":"text","text":"Wait. "},
    {"type":"tool_use","id":"toolu_1_0","name":"f","input":{"a":1,"b":{"c":[true,null]}}},
    {"type":"tool_use","id":"toolu_1_1","name":"g","input":{}}])"));

  // As a client puts the stream together.
  json::array content;
  std::string input;
  bool open = false;
  for (const json::object& event : stream(request, answer).events) {
    const std::string_view type = event.at("type").as_string();
    if (type == "content_block_start") {
      EXPECT_FALSE(open);
      open = true;
      EXPECT_EQ(event.at("index"), content.size());
      content.push_back(event.at("content_block"));
      input.clear();
    } else if (type == "content_block_delta") {
      EXPECT_TRUE(open);
      const json::object& delta = event.at("delta").as_object();
      if (delta.at("type") == "text_delta") {
        content.back().at("text").as_string() += delta.at("text").as_string();
      } else {
        input += delta.at("partial_json").as_string();
      }
    } else if (type == "content_block_stop") {
      EXPECT_EQ(event.at("index"), content.size() - 1);
      open = false;
      if (content.back().at("type") == "tool_use") {
        content.back().as_object()["input"] = json::parse(input);
      }
    }
  }
  EXPECT_EQ(content, body.at("content").as_array());
}

TEST_F(MessagesTest, HalfACallIsNoToolUse) {
  const ApiRequest request = message(std::string(kAsk) + "," + kTools + "}");
  const Answer answer = answer_of(R"([f(a=1, b="x)", FinishReason::kLength);
  EXPECT_EQ(whole(request, answer).at("content").at(0).at("text").as_string(), answer.text);
  const testing::EventLog log = stream(request, answer);
  const auto types = log.types();
  ASSERT_GE(types.size(), 4u);
  EXPECT_EQ(types[types.size() - 3], "content_block_stop") << "what is open is closed";
  EXPECT_EQ(log.events[types.size() - 2].at("delta").at("stop_reason"), "max_tokens");
}

TEST_F(MessagesTest, AStreamThatFailsEndsWithAnError) {
  const ApiRequest request = message(std::string(kAsk) + R"(,"stream":true})");
  testing::EventLog log;
  const auto stream = make_stream(request, model_->tokenizer(), name(), log.emit());
  stream->begin();
  stream->fail(api_refusal(Refusal::kNotReady, "the server is about to end"));
  EXPECT_EQ(log.events.back(), testing::parse_object(R"({"type":"error","error":{
      "type":"overloaded_error","message":"the server is about to end"}})"));
}

TEST_F(MessagesTest, ErrorsHaveTheTypeOfTheirStatus) {
  const auto type = [](Refusal refusal) {
    const json::object body = error_body(api_refusal(refusal, "x"), ApiDialect::kAnthropic, "id-1");
    EXPECT_EQ(body.at("type"), "error");
    EXPECT_EQ(body.at("request_id"), "id-1");
    EXPECT_EQ(body.at("error").at("message"), "x");
    return std::string(body.at("error").at("type").as_string());
  };
  EXPECT_EQ(type(Refusal::kWrongKey), "authentication_error");
  EXPECT_EQ(type(Refusal::kForbidden), "permission_error");
  EXPECT_EQ(type(Refusal::kNoModel), "not_found_error");
  EXPECT_EQ(type(Refusal::kNoPath), "not_found_error");
  EXPECT_EQ(type(Refusal::kWrongMethod), "invalid_request_error");
  EXPECT_EQ(type(Refusal::kTooLarge), "request_too_large");
  EXPECT_EQ(type(Refusal::kTooMany), "rate_limit_error");
  EXPECT_EQ(type(Refusal::kOverloaded), "rate_limit_error");
  EXPECT_EQ(type(Refusal::kNotReady), "overloaded_error");
  const ApiError bug = api_error(Error(ErrorKind::kInternal, "bug"));
  EXPECT_EQ(error_body(bug, ApiDialect::kAnthropic).at("error").at("type"), "api_error");
  EXPECT_FALSE(error_body(bug, ApiDialect::kAnthropic).contains("request_id"));
}

TEST_F(MessagesTest, BlocksBecomeThePromptThatAChatBecomes) {
  const std::vector<Token> chat = chat_prompt(R"({"messages":[
      {"role":"system","content":"be brief"},{"role":"user","content":"hello"},
      {"role":"assistant","content":"aye"},{"role":"user","content":"more"}]})");
  EXPECT_EQ(prompt(R"("system":"be brief","messages":[{"role":"user","content":"hello"},
      {"role":"assistant","content":"aye"},{"role":"user","content":"more"}])"),
            chat);
  EXPECT_EQ(prompt(R"("system":[{"type":"text","text":"be "},
      {"type":"text","text":"brief","cache_control":{"type":"ephemeral"}}],"messages":[
      {"role":"user","content":[{"type":"text","text":"he"},{"type":"text","text":"llo"}]},
      {"role":"assistant","content":[{"type":"thinking","thinking":"hm","signature":"x"},
                                     {"type":"text","text":"aye"}]},
      {"role":"user","content":[{"type":"text","text":"more"}]}])"),
            chat);
}

TEST_F(MessagesTest, CallsAndTheirResultsAreTurnsOfTheConversation) {
  const std::string tools =
      R"("tools":[{"type":"function","function":{"name":"f","description":"d",
          "parameters":{"type":"object"}}},
          {"type":"function","function":{"name":"g","parameters":{}}}])";
  for (const auto& [choice, in_chat] :
       {std::pair{R"({"type":"auto"})", R"("auto")"},
        {R"({"type":"any"})", R"("required")"},
        {R"({"type":"none"})", R"("none")"},
        {R"({"type":"tool","name":"g"})", R"({"type":"function","function":{"name":"g"}})"}}) {
    EXPECT_EQ(prompt(fmt::format(R"({},"tool_choice":{},"messages":[{{"role":"user","content":"a"}},
        {{"role":"assistant","content":[{{"type":"text","text":"Wait."}},
          {{"type":"tool_use","id":"1","name":"f","input":{{"x":1}}}},
          {{"type":"tool_use","id":"2","name":"g","input":{{}}}}]}},
        {{"role":"user","content":[
          {{"type":"tool_result","tool_use_id":"1","content":"b"}},
          {{"type":"tool_result","tool_use_id":"2","is_error":true,
            "content":[{{"type":"text","text":"c"}}]}},
          {{"type":"tool_result","tool_use_id":"3"}},
          {{"type":"text","text":"and now"}}]}}])",
                                 kTools, choice)),
              chat_prompt(fmt::format(R"({{{},"tool_choice":{},"messages":[
        {{"role":"user","content":"a"}},
        {{"role":"assistant","content":"Wait.","tool_calls":[
          {{"function":{{"name":"f","arguments":"{{\"x\":1}}"}}}},{{"function":{{"name":"g"}}}}]}},
        {{"role":"tool","content":"b"}},{{"role":"tool","content":"Error: c"}},
        {{"role":"tool","content":""}},{{"role":"user","content":"and now"}}]}})",
                                      tools, in_chat)))
        << choice;
  }
  const ApiRequest one =
      message(std::string(kAsk) + "," + kTools +
              R"(,"tool_choice":{"type":"auto","disable_parallel_tool_use":true}})");
  EXPECT_EQ(one.tools, (std::vector<std::string>{"f", "g"}));
  EXPECT_EQ(one.most_calls, 1);
}

TEST_F(MessagesTest, WhatTheAssistantHasSaidLastIsTheBeginningOfTheAnswer) {
  std::vector<Token> begun = chat_prompt(R"({"messages":[{"role":"user","content":"hello"}]})");
  model_->tokenizer().encode("the sea", begun);
  EXPECT_EQ(prompt(R"("messages":[{"role":"user","content":"hello"},
      {"role":"assistant","content":[{"type":"text","text":"the "},{"type":"text","text":"sea"}]}])"),
            begun);
}

TEST_F(MessagesTest, ParametersBecomeOptions) {
  const ApiRequest read = message(R"({"model":"m","max_tokens":6,"temperature":0.5,"top_p":0.25,
      "top_k":7,"stop_sequences":["x","yz"],"stream":true,"metadata":{"user_id":"me"},
      "thinking":{"type":"disabled"},"service_tier":"auto",
      "messages":[{"role":"user","content":"a"}]})");
  const GenerateOptions& o = read.requests[0].options;
  EXPECT_EQ(read.model, "m");
  EXPECT_EQ(o.max_tokens, 6);
  EXPECT_EQ(o.sampling.temperature, 0.5f);
  EXPECT_EQ(o.sampling.top_p, 0.25f);
  EXPECT_EQ(o.sampling.top_k, 7);
  EXPECT_EQ(o.stop, (std::vector<std::string>{"x", "yz"}));
  EXPECT_TRUE(read.stream);
}

TEST_F(MessagesTest, WhatIsNotDoneIsRefusedByName) {
  const auto refused = [](const std::string& rest) {
    const ApiError error = refusal_of(ApiKind::kMessage, std::string(kAsk) + "," + rest + "}");
    EXPECT_EQ(error.status, 400);
    return error.param.value_or("none");
  };
  EXPECT_EQ(refused(R"("thinking":{"type":"enabled","budget_tokens":1024})"), "thinking");
  EXPECT_EQ(refused(R"("mcp_servers":[{"name":"a"}])"), "mcp_servers");
  EXPECT_EQ(refused(R"("container":"a")"), "container");
  EXPECT_EQ(refused(R"("context_management":{"edits":[1]})"), "context_management");
  EXPECT_EQ(refused(R"("output_config":{"format":{"type":"json_schema"}})"),
            "output_config.format");
  EXPECT_EQ(refused(R"("tools":[{"type":"web_search_20250305","name":"web_search"}])"),
            "tools[0].type");
  EXPECT_EQ(refused(R"("tools":[{"name":"f"}])"), "tools[0].input_schema");
  EXPECT_EQ(refused(R"("tool_choice":{"type":"any"})"), "tool_choice");
  EXPECT_EQ(refused(R"("tool_choice":{"type":"all"})"), "tool_choice.type");
  EXPECT_EQ(refused(R"("tool_choice":{"type":"tool"})"), "tool_choice.name");
  EXPECT_EQ(refused(R"("system":[{"type":"image"}])"), "system[0].type");
  EXPECT_EQ(refused(R"("stop_sequences":[1])"), "stop_sequences");
  const auto block = [](std::string_view role, std::string_view one) {
    return refusal_of(
               ApiKind::kMessage,
               fmt::format(R"({{"max_tokens":1,"messages":[{{"role":"{}","content":[{}]}}]}})",
                           role, one))
        .param.value_or("none");
  };
  const std::string first = "messages[0].content[0]";
  EXPECT_EQ(block("user", R"({"type":"document"})"), first + ".type");
  EXPECT_EQ(block("user", R"({"type":"tool_use","name":"f","input":{}})"), first + ".type");
  EXPECT_EQ(block("assistant", R"({"type":"image"})"), first + ".type");
  EXPECT_EQ(block("assistant", R"({"type":"tool_use","name":"f","input":"a"})"), first + ".input");
  EXPECT_EQ(block("user", R"({"type":"tool_result","content":"a"})"), first + ".tool_use_id");
  EXPECT_EQ(block("user", R"({"type":"image","source":{"type":"file","file_id":"1"}})"),
            first + ".source.type");
  EXPECT_EQ(block("cat", R"({"type":"text","text":"a"})"), "messages[0].role");
  EXPECT_EQ(refusal_of(ApiKind::kMessage, R"({"messages":[{"role":"user","content":"a"}]})").param,
            "max_tokens");
  EXPECT_EQ(refusal_of(ApiKind::kMessage, R"({"max_tokens":1})").param, "messages");
  EXPECT_NE(refusal_of(ApiKind::kMessage, R"({"max_tokens":1,"messages":[{"role":"user","content":[
      {"type":"image","source":{"type":"base64","media_type":"image/png","data":"AAAA"}}]}]})")
                .message.find("text only"),
            std::string::npos);
}

TEST_F(MessagesTest, TokensAreCountedAsTheyAreRead) {
  const std::string rest = std::string(R"("system":"be brief",)") + kTools +
                           R"(,"messages":[{"role":"user","content":"the sea"}])";
  const auto count = [](const std::string& body) {
    return count_tokens_answer(testing::parse_object("{" + body + "}"), *model_,
                               ChatFormat::kChatMl);
  };
  EXPECT_EQ(count(rest), (json::object{{"input_tokens", prompt(rest).size()}}));
  testing::expect_error(ErrorKind::kUsage, "messages", [&] { count(""); });
}

}  // namespace
}  // namespace drover
