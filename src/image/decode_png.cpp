#include <png.h>
#include <setjmp.h>

#include <cstring>

#include "base/error.h"
#include "image/decoding.h"

namespace drover {
namespace {

// The body of the first chunk of a kind.
std::span<const std::byte> find_chunk(std::span<const std::byte> file, std::string_view kind) {
  // Behind the signature: length, kind, body, checksum.
  for (uint64_t at = 8; at + 12 <= file.size();) {
    const uint32_t length = number_at(file, at, 4, true);
    const auto body = piece(file, at + 8, length);
    if (!body) return {};
    if (starts_with(file.subspan(at + 4), kind)) return *body;
    at += 12 + uint64_t{length};
  }
  return {};
}

// A reader and what its callbacks need. They leave the library by longjmp, always into a step() on
// this object; frames in between own nothing.
class PngReader {
 public:
  explicit PngReader(const Decoding& decoding) : decoding_(decoding) {}
  ~PngReader() { png_destroy_read_struct(&png_, &info_, nullptr); }
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;

  Image read() {
    step([this] { read_header(); });
    const int64_t width = png_get_image_width(png_, info_);
    const int64_t height = png_get_image_height(png_, info_);
    decoding_.check_size(width, height);
    step([this] { choose_transforms(); });
    Image image = blank_image(width, height);
    // With an alpha channel one row is enough, unless the passes of an interlaced picture each add
    // to all rows.
    const bool alpha = png_get_channels(png_, info_) == 4;
    const int64_t rows = !alpha ? 0 : passes_ > 1 ? height : 1;
    std::vector<uint8_t> rgba(static_cast<size_t>(rows * width * 4));
    step([&] { read_rows(image, rgba.data(), rows); });
    return image;
  }

 private:
  template <typename Body>
  void step(Body body) {
    if (setjmp(escape_) == 0) body();
    decoding_.throw_if(fault_, "PNG");
  }
  [[noreturn]] void leave(Fault fault) {
    fault_ = fault;
    longjmp(escape_, 1);
  }
  static PngReader& of(void* pointer) { return *static_cast<PngReader*>(pointer); }

  void read_header() {
    const auto fail = [](png_structp png, png_const_charp) {
      of(png_get_error_ptr(png)).leave(Fault::kDamaged);
    };
    // A checksum that does not match and pixels that are missing are errors. The warnings left are
    // about chunks that do not matter and bytes behind the last pixel, and about tRNS: see below.
    const auto ignore = [](png_structp, png_const_charp) {};
    png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, fail, ignore);
    if (png_ != nullptr) info_ = png_create_info_struct(png_);
    if (info_ == nullptr) leave(Fault::kTooMuchMemory);
    png_set_read_fn(png_, this, [](png_structp png, png_bytep to, size_t n) {
      of(png_get_io_ptr(png)).take(to, n);
    });
    png_set_crc_action(png_, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
    // Of the optional chunks only tRNS matters; the others are profiles and texts that may unpack
    // to anything.
    png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
    // The library's own limits, so that nothing is sized before we have looked: check_size is ours.
    png_set_user_limits(png_, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
    png_set_chunk_malloc_max(png_, 1 << 20);
    png_read_info(png_, info_);
    // The library goes on without a tRNS that breaks the rules; the colours would be wrong.
    const bool has_alpha = (png_get_color_type(png_, info_) & PNG_COLOR_MASK_ALPHA) != 0;
    if (!has_alpha && png_get_valid(png_, info_, PNG_INFO_tRNS) == 0 &&
        find_chunk(decoding_.bytes, "tRNS").data() != nullptr) {
      leave(Fault::kDamaged);
    }
  }

  // Every colour type becomes RGB or RGBA of 8 bits.
  void choose_transforms() {
    png_set_expand(png_);  // palettes, grey of less than 8 bits, a transparent colour
    png_set_strip_16(png_);
    png_set_gray_to_rgb(png_);
    passes_ = png_set_interlace_handling(png_);
    png_read_update_info(png_, info_);
  }

  void read_rows(Image& image, uint8_t* rgba, int64_t rgba_rows) {
    for (int pass = 0; pass < passes_; ++pass) {
      for (int64_t y = 0; y < image.height; ++y) {
        uint8_t* const row =
            rgba_rows == 0 ? image.row(y) : rgba + (rgba_rows == 1 ? 0 : y * image.width * 4);
        png_read_row(png_, row, nullptr);
        if (rgba_rows != 0 && pass == passes_ - 1) put_on_white(row, image.width, image.row(y));
        if (decoding_.too_slow()) leave(Fault::kTooSlow);
      }
    }
    png_read_end(png_, nullptr);
  }

  void take(png_bytep to, size_t n) {
    if (n > decoding_.bytes.size() - offset_) leave(Fault::kTruncated);
    std::memcpy(to, decoding_.bytes.data() + offset_, n);
    offset_ += n;
    if (decoding_.too_slow()) leave(Fault::kTooSlow);
  }

  const Decoding& decoding_;
  size_t offset_ = 0;
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
  int passes_ = 1;
  jmp_buf escape_;
  Fault fault_ = Fault::kNone;
};

}  // namespace

Image decode_png(const Decoding& decoding) { return PngReader(decoding).read(); }

std::span<const std::byte> find_png_exif(std::span<const std::byte> file) {
  return find_chunk(file, "eXIf");
}

}  // namespace drover
