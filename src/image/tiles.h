// How a picture becomes tiles: the canvas, the size it is brought to, the pieces. Spec section 6.
//
// Pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "image/image.h"

namespace drover {

// What a model wants; the values are the family's.
struct TileRules {
  int64_t size = 336;        // P: a tile is P x P pixels
  int64_t max_tiles = 16;    // of a canvas, the global tile not counted
  bool fill_canvas = false;  // resize_to_max_canvas

  bool operator==(const TileRules&) const = default;
};

struct TileLayout {
  int64_t rows = 1;  // of tiles on the canvas
  int64_t cols = 1;
  int64_t height = 0;  // of the picture as it is put on the canvas, at the top left
  int64_t width = 0;

  // A canvas of several tiles is followed by the global tile, the whole picture squeezed into one.
  int64_t tiles() const { return rows * cols > 1 ? rows * cols + 1 : 1; }
  bool operator==(const TileLayout&) const = default;
};

// The canvas for a picture of this size (both at least 1): scales are compared in float32 as the
// reference does, the fit is found in float64. (transformers finds it in float32 where the canvas
// bounds it, and is one pixel off in some sizes whose fit is an integer.) Spec sections 6.2 to 6.4.
TileLayout choose_tiles(const TileRules& rules, int64_t height, int64_t width);

// The tiles of one picture, 8-bit RGB; what the picture does not cover is 0.
struct TiledImage {
  TileLayout layout;
  int64_t size = 0;             // P
  std::vector<uint8_t> pixels;  // [tiles, P, P, 3]: row by row, the global tile last

  const uint8_t* tile(int64_t i) const { return pixels.data() + i * size * size * 3; }
};

// Spec section 6.6.
TiledImage cut_tiles(const TileRules& rules, const Image& image);

}  // namespace drover
