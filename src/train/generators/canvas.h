// Pictures drawn from outlines, with smooth edges. Plain arithmetic, so that a picture is the same
// on every machine.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "image/image.h"
#include "train/random.h"

namespace drover {

struct Colour {
  uint8_t r = 0, g = 0, b = 0;
  bool operator==(const Colour&) const = default;
};

// How different two colours look, 0 (alike) to 1: of lightness, by the weights of ITU-R BT.601.
double contrast(Colour a, Colour b);

struct Point {
  double x = 0, y = 0;  // pixels, from the top left corner
};

// Closed outlines. What one surrounds is inside; a hole is an outline that runs the other way.
using Path = std::vector<std::vector<Point>>;

// x' = a x + b y + x0,  y' = c x + d y + y0
struct Affine {
  double a = 1, b = 0, c = 0, d = 1, x0 = 0, y0 = 0;

  // Scales, turns (clockwise, as y points down) by an angle whose half has the tangent t, and then
  // moves.
  static Affine placed(double scale, double t, double x, double y);
  Point operator()(Point p) const { return {a * p.x + b * p.y + x0, c * p.x + d * p.y + y0}; }
};
Path transformed(const Path& path, const Affine& by);

struct Box {
  double left = 0, top = 0, right = 0, bottom = 0;
  double width() const { return right - left; }
  double height() const { return bottom - top; }
};
Box bounds(const Path& path);

// A picture with an alpha channel.
struct Sprite {
  int64_t width = 0;
  int64_t height = 0;
  std::vector<uint8_t> rgba;  // [height, width, 4], not multiplied with alpha
};

class Canvas {
 public:
  Canvas(int64_t width, int64_t height, Colour background);

  int64_t width() const { return image_.width; }
  int64_t height() const { return image_.height; }

  // Paints the inside of the path; pixels that it covers in part are mixed. What lies outside of
  // the canvas is left out.
  void fill(const Path& path, Colour colour);
  void fill_rectangle(const Box& box, Colour colour);
  // Each colour by its own way across the canvas: from the first to the second.
  void gradient(Colour from, Colour to, bool across);
  // Puts the sprite with its middle at (x, y), resized and turned as Affine::placed, mixed by
  // alpha.
  void draw(const Sprite& sprite, double scale, double t, double x, double y);
  // Adds to every value a whole number in [-amount, amount].
  void noise(Random& random, int64_t amount);

  const Image& image() const { return image_; }
  Image take() { return std::move(image_); }

 private:
  void mix(int64_t x, int64_t y, Colour colour, double part);

  Image image_;
  std::vector<float> cover_;  // scratch of fill()
};

}  // namespace drover
