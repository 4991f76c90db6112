// The words of HTTP that both sides use: a request as it was read and checked, an answer as it is
// to be sent. Plain data that owns its bytes; nothing here knows of sockets.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace drover {

// In the order of the message, names as they were written.
using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

// The first value under a name, case ignored; null when there is none.
const std::string* find_header(const HttpHeaders& headers, std::string_view name);

struct HttpRequest {
  std::string method;  // as sent: "GET"
  std::string target;  // as sent: "/v1/models/a%2Fb?x=1"
  std::string path;    // decoded, UTF-8 without control characters: "/v1/models/a/b"
  std::vector<std::pair<std::string, std::string>> query;  // decoded as `path`; '+' is a space
  HttpHeaders headers;
  std::string body;  // decoded from chunks; not from gzip and its like
  // The body's part of HttpLimits::all_bodies_bytes, taken as long as somebody holds this.
  std::shared_ptr<const void> body_place;
  std::string peer;  // "127.0.0.1:40312", "[::1]:40312" or "unix"
  std::string id;    // the client's X-Request-Id where it is fit to be logged, else a new one
  bool tls = false;

  const std::string* header(std::string_view name) const { return find_header(headers, name); }
  // The first value under a name of the query.
  const std::string* parameter(std::string_view name) const;
};

struct HttpAnswer {
  int status = 200;
  HttpHeaders headers;
  std::string body;
};

// "Not Found" for 404; never empty.
std::string_view reason_phrase(int status);

// %41 to A, and '+' to a space where asked. Nothing for a bad escape, and for a result that is not
// UTF-8 or has control characters: no path or name of ours has them, and logs should not.
std::optional<std::string> percent_decode(std::string_view text, bool plus_is_space);

// Fit for a log and a header: 1 to 128 bytes of visible ASCII.
bool is_request_id(std::string_view text);

}  // namespace drover
