// The one checked reader for little-endian formats. Every length is compared with the bytes that
// remain before it is used; running out is a kBadData Error that names the source and the offset.
// It views memory that it does not own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "base/error.h"

namespace drover {

class ByteReader {
 public:
  // `source` is named in errors, usually the file's path.
  ByteReader(std::span<const std::byte> bytes, std::string source)
      : bytes_(bytes), source_(std::move(source)) {}

  size_t offset() const { return offset_; }
  size_t remaining() const { return bytes_.size() - offset_; }
  const std::string& source() const { return source_; }

  // The next `n` bytes, viewed in place. `what` names them in the error.
  std::span<const std::byte> take(uint64_t n, std::string_view what) {
    if (n > remaining()) {
      throw_error(ErrorKind::kBadData, "{}: {} at byte {}: expected {} bytes, got {} (end of file)",
                  source_, what, offset_, n, remaining());
    }
    auto out = bytes_.subspan(offset_, static_cast<size_t>(n));
    offset_ += static_cast<size_t>(n);
    return out;
  }

  // The next scalar, whatever its alignment in the file.
  template <typename T>
  T scalar(std::string_view what) {
    static_assert(std::is_arithmetic_v<T>);
    T out;
    std::memcpy(&out, take(sizeof(T), what).data(), sizeof(T));
    return out;
  }

  // The next `n` bytes as text, viewed in place.
  std::string_view text(uint64_t n, std::string_view what) {
    auto bytes = take(n, what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

 private:
  std::span<const std::byte> bytes_;
  std::string source_;
  size_t offset_ = 0;
};

}  // namespace drover
