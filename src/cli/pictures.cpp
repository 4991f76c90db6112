#include "cli/pictures.h"

#include <algorithm>
#include <cstdio>

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
  if (std::ferror(stdin) != 0) throw_error(ErrorKind::kIo, "standard input: cannot read");
  return out;
}

}  // namespace

std::vector<Image> read_images(std::span<const std::string> files) {
  if (std::count(files.begin(), files.end(), "-") > 1) {
    throw_error(ErrorKind::kUsage, "image: standard input can be one picture only");
  }
  const ImageLimits limits;
  const size_t most = static_cast<size_t>(limits.bytes);
  std::vector<Image> out;
  for (const std::string& file : files) {
    const bool standard_input = file == "-";
    const std::string bytes = standard_input ? read_standard_input(most) : read_file(file, most);
    const std::string name = standard_input ? "standard input" : printable(file, 300);
    out.push_back(decode_image(std::as_bytes(std::span(bytes)), name, limits));
  }
  return out;
}

void append_parts(const Tokenizer& tokenizer, std::span<const Part> parts, bool special,
                  std::vector<Token>& out) {
  for (const Part& part : parts) {
    if (part.picture) {
      append_picture(tokenizer, *part.picture, out);
    } else if (special) {
      const std::vector<Token> more = tokenizer.encode_special(part.text);
      out.insert(out.end(), more.begin(), more.end());
    } else {
      tokenizer.encode(part.text, out);
    }
  }
}

void add_images(CLI::App& command, std::vector<std::string>& files, const std::string& help) {
  command.add_option("--image", files, help)->type_name("FILE")->allow_extra_args(false);
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
  for (const Image& image : read_images(files)) {
    tiles_.push_back(cut_tiles(config.tiles, image));
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
