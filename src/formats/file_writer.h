// Writes a large file piece by piece so that readers see the old one or the whole new one: into
// PATH.partial, then flushed and renamed. Without commit() the destructor removes what was written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/progress.h"
#include "formats/named_tensor.h"

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

// Writes the bytes of tensor number `index` as the producer gives them. A producer that gives more
// or fewer than `bytes` is a kInternal Error. `progress` hears of `done` + what is written of
// `total`.
void write_tensor_data(FileWriter& file, size_t index, const std::string& name, uint64_t bytes,
                       const TensorProducer& producer, const Progress& progress, uint64_t done,
                       uint64_t total);

}  // namespace drover
