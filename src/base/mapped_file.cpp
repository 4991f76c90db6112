#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <utility>

#include "base/error.h"

namespace drover {
namespace {

// A file descriptor that closes itself.
struct Descriptor {
  int fd;
  explicit Descriptor(int value) : fd(value) {}
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
};

// A regular file opened for reading, and its size.
struct OpenFile {
  Descriptor descriptor;
  size_t size = 0;

  // O_NONBLOCK: a named pipe must not make us wait for its writer before it is refused.
  explicit OpenFile(const std::string& path)
      : descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    if (descriptor.fd < 0) throw_errno("open", path, errno);
    struct stat info {};
    if (::fstat(descriptor.fd, &info) != 0) throw_errno("stat", path, errno);
    if (!S_ISREG(info.st_mode)) {
      throw_error(ErrorKind::kUsage, "{}: expected a regular file, got a {}", printable(path, 300),
                  S_ISDIR(info.st_mode) ? "folder" : "device, pipe or socket");
    }
    size = static_cast<size_t>(info.st_size);
  }
};

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path.string()) {
  const OpenFile file(path_);
  size_ = file.size;
  if (size_ == 0) return;
  void* mapped = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.descriptor.fd, 0);
  if (mapped == MAP_FAILED) throw_errno("map", path_, errno);
  data_ = static_cast<const std::byte*>(mapped);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void MappedFile::will_need() const {
  if (data_ != nullptr) ::madvise(const_cast<std::byte*>(data_), size_, MADV_WILLNEED);
}

void MappedFile::will_need(std::span<const std::byte> bytes) {
  const uintptr_t page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(bytes.data());
  const uintptr_t first = begin / page * page;
  ::madvise(reinterpret_cast<void*>(first), begin + bytes.size() - first, MADV_WILLNEED);
}

void MappedFile::forget(std::span<const std::byte> bytes) {
  const uintptr_t page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(bytes.data());
  const uintptr_t first = (begin + page - 1) / page * page;
  const uintptr_t end = (begin + bytes.size()) / page * page;
  if (first < end) ::madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
}

std::string read_file(const std::filesystem::path& path, size_t limit) {
  const std::string name = path.string();
  const OpenFile file(name);
  if (file.size > limit) {
    throw_error(ErrorKind::kLimit, "{}: expected at most {} bytes, got {}", name, limit, file.size);
  }
  std::string out(file.size, '\0');
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t n = ::read(file.descriptor.fd, out.data() + done, out.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_errno("read", name, errno);
    if (n == 0) break;  // it shrank while we read: what is there is what there is
    done += static_cast<size_t>(n);
  }
  out.resize(done);
  return out;
}

}  // namespace drover
