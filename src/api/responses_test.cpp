#include "api/responses.h"

#include <future>

#include "api/api_fixture.h"
#include "api/ask.h"
#include "tests/support/expect_error.h"

namespace drover {
namespace {

namespace json = boost::json;

class ResponsesTest : public testing::ApiTest {
 protected:
  static const ApiName& name() {
    static const ApiName name{.id = "resp_1", .model = "m", .created = 5};
    return name;
  }
  static json::object whole(const ApiRequest& request, const Answer& answer) {
    return whole_of(request, answer, name());
  }
  static testing::EventLog stream(const ApiRequest& request, const Answer& answer) {
    return stream_of(request, answer, name());
  }
  static std::vector<Token> prompt(std::string_view body) {
    return response(body).requests[0].prompt.tokens;
  }
  static std::vector<Token> chat_prompt(std::string_view body) {
    return chat(body).requests[0].prompt.tokens;
  }
};

constexpr char kTools[] =
    R"("tools":[{"type":"function","name":"f","description":"d","strict":true,)"
    R"("parameters":{"type":"object"}},{"type":"function","name":"g"}])";

TEST_F(ResponsesTest, AResponseIsOpenAIsToTheLetter) {
  const ApiRequest request = response(R"({"model":"m","input":"the sea","temperature":0.6,
      "top_p":1,"max_output_tokens":9,"instructions":"be brief","metadata":{"a":"b"},
      "store":true,"user":"me"})");
  EXPECT_EQ(whole(request, answer_of("a\xC3\xA9")), testing::parse_object(R"({
    "id":"resp_1","object":"response","created_at":5,"status":"completed","background":false,
    "error":null,"incomplete_details":null,"model":"m","output":[
      {"id":"msg_1_0","type":"message","status":"completed","role":"assistant","content":[
        {"type":"output_text","text":"aé","annotations":[],"logprobs":[]}]}],
    "previous_response_id":null,"store":false,"text":{"format":{"type":"text"}},
    "truncation":"disabled","usage":{
      "input_tokens":7,"input_tokens_details":{"cached_tokens":3,"cache_write_tokens":0},
      "output_tokens":5,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":12},
    "metadata":{"a":"b"},"temperature":0.6,"top_p":1.0,"parallel_tool_calls":true,"tools":[],
    "tool_choice":"auto","top_logprobs":0,"instructions":"be brief","max_output_tokens":9,
    "user":"me"})"));
}

TEST_F(ResponsesTest, AnAnswerThatIsCutIsIncomplete) {
  for (const FinishReason reason : {FinishReason::kLength, FinishReason::kContext}) {
    const json::object body = whole(response(R"({"input":"a"})"), answer_of("b", reason));
    EXPECT_EQ(body.at("status"), "incomplete");
    EXPECT_EQ(body.at("incomplete_details"), json::parse(R"({"reason":"max_output_tokens"})"));
    EXPECT_EQ(body.at("output").at(0).at("status"), "incomplete");
  }
}

TEST_F(ResponsesTest, AnAnswerOfNothingIsAMessageOfNothing) {
  const json::object body = whole(response(R"({"input":"a"})"), answer_of(""));
  ASSERT_EQ(body.at("output").as_array().size(), 1u);
  EXPECT_EQ(body.at("output").at(0).at("content").at(0).at("text"), "");
}

TEST_F(ResponsesTest, AStreamIsOpenAIsToTheLetter) {
  const ApiRequest request = response(R"({"input":"a","stream":true,"metadata":{}})");
  const testing::EventLog log = stream(request, answer_of("ab"));
  const json::object last = whole(request, answer_of("ab"));
  json::object first = last;
  first["status"] = "in_progress";
  first["output"] = json::array();
  first["usage"] = nullptr;
  const auto expected = json::parse(R"([
    {"type":"response.created"},
    {"type":"response.in_progress"},
    {"type":"response.output_item.added","output_index":0,"item":{"id":"msg_1_0","type":"message",
      "status":"in_progress","role":"assistant","content":[]}},
    {"type":"response.content_part.added","item_id":"msg_1_0","output_index":0,"content_index":0,
      "part":{"type":"output_text","text":"","annotations":[],"logprobs":[]}},
    {"type":"response.output_text.delta","item_id":"msg_1_0","output_index":0,"content_index":0,
      "delta":"a","logprobs":[]},
    {"type":"response.output_text.delta","item_id":"msg_1_0","output_index":0,"content_index":0,
      "delta":"b","logprobs":[]},
    {"type":"response.output_text.done","item_id":"msg_1_0","output_index":0,"content_index":0,
      "text":"ab","logprobs":[]},
    {"type":"response.content_part.done","item_id":"msg_1_0","output_index":0,"content_index":0,
      "part":{"type":"output_text","text":"ab","annotations":[],"logprobs":[]}},
    {"type":"response.output_item.done","output_index":0,"item":{"id":"msg_1_0","type":"message",
      "status":"completed","role":"assistant","content":[
        {"type":"output_text","text":"ab","annotations":[],"logprobs":[]}]}},
    {"type":"response.completed"}])")
                            .as_array();
  ASSERT_EQ(log.events.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    json::object event = expected[i].as_object();
    event["sequence_number"] = i;
    if (i < 2) event["response"] = first;
    if (i + 1 == expected.size()) event["response"] = last;
    EXPECT_EQ(log.events[i], event) << i;
  }
}

TEST_F(ResponsesTest, CallsAreItemsInTheOrderInWhichTheyWereSaid) {
  const ApiRequest request = response(std::string(R"({"input":"a",)") + kTools + "}");
  const Answer answer = answer_of(R"(Wait. [f(a=1, b="x"), g()])");
  const json::object body = whole(request, answer);
  EXPECT_EQ(body.at("output"), json::parse(R"([
    {"id":"msg_1_0","type":"message","status":"completed","role":"assistant","content":[
      {"type":"output_text","text":"Wait. ","annotations":[],"logprobs":[]}]},
    {"id":"fc_1_1","type":"function_call","status":"completed","call_id":"call_1_0_0","name":"f",
     "arguments":"{\"a\": 1, \"b\": \"x\"}"},
    {"id":"fc_1_2","type":"function_call","status":"completed","call_id":"call_1_0_1","name":"g",
     "arguments":"{}"}])"));
  EXPECT_EQ(body.at("tools"), json::parse(std::string("{") + kTools + "}").at("tools"));

  // In the stream each call is opened, its pieces add up, and it is closed before the next.
  const testing::EventLog log = stream(request, answer);
  EXPECT_EQ(log.events.back().at("response"), json::value(body));
  std::string arguments;
  json::object open;
  int64_t sequence = 0;
  std::vector<json::value> items;
  for (const json::object& event : log.events) {
    EXPECT_EQ(event.at("sequence_number"), sequence++);
    const std::string_view type = event.at("type").as_string();
    if (type == "response.output_item.added") {
      EXPECT_TRUE(open.empty());
      EXPECT_EQ(event.at("output_index"), items.size());
      open = event.at("item").as_object();
      EXPECT_EQ(open.at("status"), "in_progress");
      arguments.clear();
    } else if (type == "response.function_call_arguments.delta") {
      EXPECT_EQ(event.at("item_id"), open.at("id"));
      arguments += event.at("delta").as_string();
    } else if (type == "response.function_call_arguments.done") {
      EXPECT_EQ(event.at("arguments").as_string(), arguments);
      EXPECT_EQ(event.at("name"), open.at("name"));
    } else if (type == "response.output_item.done") {
      EXPECT_EQ(event.at("item").at("id"), open.at("id"));
      if (open.at("type") == "function_call") {
        EXPECT_EQ(event.at("item").at("arguments").as_string(), arguments);
      }
      items.push_back(event.at("item"));
      open.clear();
    }
  }
  EXPECT_EQ(json::array(items.begin(), items.end()), body.at("output").as_array());
}

TEST_F(ResponsesTest, HalfACallIsIncompleteInAStreamAndTextInAWholeAnswer) {
  const ApiRequest request = response(std::string(R"({"input":"a",)") + kTools + "}");
  const Answer answer = answer_of(R"([f(a=1, b="x)", FinishReason::kLength);
  const json::object body = whole(request, answer);
  EXPECT_EQ(body.at("output").at(0).at("content").at(0).at("text").as_string(), answer.text);
  const testing::EventLog log = stream(request, answer);
  const json::value& last = log.events.back().at("response");
  EXPECT_EQ(log.events.back().at("type"), "response.incomplete");
  EXPECT_EQ(last.at("output").at(0).at("type"), "function_call");
  EXPECT_EQ(last.at("output").at(0).at("status"), "incomplete");
  for (const std::string& type : log.types()) {
    EXPECT_NE(type, "response.function_call_arguments.done") << "nobody runs half a call";
  }
}

TEST_F(ResponsesTest, AStreamThatFailsSaysWhyAndThatItHasFailed) {
  const ApiRequest request = response(R"({"input":"a","stream":true})");
  testing::EventLog log;
  const auto stream = make_stream(request, model_->tokenizer(), name(), log.emit());
  stream->begin();
  stream->fail(api_refusal(Refusal::kNotReady, "the server is about to end"));
  ASSERT_EQ(log.events.size(), 4u);
  EXPECT_EQ(log.events[2], testing::parse_object(R"({"type":"error","sequence_number":2,
      "message":"the server is about to end","param":null,"code":"not_ready"})"));
  EXPECT_EQ(log.events[3].at("type"), "response.failed");
  EXPECT_EQ(log.events[3].at("response").at("status"), "failed");
  EXPECT_EQ(log.events[3].at("response").at("error"),
            json::parse(R"({"code":"server_error","message":"the server is about to end"})"));
}

TEST_F(ResponsesTest, ItemsBecomeThePromptThatAChatBecomes) {
  EXPECT_EQ(prompt(R"({"input":"hello","instructions":"be brief"})"),
            chat_prompt(R"({"messages":[{"role":"system","content":"be brief"},
                {"role":"user","content":"hello"}]})"));
  EXPECT_EQ(prompt(R"({"input":[
      {"role":"developer","content":"be brief"},
      {"type":"message","role":"user","content":[{"type":"input_text","text":"he"},
                                                 {"type":"input_text","text":"llo"}]},
      {"type":"message","role":"assistant","id":"msg_1","status":"completed","content":[
        {"type":"output_text","text":"aye","annotations":[]}]},
      {"type":"reasoning","id":"rs_1","summary":[]},
      {"role":"user","content":"more"}]})"),
            chat_prompt(R"({"messages":[{"role":"system","content":"be brief"},
                {"role":"user","content":"hello"},{"role":"assistant","content":"aye"},
                {"role":"user","content":"more"}]})"));
}

TEST_F(ResponsesTest, CallsAndTheirResultsAreTurnsOfTheConversation) {
  const std::string called = R"(,{"type":"function_call","call_id":"1","name":"f",
      "arguments":"{\"x\": 1}"},{"type":"function_call","call_id":"2","name":"g","arguments":""},
      {"type":"function_call_output","call_id":"1","output":"b"},
      {"type":"function_call_output","call_id":"2","output":[{"type":"input_text","text":"c"}]}],)";
  const std::string in_chat = R"("tool_calls":[
      {"id":"1","type":"function","function":{"name":"f","arguments":"{\"x\": 1}"}},
      {"id":"2","type":"function","function":{"name":"g","arguments":""}}]},
      {"role":"tool","tool_call_id":"1","content":"b"},
      {"role":"tool","tool_call_id":"2","content":"c"}],)";
  const std::string tools =
      R"("tools":[{"type":"function","function":{"name":"f","description":"d",
          "parameters":{"type":"object"}}},{"type":"function","function":{"name":"g"}}])";
  for (const char* choice : {R"("auto")", R"("none")", R"("required")"}) {
    const std::string end = fmt::format(R"(,"tool_choice":{}}})", choice);
    EXPECT_EQ(prompt(R"({"input":[{"role":"user","content":"a"})" + called + kTools + end),
              chat_prompt(R"({"messages":[{"role":"user","content":"a"},
                  {"role":"assistant","content":null,)" +
                          in_chat + tools + end));
    // Calls that follow what was said belong to the same turn.
    EXPECT_EQ(prompt(R"({"input":[{"role":"user","content":"a"},
                  {"role":"assistant","content":"Wait."})" +
                     called + kTools + end),
              chat_prompt(R"({"messages":[{"role":"user","content":"a"},
                  {"role":"assistant","content":"Wait.",)" +
                          in_chat + tools + end));
  }
  const ApiRequest named = response(std::string(R"({"input":"a","parallel_tool_calls":false,)") +
                                    kTools + R"(,"tool_choice":{"type":"function","name":"g"}})");
  EXPECT_EQ(named.tools, std::vector<std::string>{"g"});
  EXPECT_EQ(named.most_calls, 1);
  EXPECT_FALSE(named.requests[0].options.shown.empty() &&
               !tool_marker_tokens(model_->tokenizer()).empty());
}

TEST_F(ResponsesTest, ParametersBecomeOptions) {
  const ApiRequest read = response(R"({"model":"m","input":"a","max_output_tokens":6,
      "temperature":0.5,"top_p":0.25,"top_k":7,"seed":9,"stream":true,"top_logprobs":2,
      "include":["reasoning.encrypted_content","message.output_text.logprobs"],
      "text":{"format":{"type":"text"},"verbosity":"low"},"truncation":"disabled",
      "previous_response_id":null,"background":false,"reasoning":{"effort":"low"}})");
  const GenerateOptions& o = read.requests[0].options;
  EXPECT_EQ(o.max_tokens, 6);
  EXPECT_EQ(o.sampling.temperature, 0.5f);
  EXPECT_EQ(o.sampling.top_p, 0.25f);
  EXPECT_EQ(o.sampling.top_k, 7);
  EXPECT_EQ(o.sampling.seed, 9u);
  EXPECT_EQ(o.logprobs, 2);
  EXPECT_TRUE(read.seeded && read.stream);
  EXPECT_EQ(response(R"({"input":"a"})").requests[0].options.logprobs, std::nullopt);
}

TEST_F(ResponsesTest, WhatIsNotDoneIsRefusedByName) {
  const auto refused = [](const std::string& rest) {
    const ApiError error = refusal_of(ApiKind::kResponse, R"({"input":"a",)" + rest + "}");
    EXPECT_EQ(error.status, 400);
    return error.param.value_or("none");
  };
  EXPECT_EQ(refused(R"("previous_response_id":"resp_1")"), "previous_response_id");
  EXPECT_EQ(refused(R"("conversation":"conv_1")"), "conversation");
  EXPECT_EQ(refused(R"("background":true)"), "background");
  EXPECT_EQ(refused(R"("prompt":{"id":"1"})"), "prompt");
  EXPECT_EQ(refused(R"("truncation":"auto")"), "truncation");
  EXPECT_EQ(refused(R"("text":{"format":{"type":"json_schema"}})"), "text.format");
  EXPECT_EQ(refused(R"("tools":[{"type":"web_search"}])"), "tools[0].type");
  EXPECT_EQ(refused(R"("tools":[{"type":"function"}])"), "tools[0].name");
  EXPECT_EQ(refused(R"("tool_choice":"required")"), "tool_choice");
  EXPECT_EQ(refused(R"("top_logprobs":2)"), "top_logprobs");
  EXPECT_EQ(refused(R"("metadata":{"a":1})"), "metadata.a");
  EXPECT_EQ(refused(R"("max_output_tokens":-1)"), "max_output_tokens");
  EXPECT_EQ(refused(R"("temperature":"hot")"), "temperature");
  const auto item = [](const std::string& one) {
    return refusal_of(ApiKind::kResponse, R"({"input":[)" + one + "]}").param.value_or("none");
  };
  EXPECT_EQ(item("1"), "input[0]");
  EXPECT_EQ(item(R"({"type":"item_reference","id":"1"})"), "input[0].type");
  EXPECT_EQ(item(R"({"role":"tool","content":"a"})"), "input[0].role");
  EXPECT_EQ(item(R"({"role":"user"})"), "input[0].content");
  EXPECT_EQ(item(R"({"role":"user","content":[{"type":"input_file"}]})"),
            "input[0].content[0].type");
  EXPECT_EQ(item(R"({"type":"function_call","name":"f"})"), "input[0].arguments");
  EXPECT_EQ(item(R"({"type":"function_call_output","output":"a"})"), "input[0].call_id");
  EXPECT_EQ(refusal_of(ApiKind::kResponse, R"({"input":[]})").param, "input");
  EXPECT_EQ(refusal_of(ApiKind::kResponse, "{}").param, "input");
  EXPECT_NE(refusal_of(ApiKind::kResponse, R"({"input":[{"role":"user","content":[
      {"type":"input_image","image_url":"data:image/png;base64,AAAA"}]}]})")
                .message.find("text only"),
            std::string::npos);
}

// Pieces are as the tokens let them out: joined they are the whole, and so are their probabilities.
TEST_F(ResponsesTest, TheStreamOfARealAnswerAddsUpToTheWholeOne) {
  Context context(1);
  Engine engine(*model_, context, {.batch = 16});
  const ApiRequest request = response(R"({"input":"the ship","max_output_tokens":90,"stream":true,
      "temperature":1.5,"top_p":1,"seed":4,"include":["message.output_text.logprobs"],
      "top_logprobs":2})");
  testing::EventLog log;
  ApiEvents events;
  events.stream = make_stream(request, model_->tokenizer(), name(), log.emit());
  events.stream->begin();
  std::promise<std::vector<std::vector<Answer>>> promise;
  events.done = [&](std::vector<std::vector<Answer>> answers, std::exception_ptr error) {
    error ? promise.set_exception(error) : promise.set_value(std::move(answers));
  };
  ask(engine, request.requests, events);
  const auto answers = promise.get_future().get();
  std::string text;
  json::array logprobs;
  int deltas = 0;
  for (const json::object& event : log.events) {
    if (event.at("type") != "response.output_text.delta") continue;
    ++deltas;
    text += event.at("delta").as_string();
    const json::array& some = event.at("logprobs").as_array();
    logprobs.insert(logprobs.end(), some.begin(), some.end());
  }
  EXPECT_GT(deltas, 3);
  const json::value body =
      testing::as_read(api_answer(request, answers, model_->tokenizer(), name()));
  EXPECT_EQ(log.events.back().at("response"), body);
  const json::value& part = body.at("output").at(0).at("content").at(0);
  EXPECT_EQ(part.at("text").as_string(), text);
  EXPECT_EQ(part.at("logprobs").as_array(), logprobs);
  EXPECT_EQ(logprobs.size(), answers[0][0].tokens.size());
}

}  // namespace
}  // namespace drover
