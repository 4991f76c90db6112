// Writes a file piece by piece so that readers see the old one or the whole new one: into
// PATH.partial, then flushed and renamed. Without commit() the destructor removes what was written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace drover {

class FileWriter {
 public:
  // Creates PATH.partial. Throws kNotFound (no such folder), kPermission or kCannotWrite.
  explicit FileWriter(const std::filesystem::path& path);
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;

  // Appends. Throws kCannotWrite, for one when the disk is full.
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
  // Appends zeros up to a multiple of `alignment`.
  void pad(uint64_t alignment);

  // Bytes written so far.
  uint64_t offset() const { return offset_; }

  // Makes the file durable under its name. Nothing may be written afterwards.
  void commit();

 private:
  void write_through(std::span<const std::byte> bytes);
  void flush();
  [[noreturn]] void fail(std::string_view doing, int code) const;

  std::filesystem::path path_;
  std::string partial_;
  int fd_;
  uint64_t offset_ = 0;
  std::vector<std::byte> buffer_;  // small pieces are gathered
};

// Writes a whole file the same way.
void write_file(const std::filesystem::path& path, std::string_view bytes);

}  // namespace drover
