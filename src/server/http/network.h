// What the connections of one server share: its options, its counters, its threads. Internal to
// server/http; the public page is http_server.h.
#pragma once

#include <array>
#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#include "server/http/http_server.h"

namespace drover {

class Connection;

class Network {
 public:
  Network(HttpOptions options, HttpHandler handler);

  const HttpOptions options;
  const HttpHandler handler;
  std::atomic<bool> draining{false}, stopping{false};

  std::atomic<uint64_t> accepted{0}, refused{0}, accept_errors{0}, requests_open{0};
  std::atomic<uint64_t> bytes_in{0}, bytes_out{0}, handler_errors{0};
  std::atomic<size_t> bodies_bytes{0};  // of requests that are being read

  // A seat for a connection from `address` (empty: a Unix socket), given back when it is destroyed.
  // Null when there is none; then `status` is what to refuse the connection with.
  std::shared_ptr<void> enter(const std::string& address, int& status);
  // A place to be told so; null when too many are there already.
  std::shared_ptr<void> enter_refused();
  // Whether everybody has left, after waiting for that.
  bool wait_until_empty(std::chrono::milliseconds patience);
  uint64_t open() const;

  void count_answer(int status) noexcept;
  HttpCounters counters() const;

  HttpAnswer refusal(int status, std::string_view message, const HttpRequest& request) noexcept;
  void log(const HttpAccess& access) noexcept;
  std::string new_id();

 private:
  void leave(const std::string& address) noexcept;

  const uint64_t id_seed_;
  std::atomic<uint64_t> ids_{0};
  std::array<std::atomic<uint64_t>, 600> answers_{};

  mutable std::mutex mutex_;
  std::condition_variable empty_;
  uint64_t open_ = 0, refused_open_ = 0;
  std::unordered_map<std::string, size_t> by_address_;
};

// One event loop with one thread, and the connections that live there; they are touched by that
// thread alone.
struct NetworkThread {
  boost::asio::io_context context{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work{
      context.get_executor()};
  std::unordered_set<Connection*> connections;
  std::thread thread;
};

}  // namespace drover
