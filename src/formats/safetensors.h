// Reads safetensors (spec section 10): one file, or a set of shards with its index; and writes one
// file. A file is checked whole and then used where it lies: the objects own the mappings and the
// names, and the tensors are views of them. Immutable after open(), so any number of threads may
// read them.
//
// A bad file costs at most its own size and 64 MB, and time linear in its size.
#pragma once

#include <cstdint>
#include <deque>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/mapped_file.h"
#include "base/progress.h"
#include "formats/named_tensor.h"

namespace drover {

// The free text that a file may carry, usually {"format": "pt"}.
using SafetensorsMetadata = std::map<std::string, std::string, std::less<>>;

class SafetensorsFile {
 public:
  static constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
  // Bounds that no model comes near, so that a hostile header costs little.
  static constexpr size_t kMaxTensors = size_t{1} << 18;
  static constexpr size_t kMaxMetadata = size_t{1} << 16;
  static constexpr size_t kMaxRank = 8;
  static constexpr size_t kMaxNameBytes = size_t{1} << 16;
  static constexpr size_t kMaxMetadataBytes = size_t{16} << 20;  // of one text

  // Throws kNotFound, kBadData, kUnsupported (an element type that Drover does not have) or kLimit.
  static SafetensorsFile open(const std::filesystem::path& path);

  // In order of their place in the file.
  std::span<const NamedTensor> tensors() const { return tensors_; }
  const NamedTensor* find(std::string_view name) const;  // null if there is none
  const SafetensorsMetadata& metadata() const { return metadata_; }
  const std::string& path() const { return file_.path(); }
  uint64_t file_bytes() const { return file_.bytes().size(); }

 private:
  explicit SafetensorsFile(const std::filesystem::path& path) : file_(path) {}

  MappedFile file_;
  std::deque<std::string>
      names_;  // what the tensors' names view: a deque does not move its elements
  std::vector<NamedTensor> tensors_;
  std::vector<uint32_t> by_name_;
  SafetensorsMetadata metadata_;
};

class SafetensorsSet {
 public:
  // No files and no tensors.
  SafetensorsSet() = default;

  // Opens a .safetensors file, a model.safetensors.index.json with its shards, or a folder that has
  // either (model.safetensors goes first, as in other programs). Of a sharded set the tensors are
  // those that the index lists. The index may name only files of its own folder. Throws as
  // SafetensorsFile::open does.
  static SafetensorsSet open(const std::filesystem::path& path);

  // Of a sharded set in order of their names.
  std::span<const NamedTensor> tensors() const { return tensors_; }
  const NamedTensor* find(std::string_view name) const;  // null if there is none
  // The file's; of a sharded set the first shard's.
  const SafetensorsMetadata& metadata() const;
  std::span<const SafetensorsFile> files() const { return files_; }
  uint64_t file_bytes() const;  // of all files

 private:
  static SafetensorsSet open_index(const std::filesystem::path& path);

  std::vector<SafetensorsFile> files_;
  std::vector<NamedTensor> tensors_;
  std::vector<uint32_t> by_name_;
};

// Writes a file as the reference writer does, byte for byte where the metadata has at most one key:
// tensors in order of element type (the wide ones first), then of name, back to back, the data
// section 8-aligned. The producer is asked for them in that order, by their position in `tensors`.
// Progress is in bytes of tensor data. Throws kUnsupported for block types, which the format does
// not have, kInternal for a name given twice, and what the producer or progress throws; nothing is
// left on disk then.
void write_safetensors(const std::filesystem::path& path, std::span<const TensorSpec> tensors,
                       const SafetensorsMetadata& metadata, const TensorProducer& producer,
                       const Progress& progress = {});

}  // namespace drover
