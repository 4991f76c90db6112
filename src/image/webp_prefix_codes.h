// A look into a lossless WebP, before the library decodes it. The format lets every square of 4 x 4
// pixels have prefix codes of its own, up to 65,536 groups of them, each in 20 bits of the file.
// libwebp makes tables of 12 to 20 KB for each: 1.3 GB for a file of 300 KB. There is no limit to
// set, so what precedes the groups is read here, and they are counted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "image/decoding.h"

namespace drover {

// What libwebp's tables of prefix codes will take, in bytes. `stream` is a lossless picture of
// width x height pixels behind its head of 5 bytes, or an alpha channel behind its first byte; it
// may go on after the picture. 0 if it is damaged before the groups: the library then gets no
// further either. Throws kLimit if that takes too long. Source: the WebP Lossless Bitstream
// Specification, https://developers.google.com/speed/webp/docs.
int64_t webp_prefix_code_memory(const Decoding& decoding, std::span<const std::byte> stream,
                                int64_t width, int64_t height);

}  // namespace drover
