// The letters of a font file as outlines.
//
// Read once and then immutable; thread-safe.
#pragma once

#include <array>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "train/generators/canvas.h"

namespace drover {

class Font {
 public:
  // The printable characters of ASCII. kBadData if FreeType cannot read the bytes, or they have no
  // outlines for them.
  explicit Font(std::string_view bytes);

  // A line of text (other characters are left out), its baseline along y = 0 from x = 0; one unit
  // is the height of an em. Curves are cut into straight pieces.
  Path line(std::string_view text) const;

 private:
  static constexpr char kFirst = ' ', kLast = '~';
  struct Glyph {
    Path path;
    double advance = 0;
  };
  std::array<Glyph, kLast - kFirst + 1> glyphs_;
};

// One for each file; kBadData if there is none.
std::vector<Font> read_fonts(std::span<const std::string> files);

}  // namespace drover
