// Colours by their names, and backgrounds on which they can be seen.
#pragma once

#include <span>
#include <string_view>

#include "train/generators/canvas.h"
#include "train/sources.h"

namespace drover {

struct NamedColour {
  std::string_view name;
  Colour colour;
};
std::span<const NamedColour> named_colours();

// The colour, a little lighter, darker or otherwise tinted: never so much that its name changes.
Colour varied(Random& random, Colour colour);

// The sum of differences of the three values.
int64_t distance(Colour a, Colour b);

Colour any_colour(Random& random);
// Light or dark, nearly grey, now and then tinted.
Colour background_colour(Random& random);

// A canvas for a picture for this model, with a background that is even or shades off. Mostly one
// tile; with the chance `large` of up to 2 x 2; or a little smaller than one. kBadData for a model
// without eyes.
Canvas blank_canvas(Random& random, const SourceContext& context, double large, Colour background);

}  // namespace drover
