#include "image/resize.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace drover {
namespace {

// Bits of a weight's fraction. The weights of an output sum to about one, so that 255 times their
// sum leaves an int32 its sign.
constexpr int kWeightBits = 22;
constexpr int32_t kHalf = 1 << (kWeightBits - 1);

// Along one axis: which inputs each output is made of, and how much of each.
struct Filter {
  struct Taps {
    int64_t first;
    int64_t count;
  };
  int64_t most = 0;              // taps that an output may have
  std::vector<Taps> taps;        // [out]
  std::vector<int32_t> weights;  // [out, most]

  Filter(int64_t in, int64_t out);
  const int32_t* weights_of(int64_t i) const { return weights.data() + i * most; }
};

// A triangle over each output's centre, as wide as an input or an output pixel, whichever is
// larger. Every rounding counts here: the order of operations is part of the result.
Filter::Filter(int64_t in, int64_t out) {
  // Pillow holds the size of the picture in float32; it shows above 2^24 pixels.
  const double scale = static_cast<double>(static_cast<float>(in)) / static_cast<double>(out);
  const double reach = std::max(scale, 1.0);
  const double per_reach = 1.0 / reach;
  most = static_cast<int64_t>(std::ceil(reach)) * 2 + 1;
  taps.resize(out);
  weights.resize(out * most);
  std::vector<double> exact(most);
  for (int64_t i = 0; i < out; ++i) {
    const double centre = (static_cast<double>(i) + 0.5) * scale;
    const int64_t first = std::max<int64_t>(static_cast<int64_t>(centre - reach + 0.5), 0);
    const int64_t end = std::min(static_cast<int64_t>(centre + reach + 0.5), in);
    double sum = 0;
    for (int64_t j = 0; j < end - first; ++j) {
      const double t = (static_cast<double>(first + j) - centre + 0.5) * per_reach;
      exact[j] = std::max(1.0 - std::abs(t), 0.0);
      sum += exact[j];
    }
    taps[i] = {first, end - first};
    for (int64_t j = 0; j < end - first; ++j) {
      weights[i * most + j] = static_cast<int32_t>(0.5 + exact[j] / sum * (1 << kWeightBits));
    }
  }
}

uint8_t to_byte(int32_t sum) {
  return static_cast<uint8_t>(std::clamp(sum >> kWeightBits, 0, 255));
}

// in: a row of pixels; out: one pixel for each output of the filter.
void resize_row(const Filter& filter, const uint8_t* in, uint8_t* out) {
  for (size_t x = 0; x < filter.taps.size(); ++x) {
    const auto [first, count] = filter.taps[x];
    const int32_t* weight = filter.weights_of(x);
    const uint8_t* pixel = in + first * 3;
    int32_t r = kHalf, g = kHalf, b = kHalf;
    for (int64_t j = 0; j < count; ++j) {
      r += pixel[3 * j] * weight[j];
      g += pixel[3 * j + 1] * weight[j];
      b += pixel[3 * j + 2] * weight[j];
    }
    out[3 * x] = to_byte(r);
    out[3 * x + 1] = to_byte(g);
    out[3 * x + 2] = to_byte(b);
  }
}

}  // namespace

Image resize(const Image& image, int64_t width, int64_t height) {
  DROVER_CHECK(image.width > 0 && image.height > 0 && width > 0 && height > 0);
  if (width == image.width && height == image.height) return image;
  const Filter across(image.width, width), down(image.height, height);
  const int64_t bytes = width * 3;
  Image out{width, height, std::vector<uint8_t>(bytes * height)};

  // Rows are narrowed in order, each once, and only those that the next output row still needs are
  // kept: the rest of the picture never exists in the new width. Where the width stays, the filter
  // gives the row back as it is.
  const int64_t kept = std::min(down.most, image.height);
  std::vector<uint8_t> ring(kept * bytes);
  std::vector<int32_t> sums(bytes);
  int64_t done = down.taps[0].first;
  for (int64_t y = 0; y < height; ++y) {
    const auto [first, count] = down.taps[y];
    for (; done < first + count; ++done) {
      resize_row(across, image.row(done), ring.data() + done % kept * bytes);
    }
    std::fill(sums.begin(), sums.end(), kHalf);
    for (int64_t j = 0; j < count; ++j) {
      const uint8_t* row = ring.data() + (first + j) % kept * bytes;
      const int32_t weight = down.weights_of(y)[j];
      for (int64_t i = 0; i < bytes; ++i) sums[i] += row[i] * weight;
    }
    std::transform(sums.begin(), sums.end(), out.row(y), to_byte);
  }
  return out;
}

}  // namespace drover
