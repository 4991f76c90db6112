#include "image/tiles.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <cstdlib>
#include <map>
#include <random>

#include "base/mapped_file.h"
#include "image/resize.h"

namespace drover {

// What GoogleTest prints of a layout.
void PrintTo(const TileLayout& layout, std::ostream* out) {
  *out << layout.rows << "x" << layout.cols << " tiles, " << layout.height << "x" << layout.width
       << " pixels";
}

namespace {

// Spec 6.7, with 144 patches to a tile: start, image and end, the patches of every tile, and a
// separator after each tile of a canvas of several.
int64_t tokens_of(const TileLayout& layout) {
  const int64_t separators = layout.tiles() > 1 ? layout.rows * layout.cols : 0;
  return 3 + 144 * layout.tiles() + separators;
}

// Uniform in the logarithm.
int64_t some_size(std::mt19937& dice, double most) {
  return static_cast<int64_t>(std::pow(most, (dice() % 100'000) / 99'999.0));
}

TEST(ChooseTiles, GivesTheTableOfTheSpec) {
  struct Case {
    int64_t height, width;
    TileLayout layout;
    int64_t tiles, tokens;
  };
  const Case cases[] = {
      {1, 1, {1, 1, 336, 336}, 1, 147},          {100, 100, {1, 1, 336, 336}, 1, 147},
      {200, 300, {1, 1, 224, 336}, 1, 147},      {336, 337, {1, 2, 336, 337}, 3, 437},
      {337, 337, {2, 2, 337, 337}, 5, 727},      {480, 640, {2, 2, 480, 640}, 5, 727},
      {768, 1024, {3, 4, 768, 1024}, 13, 1887},  {1080, 1920, {3, 5, 945, 1680}, 16, 2322},
      {1920, 1080, {5, 3, 1680, 945}, 16, 2322}, {300, 800, {1, 3, 300, 800}, 4, 582},
      {10, 1000, {1, 3, 10, 1000}, 4, 582},      {2000, 2000, {4, 4, 1344, 1344}, 17, 2467},
      {3000, 500, {8, 2, 2688, 448}, 17, 2467},  {4032, 3024, {4, 3, 1344, 1008}, 13, 1887},
  };
  for (const Case& c : cases) {
    const TileLayout layout = choose_tiles({}, c.height, c.width);
    EXPECT_EQ(layout, c.layout) << c.height << "x" << c.width;
    EXPECT_EQ(layout.tiles(), c.tiles) << c.height << "x" << c.width;
    EXPECT_EQ(tokens_of(layout), c.tokens) << c.height << "x" << c.width;
  }
}

// tests/reference/make_tile_sizes.py says how the file was made. transformers finds the resized
// size in float32 where the canvas bounds it; there float64 is what counts, and they are a pixel
// apart.
TEST(ChooseTiles, AgreesWithTransformersOn400Sizes) {
  const std::string text = read_file("tests/data/images/tile_sizes.json", size_t{1} << 20);
  const boost::json::value file = boost::json::parse(text);
  using Row = std::vector<int64_t>;
  const auto table = [&](const char* name) {
    return boost::json::value_to<std::vector<Row>>(file.at(name));
  };
  std::map<std::pair<int64_t, int64_t>, std::pair<int64_t, int64_t>> float64;
  for (const Row& row : table("float64")) {
    float64[{row.at(0), row.at(1)}] = {row.at(2), row.at(3)};
  }

  const auto sizes = table("sizes");
  ASSERT_EQ(sizes.size(), 400u);
  for (const Row& row : sizes) {
    const int64_t height = row.at(0), width = row.at(1);
    TileLayout expected{row.at(2), row.at(3), row.at(4), row.at(5)};
    if (const auto found = float64.find({height, width}); found != float64.end()) {
      const auto [h, w] = found->second;
      ASSERT_EQ(std::abs(h - expected.height) + std::abs(w - expected.width), 1)
          << height << "x" << width;
      expected.height = h;
      expected.width = w;
    }
    const TileLayout layout = choose_tiles({}, height, width);
    EXPECT_EQ(layout, expected) << height << "x" << width;
    EXPECT_EQ(layout.tiles(), row.at(6)) << height << "x" << width;
    EXPECT_EQ(tokens_of(layout), row.at(7)) << height << "x" << width;
  }
}

TEST(ChooseTiles, WhatFitsIsNotResizedAndLiesOnTheSmallestCanvas) {
  std::mt19937 dice(1);
  int fitting = 0;
  while (fitting < 5000) {
    const int64_t height = 336 + some_size(dice, 5041) - 1, width = 336 + some_size(dice, 5041) - 1;
    const int64_t rows = (height + 335) / 336, cols = (width + 335) / 336;
    if (rows * cols > 16) continue;
    ++fitting;
    EXPECT_EQ(choose_tiles({}, height, width), (TileLayout{rows, cols, height, width}))
        << height << "x" << width;
  }
}

TEST(ChooseTiles, WhateverItsSizeAPictureKeepsItsShapeAndStaysOnItsCanvas) {
  std::mt19937 dice(2);
  for (int i = 0; i < 20'000; ++i) {
    const int64_t height = some_size(dice, 65'535), width = some_size(dice, 65'535);
    const TileLayout layout = choose_tiles({}, height, width);
    const auto where = [&] {
      return ::testing::Message() << height << "x" << width << ": "
                                  << ::testing::PrintToString(layout);
    };
    ASSERT_GE(layout.rows * layout.cols, 1) << where();
    ASSERT_LE(layout.rows * layout.cols, 16) << where();
    ASSERT_GE(std::min(layout.height, layout.width), 1) << where();
    ASSERT_LE(layout.height, layout.rows * 336) << where();
    ASSERT_LE(layout.width, layout.cols * 336) << where();
    ASSERT_LE(layout.height, std::max<int64_t>(height, 336)) << where();
    ASSERT_LE(layout.width, std::max<int64_t>(width, 336)) << where();
    // One side follows exactly from the other, rounded down, or is the one pixel that it must be.
    // An exact integer may come out one lower, since the ratio was rounded.
    const auto follows = [](int64_t side, int64_t from, int64_t by, int64_t per) {
      const int64_t exact = std::max<int64_t>(from * by / per, 1);
      return side == exact || (side == exact - 1 && from * by % per == 0);
    };
    ASSERT_TRUE(follows(layout.height, height, layout.width, width) ||
                follows(layout.width, width, layout.height, height))
        << where();
    // On its side, a picture has its canvas on its side.
    const TileLayout turned = choose_tiles({}, width, height);
    ASSERT_EQ(turned.rows, layout.cols) << where();
    ASSERT_EQ(turned.cols, layout.rows) << where();
    ASSERT_LE(std::abs(turned.height - layout.width), 1) << where();
    ASSERT_LE(std::abs(turned.width - layout.height), 1) << where();
  }
}

TEST(ChooseTiles, FillsTheLargestCanvasWhenAskedTo) {
  TileRules rules;
  rules.fill_canvas = true;
  EXPECT_EQ(choose_tiles(rules, 100, 100), (TileLayout{4, 4, 1344, 1344}));
  EXPECT_EQ(choose_tiles(rules, 200, 300), (TileLayout{3, 5, 1008, 1512}));
  EXPECT_EQ(choose_tiles(rules, 4032, 3024), (TileLayout{4, 3, 1344, 1008}));
}

TEST(ChooseTiles, FollowsOtherRules) {
  EXPECT_EQ(choose_tiles({.size = 28, .max_tiles = 4}, 100, 30), (TileLayout{4, 1, 93, 28}));
  EXPECT_EQ(choose_tiles({.size = 28, .max_tiles = 4}, 40, 50), (TileLayout{2, 2, 40, 50}));
  EXPECT_EQ(choose_tiles({.size = 28, .max_tiles = 1}, 40, 50), (TileLayout{1, 1, 22, 28}));
}

// Every pixel says where it is.
Image map_of(int64_t width, int64_t height) {
  Image image{width, height, std::vector<uint8_t>(width * height * 3)};
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      uint8_t* pixel = image.row(y) + x * 3;
      pixel[0] = static_cast<uint8_t>(x);
      pixel[1] = static_cast<uint8_t>(y);
      pixel[2] = static_cast<uint8_t>(1 + x / 256 + 16 * (y / 256));
    }
  }
  return image;
}

TEST(CutTiles, TilesLieRowByRowOverABlackCanvasAndTheWholePictureComesLast) {
  const Image image = map_of(/*width=*/700, /*height=*/400);
  const TiledImage tiled = cut_tiles({}, image);
  ASSERT_EQ(tiled.layout, (TileLayout{2, 3, 400, 700}));
  ASSERT_EQ(tiled.pixels.size(), size_t{7} * 336 * 336 * 3);
  for (int64_t y = 0; y < 2 * 336; ++y) {
    for (int64_t x = 0; x < 3 * 336; ++x) {
      const uint8_t* pixel = tiled.tile(y / 336 * 3 + x / 336) + (y % 336 * 336 + x % 336) * 3;
      for (int64_t c = 0; c < 3; ++c) {
        const int expected = x < 700 && y < 400 ? image.row(y)[x * 3 + c] : 0;
        ASSERT_EQ(pixel[c], expected) << "x " << x << ", y " << y << ", channel " << c;
      }
    }
  }
  const Image whole = resize(image, 336, 336);
  EXPECT_TRUE(std::equal(whole.rgb.begin(), whole.rgb.end(), tiled.tile(6)));
}

TEST(CutTiles, ASmallPictureIsEnlargedToOneTileAndPaddedBelow) {
  const Image image = map_of(/*width=*/300, /*height=*/200);
  const TiledImage tiled = cut_tiles({}, image);
  ASSERT_EQ(tiled.layout, (TileLayout{1, 1, 224, 336}));
  std::vector<uint8_t> expected = resize(image, 336, 224).rgb;
  expected.resize(336 * 336 * 3);
  EXPECT_EQ(tiled.pixels, expected);
}

TEST(CutTiles, TheGlobalTileIsMadeFromThePictureAndNotFromItsResizedForm) {
  const Image image = map_of(/*width=*/1700, /*height=*/1100);
  const TiledImage tiled = cut_tiles({}, image);
  ASSERT_LT(tiled.layout.width, 1700);
  const Image whole = resize(image, 336, 336);
  EXPECT_TRUE(std::equal(whole.rgb.begin(), whole.rgb.end(), tiled.tile(tiled.layout.tiles() - 1)));
  const Image twice = resize(resize(image, tiled.layout.width, tiled.layout.height), 336, 336);
  EXPECT_NE(twice.rgb, whole.rgb);
}

TEST(CutTiles, AnyShapeCanBeCut) {
  const std::pair<int64_t, int64_t> sizes[] = {{1, 1},      {1, 20'000}, {20'000, 1}, {5377, 336},
                                               {336, 5376}, {337, 335},  {1345, 1343}};
  for (const auto& [width, height] : sizes) {
    const TiledImage tiled = cut_tiles({}, map_of(width, height));
    EXPECT_EQ(tiled.pixels.size(), static_cast<size_t>(tiled.layout.tiles() * 336 * 336 * 3));
  }
}

}  // namespace
}  // namespace drover
