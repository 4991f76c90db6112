#include "server/fetch/public_address.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/un.h>

#include <cstring>
#include <string>

namespace drover {
namespace {

bool is_public(const std::string& text) {
  if (text.find(':') == std::string::npos) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    EXPECT_EQ(inet_pton(AF_INET, text.c_str(), &address.sin_addr), 1) << text;
    return is_public_address(reinterpret_cast<const sockaddr&>(address));
  }
  sockaddr_in6 address{};
  address.sin6_family = AF_INET6;
  EXPECT_EQ(inet_pton(AF_INET6, text.c_str(), &address.sin6_addr), 1) << text;
  return is_public_address(reinterpret_cast<const sockaddr&>(address));
}

TEST(PublicAddress, EveryRangeOfIpv4EndsWhereItsRfcSays) {
  // Each range with its neighbours, which are ordinary unless another range follows.
  const struct {
    const char *before, *first, *last, *after;
  } ranges[] = {
      {nullptr, "0.0.0.0", "0.255.255.255", "1.0.0.0"},
      {"9.255.255.255", "10.0.0.0", "10.255.255.255", "11.0.0.0"},
      {"100.63.255.255", "100.64.0.0", "100.127.255.255", "100.128.0.0"},
      {"126.255.255.255", "127.0.0.0", "127.255.255.255", "128.0.0.0"},
      {"169.253.255.255", "169.254.0.0", "169.254.255.255", "169.255.0.0"},
      {"172.15.255.255", "172.16.0.0", "172.31.255.255", "172.32.0.0"},
      {"191.255.255.255", "192.0.0.0", "192.0.0.255", "192.0.1.0"},
      {"192.0.1.255", "192.0.2.0", "192.0.2.255", "192.0.3.0"},
      {"192.88.98.255", "192.88.99.0", "192.88.99.255", "192.88.100.0"},
      {"192.167.255.255", "192.168.0.0", "192.168.255.255", "192.169.0.0"},
      {"198.17.255.255", "198.18.0.0", "198.19.255.255", "198.20.0.0"},
      {"198.51.99.255", "198.51.100.0", "198.51.100.255", "198.51.101.0"},
      {"203.0.112.255", "203.0.113.0", "203.0.113.255", "203.0.114.0"},
      {"223.255.255.255", "224.0.0.0", "255.255.255.255", nullptr},
  };
  for (const auto& range : ranges) {
    EXPECT_FALSE(is_public(range.first)) << range.first;
    EXPECT_FALSE(is_public(range.last)) << range.last;
    if (range.before != nullptr) {
      EXPECT_TRUE(is_public(range.before)) << range.before;
    }
    if (range.after != nullptr) {
      EXPECT_TRUE(is_public(range.after)) << range.after;
    }
  }
  for (const char* address : {"127.0.0.1", "169.254.169.254", "192.168.1.1", "100.100.100.200",
                              "239.255.255.250", "240.0.0.1", "255.255.255.255"}) {
    EXPECT_FALSE(is_public(address)) << address;
  }
}

TEST(PublicAddress, EveryRangeOfIpv6EndsWhereItsRfcSays) {
  for (const char* address : {"::",
                              "::1",
                              "::127.0.0.1",
                              "::8.8.8.8",
                              "::ffff:8.8.8.8",
                              "::ffff:127.0.0.1",
                              "::ffff:0:127.0.0.1",
                              "64:ff9b:1::",
                              "64:ff9b:1:ffff:ffff:ffff:ffff:ffff",
                              "100::",
                              "100:0:0:1::1",
                              "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
                              "2001::",
                              "2001:0:53aa:64c::1",
                              "2001:2::1",
                              "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff",
                              "2001:db8::",
                              "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
                              "2002::",
                              "2002:7f00:1::1",
                              "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
                              "3fff::",
                              "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff",
                              "4000::",
                              "5f00::1",
                              "fc00::",
                              "fd00:ec2::254",
                              "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
                              "fe80::1",
                              "fec0::1",
                              "ff02::1",
                              "ffff::"}) {
    EXPECT_FALSE(is_public(address)) << address;
  }
  for (const char* address :
       {"2000::", "2001:200::", "2001:4860:4860::8888", "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff",
        "2001:db9::", "2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2003::", "2606:4700::1111",
        "2a00:1450::1", "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "3fff:1000::", "3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}) {
    EXPECT_TRUE(is_public(address)) << address;
  }
}

TEST(PublicAddress, ATranslatedAddressIsJudgedByTheOneInside) {
  EXPECT_TRUE(is_public("64:ff9b::8.8.8.8"));
  for (const char* address : {"64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254",
                              "64:ff9b::1:808:808", "64:ff9b:0:0:1::808:808"}) {
    EXPECT_FALSE(is_public(address)) << address;
  }
}

TEST(PublicAddress, NothingElseIsPublic) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  EXPECT_FALSE(is_public_address(reinterpret_cast<const sockaddr&>(address)));
}

}  // namespace
}  // namespace drover
