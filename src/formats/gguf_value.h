// One metadata value of a GGUF file (spec section 9.1), viewed where it lies. A GgufValue owns
// nothing; it lives as long as the file's mapping and may be read by any number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/byte_reader.h"

namespace drover {

// The numbers are those of the format.
enum class GgufType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

// "u32", "string", "array", ...
std::string_view gguf_value_type_name(GgufType type);

class GgufValue {
 public:
  // The most arrays within arrays. The format sets no bound; nobody writes even two.
  static constexpr int kMaxDepth = 4;

  // Reads a value with its type in front and checks all of it, down to the last string of an array.
  // `key` is named in errors. Throws kBadData, or kLimit for arrays nested too deeply.
  static GgufValue read(ByteReader& reader, std::string_view key);

  GgufType type() const { return type_; }
  GgufType element_type() const { return element_type_; }  // of an array
  uint64_t count() const { return count_; }                // elements of an array
  // "u32", "string", "array of string".
  std::string type_name() const;
  // The value for people, at most about `limit` bytes: "48", "\"llama4\"", "200000 x string".
  std::string preview(size_t limit = 60) const;
  // Type and value as they stand in the file.
  std::span<const std::byte> encoded() const { return encoded_; }

  // Each gives nothing if the value has another type or does not fit. Integers of any width and
  // sign convert where the number fits; numbers convert to float, integers in arrays to bool (not
  // 0).
  std::optional<uint64_t> as_unsigned() const;
  std::optional<int64_t> as_signed() const;
  std::optional<double> as_float() const;
  std::optional<bool> as_bool() const;
  std::optional<std::string_view> as_string() const;
  // The same for arrays. Strings are views of the file. The result may take eight times the array's
  // bytes in the file; GgufFile's getters bound that.
  std::optional<std::vector<std::string_view>> as_string_array() const;
  std::optional<std::vector<int64_t>> as_signed_array() const;
  std::optional<std::vector<float>> as_float_array() const;
  std::optional<std::vector<bool>> as_bool_array() const;

 private:
  GgufValue(GgufType type, GgufType element_type, uint64_t count,
            std::span<const std::byte> encoded, size_t payload)
      : type_(type),
        element_type_(element_type),
        count_(count),
        encoded_(encoded),
        payload_(static_cast<uint32_t>(payload)) {}

  const std::byte* payload() const { return encoded_.data() + payload_; }

  GgufType type_;
  GgufType element_type_;
  uint64_t count_;
  std::span<const std::byte> encoded_;
  uint32_t payload_;  // where the bytes after the types and the count begin in encoded_
};

}  // namespace drover
