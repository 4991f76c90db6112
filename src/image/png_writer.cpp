#include "image/png_writer.h"

#include <png.h>
#include <setjmp.h>

#include <exception>

#include "base/error.h"
#include "base/file_writer.h"

namespace drover {
namespace {

// The library is C: what the file's writer throws is kept, and thrown again when the library has
// been left.
struct PngWriter {
  explicit PngWriter(FileWriter* file) : file(file) {}
  ~PngWriter() { png_destroy_write_struct(&png, &info); }
  PngWriter(const PngWriter&) = delete;
  PngWriter& operator=(const PngWriter&) = delete;

  FileWriter* file;
  png_structp png = nullptr;
  png_infop info = nullptr;
  std::exception_ptr thrown;
  jmp_buf escape;

  bool write(const uint8_t* rgb, int64_t width, int64_t height) {
    if (setjmp(escape) != 0) return false;
    png = png_create_write_struct(
        PNG_LIBPNG_VER_STRING, this,
        [](png_structp p, png_const_charp) {
          longjmp(static_cast<PngWriter*>(png_get_error_ptr(p))->escape, 1);
        },
        [](png_structp, png_const_charp) {});
    if (png != nullptr) info = png_create_info_struct(png);
    if (info == nullptr) return false;
    png_set_write_fn(
        png, this,
        [](png_structp p, png_bytep bytes, size_t n) {
          if (!static_cast<PngWriter*>(png_get_io_ptr(p))->keep(bytes, n)) png_error(p, "");
        },
        [](png_structp) {});
    png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
    png_set_IHDR(png, info, static_cast<png_uint_32>(width), static_cast<png_uint_32>(height), 8,
                 PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT,
                 PNG_FILTER_TYPE_DEFAULT);
    png_write_info(png, info);
    for (int64_t y = 0; y < height; ++y) png_write_row(png, rgb + y * width * 3);
    png_write_end(png, info);
    return true;
  }

  bool keep(const uint8_t* bytes, size_t n) {
    try {
      file->write(std::as_bytes(std::span(bytes, n)));
      return true;
    } catch (...) {
      thrown = std::current_exception();
      return false;
    }
  }
};

}  // namespace

void write_png(const std::filesystem::path& path, const uint8_t* rgb, int64_t width,
               int64_t height) {
  FileWriter file(path);
  PngWriter writer(&file);
  const bool written = writer.write(rgb, width, height);
  if (writer.thrown) std::rethrow_exception(writer.thrown);
  DROVER_CHECK(written);
  file.commit();
}

}  // namespace drover
