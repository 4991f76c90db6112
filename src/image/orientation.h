// The orientation tag of EXIF: cameras store pixels as the sensor lay and say how to turn them.
//
// Pure functions, thread-safe.
#pragma once

#include <cstddef>
#include <span>

#include "image/image.h"

namespace drover {

// The tag in a block of EXIF, 1 to 8; 1, "as it is", for whatever is missing or damaged. Only the
// first directory is looked at, once, so no loop of directories can hold it up.
int exif_orientation(std::span<const std::byte> exif);

// The picture as it is to be seen. Throws kInternal for an orientation outside 1 to 8.
Image apply_orientation(Image image, int orientation);

}  // namespace drover
