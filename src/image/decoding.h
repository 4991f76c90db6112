// What the decoders of the formats have in common. For src/image alone.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "image/decode.h"
#include "image/image.h"

namespace drover {

// What can be wrong with a picture. The libraries are C and are left by longjmp: what they find
// travels as a Fault to code that may throw. Each has one sentence, in decode.cpp.
enum class Fault {
  kNone,
  kDamaged,
  kTruncated,
  kTooManyScans,
  kTooSlow,
  kTooMuchMemory,
  kUnsupported,  // a valid file of a kind that the library does not decode
};

// One call of decode_image.
class Decoding {
 public:
  Decoding(std::span<const std::byte> bytes, const std::string& source, const ImageLimits& limits)
      : bytes(bytes), source(source), limits(limits), start_(std::chrono::steady_clock::now()) {}

  bool too_slow() const {
    return std::chrono::steady_clock::now() - start_ >
           std::chrono::duration<double>(limits.seconds);
  }
  // Throws kLimit if a picture of this size is too large, kBadData if it has no pixels. To be
  // called before memory is taken for it.
  void check_size(int64_t width, int64_t height) const;
  // Does nothing for kNone. `format` is "JPEG", "PNG" or "WebP".
  void throw_if(Fault fault, std::string_view format) const;

  const std::span<const std::byte> bytes;
  const std::string& source;
  const ImageLimits& limits;

 private:
  std::chrono::steady_clock::time_point start_;
};

Image decode_jpeg(const Decoding& decoding);
Image decode_png(const Decoding& decoding);
Image decode_webp(const Decoding& decoding);

// The block of EXIF in a file of each kind; empty if there is none. Only walks over the file's
// segments and copies nothing; a damaged file ends the walk.
std::span<const std::byte> find_jpeg_exif(std::span<const std::byte> file);
std::span<const std::byte> find_png_exif(std::span<const std::byte> file);
std::span<const std::byte> find_webp_exif(std::span<const std::byte> file);

// An image whose pixels are still to be written.
Image blank_image(int64_t width, int64_t height);

// rgba: [width, 4] put on white into rgb: [width, 3], rounded as Pillow's paste with a mask does.
void put_on_white(const uint8_t* rgba, int64_t width, uint8_t* rgb);

// A piece of `bytes`, or none if it does not lie inside.
inline std::optional<std::span<const std::byte>> piece(std::span<const std::byte> bytes,
                                                       uint64_t offset, uint64_t size) {
  if (offset > bytes.size() || size > bytes.size() - offset) return std::nullopt;
  return bytes.subspan(offset, size);
}

inline bool starts_with(std::span<const std::byte> bytes, std::string_view text) {
  return bytes.size() >= text.size() &&
         std::string_view(reinterpret_cast<const char*>(bytes.data()), text.size()) == text;
}

// The number of `size` bytes (at most 4) at `offset`, which must lie inside.
inline uint32_t number_at(std::span<const std::byte> bytes, size_t offset, size_t size,
                          bool big_endian) {
  uint32_t out = 0;
  for (size_t i = 0; i < size; ++i) {
    out = out << 8 | std::to_integer<uint32_t>(bytes[offset + (big_endian ? i : size - 1 - i)]);
  }
  return out;
}

}  // namespace drover
