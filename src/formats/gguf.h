// Reads GGUF files (spec section 9): metadata and tensors of a model in one file or a split set.
// The file is checked whole and then used where it lies: a GgufFile owns the mappings, and every
// string and tensor it gives out is a view of them. Immutable after open(), so any number of
// threads may read it.
//
// A bad file costs at most its own size and 64 MB, and time linear in its size.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/mapped_file.h"
#include "formats/gguf_value.h"
#include "formats/named_tensor.h"

namespace drover {

// One key of the metadata and its value.
struct GgufEntry {
  std::string_view key;
  GgufValue value;
};

class GgufFile {
 public:
  // Bounds that no model comes near, so that a hostile count costs little.
  static constexpr uint64_t kMaxKeys = uint64_t{1} << 18;
  static constexpr uint64_t kMaxTensors = uint64_t{1} << 18;
  static constexpr uint64_t kMaxKeyBytes = 65535;
  static constexpr uint64_t kMaxTensorNameBytes = 127;
  // The most elements of an array that a getter unpacks. Tokenizers have half a million strings;
  // views of this many take 64 MB.
  static constexpr uint64_t kMaxElements = uint64_t{1} << 22;
  static constexpr uint64_t kMaxAlignment = uint64_t{1} << 30;

  // Opens a file, or the whole set when `path` is any part of one (NAME-0000i-of-0000N.gguf).
  // Throws kNotFound (also for a missing part), kBadData, kUnsupported (version, byte order, tensor
  // type) or kLimit.
  static GgufFile open(const std::filesystem::path& path);

  // The tensors in file order, those of a split set part after part.
  std::span<const NamedTensor> tensors() const { return tensors_; }
  // The tensor of that name, or null.
  const NamedTensor* find_tensor(std::string_view name) const;

  // The metadata in file order; of a split set, the first part's.
  std::span<const GgufEntry> metadata() const { return entries_; }
  // The value of a key, or null.
  const GgufValue* find(std::string_view key) const;
  bool has(std::string_view key) const { return find(key) != nullptr; }

  // Nothing if the key is absent; kBadData with key, expected and found type if the value is not of
  // this kind or does not fit; kLimit for an array of more than kMaxElements. What converts to
  // what: see GgufValue.
  std::optional<uint64_t> unsigned_value(std::string_view key) const;
  std::optional<int64_t> signed_value(std::string_view key) const;
  std::optional<double> float_value(std::string_view key) const;
  std::optional<bool> bool_value(std::string_view key) const;
  std::optional<std::string_view> string_value(std::string_view key) const;
  std::optional<std::vector<std::string_view>> string_array(std::string_view key) const;
  std::optional<std::vector<int64_t>> signed_array(std::string_view key) const;
  std::optional<std::vector<float>> float_array(std::string_view key) const;
  std::optional<std::vector<bool>> bool_array(std::string_view key) const;

  // The same, and kBadData if the key is absent.
  uint64_t required_unsigned(std::string_view key) const;
  int64_t required_signed(std::string_view key) const;
  double required_float(std::string_view key) const;
  bool required_bool(std::string_view key) const;
  std::string_view required_string(std::string_view key) const;
  std::vector<std::string_view> required_string_array(std::string_view key) const;
  std::vector<int64_t> required_signed_array(std::string_view key) const;
  std::vector<float> required_float_array(std::string_view key) const;
  std::vector<bool> required_bool_array(std::string_view key) const;

  // The path of the file, of a split set its first part.
  const std::string& path() const { return files_.front().path(); }
  // The mapped files, one unless the model is split.
  std::span<const MappedFile> files() const { return files_; }
  // Bytes of all parts.
  uint64_t file_bytes() const;
  uint32_t version() const { return version_; }

 private:
  GgufFile() = default;

  // The value read by `as`, with the errors of the getters above; `expected` names what is wanted.
  template <typename T>
  std::optional<T> get(std::string_view key, std::string_view expected,
                       std::optional<T> (GgufValue::*as)() const) const;
  template <typename T>
  T require(std::string_view key, std::optional<T> value) const;

  std::vector<MappedFile> files_;
  uint32_t version_ = 0;
  std::vector<GgufEntry> entries_;
  std::vector<uint32_t> entries_by_key_;  // positions in entries_, in order of their keys
  std::vector<NamedTensor> tensors_;
  std::vector<uint32_t> tensors_by_name_;
};

}  // namespace drover
