// One connection: a coroutine that reads a request, hands it to the handler, sends the answer, and
// so on. It lives on one network thread, which alone touches it; answers reach it as a message to
// that thread. While an answer is awaited it keeps reading, so that it sees the client leave.
//
// Idle, it holds one small read buffer and the coroutine's frames; whatever a request needs is
// freed when the request is with its handler. Internal to server/http.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/http/exchange.h"
#include "server/http/network.h"
#include "server/http/request_head.h"

namespace drover {

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  using Socket = boost::asio::generic::stream_protocol::socket;

  // The socket must belong to the thread's context. `tls` is null for plain text. The seat, from
  // Network, is held as long as the connection lives. With a refusal, that is all the client gets.
  Connection(Network& network, NetworkThread& thread, Socket socket, boost::asio::ssl::context* tls,
             std::shared_ptr<void> seat, std::string peer, std::optional<Refusal> refusal);
  ~Connection();

  // These three on the thread.
  void start();
  void drain();  // closes when idle
  void abort();  // closes now

 private:
  using Clock = std::chrono::steady_clock;
  struct Gone {};  // thrown when nothing more can be read or written
  struct Incoming {
    RequestHead head;
    Clock::time_point start;             // when the head was whole
    std::optional<HttpAnswer> unwanted;  // what HttpOptions::admit said
  };
  class Answering;

  template <typename T>
  using Awaitable = boost::asio::awaitable<T>;

  Awaitable<void> run();
  Awaitable<void> shake_hands();
  Awaitable<bool> serve_one();
  Awaitable<void> read_request(Incoming& incoming);
  Awaitable<size_t> read_head_bytes();
  Awaitable<bool> answer(std::shared_ptr<Exchange> exchange, const HttpRequest& request);
  Awaitable<void> close_gently();

  // Waits for more bytes, or notify(). Throws Gone when there will be none. After the deadline
  // throws Refusal 408 with the message `late`, or Gone when it is null.
  Awaitable<void> more(Clock::time_point deadline, const char* late);
  Awaitable<void> write(std::string_view bytes);
  Awaitable<void> doze(Clock::time_point until);  // or until notify()
  void notify();
  void listen(size_t bytes);
  void on_read(const boost::system::error_code& error, size_t bytes) noexcept;
  void guard(std::chrono::milliseconds time);  // abort() then, unless the timer is cancelled
  std::shared_ptr<Exchange> make_exchange(const RequestHead& head);
  void charge_body(size_t bytes);

  const std::shared_ptr<void> seat_;
  Network& network_;
  NetworkThread& thread_;
  Socket socket_;
  std::unique_ptr<boost::asio::ssl::stream<Socket&>> tls_;
  boost::asio::steady_timer timer_;  // of doze() or of guard(), never of both
  const std::string peer_;
  std::optional<Refusal> refusal_;
  std::shared_ptr<Exchange> exchange_;  // being answered

  std::string in_;            // read and not yet used
  std::vector<char> buffer_;  // of the read that is under way
  size_t charged_ = 0;        // this request's part of Network::bodies_bytes
  bool reading_ = false, dozing_ = false;
  bool gone_ = false;  // the client closed its side, or we ours
  bool served_ = false;
};

}  // namespace drover
