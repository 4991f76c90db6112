// Pictures in bytes, for tests of their decoders: JPEG in the kinds that libjpeg writes, PNG put
// together by hand, also wrongly, WebP by libwebp with frames and chunks put around it by hand.
#pragma once

#include <webp/encode.h>
#include <zlib.h>

#include <cstdint>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "image/image.h"
#include "image/libjpeg.h"

namespace drover::testing {

// A soft picture with some noise, of 1 to 4 channels; all of it follows from the seed.
inline std::vector<uint8_t> some_pixels(int width, int height, int channels, uint32_t seed) {
  std::mt19937 bits(seed);
  const int slope[4] = {static_cast<int>(bits() % 7), 3, 5, static_cast<int>(bits() % 3)};
  std::vector<uint8_t> out;
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      for (int c = 0; c < channels; ++c) {
        out.push_back(static_cast<uint8_t>(40 * c + slope[c] * x + (c + 2) * y +
                                           static_cast<int>(bits() % 8)));
      }
    }
  }
  return out;
}

inline std::string big_endian(uint64_t value, int bytes) {
  std::string out;
  for (int i = bytes - 1; i >= 0; --i) out += static_cast<char>(value >> (8 * i));
  return out;
}
inline std::string little_endian(uint64_t value, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i));
  return out;
}

// EXIF with nothing but an orientation.
inline std::string raw_exif(int orientation, bool big = false) {
  const auto number = big ? big_endian : little_endian;
  return (big ? std::string("MM") : std::string("II")) + number(42, 2) + number(8, 4) +
         number(1, 2) + number(0x0112, 2) + number(3, 2) + number(1, 4) + number(orientation, 2) +
         number(0, 2) + number(0, 4);
}

// --- JPEG ---------------------------------------------------------------------------------------

struct JpegKind {
  int channels = 3;                 // 1 grey, 3 RGB, 4 CMYK
  J_COLOR_SPACE space = JCS_YCbCr;  // what 3 channels are stored as; 4: JCS_CMYK or JCS_YCCK
  std::vector<std::pair<int, int>> sampling = {{2, 2}, {1, 1}, {1, 1}};  // of 3 or 4 channels
  bool progressive = false;
  bool arithmetic = false;
  int restart_interval = 0;  // in blocks of the scan
  int quality = 85;
  std::vector<jpeg_scan_info> script = {};  // of scans, instead of the usual ones
  std::string exif = {};                    // as raw_exif gives it
};

inline std::string raw_jpeg(int width, int height, const JpegKind& kind, uint32_t seed) {
  auto pixels = some_pixels(width, height, kind.channels, seed);
  jpeg_compress_struct c{};
  jpeg_error_mgr errors{};
  c.err = jpeg_std_error(&errors);
  errors.error_exit = [](j_common_ptr) { std::abort(); };
  jpeg_create_compress(&c);
  unsigned char* memory = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&c, &memory, &size);
  c.image_width = static_cast<JDIMENSION>(width);
  c.image_height = static_cast<JDIMENSION>(height);
  c.input_components = kind.channels;
  c.in_color_space = kind.channels == 1 ? JCS_GRAYSCALE : kind.channels == 3 ? JCS_RGB : JCS_CMYK;
  jpeg_set_defaults(&c);
  if (kind.channels > 1) {
    jpeg_set_colorspace(&c, kind.space);
    for (size_t i = 0; i < kind.sampling.size() && i < static_cast<size_t>(kind.channels); ++i) {
      c.comp_info[i].h_samp_factor = kind.sampling[i].first;
      c.comp_info[i].v_samp_factor = kind.sampling[i].second;
    }
  }
  jpeg_set_quality(&c, kind.quality, TRUE);
  if (kind.progressive) jpeg_simple_progression(&c);
  if (!kind.script.empty()) {
    c.scan_info = kind.script.data();
    c.num_scans = static_cast<int>(kind.script.size());
  }
  c.arith_code = kind.arithmetic ? TRUE : FALSE;
  c.restart_interval = static_cast<unsigned>(kind.restart_interval);
  jpeg_start_compress(&c, TRUE);
  if (!kind.exif.empty()) {
    const std::string body = std::string("Exif\0\0", 6) + kind.exif;
    jpeg_write_marker(&c, JPEG_APP0 + 1, reinterpret_cast<const JOCTET*>(body.data()),
                      static_cast<unsigned>(body.size()));
  }
  while (c.next_scanline < c.image_height) {
    JSAMPROW row = pixels.data() + size_t{c.next_scanline} * width * kind.channels;
    jpeg_write_scanlines(&c, &row, 1);
  }
  jpeg_finish_compress(&c);
  std::string out(reinterpret_cast<const char*>(memory), size);
  std::free(memory);
  jpeg_destroy_compress(&c);
  return out;
}

// --- PNG ----------------------------------------------------------------------------------------

inline std::string png_chunk(std::string_view kind, std::string_view body) {
  const std::string inside = std::string(kind) + std::string(body);
  const auto crc =
      crc32(0, reinterpret_cast<const Bytef*>(inside.data()), static_cast<uInt>(inside.size()));
  return big_endian(body.size(), 4) + inside + big_endian(crc, 4);
}

inline std::string deflated(std::string_view bytes) {
  uLongf size = compressBound(bytes.size());
  std::string out(size, '\0');
  if (compress2(reinterpret_cast<Bytef*>(out.data()), &size,
                reinterpret_cast<const Bytef*>(bytes.data()), bytes.size(), 6) != Z_OK) {
    throw std::runtime_error("zlib");
  }
  out.resize(size);
  return out;
}

constexpr std::string_view kPngSignature = "\x89PNG\r\n\x1a\n";
constexpr int kGrey = 0, kRgb = 2, kPalette = 3, kGreyAlpha = 4, kRgba = 6;  // colour types

inline std::string png_header(uint32_t width, uint32_t height, int depth, int color,
                              int interlace) {
  return png_chunk("IHDR", big_endian(width, 4) + big_endian(height, 4) + big_endian(depth, 1) +
                               big_endian(color, 1) + std::string(2, '\0') +
                               big_endian(interlace, 1));
}

// The bytes of all rows, each behind a filter byte: what a whole IDAT unpacks to. Filters and
// values are random; every such picture is valid.
inline std::string png_rows(int width, int height, int depth, int color, int interlace,
                            uint32_t seed) {
  std::mt19937 bits(seed);
  const int channels = color == kRgb ? 3 : color == kRgba ? 4 : color == kGreyAlpha ? 2 : 1;
  std::string out;
  const auto add = [&](int w, int h) {
    for (int y = 0; w > 0 && y < h; ++y) {
      // A filter over palette indices could lead out of the palette.
      out += static_cast<char>(color == kPalette ? 0 : bits() % 5);
      for (int i = 0; i < (w * channels * depth + 7) / 8; ++i) out += static_cast<char>(bits());
    }
  };
  if (interlace == 0) {
    add(width, height);
    return out;
  }
  constexpr int kX[] = {0, 4, 0, 2, 0, 1, 0}, kY[] = {0, 0, 4, 0, 2, 0, 1};
  constexpr int kDx[] = {8, 8, 4, 4, 2, 2, 1}, kDy[] = {8, 8, 8, 4, 4, 2, 2};
  for (int p = 0; p < 7; ++p) {
    add((width - kX[p] + kDx[p] - 1) / kDx[p], (height - kY[p] + kDy[p] - 1) / kDy[p]);
  }
  return out;
}

struct PngKind {
  int color = kRgb;
  int depth = 8;
  int interlace = 0;
  std::string transparency = {};  // body of tRNS
  std::string exif = {};
  std::string extra = {};  // whole chunks before the pixels
};

inline std::string raw_png(int width, int height, const PngKind& kind, uint32_t seed) {
  std::string out(kPngSignature);
  out += png_header(width, height, kind.depth, kind.color, kind.interlace);
  if (kind.color == kPalette) {
    std::string palette;
    for (int i = 0; i < 3 << kind.depth; ++i) palette += static_cast<char>(i * 37 + 11);
    out += png_chunk("PLTE", palette);
  }
  if (!kind.transparency.empty()) out += png_chunk("tRNS", kind.transparency);
  if (!kind.exif.empty()) out += png_chunk("eXIf", kind.exif);
  out += kind.extra;
  const std::string data =
      deflated(png_rows(width, height, kind.depth, kind.color, kind.interlace, seed));
  const size_t half = data.size() / 2;
  return out + png_chunk("IDAT", data.substr(0, half)) + png_chunk("IDAT", data.substr(half)) +
         png_chunk("IEND", "");
}

// --- WebP ---------------------------------------------------------------------------------------

inline std::string webp_chunk(std::string_view kind, std::string_view body) {
  std::string out = std::string(kind) + little_endian(body.size(), 4) + std::string(body);
  if (out.size() % 2 != 0) out += '\0';
  return out;
}
inline std::string webp_file(std::string_view chunks) {
  return "RIFF" + little_endian(chunks.size() + 4, 4) + "WEBP" + std::string(chunks);
}

// A still picture of libwebp; `channels` 3 or 4.
inline std::string raw_webp(int width, int height, int channels, bool lossless, uint32_t seed) {
  const auto pixels = some_pixels(width, height, channels, seed);
  uint8_t* memory = nullptr;
  size_t size = 0;
  const int stride = width * channels;
  if (lossless) {
    size = channels == 3 ? WebPEncodeLosslessRGB(pixels.data(), width, height, stride, &memory)
                         : WebPEncodeLosslessRGBA(pixels.data(), width, height, stride, &memory);
  } else {
    size = channels == 3 ? WebPEncodeRGB(pixels.data(), width, height, stride, 80, &memory)
                         : WebPEncodeRGBA(pixels.data(), width, height, stride, 80, &memory);
  }
  if (size == 0) throw std::runtime_error("libwebp");
  std::string out(reinterpret_cast<const char*>(memory), size);
  WebPFree(memory);
  return out;
}

// The chunks that hold the pixels of a still picture: ALPH, VP8 and VP8L.
inline std::string webp_pixels(const std::string& file) {
  std::string out;
  for (size_t at = 12; at + 8 <= file.size();) {
    const std::string kind = file.substr(at, 4);
    size_t size = 0;
    for (int i = 3; i >= 0; --i) size = size << 8 | static_cast<uint8_t>(file[at + 4 + i]);
    size = 8 + (size + 1) / 2 * 2;
    if (kind == "ALPH" || kind == "VP8 " || kind == "VP8L") out += file.substr(at, size);
    at += size;
  }
  return out;
}

constexpr int kWebpAnimated = 2, kWebpExif = 8, kWebpAlpha = 16;  // flags of VP8X
inline std::string webp_canvas(int flags, int width, int height) {
  return webp_chunk(
      "VP8X", little_endian(flags, 4) + little_endian(width - 1, 3) + little_endian(height - 1, 3));
}
inline std::string webp_frame(int x, int y, int width, int height, const std::string& still) {
  return webp_chunk("ANMF", little_endian(x / 2, 3) + little_endian(y / 2, 3) +
                                little_endian(width - 1, 3) + little_endian(height - 1, 3) +
                                little_endian(100, 3) + little_endian(0, 1) + webp_pixels(still));
}
inline std::string webp_animation() { return webp_chunk("ANIM", std::string(6, '\0')); }

}  // namespace drover::testing
