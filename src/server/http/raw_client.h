// For tests: a client that sends exactly the bytes it is told, over TCP or a Unix socket, and reads
// answers with a limit on time. It shares no code with the server.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include <utility>

namespace drover {

struct RawAnswer {
  int status = 0;                              // 0: none came
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;
  bool whole = false;  // to the end that its headers promise
};

class RawClient {
 public:
  static constexpr std::chrono::milliseconds kPatience{5000};

  RawClient() = default;
  explicit RawClient(uint16_t port, int receive_buffer = 0) {
    fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (receive_buffer > 0) {
      setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    }
    connect_tcp(port);
  }
  explicit RawClient(const std::string& unix_path) {
    fd_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::copy(unix_path.begin(), unix_path.end(), address.sun_path);
    connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }
  RawClient(RawClient&& other) noexcept { *this = std::move(other); }
  RawClient& operator=(RawClient&& other) noexcept {
    std::swap(fd_, other.fd_);
    std::swap(connected_, other.connected_);
    std::swap(in_, other.in_);
    return *this;
  }
  ~RawClient() { close(); }

  bool connected() const { return connected_; }
  int fd() const { return fd_; }

  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      pollfd waits{fd_, POLLOUT, 0};
      if (poll(&waits, 1, static_cast<int>(kPatience.count())) <= 0) return false;
      const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent < 0) return false;
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }
  void finish() { shutdown(fd_, SHUT_WR); }
  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }
  // Closes with a reset, as a client that crashes.
  void reset() {
    const linger now{1, 0};
    setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close();
  }

  // One read; false at the end, after an error or in vain.
  bool fetch(std::chrono::milliseconds patience = kPatience) {
    pollfd waits{fd_, POLLIN, 0};
    if (poll(&waits, 1, static_cast<int>(patience.count())) <= 0) return false;
    char buffer[65536];
    const ssize_t got = recv(fd_, buffer, sizeof buffer, 0);
    if (got <= 0) {
      closed_ = true;
      return false;
    }
    in_.append(buffer, static_cast<size_t>(got));
    return true;
  }
  // Everything up to `mark`, or what came until the end.
  std::string read_until(std::string_view mark, std::chrono::milliseconds patience = kPatience) {
    size_t at;
    while ((at = in_.find(mark)) == std::string::npos) {
      if (!fetch(patience)) return std::exchange(in_, {});
    }
    return take(at + mark.size());
  }
  std::string read_bytes(size_t count) {
    while (in_.size() < count && fetch()) {
    }
    return take(std::min(count, in_.size()));
  }
  std::string read_all() {
    while (fetch()) {
    }
    return std::exchange(in_, {});
  }
  // Whether the server closes the connection in time, without another byte.
  bool sees_close(std::chrono::milliseconds patience = kPatience) {
    return !fetch(patience) && closed_;
  }

  RawAnswer read_answer(bool head_only = false) {
    RawAnswer answer;
    std::string head = read_until("\r\n\r\n");
    if (head.size() < 16 || !head.starts_with("HTTP/1.1 ") || !head.ends_with("\r\n\r\n")) {
      return answer;
    }
    answer.status = std::stoi(head.substr(9, 3));
    head.resize(head.size() - 2);
    for (size_t at = head.find("\r\n") + 2; at < head.size();) {
      const size_t end = head.find("\r\n", at), colon = head.find(": ", at);
      std::string name = head.substr(at, colon - at);
      std::transform(name.begin(), name.end(), name.begin(), ::tolower);
      answer.headers[name] = head.substr(colon + 2, end - colon - 2);
      at = end + 2;
    }
    if (head_only || answer.status == 204 || answer.status == 304 || answer.status < 200) {
      answer.whole = true;
    } else if (answer.headers.contains("transfer-encoding")) {
      read_chunks(answer);
    } else if (const auto length = answer.headers.find("content-length");
               length != answer.headers.end()) {
      const size_t bytes = std::stoull(length->second);
      answer.body = read_bytes(bytes);
      answer.whole = answer.body.size() == bytes;
    } else {
      answer.body = read_all();
      answer.whole = closed_;
    }
    return answer;
  }
  // One chunk of a stream; empty at its end.
  std::string read_chunk() {
    const std::string line = read_until("\r\n");
    if (line.empty()) return {};
    const size_t bytes = std::stoull(line, nullptr, 16);
    std::string chunk = read_bytes(bytes + 2);
    chunk.resize(std::min(chunk.size(), bytes));
    return chunk;
  }

 private:
  void connect_tcp(uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }
  std::string take(size_t count) {
    std::string taken = in_.substr(0, count);
    in_.erase(0, count);
    return taken;
  }
  void read_chunks(RawAnswer& answer) {
    for (;;) {
      const std::string line = read_until("\r\n");
      if (!line.ends_with("\r\n")) return;
      const size_t bytes = std::stoull(line, nullptr, 16);
      const std::string chunk = read_bytes(bytes + 2);
      if (chunk.size() < bytes + 2) {
        answer.body += chunk;
        return;
      }
      if (bytes == 0) break;
      answer.body.append(chunk, 0, bytes);
    }
    answer.whole = true;
  }

  int fd_ = -1;
  bool connected_ = false, closed_ = false;
  std::string in_;
};

}  // namespace drover
