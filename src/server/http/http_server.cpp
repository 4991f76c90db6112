#include "server/http/http_server.h"

#include <algorithm>
#include <boost/asio/post.hpp>

#include "base/error.h"
#include "server/http/connection.h"
#include "server/http/listener.h"
#include "server/http/network.h"

namespace drover {
namespace {

void check(const HttpOptions& options) {
  if (options.threads < 1) {
    throw_error(ErrorKind::kUsage, "network threads: expected at least 1, got {}", options.threads);
  }
  if (options.listeners.empty()) throw Error(ErrorKind::kUsage, "there is nothing to listen on");
}

// Whatever a callback throws, the loop goes on; it ends when there is no work left.
void run(Network& network, NetworkThread& thread) noexcept {
  for (;;) {
    try {
      thread.context.run();
      return;
    } catch (...) {
      ++network.handler_errors;
    }
  }
}

}  // namespace

class HttpServer::Impl {
 public:
  Impl(HttpOptions options, HttpHandler handler)
      : network_(std::move(options), std::move(handler)) {
    check(network_.options);
    for (int i = 0; i < network_.options.threads; ++i) {
      threads_.push_back(std::make_unique<NetworkThread>());
    }
    for (const HttpListener& what : network_.options.listeners) {
      listeners_.push_back(std::make_unique<Listener>(what, network_, threads_));
    }
    for (const auto& listener : listeners_) listener->start();
    try {
      for (const auto& thread : threads_) {
        thread->thread = std::thread([this, &thread = *thread] { run(network_, thread); });
      }
    } catch (...) {
      stop();
      throw;
    }
  }

  ~Impl() { stop(); }

  bool drain(std::chrono::milliseconds patience) {
    const std::lock_guard lock(mutex_);
    if (!network_.draining.exchange(true) && !stopped_) {
      close_listeners();
      each_connection([](Connection& connection) { connection.drain(); });
    }
    return network_.wait_until_empty(patience);
  }

  void stop() {
    const std::lock_guard lock(mutex_);
    if (std::exchange(stopped_, true)) return;
    network_.draining = network_.stopping = true;
    close_listeners();
    each_connection([](Connection& connection) { connection.abort(); });
    for (const auto& thread : threads_) thread->work.reset();
    for (const auto& thread : threads_) {
      if (thread->thread.joinable()) thread->thread.join();
    }
  }

  const std::vector<std::unique_ptr<Listener>>& listeners() const { return listeners_; }
  const Network& network() const { return network_; }

 private:
  void close_listeners() {
    asio_post(*threads_.front(), [this] {
      for (const auto& listener : listeners_) listener->close();
    });
  }

  // Connections that are handed over later see the flags.
  void each_connection(void (*act)(Connection&)) {
    for (const auto& thread : threads_) {
      asio_post(*thread, [&connections = thread->connections, act] {
        for (Connection* connection : connections) act(*connection);
      });
    }
  }

  template <typename Task>
  static void asio_post(NetworkThread& thread, Task task) {
    boost::asio::post(thread.context, std::move(task));
  }

  // The order of destruction: listeners, then the contexts with whatever they still hold, then
  // what all of it refers to.
  Network network_;
  std::vector<std::unique_ptr<NetworkThread>> threads_;
  std::vector<std::unique_ptr<Listener>> listeners_;
  std::mutex mutex_;
  bool stopped_ = false;
};

HttpServer::HttpServer(HttpOptions options, HttpHandler handler)
    : impl_(std::make_unique<Impl>(std::move(options), std::move(handler))) {}

HttpServer::~HttpServer() = default;

std::vector<std::string> HttpServer::addresses() const {
  std::vector<std::string> addresses;
  for (const auto& listener : impl_->listeners()) addresses.push_back(listener->address());
  return addresses;
}

uint16_t HttpServer::port(size_t listener) const { return impl_->listeners().at(listener)->port(); }

bool HttpServer::drain(std::chrono::milliseconds patience) { return impl_->drain(patience); }

void HttpServer::stop() { impl_->stop(); }

HttpCounters HttpServer::counters() const { return impl_->network().counters(); }

}  // namespace drover
