#include <webp/decode.h>

#include <algorithm>
#include <memory>

#include "base/error.h"
#include "image/decoding.h"
#include "image/webp_prefix_codes.h"

namespace drover {
namespace {

struct Chunk {
  std::span<const std::byte> whole;  // with its head of 8 bytes
  std::span<const std::byte> body;
};

// The chunk at `at`: kind, length, body, padded to an even size.
std::optional<Chunk> chunk_at(std::span<const std::byte> bytes, uint64_t at) {
  const auto head = piece(bytes, at, 8);
  if (!head) return std::nullopt;
  const uint32_t length = number_at(*head, 4, 4, false);
  const auto body = piece(bytes, at + 8, length);
  if (!body) return std::nullopt;
  return Chunk{bytes.subspan(at, 8 + size_t{length}), *body};
}

// The first chunk of a kind behind the file's head.
std::optional<Chunk> find_chunk(std::span<const std::byte> file, std::string_view kind) {
  for (uint64_t at = 12;;) {
    const auto chunk = chunk_at(file, at);
    if (!chunk || starts_with(chunk->whole, kind)) return chunk;
    at += (uint64_t{chunk->whole.size()} + 1) / 2 * 2;
  }
}

// One still picture: a whole file, or what lies in a frame of an animation.
struct Frame {
  std::span<const std::byte> bytes;
  int64_t x = 0, y = 0, width = 0, height = 0;  // on the canvas
};

Fault fault_of(VP8StatusCode status) {
  switch (status) {
    case VP8_STATUS_OK:
      return Fault::kNone;
    case VP8_STATUS_OUT_OF_MEMORY:
      return Fault::kTooMuchMemory;
    case VP8_STATUS_UNSUPPORTED_FEATURE:
      return Fault::kUnsupported;
    case VP8_STATUS_SUSPENDED:
    case VP8_STATUS_NOT_ENOUGH_DATA:
      return Fault::kTruncated;
    default:
      return Fault::kDamaged;
  }
}

// The part of a still picture that is coded without loss, the picture itself or its alpha channel,
// as webp_prefix_code_memory wants it; empty if there is none. `in_file`: the head of a file
// precedes.
std::span<const std::byte> lossless_part(const Decoding& decoding, std::span<const std::byte> bytes,
                                         bool in_file) {
  const uint64_t first = in_file ? 12 : 0;
  std::span<const std::byte> alpha;
  for (uint64_t at = first;;) {
    const auto chunk = chunk_at(bytes, at);
    if (!chunk) decoding.throw_if(Fault::kTruncated, "WebP");
    const auto is = [&](std::string_view kind) { return starts_with(chunk->whole, kind); };
    // From a place in the chunk to the end of all: the library may read on behind the chunk.
    const auto from = [&](uint64_t offset) {
      return bytes.subspan(std::min<uint64_t>(bytes.size(), at + 8 + offset));
    };
    if (is("VP8L")) return from(5);
    if (is("VP8 ")) return alpha;
    if (is("ALPH")) {
      const bool raw = chunk->body.empty() || (chunk->body[0] & std::byte{3}) == std::byte{0};
      alpha = raw ? std::span<const std::byte>() : from(1);
    }
    // The library would take pixels without a chunk around them where none of these comes first.
    if (at == first && !is(in_file ? "VP8X" : "ALPH")) decoding.throw_if(Fault::kDamaged, "WebP");
    at += (uint64_t{chunk->whole.size()} + 1) / 2 * 2;
  }
}

// Decodes into memory of ours, which holds `stride` bytes for each row.
Fault decode_frame(const Decoding& decoding, const Frame& frame, WEBP_CSP_MODE mode,
                   std::span<uint8_t> out, int64_t stride) {
  WebPDecBuffer buffer;
  if (!WebPInitDecBuffer(&buffer)) return Fault::kUnsupported;
  buffer.colorspace = mode;
  buffer.is_external_memory = 1;
  buffer.u.RGBA.rgba = out.data();
  buffer.u.RGBA.stride = static_cast<int>(stride);
  buffer.u.RGBA.size = out.size();
  const std::unique_ptr<WebPIDecoder, decltype(&WebPIDelete)> decoder(WebPINewDecoder(&buffer),
                                                                      &WebPIDelete);
  if (!decoder) return Fault::kTooMuchMemory;
  // In pieces, to look at the clock between them. They grow, because what cannot go on with the
  // bytes it has may start again from the same place.
  const auto* data = reinterpret_cast<const uint8_t*>(frame.bytes.data());
  VP8StatusCode status = VP8_STATUS_SUSPENDED;
  for (size_t n = 0; status == VP8_STATUS_SUSPENDED && n < frame.bytes.size();) {
    if (decoding.too_slow()) return Fault::kTooSlow;
    n = std::min(frame.bytes.size(), n + std::max<size_t>(256 << 10, n / 4));
    status = WebPIUpdate(decoder.get(), data, n);
  }
  return fault_of(status);
}

}  // namespace

Image decode_webp(const Decoding& decoding) {
  const auto check = [&](bool sound, Fault fault = Fault::kDamaged) {
    if (!sound) decoding.throw_if(fault, "WebP");
  };
  // What stands behind the file's own end is not the picture's.
  const uint64_t size = 8 + uint64_t{number_at(decoding.bytes, 4, 4, false)};
  check(size <= decoding.bytes.size(), Fault::kTruncated);
  const auto file = decoding.bytes.first(size);

  WebPBitstreamFeatures features;
  const auto look = [&](std::span<const std::byte> bytes) {
    const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
    decoding.throw_if(fault_of(WebPGetFeatures(data, bytes.size(), &features)), "WebP");
  };
  look(file);
  const int64_t width = features.width, height = features.height;
  const bool alpha = features.has_alpha, animated = features.has_animation;
  decoding.check_size(width, height);

  Frame frame{file, 0, 0, width, height};
  if (animated) {
    // A frame: its place and size, in units of 2 and 1 pixels, two more fields, then its chunks.
    const auto chunk = find_chunk(file, "ANMF");
    check(chunk.has_value(), Fault::kTruncated);
    const auto body = chunk->body;
    check(body.size() >= 16);
    const auto field = [&](size_t at) { return int64_t{number_at(body, at, 3, false)}; };
    frame = {body.subspan(16), field(0) * 2, field(3) * 2, field(6) + 1, field(9) + 1};
    check(frame.x + frame.width <= width && frame.y + frame.height <= height);
    look(frame.bytes);
    check(features.width == frame.width && features.height == frame.height);
  }

  // Beside the buffers of pixels, which take at most 11 of our 12 bytes for each.
  const int64_t allowed = (15 << 20) + frame.width * frame.height;
  const auto lossless = lossless_part(decoding, frame.bytes, /*in_file=*/!animated);
  check(webp_prefix_code_memory(decoding, lossless, frame.width, frame.height) <= allowed,
        Fault::kTooMuchMemory);

  // Without alpha a picture that fills its canvas needs no second buffer. What a frame leaves free
  // of the canvas is transparent, and black where the file says that nothing is.
  Image image;
  const bool covers = frame.width == width && frame.height == height;
  if (!alpha && covers) {
    image = blank_image(width, height);
    decoding.throw_if(decode_frame(decoding, frame, MODE_RGB, image.rgb, width * 3), "WebP");
    return image;
  }
  const int64_t channels = alpha ? 4 : 3;
  std::vector<uint8_t> pixels(static_cast<size_t>(frame.width * frame.height * channels));
  decoding.throw_if(
      decode_frame(decoding, frame, alpha ? MODE_RGBA : MODE_RGB, pixels, frame.width * channels),
      "WebP");
  image = blank_image(width, height);
  if (alpha) std::fill(image.rgb.begin(), image.rgb.end(), uint8_t{255});
  for (int64_t y = 0; y < frame.height; ++y) {
    const uint8_t* from = pixels.data() + y * frame.width * channels;
    uint8_t* to = image.row(frame.y + y) + frame.x * 3;
    if (alpha) {
      put_on_white(from, frame.width, to);
    } else {
      std::copy(from, from + frame.width * 3, to);
    }
  }
  return image;
}

std::span<const std::byte> find_webp_exif(std::span<const std::byte> file) {
  const auto chunk = find_chunk(file, "EXIF");
  return chunk ? chunk->body : std::span<const std::byte>();
}

}  // namespace drover
