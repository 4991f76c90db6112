// Resampling as Pillow does it, bit for bit.
#pragma once

#include "image/image.h"

namespace drover {

// Bilinear with antialiasing: two passes, across then down, 8 bits between, coefficients in 22-bit
// fixed point; a pass whose size does not change is left out. Width and height at least 1.
// The order of the passes is the one with which the models were taught. Pillow 13 goes down first
// where a picture gets much lower, and is one off there in some values.
// Beside the result it takes 8 bytes for each pixel of a side and the rows that one row is made of.
// Source: spec section 6.5.
Image resize(const Image& image, int64_t width, int64_t height);

}  // namespace drover
