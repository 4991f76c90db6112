// Internal to context_file: a file descriptor that closes itself.
#pragma once

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "base/error.h"

namespace drover {

class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() { close(); }
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }

  int get() const { return fd_; }
  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }

 private:
  int fd_ = -1;
};

// The size of a regular file; kUsage for anything else.
inline uint64_t require_regular(const Descriptor& file, const std::string& path) {
  struct stat info {};
  if (::fstat(file.get(), &info) != 0) throw_errno("stat", path, errno);
  if (!S_ISREG(info.st_mode)) {
    throw_error(ErrorKind::kUsage, "{}: expected a regular file, got a {}", printable(path, 300),
                S_ISDIR(info.st_mode) ? "folder" : "device, pipe or socket");
  }
  return static_cast<uint64_t>(info.st_size);
}

}  // namespace drover
