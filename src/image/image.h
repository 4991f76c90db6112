// A picture in memory: 8-bit RGB, rows from the top, pixels from the left. Owns its pixels.
#pragma once

#include <cstdint>
#include <vector>

namespace drover {

struct Image {
  int64_t width = 0;
  int64_t height = 0;
  std::vector<uint8_t> rgb;  // [height, width, 3]

  const uint8_t* row(int64_t y) const { return rgb.data() + y * width * 3; }
  uint8_t* row(int64_t y) { return rgb.data() + y * width * 3; }
};

}  // namespace drover
