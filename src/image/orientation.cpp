#include "image/orientation.h"

#include <cstring>
#include <utility>

#include "base/error.h"
#include "image/decoding.h"

namespace drover {

int exif_orientation(std::span<const std::byte> exif) {
  constexpr std::string_view kPrefix("Exif\0\0", 6);
  if (starts_with(exif, kPrefix)) exif = exif.subspan(kPrefix.size());
  const bool big_endian = starts_with(exif, std::string_view("MM\0\x2a", 4));
  if (!big_endian && !starts_with(exif, std::string_view("II\x2a\0", 4))) return 1;

  if (!piece(exif, 4, 4)) return 1;
  const uint64_t directory = number_at(exif, 4, 4, big_endian);
  if (!piece(exif, directory, 2)) return 1;
  const uint32_t entries = number_at(exif, directory, 2, big_endian);
  for (uint32_t i = 0; i < entries; ++i) {
    // An entry: tag, type, count, and the value itself where it fits into four bytes.
    const auto entry = piece(exif, directory + 2 + uint64_t{12} * i, 12);
    if (!entry) return 1;
    if (number_at(*entry, 0, 2, big_endian) != 0x0112) continue;
    const uint32_t type = number_at(*entry, 2, 2, big_endian);
    const size_t size = type == 1 ? 1 : type == 3 ? 2 : type == 4 ? 4 : 0;
    if (size == 0 || number_at(*entry, 4, 4, big_endian) != 1) return 1;
    const uint32_t value = number_at(*entry, 8, size, big_endian);
    return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return 1;
}

Image apply_orientation(Image image, int orientation) {
  DROVER_CHECK(orientation >= 1 && orientation <= 8);
  if (orientation == 1) return image;
  const bool turned = orientation >= 5;
  const bool from_right =
      orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool from_bottom =
      orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  Image out =
      turned ? blank_image(image.height, image.width) : blank_image(image.width, image.height);
  // Where the picture's own x and y, counted from the named sides, lie in its memory.
  const int64_t right = 3, down = image.width * 3;
  const int64_t origin =
      (from_right ? (image.width - 1) * right : 0) + (from_bottom ? (image.height - 1) * down : 0);
  const int64_t x_step = from_right ? -right : right, y_step = from_bottom ? -down : down;
  // Squares, since a turned picture is read across the rows that it is written along.
  constexpr int64_t kSquare = 64;
  for (int64_t top = 0; top < out.height; top += kSquare) {
    for (int64_t left = 0; left < out.width; left += kSquare) {
      for (int64_t y = top; y < std::min(top + kSquare, out.height); ++y) {
        uint8_t* to = out.row(y) + left * 3;
        for (int64_t x = left; x < std::min(left + kSquare, out.width); ++x, to += 3) {
          std::memcpy(to,
                      image.rgb.data() + origin +
                          (turned ? y * x_step + x * y_step : x * x_step + y * y_step),
                      3);
        }
      }
    }
  }
  return out;
}

}  // namespace drover
