#include "base/file_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace drover {
namespace {

constexpr size_t kBufferBytes = size_t{1} << 20;

}  // namespace

FileWriter::FileWriter(const std::filesystem::path& path)
    : path_(path),
      partial_(path.string() + ".partial"),
      fd_(::open(partial_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666)) {
  if (fd_ < 0) throw_errno("create", partial_, errno);
}

FileWriter::~FileWriter() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(partial_.c_str());
}

void FileWriter::fail(std::string_view doing, int code) const {
  if (code == EACCES || code == EPERM) throw_errno(doing, partial_, code);
  throw Error(ErrorKind::kCannotWrite,
              fmt::format("{}: cannot {}: {}", printable(partial_, 300), doing, strerror(code)),
              code == ENOSPC || code == EDQUOT ? "free some space, or write to another disk" : "");
}

void FileWriter::write(std::span<const std::byte> bytes) {
  offset_ += bytes.size();
  if (buffer_.size() + bytes.size() <= kBufferBytes) {
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
    return;
  }
  flush();
  if (bytes.size() < kBufferBytes) {
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  } else {
    write_through(bytes);
  }
}

void FileWriter::write_through(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("write", errno);
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
}

void FileWriter::flush() {
  write_through(buffer_);
  buffer_.clear();
}

void FileWriter::pad(uint64_t alignment) {
  static constexpr std::byte kZeros[64] = {};
  while (offset_ % alignment != 0) {
    write(std::span(kZeros).first(
        std::min<uint64_t>(sizeof(kZeros), alignment - offset_ % alignment)));
  }
}

void FileWriter::commit() {
  flush();
  if (::fsync(fd_) != 0) fail("flush", errno);
  if (::rename(partial_.c_str(), path_.c_str()) != 0) fail("rename", errno);
  ::close(std::exchange(fd_, -1));
  // The name is durable once the folder is. Some file systems cannot flush folders; the file is
  // whole all the same.
  const std::filesystem::path folder = path_.has_parent_path() ? path_.parent_path() : ".";
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd >= 0) {
    ::fsync(fd);
    ::close(fd);
  }
}

void write_file(const std::filesystem::path& path, std::string_view bytes) {
  FileWriter file(path);
  file.write(bytes);
  file.commit();
}

}  // namespace drover
