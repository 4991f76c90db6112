// What a cache holds the state of: a text, which is tokens and the pictures that stand in it.
#pragma once

#include <cstdint>
#include <span>

#include "text/picture_tokens.h"

namespace drover {

// A picture in a text: all patch tokens in [first, end) are its rows; separators between its tiles
// lie there too.
struct PlacedPicture {
  int64_t first = 0;
  int64_t end = 0;
  PictureHash hash{};

  bool operator==(const PlacedPicture&) const = default;
};

// Owned by others; pictures in order and apart from each other.
struct TextView {
  std::span<const Token> tokens;
  std::span<const PlacedPicture> pictures = {};
};

// How many tokens two texts share at their beginning; a picture that only one of them has ends it.
int64_t shared_beginning(TextView a, TextView b);

}  // namespace drover
