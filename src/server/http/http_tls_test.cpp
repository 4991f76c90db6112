// TLS, with a certificate that is made here and a client on OpenSSL's own functions.
#include <gtest/gtest.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/time.h>

#include <memory>

#include "base/error.h"
#include "server/http/certificate_fixture.h"
#include "server/http/http_server.h"
#include "server/http/server_fixture.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

class TlsClient {
 public:
  explicit TlsClient(uint16_t port, int newest_version = 0, bool offer_http2 = false)
      : raw_(port), context_(SSL_CTX_new(TLS_client_method())) {
    // In place of the patience of RawClient.
    const timeval patience{5, 0};
    setsockopt(raw_.fd(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (newest_version != 0) {
      SSL_CTX_set_security_level(context_, 0);
      SSL_CTX_set_max_proto_version(context_, newest_version);
    }
    ssl_ = SSL_new(context_);
    static constexpr std::string_view kBoth = "\x02h2\x08http/1.1";
    if (offer_http2) {
      SSL_set_alpn_protos(ssl_, reinterpret_cast<const unsigned char*>(kBoth.data()), kBoth.size());
    }
    SSL_set_fd(ssl_, raw_.fd());
    connected_ = SSL_connect(ssl_) == 1;
    ERR_clear_error();
  }
  ~TlsClient() {
    SSL_free(ssl_);
    SSL_CTX_free(context_);
  }

  bool connected() const { return connected_; }
  SSL* ssl() { return ssl_; }
  bool send(std::string_view bytes) {
    return SSL_write(ssl_, bytes.data(), static_cast<int>(bytes.size())) > 0;
  }
  // Everything up to `mark`, or to the end.
  std::string read_until(std::string_view mark) {
    std::string text;
    char buffer[16384];
    while (text.find(mark) == std::string::npos) {
      const int got = SSL_read(ssl_, buffer, sizeof buffer);
      if (got <= 0) break;
      text.append(buffer, static_cast<size_t>(got));
    }
    return text;
  }
  // The server said that it closes, so that nobody else can have cut the answer.
  bool sees_close() {
    char byte;
    return SSL_read(ssl_, &byte, 1) <= 0 && (SSL_get_shutdown(ssl_) & SSL_RECEIVED_SHUTDOWN) != 0;
  }
  RawClient& raw() { return raw_; }

 private:
  RawClient raw_;
  SSL_CTX* context_;
  SSL* ssl_ = nullptr;
  bool connected_ = false;
};

class HttpTlsTest : public HttpTest {
 protected:
  void serve_tls(HttpLimits limits = {}) {
    HttpOptions options;
    options.limits = limits;
    options.listeners = {{.certificate = certificate_.certificate, .key = certificate_.key}};
    serve(options);
  }
  const Certificate certificate_;
};

TEST_F(HttpTlsTest, RequestsAndStreamsWorkAsInPlainText) {
  serve_tls();
  EXPECT_EQ(server_->addresses()[0], "https://127.0.0.1:" + std::to_string(server_->port()));
  TlsClient client(server_->port(), 0, /*offer_http2=*/true);
  ASSERT_TRUE(client.connected());
  const unsigned char* chosen = nullptr;
  unsigned bytes = 0;
  SSL_get0_alpn_selected(client.ssl(), &chosen, &bytes);
  EXPECT_EQ(std::string_view(reinterpret_cast<const char*>(chosen), bytes), "http/1.1");
  client.send(post("/", "secret"));
  EXPECT_TRUE(client.read_until("secret").ends_with("\r\n\r\nsecret"));
  EXPECT_TRUE(last().tls);
  client.send(post("/", std::string(200'000, 'x') + "end"));
  EXPECT_GT(client.read_until("end").size(), 200'000u);
  client.send(get("/hold"));
  HttpReply reply = taken();
  reply.begin(200, {});
  reply.write("one");
  EXPECT_NE(client.read_until("one").find("chunked"), std::string::npos);
  reply.end();
  client.read_until("0\r\n\r\n");
  client.send(get("/", "Connection: close\r\n"));
  client.read_until("\r\n\r\n/");
  EXPECT_TRUE(client.sees_close());
}

TEST_F(HttpTlsTest, AClientThatLeavesIsNoticed) {
  serve_tls();
  HttpReply reply;
  std::atomic<bool> told{false};
  {
    TlsClient client(server_->port());
    client.send(get("/hold"));
    reply = taken();
    reply.on_closed([&] { told = true; });
    client.raw().close();
  }
  EXPECT_TRUE(soon([&] { return told.load(); }));
}

TEST_F(HttpTlsTest, WhoSendsTooMuchStillGetsItsAnswer) {
  HttpLimits limits;
  limits.body_bytes = 1000;
  serve_tls(limits);
  TlsClient client(server_->port());
  client.send(post("/", std::string(100'000, 'x')));
  EXPECT_TRUE(client.read_until("too large\n").starts_with("HTTP/1.1 413 "));
}

TEST_F(HttpTlsTest, WhatIsNoTlsOrTooOldIsTurnedAway) {
  HttpLimits limits;
  limits.header_time = milliseconds(300);
  serve_tls(limits);
  RawClient plain = connect();
  plain.send(get("/"));
  EXPECT_EQ(plain.read_answer().status, 0);
  RawClient silent = connect();
  EXPECT_TRUE(silent.sees_close());
  EXPECT_FALSE(TlsClient(server_->port(), TLS1_1_VERSION).connected());
  TlsClient client(server_->port(), TLS1_2_VERSION);
  ASSERT_TRUE(client.connected());
  client.send(get("/two"));
  EXPECT_TRUE(client.read_until("/two").ends_with("/two"));
}

TEST_F(HttpTlsTest, FilesThatDoNotFitAreNamed) {
  const Certificate other;
  const testing::TempFolder folder;
  const std::string junk = folder.write("junk.pem", "no certificate");
  const auto kind_of = [](const std::string& certificate, const std::string& key) {
    HttpOptions options;
    options.listeners = {{.certificate = certificate, .key = key}};
    try {
      HttpServer(options, {});
    } catch (const Error& error) {
      return error.kind();
    }
    return ErrorKind::kInternal;
  };
  EXPECT_EQ(kind_of(certificate_.certificate, ""), ErrorKind::kUsage);
  EXPECT_EQ(kind_of(certificate_.certificate, other.key), ErrorKind::kUsage);
  EXPECT_EQ(kind_of(junk, other.key), ErrorKind::kBadData);
  EXPECT_EQ(kind_of(certificate_.certificate, junk), ErrorKind::kBadData);
  EXPECT_EQ(kind_of("/no/such/file", other.key), ErrorKind::kNotFound);
}

}  // namespace
}  // namespace drover
