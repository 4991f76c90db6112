// The server from outside, by a client that shares no code with it, on a model that speaks
// nonsense, always the same.
#include "server/server.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <future>

#include "server/http/raw_client.h"
#include "tests/support/expect_error.h"
#include "tests/support/small_model.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

namespace json = boost::json;

constexpr std::string_view kChat =
    R"({"model":"small","messages":[{"role":"user","content":"the sea"}],"max_tokens":6,"seed":1)";

std::string post(std::string_view path, std::string_view body, std::string_view headers = "") {
  return fmt::format(
      "POST {} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{}"
      "\r\n{}",
      path, body.size(), headers, body);
}

std::string get(std::string_view path, std::string_view headers = "") {
  return fmt::format("GET {} HTTP/1.1\r\nHost: x\r\n{}\r\n", path, headers);
}

// The events of a stream: what stands after "data: ", and comments.
std::vector<std::string> events_of(std::string_view body) {
  std::vector<std::string> out;
  for (size_t at = 0; at < body.size();) {
    const size_t end = std::min(body.find("\n\n", at), body.size());
    std::string_view event = body.substr(at, end - at);
    if (event.starts_with("data: ")) event.remove_prefix(6);
    out.emplace_back(event);
    at = end + 2;
  }
  return out;
}

class ServerTest : public testing::SmallModelTest {
 protected:
  ServerOptions options() const {
    ServerOptions out;
    out.http.listeners = {HttpListener{}};
    out.version = "1.2.3";
    return out;
  }
  ServiceOptions service() const {
    ServiceOptions out;
    out.names = {"small", "also-small"};
    out.format = ChatFormat::kChatMl;
    return out;
  }
  void start(ServerOptions server, ServiceOptions of_model) {
    server_.emplace(std::move(server));
    server_->open(*model_, context_, std::move(of_model));
  }
  void start() { start(options(), service()); }

  RawClient client() const {
    const std::string address = server_->addresses().front();
    return RawClient(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
  }
  RawAnswer ask(std::string_view bytes) const {
    RawClient one = client();
    one.send(bytes);
    return one.read_answer();
  }
  static json::object object_of(const RawAnswer& answer) {
    return json::parse(answer.body).as_object();
  }
  static std::string error_code(const RawAnswer& answer) {
    const json::value code = object_of(answer).at("error").at("code");
    return code.is_string() ? std::string(code.as_string()) : "none";
  }
  // The value of a line of /metrics.
  double metric(std::string_view name) const {
    const std::string text = "\n" + ask(get("/metrics")).body;
    const size_t at = text.find(fmt::format("\n{} ", name));
    return at == std::string::npos ? -1 : std::stod(text.substr(at + name.size() + 2));
  }
  // Waits for the server to come to this.
  template <typename Condition>
  static bool soon(Condition condition) {
    for (int i = 0; i < 500; ++i) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }

  Context context_{2};
  std::optional<Server> server_;
};

TEST_F(ServerTest, SaysThatItLoadsUntilTheModelIsThere) {
  server_.emplace(options());
  EXPECT_EQ(ask(get("/health")).status, 503);
  const RawAnswer early = ask(post("/v1/chat/completions", std::string(kChat) + "}"));
  EXPECT_EQ(early.status, 503);
  EXPECT_EQ(early.headers.at("retry-after"), "1");
  EXPECT_EQ(ask(get("/version")).body, R"({"version":"1.2.3"})");
  const RawAnswer description = ask(get("/openapi.json"));
  EXPECT_EQ(description.headers.at("content-type"), "application/json");
  EXPECT_EQ(object_of(description).at("info").at("version"), "1.2.3");
  server_->open(*model_, context_, service());
  EXPECT_EQ(ask(get("/health")).body, R"({"status":"ok"})");
}

TEST_F(ServerTest, WithoutAModelSaysWhatItWaitsFor) {
  ServerOptions waiting = options();
  waiting.waits_for = "no model is configured";
  server_.emplace(std::move(waiting));
  const RawAnswer health = ask(get("/health"));
  EXPECT_EQ(health.status, 503);
  EXPECT_EQ(object_of(health).at("error").at("message"), "no model is configured");
}

TEST_F(ServerTest, AnswersAChatWholeAndAsAStreamTheSame) {
  start();
  const RawAnswer whole = ask(post("/v1/chat/completions", std::string(kChat) + "}"));
  ASSERT_EQ(whole.status, 200) << whole.body;
  const json::object body = object_of(whole);
  EXPECT_EQ(body.at("object"), "chat.completion");
  EXPECT_EQ(body.at("model"), "small");
  const json::object& choice = body.at("choices").at(0).as_object();
  EXPECT_EQ(body.at("usage").at("completion_tokens"), 6);

  const RawAnswer stream =
      ask(post("/v1/chat/completions",
               std::string(kChat) + R"(,"stream":true,"stream_options":{"include_usage":true}})"));
  ASSERT_EQ(stream.status, 200);
  EXPECT_TRUE(stream.whole);
  EXPECT_TRUE(stream.headers.at("content-type").starts_with("text/event-stream"));
  const auto events = events_of(stream.body);
  ASSERT_GE(events.size(), 4u);
  EXPECT_EQ(events.back(), "[DONE]");
  std::string content;
  for (const std::string& event : events) {
    if (event == "[DONE]") continue;
    const json::value chunk = json::parse(event);
    EXPECT_EQ(chunk.at("object"), "chat.completion.chunk");
    if (chunk.at("choices").as_array().empty()) {
      EXPECT_EQ(chunk.at("usage").at("completion_tokens"), 6);
      continue;
    }
    const json::object& delta = chunk.at("choices").at(0).at("delta").as_object();
    if (delta.contains("content")) content += delta.at("content").as_string();
  }
  EXPECT_EQ(content, choice.at("message").at("content").as_string());
}

TEST_F(ServerTest, EveryAddressWorksWithVersionAndSlashOrWithout) {
  start();
  for (const std::string path : {"/v1/models", "/models", "/v1/models/"}) {
    const json::object body = object_of(ask(get(path)));
    EXPECT_EQ(body.at("data").at(0).at("id"), "small") << path;
    EXPECT_EQ(body.at("data").at(1).at("id"), "also-small");
  }
  EXPECT_EQ(object_of(ask(get("/v1/models/small"))).at("id"), "small");
  EXPECT_EQ(error_code(ask(get("/v1/models/large"))), "model_not_found");
  EXPECT_EQ(object_of(ask(get("/tokenizer_info"))).at("eos_token"), "<|im_end|>");
  const RawAnswer tokens = ask(post("/tokenize", R"({"content":"the sea"})"));
  const json::object again{{"tokens", object_of(tokens).at("tokens")}};
  EXPECT_EQ(object_of(ask(post("/v1/detokenize", json::serialize(again)))).at("content"),
            "the sea");
  const RawAnswer embedding = ask(post("/v1/embeddings/", R"({"input":["the","sea"]})"));
  ASSERT_EQ(embedding.status, 200) << embedding.body;
  EXPECT_EQ(object_of(embedding).at("data").as_array().size(), 2u);
  const RawAnswer completion = ask(post("/completions", R"({"prompt":"the","max_tokens":2})"));
  EXPECT_EQ(object_of(completion).at("object"), "text_completion") << completion.body;
}

TEST_F(ServerTest, WhatIsWrongIsSaidInTheWordsOfTheApi) {
  start();
  EXPECT_EQ(ask(get("/nothing")).status, 404);
  const RawAnswer method = ask(get("/v1/chat/completions"));
  EXPECT_EQ(method.status, 405);
  EXPECT_EQ(method.headers.at("allow"), "POST");
  const auto refused = [&](std::string_view body) {
    return ask(post("/v1/chat/completions", body));
  };
  EXPECT_EQ(refused("{").status, 400);
  EXPECT_EQ(refused("[]").status, 400);
  EXPECT_EQ(refused(R"({"messages":[]})").status, 400);
  EXPECT_EQ(error_code(refused(R"({"model":"large","messages":[{"role":"user","content":"a"}]})")),
            "model_not_found");
  std::string text;
  for (int i = 0; i < 40000; ++i) text += "a ";
  const RawAnswer over = refused(
      fmt::format(R"({{"messages":[{{"role":"user","content":"{}"}}],"stream":true}})", text));
  EXPECT_EQ(over.status, 400);
  EXPECT_EQ(error_code(over), "context_length_exceeded");
  EXPECT_EQ(ask("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
                "Content-Length: 2\r\n\r\n{}")
                .status,
            415);
  EXPECT_EQ(ask(post("/v1/chat/completions", std::string(kChat) + "}")).status, 200);
}

// The events of a stream with names, each of which its data has as well.
std::vector<json::object> named_events_of(std::string_view body) {
  std::vector<json::object> out;
  for (const std::string& event : events_of(body)) {
    if (event.starts_with(':')) continue;
    const size_t line = event.find("\ndata: ");
    EXPECT_TRUE(event.starts_with("event: ") && line != std::string::npos) << event;
    out.push_back(json::parse(event.substr(line + 7)).as_object());
    EXPECT_EQ(out.back().at("type").as_string(), event.substr(7, line - 7));
  }
  return out;
}

TEST_F(ServerTest, AnswersAResponseWholeAndAsAStreamTheSame) {
  start();
  const std::string body = R"({"model":"small","input":"the sea","max_output_tokens":6,"seed":1)";
  const RawAnswer whole = ask(post("/v1/responses", body + "}"));
  ASSERT_EQ(whole.status, 200) << whole.body;
  const json::object object = object_of(whole);
  EXPECT_EQ(object.at("object"), "response");
  EXPECT_EQ(object.at("usage").at("output_tokens"), 6);
  const RawAnswer stream = ask(post("/responses", body + R"(,"stream":true})"));
  EXPECT_TRUE(stream.headers.at("content-type").starts_with("text/event-stream"));
  const auto events = named_events_of(stream.body);
  ASSERT_GE(events.size(), 6u);
  std::string text;
  for (const json::object& event : events) {
    if (event.at("type") == "response.output_text.delta") text += event.at("delta").as_string();
  }
  const json::value& last = events.back().at("response");
  EXPECT_EQ(last.at("status"), object.at("status"));
  EXPECT_EQ(last.at("output").at(0).at("content"), object.at("output").at(0).at("content"));
  EXPECT_EQ(last.at("output").at(0).at("content").at(0).at("text").as_string(), text);
}

TEST_F(ServerTest, AnswersAMessageWholeAndAsAStreamTheSame) {
  start();
  const std::string rest = R"("model":"small","messages":[{"role":"user","content":"the sea"}])";
  const std::string body = R"({"max_tokens":6,"seed":1,)" + rest;
  const RawAnswer whole = ask(post("/v1/messages", body + "}", "X-Request-Id: id-7\r\n"));
  ASSERT_EQ(whole.status, 200) << whole.body;
  EXPECT_EQ(whole.headers.at("request-id"), "id-7");
  const json::object object = object_of(whole);
  EXPECT_EQ(object.at("type"), "message");
  EXPECT_EQ(object.at("usage").at("output_tokens"), 6);
  const RawAnswer count = ask(post("/v1/messages/count_tokens", "{" + rest + "}"));
  ASSERT_EQ(count.status, 200) << count.body;
  EXPECT_EQ(object_of(count).at("input_tokens").as_int64(),
            object.at("usage").at("input_tokens").as_int64() +
                object.at("usage").at("cache_read_input_tokens").as_int64());

  const RawAnswer stream = ask(post("/v1/messages", body + R"(,"stream":true})"));
  EXPECT_TRUE(stream.headers.contains("request-id"));
  std::string text;
  const auto events = named_events_of(stream.body);
  ASSERT_GE(events.size(), 5u);
  for (const json::object& event : events) {
    if (event.at("type") == "content_block_delta") {
      text += event.at("delta").at("text").as_string();
    }
  }
  EXPECT_EQ(events.front().at("type"), "message_start");
  EXPECT_EQ(events.back().at("type"), "message_stop");
  EXPECT_EQ(object.at("content").at(0).at("text").as_string(), text);
}

TEST_F(ServerTest, UnderMessagesErrorsAreInAnthropicsWords) {
  const auto path = *folder_ / "keys-of-messages";
  std::ofstream(path) << "anna secret-a\n";
  ServerOptions strict = options();
  strict.keys = ApiKeys::load(path);
  strict.http.limits.body_bytes = 2000;
  server_.emplace(std::move(strict));
  const std::string key = "x-api-key: secret-a\r\nanthropic-version: 2023-06-01\r\n";
  const auto type = [](const RawAnswer& answer, int status) {
    EXPECT_EQ(answer.status, status);
    const json::object body = object_of(answer);
    EXPECT_EQ(body.at("type"), "error");
    EXPECT_EQ(body.at("request_id").as_string(), answer.headers.at("x-request-id"));
    EXPECT_EQ(body.at("request_id").as_string(), answer.headers.at("request-id"));
    return std::string(body.at("error").at("type").as_string());
  };
  EXPECT_EQ(type(ask(post("/v1/messages", "{}", key)), 503), "overloaded_error");
  server_->open(*model_, context_, service());
  EXPECT_EQ(type(ask(post("/v1/messages", "{}")), 401), "authentication_error");
  EXPECT_EQ(type(ask(get("/v1/messages", key)), 405), "invalid_request_error");
  EXPECT_EQ(type(ask(get("/v1/messages/batches", key)), 404), "not_found_error");
  EXPECT_EQ(type(ask(post("/v1/messages", "{}", key)), 400), "invalid_request_error");
  EXPECT_EQ(type(ask(post("/messages/count_tokens/", "[]", key)), 400), "invalid_request_error");
  EXPECT_EQ(type(ask(post("/v1/messages", std::string(2001, ' '), key)), 413), "request_too_large");
  EXPECT_EQ(type(ask(post("/v1/messages", R"({"model":"large","max_tokens":1,
      "messages":[{"role":"user","content":"a"}]})",
                          key)),
                 404),
            "not_found_error");
  EXPECT_EQ(ask(post("/v1/responses", "{}", key)).status, 400);
  EXPECT_TRUE(
      object_of(ask(post("/v1/responses", "{}", key))).at("error").as_object().contains("param"));
}

TEST_F(ServerTest, AStreamThatIsCutShortSaysSoInItsOwnWords) {
  start();
  constexpr std::string_view kLong = R"("stream":true,"ignore_eos":true})";
  RawClient message = client(), response = client(), company = client();
  // In its company they take seconds.
  company.send(post("/v1/completions",
                    R"({"prompt":"the","n":64,"max_tokens":100000,"stream":true,)"
                    R"("ignore_eos":true})"));
  ASSERT_FALSE(company.read_until("\n\n").empty());
  message.send(post("/v1/messages", fmt::format(R"({{"max_tokens":100000,"messages":[
      {{"role":"user","content":"the"}}],{})",
                                                kLong)));
  response.send(post("/v1/responses", fmt::format(R"({{"input":"the",{})", kLong)));
  ASSERT_FALSE(message.read_until("content_block_delta").empty());
  ASSERT_FALSE(response.read_until("output_text.delta").empty());
  EXPECT_FALSE(server_->drain(std::chrono::milliseconds(0)));
  const std::string of_message = message.read_all(), of_response = response.read_all();
  EXPECT_NE(of_message.find("event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":"
                            "\"overloaded_error\""),
            std::string::npos)
      << of_message.substr(of_message.size() < 500 ? 0 : of_message.size() - 500);
  EXPECT_EQ(of_message.find("message_delta"), std::string::npos);
  EXPECT_NE(of_response.find("event: error\n"), std::string::npos);
  EXPECT_NE(of_response.find("event: response.failed\n"), std::string::npos);
  EXPECT_EQ(of_response.find("response.incomplete"), std::string::npos);
}

TEST_F(ServerTest, OnlyWhoHasAKeyMayAsk) {
  const auto path = *folder_ / "keys";
  std::ofstream(path) << "# ours\nanna secret-a\n\nben sha256:"
                      << hex(sha256(std::as_bytes(std::span(std::string_view("secret-b")))))
                      << "\n";
  ServerOptions with_keys = options();
  with_keys.keys = ApiKeys::load(path);
  start(std::move(with_keys), service());
  for (const std::string path : {"/health", "/openapi.json"}) {
    EXPECT_EQ(ask(get(path)).status, 200) << path;
  }
  for (const std::string path : {"/v1/models", "/metrics", "/version", "/tokenize", "/nothing"}) {
    const RawAnswer answer = ask(get(path));
    EXPECT_EQ(answer.status, 401) << path;
    EXPECT_EQ(error_code(answer), "invalid_api_key");
  }
  EXPECT_EQ(ask(get("/v1/models", "Authorization: Bearer secret-c\r\n")).status, 401);
  EXPECT_EQ(ask(get("/v1/models", "Authorization: Bearer secret-a\r\n")).status, 200);
  EXPECT_EQ(ask(get("/v1/models", "Authorization: bearer secret-b\r\n")).status, 200);
  EXPECT_EQ(ask(get("/v1/models", "x-api-key: secret-a\r\n")).status, 200);

  // What one has asked, another does not find known.
  const auto cached = [&](std::string_view key) {
    const RawAnswer answer = ask(post("/v1/chat/completions", std::string(kChat) + "}",
                                      fmt::format("Authorization: Bearer {}\r\n", key)));
    return object_of(answer).at("usage").at("prompt_tokens_details").at("cached_tokens").as_int64();
  };
  EXPECT_EQ(cached("secret-a"), 0);
  EXPECT_GT(cached("secret-a"), 0);
  EXPECT_EQ(cached("secret-b"), 0);
}

TEST_F(ServerTest, OnlyWhoCallsItByANameOfItsOwnIsHeard) {
  ServerOptions named = options();
  named.hosts = {"localhost", "127.0.0.1", "[::1]"};
  start(std::move(named), service());
  const auto status = [&](std::string_view host) {
    return ask(fmt::format("GET /v1/models HTTP/1.1\r\nHost: {}\r\n\r\n", host)).status;
  };
  for (const char* host : {"localhost", "localhost:8080", "127.0.0.1:1", "[::1]", "[::1]:80"}) {
    EXPECT_EQ(status(host), 200) << host;
  }
  for (const char* host : {"evil.example", "evil.example:8080", "127.0.0.1.evil.example"}) {
    EXPECT_EQ(status(host), 403) << host;
  }
}

// Without a Content-Type a browser asks for no permission before it sends a page's request.
TEST_F(ServerTest, PagesFromElsewhereCannotHaveTheModelAtWork) {
  ServerOptions named = options();
  named.hosts = {"localhost", "127.0.0.1"};
  start(std::move(named), service());
  const auto status = [&](std::string_view origin) {
    const std::string body = R"({"prompt":"the","max_tokens":1})";
    return ask(fmt::format("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: {}\r\n"
                           "Content-Length: {}\r\n\r\n{}",
                           origin, body.size(), body))
        .status;
  };
  for (const char* own : {"http://localhost:8080", "https://127.0.0.1", "http://localhost"}) {
    EXPECT_EQ(status(own), 200) << own;
  }
  for (const char* other : {"https://evil.example", "null", "http://localhost.evil.example:8080"}) {
    EXPECT_EQ(status(other), 403) << other;
  }
}

TEST_F(ServerTest, AFileOfKeysIsReadStrictly) {
  const auto path = *folder_ / "bad-keys";
  const auto load = [&](std::string_view text) {
    std::ofstream(path) << text;
    ApiKeys::load(path);
  };
  for (const std::string_view text :
       {"", "# nobody\n", "anna\n", "anna a b\n", "anna sha256:12\n",
        "anna sha256:000000000000000000000000000000000000000000000000000000000000000-\n",
        "anna a\nben a\n"}) {
    testing::expect_error(ErrorKind::kBadData, "bad-keys", [&] { load(text); });
  }
  testing::expect_error(ErrorKind::kNotFound, "none", [&] { ApiKeys::load(*folder_ / "none"); });
}

TEST_F(ServerTest, BeyondTheQueueClientsAreToldToComeAgain) {
  ServiceOptions narrow = service();
  narrow.admission.requests = 1;
  start(options(), narrow);
  RawClient first = client();
  first.send(
      post("/v1/chat/completions",
           R"({"messages":[{"role":"user","content":"a"}],"max_tokens":100000,"stream":true,)"
           R"("logit_bias":{"0":-100,"1":-100,"2":-100,"3":-100}})"));
  ASSERT_NE(first.read_until("\n\n").find("role"), std::string::npos);
  const RawAnswer second = ask(post("/v1/chat/completions", std::string(kChat) + "}"));
  EXPECT_EQ(second.status, 429);
  EXPECT_GE(std::stoi(second.headers.at("retry-after")), 1);
  EXPECT_EQ(metric(R"(drover_refusals_total{reason="queue_full"})"), 1);
  // Who leaves makes room.
  first.close();
  EXPECT_TRUE(soon([&] { return metric("drover_requests_in_hand") == 0; }));
  EXPECT_EQ(ask(post("/v1/chat/completions", std::string(kChat) + "}")).status, 200);
}

TEST_F(ServerTest, WhoHasItsAnswerFindsRoomForTheNext) {
  ServiceOptions narrow = service();
  narrow.admission.requests = 1;
  start(options(), narrow);
  RawClient one = client();
  for (int i = 0; i < 500; ++i) {
    one.send(post("/v1/completions", R"({"prompt":"the","max_tokens":0})"));
    ASSERT_EQ(one.read_answer().status, 200) << i;
  }
}

TEST_F(ServerTest, TheTokensOfARequestAreCountedUpToTheContext) {
  ServiceOptions narrow = service();
  narrow.admission.tokens = 1000;
  start(options(), narrow);
  RawClient first = client();
  first.send(post("/v1/completions",
                  R"({"prompt":"the","max_tokens":9223372036854775807,"n":2,"stream":true,)"
                  R"("logit_bias":{"0":-100,"1":-100,"2":-100,"3":-100}})"));
  ASSERT_TRUE(first.read_until("data: ").ends_with("data: "));
  EXPECT_EQ(ask(post("/v1/completions", R"({"prompt":"the","max_tokens":1})")).status, 429);
  first.close();
  EXPECT_TRUE(soon([&] { return metric("drover_requests_in_hand") == 0; }));
  EXPECT_EQ(ask(post("/v1/completions", R"({"prompt":"the","max_tokens":1})")).status, 200);
}

// Two million values: more than a context of this size could use, and refused before they take
// memory.
TEST_F(ServerTest, ABodyOfMoreValuesThanTheContextCouldUseIsRefused) {
  ServiceOptions narrow = service();
  narrow.engine.context = 256;
  start(options(), narrow);
  std::string body = R"({"prompt":[0)";
  for (int i = 0; i < 2'000'000; ++i) body += ",0";
  const RawAnswer answer = ask(post("/v1/completions", body + "]}"));
  EXPECT_EQ(answer.status, 400);
  EXPECT_NE(answer.body.find("JSON values"), std::string::npos) << answer.body;
}

TEST_F(ServerTest, ClientsThatLeaveFreeTheirPages) {
  start();
  for (int i = 0; i < 50; ++i) {
    RawClient one = client();
    one.send(post("/v1/completions",
                  fmt::format(R"({{"prompt":"{} the","max_tokens":100000,"stream":true,)"
                              R"("logit_bias":{{"0":-100,"1":-100,"2":-100,"3":-100}}}})",
                              i)));
    if (i % 2 == 0) one.read_until("\n\n");
    i % 3 == 0 ? one.reset() : one.close();
  }
  EXPECT_TRUE(soon([&] {
    return metric("drover_requests_in_hand") == 0 && metric("drover_sequences_running") == 0;
  }));
}

TEST_F(ServerTest, WhatIsCutShortEndsWithAnErrorInTheStream) {
  start();
  RawClient one = client();
  // 64 answers as long as the context: work for seconds, and the server's patience is none.
  one.send(post("/v1/completions", R"({"prompt":"the","n":64,"max_tokens":100000,"stream":true,)"
                                   R"("logit_bias":{"0":-100,"1":-100,"2":-100,"3":-100}})"));
  ASSERT_FALSE(one.read_until("\n\n").empty());
  EXPECT_FALSE(server_->drain(std::chrono::milliseconds(0)));
  const std::string rest = one.read_all();
  EXPECT_NE(rest.find(R"("error":{"message":"the server is about to end")"), std::string::npos)
      << rest.substr(rest.size() < 500 ? 0 : rest.size() - 500);
  EXPECT_EQ(rest.find("[DONE]"), std::string::npos);
}

TEST_F(ServerTest, ARequestInHandEndsBeforeTheServerDoes) {
  start();
  RawClient one = client();
  one.send(post("/v1/completions", R"({"prompt":"the","max_tokens":200,"stream":true,)"
                                   R"("logit_bias":{"0":-100,"1":-100,"2":-100,"3":-100}})"));
  ASSERT_FALSE(one.read_until("\n\n").empty());
  EXPECT_TRUE(server_->drain(std::chrono::seconds(30)));
  EXPECT_NE(one.read_all().find("[DONE]"), std::string::npos);
}

TEST_F(ServerTest, ARequestThatTakesTooLongSaysSo) {
  ServiceOptions hasty = service();
  hasty.request_time = std::chrono::milliseconds(50);
  start(options(), hasty);
  const RawAnswer answer =
      ask(post("/v1/completions", R"({"prompt":"the","max_tokens":100000,)"
                                  R"("logit_bias":{"0":-100,"1":-100,"2":-100,"3":-100}})"));
  EXPECT_EQ(answer.status, 408);
}

TEST_F(ServerTest, WhoPreparesRequestsMayConstrainTheirAnswers) {
  ServiceOptions of_model = service();
  const std::vector<Token> said = model_->tokenizer().encode("a ship?");
  of_model.prepare = [&](Request& request) {
    request.options.sampling.constraint = [&](std::span<const Token> answer,
                                              std::span<float> logits) {
      for (size_t token = 0; token < logits.size(); ++token) {
        if (token != static_cast<size_t>(said[answer.size()])) logits[token] = -INFINITY;
      }
    };
  };
  start(options(), of_model);
  const std::string body =
      fmt::format(R"({{"messages":[{{"role":"user","content":"what is there"}}],"max_tokens":{}}})",
                  said.size());
  const RawAnswer answer = ask(post("/v1/chat/completions", body));
  ASSERT_EQ(answer.status, 200) << answer.body;
  EXPECT_EQ(object_of(answer).at("choices").at(0).at("message").at("content"), "a ship?");
}

TEST_F(ServerTest, PromptsLongerThanTheModelRemembersAreWarnedOf) {
  ServiceOptions wary = service();
  RecallMap map;
  map.threshold = 0.9;
  map.lengths = {{.length = 12, .trials = 10, .recall = 1.0, .by_kind = {}},
                 {.length = 24, .trials = 10, .recall = 0.1, .by_kind = {}}};
  wary.recall = map;
  start(options(), wary);
  const auto warned = [&](std::string_view body) {
    return ask(post("/v1/completions", body)).headers.contains("x-drover-warning");
  };
  EXPECT_FALSE(warned(R"({"prompt":"the sea","max_tokens":1})"));
  EXPECT_TRUE(warned(R"({"prompt":"the sea and all that is in it","max_tokens":1})"));
  EXPECT_TRUE(warned(R"({"prompt":"the sea and all that is in it","max_tokens":1,"stream":true})"));
}

TEST(AccessLine, SaysHowItEndedAndNothingThatWasSaid) {
  const HttpAccess access{.method = "POST",
                          .path = "/v1/chat/completions",
                          .peer = "127.0.0.1:1",
                          .id = "id-1",
                          .status = 200,
                          .bytes = 12,
                          .seconds = 0.5,
                          .complete = true};
  const std::string line = access_line(access, AccessLog::kText);
  EXPECT_NE(line.find("127.0.0.1:1 POST /v1/chat/completions 200 12 bytes 0.500 s id-1"),
            std::string::npos)
      << line;
  const json::value object = json::parse(access_line(access, AccessLog::kJson));
  EXPECT_EQ(object.at("status"), 200);
  EXPECT_EQ(object.at("complete"), true);
}

TEST(Admission, CountsRequestsTokensAndKeys) {
  Admission admission({.requests = 3, .tokens = 100, .requests_per_key = 2});
  Crowd crowd;
  auto a = admission.enter("anna", crowd), b = admission.enter("anna", crowd);
  EXPECT_TRUE(a && b);
  EXPECT_FALSE(admission.enter("anna", crowd));
  EXPECT_EQ(crowd, Crowd::kKey);
  auto c = admission.enter("ben", crowd);
  EXPECT_TRUE(c);
  EXPECT_FALSE(admission.enter("carl", crowd));
  EXPECT_EQ(crowd, Crowd::kAll);
  EXPECT_TRUE(a.add_tokens(500)) << "alone it is for the engine to say";
  EXPECT_FALSE(b.add_tokens(1));
  a = {};
  EXPECT_TRUE(b.add_tokens(60));
  EXPECT_FALSE(c.add_tokens(60));
  EXPECT_EQ(admission.requests(), 2);
  EXPECT_EQ(admission.tokens(), 60);
  EXPECT_TRUE(admission.enter("anna", crowd));
}

}  // namespace
}  // namespace drover
