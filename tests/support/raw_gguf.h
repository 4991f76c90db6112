// GGUF bytes put together by hand, right or wrong, independent of Drover's writer. It remembers
// where the numbers stand that a reader must not trust.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

namespace drover::testing {

class RawGguf {
 public:
  struct Field {
    size_t offset;
    size_t width;
  };

  RawGguf(uint32_t version, uint64_t tensors, uint64_t keys) {
    bytes_ = "GGUF";
    number(version);
    number(tensors);
    number(keys);
  }

  template <typename T>
  RawGguf& number(T value) {
    fields_.push_back({bytes_.size(), sizeof(T)});
    return raw(std::string_view(reinterpret_cast<const char*>(&value), sizeof(T)));
  }
  RawGguf& text(std::string_view text) {
    number(uint64_t{text.size()});
    return raw(text);
  }
  RawGguf& raw(std::string_view bytes) {
    bytes_.append(bytes);
    return *this;
  }

  RawGguf& u32_key(std::string_view key, uint32_t value) {
    return text(key).number(uint32_t{4}).number(value);
  }
  RawGguf& text_key(std::string_view key, std::string_view value) {
    return text(key).number(uint32_t{8}).text(value);
  }
  RawGguf& array_key(std::string_view key, uint32_t element_type, uint64_t count) {
    return text(key).number(uint32_t{9}).number(element_type).number(count);
  }
  // Dimensions as the file has them, innermost first.
  RawGguf& tensor(std::string_view name, std::initializer_list<uint64_t> dims, uint32_t type,
                  uint64_t offset) {
    text(name).number(static_cast<uint32_t>(dims.size()));
    for (const uint64_t dim : dims) number(dim);
    return number(type).number(offset);
  }
  // The data section: `bytes` bytes, from the next multiple of `alignment` on.
  RawGguf& data(size_t bytes, size_t alignment = 32) {
    header_bytes_ = bytes_.size();
    bytes_.resize((bytes_.size() + alignment - 1) / alignment * alignment + bytes);
    return *this;
  }

  const std::string& bytes() const { return bytes_; }
  const std::vector<Field>& fields() const { return fields_; }
  // Where the tables end; set by data().
  size_t header_bytes() const { return header_bytes_; }

 private:
  std::string bytes_;
  std::vector<Field> fields_;
  size_t header_bytes_ = 0;
};

}  // namespace drover::testing
