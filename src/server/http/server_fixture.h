// For tests: a server with a handler that answers what most of them need, and its log.
#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>

#include "server/http/http_server.h"
#include "server/http/raw_client.h"

namespace drover {

using std::chrono::milliseconds;
using TestClock = std::chrono::steady_clock;

inline milliseconds since(TestClock::time_point start) {
  return std::chrono::duration_cast<milliseconds>(TestClock::now() - start);
}

// Whether it becomes true within the patience of a test.
template <typename Condition>
bool soon(Condition condition, milliseconds patience = milliseconds(5000)) {
  const auto start = TestClock::now();
  while (!condition()) {
    if (since(start) > patience) return false;
    std::this_thread::sleep_for(milliseconds(1));
  }
  return true;
}

inline std::string get(const std::string& path, const std::string& more = {}) {
  return "GET " + path + " HTTP/1.1\r\nHost: t\r\n" + more + "\r\n";
}
inline std::string post(const std::string& path, const std::string& body,
                        const std::string& more = {}) {
  return "POST " + path + " HTTP/1.1\r\nHost: t\r\nContent-Length: " + std::to_string(body.size()) +
         "\r\n" + more + "\r\n" + body;
}

class HttpTest : public ::testing::Test {
 protected:
  // "/hold" keeps the request for taken(); everything else is answered at once with its body, or
  // with its path where it has none.
  void serve(HttpOptions options = {}) {
    options.access_log = [this](const HttpAccess& access) {
      const std::lock_guard lock(mutex_);
      log_.push_back(access);
    };
    server_.emplace(std::move(options), [this](HttpRequest request, HttpReply reply) {
      const bool hold = request.path == "/hold";
      const std::lock_guard lock(mutex_);
      last_ = request;
      last_.body_place.reset();  // what is only looked at takes no place
      if (hold) {
        held_.push_back(std::move(reply));
        arrived_.notify_all();
      } else {
        reply.send(200, {{"Content-Type", "text/plain"}},
                   request.body.empty() ? request.path : request.body);
      }
    });
  }

  // The next reply of those that are held.
  HttpReply taken() {
    std::unique_lock lock(mutex_);
    if (!arrived_.wait_for(lock, RawClient::kPatience, [&] { return !held_.empty(); })) {
      ADD_FAILURE() << "no request arrived";
      return {};
    }
    HttpReply reply = std::move(held_.front());
    held_.erase(held_.begin());
    return reply;
  }
  HttpRequest last() {
    const std::lock_guard lock(mutex_);
    return last_;
  }
  std::vector<HttpAccess> log() {
    const std::lock_guard lock(mutex_);
    return log_;
  }
  RawClient connect(int receive_buffer = 0) { return RawClient(server_->port(), receive_buffer); }
  RawAnswer ask(std::string_view bytes) {
    RawClient client = connect();
    client.send(bytes);
    return client.read_answer();
  }
  void expect_alive() {
    const RawAnswer answer = ask(get("/alive"));
    EXPECT_EQ(answer.status, 200);
    EXPECT_EQ(answer.body, "/alive");
  }

  std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<HttpReply> held_;
  HttpRequest last_;
  std::vector<HttpAccess> log_;
  std::optional<HttpServer> server_;  // last: its threads use what is above
};

}  // namespace drover
