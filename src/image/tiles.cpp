#include "image/tiles.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "image/resize.h"

namespace drover {
namespace {

// How much larger or smaller the picture would be on the canvas.
float scale_on(int64_t canvas_height, int64_t canvas_width, int64_t height, int64_t width) {
  const auto ratio = [](int64_t a, int64_t b) {
    return static_cast<float>(a) / static_cast<float>(b);
  };
  return std::min(ratio(canvas_height, height), ratio(canvas_width, width));
}

// A canvas that holds the picture whole beats one that does not. Among those that do, the tighter
// one (the looser one if pictures fill their canvas), among those that do not, the larger.
bool better_scale(float a, float b, bool fill_canvas) {
  if ((a >= 1) != (b >= 1)) return a >= 1;
  return a >= 1 && !fill_canvas ? a < b : a > b;
}

}  // namespace

TileLayout choose_tiles(const TileRules& rules, int64_t height, int64_t width) {
  DROVER_CHECK(height > 0 && width > 0 && rules.size > 0 && rules.max_tiles > 0);
  TileLayout layout;
  float best = scale_on(rules.size, rules.size, height, width);
  for (int64_t rows = 1; rows <= rules.max_tiles; ++rows) {
    for (int64_t cols = 1; rows * cols <= rules.max_tiles; ++cols) {
      const float scale = scale_on(rows * rules.size, cols * rules.size, height, width);
      const bool smaller = scale == best && rows * cols < layout.rows * layout.cols;
      if (smaller || better_scale(scale, best, rules.fill_canvas)) {
        best = scale;
        layout.rows = rows;
        layout.cols = cols;
      }
    }
  }

  // No picture is enlarged beyond one tile's side, unless it is to fill the canvas.
  int64_t most_height = layout.rows * rules.size;
  int64_t most_width = layout.cols * rules.size;
  if (!rules.fill_canvas) {
    most_height = std::min(std::max(height, rules.size), most_height);
    most_width = std::min(std::max(width, rules.size), most_width);
  }
  const auto fit = [](int64_t side, double ratio, int64_t most) {
    const auto fitted = static_cast<int64_t>(static_cast<double>(side) * ratio);
    return std::clamp<int64_t>(fitted, 1, most);
  };
  const double by_width = static_cast<double>(most_width) / static_cast<double>(width);
  const double by_height = static_cast<double>(most_height) / static_cast<double>(height);
  if (by_width < by_height) {
    layout.width = most_width;
    layout.height = fit(height, by_width, most_height);
  } else {
    layout.height = most_height;
    layout.width = fit(width, by_height, most_width);
  }
  return layout;
}

TiledImage cut_tiles(const TileRules& rules, const Image& image) {
  const int64_t size = rules.size;
  TiledImage tiled{choose_tiles(rules, image.height, image.width), size, {}};
  const TileLayout& layout = tiled.layout;
  tiled.pixels.resize(layout.tiles() * size * size * 3);
  const auto row_of_tile = [&](int64_t tile, int64_t y) {
    return tiled.pixels.data() + (tile * size + y) * size * 3;
  };

  const Image fitted = resize(image, layout.width, layout.height);
  for (int64_t y = 0; y < fitted.height; ++y) {
    for (int64_t x = 0; x < fitted.width; x += size) {
      const int64_t tile = y / size * layout.cols + x / size;
      std::copy_n(fitted.row(y) + x * 3, std::min(size, fitted.width - x) * 3,
                  row_of_tile(tile, y % size));
    }
  }
  if (layout.tiles() > 1) {
    const Image whole = resize(image, size, size);
    std::copy(whole.rgb.begin(), whole.rgb.end(), row_of_tile(layout.tiles() - 1, 0));
  }
  return tiled;
}

}  // namespace drover
