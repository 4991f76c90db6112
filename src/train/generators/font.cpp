#include "train/generators/font.h"

#include <ft2build.h>
#include FT_FREETYPE_H
#include FT_OUTLINE_H

#include "base/error.h"

namespace drover {
namespace {

// Enough for letters of 100 pixels: a piece is then some 3 pixels long.
constexpr int kPieces = 8;

struct Outliner {
  Path path;
  Point at;
  double unit = 1;  // of the font's own units

  // y points up in fonts.
  Point point(const FT_Vector* v) const {
    return {static_cast<double>(v->x) * unit, -static_cast<double>(v->y) * unit};
  }
  void to(Point p) {
    path.back().push_back(p);
    at = p;
  }

  static Outliner& self(void* user) { return *static_cast<Outliner*>(user); }
  static int move_to(const FT_Vector* p, void* user) {
    self(user).path.emplace_back();
    self(user).to(self(user).point(p));
    return 0;
  }
  static int line_to(const FT_Vector* p, void* user) {
    self(user).to(self(user).point(p));
    return 0;
  }
  static int conic_to(const FT_Vector* control, const FT_Vector* end, void* user) {
    const Point a = self(user).at, b = self(user).point(control), c = self(user).point(end);
    for (int i = 1; i <= kPieces; ++i) {
      const double t = static_cast<double>(i) / kPieces, s = 1 - t;
      self(user).to({s * s * a.x + 2 * s * t * b.x + t * t * c.x,
                     s * s * a.y + 2 * s * t * b.y + t * t * c.y});
    }
    return 0;
  }
  static int cubic_to(const FT_Vector* first, const FT_Vector* second, const FT_Vector* end,
                      void* user) {
    const Point a = self(user).at, b = self(user).point(first), c = self(user).point(second),
                d = self(user).point(end);
    for (int i = 1; i <= kPieces; ++i) {
      const double t = static_cast<double>(i) / kPieces, s = 1 - t;
      const double w[] = {s * s * s, 3 * s * s * t, 3 * s * t * t, t * t * t};
      self(user).to({w[0] * a.x + w[1] * b.x + w[2] * c.x + w[3] * d.x,
                     w[0] * a.y + w[1] * b.y + w[2] * c.y + w[3] * d.y});
    }
    return 0;
  }
};

// FreeType's handles, let go in the end.
struct Library {
  FT_Library library = nullptr;
  FT_Face face = nullptr;
  ~Library() {
    if (face != nullptr) FT_Done_Face(face);
    if (library != nullptr) FT_Done_FreeType(library);
  }
};

}  // namespace

Font::Font(std::string_view bytes) {
  Library free_type;
  if (FT_Init_FreeType(&free_type.library) != 0 ||
      FT_New_Memory_Face(free_type.library, reinterpret_cast<const FT_Byte*>(bytes.data()),
                         static_cast<FT_Long>(bytes.size()), 0, &free_type.face) != 0) {
    throw_error(ErrorKind::kBadData, "fonts: expected a font, FreeType cannot read it");
  }
  const FT_Face face = free_type.face;
  for (char c = kFirst; c <= kLast; ++c) {
    const FT_UInt index = FT_Get_Char_Index(face, static_cast<FT_ULong>(c));
    // The font's own units: no hinting, no size, so that letters are alike at any size.
    if (index == 0 || FT_Load_Glyph(face, index, FT_LOAD_NO_SCALE) != 0 ||
        face->glyph->format != FT_GLYPH_FORMAT_OUTLINE) {
      throw_error(ErrorKind::kBadData, "fonts: expected an outline for '{}', got none", c);
    }
    Outliner outliner{{}, {}, 1.0 / face->units_per_EM};
    FT_Outline_Funcs functions{};
    functions.move_to = Outliner::move_to;
    functions.line_to = Outliner::line_to;
    functions.conic_to = Outliner::conic_to;
    functions.cubic_to = Outliner::cubic_to;
    FT_Outline_Decompose(&face->glyph->outline, &functions, &outliner);
    Glyph& glyph = glyphs_[static_cast<size_t>(c - kFirst)];
    glyph.path = std::move(outliner.path);
    glyph.advance = static_cast<double>(face->glyph->advance.x) / face->units_per_EM;
  }
}

std::vector<Font> read_fonts(std::span<const std::string> files) {
  std::vector<Font> out;
  for (const std::string& bytes : files) out.emplace_back(bytes);
  if (out.empty()) throw_error(ErrorKind::kBadData, "fonts: expected names of files, got none");
  return out;
}

Path Font::line(std::string_view text) const {
  Path out;
  double x = 0;
  for (const char c : text) {
    if (c < kFirst || c > kLast) continue;
    const Glyph& glyph = glyphs_[static_cast<size_t>(c - kFirst)];
    for (const auto& outline : transformed(glyph.path, {1, 0, 0, 1, x, 0})) out.push_back(outline);
    x += glyph.advance;
  }
  return out;
}

}  // namespace drover
