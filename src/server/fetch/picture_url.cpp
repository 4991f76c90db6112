#include "server/fetch/picture_url.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include "base/error.h"

namespace drover {
namespace {

constexpr const char* kForm = "http://HOST/... or https://HOST/...";

std::optional<std::string> part(CURLU* url, CURLUPart which, unsigned flags = 0) {
  char* text = nullptr;
  if (curl_url_get(url, which, &text, flags) != CURLUE_OK) return std::nullopt;
  std::string out(text);
  curl_free(text);
  return out;
}

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

// Letters, digits, '-' and '_' between single dots, or an IPv6 address, which the parser has read.
bool is_host(std::string_view host) {
  if (host.starts_with('[')) return true;
  const auto fits = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
  };
  return !host.empty() && host.size() <= 253 && std::all_of(host.begin(), host.end(), fits) &&
         !host.starts_with('.') && !host.ends_with('.') &&
         host.find("..") == std::string_view::npos;
}

}  // namespace

PictureUrl read_picture_url(std::string_view url) {
  if (url.size() > kMostUrlBytes || url.find('\0') != std::string_view::npos) {
    throw_error(ErrorKind::kUsage, "expected a URL of at most {} bytes, got {}", kMostUrlBytes,
                url.size());
  }
  PictureUrl out;
  out.parsed.reset(curl_url());
  DROVER_CHECK(out.parsed != nullptr);
  const CURLUcode code =
      curl_url_set(out.parsed.get(), CURLUPART_URL, std::string(url).c_str(), CURLU_DISALLOW_USER);
  if (code == CURLUE_USER_NOT_ALLOWED) {
    throw_error(ErrorKind::kUsage, "expected a URL without a user name or password");
  }
  const auto scheme = part(out.parsed.get(), CURLUPART_SCHEME);
  if (code != CURLUE_OK || (scheme != "http" && scheme != "https")) {
    // Of a URL only its beginning is repeated: the rest may be a secret.
    throw_error(ErrorKind::kUsage, "expected {}, got {}", kForm, printable(url.substr(0, 40)));
  }
  out.host = part(out.parsed.get(), CURLUPART_HOST).value_or("");
  std::transform(out.host.begin(), out.host.end(), out.host.begin(), lower);
  if (out.host.ends_with('.')) out.host.pop_back();
  if (!is_host(out.host) || part(out.parsed.get(), CURLUPART_ZONEID)) {
    throw Error(ErrorKind::kUsage,
                fmt::format("expected the name of a host, got {}", printable(out.host)),
                "names beyond ASCII are written in their xn-- form");
  }
  const std::string port = part(out.parsed.get(), CURLUPART_PORT, CURLU_DEFAULT_PORT).value_or("0");
  std::from_chars(port.data(), port.data() + port.size(), out.port);
  return out;
}

AllowedHosts::AllowedHosts(std::span<const std::string> hosts) {
  for (const std::string& host : hosts) {
    Entry entry{.host = {}, .below = host.starts_with("*."), .port = 0};
    try {
      const PictureUrl url = read_picture_url("http://" + (entry.below ? host.substr(2) : host));
      const auto is_empty = [&](CURLUPart which) { return !part(url.parsed.get(), which); };
      if (part(url.parsed.get(), CURLUPART_PATH) == "/" && !host.ends_with('/') &&
          is_empty(CURLUPART_QUERY) && is_empty(CURLUPART_FRAGMENT)) {
        entry.host = url.host;
      }
      if (!is_empty(CURLUPART_PORT)) entry.port = url.port;
    } catch (const Error&) {
    }
    if (entry.host.empty()) {
      throw_error(ErrorKind::kUsage,
                  "hosts of pictures: expected HOST, *.HOST or one of them with :PORT, got {}",
                  printable(host));
    }
    entries_.push_back(std::move(entry));
  }
}

bool AllowedHosts::has(const PictureUrl& url) const {
  return std::any_of(entries_.begin(), entries_.end(), [&](const Entry& entry) {
    if (entry.port == 0 ? url.port != 80 && url.port != 443 : url.port != entry.port) return false;
    if (!entry.below) return url.host == entry.host;
    return url.host.size() > entry.host.size() + 1 && url.host.ends_with(entry.host) &&
           url.host[url.host.size() - entry.host.size() - 1] == '.';
  });
}

}  // namespace drover
