// Resampling as Pillow does it, bit for bit.
#pragma once

#include "image/image.h"

namespace drover {

// Bilinear with antialiasing: two passes, across then down, 8 bits between, coefficients in 22-bit
// fixed point; a pass whose size does not change is left out. Width and height at least 1.
// Source: spec section 6.5.
Image resize(const Image& image, int64_t width, int64_t height);

}  // namespace drover
