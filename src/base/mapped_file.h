// A file mapped read-only into memory. The object owns the mapping; spans of it live as long as it
// does. Pages are shared between processes and read from disk when first touched.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>

namespace drover {

class MappedFile {
 public:
  // Maps the whole file. An empty file gives an empty span. Throws kNotFound, kPermission or kIo; a
  // folder or a device is refused.
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

  // Asks the system to read ahead; a hint that may be ignored.
  void will_need() const;
  // The same for `bytes`, which should be part of some mapped file.
  static void will_need(std::span<const std::byte> bytes);
  // Gives back the memory of the pages that lie wholly in `bytes`, which must be part of some
  // mapped file; touched again, they are read again. Other memory would lose what is in it.
  static void forget(std::span<const std::byte> bytes);

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// The whole file as a string; refuses files over `limit` bytes with kLimit.
std::string read_file(const std::filesystem::path& path, size_t limit);

}  // namespace drover
