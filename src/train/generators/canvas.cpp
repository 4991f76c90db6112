#include "train/generators/canvas.h"

#include <algorithm>
#include <cmath>

namespace drover {
namespace {

double lightness(Colour c) { return (0.299 * c.r + 0.587 * c.g + 0.114 * c.b) / 255; }

uint8_t rounded(double value) {
  return static_cast<uint8_t>(std::clamp(std::floor(value + 0.5), 0.0, 255.0));
}

// How much of each pixel lies to the right of outlines, signed by whether they run down or up: the
// running sum along a row is the winding number of each pixel, in parts where an outline cuts it.
class Cover {
 public:
  Cover(std::vector<float>& cells, int64_t width, int64_t height)
      : cells_(cells), width_(width), height_(height) {
    cells_.assign(static_cast<size_t>((width + 1) * height), 0);
  }

  void line(Point from, Point to) {
    if (from.y == to.y) return;
    const float sign = from.y < to.y ? 1 : -1;
    if (sign < 0) std::swap(from, to);
    const double slope = (to.x - from.x) / (to.y - from.y);
    const auto x_at = [&](double y) { return from.x + (y - from.y) * slope; };
    const double bottom = std::min(to.y, static_cast<double>(height_));
    for (double y = std::max(from.y, 0.0); y < bottom;) {
      const double row = std::floor(y), next = std::min(row + 1, bottom);
      in_row(static_cast<int64_t>(row), x_at(y), x_at(next), sign * static_cast<float>(next - y));
      y = next;
    }
  }

 private:
  // A piece of a line inside one row, that falls by `drop` from x = a to x = b.
  void in_row(int64_t row, double a, double b, float drop) {
    if (a > b) std::swap(a, b);
    const auto most = static_cast<double>(width_);
    const double length = b - a;
    if (b <= 0) return add(row, 0, 0, drop);
    if (a >= most) return;
    if (length < 1e-9) return add(row, static_cast<int64_t>(a), a - std::floor(a), drop);
    if (a < 0) {
      add(row, 0, 0, drop * static_cast<float>(-a / length));
      a = 0;
    }
    for (const double end = std::min(b, most); a < end;) {
      const double cell = std::floor(a), next = std::min(cell + 1, end);
      add(row, static_cast<int64_t>(cell), (a + next) / 2 - cell,
          drop * static_cast<float>((next - a) / length));
      a = next;
    }
  }
  // Everything to the right of `part` of a cell.
  void add(int64_t row, int64_t cell, double part, float drop) {
    if (cell >= width_) return;
    float* at = cells_.data() + row * (width_ + 1) + cell;
    at[0] += drop * static_cast<float>(1 - part);
    at[1] += drop * static_cast<float>(part);
  }

  std::vector<float>& cells_;
  int64_t width_, height_;
};

}  // namespace

double contrast(Colour a, Colour b) { return std::fabs(lightness(a) - lightness(b)); }

Affine Affine::placed(double scale, double t, double x, double y) {
  const double cosine = (1 - t * t) / (1 + t * t), sine = 2 * t / (1 + t * t);
  return {scale * cosine, -scale * sine, scale * sine, scale * cosine, x, y};
}

Path transformed(const Path& path, const Affine& by) {
  Path out = path;
  for (auto& outline : out) {
    for (Point& p : outline) p = by(p);
  }
  return out;
}

Box bounds(const Path& path) {
  Box out{1e9, 1e9, -1e9, -1e9};
  for (const auto& outline : path) {
    for (const Point& p : outline) {
      out.left = std::min(out.left, p.x);
      out.right = std::max(out.right, p.x);
      out.top = std::min(out.top, p.y);
      out.bottom = std::max(out.bottom, p.y);
    }
  }
  return out;
}

Canvas::Canvas(int64_t width, int64_t height, Colour background) : image_{width, height, {}} {
  image_.rgb.resize(static_cast<size_t>(3 * width * height));
  gradient(background, background, false);
}

void Canvas::mix(int64_t x, int64_t y, Colour colour, double part) {
  uint8_t* pixel = image_.row(y) + 3 * x;
  const uint8_t of[3] = {colour.r, colour.g, colour.b};
  for (int i = 0; i < 3; ++i) pixel[i] = rounded(pixel[i] + (of[i] - pixel[i]) * part);
}

void Canvas::fill(const Path& path, Colour colour) {
  Cover cover(cover_, width(), height());
  for (const auto& outline : path) {
    for (size_t i = 0; i < outline.size(); ++i) {
      cover.line(outline[i], outline[(i + 1) % outline.size()]);
    }
  }
  const Box box = bounds(path);
  const auto row = [&](double y) {
    return static_cast<int64_t>(std::clamp(y, 0.0, static_cast<double>(height())));
  };
  for (int64_t y = row(std::floor(box.top)); y < row(std::ceil(box.bottom)); ++y) {
    float winding = 0;
    for (int64_t x = 0; x < width(); ++x) {
      winding += cover_[static_cast<size_t>(y * (width() + 1) + x)];
      const float part = std::min(1.0f, std::fabs(winding));
      // Below that it is what rounding left.
      if (part > 1e-4f) mix(x, y, colour, part);
    }
  }
}

void Canvas::fill_rectangle(const Box& box, Colour colour) {
  fill({{{box.left, box.top},
         {box.right, box.top},
         {box.right, box.bottom},
         {box.left, box.bottom}}},
       colour);
}

void Canvas::gradient(Colour from, Colour to, bool across) {
  for (int64_t y = 0; y < height(); ++y) {
    for (int64_t x = 0; x < width(); ++x) {
      const double way = across ? (x + 0.5) / static_cast<double>(width())
                                : (y + 0.5) / static_cast<double>(height());
      uint8_t* pixel = image_.row(y) + 3 * x;
      pixel[0] = rounded(from.r + (to.r - from.r) * way);
      pixel[1] = rounded(from.g + (to.g - from.g) * way);
      pixel[2] = rounded(from.b + (to.b - from.b) * way);
    }
  }
}

void Canvas::draw(const Sprite& sprite, double scale, double t, double x, double y) {
  // From a pixel of the canvas back to the sprite, between whose pixels its value is looked up: in
  // one place where the sprite gets larger, in 2 x 2 where it shrinks, smooth down to half its
  // size.
  const int places = scale >= 1 ? 1 : 4;
  const Affine back = Affine::placed(1 / scale, -t, 0, 0);
  const auto w = static_cast<double>(sprite.width), h = static_cast<double>(sprite.height);
  const double reach = scale * (w + h) / 2 + 1;
  const auto in = [](double v, int64_t most) {
    return static_cast<int64_t>(std::clamp(std::floor(v), 0.0, static_cast<double>(most)));
  };
  for (int64_t py = in(y - reach, height()); py < in(y + reach, height()); ++py) {
    for (int64_t px = in(x - reach, width()); px < in(x + reach, width()); ++px) {
      double sum[4] = {};
      for (int place = 0; place < places; ++place) {
        const double dx = places == 1 ? 0.5 : 0.25 + 0.5 * (place % 2);
        const double dy = places == 1 ? 0.5 : 0.25 + 0.5 * (place / 2);
        const Point at = back({static_cast<double>(px) + dx - x, static_cast<double>(py) + dy - y});
        const double sx = at.x + w / 2 - 0.5, sy = at.y + h / 2 - 0.5;
        const double x0 = std::floor(sx), y0 = std::floor(sy);
        for (int corner = 0; corner < 4; ++corner) {
          const double cx = x0 + corner % 2, cy = y0 + corner / 2;
          if (cx < 0 || cy < 0 || cx >= w || cy >= h) continue;
          const uint8_t* pixel = sprite.rgba.data() + 4 * (static_cast<int64_t>(cy) * sprite.width +
                                                           static_cast<int64_t>(cx));
          const double part =
              (1 - std::fabs(sx - cx)) * (1 - std::fabs(sy - cy)) * pixel[3] / (255.0 * places);
          for (int i = 0; i < 3; ++i) sum[i] += part * pixel[i];
          sum[3] += part;
        }
      }
      if (sum[3] <= 0) continue;
      const Colour colour{rounded(sum[0] / sum[3]), rounded(sum[1] / sum[3]),
                          rounded(sum[2] / sum[3])};
      mix(px, py, colour, std::min(1.0, sum[3]));
    }
  }
}

void Canvas::noise(Random& random, int64_t amount) {
  if (amount <= 0) return;
  const auto span = static_cast<uint64_t>(2 * amount + 1);
  uint64_t bits = 0;
  int left = 0;
  for (uint8_t& value : image_.rgb) {
    // Four numbers of 16 bits from each draw: this is most of the time that a picture takes.
    if (left == 0) bits = random.next(), left = 4;
    const auto add = static_cast<int64_t>(((bits & 0xffff) * span) >> 16) - amount;
    bits >>= 16, --left;
    value = static_cast<uint8_t>(std::clamp<int64_t>(value + add, 0, 255));
  }
}

}  // namespace drover
