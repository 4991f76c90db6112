#include "server/fetch/picture_url.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "tests/support/expect_error.h"

namespace drover {
namespace {

using testing::expect_error;

AllowedHosts hosts(std::vector<std::string> list) { return AllowedHosts(list); }

TEST(PictureUrl, AHostHasOneSpellingHoweverItIsWritten) {
  const auto host = [](std::string_view url) { return read_picture_url(url).host; };
  EXPECT_EQ(host("http://Pictures.EXAMPLE.org/a.png?b#c"), "pictures.example.org");
  EXPECT_EQ(host("HTTPS://example.org./a.png"), "example.org");
  EXPECT_EQ(host("http://ex%61mple.org/"), "example.org");
  EXPECT_EQ(host("http://xn--bcher-kva.example/"), "xn--bcher-kva.example");
  for (const char* url : {"http://127.0.0.1/", "http://127.1/", "http://2130706433/",
                          "http://0x7f.1/", "http://0x7f000001/", "http://0177.0.0.1/",
                          "http://0177.0x0.00.1/", "http://127.0.0.1./"}) {
    EXPECT_EQ(host(url), "127.0.0.1") << url;
  }
  EXPECT_EQ(host("http://[::1]/"), "[::1]");
  EXPECT_EQ(host("http://[0:0:0::1]/"), "[::1]");
  EXPECT_EQ(host("http://[::FFFF:127.0.0.1]/"), "[::ffff:127.0.0.1]");
}

TEST(PictureUrl, ThePortIsTheSchemesUnlessNamed) {
  EXPECT_EQ(read_picture_url("http://a/").port, 80);
  EXPECT_EQ(read_picture_url("https://a/").port, 443);
  EXPECT_EQ(read_picture_url("https://a:8443/").port, 8443);
  EXPECT_EQ(read_picture_url("https://a:/").port, 443);
}

TEST(PictureUrl, WhatCouldMeanTwoThingsIsRefused) {
  for (const char* url : {"http://user@a/", "http://user:word@a/", "http://@a/", "http://a\\@b/",
                          "http://a:80@b/", "http://a%40c@b/"}) {
    expect_error(ErrorKind::kUsage, "user name", [&] { read_picture_url(url); });
  }
  for (const char* url : {"",
                          "a",
                          "/a.png",
                          "//a/b.png",
                          "ftp://a/",
                          "file:///etc/passwd",
                          "gopher://a/",
                          "unix:///run/x",
                          "javascript:0",
                          "dict://a/",
                          "http://",
                          "http://a b/",
                          "http://a\r\nb/",
                          "http://a:99999/",
                          "http://a:-1/",
                          "http://a:8o/",
                          "http://[::1",
                          "http://[::1]x/",
                          "http://[1.2.3.4]/",
                          "http://*.a/",
                          "ht\ttp://a/"}) {
    expect_error(ErrorKind::kUsage, "expected", [&] { read_picture_url(url); });
  }
  for (const char* url : {"http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/",
                          "http://b\xc3\xbc"
                          "cher.example/",
                          "http://\xe2\x91\xa0.2.3.4/",
                          "http://127\xe3\x80\x82"
                          "0.0.1/",
                          "http://a..b/", "http://.a/", "http://a%00b/", "http://a%2fb/"}) {
    expect_error(ErrorKind::kUsage, "expected", [&] { read_picture_url(url); });
  }
  expect_error(ErrorKind::kUsage, "8192",
               [] { read_picture_url("http://a/" + std::string(kMostUrlBytes, 'a')); });
  expect_error(ErrorKind::kUsage, "",
               [] { read_picture_url(std::string_view("http://a/\0b", 11)); });
}

TEST(PictureUrl, OfAUrlThatIsRefusedTheSecretIsNotRepeated) {
  try {
    read_picture_url("ftp://host/path-of-more-than-forty-bytes/picture.png?key=secret");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()).find("secret"), std::string::npos);
  }
}

TEST(AllowedHosts, HasNamesAloneOrAllBelowThem) {
  const AllowedHosts list =
      hosts({"example.org", "*.Pictures.example.com", "xn--bcher-kva.example"});
  const auto has = [&](std::string_view url) { return list.has(read_picture_url(url)); };
  EXPECT_TRUE(has("https://example.org/a.png"));
  EXPECT_TRUE(has("http://EXAMPLE.org./a.png"));
  EXPECT_TRUE(has("https://a.pictures.example.com/"));
  EXPECT_TRUE(has("https://b.a.pictures.EXAMPLE.com/"));
  EXPECT_TRUE(has("https://xn--bcher-kva.example/"));
  for (const char* url :
       {"https://www.example.org/", "https://example.org.evil.com/", "https://evilexample.org/",
        "https://pictures.example.com/", "https://evilpictures.example.com/",
        "https://.pictures.example.com/", "https://example.com/", "https://org/"}) {
    const auto allowed = [&] {
      try {
        return has(url);
      } catch (const Error&) {
        return false;
      }
    };
    EXPECT_FALSE(allowed()) << url;
  }
  EXPECT_FALSE(AllowedHosts().has(read_picture_url("http://example.org/")));
  EXPECT_TRUE(AllowedHosts().empty());
}

TEST(AllowedHosts, PortsAreTheUsualOnesUnlessNamed) {
  const AllowedHosts list = hosts({"a", "b:8080", "*.c:8443", "[::1]:81", "127.0.0.1"});
  const auto has = [&](std::string_view url) { return list.has(read_picture_url(url)); };
  EXPECT_TRUE(has("http://a/"));
  EXPECT_TRUE(has("https://a:80/"));
  EXPECT_FALSE(has("http://a:8080/"));
  EXPECT_FALSE(has("http://a:22/"));
  EXPECT_TRUE(has("http://b:8080/"));
  EXPECT_FALSE(has("http://b/"));
  EXPECT_TRUE(has("https://x.c:8443/"));
  EXPECT_FALSE(has("https://x.c/"));
  EXPECT_TRUE(has("http://[0::1]:81/"));
  EXPECT_TRUE(has("http://0x7f.1/"));
  EXPECT_FALSE(has("http://a:0/"));
}

TEST(AllowedHosts, WhatIsNoHostIsRefused) {
  for (const char* entry : {"", "*", "*.", "*.*", "a*.b", "*.*.b", "http://a", "a/", "a/b", "a?b",
                            "a#b", "u@a", "a b", "a:x", "a:99999", "[::1", ".a", "a..b"}) {
    expect_error(ErrorKind::kUsage, "hosts of pictures", [&] { hosts({entry}); });
  }
}

}  // namespace
}  // namespace drover
