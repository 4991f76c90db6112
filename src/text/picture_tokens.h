// A picture's place in a sequence: markers, and patch tokens whose embeddings what is seen there
// replaces. Spec section 6.7.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "text/tokenizer.h"

namespace drover {

// SHA-256 of what was seen.
using PictureHash = std::array<uint8_t, 32>;

// What the sequence of a picture follows from.
struct PictureTokens {
  int64_t rows = 1;  // of tiles; a canvas of several is followed by the global tile
  int64_t cols = 1;
  int64_t per_tile = 0;  // patch tokens of a tile

  int64_t tiles() const { return rows * cols > 1 ? rows * cols + 1 : 1; }
  int64_t patches() const { return tiles() * per_tile; }
  // Of the whole sequence: three markers, and a separator after each tile but the global one.
  int64_t length() const { return 3 + patches() + (tiles() > 1 ? tiles() - 1 : 0); }
};

// Appends the picture's tokens. kUnsupported names a control token that the vocabulary lacks.
void append_picture(const Tokenizer& tokenizer, const PictureTokens& picture,
                    std::vector<Token>& out);

}  // namespace drover
