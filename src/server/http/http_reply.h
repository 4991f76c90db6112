// The owner's end of one request: whoever holds it answers, from any thread and at any time, and
// no call ever waits for the client. Dropped without an answer it sends 500; dropped in a begun
// stream, it cuts the stream, so that the client can tell that the end is missing.
//
//   reply.send(200, {{"Content-Type", "application/json"}}, body);              // all at once, or
//   reply.begin(200, {{"Content-Type", "text/event-stream"}});                  // piece by piece
//   while (more && reply.write(piece)) ...
//   reply.end();
//
// All functions are thread-safe but moving and destroying. A reply may outlive its server: then it
// is closed(). Content-Length, Transfer-Encoding, Connection, Date, Server and X-Request-Id are the
// server's to write; they are dropped from `headers`, as are control characters from values.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "server/http/http_message.h"

namespace drover {

class Exchange;

class HttpReply {
 public:
  HttpReply() = default;  // answers nobody
  explicit HttpReply(std::shared_ptr<Exchange> exchange);
  HttpReply(HttpReply&&) noexcept = default;
  HttpReply& operator=(HttpReply&& other) noexcept;
  ~HttpReply();

  // The functions that answer return whether the client is still there, as far as is known.
  // Answering twice, or in pieces without begin(), is a bug: Error of kind kInternal.
  bool send(int status, HttpHeaders headers, std::string body);
  bool send(HttpAnswer answer) {
    return send(answer.status, std::move(answer.headers), std::move(answer.body));
  }
  bool begin(int status, HttpHeaders headers);
  // Taken whole, or the stream is cut: when what the client has not yet fetched would grow beyond
  // HttpLimits::unsent_bytes.
  bool write(std::string_view piece);
  bool end();

  // From now on, a stream that is silent for this long carries `piece` (a comment, say).
  void when_silent(std::chrono::milliseconds each, std::string piece);

  // The client left, was cut, or the server stopped, before end() or send().
  bool closed() const;
  // Called once when that happens, on a network thread (or right here when it already has): it
  // must be quick. Never called after end() or send().
  void on_closed(std::function<void()> callback);

  // Bytes that the client has not yet fetched from us; the system's own buffers not counted.
  size_t unsent_bytes() const;

 private:
  void drop() noexcept;

  std::shared_ptr<Exchange> exchange_;
};

}  // namespace drover
