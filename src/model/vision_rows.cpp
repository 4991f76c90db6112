#include "model/vision_rows.h"

#include <algorithm>
#include <cmath>

namespace drover {
namespace {

// Where the s patches lie that stand side by side in row dy of token t: the first one's row.
int64_t first_patch(const VisionConfig& c, int64_t t, int64_t dy) {
  const int64_t side = c.side() / c.shuffle, token = t % c.tile_tokens();
  const int64_t i = token / side, j = token % side;
  return t / c.tile_tokens() * c.rows() + (c.shuffle * i + dy) * c.side() + c.shuffle * j;
}

}  // namespace

std::vector<float> patch_frequencies(const VisionConfig& config) {
  std::vector<float> frequencies;
  const int64_t half = config.head_dim() / 2;  // as many pairs for x and y together
  for (int64_t m = 0; m < half / 2; ++m) {
    const float exponent = static_cast<float>(2 * m) / static_cast<float>(half);
    frequencies.push_back(1.0f / std::pow(static_cast<float>(config.rope_theta), exponent));
  }
  return frequencies;
}

void take_patches(Context& context, const VisionConfig& c, std::span<const uint8_t* const> tiles,
                  MatrixView out) {
  float normal[3][256];  // a pixel's value by its byte
  for (int colour = 0; colour < 3; ++colour) {
    for (int x = 0; x < 256; ++x) {
      normal[colour][x] = (static_cast<float>(x) / 255.0f - c.mean[colour]) / c.std[colour];
    }
  }
  const int64_t side = c.side(), p = c.patch, size = c.tiles.size;
  context.threads.run(out.rows, [&](int64_t row, int) {
    const int64_t n = row % c.rows(), y0 = n / side * p, x0 = n % side * p;
    float* to = out.row(row);
    if (n == c.patches()) {
      std::fill_n(to, out.cols, 0.0f);
      return;
    }
    const uint8_t* tile = tiles[static_cast<size_t>(row / c.rows())];
    for (int colour = 0; colour < 3; ++colour) {
      for (int64_t y = y0; y < y0 + p; ++y) {
        const uint8_t* from = tile + (y * size + x0) * 3 + colour;
        for (int64_t x = 0; x < p; ++x) *to++ = normal[colour][from[3 * x]];
      }
    }
  });
}

void join_patches(Context& context, const VisionConfig& c, MatrixView out, ConstMatrixView h) {
  const int64_t width = c.shuffle * h.cols;
  context.threads.run(out.rows, [&](int64_t t, int) {
    for (int64_t dy = 0; dy < c.shuffle; ++dy) {
      std::copy_n(h.row(first_patch(c, t, dy)), width, out.row(t) + dy * width);
    }
  });
}

void join_patches_backward(Context& context, const VisionConfig& c, MatrixView dh,
                           ConstMatrixView dout) {
  const int64_t width = c.shuffle * dh.cols;
  context.threads.run(dout.rows, [&](int64_t t, int) {
    for (int64_t dy = 0; dy < c.shuffle; ++dy) {
      std::copy_n(dout.row(t) + dy * width, width, dh.row(first_patch(c, t, dy)));
    }
  });
  for (int64_t t = c.patches(); t < dh.rows; t += c.rows()) std::fill_n(dh.row(t), dh.cols, 0.0f);
}

}  // namespace drover
