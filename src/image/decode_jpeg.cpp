#include <setjmp.h>

#include <algorithm>

#include "base/error.h"
#include "image/decoding.h"
#include "image/libjpeg.h"

namespace drover {
namespace {

// A decompressor and what its callbacks need. They leave the library by longjmp, always into a
// step() on this object; frames in between own nothing.
class JpegReader {
 public:
  explicit JpegReader(const Decoding& decoding) : decoding_(decoding) {}
  ~JpegReader() { jpeg_destroy_decompress(&c_); }
  JpegReader(const JpegReader&) = delete;
  JpegReader& operator=(const JpegReader&) = delete;

  Image read() {
    step([this] { read_header(); });
    decoding_.check_size(c_.image_width, c_.image_height);
    Image image = blank_image(c_.image_width, c_.image_height);
    std::vector<uint8_t> cmyk(c_.num_components == 4 ? image.width * 4 : 0);
    step([&] { read_rows(image, cmyk.data()); });
    return image;
  }

 private:
  // Runs `body`, which owns nothing that a longjmp would lose, and throws what it runs into.
  template <typename Body>
  void step(Body body) {
    if (setjmp(escape_) == 0) body();
    decoding_.throw_if(fault_, "JPEG");
  }
  [[noreturn]] void leave(Fault fault) {
    fault_ = fault;
    longjmp(escape_, 1);
  }
  template <typename Info>
  static JpegReader& of(Info* info) {
    return *static_cast<JpegReader*>(info->client_data);
  }

  void read_header() {
    c_.err = jpeg_std_error(&errors_);
    errors_.error_exit = [](j_common_ptr c) { of(c).leave(fault_of_error(c->err->msg_code)); };
    errors_.emit_message = [](j_common_ptr c, int level) {
      if (level < 0 && !is_harmless(c->err->msg_code)) of(c).leave(Fault::kDamaged);
    };
    c_.client_data = this;
    jpeg_create_decompress(&c_);

    source_.next_input_byte = reinterpret_cast<const JOCTET*>(decoding_.bytes.data());
    source_.bytes_in_buffer = decoding_.bytes.size();
    source_.init_source = [](j_decompress_ptr) {};
    source_.term_source = [](j_decompress_ptr) {};
    source_.resync_to_restart = jpeg_resync_to_restart;
    source_.fill_input_buffer = [](j_decompress_ptr c) -> boolean {
      of(c).leave(Fault::kTruncated);
    };
    source_.skip_input_data = [](j_decompress_ptr c, long n) {
      if (n <= 0) return;
      if (static_cast<size_t>(n) > c->src->bytes_in_buffer) of(c).leave(Fault::kTruncated);
      c->src->next_input_byte += n;
      c->src->bytes_in_buffer -= static_cast<size_t>(n);
    };
    c_.src = &source_;
    progress_.progress_monitor = [](j_common_ptr c) {
      JpegReader& reader = of(c);
      if (reader.c_.input_scan_number > reader.decoding_.limits.scans) {
        reader.leave(Fault::kTooManyScans);
      }
      if (reader.decoding_.too_slow()) reader.leave(Fault::kTooSlow);
    };
    c_.progress = &progress_;

    jpeg_read_header(&c_, TRUE);
    switch (c_.num_components) {
      case 1:
      case 3:
        c_.out_color_space = JCS_RGB;
        break;
      case 4:
        c_.out_color_space = JCS_CMYK;
        break;
      default:
        leave(Fault::kUnsupported);
    }
  }

  void read_rows(Image& image, uint8_t* cmyk) {
    // The coefficients of a progressive picture lie in memory whole: at most 8 bytes for each
    // pixel, and more only in very small or narrow ones with odd sampling. 3 of our 12 are the
    // result's.
    constexpr int64_t kExtra = 15 << 20;
    c_.mem->max_memory_to_use = static_cast<long>(9 * image.width * image.height + kExtra);
    jpeg_start_decompress(&c_);
    const bool is_cmyk = c_.out_color_space == JCS_CMYK;
    while (c_.output_scanline < c_.output_height) {
      uint8_t* const rgb = image.row(c_.output_scanline);
      JSAMPROW row = is_cmyk ? cmyk : rgb;
      jpeg_read_scanlines(&c_, &row, 1);
      if (is_cmyk) convert_cmyk(cmyk, image.width, rgb);
    }
    // Looks for the end mark; without it, something may be missing.
    jpeg_finish_decompress(&c_);
  }

  // As Adobe writes it, 255 for no ink, which is how Pillow and others read all of them. Rounded as
  // Pillow does.
  static void convert_cmyk(const uint8_t* cmyk, int64_t width, uint8_t* rgb) {
    for (int64_t x = 0; x < width; ++x, cmyk += 4, rgb += 3) {
      const unsigned light = cmyk[3];
      for (int c = 0; c < 3; ++c) {
        const unsigned product = (255 - cmyk[c]) * light + 128;
        const unsigned ink = ((product >> 8) + product) >> 8;
        rgb[c] = static_cast<uint8_t>(ink > light ? 0 : light - ink);
      }
    }
  }

  static Fault fault_of_error(int code) {
    switch (code) {
      case JERR_OUT_OF_MEMORY:
      case JERR_NO_BACKING_STORE:
      case JERR_IMAGE_TOO_BIG:
        return Fault::kTooMuchMemory;
      case JERR_ARITH_NOTIMPL:
      case JERR_BAD_PRECISION:
      case JERR_COMPONENT_COUNT:
      case JERR_CONVERSION_NOTIMPL:
      case JERR_FRACT_SAMPLE_NOTIMPL:
      case JERR_NOT_COMPILED:
      case JERR_NOTIMPL:
      case JERR_SOF_UNSUPPORTED:
        return Fault::kUnsupported;
      case JERR_INPUT_EOF:
        return Fault::kTruncated;
      default:
        return Fault::kDamaged;
    }
  }

  // Warnings about what does no harm to the pixels. The others are about lost data.
  static bool is_harmless(int code) {
    return code == JWRN_ADOBE_XFORM || code == JWRN_EXTRANEOUS_DATA || code == JWRN_JFIF_MAJOR;
  }

  const Decoding& decoding_;
  jpeg_decompress_struct c_{};
  jpeg_error_mgr errors_{};
  jpeg_source_mgr source_{};
  jpeg_progress_mgr progress_{};
  jmp_buf escape_;
  Fault fault_ = Fault::kNone;
};

}  // namespace

Image decode_jpeg(const Decoding& decoding) { return JpegReader(decoding).read(); }

std::span<const std::byte> find_jpeg_exif(std::span<const std::byte> file) {
  // Behind the first two bytes: FF, kind, and for what stands before the pixels a length that
  // counts itself.
  for (size_t at = 2; at + 4 <= file.size();) {
    if (file[at] != std::byte{0xff}) return {};
    const uint32_t kind = number_at(file, at + 1, 1, true);
    if (kind == 0xff) {  // FF may be repeated
      ++at;
      continue;
    }
    if (kind == 0xda || kind == 0xd9) return {};
    const uint32_t length = number_at(file, at + 2, 2, true);
    const auto body = piece(file, at + 4, std::max(length, 2u) - 2);
    if (length < 2 || !body) return {};
    if (kind == 0xe1 && starts_with(*body, std::string_view("Exif\0\0", 6))) return *body;
    at += 2 + length;
  }
  return {};
}

}  // namespace drover
