#include "api/answer.h"

#include <cmath>
#include <future>
#include <map>
#include <utility>

#include "api/api_fixture.h"
#include "api/ask.h"
#include "api/chunks.h"
#include "api/embeddings.h"
#include "api/errors.h"
#include "api/models.h"
#include "api/tokens.h"
#include "tests/support/expect_error.h"

namespace drover {
namespace {

namespace json = boost::json;
using testing::expect_error;

class ApiAnswerTest : public testing::ApiTest {
 protected:
  static Token byte(char c) { return tokens_of(std::string_view(&c, 1))[0]; }

  // "aé" and a stop token, as the engine tells them, each with one that was more probable.
  static Answer said() {
    Answer answer;
    answer.text = "a\xC3\xA9";
    answer.tokens = {byte('a'), byte('\xC3'), byte('\xA9')};
    answer.stop_token = 2;
    answer.prompt_tokens = 7;
    answer.cached_tokens = 3;
    answer.logprobs = {{{byte('a'), -0.5}, {{byte('a'), -0.5}}},
                       {{byte('\xC3'), -1.5}, {{byte('b'), -0.25}}},
                       {{byte('\xA9'), -INFINITY}, {{byte('b'), -0.125}}},
                       {{2, -2.0}, {{2, -2.0}}}};
    return answer;
  }
  static const ApiName& name() {
    static const ApiName name{.id = "cmpl-1", .model = "m", .created = 5};
    return name;
  }
  static json::object answer_of(const ApiRequest& request, std::vector<Answer> answers) {
    const std::vector<std::vector<Answer>> all = {std::move(answers)};
    return api_answer(request, all, model_->tokenizer(), name());
  }
};

constexpr char kAsk[] = R"({"messages":[{"role":"user","content":"a"}])";

TEST_F(ApiAnswerTest, AChatCompletionIsOpenAIsToTheLetter) {
  const ApiRequest plain = chat(std::string(kAsk) + "}");
  Answer cut = said();
  cut.finish = FinishReason::kContext;
  EXPECT_EQ(answer_of(plain, {said(), cut}), testing::parse_object(R"({
    "id":"cmpl-1","object":"chat.completion","created":5,"model":"m","choices":[
      {"index":0,"message":{"role":"assistant","content":"aé","refusal":null},
       "logprobs":null,"finish_reason":"stop"},
      {"index":1,"message":{"role":"assistant","content":"aé","refusal":null},
       "logprobs":null,"finish_reason":"length"}],
    "usage":{"prompt_tokens":7,"completion_tokens":6,"total_tokens":13,
             "prompt_tokens_details":{"cached_tokens":3}}})"));
  const ApiRequest asked = chat(std::string(kAsk) + R"(,"logprobs":true,"top_logprobs":1})");
  EXPECT_EQ(answer_of(asked, {said()}).at("choices").at(0).at("logprobs"), json::parse(R"({
    "content":[
      {"token":"a","logprob":-0.5,"bytes":[97],
       "top_logprobs":[{"token":"a","logprob":-0.5,"bytes":[97]}]},
      {"token":"\ufffd","logprob":-1.5,"bytes":[195],
       "top_logprobs":[{"token":"b","logprob":-0.25,"bytes":[98]}]},
      {"token":"\ufffd","logprob":-9999.0,"bytes":[169],
       "top_logprobs":[{"token":"b","logprob":-0.125,"bytes":[98]}]}],
    "refusal":null})"))
      << "the token that ended it is no content";
}

TEST_F(ApiAnswerTest, ACompletionHasTheFourListsAndEchoesItsPrompt) {
  const ApiRequest plain = completion(R"({"prompt":"the","logprobs":1})");
  EXPECT_EQ(answer_of(plain, {said()}), testing::parse_object(R"({
    "id":"cmpl-1","object":"text_completion","created":5,"model":"m","choices":[
      {"index":0,"text":"aé","logprobs":{
         "text_offset":[0,1,1,2],"tokens":["a","bytes:\\xc3","bytes:\\xa9","<|im_end|>"],
         "token_logprobs":[-0.5,-1.5,-9999.0,-2.0],
         "top_logprobs":[{"a":-0.5},{"b":-0.25,"bytes:\\xc3":-1.5},
                         {"b":-0.125,"bytes:\\xa9":-9999.0},{"<|im_end|>":-2.0}]},
       "finish_reason":"stop"}],
    "usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10,
             "prompt_tokens_details":{"cached_tokens":3}}})"));

  // A prompt that ends within a character, and a control token in it that shows nothing.
  const ApiRequest echo =
      completion(fmt::format(R"({{"prompt":[{},3,{}],"logprobs":0,"echo":true,"max_tokens":0}})",
                             byte('x'), byte('\xC3')));
  Answer none;
  none.finish = FinishReason::kLength;
  none.prompt_logprobs = std::make_shared<const std::vector<ChoiceLogprobs>>(
      std::vector<ChoiceLogprobs>{{{3, -1.0}, {}}, {{byte('\xC3'), -2.0}, {}}});
  EXPECT_EQ(answer_of(echo, {none}).at("choices").at(0), json::parse(R"(
      {"index":0,"text":"x\ufffd","logprobs":{
         "text_offset":[0,1,1],"tokens":["x","<|spare|>","bytes:\\xc3"],
         "token_logprobs":[null,-1.0,-2.0],
         "top_logprobs":[null,{"<|spare|>":-1.0},{"bytes:\\xc3":-2.0}]},
       "finish_reason":"length"})"));
  Answer more = said();
  more.prompt_logprobs = none.prompt_logprobs;
  EXPECT_EQ(answer_of(echo, {more}).at("choices").at(0).at("logprobs").at("text_offset"),
            json::parse("[0,1,1,2,3,3,4]"));
}

TEST_F(ApiAnswerTest, ChoicesOfSeveralPromptsAreNumberedOnAndUsageAddsUp) {
  const ApiRequest request = completion(R"({"prompt":["a","b"],"n":2,"echo":true})");
  const std::vector<std::vector<Answer>> answers = {{said(), said()}, {said(), said()}};
  const json::object out = api_answer(request, answers, model_->tokenizer(), name());
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(out.at("choices").at(i).at("index"), i);
    EXPECT_EQ(out.at("choices").at(i).at("text"), i < 2 ? "aa\xC3\xA9" : "ba\xC3\xA9");
  }
  EXPECT_EQ(out.at("usage").at("prompt_tokens"), 14) << "each prompt is read once";
  EXPECT_EQ(out.at("usage").at("completion_tokens"), 12);
  EXPECT_EQ(out.at("usage").at("prompt_tokens_details").at("cached_tokens"), 6);
}

TEST_F(ApiAnswerTest, EmbeddingsComeAsNumbersOrBase64) {
  Answer a, b;
  a.embedding = {0.5f, -0.25f};
  b.embedding = {1.0f, 0.0f};
  a.prompt_tokens = 2;
  b.prompt_tokens = 3;
  const std::vector<std::vector<Answer>> answers = {{a}, {b}};
  const auto of = [&](std::string_view body) {
    return api_answer(embedding(body), answers, model_->tokenizer(), name());
  };
  EXPECT_EQ(of(R"({"input":["a","b"]})"), testing::parse_object(R"({"object":"list","data":[
      {"object":"embedding","index":0,"embedding":[0.5,-0.25]},
      {"object":"embedding","index":1,"embedding":[1.0,0.0]}],
      "model":"m","usage":{"prompt_tokens":5,"total_tokens":5}})"));
  // 0x3f000000 and 0xbe800000, the lowest byte first.
  EXPECT_EQ(
      of(R"({"input":["a","b"],"encoding_format":"base64"})").at("data").at(0).at("embedding"),
      "AAAAPwAAgL4=");
  for (const size_t n : {0u, 1u, 2u, 3u, 100u}) {
    EXPECT_EQ(base64_of(std::vector<float>(n, 1.0f)).size(), (4 * n + 2) / 3 * 4);
  }
}

// What the writer emits for these events, all but the end mark.
struct Written {
  explicit Written(const ApiRequest& request, const Tokenizer& tokenizer,
                   ApiName name = {.id = "chatcmpl-1", .model = "m", .created = 5})
      : writer(request, tokenizer, std::move(name),
               [this](std::string_view event, std::string_view data) {
                 EXPECT_EQ(event, "");
                 EXPECT_FALSE(ended) << "nothing comes after the end";
                 data == "[DONE]" ? void(ended = true)
                                  : chunks.push_back(json::parse({data.data(), data.size()}));
               }) {}
  json::array take() { return std::exchange(chunks, {}); }

  json::array chunks;
  bool ended = false;
  ChunkStream writer;
};

TEST_F(ApiAnswerTest, AStreamedChatBeginsWithTheRoleAndEndsWithTheReason) {
  const ApiRequest request =
      chat(std::string(kAsk) + R"(,"n":2,"stream":true,"stream_options":{"include_usage":true}})");
  Written out(request, model_->tokenizer());
  const auto chunk = [](int index, std::string_view delta, std::string_view finish) {
    return json::parse(fmt::format(
        R"({{"id":"chatcmpl-1","object":"chat.completion.chunk","created":5,"model":"m",
             "choices":[{{"index":{},"delta":{},"logprobs":null,"finish_reason":{}}}],
             "usage":null}})",
        index, delta, finish));
  };
  out.writer.begin();
  EXPECT_EQ(out.take(), (json::array{chunk(0, R"({"role":"assistant","content":""})", "null"),
                                     chunk(1, R"({"role":"assistant","content":""})", "null")}));
  out.writer.token(0, {.sample = 1, .token = 9, .bytes = "d"});
  EXPECT_TRUE(out.take().empty());
  out.writer.text(0, 1, "d");
  out.writer.text(0, 0, "\xC3\xA9");
  EXPECT_EQ(out.take(), (json::array{chunk(1, R"({"content":"d"})", "null"),
                                     chunk(0, R"({"content":"é"})", "null")}));
  Answer cut = said();
  cut.finish = FinishReason::kLength;
  const std::vector<Answer> answers = {said(), cut};
  out.writer.done(0, answers);
  EXPECT_EQ(out.take(),
            (json::array{chunk(0, "{}", R"("stop")"), chunk(1, "{}", R"("length")"),
                         json::parse(R"({"id":"chatcmpl-1","object":"chat.completion.chunk",
                             "created":5,"model":"m","choices":[],"usage":{"prompt_tokens":7,
                             "completion_tokens":6,"total_tokens":13,
                             "prompt_tokens_details":{"cached_tokens":3}}})")}));
  EXPECT_TRUE(out.ended);
}

TEST_F(ApiAnswerTest, AStreamThatFailsEndsWithTheErrorAlone) {
  const ApiRequest request = chat(std::string(kAsk) + R"(,"stream":true})");
  Written out(request, model_->tokenizer());
  out.writer.fail(api_refusal(Refusal::kNotReady, "the server is about to end"));
  EXPECT_EQ(out.take(), json::array{json::parse(R"({"error":{
      "message":"the server is about to end","type":"server_error","param":null,
      "code":"not_ready"}})")});
  EXPECT_FALSE(out.ended);
}

TEST_F(ApiAnswerTest, UsageIsSentOnlyToThoseWhoAsk) {
  const ApiRequest request = chat(std::string(kAsk) + R"(,"stream":true})");
  Written out(request, model_->tokenizer());
  out.writer.begin();
  const Answer answer = said();
  out.writer.done(0, {&answer, 1});
  ASSERT_EQ(out.chunks.size(), 2u);
  for (const json::value& chunk : out.chunks) EXPECT_FALSE(chunk.as_object().contains("usage"));
}

// Pieces of a stream put together.
struct Joined {
  std::string text, finish;
  json::array chat;                          // logprobs.content
  std::map<std::string, json::array> lists;  // of a completion's logprobs
  bool operator==(const Joined&) const = default;

  void add(const json::value& choice) {
    const json::object& c = choice.as_object();
    if (const auto* part = c.if_contains("text")) text += part->as_string();
    for (const char* key : {"delta", "message"}) {
      const auto* delta = c.if_contains(key);
      const auto* content = delta != nullptr ? delta->as_object().if_contains("content") : nullptr;
      if (content != nullptr) text += content->as_string();
    }
    if (c.at("finish_reason").is_string()) {
      EXPECT_EQ(finish, "") << "nothing comes after the end";
      finish = c.at("finish_reason").as_string();
    }
    if (c.at("logprobs").is_null()) return;
    for (const auto& [key, list] : c.at("logprobs").as_object()) {
      json::array& to = key == "content" ? chat : lists[std::string(key)];
      if (list.is_null()) continue;
      to.insert(to.end(), list.as_array().begin(), list.as_array().end());
    }
  }
};

// Whatever is asked for, what streams is what comes whole.
constexpr char kTools[] = R"(,"tools":[{"type":"function","function":{"name":"f"}},)"
                          R"({"type":"function","function":{"name":"g"}}])";

TEST_F(ApiAnswerTest, CallsOfToolsAreNoText) {
  const ApiRequest request = chat(std::string(kAsk) + kTools + "}");
  Answer called;
  called.text = R"(Wait. [f(a=1, b="x"), g()])";
  Answer alone = called, cut = called, plain = called;
  alone.text = R"({"name": "f", "parameters": {"a": 1}})";
  cut.finish = FinishReason::kLength;
  plain.text = "[h(a=1)] is no tool of mine";
  const json::object body = answer_of(request, {called, alone, cut, plain});
  EXPECT_EQ(body.at("choices").at(0), json::parse(R"({"index":0,"message":{"role":"assistant",
    "content":"Wait. ","refusal":null,"tool_calls":[
      {"id":"call_1_0_0","type":"function","function":{"name":"f",
       "arguments":"{\"a\": 1, \"b\": \"x\"}"}},
      {"id":"call_1_0_1","type":"function","function":{"name":"g","arguments":"{}"}}]},
    "logprobs":null,"finish_reason":"tool_calls"})"));
  const json::value& second = body.at("choices").at(1);
  EXPECT_TRUE(second.at("message").at("content").is_null());
  EXPECT_EQ(second.at("message").at("tool_calls").at(0).at("id"), "call_1_1_0");
  EXPECT_EQ(body.at("choices").at(2).at("finish_reason"), "length");
  EXPECT_EQ(body.at("choices").at(3).at("message").at("content").as_string(), plain.text);
  EXPECT_EQ(body.at("choices").at(3).at("finish_reason"), "stop");
}

TEST_F(ApiAnswerTest, StreamedCallsAddUpToTheWholeOnes) {
  const ApiRequest request = chat(std::string(kAsk) + kTools + "}");
  Answer called;
  called.text = R"(Wait. [f(a=1, b="x"), g()])";
  const json::object whole =
      answer_of(request, {called}).at("choices").at(0).at("message").as_object();
  Written out(request, model_->tokenizer(), name());
  out.writer.begin();
  for (const char& c : called.text) out.writer.text(0, 0, {&c, 1});
  out.writer.done(0, std::vector<Answer>{called});
  std::string content;
  json::array calls;
  for (const json::value& chunk : out.chunks) {
    const json::object& delta = chunk.at("choices").at(0).at("delta").as_object();
    if (delta.contains("content")) content += delta.at("content").as_string();
    if (!delta.contains("tool_calls")) continue;
    json::object call = delta.at("tool_calls").at(0).as_object();
    const int64_t index = call.at("index").as_int64();
    call.erase("index");
    if (index == std::ssize(calls)) {
      EXPECT_EQ(call.at("function").at("arguments"), "");
      calls.push_back(call);
      continue;
    }
    // Later deltas have nothing but their piece.
    ASSERT_EQ(index, std::ssize(calls) - 1);
    EXPECT_EQ(call.size(), 1u);
    EXPECT_EQ(call.at("function").as_object().size(), 1u);
    calls.back().at("function").at("arguments").as_string() +=
        call.at("function").at("arguments").as_string();
  }
  EXPECT_EQ(content, whole.at("content").as_string());
  EXPECT_EQ(calls, whole.at("tool_calls").as_array());
  EXPECT_EQ(out.chunks.back().at("choices").at(0).at("finish_reason"), "tool_calls");
}

TEST_F(ApiAnswerTest, TheStreamOfARealAnswerAddsUpToTheWholeOne) {
  Context context(1);
  Engine engine(*model_, context, {.batch = 16});
  const std::string hot = R"("temperature":1.5,"top_p":1,"seed":4,"stream":true,)";
  const std::vector<std::pair<ApiKind, std::string>> bodies = {
      {ApiKind::kChat, R"("messages":[{"role":"user","content":"the ship"}],"max_tokens":90,
          "logprobs":true,"top_logprobs":2,"n":2})"},
      {ApiKind::kChat, R"("messages":[{"role":"user","content":"the ship"}],"max_tokens":90,
          "logprobs":true,"stop":["e","q4","zz"],"ignore_eos":true})"},
      {ApiKind::kCompletion, R"("prompt":["the ship","at noon"],"max_tokens":60,"n":2})"},
      {ApiKind::kCompletion, R"("prompt":["the ship","at noon"],"max_tokens":60,"echo":true,
          "logprobs":3,"n":2})"},
      {ApiKind::kCompletion, R"("prompt":"the ship","max_tokens":60,"echo":true})"},
      {ApiKind::kCompletion, R"("prompt":"the ship","max_tokens":0,"echo":true,"logprobs":1})"},
      {ApiKind::kCompletion, R"("prompt":"the ship","max_tokens":200,"logprobs":1,
          "skip_special_tokens":false,"ignore_eos":true})"},
  };
  for (const auto& [kind, body] : bodies) {
    SCOPED_TRACE(body);
    const ApiRequest request = read(kind, "{" + hot + body);
    std::map<int64_t, Joined> joined, whole;
    const auto writer = make_stream(
        request, model_->tokenizer(), name(), [&](std::string_view, std::string_view data) {
          if (data == "[DONE]") return;
          const json::value chunk = json::parse({data.data(), data.size()});
          for (const json::value& choice : chunk.at("choices").as_array()) {
            joined[choice.at("index").to_number<int64_t>()].add(choice);
          }
        });
    writer->begin();
    std::promise<std::vector<std::vector<Answer>>> promise;
    ApiEvents events;
    uint64_t read_tokens = 0, wanted = 0;
    events.prompt = [&](uint64_t done, uint64_t of) {
      read_tokens = done;
      wanted = of;
    };
    events.stream = writer;
    events.done = [&](std::vector<std::vector<Answer>> answers, std::exception_ptr error) {
      error ? promise.set_exception(error) : promise.set_value(std::move(answers));
    };
    ask(engine, request.requests, events);
    const auto answers = promise.get_future().get();
    EXPECT_EQ(read_tokens, wanted);
    const json::value out =
        testing::as_read(api_answer(request, answers, model_->tokenizer(), name()));
    for (const json::value& choice : out.at("choices").as_array()) {
      whole[choice.at("index").to_number<int64_t>()].add(choice);
    }
    EXPECT_EQ(whole.size(), request.requests.size() * request.requests[0].samples);
    EXPECT_TRUE(joined == whole);
    for (const auto& [index, choice] : whole) {
      EXPECT_FALSE(choice.finish.empty());
      // As clients cut a completion's text by them.
      if (!choice.lists.contains("text_offset")) continue;
      int64_t last = 0;
      for (const json::value& offset : choice.lists.at("text_offset")) {
        EXPECT_GE(offset.as_int64(), last);
        last = offset.as_int64();
      }
      EXPECT_LE(last, static_cast<int64_t>(choice.text.size()));
    }
  }
}

TEST_F(ApiAnswerTest, OnePromptThatFailsEndsTheWholeRequestOnce) {
  Context context(1);
  Engine engine(*model_, context, {.context = 64});
  const ApiRequest request =
      completion(R"({"prompt":["a","b","c"],"max_tokens":50,"ignore_eos":true,
      "stream":true})");
  // Too long: none is asked.
  std::vector<Request> one_too_long = request.requests;
  one_too_long[2].prompt.tokens.assign(65, 9);
  int done = 0;
  ApiEvents never;
  never.done = [&](std::vector<std::vector<Answer>>, std::exception_ptr) { ++done; };
  expect_error(ErrorKind::kLimit, "context of 64 tokens, got 65",
               [&] { ask(engine, one_too_long, never); });
  EXPECT_EQ(engine.state().waiting + engine.state().running, 0);
  EXPECT_EQ(done, 0);

  std::promise<std::exception_ptr> promise;
  ApiEvents events;
  int chunks = 0;
  events.stream =
      make_stream(request, model_->tokenizer(), name(), [&](std::string_view, std::string_view) {
        if (++chunks == 5) throw_error(ErrorKind::kIo, "the client is gone");
      });
  events.done = [&](std::vector<std::vector<Answer>> answers, std::exception_ptr error) {
    EXPECT_TRUE(answers.empty());
    promise.set_value(error);
  };
  ask(engine, request.requests, events);
  const std::exception_ptr error = promise.get_future().get();
  expect_error(ErrorKind::kIo, "gone", [&] { std::rethrow_exception(error); });
  EXPECT_LE(chunks, 7) << "the other prompts end too";
}

TEST_F(ApiAnswerTest, ErrorsAreOpenAIsWithTheFieldAndACode) {
  const auto of = [](ErrorKind kind, std::string_view message, ApiKind api = ApiKind::kCompletion) {
    return api_error(Error(kind, std::string(message)), api);
  };
  const ApiError usage = of(ErrorKind::kUsage, "top_p: expected more than 0, got 0: no");
  EXPECT_EQ(usage.status, 400);
  EXPECT_EQ(error_body(usage, ApiDialect::kOpenAi), testing::parse_object(R"({"error":{
      "message":"top_p: expected more than 0, got 0: no","type":"invalid_request_error",
      "param":"top_p","code":"invalid_value"}})"));
  const auto param = [&](std::string_view message) {
    return of(ErrorKind::kUsage, message).param.value_or("none");
  };
  EXPECT_EQ(param("body: key temperature: expected a number, got a string"), "temperature");
  EXPECT_EQ(param("body: missing key prompt"), "prompt");
  EXPECT_EQ(param("messages[0]: missing key role"), "messages[0].role");
  EXPECT_EQ(param("messages[0]: role: expected user"), "messages[0].role");
  EXPECT_EQ(param("messages[1].content[2]: key type: expected a string, got 5"),
            "messages[1].content[2].type");
  EXPECT_EQ(param("body: logit_bias: key 5: expected a number"), "logit_bias.5");
  EXPECT_EQ(param("samples: expected at most 5, got 6"), "n");
  EXPECT_EQ(param("cache memory: 5 bytes are needed"), "none");
  EXPECT_EQ(param("expected more"), "none");
  EXPECT_EQ(param(""), "none");
  const std::string overflow = "prompt: expected at most the context of 4 tokens, got 5";
  for (const auto& [kind, field] : {std::pair{ApiKind::kChat, "messages"},
                                    {ApiKind::kCompletion, "prompt"},
                                    {ApiKind::kEmbedding, "input"},
                                    {ApiKind::kResponse, "input"},
                                    {ApiKind::kMessage, "messages"}}) {
    const ApiError error = of(ErrorKind::kLimit, overflow, kind);
    EXPECT_EQ(error.status, 400);
    EXPECT_EQ(error.code, "context_length_exceeded");
    EXPECT_EQ(error.param, field);
    EXPECT_EQ(error.message, overflow) << "with both numbers";
  }
  EXPECT_EQ(of(ErrorKind::kUnsupported, "tools: this is not done here").code,
            "unsupported_parameter");
  EXPECT_EQ(of(ErrorKind::kInternal, "bug: here").status, 500);
  EXPECT_EQ(of(ErrorKind::kInternal, "bug: here").param, std::nullopt);
  EXPECT_EQ(of(ErrorKind::kInternal, "bug: here").type, "server_error");
  EXPECT_EQ(of(ErrorKind::kCancelled, "stopped").status, 503);
  const ApiError hint = api_error(Error(ErrorKind::kUsage, "a: b", "c"));
  EXPECT_EQ(hint.message, "a: b (c)");
}

// The field is found in what the readers really say.
TEST_F(ApiAnswerTest, RefusedRequestsNameTheirField) {
  const auto param = [](ApiKind kind, std::string_view body) -> std::string {
    try {
      read(kind, body);
    } catch (const Error& error) {
      const ApiError shown = api_error(error, kind);
      EXPECT_EQ(shown.status, 400);
      return shown.param.value_or("none");
    }
    return "accepted";
  };
  const std::string head = R"({"messages":[{"role":"user","content":"a"}],)";
  const std::vector<std::pair<std::string, std::string>> chats = {
      {head + R"("temperature":"hot"})", "temperature"},
      {head + R"("temperature":-1})", "temperature"},
      {head + R"("tools":[1]})", "tools[0]"},
      {head + R"("stop":[1]})", "stop"},
      {head + R"("logit_bias":{"x":1}})", "logit_bias"},
      {head + R"("stream_options":{"include_usage":1}})", "stream_options.include_usage"},
      {R"({"messages":[{"role":"cat","content":"a"}]})", "messages[0].role"},
      {R"({"messages":[{"content":"a"}]})", "messages[0].role"},
      {R"({"messages":[{"role":"user"}]})", "messages[0].content"},
      {R"({"messages":[{"role":"user","content":[{"type":"sound"}]}]})",
       "messages[0].content[0].type"},
      {R"({"messages":[{"role":"user","content":[{"type":"text"}]}]})",
       "messages[0].content[0].text"},
      {R"({})", "messages"}};
  for (const auto& [body, field] : chats) EXPECT_EQ(param(ApiKind::kChat, body), field) << body;
  EXPECT_EQ(param(ApiKind::kCompletion, "{}"), "prompt");
  EXPECT_EQ(param(ApiKind::kCompletion, R"({"prompt":"a","suffix":"b"})"), "suffix");
  EXPECT_EQ(param(ApiKind::kCompletion, R"({"prompt":"a","tools":[1]})"), "tools");
  EXPECT_EQ(param(ApiKind::kEmbedding, R"({"input":[99]})"), "input");
  EXPECT_EQ(param(ApiKind::kEmbedding, R"({"input":"a","dimensions":5})"), "dimensions");
}

TEST_F(ApiAnswerTest, RefusalsHaveTheirStatus) {
  const ApiError key = api_refusal(Refusal::kWrongKey, "the key is not known");
  EXPECT_EQ(key.status, 401);
  EXPECT_EQ(error_body(key, ApiDialect::kOpenAi),
            testing::parse_object(R"({"error":{"message":"the key is not known",
      "type":"invalid_request_error","param":null,"code":"invalid_api_key"}})"));
  const ApiError model = api_refusal(Refusal::kNoModel, "there is no model x");
  EXPECT_EQ(model.status, 404);
  EXPECT_EQ(model.code, "model_not_found");
  EXPECT_EQ(model.param, "model");
  for (const auto& [refusal, status] : {std::pair{Refusal::kForbidden, 403},
                                        {Refusal::kNoPath, 404},
                                        {Refusal::kWrongMethod, 405},
                                        {Refusal::kTooSlow, 408},
                                        {Refusal::kTooLarge, 413},
                                        {Refusal::kNotJson, 415},
                                        {Refusal::kTooMany, 429},
                                        {Refusal::kOverloaded, 429},
                                        {Refusal::kNotReady, 503}}) {
    EXPECT_EQ(api_refusal(refusal, "x").status, status);
  }
}

TEST_F(ApiAnswerTest, ModelsAreListed) {
  const std::vector<ServedModel> models = {{"m", 5, 1024}};
  EXPECT_EQ(models_json(models), testing::parse_object(R"({"object":"list","data":[{"id":"m",
      "object":"model","created":5,"owned_by":"drover","max_model_len":1024}]})"));
}

TEST_F(ApiAnswerTest, TextBecomesTokensAndTextAgain) {
  const auto tokenize = [](std::string_view body) {
    return tokenize_answer(testing::parse_object(body), *model_, ChatFormat::kChatMl, 1024);
  };
  const std::vector<Token> ship = tokens_of("the ship");
  const json::object out = tokenize(R"({"model":"m","prompt":"the ship"})");
  EXPECT_EQ(out.at("count"), ship.size());
  EXPECT_EQ(out.at("max_model_len"), 1024);
  EXPECT_EQ(out.at("tokens"), json::value(json::array(ship.begin(), ship.end())));
  EXPECT_EQ(tokenize(R"({"content":"the ship"})").at("tokens"), out.at("tokens"));
  EXPECT_EQ(tokenize(R"({"content":"the","return_token_strs":true})").at("token_strs"),
            json::value(json::array{"the"}));
  EXPECT_EQ(tokenize(R"({"content":"<|im_end|>","parse_special":true})").at("tokens"),
            json::value(json::array{2}));
  EXPECT_GT(tokenize(R"({"content":"<|im_end|>"})").at("count").as_uint64(), 1u);
  const auto rendered = chat(std::string(kAsk) + "}").requests[0].prompt.tokens;
  EXPECT_EQ(tokenize(std::string(kAsk) + "}").at("tokens"),
            json::value(json::array(rendered.begin(), rendered.end())));
  EXPECT_LT(
      tokenize(std::string(kAsk) + R"(,"add_generation_prompt":false})").at("count").as_uint64(),
      rendered.size());
  expect_error(ErrorKind::kUsage, "missing key prompt", [&] { tokenize("{}"); });

  const json::object info = tokenizer_info(*model_, 1024);
  EXPECT_EQ(info.at("eos_token"), "<|im_end|>");
  EXPECT_TRUE(info.at("bos_token").is_null());
  EXPECT_EQ(info.at("add_bos_token"), false);
  EXPECT_EQ(info.at("model_max_length"), 1024);
  EXPECT_TRUE(info.at("chat_template").get_string().starts_with("{% for m in messages %}"));

  const auto text = [](std::string_view body) {
    return detokenize_answer(testing::parse_object(body), *model_);
  };
  EXPECT_EQ(
      text(fmt::format(R"({{"tokens":[{},2]}})", fmt::join(ship, ","))),
      testing::parse_object(R"({"prompt":"the ship<|im_end|>","content":"the ship<|im_end|>"})"));
  expect_error(ErrorKind::kUsage, "tokens: expected 0 to 63, got 64",
               [&] { text(R"({"tokens":[64]})"); });
  expect_error(ErrorKind::kUsage, "tokens", [&] { text("{}"); });
}

}  // namespace
}  // namespace drover
