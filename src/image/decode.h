// Pictures as people have them, JPEG, PNG and WebP, to pixels. The bytes are hostile: every limit
// is looked at before memory is taken, and what a library says never reaches a message.
//
// Pure functions, thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "image/image.h"

namespace drover {

struct ImageLimits {
  int64_t bytes = int64_t{64} << 20;  // of the file
  int64_t pixels = 64'000'000;        // width times height, as the header declares them
  int64_t scans = 100;                // of a progressive JPEG
  double seconds = 10;                // of decoding; looked at between rows and scans
};

// The picture in `bytes`, whatever its kind, told by its first bytes and never by a name:
// - grey, palette, 16-bit (the high byte counts), interlaced, progressive, CMYK and YCCK all become
//   8-bit RGB, the same as Pillow's convert("RGB"), bit for bit;
// - whatever has an alpha channel or a transparent colour is put on white;
// - the orientation tag of EXIF is obeyed, that of XMP is not read;
// - of an animation the first picture is taken.
// `source` names the picture in errors: kUnsupported for another kind of file (named, if it is a
// known one) and for the few codings that the libraries do not know (12 bits and lossless in JPEG);
// kBadData for damaged bytes, a truncated picture included; kLimit for one of `limits`, for a side
// of more than 65,535 pixels, and for what would take more than the memory that its size justifies.
// Memory: at most 12 bytes per pixel and 16 MB beside the input, the result included.
Image decode_image(std::span<const std::byte> bytes, const std::string& source,
                   const ImageLimits& limits = {});

}  // namespace drover
