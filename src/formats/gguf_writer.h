// Writes GGUF files, version 3 (spec section 9.1). First say the metadata and the tensors, then
// write(): the tables go out at once and the data tensor after tensor as the producer gives it, so
// memory is bounded by the producer's pieces.
#pragma once

#include <concepts>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/progress.h"
#include "formats/gguf.h"
#include "formats/named_tensor.h"

namespace drover {

// The types that GGUF has a number for.
template <typename T>
concept GgufScalar = std::same_as<T, uint8_t> || std::same_as<T, int8_t> ||
    std::same_as<T, uint16_t> || std::same_as<T, int16_t> || std::same_as<T, uint32_t> ||
    std::same_as<T, int32_t> || std::same_as<T, uint64_t> || std::same_as<T, int64_t> ||
    std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, bool>;

template <GgufScalar T>
constexpr GgufType gguf_type_of() {
  if constexpr (std::same_as<T, uint8_t>) return GgufType::kU8;
  if constexpr (std::same_as<T, int8_t>) return GgufType::kI8;
  if constexpr (std::same_as<T, uint16_t>) return GgufType::kU16;
  if constexpr (std::same_as<T, int16_t>) return GgufType::kI16;
  if constexpr (std::same_as<T, uint32_t>) return GgufType::kU32;
  if constexpr (std::same_as<T, int32_t>) return GgufType::kI32;
  if constexpr (std::same_as<T, uint64_t>) return GgufType::kU64;
  if constexpr (std::same_as<T, int64_t>) return GgufType::kI64;
  if constexpr (std::same_as<T, float>) return GgufType::kF32;
  if constexpr (std::same_as<T, double>) return GgufType::kF64;
  if constexpr (std::same_as<T, bool>) return GgufType::kBool;
}

class GgufWriter {
 public:
  static constexpr uint64_t kAlignment = 32;   // the format's default
  static constexpr size_t kMaxNameBytes = 63;  // what every reader of the format takes

  // Sets a key to a value of exactly this C++ type: set("x", 5) writes an i32, set("x", 5u) a u32.
  // A key that is set again keeps its place and takes the new value. Other programs expect
  // general.architecture first. Throws kLimit for an empty or endless key and kInternal for
  // general.alignment, which follows from kAlignment.
  template <GgufScalar T>
  void set(std::string_view key, T value);
  void set(std::string_view key, std::string_view value);
  void set(std::string_view key, const char* value) { set(key, std::string_view(value)); }
  template <GgufScalar T>
  void set(std::string_view key, const std::vector<T>& values);
  void set(std::string_view key, const std::vector<std::string>& values);
  void set(std::string_view key, const std::vector<std::string_view>& values);
  // Sets a key to a value of another file, unchanged.
  void set(std::string_view key, const GgufValue& value);

  // Copies the metadata of a file for which `keep` is true or not given, except what describes the
  // file itself (general.alignment, split.*).
  void copy_metadata(const GgufFile& from,
                     const std::function<bool(std::string_view key)>& keep = {});

  void remove(std::string_view key);

  // Adds a tensor; the shape is row-major, outermost first. Throws kLimit for a name over
  // kMaxNameBytes or more than 4 dimensions, which the format does not have, and kInternal for a
  // name given twice or a shape that the type cannot have.
  void add_tensor(std::string name, DType type, std::vector<int64_t> shape);
  const std::vector<TensorSpec>& tensors() const { return tensors_; }

  // Writes the file: the old one, or the whole new one, is what others see. The producer is asked
  // for the tensors in the order in which they were added. Progress is in bytes of tensor data.
  // Throws kCannotWrite and the like, and what the producer or progress throws; nothing is left on
  // disk then.
  void write(const std::filesystem::path& path, const TensorProducer& producer,
             const Progress& progress = {}) const;

 private:
  struct Key {
    std::string key;
    std::string encoded;  // type and value as they stand in the file
  };

  void set_encoded(std::string_view key, std::string encoded);

  std::vector<Key> keys_;
  std::map<std::string, size_t, std::less<>> key_positions_;
  std::vector<TensorSpec> tensors_;
  std::map<std::string, size_t, std::less<>> tensor_positions_;
};

// --- Bodies of the templates --------------------------------------------------------------------

namespace gguf_internal {

template <typename T>
void append(std::string& out, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.append(bytes, sizeof(T));
}

inline void append_array_head(std::string& out, GgufType element, size_t count) {
  append(out, GgufType::kArray);
  append(out, element);
  append(out, static_cast<uint64_t>(count));
}

}  // namespace gguf_internal

template <GgufScalar T>
void GgufWriter::set(std::string_view key, T value) {
  std::string encoded;
  gguf_internal::append(encoded, gguf_type_of<T>());
  gguf_internal::append(encoded, value);
  set_encoded(key, std::move(encoded));
}

template <GgufScalar T>
void GgufWriter::set(std::string_view key, const std::vector<T>& values) {
  std::string encoded;
  gguf_internal::append_array_head(encoded, gguf_type_of<T>(), values.size());
  for (const T value : values) gguf_internal::append(encoded, value);
  set_encoded(key, std::move(encoded));
}

}  // namespace drover
