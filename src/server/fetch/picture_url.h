// URLs of pictures, and the hosts that they may name.
//
// There is one parser: the one of libcurl, which also fetches. What was checked is what is asked.
#pragma once

#include <curl/curl.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace drover {

struct PictureUrl {
  std::unique_ptr<CURLU, void (*)(CURLU*)> parsed{nullptr, curl_url_cleanup};
  // In lower case, without a dot at its end. An IPv4 address in its usual form however it was
  // written, an IPv6 address in brackets.
  std::string host;
  uint16_t port = 0;
};

// Throws kUsage for what is no http or https URL, for one with a user name or an IPv6 zone, for a
// host beyond ASCII (its xn-- form is meant) and for more than kMostUrlBytes.
PictureUrl read_picture_url(std::string_view url);
inline constexpr size_t kMostUrlBytes = 8192;  // signed links of object stores take two thousand

// A list of hosts: "example.org" alone, or "*.example.org" for all names below it. Ports 80 and 443
// are meant unless one is named: "example.org:8080" is that port alone.
class AllowedHosts {
 public:
  AllowedHosts() = default;
  // Throws kUsage for what is none of these.
  explicit AllowedHosts(std::span<const std::string> hosts);

  bool empty() const { return entries_.empty(); }
  bool has(const PictureUrl& url) const;

 private:
  struct Entry {
    std::string host;
    bool below;     // names below it, not itself
    uint16_t port;  // 0: the usual ones
  };
  std::vector<Entry> entries_;
};

}  // namespace drover
