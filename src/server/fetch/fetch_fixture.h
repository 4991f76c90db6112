// For tests: a host that says what a script tells it to, and names that only these tests know.
#pragma once

#include <dlfcn.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "server/fetch/fetch.h"

namespace drover::testing {

// One connection of a ScriptedHost.
class ScriptedReply {
 public:
  explicit ScriptedReply(int fd) : fd_(fd) {}
  // False when the other side has left.
  bool send(std::string_view bytes) const {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }
  // A whole answer.
  void answer(std::string_view status, std::string_view body, std::string_view headers = "") const {
    send("HTTP/1.1 " + std::string(status) + "\r\nContent-Length: " + std::to_string(body.size()) +
         "\r\n" + std::string(headers) + "\r\n" + std::string(body));
  }
  // Until the other side leaves, or the host ends.
  void wait() const {
    char byte;
    while (recv(fd_, &byte, 1, 0) > 0) {
    }
  }
  std::string read_head() const {
    std::string head;
    char byte;
    while (!head.ends_with("\r\n\r\n") && recv(fd_, &byte, 1, 0) == 1) head += byte;
    return head;
  }

 private:
  int fd_;
};

// Listens on 127.0.0.1; each connection has a thread that reads a request's head and runs the
// script with it.
class ScriptedHost {
 public:
  using Script = std::function<void(const ScriptedReply& reply, const std::string& head)>;

  explicit ScriptedHost(Script script) : script_(std::move(script)) {
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof address);
    listen(listener_, 64);
    socklen_t size = sizeof address;
    getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    acceptor_ = std::thread([this] { accept_all(); });
  }
  ~ScriptedHost() {
    shutdown(listener_, SHUT_RDWR);
    acceptor_.join();
    close(listener_);
    for (const int fd : connections_) shutdown(fd, SHUT_RDWR);
    for (std::thread& thread : threads_) thread.join();
    for (const int fd : connections_) close(fd);
  }

  uint16_t port() const { return port_; }
  std::string url(std::string_view host = "127.0.0.1", std::string_view path = "/a.png") const {
    return "http://" + std::string(host) + ":" + std::to_string(port_) + std::string(path);
  }
  int connections() const { return accepted_; }

 private:
  void accept_all() {
    for (int fd; (fd = accept(listener_, nullptr, nullptr)) >= 0;) {
      ++accepted_;
      connections_.push_back(fd);
      threads_.emplace_back([this, fd] {
        const ScriptedReply reply(fd);
        script_(reply, reply.read_head());
        shutdown(fd, SHUT_RDWR);
      });
    }
  }

  const Script script_;
  int listener_ = -1;
  uint16_t port_ = 0;
  std::atomic<int> accepted_{0};
  std::vector<int> connections_;      // the acceptor's, until it has ended
  std::vector<std::thread> threads_;  // likewise
  std::thread acceptor_;
};

// The addresses of names that end in ".test", for whoever in this program looks them up.
class TestNames {
 public:
  static void set(const std::string& name, std::vector<std::string> addresses) {
    const std::lock_guard lock(mutex());
    entries()[name] = {std::move(addresses), 0, false};
  }
  // A name whose look-up never ends while the test runs.
  static void set_silent(const std::string& name) {
    const std::lock_guard lock(mutex());
    entries()[name] = {{}, 0, true};
  }
  static int lookups(const std::string& name) {
    const std::lock_guard lock(mutex());
    return entries()[name].lookups;
  }
  // In lower case and without a dot at the end; empty if it does not end in ".test".
  static std::string spelled_as_ours(const char* name) {
    std::string out = name == nullptr ? "" : name;
    std::transform(out.begin(), out.end(), out.begin(), ::tolower);
    if (out.ends_with('.')) out.pop_back();
    return out.ends_with(".test") ? out : "";
  }
  // As getaddrinfo(); each address by the real one.
  static int look_up(const std::string& name, const char* service, const addrinfo* hints,
                     addrinfo** out, decltype(&getaddrinfo) real) {
    Entry entry;
    {
      const std::lock_guard lock(mutex());
      const auto found = entries().find(name);
      if (found == entries().end()) return EAI_NONAME;
      ++found->second.lookups;
      entry = found->second;
    }
    if (entry.silent) sleep(600);
    addrinfo** end = out;
    *out = nullptr;
    for (const std::string& address : entry.addresses) {
      if (real(address.c_str(), service, hints, end) != 0) continue;
      while (*end != nullptr) end = &(*end)->ai_next;
    }
    return *out == nullptr ? EAI_NONAME : 0;
  }

 private:
  struct Entry {
    std::vector<std::string> addresses;
    int lookups = 0;
    bool silent = false;
  };
  // Never destroyed: a look-up may outlive the test.
  static std::mutex& mutex() {
    static auto* mutex = new std::mutex;
    return *mutex;
  }
  static std::map<std::string, Entry>& entries() {
    static auto* entries = new std::map<std::string, Entry>;
    return *entries;
  }
};

}  // namespace drover::testing
