// tiles_probe layout | resize | tiles
// Answers what tests/reference/tiles_judge.py and make_tile_sizes.py ask. In and out, per request:
//   layout  a line "HEIGHT WIDTH"; a line "ROWS COLS HEIGHT WIDTH TILES"
//   resize  width, height, new width, new height, pixels; the pixels of the new picture
//   tiles   width, height, pixels; rows, cols, height, width, tiles, the pixels of the tiles
// Numbers are 32 bits, little-endian; pixels are RGB, rows from the top.
#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>

#include "image/resize.h"
#include "image/tiles.h"

namespace drover {
namespace {

bool read_exactly(void* out, size_t n) { return std::fread(out, 1, n, stdin) == n; }

void write_bytes(const std::vector<uint8_t>& bytes) {
  std::fwrite(bytes.data(), 1, bytes.size(), stdout);
}

bool read_pixels(Image& image, uint32_t width, uint32_t height) {
  image = {width, height, std::vector<uint8_t>(size_t{3} * width * height)};
  return read_exactly(image.rgb.data(), image.rgb.size());
}

int answer_layouts() {
  long long height, width;
  while (std::scanf("%lld %lld", &height, &width) == 2) {
    const TileLayout layout = choose_tiles({}, height, width);
    std::printf("%lld %lld %lld %lld %lld\n", static_cast<long long>(layout.rows),
                static_cast<long long>(layout.cols), static_cast<long long>(layout.height),
                static_cast<long long>(layout.width), static_cast<long long>(layout.tiles()));
  }
  return 0;
}

int answer_resizes() {
  uint32_t sizes[4];
  Image image;
  while (read_exactly(sizes, sizeof sizes)) {
    if (!read_pixels(image, sizes[0], sizes[1])) return 1;
    write_bytes(resize(image, sizes[2], sizes[3]).rgb);
  }
  return 0;
}

int answer_tiles() {
  uint32_t sizes[2];
  Image image;
  while (read_exactly(sizes, sizeof sizes)) {
    if (!read_pixels(image, sizes[0], sizes[1])) return 1;
    const TiledImage tiled = cut_tiles({}, image);
    const TileLayout& layout = tiled.layout;
    const uint32_t numbers[] = {
        static_cast<uint32_t>(layout.rows), static_cast<uint32_t>(layout.cols),
        static_cast<uint32_t>(layout.height), static_cast<uint32_t>(layout.width),
        static_cast<uint32_t>(layout.tiles())};
    std::fwrite(numbers, sizeof numbers, 1, stdout);
    write_bytes(tiled.pixels);
  }
  return 0;
}

int probe(const std::string& what) {
  if (what == "layout") return answer_layouts();
  if (what == "resize") return answer_resizes();
  if (what == "tiles") return answer_tiles();
  std::fprintf(stderr, "usage: tiles_probe layout|resize|tiles\n");
  return 2;
}

}  // namespace
}  // namespace drover

int main(int argc, char** argv) {
  try {
    return drover::probe(argc == 2 ? argv[1] : "");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
