#include "image/resize.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

namespace drover {
namespace {

Image noise(int64_t width, int64_t height, uint32_t seed) {
  std::mt19937 dice(seed);
  Image image{width, height, std::vector<uint8_t>(width * height * 3)};
  for (auto& byte : image.rgb) byte = static_cast<uint8_t>(dice());
  return image;
}

// One row of grey.
Image grey_row(const std::vector<uint8_t>& values) {
  Image image{static_cast<int64_t>(values.size()), 1, {}};
  for (const uint8_t value : values) image.rgb.insert(image.rgb.end(), 3, value);
  return image;
}

std::vector<uint8_t> red(const Image& image) {
  std::vector<uint8_t> values;
  for (size_t i = 0; i < image.rgb.size(); i += 3) values.push_back(image.rgb[i]);
  return values;
}

// One pass over one line of one channel, straight from spec 6.5.
std::vector<uint8_t> plain_pass(const std::vector<uint8_t>& in, int64_t out_size) {
  const auto in_size = static_cast<int64_t>(in.size());
  const double scale = static_cast<double>(in_size) / static_cast<double>(out_size);
  const double support = std::max(scale, 1.0);
  std::vector<uint8_t> out;
  for (int64_t x = 0; x < out_size; ++x) {
    const double centre = (static_cast<double>(x) + 0.5) * scale;
    const auto low = std::max<int64_t>(0, static_cast<int64_t>(centre - support + 0.5));
    const auto high = std::min(in_size, static_cast<int64_t>(centre + support + 0.5));
    std::vector<double> weights;
    double sum = 0;
    for (int64_t j = low; j < high; ++j) {
      const double away = (static_cast<double>(j) - centre + 0.5) * (1.0 / support);
      weights.push_back(std::max(0.0, 1.0 - std::abs(away)));
      sum += weights.back();
    }
    int64_t total = 1 << 21;
    for (int64_t j = low; j < high; ++j) {
      total += in[j] * static_cast<int64_t>(0.5 + weights[j - low] / sum * (1 << 22));
    }
    out.push_back(static_cast<uint8_t>(std::min<int64_t>(total >> 22, 255)));
  }
  return out;
}

// Both passes with the whole picture between them.
Image plain_resize(const Image& image, int64_t width, int64_t height) {
  Image across{width, image.height, std::vector<uint8_t>(width * image.height * 3)};
  Image out{width, height, std::vector<uint8_t>(width * height * 3)};
  for (int64_t c = 0; c < 3; ++c) {
    for (int64_t y = 0; y < image.height; ++y) {
      std::vector<uint8_t> line;
      for (int64_t x = 0; x < image.width; ++x) line.push_back(image.row(y)[x * 3 + c]);
      if (width != image.width) line = plain_pass(line, width);
      for (int64_t x = 0; x < width; ++x) across.row(y)[x * 3 + c] = line[x];
    }
    for (int64_t x = 0; x < width; ++x) {
      std::vector<uint8_t> line;
      for (int64_t y = 0; y < image.height; ++y) line.push_back(across.row(y)[x * 3 + c]);
      if (height != image.height) line = plain_pass(line, height);
      for (int64_t y = 0; y < height; ++y) out.row(y)[x * 3 + c] = line[y];
    }
  }
  return out;
}

TEST(Resize, MeansOfTwoPixelsAreRoundedUp) {
  EXPECT_EQ(red(resize(grey_row({0, 255}), 1, 1)), (std::vector<uint8_t>{128}));
  EXPECT_EQ(red(resize(grey_row({0, 1}), 1, 1)), (std::vector<uint8_t>{1}));
  EXPECT_EQ(red(resize(grey_row({4, 6}), 1, 1)), (std::vector<uint8_t>{5}));
}

TEST(Resize, EnlargingLiesOnTheLineBetweenNeighbours) {
  EXPECT_EQ(red(resize(grey_row({0, 200}), 4, 1)), (std::vector<uint8_t>{0, 50, 150, 200}));
  EXPECT_EQ(red(resize(grey_row({9}), 3, 1)), (std::vector<uint8_t>{9, 9, 9}));
}

// Halving reaches two pixels from the centre of an output: weights 3/4, 3/4, 1/4 of 7/4 at an edge.
TEST(Resize, HalvingWeighsWithATriangle) {
  EXPECT_EQ(red(resize(grey_row({0, 70, 140, 210}), 2, 1)), (std::vector<uint8_t>{50, 160}));
}

TEST(Resize, APictureOfTheSizeAskedForComesBackAsItIs) {
  const Image image = noise(31, 17, 1);
  EXPECT_EQ(resize(image, 31, 17).rgb, image.rgb);
}

// The rounded weights of n taps sum to 2^22 within n/2, and 255 n/2 stays below the 2^21 that would
// show as long as n < 16448.
TEST(Resize, OneColourStaysOneColour) {
  std::mt19937 dice(2);
  for (const int colour : {0, 1, 127, 128, 254, 255}) {
    for (int i = 0; i < 20; ++i) {
      const auto some = [&] { return static_cast<int64_t>(1 + dice() % 400); };
      Image image{some(), some(), {}};
      image.rgb.assign(image.width * image.height * 3, static_cast<uint8_t>(colour));
      const Image out = resize(image, some(), some());
      ASSERT_EQ(out.rgb.size(), static_cast<size_t>(out.width * out.height * 3));
      ASSERT_EQ(std::count(out.rgb.begin(), out.rgb.end(), colour),
                static_cast<int64_t>(out.rgb.size()))
          << image.width << "x" << image.height << " to " << out.width << "x" << out.height;
    }
  }
}

TEST(Resize, KeepingAFewRowsIsTheSameAsKeepingAll) {
  std::mt19937 dice(3);
  for (int i = 0; i < 150; ++i) {
    const auto some = [&] {
      return static_cast<int64_t>(std::exp(std::log(300.0) * (dice() % 1000) / 999));
    };
    const Image image = noise(some(), some(), i);
    // Every third keeps its width, every fifth its height: a pass that is left out changes nothing.
    const int64_t width = i % 3 == 0 ? image.width : some();
    const int64_t height = i % 5 == 0 ? image.height : some();
    ASSERT_EQ(resize(image, width, height).rgb, plain_resize(image, width, height).rgb)
        << image.width << "x" << image.height << " to " << width << "x" << height;
  }
}

// What Pillow 12.1.1 makes of pictures whose byte i is the top byte of i * i * 2654435761 mod 2^32:
// the sum of byte i times 2i + 1 of the result. 500x3000 is one that later versions resize down
// first, and the last one is wider than float32 counts.
TEST(Resize, IsPillowToTheBit) {
  struct Case {
    int64_t width, height, new_width, new_height;
    uint64_t digest;
  };
  const Case cases[] = {
      // clang-format off
      {7, 5, 336, 336, 14752468609782u},
      {100, 100, 336, 336, 14570162339803u},
      {300, 200, 336, 224, 6503329804198u},
      {640, 480, 336, 336, 14626347516344u},
      {1920, 1080, 1680, 945, 2894229018076454u},
      {500, 3000, 448, 2688, 1664226516181243u},
      {337, 336, 336, 337, 14711554002410u},
      {64, 48, 64, 20, 1875292152u},
      {64, 48, 30, 48, 2373717033u},
      {4000, 2, 5, 1, 28802u},
      {20000001, 1, 336, 1, 129472328u},
      // clang-format on
  };
  for (const Case& c : cases) {
    Image image{c.width, c.height, std::vector<uint8_t>(c.width * c.height * 3)};
    for (size_t i = 0; i < image.rgb.size(); ++i) {
      const auto n = static_cast<uint32_t>(i);
      image.rgb[i] = static_cast<uint8_t>(n * n * 2654435761u >> 24);
    }
    const Image out = resize(image, c.new_width, c.new_height);
    uint64_t digest = 0;
    for (size_t i = 0; i < out.rgb.size(); ++i) digest += out.rgb[i] * (2 * i + 1);
    EXPECT_EQ(digest, c.digest) << c.width << "x" << c.height << " to " << c.new_width << "x"
                                << c.new_height;
  }
}

}  // namespace
}  // namespace drover
