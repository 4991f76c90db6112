#include "server/fetch/public_address.h"

#include <netinet/in.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>

namespace drover {
namespace {

struct Range4 {
  uint32_t first;
  int bits;
};

// As IANA's registry of special-purpose addresses has them (RFC 6890); those of no owner too.
constexpr Range4 kSpecial4[] = {
    {0x00000000, 8},   // 0.0.0.0/8        this network; RFC 791
    {0x0a000000, 8},   // 10.0.0.0/8       private; RFC 1918
    {0x64400000, 10},  // 100.64.0.0/10    shared by a provider's customers (CGNAT); RFC 6598
    {0x7f000000, 8},   // 127.0.0.0/8      loopback; RFC 1122
    {0xa9fe0000, 16},  // 169.254.0.0/16   link-local, the cloud's metadata among it; RFC 3927
    {0xac100000, 12},  // 172.16.0.0/12    private; RFC 1918
    {0xc0000000, 24},  // 192.0.0.0/24     protocol assignments; RFC 6890
    {0xc0000200, 24},  // 192.0.2.0/24     documentation; RFC 5737
    {0xc0586300, 24},  // 192.88.99.0/24   relays of 6to4, given up; RFC 7526
    {0xc0a80000, 16},  // 192.168.0.0/16   private; RFC 1918
    {0xc6120000, 15},  // 198.18.0.0/15    measuring; RFC 2544
    {0xc6336400, 24},  // 198.51.100.0/24  documentation; RFC 5737
    {0xcb007100, 24},  // 203.0.113.0/24   documentation; RFC 5737
    {0xe0000000, 4},   // 224.0.0.0/4      multicast; RFC 5771
    {0xf0000000, 4},   // 240.0.0.0/4      reserved, broadcast among it; RFC 1112, RFC 919
};

struct Range6 {
  uint64_t first;  // the upper half of the address
  int bits;
};

// Nothing outside of 2000::/3 is given to anybody on the internet (RFC 4291): not ::/128 and ::1,
// IPv4 inside of IPv6 (::/96, ::ffff:0:0/96), 64:ff9b:1::/48 (RFC 8215), discards (100::/64, RFC
// 6666), segment routing (5f00::/16, RFC 9602), unique-local (fc00::/7, RFC 4193), link-local and
// site-local (fe80::/10, RFC 4291; fec0::/10, RFC 3879), multicast (ff00::/8, RFC 4291). So only
// what is special inside of it stands here.
constexpr Range6 kGlobal6{0x2000'0000'0000'0000, 3};
constexpr Range6 kSpecial6[] = {
    {0x2001'0000'0000'0000, 23},  // 2001::/23      protocols, Teredo among them; RFC 2928, RFC 4380
    {0x2001'0db8'0000'0000, 32},  // 2001:db8::/32  documentation; RFC 3849
    {0x2002'0000'0000'0000, 16},  // 2002::/16      6to4: an IPv4 address inside; RFC 3056
    {0x3fff'0000'0000'0000, 20},  // 3fff::/20      documentation; RFC 9637
};

bool is_in(uint32_t address, Range4 range) {
  return ((address ^ range.first) >> (32 - range.bits)) == 0;
}
bool is_in(uint64_t upper, Range6 range) {
  return ((upper ^ range.first) >> (64 - range.bits)) == 0;
}

template <typename T>
T big_endian(const uint8_t* bytes) {
  T out = 0;
  for (size_t i = 0; i < sizeof(T); ++i) out = static_cast<T>(out << 8 | bytes[i]);
  return out;
}

bool is_public4(uint32_t address) {
  return std::none_of(std::begin(kSpecial4), std::end(kSpecial4),
                      [&](Range4 range) { return is_in(address, range); });
}

bool is_public6(const uint8_t* bytes) {
  const auto upper = big_endian<uint64_t>(bytes);
  // 64:ff9b::/96, how networks of IPv6 alone reach the IPv4 address in its last bytes; RFC 6052.
  if (upper == 0x0064'ff9b'0000'0000 && big_endian<uint32_t>(bytes + 8) == 0) {
    return is_public4(big_endian<uint32_t>(bytes + 12));
  }
  return is_in(upper, kGlobal6) && std::none_of(std::begin(kSpecial6), std::end(kSpecial6),
                                                [&](Range6 range) { return is_in(upper, range); });
}

}  // namespace

bool is_public_address(const sockaddr& address) {
  if (address.sa_family == AF_INET) {
    sockaddr_in in{};
    std::memcpy(&in, &address, sizeof in);
    return is_public4(ntohl(in.sin_addr.s_addr));
  }
  if (address.sa_family == AF_INET6) {
    sockaddr_in6 in{};
    std::memcpy(&in, &address, sizeof in);
    return is_public6(in.sin6_addr.s6_addr);
  }
  return false;
}

}  // namespace drover
