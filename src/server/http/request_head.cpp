#include "server/http/request_head.h"

#include <algorithm>
#include <array>
#include <boost/beast/core/string.hpp>
#include <iterator>

namespace drover {
namespace {

namespace http = boost::beast::http;

// The request line has a method and a version beside the URL.
constexpr size_t kAroundUrl = 64;
constexpr size_t kMethodBytes = 32;

// Headers of which a second one could be read in place of the first by somebody else.
constexpr std::array kSingle = {http::field::host,          http::field::content_length,
                                http::field::content_type,  http::field::transfer_encoding,
                                http::field::authorization, http::field::expect};

[[noreturn]] void refuse(int status, std::string message) {
  throw Refusal{status, std::move(message)};
}

std::string text(boost::beast::string_view view) { return {view.data(), view.size()}; }

void parse_query(std::string_view query, HttpRequest& request) {
  while (!query.empty()) {
    const std::string_view pair = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(query.size(), pair.size() + 1));
    if (pair.empty()) continue;
    const size_t equals = std::min(pair.find('='), pair.size());
    auto name = percent_decode(pair.substr(0, equals), /*plus_is_space=*/true);
    auto value = percent_decode(pair.substr(std::min(equals + 1, pair.size())), true);
    if (!name || !value) refuse(400, "the query of the URL has a bad percent escape");
    request.query.emplace_back(std::move(*name), std::move(*value));
  }
}

void parse_target(const HttpLimits& limits, HttpRequest& request) {
  const std::string_view target = request.target;
  if (target.size() > limits.url_bytes) refuse(414, "the URL is too long");
  // Neither "http://host/path" nor "*" nor "host:port": this is no proxy, and a path that says
  // something else than the Host header is how one is fooled.
  if (!target.starts_with('/')) refuse(400, "the URL must be a path that starts with /");
  if (target.find('#') != std::string_view::npos) refuse(400, "the URL must not have a fragment");
  const size_t mark = std::min(target.find('?'), target.size());
  auto path = percent_decode(target.substr(0, mark), /*plus_is_space=*/false);
  if (!path) refuse(400, "the URL has a bad percent escape");
  request.path = std::move(*path);
  if (mark < target.size()) parse_query(target.substr(mark + 1), request);
}

}  // namespace

size_t HeadScanner::scan(std::string_view bytes) {
  for (; at_ < bytes.size(); ++at_) {
    const auto byte = static_cast<unsigned char>(bytes[at_]);
    const bool after_return = at_ > line_start_ && bytes[at_ - 1] == '\r';
    if (at_ >= limits_->header_bytes) refuse(431, "the headers are too long");
    if (after_return != (byte == '\n')) refuse(400, "a line must end with CR LF");
    if (byte == '\n') {
      const bool empty = at_ - line_start_ == 1;
      line_start_ = at_ + 1;
      if (empty) return ++at_;
      if (++lines_ > limits_->header_count + 1) refuse(431, "there are too many headers");
      continue;
    }
    if (byte == '\r') continue;
    if ((byte < 0x20 && byte != '\t') || byte == 0x7f) {
      refuse(400, "the request has a control character");
    }
    if (lines_ == 0) {
      if (byte == '\t' || byte >= 0x80) refuse(400, "the request line is malformed");
      if (at_ - line_start_ >= limits_->url_bytes + kAroundUrl) refuse(414, "the URL is too long");
    } else if (at_ == line_start_ && (byte == ' ' || byte == '\t')) {
      refuse(400, "a header must not be folded over lines");
    }
  }
  return 0;
}

RequestHead check_head(const http::request_header<>& header, bool keep_alive,
                       const HttpLimits& limits) {
  RequestHead head;
  head.keep_alive = keep_alive;
  head.http_1_0 = header.version() == 10;
  HttpRequest& request = head.request;
  request.method = text(header.method_string());
  request.target = text(header.target());
  if (request.method.size() > kMethodBytes) refuse(400, "the method is too long");
  request.headers.reserve(static_cast<size_t>(std::distance(header.begin(), header.end())));
  for (const auto& field : header) {
    request.headers.emplace_back(text(field.name_string()), text(field.value()));
  }
  for (const http::field name : kSingle) {
    if (header.count(name) > 1) refuse(400, text(http::to_string(name)) + " is there twice");
  }
  if (!head.http_1_0 && header.count(http::field::host) == 0) refuse(400, "Host is missing");
  if (const auto encoding = header.find(http::field::transfer_encoding); encoding != header.end()) {
    if (header.count(http::field::content_length) > 0) {
      refuse(400, "Content-Length and Transfer-Encoding exclude each other");
    }
    if (head.http_1_0) refuse(400, "HTTP/1.0 has no Transfer-Encoding");
    if (!boost::beast::iequals(encoding->value(), "chunked")) {
      refuse(501, "the only Transfer-Encoding here is chunked");
    }
  }
  if (const auto length = header.find(http::field::content_length); length != header.end()) {
    const auto value = length->value();
    const auto digit = [](char c) { return c >= '0' && c <= '9'; };
    if (value.empty() || !std::all_of(value.begin(), value.end(), digit)) {
      refuse(400, "Content-Length is not a number");
    }
  }
  if (const auto expect = header.find(http::field::expect); expect != header.end()) {
    if (!boost::beast::iequals(expect->value(), "100-continue")) {
      refuse(417, "the only expectation that can be met is 100-continue");
    }
    head.expects_continue = !head.http_1_0;
  }
  const auto id = header.find("X-Request-Id");
  if (id != header.end() && header.count("X-Request-Id") == 1 && is_request_id(text(id->value()))) {
    request.id = text(id->value());
  }
  parse_target(limits, request);
  return head;
}

}  // namespace drover
