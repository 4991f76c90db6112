#include "cli/pictures.h"

#include <cstdio>
#include <iostream>
#include <iterator>

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/progress.h"
#include "cli/command.h"
#include "image/decode.h"

namespace drover {
namespace {

// Standard input, up to one byte more than a picture may have.
std::string read_standard_input(size_t limit) {
  std::string out;
  char buffer[1 << 16];
  while (out.size() <= limit) {
    const size_t n = std::fread(buffer, 1, sizeof(buffer), stdin);
    if (n == 0) break;
    out.append(buffer, n);
  }
  return out;
}

}  // namespace

Image read_image(const std::string& file) {
  const ImageLimits limits;
  const size_t most = static_cast<size_t>(limits.bytes);
  const bool standard_input = file == "-";
  const std::string bytes = standard_input ? read_standard_input(most) : read_file(file, most);
  const std::string name = standard_input ? "standard input" : printable(file, 300);
  return decode_image(std::as_bytes(std::span(bytes)), name, limits);
}

std::vector<Part> place_pictures(std::string_view text, std::span<const PictureTokens> pictures) {
  if (pictures.empty()) return {{std::string(text)}};
  std::vector<std::string_view> pieces;
  for (size_t at = 0;;) {
    const size_t mark = text.find(kPictureMark, at);
    pieces.push_back(text.substr(at, mark == std::string_view::npos ? mark : mark - at));
    if (mark == std::string_view::npos) break;
    at = mark + kPictureMark.size();
  }
  std::vector<Part> out;
  if (pieces.size() == 1) {
    for (const PictureTokens& picture : pictures) out.push_back({"", picture});
    out.push_back({std::string(text)});
    return out;
  }
  if (pieces.size() - 1 != pictures.size()) {
    throw Error(ErrorKind::kUsage,
                fmt::format("prompt: expected {} once for each of {} pictures, got {}",
                            kPictureMark, pictures.size(), pieces.size() - 1),
                "without any, the pictures stand before the text");
  }
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (!pieces[i].empty()) out.push_back({std::string(pieces[i])});
    if (i < pictures.size()) out.push_back({"", pictures[i]});
  }
  return out;
}

Pictures::Pictures(const Model& model, std::span<const std::string> files) {
  if (files.empty()) return;
  const VisionConfig& config = model.vision().config;
  for (const std::string& file : files) {
    tiles_.push_back(cut_tiles(config.tiles, read_image(file)));
    tokens_.push_back(picture_tokens(config, tiles_.back().layout));
  }
}

std::vector<std::shared_ptr<const EncodedPicture>> Pictures::encode(PictureEncoder& encoder) const {
  ProgressBar bar("looking", "layers");
  return encoder.encode(tiles_, bar.callback(), &InterruptGuard::flag());
}

std::vector<std::shared_ptr<const EncodedPicture>> Pictures::encode(const Model& model,
                                                                    Context& context) const {
  if (tiles_.empty()) return {};
  PictureEncoder encoder(model, context);
  return encode(encoder);
}

}  // namespace drover
