// The parts that need no socket: heads byte by byte, exchanges, words and events.
#include "server/http/request_head.h"

#include <gtest/gtest.h>

#include "server/http/exchange.h"
#include "server/http/server_sent_events.h"

namespace drover {
namespace {

constexpr std::string_view kGood = "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\r\n";

// The status that these bytes are refused with, 0 when they are not.
int refused(std::string_view bytes, const HttpLimits& limits = {}) {
  try {
    HeadScanner(limits).scan(bytes);
    return 0;
  } catch (const Refusal& refusal) {
    return refusal.status;
  }
}

TEST(HeadScanner, FindsTheEndHoweverTheBytesAreCut) {
  const HttpLimits limits;
  for (size_t cut = 0; cut <= kGood.size(); ++cut) {
    HeadScanner scanner(limits);
    const size_t early = scanner.scan(kGood.substr(0, cut));
    EXPECT_EQ(early, cut == kGood.size() ? cut : 0) << cut;
    if (early == 0) {
      EXPECT_EQ(scanner.scan(std::string(kGood) + "body\n\0"), kGood.size()) << cut;
    }
  }
}

TEST(HeadScanner, RefusesAtTheFirstByteThatCannotBe) {
  EXPECT_EQ(refused("GET / HTTP/1.1\n"), 400) << "bare LF";
  EXPECT_EQ(refused("GET / HTTP/1.1\rX"), 400) << "bare CR";
  EXPECT_EQ(refused("GET / HTTP/1.1\r\n\n"), 400) << "bare LF on an empty line";
  EXPECT_EQ(refused("GET / HTTP/1.1\r\nA: b\r\n "), 400) << "folded with a space";
  EXPECT_EQ(refused("GET / HTTP/1.1\r\n\t"), 400) << "folded with a tab";
  EXPECT_EQ(refused(std::string_view("GET /\0", 6)), 400) << "NUL";
  EXPECT_EQ(refused("GET /\x7f"), 400) << "DEL";
  EXPECT_EQ(refused("GET /\xc3"), 400) << "a byte above 127 in the request line";
  EXPECT_EQ(refused("GET / HTTP/1.1\r\nA: \x01"), 400) << "a control character in a value";
  EXPECT_EQ(refused("\x16\x03\x01\x02"), 400) << "the begin of TLS";
  EXPECT_EQ(refused("GET / HTTP/1.1\r\nA: \xc3\xa9\tb\r\n\r\n"), 0) << "what values may have";
}

TEST(HeadScanner, CountsToItsLimitsAndNoFurther) {
  HttpLimits limits;
  limits.header_bytes = kGood.size();
  limits.header_count = 2;
  limits.url_bytes = 8;
  EXPECT_EQ(refused(kGood, limits), 0);
  limits.header_bytes = kGood.size() - 1;
  EXPECT_EQ(refused(kGood, limits), 431);
  limits = {};
  limits.header_count = 1;
  EXPECT_EQ(refused(kGood, limits), 431);
  EXPECT_EQ(refused("GET /" + std::string(limits.url_bytes + 64, 'a')), 414);
}

TEST(HttpMessage, PercentEscapesAreDecodedOrRefused) {
  EXPECT_EQ(percent_decode("/a%2Fb%20c+d", false), "/a/b c+d");
  EXPECT_EQ(percent_decode("a+b%2b", true), "a b+");
  EXPECT_EQ(percent_decode("%C3%A9", false), "\xc3\xa9");
  for (const char* bad :
       {"%", "%4", "%4g", "%g4", "%00", "%0a", "%7f", "%ff", "%C3", "%ED%A0%80"}) {
    EXPECT_EQ(percent_decode(bad, false), std::nullopt) << bad;
  }
}

TEST(HttpMessage, ARequestIdIsVisibleAsciiOfSomeLength) {
  EXPECT_TRUE(is_request_id("a-B_9"));
  EXPECT_TRUE(is_request_id(std::string(128, 'x')));
  EXPECT_FALSE(is_request_id(""));
  EXPECT_FALSE(is_request_id(std::string(129, 'x')));
  EXPECT_FALSE(is_request_id("a b"));
  EXPECT_FALSE(is_request_id("\xc3\xa9"));
}

TEST(HttpMessage, EveryStatusHasAPhrase) {
  EXPECT_EQ(reason_phrase(404), "Not Found");
  EXPECT_EQ(reason_phrase(429), "Too Many Requests");
  EXPECT_FALSE(reason_phrase(499).empty());
}

// A connection that is stuck in a write has used up the first wake; it must hear of the limit.
TEST(Exchange, GoingOverTheLimitWakesAConnectionThatWasWokenBefore) {
  int wakes = 0;
  Exchange exchange({}, /*unsent_limit=*/10, [&] { ++wakes; });
  exchange.take(true);
  exchange.begin(200, {});
  EXPECT_EQ(wakes, 1);
  EXPECT_FALSE(exchange.write("more than ten bytes"));
  EXPECT_EQ(wakes, 2);
  EXPECT_TRUE(exchange.over_limit());
}

TEST(ServerSentEvents, TextIsCutIntoLinesOfTheFormat) {
  EXPECT_EQ(sse_data("{}"), "data: {}\n\n");
  EXPECT_EQ(sse_event("message_start", "{}"), "event: message_start\ndata: {}\n\n");
  EXPECT_EQ(sse_data("a\nb\r\nc\rd"), "data: a\ndata: b\ndata: c\ndata: d\n\n");
  EXPECT_EQ(sse_data(""), "data: \n\n");
  EXPECT_EQ(sse_data("a\n"), "data: a\ndata: \n\n");
  EXPECT_EQ(sse_comment("prefill 1/2"), ": prefill 1/2\n\n");
  EXPECT_EQ(sse_comment("a\ndata: b"), ": a\n: data: b\n\n") << "a comment stays one";
}

}  // namespace
}  // namespace drover
