#include "image/decode.h"

#include <new>
#include <utility>

#include "base/error.h"
#include "image/decoding.h"
#include "image/orientation.h"

namespace drover {
namespace {

// No format that we decode but PNG has longer sides. A row of PNG takes several times its bytes
// inside the library, which a picture of one long row would feel.
constexpr int64_t kMaxSide = 65535;

// What pictures often are when they are none of ours: where the mark stands, the mark, the name.
struct KnownKind {
  size_t offset;
  std::string_view mark;
  std::string_view name;
};
constexpr KnownKind kOtherKinds[] = {
    {0, "GIF87a", "a GIF file"},
    {0, "GIF89a", "a GIF file"},
    {0, "BM", "a BMP file"},
    {0, {"II\x2a\0", 4}, "a TIFF file"},
    {0, {"MM\0\x2a", 4}, "a TIFF file"},
    {0, {"\0\0\1\0", 4}, "an icon file"},
    {0, "8BPS", "a Photoshop file"},
    {0, "%PDF-", "a PDF file"},
    {0, "<svg", "an SVG file"},
    {0, "<?xml", "an XML file"},
    {0, "<!DOCTYPE", "an HTML page"},
    {0, "<html", "an HTML page"},
    {0, "\xff\x0a", "a JPEG XL file"},
    {0, {"\0\0\0\x0cJXL ", 8}, "a JPEG XL file"},
    {0, {"\0\0\0\x0cjP  ", 8}, "a JPEG 2000 file"},
    {4, "ftypavi", "an AVIF file"},
    {4, "ftyphei", "a HEIC file"},
    {4, "ftypmif1", "a HEIC or AVIF file"},
    {4, "ftyp", "a video file"},
};

[[noreturn]] void throw_other_kind(const Decoding& decoding) {
  const std::string_view kHint = "JPEG, PNG and WebP are read; convert the picture to one of them";
  for (const KnownKind& kind : kOtherKinds) {
    const auto head = piece(decoding.bytes, kind.offset, kind.mark.size());
    if (head && starts_with(*head, kind.mark)) {
      throw Error(ErrorKind::kUnsupported,
                  fmt::format("{}: expected a picture in JPEG, PNG or WebP, got {}",
                              decoding.source, kind.name),
                  std::string(kHint));
    }
  }
  throw Error(
      ErrorKind::kUnsupported,
      fmt::format("{}: expected a picture in JPEG, PNG or WebP, got none of them", decoding.source),
      std::string(kHint));
}

}  // namespace

void Decoding::check_size(int64_t width, int64_t height) const {
  if (width <= 0 || height <= 0) {
    throw_error(ErrorKind::kBadData, "{}: a picture of {} x {} pixels has nothing to show", source,
                width, height);
  }
  if (width > kMaxSide || height > kMaxSide) {
    throw_error(ErrorKind::kLimit, "{}: the picture is {} x {} pixels; a side may have {}", source,
                width, height, kMaxSide);
  }
  if (width * height > limits.pixels) {
    throw_error(ErrorKind::kLimit, "{}: the picture is {} x {} = {} pixels; {} are allowed", source,
                width, height, width * height, limits.pixels);
  }
}

void Decoding::throw_if(Fault fault, std::string_view format) const {
  switch (fault) {
    case Fault::kNone:
      return;
    case Fault::kDamaged:
      throw_error(ErrorKind::kBadData, "{}: the {} picture is damaged", source, format);
    case Fault::kTruncated:
      throw_error(ErrorKind::kBadData, "{}: the {} picture ends before it is complete", source,
                  format);
    case Fault::kTooManyScans:
      throw_error(ErrorKind::kLimit, "{}: the {} picture comes in more than {} scans", source,
                  format, limits.scans);
    case Fault::kTooSlow:
      throw_error(ErrorKind::kLimit, "{}: the {} picture takes longer than {} s to decode", source,
                  format, limits.seconds);
    case Fault::kTooMuchMemory:
      throw_error(ErrorKind::kLimit,
                  "{}: the {} picture takes more memory to decode than its size justifies", source,
                  format);
    case Fault::kUnsupported:
      throw_error(ErrorKind::kUnsupported, "{}: this kind of {} is not supported", source, format);
  }
}

Image blank_image(int64_t width, int64_t height) {
  return {width, height, std::vector<uint8_t>(static_cast<size_t>(width * height * 3))};
}

void put_on_white(const uint8_t* rgba, int64_t width, uint8_t* rgb) {
  for (int64_t x = 0; x < width; ++x, rgba += 4, rgb += 3) {
    const unsigned alpha = rgba[3];
    for (int c = 0; c < 3; ++c) {
      // Division by 255, rounded, as Pillow does it.
      const unsigned sum = 255 * (255 - alpha) + rgba[c] * alpha + 128;
      rgb[c] = static_cast<uint8_t>(((sum >> 8) + sum) >> 8);
    }
  }
}

Image decode_image(std::span<const std::byte> bytes, const std::string& source,
                   const ImageLimits& limits) {
  const Decoding decoding(bytes, source, limits);
  if (bytes.empty()) throw_error(ErrorKind::kBadData, "{}: the file is empty", source);
  if (bytes.size() > static_cast<uint64_t>(limits.bytes)) {
    throw_error(ErrorKind::kLimit, "{}: the picture has {} bytes; {} are allowed", source,
                bytes.size(), limits.bytes);
  }
  try {
    if (starts_with(bytes, "\xff\xd8")) {
      return apply_orientation(decode_jpeg(decoding), exif_orientation(find_jpeg_exif(bytes)));
    }
    if (starts_with(bytes, "\x89PNG\r\n\x1a\n")) {
      return apply_orientation(decode_png(decoding), exif_orientation(find_png_exif(bytes)));
    }
    if (starts_with(bytes, "RIFF") && bytes.size() >= 12 && starts_with(bytes.subspan(8), "WEBP")) {
      return apply_orientation(decode_webp(decoding), exif_orientation(find_webp_exif(bytes)));
    }
  } catch (const std::bad_alloc&) {
    throw_error(ErrorKind::kLimit, "{}: there is not enough memory for the picture", source);
  }
  throw_other_kind(decoding);
}

}  // namespace drover
