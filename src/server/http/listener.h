// A socket that is listened on, TCP or Unix, and the loop that takes connections from it.
// Internal to server/http.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "server/http/connection.h"
#include "server/http/network.h"

namespace drover {

class Listener {
 public:
  // Binds and listens; throws Error. Accepts on the first thread, hands connections to all in turn.
  Listener(const HttpListener& what, Network& network,
           const std::vector<std::unique_ptr<NetworkThread>>& threads);
  ~Listener();
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  void start();  // once
  void close();  // on the first thread, or when it is not running

  const std::string& address() const { return address_; }
  uint16_t port() const { return port_; }

 private:
  using Tcp = boost::asio::ip::tcp;
  using Local = boost::asio::local::stream_protocol;

  void listen_tcp(const HttpListener& what);
  void listen_unix(const std::string& path);
  template <typename Protocol>
  boost::asio::awaitable<void> accept(boost::asio::basic_socket_acceptor<Protocol>& acceptor);
  template <typename Protocol>
  void take(boost::asio::basic_stream_socket<Protocol> socket, NetworkThread& thread);

  Network& network_;
  const std::vector<std::unique_ptr<NetworkThread>>& threads_;
  std::unique_ptr<boost::asio::ssl::context> tls_;
  std::variant<Tcp::acceptor, Local::acceptor> acceptor_;
  boost::asio::steady_timer pause_;
  std::string address_, unix_path_;
  uint16_t port_ = 0;
  size_t next_thread_ = 0;
};

}  // namespace drover
