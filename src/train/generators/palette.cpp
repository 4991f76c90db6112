#include "train/generators/palette.h"

#include <algorithm>
#include <cstdlib>

#include "base/error.h"

namespace drover {
namespace {

constexpr NamedColour kColours[] = {
    {"red", {214, 30, 38}},     {"orange", {247, 137, 20}}, {"yellow", {248, 222, 36}},
    {"green", {38, 152, 62}},   {"blue", {36, 84, 206}},    {"purple", {126, 48, 168}},
    {"pink", {250, 142, 186}},  {"brown", {122, 72, 34}},   {"black", {16, 16, 18}},
    {"white", {250, 250, 250}}, {"grey", {132, 134, 138}},
};

uint8_t moved(int64_t value, int64_t by) {
  return static_cast<uint8_t>(std::clamp<int64_t>(value + by, 0, 255));
}

}  // namespace

std::span<const NamedColour> named_colours() { return kColours; }

Colour varied(Random& random, Colour c) {
  const int64_t all = random.between(-10, 10);
  return {moved(c.r, all + random.between(-6, 6)), moved(c.g, all + random.between(-6, 6)),
          moved(c.b, all + random.between(-6, 6))};
}

int64_t distance(Colour a, Colour b) {
  return std::abs(a.r - b.r) + std::abs(a.g - b.g) + std::abs(a.b - b.b);
}

Colour any_colour(Random& random) {
  const auto value = [&] { return static_cast<uint8_t>(random.below(256)); };
  const uint8_t r = value(), g = value();
  return {r, g, value()};
}

Colour background_colour(Random& random) {
  const int64_t tint = random.chance(0.3) ? 24 : 6;
  const int64_t base = random.chance(0.65) ? random.between(196, 250) : random.between(8, 74);
  return {moved(base, random.between(-tint, tint)), moved(base, random.between(-tint, tint)),
          moved(base, random.between(-tint, tint))};
}

Canvas blank_canvas(Random& random, const SourceContext& context, double large, Colour background) {
  if (context.vision == nullptr) {
    throw_error(ErrorKind::kBadData, "source of pictures: expected a model with eyes");
  }
  const int64_t tile = context.vision->tiles.size;
  int64_t width = tile, height = tile;
  if (context.vision->tiles.max_tiles > 1 && random.chance(large)) {
    width = random.between(tile, 2 * tile);
    height = random.between(tile, 2 * tile);
  } else if (random.chance(0.2)) {
    width = random.between(tile * 3 / 4, tile);
    height = random.between(tile * 3 / 4, tile);
  }
  Canvas out(width, height, background);
  if (random.chance(0.3)) {
    const int64_t by = random.between(4, 12);
    const Colour from{moved(background.r, -by), moved(background.g, -by), moved(background.b, -by)};
    const Colour to{moved(background.r, by), moved(background.g, by), moved(background.b, by)};
    const bool turned = random.chance(0.5);
    out.gradient(turned ? to : from, turned ? from : to, random.chance(0.5));
  }
  return out;
}

}  // namespace drover
