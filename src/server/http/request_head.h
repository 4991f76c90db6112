// What this server accepts as the head of a request. Stricter than Beast's parser, which reads the
// same bytes afterwards: whatever two parsers could understand differently (a bare line feed, a
// folded line, two lengths) is refused here, so that nothing can be smuggled past a proxy in front.
// Internal to server/http.
#pragma once

#include <boost/beast/http/fields.hpp>
#include <boost/beast/http/message.hpp>
#include <cstddef>
#include <string>
#include <string_view>

#include "server/http/http_server.h"

namespace drover {

// Thrown where a request cannot be accepted; the connection answers and closes.
struct Refusal {
  int status;
  std::string message;
};

// Follows the bytes of a head as they come, each once, so that bad ones are refused at once and not
// when a header that never ends runs out of time.
class HeadScanner {
 public:
  explicit HeadScanner(const HttpLimits& limits) : limits_(&limits) {}

  // `bytes` starts where the request starts, and is what the last call saw with more behind it.
  // Returns the head's length, its empty line included, once it is whole; else 0. Throws Refusal.
  size_t scan(std::string_view bytes);

 private:
  const HttpLimits* limits_;
  size_t at_ = 0, line_start_ = 0, lines_ = 0;
};

// What follows from the headers of a request.
struct RequestHead {
  HttpRequest request;  // but body, peer, tls; `id` is empty when the client's is missing or unfit
  bool keep_alive = false;
  bool http_1_0 = false;
  bool expects_continue = false;
};

// Throws Refusal.
RequestHead check_head(const boost::beast::http::request_header<>& header, bool keep_alive,
                       const HttpLimits& limits);

}  // namespace drover
