// One picture from a host that behaves as badly as hosts can, on names and addresses of the test's
// own.
#include "server/fetch/fetch.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "base/error.h"
#include "server/fetch/fetch_fixture.h"
#include "server/http/certificate_fixture.h"
#include "server/http/http_server.h"
#include "tests/support/expect_error.h"

// In place of the system's, for this program and the libraries in it.
extern "C" int getaddrinfo(const char* name, const char* service, const addrinfo* hints,
                           addrinfo** out) {
  static const auto real =
      reinterpret_cast<decltype(&getaddrinfo)>(dlsym(RTLD_NEXT, "getaddrinfo"));
  const auto known = drover::testing::TestNames::spelled_as_ours(name);
  if (known.empty()) return real(name, service, hints, out);
  return drover::testing::TestNames::look_up(known, service, hints, out, real);
}

namespace drover {
namespace {

using testing::expect_error;
using testing::ScriptedHost;
using testing::ScriptedReply;
using testing::TestNames;
using Clock = std::chrono::steady_clock;

constexpr size_t kMost = 100'000;

class FetchTest : public ::testing::Test {
 protected:
  FetchTest() { TestNames::set("pictures.test", {"127.0.0.1"}); }

  // Whoever listens here, by every name that the tests use.
  FetchOptions options(uint16_t port) const {
    std::vector<std::string> hosts;
    for (const char* host : {"127.0.0.1", "[::1]", "*.test"}) {
      hosts.push_back(fmt::format("{}:{}", host, port));
    }
    FetchOptions out;
    out.hosts = AllowedHosts(hosts);
    out.allow_private = true;
    return out;
  }
  std::string get(const FetchOptions& options, const std::string& url) const {
    std::string body;
    fetch(options, url, Clock::now() + options.time, nullptr,
          [&](std::span<const std::byte> bytes) {
            if (body.size() + bytes.size() > kMost) throw_error(ErrorKind::kLimit, "too large");
            body.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
          });
    return body;
  }
  std::string get(const ScriptedHost& host) const { return get(options(host.port()), host.url()); }
};

TEST_F(FetchTest, BringsWhatTheHostHas) {
  std::string asked;
  const ScriptedHost host([&](const ScriptedReply& reply, const std::string& head) {
    asked = head;
    reply.answer("200 OK", "a picture", "Content-Type: text/html\r\n");
  });
  EXPECT_EQ(get(options(host.port()), host.url("Pictures.TEST.", "/a%20b.png?c=d#e")), "a picture");
  EXPECT_TRUE(asked.starts_with("GET /a%20b.png?c=d HTTP/1.1\r\n")) << asked;
  for (const char* header : {"Cookie", "Authorization", "Referer"}) {
    EXPECT_EQ(asked.find(header), std::string::npos) << asked;
  }
}

TEST_F(FetchTest, BodiesComeInEveryFraming) {
  const ScriptedHost chunked([](const ScriptedReply& reply, const std::string&) {
    reply.send(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\na "
        "\r\n7\r\npicture\r\n0\r\n\r\n");
  });
  EXPECT_EQ(get(chunked), "a picture");
  const ScriptedHost until_close([](const ScriptedReply& reply, const std::string&) {
    reply.send("HTTP/1.1 200 OK\r\n\r\na picture");
  });
  EXPECT_EQ(get(until_close), "a picture");
}

TEST_F(FetchTest, WhoIsNotOnTheListIsNotAsked) {
  const ScriptedHost host(
      [](const ScriptedReply& reply, const std::string&) { reply.answer("200 OK", "a picture"); });
  FetchOptions other = options(host.port());
  const std::string names[] = {"example.org", fmt::format("*.pictures.test:{}", host.port()),
                               "pictures.test"};
  other.hosts = AllowedHosts(names);
  for (const char* name : {"pictures.test", "127.0.0.1"}) {
    expect_error(ErrorKind::kPermission,
                 fmt::format("pictures from {}:{} are not fetched here", name, host.port()),
                 [&] { get(other, host.url(name)); });
  }
  EXPECT_EQ(host.connections(), 0);
  EXPECT_EQ(TestNames::lookups("pictures.test"), 0);
}

TEST_F(FetchTest, AnAllowedNameMayNotLeadInside) {
  const ScriptedHost host(
      [](const ScriptedReply& reply, const std::string&) { reply.answer("200 OK", "a secret"); });
  FetchOptions strict = options(host.port());
  strict.allow_private = false;
  for (const char* address : {"127.0.0.1", "::1", "::ffff:127.0.0.1", "10.0.0.1", "169.254.169.254",
                              "0.0.0.0", "fd00:ec2::254"}) {
    TestNames::set("inside.test", {address});
    try {
      get(strict, host.url("inside.test"));
      FAIL() << address;
    } catch (const Error& error) {
      EXPECT_EQ(error.message(), "inside.test: its address is not of the public internet");
    }
  }
  TestNames::set("both.test", {"127.0.0.1", "10.0.0.1", "127.0.0.2"});
  for (const char* name : {"both.test", "127.0.0.1", "0x7f.1", "0177.1", "2130706433", "[::1]"}) {
    expect_error(ErrorKind::kPermission, "its address is not of the public internet",
                 [&] { get(strict, host.url(name)); });
  }
  EXPECT_EQ(host.connections(), 0);
  EXPECT_EQ(get(options(host.port()), host.url("0x7f.1")), "a secret") << "the forms do lead there";
}

TEST_F(FetchTest, ANameIsLookedUpOnce) {
  const ScriptedHost host(
      [](const ScriptedReply& reply, const std::string&) { reply.answer("200 OK", "a picture"); });
  EXPECT_EQ(get(options(host.port()), host.url("pictures.test")), "a picture");
  EXPECT_EQ(TestNames::lookups("pictures.test"), 1);
}

TEST_F(FetchTest, RedirectsAreNotFollowed) {
  const ScriptedHost target(
      [](const ScriptedReply& reply, const std::string&) { reply.answer("200 OK", "a picture"); });
  const std::string location = "Location: " + target.url() + "\r\n";
  for (const char* status :
       {"301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"}) {
    const ScriptedHost host([&](const ScriptedReply& reply, const std::string&) {
      reply.answer(status, "elsewhere", location);
    });
    expect_error(ErrorKind::kUnsupported, "127.0.0.1: expected a picture, got a redirect",
                 [&] { get(host); });
  }
  const ScriptedHost refreshing([&](const ScriptedReply& reply, const std::string&) {
    reply.answer("200 OK", "here", "Refresh: 0; url=" + target.url() + "\r\n" + location);
  });
  EXPECT_EQ(get(refreshing), "here");
  EXPECT_EQ(target.connections(), 0);
}

TEST_F(FetchTest, OtherStatusesAreSaidAndTheirBodiesAreNot) {
  const auto expect = [&](const char* status, ErrorKind kind, const std::string& words) {
    const ScriptedHost host(
        [&](const ScriptedReply& reply, const std::string&) { reply.answer(status, "a secret"); });
    try {
      get(host);
      ADD_FAILURE() << status;
    } catch (const Error& error) {
      EXPECT_EQ(error_kind_name(error.kind()), error_kind_name(kind)) << status;
      EXPECT_EQ(error.what(), "127.0.0.1: " + words);
    }
  };
  expect("404 Not Found", ErrorKind::kNotFound, "there is no such picture (status 404)");
  expect("410 Gone", ErrorKind::kNotFound, "there is no such picture (status 410)");
  expect("401 Unauthorized", ErrorKind::kIo, "expected a picture, got status 401");
  expect("500 Oops", ErrorKind::kIo, "expected a picture, got status 500");
  expect("206 Partial", ErrorKind::kIo, "expected a picture, got status 206");
}

TEST_F(FetchTest, WhoeverTakesTooLongIsLeft) {
  const ScriptedHost silent([](const ScriptedReply& reply, const std::string&) { reply.wait(); });
  const ScriptedHost slow([](const ScriptedReply& reply, const std::string&) {
    reply.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n");
    // A byte now and then keeps a limit on silence from seeing it.
    while (reply.send("a")) usleep(20'000);
  });
  for (const ScriptedHost* host : {&silent, &slow}) {
    FetchOptions hasty = options(host->port());
    hasty.time = std::chrono::milliseconds(300);
    expect_error(ErrorKind::kLimit, "127.0.0.1: the picture takes too long to come",
                 [&] { get(hasty, host->url()); });
    expect_error(ErrorKind::kLimit, "takes too long", [&] {
      fetch(hasty, host->url(), Clock::now() - std::chrono::seconds(1), nullptr, {});
    });
  }
}

TEST_F(FetchTest, ANameServerThatIsSilentIsLeft) {
  TestNames::set_silent("silent.test");
  FetchOptions hasty = options(80);
  const std::string names[] = {"silent.test"};
  hasty.hosts = AllowedHosts(names);
  hasty.time = std::chrono::milliseconds(300);
  expect_error(ErrorKind::kLimit, "silent.test: the picture takes too long to come",
               [&] { get(hasty, "http://silent.test/a.png"); });
}

TEST_F(FetchTest, WhatHasNoEndIsCut) {
  const std::string block(65536, 'a');
  const ScriptedHost endless([&](const ScriptedReply& reply, const std::string&) {
    reply.send("HTTP/1.1 200 OK\r\n\r\n");
    while (reply.send(block)) {
    }
  });
  expect_error(ErrorKind::kLimit, "too large", [&] { get(endless); });
  const ScriptedHost headers([&](const ScriptedReply& reply, const std::string&) {
    reply.send("HTTP/1.1 200 OK\r\n");
    while (reply.send("X-A: a\r\n")) {
    }
  });
  const ScriptedHost promises([&](const ScriptedReply& reply, const std::string&) {
    while (reply.send("HTTP/1.1 100 Continue\r\n\r\n")) {
    }
  });
  for (const ScriptedHost* host : {&headers, &promises}) {
    expect_error(ErrorKind::kIo, "127.0.0.1: the picture does not come", [&] { get(*host); });
  }
}

TEST_F(FetchTest, ALengthThatIsALieGivesNoMoreThanThereIs) {
  const auto with_length = [](std::string_view length) {
    return [length](const ScriptedReply& reply, const std::string&) {
      reply.send(fmt::format("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\na picture", length));
    };
  };
  const ScriptedHost more(with_length("20")), huge(with_length("1000000000000000")),
      less(with_length("1")), negative(with_length("-1")), none(with_length("many"));
  for (const ScriptedHost* host : {&more, &huge}) {
    expect_error(ErrorKind::kIo, "127.0.0.1: the picture ends before it is complete",
                 [&] { get(*host); });
  }
  EXPECT_EQ(get(less), "a");
  for (const ScriptedHost* host : {&negative, &none}) {
    expect_error(ErrorKind::kIo, "127.0.0.1: the picture does not come", [&] { get(*host); });
  }
}

TEST_F(FetchTest, WhatIsNoHttpIsSaidWithoutItsWords) {
  for (const char* words :
       {"SSH-2.0-a-secret\r\n", "", "HTTP/1.1", "HTTP/9.9 200 a secret\r\n\r\n"}) {
    const ScriptedHost host(
        [&](const ScriptedReply& reply, const std::string&) { reply.send(words); });
    try {
      get(host);
      ADD_FAILURE() << words;
    } catch (const Error& error) {
      EXPECT_EQ(error_kind_name(error.kind()), error_kind_name(ErrorKind::kIo)) << words;
      EXPECT_EQ(error.message(), "127.0.0.1: the picture does not come") << words;
    }
  }
}

TEST_F(FetchTest, WhoIsNotThereIsSaid) {
  uint16_t port;
  {
    port = ScriptedHost([](const ScriptedReply&, const std::string&) {}).port();
  }
  expect_error(ErrorKind::kIo, "127.0.0.1: the host does not answer",
               [&] { get(options(port), fmt::format("http://127.0.0.1:{}/", port)); });
  expect_error(ErrorKind::kNotFound, "nobody.test: there is no such host",
               [&] { get(options(port), fmt::format("http://nobody.test:{}/", port)); });
}

TEST_F(FetchTest, AProxyOfTheEnvironmentIsNotAsked) {
  const ScriptedHost proxy(
      [](const ScriptedReply& reply, const std::string&) { reply.answer("200 OK", "a lie"); });
  const ScriptedHost host(
      [](const ScriptedReply& reply, const std::string&) { reply.answer("200 OK", "a picture"); });
  for (const char* variable : {"http_proxy", "all_proxy", "ALL_PROXY"}) {
    setenv(variable, proxy.url().c_str(), 1);
  }
  EXPECT_EQ(get(host), "a picture");
  for (const char* variable : {"http_proxy", "all_proxy", "ALL_PROXY"}) unsetenv(variable);
  EXPECT_EQ(proxy.connections(), 0);
}

TEST_F(FetchTest, StopsWhenNobodyWantsItAnyMore) {
  std::atomic<bool> cancel{false};
  const ScriptedHost host([&](const ScriptedReply& reply, const std::string&) {
    cancel = true;
    reply.wait();
  });
  FetchOptions patient = options(host.port());
  patient.time = std::chrono::minutes(10);
  expect_error(ErrorKind::kCancelled, "stopped", [&] {
    fetch(patient, host.url(), Clock::now() + patient.time, &cancel,
          [](std::span<const std::byte>) {});
  });
}

TEST_F(FetchTest, OverTlsAHostMustBeWhoItSays) {
  const Certificate certificate("pictures.test");
  HttpOptions tls;
  tls.listeners = {{.certificate = certificate.certificate, .key = certificate.key}};
  HttpServer server(tls, [](HttpRequest, HttpReply reply) { reply.send(200, {}, "a picture"); });
  TestNames::set("other.test", {"127.0.0.1"});
  FetchOptions trusting = options(server.port());
  trusting.authorities = certificate.certificate;
  const auto url = [&](std::string_view host) {
    return fmt::format("https://{}:{}/a.png", host, server.port());
  };
  EXPECT_EQ(get(trusting, url("pictures.test")), "a picture");
  for (const char* host : {"other.test", "127.0.0.1"}) {
    expect_error(ErrorKind::kIo, "its certificate is not to be trusted, or another host's",
                 [&] { get(trusting, url(host)); });
  }
  // The system knows nothing of it.
  expect_error(ErrorKind::kIo, "pictures.test: its certificate is not to be trusted",
               [&] { get(options(server.port()), url("pictures.test")); });
}

}  // namespace
}  // namespace drover
