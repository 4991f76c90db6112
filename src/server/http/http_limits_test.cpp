// Limits, slow clients and hostile ones: each is refused in its own way, and the server goes on.
#include <gtest/gtest.h>

#include <atomic>
#include <random>

#include "server/http/http_server.h"
#include "server/http/server_fixture.h"

namespace drover {
namespace {

using HttpLimitsTest = HttpTest;

std::string long_text(std::string_view begin, size_t letters) {
  std::string text(begin);
  text.append(letters, 'a');
  return text;
}

TEST_F(HttpLimitsTest, EachSizeHasAStatusOfItsOwn) {
  HttpOptions options;
  options.limits.header_bytes = 2000;
  options.limits.header_count = 5;
  options.limits.url_bytes = 100;
  options.limits.body_bytes = 1000;
  serve(options);
  const std::string chunked = "POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n";
  EXPECT_EQ(ask(get(long_text("/", 99))).status, 200);
  EXPECT_EQ(ask(get(long_text("/", 100))).status, 414);
  EXPECT_EQ(ask(get(long_text("/", 1000))).status, 414);
  EXPECT_EQ(ask(get("/", long_text("A: ", 1500) + "\r\n")).status, 200);
  EXPECT_EQ(ask(get("/", long_text("A: ", 3000) + "\r\n")).status, 431);
  EXPECT_EQ(ask(get("/", "A: 1\r\nB: 1\r\nC: 1\r\nD: 1\r\n")).status, 200);
  EXPECT_EQ(ask(get("/", "A: 1\r\nB: 1\r\nC: 1\r\nD: 1\r\nE: 1\r\n")).status, 431);
  EXPECT_EQ(ask(post("/", std::string(1000, 'a'))).status, 200);
  EXPECT_EQ(ask(post("/", std::string(1001, 'a'))).status, 413);
  EXPECT_EQ(ask(chunked + long_text("3e8\r\n", 1000) + "\r\n0\r\n\r\n").status, 200);
  EXPECT_EQ(ask(chunked + "3e9\r\n").status, 413) << "before the bytes come";
  EXPECT_EQ(ask(chunked + long_text("3e8\r\n", 1000) + "\r\n1\r\n").status, 413);
  EXPECT_EQ(ask("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 99999999999999999\r\n\r\n").status,
            413);
}

// The answer comes though the client is still sending: the server reads on for a while, as a close
// with unread bytes would reset the connection and take the answer with it.
TEST_F(HttpLimitsTest, WhoSendsTooMuchStillGetsItsAnswer) {
  HttpOptions options;
  options.limits.body_bytes = 1000;
  serve(options);
  for (int i = 0; i < 20; ++i) {
    RawClient client = connect();
    client.send("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 300000\r\n\r\n");
    client.send(std::string(300'000, 'x'));
    const RawAnswer answer = client.read_answer();
    EXPECT_EQ(answer.status, 413);
    EXPECT_EQ(answer.headers.at("connection"), "close");
    EXPECT_EQ(answer.body, "the body is too large\n");
  }
}

TEST_F(HttpLimitsTest, AllBodiesTogetherHaveALimit) {
  HttpOptions options;
  options.limits.all_bodies_bytes = 100'000;
  serve(options);
  RawClient first = connect();
  first.send("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 70001\r\n\r\n" +
             std::string(70'000, 'a'));
  ASSERT_TRUE(soon([&] { return server_->counters().bytes_in > 70'000; }));
  EXPECT_EQ(ask(post("/", std::string(70'000, 'b'))).status, 503);
  EXPECT_EQ(ask(post("/", "small")).status, 200);
  first.send("a");
  EXPECT_EQ(first.read_answer().status, 200);
  EXPECT_EQ(ask(post("/", std::string(70'000, 'b'))).status, 200)
      << "the first one's are free again";
}

// A connection that lingers takes a seat.
TEST_F(HttpLimitsTest, AClosedConnectionEndsWhenItsClientDoes) {
  serve();
  // A busy machine may be late once, but not three times.
  milliseconds quickest = milliseconds::max();
  for (int tries = 0; tries < 3 && quickest >= milliseconds(500); ++tries) {
    RawClient client = connect();
    client.send(get("/hold", "Connection: close\r\n"));
    taken().send(200, {}, "late");
    EXPECT_EQ(client.read_answer().body, "late");
    EXPECT_TRUE(client.sees_close());
    const auto start = TestClock::now();
    client.close();
    EXPECT_TRUE(soon([&] { return server_->counters().connections_open == 0; }));
    quickest = std::min(quickest, since(start));
  }
  EXPECT_LT(quickest, milliseconds(500));
}

TEST_F(HttpLimitsTest, ABodyTakesItsPlaceAsLongAsItsHandlerHasIt) {
  HttpOptions options;
  options.limits.all_bodies_bytes = 100'000;
  std::vector<HttpRequest> kept;
  server_.emplace(options, [&](HttpRequest request, HttpReply reply) {
    if (request.path == "/keep") kept.push_back(std::move(request));
    reply.send(200, {}, "");
  });
  EXPECT_EQ(ask(post("/keep", std::string(70'000, 'a'))).status, 200);
  EXPECT_EQ(ask(post("/", std::string(70'000, 'b'))).status, 503);
  EXPECT_EQ(ask(post("/", "small")).status, 200);
  kept.clear();
  EXPECT_EQ(ask(post("/keep", std::string(70'000, 'b'))).status, 200);
  server_.reset();  // a request may outlive it
  EXPECT_EQ(kept.front().body.size(), 70'000u);
}

TEST_F(HttpLimitsTest, AStrangerIsRefusedBeforeItsBodyIsRead) {
  HttpOptions options;
  options.admit = [](const HttpRequest& request) -> std::optional<HttpAnswer> {
    EXPECT_TRUE(request.body.empty());
    if (request.header("authorization")) return std::nullopt;
    return HttpAnswer{401, {{"WWW-Authenticate", "Bearer"}}, "who?"};
  };
  serve(options);
  RawClient client = connect();
  client.send(
      "POST /x HTTP/1.1\r\nHost: t\r\nContent-Length: 50000000\r\nExpect: 100-continue\r\n\r\n");
  const RawAnswer answer = client.read_answer();
  EXPECT_EQ(answer.status, 401);
  EXPECT_EQ(answer.headers.at("www-authenticate"), "Bearer");
  EXPECT_EQ(answer.body, "who?");
  EXPECT_TRUE(client.sees_close());
  EXPECT_EQ(ask(post("/", "in", "Authorization: Bearer k\r\n")).body, "in");
}

TEST_F(HttpLimitsTest, SlowHeadersAndBodiesEndWith408AndIdleOnesWithAClose) {
  HttpOptions options;
  options.limits.header_time = milliseconds(150);
  options.limits.body_time = milliseconds(150);
  options.limits.idle_time = milliseconds(300);
  serve(options);
  RawClient header = connect(), body = connect(), drip = connect(), silent = connect(),
            idle = connect();
  const auto start = TestClock::now();
  header.send("GET / HTTP/1.1\r\nHo");
  body.send("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\n123");
  idle.send(get("/"));
  EXPECT_EQ(idle.read_answer().status, 200);
  // A byte now and then does not help: the limit is on the whole.
  std::thread dripping([&] {
    for (const char byte : get("/drip", "Some: more\r\n")) {
      if (!drip.send({&byte, 1})) break;
      std::this_thread::sleep_for(milliseconds(10));
    }
  });
  EXPECT_EQ(header.read_answer().status, 408);
  EXPECT_GE(since(start), milliseconds(150));
  EXPECT_EQ(body.read_answer().status, 408);
  EXPECT_TRUE(silent.sees_close());
  EXPECT_LT(since(start), milliseconds(2000));
  EXPECT_TRUE(idle.sees_close());
  EXPECT_GE(since(start), milliseconds(300));
  dripping.join();
  EXPECT_EQ(drip.read_answer().status, 408);
  expect_alive();
}

TEST_F(HttpLimitsTest, AStreamIsCutWhenItsClientIsTooFarBehind) {
  HttpOptions options;
  options.limits.unsent_bytes = 100'000;
  serve(options);
  RawClient client = connect(/*receive_buffer=*/4096);
  client.send(get("/hold"));
  HttpReply reply = taken();
  std::atomic<int> calls{0};
  reply.on_closed([&] { ++calls; });
  reply.begin(200, {});
  const std::string piece(10'000, 'x');
  // The system takes some megabytes by itself, then the limit holds. No call waits: 64 MB are
  // offered in the time that copying takes.
  const auto start = TestClock::now();
  size_t offered = 0;
  while (reply.write(piece)) {
    offered += piece.size();
    ASSERT_LE(reply.unsent_bytes(), 100'000u);
    ASSERT_LT(offered, size_t{64} << 20) << "a client that reads nothing was never cut";
    if (offered % 50'000 == 0) std::this_thread::sleep_for(milliseconds(1));
  }
  EXPECT_LT(since(start), milliseconds(5000));
  EXPECT_TRUE(reply.closed());
  EXPECT_TRUE(soon([&] { return calls == 1; }));
  EXPECT_TRUE(soon([&] { return server_->counters().connections_open == 0; }))
      << "the write that waits for the client is given up";
  expect_alive();
}

TEST_F(HttpLimitsTest, APieceBeyondTheLimitIsNeverTaken) {
  HttpOptions options;
  options.limits.unsent_bytes = 1000;
  serve(options);
  RawClient client = connect();
  client.send(get("/hold"));
  HttpReply reply = taken();
  reply.begin(200, {});
  EXPECT_FALSE(reply.write(std::string(1001, 'x')));
  EXPECT_FALSE(client.read_answer().whole);
}

TEST_F(HttpLimitsTest, AClientThatDoesNotReadIsCutInTime) {
  HttpOptions options;
  options.limits.write_time = milliseconds(200);
  serve(options);
  RawClient client = connect(/*receive_buffer=*/4096);
  client.send(get("/hold"));
  taken().send(200, {}, std::string(32 << 20, 'x'));
  const auto start = TestClock::now();
  ASSERT_TRUE(soon([&] { return server_->counters().connections_open == 0; }));
  EXPECT_GE(since(start), milliseconds(150));
  ASSERT_TRUE(soon([&] { return log().size() == 1; }));
  EXPECT_FALSE(log()[0].complete);
  expect_alive();
}

TEST_F(HttpLimitsTest, BeyondItsConnectionsTheServerSays503AndCloses) {
  HttpOptions options;
  options.limits.connections = 3;
  serve(options);
  std::vector<RawClient> clients(3);
  for (RawClient& client : clients) {
    client = connect();
    client.send(get("/"));
    EXPECT_EQ(client.read_answer().status, 200);
  }
  for (int i = 0; i < 5; ++i) {
    RawClient extra = connect();
    extra.send(get("/"));
    EXPECT_EQ(extra.read_answer().status, 503);
    EXPECT_TRUE(extra.sees_close());
  }
  EXPECT_EQ(server_->counters().connections_refused, 5u);
  EXPECT_EQ(server_->counters().connections_open, 3u);
  clients.pop_back();
  ASSERT_TRUE(soon([&] { return server_->counters().connections_open == 2; }));
  expect_alive();
}

TEST_F(HttpLimitsTest, AnAddressMayHaveALimitOfItsOwn) {
  HttpOptions options;
  options.limits.connections_per_address = 1;
  serve(options);
  {
    RawClient client = connect();
    client.send(get("/"));
    EXPECT_EQ(client.read_answer().status, 200);
    EXPECT_EQ(ask(get("/")).status, 429);
  }
  ASSERT_TRUE(soon([&] { return server_->counters().connections_open == 0; }));
  expect_alive();
}

struct Hostile {
  const char* name;
  std::string bytes;
  int status = 400;
};

std::vector<Hostile> hostile_requests() {
  const std::string head = "POST / HTTP/1.1\r\nHost: t\r\n";
  const std::string chunked = head + "Transfer-Encoding: chunked\r\n\r\n";
  return {
      {"length and chunks",
       head + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
      {"chunks and length",
       head + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"},
      {"two lengths", head + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"},
      {"two equal lengths", head + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"},
      {"a list of lengths", head + "Content-Length: 5, 5\r\n\r\nhello"},
      {"a signed length", head + "Content-Length: +5\r\n\r\nhello"},
      {"a negative length", head + "Content-Length: -5\r\n\r\nhello"},
      {"a hexadecimal length", head + "Content-Length: 0x5\r\n\r\nhello"},
      {"an empty length", head + "Content-Length: \r\n\r\n"},
      {"a length beyond 64 bits", head + "Content-Length: 18446744073709551617\r\n\r\na"},
      {"a space before the colon", head + "Content-Length : 5\r\n\r\nhello"},
      {"another coding", head + "Transfer-Encoding: gzip\r\n\r\n", 501},
      {"two codings", head + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
      {"chunked twice", head + "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 501},
      {"a quoted coding", head + "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", 501},
      {"two coding headers",
       head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n"},
      {"chunks in HTTP/1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
      {"bare LF", "GET / HTTP/1.1\nHost: t\n\n"},
      {"bare LF in a header", "GET / HTTP/1.1\r\nHost: t\nA: b\r\n\r\n"},
      {"bare CR in a header", "GET / HTTP/1.1\r\nHost: t\rA: b\r\n\r\n"},
      {"NUL", std::string("GET / HTTP/1.1\r\nHost: t\r\nA: \0b\r\n\r\n", 34)},
      {"a folded header", "GET / HTTP/1.1\r\nHost: t\r\nA: b\r\n c\r\n\r\n"},
      {"a folded first header", "GET / HTTP/1.1\r\n Host: t\r\n\r\n"},
      {"a header without a name", "GET / HTTP/1.1\r\nHost: t\r\n: b\r\n\r\n"},
      {"a header without a colon", "GET / HTTP/1.1\r\nHost: t\r\nab\r\n\r\n"},
      {"a name that is none", "GET / HTTP/1.1\r\nHost: t\r\na(b): c\r\n\r\n"},
      {"absolute form", "GET http://t/ HTTP/1.1\r\nHost: t\r\n\r\n"},
      {"asterisk form", "OPTIONS * HTTP/1.1\r\nHost: t\r\n\r\n"},
      {"authority form", "CONNECT t:443 HTTP/1.1\r\nHost: t\r\n\r\n"},
      {"a fragment", get("/a#b")},
      {"%00", get("/a%00b")},
      {"%0d%0a", get("/a%0d%0ab")},
      {"a bad escape", get("/a%zz")},
      {"a cut escape", get("/a%4")},
      {"a bad escape in the query", get("/a?b=%")},
      {"an overlong slash", get("/%c0%af")},
      {"no host", "GET / HTTP/1.1\r\n\r\n"},
      {"two hosts", "GET / HTTP/1.1\r\nHost: t\r\nHost: u\r\n\r\n"},
      {"two authorizations", get("/", "Authorization: a\r\nAuthorization: b\r\n")},
      {"no version", "GET /\r\n\r\n"},
      {"HTTP/2 in words", "GET / HTTP/2.0\r\nHost: t\r\n\r\n"},
      {"the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
      {"words after the version", "GET / HTTP/1.1 x\r\nHost: t\r\n\r\n"},
      {"two spaces", "GET  / HTTP/1.1\r\nHost: t\r\n\r\n"},
      {"a method that is none", "G(T / HTTP/1.1\r\nHost: t\r\n\r\n"},
      {"a long method", std::string(40, 'G') + " / HTTP/1.1\r\nHost: t\r\n\r\n"},
      {"TLS", std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11)},
      {"a chunk size that is none", chunked + "x\r\n"},
      {"a negative chunk size", chunked + "-1\r\n"},
      {"a chunk size beyond 64 bits", chunked + "fffffffffffffffff\r\n"},
      {"a chunk longer than its size", chunked + "3\r\nabcde\r\n0\r\n\r\n"},
      {"bare LF after a chunk size", chunked + "3\nabc\r\n0\r\n\r\n\r\n"},
      {"bare LF in a chunk extension", chunked + "3;a\nb\r\nabc\r\n0\r\n\r\n"},
      {"chunks without CR", chunked + "3\nabc\n0\n\n"},
      {"a trailer without CR", chunked + "3\r\nabc\r\n0\r\nA: b\n\n"},
      {"a huge chunk extension", chunked + long_text("3;", 40'000)},
      {"a huge trailer", chunked + long_text("0\r\nA: ", 40'000)},
  };
}

TEST_F(HttpLimitsTest, AHostileRequestIsRefusedAtOnceAndTheServerGoesOn) {
  serve();
  for (const Hostile& hostile : hostile_requests()) {
    // A busy machine may be late once, but not three times.
    milliseconds quickest = milliseconds::max();
    for (int tries = 0; tries < 3 && quickest >= milliseconds(100); ++tries) {
      RawClient client = connect();
      const auto start = TestClock::now();
      client.send(hostile.bytes);
      const RawAnswer answer = client.read_answer();
      quickest = std::min(quickest, since(start));
      EXPECT_EQ(answer.status, hostile.status) << hostile.name;
      EXPECT_TRUE(answer.whole) << hostile.name;
      EXPECT_TRUE(client.sees_close()) << hostile.name;
    }
    EXPECT_LT(quickest, milliseconds(100)) << hostile.name;
    expect_alive();
  }
}

// Good requests with bytes changed, lost, doubled and swapped. Whatever comes of it, it is an
// answer or a close, and soon: the server never waits, as the client has closed its side.
TEST_F(HttpLimitsTest, AThousandMutantsDoNoHarm) {
  serve();
  const std::vector<std::string> seeds = {
      get("/v1/models/a%2Fb?x=1&y=%20", "Accept: */*\r\nConnection: keep-alive\r\n"),
      post("/v1/chat/completions", R"({"messages":[]})", "Content-Type: application/json\r\n"),
      "POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n5;a=\"b\"\r\nhello\r\n"
      "3\r\nabc\r\n0\r\nT: x\r\n\r\n",
      "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nok",
      "HEAD / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + get("/second"),
  };
  const std::string_view alphabet("\r\n\t :;,%\"\0\x7f\xff/?#09afGX", 21);
  std::mt19937 random(20260611);
  const auto below = [&](size_t n) { return random() % n; };
  for (int i = 0; i < 1000; ++i) {
    std::string bytes = seeds[below(seeds.size())];
    for (size_t changes = 1 + below(4); changes > 0; --changes) {
      const size_t at = below(bytes.size()),
                   length = 1 + below(std::min<size_t>(20, bytes.size() - at));
      switch (below(6)) {
        case 0:
          bytes[at] = static_cast<char>(below(256));
          break;
        case 1:
          bytes[at] = alphabet[below(alphabet.size())];
          break;
        case 2:
          bytes.insert(at, 1, alphabet[below(alphabet.size())]);
          break;
        case 3:
          bytes.insert(at, bytes.substr(at, length));
          break;
        case 4:
          bytes.erase(at, length);
          break;
        case 5:
          std::swap(bytes[at], bytes[below(bytes.size())]);
          break;
      }
      if (bytes.empty()) bytes.push_back('x');
    }
    RawClient client = connect();
    ASSERT_TRUE(client.connected()) << i;
    client.send(bytes);
    client.finish();
    const auto start = TestClock::now();
    const std::string said = client.read_all();
    EXPECT_LT(since(start), milliseconds(1000)) << "mutant " << i;
    EXPECT_TRUE(said.empty() || said.starts_with("HTTP/1.1 ")) << "mutant " << i << ": " << said;
    EXPECT_EQ(said.find("HTTP/1.1 5"), said.find("HTTP/1.1 501")) << "mutant " << i << ": " << said;
    if (i % 50 == 0) expect_alive();
  }
  expect_alive();
  EXPECT_TRUE(soon([&] { return server_->counters().connections_open == 0; }));
}

}  // namespace
}  // namespace drover
