// What a well-behaved client sees, and what a handler may do.
#include "server/http/http_server.h"

#include <gtest/gtest.h>

#include <atomic>

#include "base/error.h"
#include "server/http/server_fixture.h"
#include "server/http/server_sent_events.h"

namespace drover {
namespace {

using HttpServerTest = HttpTest;

TEST_F(HttpServerTest, TheHandlerGetsAllThatTheClientSaid) {
  serve();
  const RawAnswer answer =
      ask(post("/v1/models/a%2Fb?x=1&y=a+b%26&flag", "{}", "X-Request-Id: mine-1\r\nA: \t b \r\n"));
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.body, "{}");
  EXPECT_TRUE(answer.whole);
  EXPECT_EQ(answer.headers.at("server"), "drover");
  EXPECT_EQ(answer.headers.at("x-request-id"), "mine-1");
  EXPECT_EQ(answer.headers.at("content-type"), "text/plain");
  EXPECT_TRUE(answer.headers.contains("date"));
  const HttpRequest request = last();
  EXPECT_EQ(request.method, "POST");
  EXPECT_EQ(request.target, "/v1/models/a%2Fb?x=1&y=a+b%26&flag");
  EXPECT_EQ(request.path, "/v1/models/a/b");
  EXPECT_EQ(*request.parameter("x"), "1");
  EXPECT_EQ(*request.parameter("y"), "a b&");
  EXPECT_EQ(*request.parameter("flag"), "");
  EXPECT_EQ(request.parameter("z"), nullptr);
  EXPECT_EQ(*request.header("a"), "b");
  EXPECT_EQ(*request.header("HOST"), "t");
  EXPECT_EQ(request.id, "mine-1");
  EXPECT_TRUE(request.peer.starts_with("127.0.0.1:")) << request.peer;
  EXPECT_FALSE(request.tls);
}

TEST_F(HttpServerTest, ARequestIdThatIsUnfitForLogsIsReplaced) {
  serve();
  std::string last_id;
  for (const std::string more :
       {"", "X-Request-Id: a b\r\n", "X-Request-Id: a\r\nX-Request-Id: b\r\n"}) {
    const std::string id = ask(get("/", more)).headers["x-request-id"];
    EXPECT_TRUE(id.starts_with("req_")) << id;
    EXPECT_NE(id, last_id);
    last_id = id;
  }
}

TEST_F(HttpServerTest, AConnectionServesManyRequests) {
  serve();
  RawClient client = connect();
  for (int i = 0; i < 50; ++i) {
    const std::string body = std::to_string(i);
    ASSERT_TRUE(client.send(post("/", body)));
    EXPECT_EQ(client.read_answer().body, body);
  }
  client.send(get("/last", "Connection: close\r\n"));
  const RawAnswer answer = client.read_answer();
  EXPECT_EQ(answer.headers.at("connection"), "close");
  EXPECT_TRUE(client.sees_close());
  EXPECT_EQ(server_->counters().connections_accepted, 1u);
}

TEST_F(HttpServerTest, PipelinedRequestsAreAnsweredInOrder) {
  serve();
  RawClient client = connect();
  client.send(get("/hold") + post("/b", "two") + "\r\n" + get("/three"));
  HttpReply first = taken();
  std::thread([&] { first.send(200, {}, "one"); }).join();
  EXPECT_EQ(client.read_answer().body, "one");
  EXPECT_EQ(client.read_answer().body, "two");
  EXPECT_EQ(client.read_answer().body, "/three");
}

TEST_F(HttpServerTest, ABodyMayComeInChunksOfAnySize) {
  serve();
  const std::string request =
      "POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n"
      "5\r\nhello\r\n1;name=\"v\"\r\n,\r\nB\r\n world and \r\n0\r\nTrailer: x\r\n\r\n";
  EXPECT_EQ(ask(request).body, "hello, world and ");
  RawClient slow = connect();
  for (const char byte : request) ASSERT_TRUE(slow.send({&byte, 1}));
  EXPECT_EQ(slow.read_answer().body, "hello, world and ");
  slow.send(get("/next"));
  EXPECT_EQ(slow.read_answer().body, "/next");
}

TEST_F(HttpServerTest, ABodyOfManyMegabytesArrivesWhole) {
  serve();
  std::string body(5'000'000, 'x');
  for (size_t i = 0; i < body.size(); i += 1000) body[i] = static_cast<char>('a' + i / 1000 % 26);
  RawClient client = connect();
  std::thread sender([&] { client.send(post("/", body)); });
  const RawAnswer answer = client.read_answer();
  sender.join();
  EXPECT_TRUE(answer.body == body) << answer.body.size();
}

TEST_F(HttpServerTest, HeadGetsTheHeadersOfGetAndNoBody) {
  serve();
  RawClient client = connect();
  client.send("HEAD /path HTTP/1.1\r\nHost: t\r\n\r\n" + get("/next"));
  const RawAnswer answer = client.read_answer(/*head_only=*/true);
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.headers.at("content-length"), "5");
  EXPECT_EQ(client.read_answer().body, "/next") << "nothing came between";
}

TEST_F(HttpServerTest, ClientsOfHttp10AreUnderstood) {
  serve();
  RawClient once = connect();
  once.send("GET /old HTTP/1.0\r\n\r\n");
  EXPECT_EQ(once.read_answer().body, "/old");
  EXPECT_TRUE(once.sees_close());

  RawClient client = connect();
  client.send("GET /old HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  const RawAnswer kept = client.read_answer();
  EXPECT_EQ(kept.headers.at("connection"), "keep-alive");
  client.send("GET /hold HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  HttpReply reply = taken();
  reply.begin(200, {});
  reply.write("no ");
  reply.write("chunks");
  reply.end();
  const RawAnswer streamed = client.read_answer();
  EXPECT_EQ(streamed.body, "no chunks") << "ends with the connection";
  EXPECT_EQ(streamed.headers.at("connection"), "close");
  EXPECT_FALSE(streamed.headers.contains("transfer-encoding"));
}

TEST_F(HttpServerTest, AnExpectationIsMetBeforeTheBodyComes) {
  serve();
  RawClient client = connect();
  client.send("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(client.read_until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.send("ok");
  EXPECT_EQ(client.read_answer().body, "ok");
  EXPECT_EQ(ask(get("/", "Expect: miracles\r\n")).status, 417);
}

TEST_F(HttpServerTest, AStreamArrivesPieceByPiece) {
  serve();
  RawClient client = connect();
  client.send(get("/hold"));
  HttpReply reply = taken();
  EXPECT_TRUE(reply.begin(200, {{"Content-Type", "text/event-stream"}}));
  const std::string head = client.read_until("\r\n\r\n");
  EXPECT_NE(head.find("Transfer-Encoding: chunked\r\n"), std::string::npos) << head;
  for (int i = 0; i < 20; ++i) {
    const std::string piece = "piece " + std::to_string(i);
    EXPECT_TRUE(reply.write(piece));
    EXPECT_EQ(client.read_chunk(), piece);
  }
  EXPECT_TRUE(reply.write("")) << "nothing, not the end";
  EXPECT_TRUE(reply.end());
  EXPECT_EQ(client.read_chunk(), "");
  EXPECT_FALSE(reply.closed()) << "all was sent";
  client.send(get("/next"));
  EXPECT_EQ(client.read_answer().body, "/next");
  EXPECT_THROW(reply.write("more"), Error);
}

TEST_F(HttpServerTest, ASilentEventStreamCarriesComments) {
  serve();
  RawClient client = connect();
  client.send(get("/hold"));
  EventStream events(taken(), 200, {{"X-More", "1"}}, milliseconds(20));
  const std::string head = client.read_until("\r\n\r\n");
  EXPECT_NE(head.find("text/event-stream"), std::string::npos);
  EXPECT_NE(head.find("X-More: 1"), std::string::npos);
  EXPECT_EQ(client.read_chunk(), ": still here\n\n");
  EXPECT_EQ(client.read_chunk(), ": still here\n\n");
  EXPECT_TRUE(events.event("ping", "{}"));
  std::string chunk;
  while ((chunk = client.read_chunk()) == ": still here\n\n") {
  }
  EXPECT_EQ(chunk, "event: ping\ndata: {}\n\n");
  EXPECT_TRUE(events.done());
  std::string rest;
  while (!(chunk = client.read_chunk()).empty()) rest += chunk;
  EXPECT_TRUE(rest.ends_with("data: [DONE]\n\n")) << rest;
}

TEST_F(HttpServerTest, AHandlerThatForgetsItsReplyAnswers500) {
  std::atomic<int> kind{0};
  HttpOptions options;
  options.refuse = [](int status, std::string_view message, const HttpRequest& request) {
    return HttpAnswer{200,
                      {{"Content-Type", "application/json"}},
                      "{\"status\":" + std::to_string(status) + ",\"error\":\"" +
                          std::string(message) + "\",\"path\":\"" + request.path + "\"}"};
  };
  server_.emplace(options, [&](HttpRequest, HttpReply reply) {
    if (kind == 1) throw std::runtime_error("secret");
    if (kind == 2) std::thread([reply = std::move(reply)] {}).join();
  });
  for (; kind < 3; ++kind) {
    const RawAnswer answer = ask(get("/"));
    EXPECT_EQ(answer.status, 500) << kind;
    EXPECT_EQ(answer.body, R"({"status":500,"error":"the server failed","path":"/"})") << kind;
  }
  EXPECT_EQ(server_->counters().handler_errors, 1u);
}

TEST_F(HttpServerTest, AStreamThatIsDroppedIsCutAndNotEnded) {
  serve();
  RawClient client = connect();
  client.send(get("/hold"));
  {
    HttpReply reply = taken();
    reply.begin(200, {});
    reply.write("half");
  }
  const RawAnswer answer = client.read_answer();
  EXPECT_EQ(answer.body, "half");
  EXPECT_FALSE(answer.whole);
  ASSERT_TRUE(soon([&] { return log().size() == 1; }));
  EXPECT_FALSE(log()[0].complete);
}

TEST_F(HttpServerTest, NoHeaderOfAnAnswerCanStartAnother) {
  serve();
  RawClient client = connect();
  client.send(get("/hold"));
  taken().send(200, {{"X-A", "1\r\nX-B: 2"}, {"Content-Length", "99"}, {"Connection", "x"}}, "ok");
  const RawAnswer answer = client.read_answer();
  EXPECT_EQ(answer.headers.at("x-a"), "1X-B: 2");
  EXPECT_FALSE(answer.headers.contains("x-b"));
  EXPECT_EQ(answer.body, "ok");
}

// A client may leave while its answer is computed, or in mid-stream, politely or not. 100 ms is
// what an engine's step may take; the notice itself takes a message between threads.
TEST_F(HttpServerTest, AClientThatLeavesIsNoticedAtOnce) {
  serve();
  for (const bool streaming : {false, true}) {
    for (const bool politely : {false, true}) {
      RawClient client = connect();
      client.send(get("/hold"));
      HttpReply reply = taken();
      std::atomic<int> calls{0};
      reply.on_closed([&] { ++calls; });
      if (streaming) {
        reply.begin(200, {});
        reply.write("one");
        client.read_until("one");
      }
      EXPECT_FALSE(reply.closed());
      politely ? client.close() : client.reset();
      EXPECT_TRUE(soon([&] { return calls == 1; }, milliseconds(1000))) << streaming << politely;
      EXPECT_TRUE(reply.closed());
      bool late = false;
      reply.on_closed([&] { late = true; });
      EXPECT_TRUE(late) << "who asks later is told here and now";
      if (streaming) {
        EXPECT_FALSE(reply.write("two"));
        EXPECT_FALSE(reply.end());
      } else {
        EXPECT_FALSE(reply.send(200, {}, "late"));
      }
      EXPECT_EQ(calls, 1);
    }
  }
  EXPECT_TRUE(soon([&] { return server_->counters().connections_open == 0; }));
  EXPECT_EQ(server_->counters().requests_open, 0u);
}

TEST_F(HttpServerTest, ACompleteAnswerIsNoDeparture) {
  serve();
  RawClient client = connect();
  client.send(get("/hold"));
  HttpReply reply = taken();
  std::atomic<int> calls{0};
  reply.on_closed([&] { ++calls; });
  reply.send(200, {}, "all");
  EXPECT_EQ(client.read_answer().body, "all");
  client.close();
  EXPECT_TRUE(soon([&] { return server_->counters().connections_open == 0; }));
  EXPECT_EQ(calls, 0);
}

TEST_F(HttpServerTest, AnswersFromManyThreadsReachTheirClients) {
  HttpOptions options;
  options.threads = 2;
  serve(options);
  constexpr int kClients = 32, kPieces = 50;
  std::vector<RawClient> clients;
  for (int i = 0; i < kClients; ++i) {
    clients.push_back(connect());
    clients.back().send(get("/hold", "X-Request-Id: " + std::to_string(i) + "\r\n"));
  }
  std::vector<std::thread> threads;
  for (int i = 0; i < kClients; ++i) {
    threads.emplace_back([reply = taken()]() mutable {
      reply.begin(200, {});
      for (int p = 0; p < kPieces; ++p) reply.write("0123456789");
      reply.end();
    });
  }
  for (auto& client : clients) {
    const RawAnswer answer = client.read_answer();
    EXPECT_TRUE(answer.whole);
    EXPECT_EQ(answer.body.size(), kPieces * 10u);
  }
  for (auto& thread : threads) thread.join();
}

TEST_F(HttpServerTest, TheLogAndTheCountersTellWhatHappened) {
  serve();
  {
    RawClient client = connect();
    client.send(post("/log", "12345", "X-Request-Id: logged\r\n"));
    client.read_answer();
    client.send("bad\r\n\r\n");
    EXPECT_EQ(client.read_answer().status, 400);
  }
  ASSERT_TRUE(soon([&] { return server_->counters().connections_open == 0; }));
  const std::vector<HttpAccess> entries = log();
  ASSERT_EQ(entries.size(), 2u);
  EXPECT_EQ(entries[0].method, "POST");
  EXPECT_EQ(entries[0].path, "/log");
  EXPECT_EQ(entries[0].id, "logged");
  EXPECT_EQ(entries[0].status, 200);
  EXPECT_EQ(entries[0].bytes, 5u);
  EXPECT_TRUE(entries[0].complete);
  EXPECT_GE(entries[0].seconds, 0);
  EXPECT_LT(entries[0].seconds, 5);
  EXPECT_EQ(entries[1].status, 400);
  const HttpCounters counters = server_->counters();
  EXPECT_EQ(counters.requests, (std::map<int, uint64_t>{{200, 1}, {400, 1}}));
  EXPECT_EQ(counters.connections_accepted, 1u);
  EXPECT_EQ(counters.requests_open, 0u);
  EXPECT_EQ(counters.bytes_in, post("/log", "12345", "X-Request-Id: logged\r\n").size() + 7);
  EXPECT_GT(counters.bytes_out, 100u);
}

}  // namespace
}  // namespace drover
