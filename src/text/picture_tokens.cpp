#include "text/picture_tokens.h"

#include "base/error.h"

namespace drover {

void append_picture(const Tokenizer& tokenizer, const PictureTokens& picture,
                    std::vector<Token>& out) {
  const auto control = [&](std::string_view text) {
    const auto token = tokenizer.special(text);
    if (!token) {
      throw_error(ErrorKind::kUnsupported, "{}: pictures: expected a control token {}, got none",
                  tokenizer.vocabulary().source, text);
    }
    return *token;
  };
  const Token patch = control("<|patch|>");
  const auto tile = [&] { out.insert(out.end(), static_cast<size_t>(picture.per_tile), patch); };
  out.push_back(control("<|image_start|>"));
  if (picture.tiles() > 1) {
    const Token next_col = control("<|tile_x_separator|>");
    const Token next_row = control("<|tile_y_separator|>");
    for (int64_t row = 0; row < picture.rows; ++row) {
      for (int64_t col = 0; col < picture.cols; ++col) {
        if (col > 0) out.push_back(next_col);
        tile();
      }
      out.push_back(next_row);
    }
  }
  out.push_back(control("<|image|>"));
  tile();
  out.push_back(control("<|image_end|>"));
}

}  // namespace drover
