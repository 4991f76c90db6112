// The HTTP floor of `drover serve`: sockets, TLS, framing, limits and manners of HTTP/1.1. It knows
// nothing of models or JSON: a handler gets each request and answers through an HttpReply, at once
// or from another thread, whole or as a stream.
//
//   HttpServer server({.listeners = {{.host = "127.0.0.1", .port = 8080}}},
//                     [](HttpRequest request, HttpReply reply) {
//                       reply.send(200, {{"Content-Type", "text/plain"}}, "hello\n");
//                     });
//   ...
//   server.drain(std::chrono::seconds(30));
//
// Every connection lives on one network thread; a handler runs there and must not wait. Requests of
// one connection are answered in order, the next is read when the former is answered. A client that
// closes its sending side counts as gone once what is already answered has been sent. All functions
// are thread-safe; drain(), stop() and the destructor must not be called from a network thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/http/http_message.h"
#include "server/http/http_reply.h"

namespace drover {

struct HttpListener {
  std::string host = "127.0.0.1";  // an address, or a name that has one
  uint16_t port = 0;               // 0: any free one; HttpServer::addresses() tells it
  // Where not empty, a Unix socket in place of host and port. The file is made for its owner alone
  // and removed at the end; one that a dead server left behind is replaced.
  std::string unix_path{};
  // PEM files; both or neither. With them the listener speaks TLS 1.2 and up, and nothing else.
  std::string certificate{}, key{};
};

struct HttpLimits {
  size_t header_bytes = 16 * 1024;            // request line and headers; beyond: 431
  size_t header_count = 100;                  // beyond: 431
  size_t url_bytes = 8 * 1024;                // beyond: 414
  size_t body_bytes = 64 * 1024 * 1024;       // as decoded; fits a dozen pictures; beyond: 413
  size_t all_bodies_bytes = size_t{1} << 30;  // of all requests being read; beyond: 503
  size_t unsent_bytes = 256 * 1024;           // of one stream; beyond: the stream is cut
  size_t connections = 4096;                  // beyond: 503
  size_t connections_per_address = 0;         // beyond: 429; 0: no such limit
  // Beyond these: 408 in a begun request, a close between two, a cut while writing.
  std::chrono::milliseconds header_time{
      10'000};  // from its first byte, or from the connection's start
  std::chrono::milliseconds body_time{60'000};   // from the end of the header
  std::chrono::milliseconds idle_time{75'000};   // between two requests
  std::chrono::milliseconds write_time{30'000};  // for each 64 KiB that the client should take
};

struct HttpAccess {
  std::string method, path, peer, id;  // empty where the request did not get so far
  int status = 0;                      // 0: cut before an answer
  uint64_t bytes = 0;                  // of the answer's body
  double seconds = 0;                  // from the end of the header to the last byte
  bool complete = false;               // false: cut before the last byte
};

struct HttpOptions {
  std::vector<HttpListener> listeners{HttpListener{}};
  HttpLimits limits;
  int threads = 1;
  // The hooks are called on network threads and must be quick.
  // Makes the answer to what this floor refuses by itself: the 4xx above, 400, 500 and 503. By
  // default the message as plain text. The status is sent as given to it, whatever it returns. Of
  // the request it gets what is known: always the id, the rest but the body if the head was good.
  std::function<HttpAnswer(int status, std::string_view message, const HttpRequest& request)>
      refuse;
  // Asked when the headers are there and before the body is read (`body` is empty): an answer
  // refuses the request and closes the connection. For keys: strangers need not send 64 MB.
  std::function<std::optional<HttpAnswer>(const HttpRequest&)> admit;
  // After the last byte of each answer.
  std::function<void(const HttpAccess&)> access_log;
};

struct HttpCounters {
  uint64_t connections_open = 0, connections_accepted = 0, connections_refused = 0;
  uint64_t accept_errors = 0;            // no descriptors left, say
  uint64_t requests_open = 0;            // with the handler, not yet answered to the last byte
  uint64_t bytes_in = 0, bytes_out = 0;  // inside of TLS
  uint64_t handler_errors = 0;           // exceptions from the handler and the hooks
  std::map<int, uint64_t> requests;      // by status; 0: cut before an answer
};

using HttpHandler = std::function<void(HttpRequest, HttpReply)>;

class HttpServer {
 public:
  // Listens, then starts its threads. Throws Error: kUsage for options that make no sense, kIo,
  // kPermission or kNotFound for what cannot be listened on or read.
  HttpServer(HttpOptions options, HttpHandler handler);
  ~HttpServer();  // as stop()
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  // One for each listener: "http://127.0.0.1:40213", "https://[::1]:443", "unix:/run/drover.sock".
  std::vector<std::string> addresses() const;
  uint16_t port(size_t listener = 0) const;  // 0 for a Unix socket

  // Stops accepting; idle connections close at once, others after the answer they wait for.
  // Waits up to `patience` until all are closed, and returns whether they are. May be called again:
  // between two calls the caller can tell its streams to end.
  bool drain(std::chrono::milliseconds patience);
  // Cuts what is left and joins the threads. Replies that are still held are closed from then on.
  void stop();

  HttpCounters counters() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace drover
