// Pictures on a command line: named by file, placed in a text, encoded for the model.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/picture_encoder.h"
#include "engine/prompt.h"
#include "image/tiles.h"
#include "model/model.h"
#include "text/chat_format.h"

namespace drover {

// Where a picture stands in a text.
inline constexpr std::string_view kPictureMark = "<image>";

// Picture files, or standard input for "-", which can be one of them at most (else kUsage). Throws
// what reading and decode_image() throw.
std::vector<Image> read_images(std::span<const std::string> files);

// The text with its pictures: each <image> in it is the place of one, in order; if it has none,
// they stand before it. kUsage if there are some, but not as many as pictures. Without pictures the
// text stays as it is, whatever stands in it.
std::vector<Part> place_pictures(std::string_view text, std::span<const PictureTokens> pictures);

// Appends the tokens of such a text where there is no chat format; with `special`, the names of
// control tokens in it become those tokens.
void append_parts(const Tokenizer& tokenizer, std::span<const Part> parts, bool special,
                  std::vector<Token>& out);

// --image, which may be given several times.
void add_images(CLI::App& command, std::vector<std::string>& files, const std::string& help);

// All pictures of a command, read but not encoded yet: whether the prompt fits is known before the
// work begins.
class Pictures {
 public:
  // Throws kUnsupported if there are files and the model has no eyes.
  Pictures(const Model& model, std::span<const std::string> files);

  const std::vector<PictureTokens>& tokens() const { return tokens_; }
  // With a progress bar.
  std::vector<std::shared_ptr<const EncodedPicture>> encode(PictureEncoder& encoder) const;
  std::vector<std::shared_ptr<const EncodedPicture>> encode(const Model& model,
                                                            Context& context) const;

 private:
  std::vector<TiledImage> tiles_;
  std::vector<PictureTokens> tokens_;
};

}  // namespace drover
